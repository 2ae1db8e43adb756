"""Scores of a model on people of the test split, whose reference has lost its face as in training.

Identity can then come from the face embedding alone. All people share noise between models, so that scores are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from torch import Tensor

from stableanimator_cli import catalogue
from stableanimator_cli.animate.pose_frames import PoseFrames
from stableanimator_cli.config.animate import DeviceConfig, SamplingConfig
from stableanimator_cli.config.refine import RefineConfig
from stableanimator_cli.diffusion.face_optimization import FaceOptimizationSettings
from stableanimator_cli.diffusion.noise_levels import SCHEDULES
from stableanimator_cli.diffusion.sampler import Denoise, Refine, sample_euler
from stableanimator_cli.diffusion.schedule import initial_scale, keyed_noise
from stableanimator_cli.diffusion.windows import plan_windows
from stableanimator_cli.engine.conditioning import Conditioning, degrade_faces, to_signed
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.face_optimization import FaceBox, face_optimization
from stableanimator_cli.evaluate.face_paste import paste
from stableanimator_cli.media import write_image
from stableanimator_cli.motion.skeleton import draw_skeleton
from stableanimator_cli.nets.id_adapter import IDMode
from stableanimator_cli.puppets.render import PuppetFrame
from stableanimator_cli.puppets.scene import Scene, sample_scene
from stableanimator_cli.records import STRIDE
from tools.ablations.training import Experiment, Treatment
from tools.bench.refinement_figures import Judges, face_mask
from tools.puppet_training.measure import face_scores, psnr

FIRST = 300_000  # scenes of the test split from here on; tools.bench.blending shows the same people in other clips
FRAMES = 8
STEPS = 8  # of the sampling
SIGMAS = (0.5, 1.0, 2.0, 4.0)  # noise levels of the denoised latents that are compared with the true ones
_CELL = 128  # pixels of an image of the sheet
_SAMPLING = SamplingConfig(steps=STEPS, guidance=(1.0, 1.0))

Row = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A clip of a person that no training saw.

    ``fitted`` uint8[h,w,3] is the reference, ``large`` the same at twice its size, ``embedding`` float32[512] its face
    vector, ``face_box`` [4] in pixels, ``expected`` the judge's and the recogniser's unit vectors, ``mask``
    float32[t,1,h/8,w/8] the faces' share of cells.
    """

    number: int
    scene: Scene
    large: PuppetFrame
    frames: tuple[PuppetFrame, ...]
    fitted: np.ndarray
    face_box: np.ndarray
    embedding: np.ndarray
    expected: tuple[np.ndarray, np.ndarray]
    mask: Tensor


class People:
    """The first ``count`` people of an experiment whose clips show their faces, and the networks that compare them."""

    def __init__(self, experiment: Experiment, count: int) -> None:
        model = catalogue.open_model("puppet")
        self.judges = Judges(model)
        faces = Engine.open(model, DevicePlan.of(DeviceConfig(device="cpu"))).faces()
        self.people: list[Person] = []
        number, (width, height) = FIRST, experiment.size
        while len(self.people) < count:
            scene = sample_scene(
                "test", number, framing=experiment.framing, size=experiment.size, frames=FRAMES, clip=5
            )
            number += 1
            frames, large = tuple(scene.clip()), scene.reference((2 * width, 2 * height))
            shown = [frame for frame in frames if np.isfinite(frame.face_boxes[0]).all()]
            expected = self.judges.vectors(large.image, large.landmarks[0])
            embedding = faces.recognise(large.image, large.landmarks[0])
            if len(shown) < FRAMES // 2 or expected is None or embedding is None:
                continue
            reference = scene.reference()
            mask = torch.from_numpy(np.stack([face_mask(frame) for frame in frames]).astype(np.float32))[:, None]
            self.people.append(
                Person(
                    number=number - 1,
                    scene=scene,
                    large=large,
                    frames=frames,
                    fitted=reference.image,
                    face_box=reference.face_boxes[0],
                    embedding=embedding,
                    expected=expected,
                    mask=torch.nn.functional.avg_pool2d(mask, STRIDE),
                )
            )

    def score_images(self, images: Sequence[np.ndarray], person: Person) -> Row:
        """Similarities to the person's reference and image quality, means over the frames that show the face."""
        cosines, faces, background = [], [], []
        for image, target in zip(images, person.frames, strict=True):
            inside = face_mask(target)
            background.append(psnr(image[~inside], target.image[~inside]))
            vectors = self.judges.vectors(image, target.landmarks[0]) if inside.any() else None
            if vectors is not None:
                faces.append(face_scores(image, target.image, target.face_boxes[0]))
                cosines.append([float(a @ b) for a, b in zip(vectors, person.expected, strict=True)])
        judge, recogniser = np.mean(cosines, axis=0)
        face, sharpness = np.mean(faces, axis=0)
        values = (recogniser, judge, face, sharpness, np.mean(background))
        names = ("recogniser", "judge", "face_psnr", "sharpness", "background_psnr")
        return {name: round(float(value), 5) for name, value in zip(names, values, strict=True)}


class Scorer:
    """One model folder, opened for scores; use it as a context manager."""

    def __init__(
        self,
        model: Path,
        experiment: Experiment,
        people: People,
        *,
        with_face: bool = True,
        treatment: Treatment | None = None,
    ) -> None:
        self._experiment, self._people, self._with_face = experiment, people, with_face
        self._treatment: Treatment | None = treatment
        entry = catalogue.open_model(str(model))
        self._schedule = entry.facts.schedules[0]
        mode = cast(IDMode, entry.defaults.get("id_adapter", "distribution"))
        self._engine = Engine.open(entry, DevicePlan.of(DeviceConfig(device="cpu")), id_mode=mode)

    def __enter__(self) -> Scorer:
        self._engine.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._engine.__exit__(*error)

    def score(self, index: int) -> tuple[Row, list[np.ndarray]]:
        """Scores of person ``index``, and images for the sheet: reference, truth, output, output with another face."""
        person = self._people.people[index]
        middle = FRAMES // 2
        sheet = [person.fitted, person.frames[middle].image]
        if self._treatment is not None:  # the network, and so its errors, are those of the training
            output = self._render(person, person.embedding)
            return self._people.score_images(output, person), [*sheet, output[middle]]
        row = self._latent_errors(person)
        if self._experiment.renders:
            output = self._render(person, person.embedding)
            row |= self._people.score_images(output, person)
            sheet.append(output[middle])
            if self._with_face:
                other = self._people.people[(index + 1) % len(self._people.people)]
                swapped = self._render(person, other.embedding)
                row["follows"] = round(self._towards(swapped, other, person) - self._towards(output, other, person), 5)
                sheet.append(swapped[middle])
            else:
                row["follows"] = 0.0
        return row, sheet

    def reconstruct(self, index: int) -> Row:
        """Scores of the true frames after encoding and decoding: the upper bound."""
        person = self._people.people[index]
        return self._people.score_images(self._decode(self._latents(person)), person)

    def _towards(self, images: Sequence[np.ndarray], other: Person, person: Person) -> float:
        """Mean similarity by the judge of ``images`` of ``person`` to ``other``."""
        vectors = [
            self._people.judges.vectors(image, frame.landmarks[0])
            for image, frame in zip(images, person.frames, strict=True)
            if np.isfinite(frame.face_boxes[0]).all()
        ]
        return float(np.mean([found[0] @ other.expected[0] for found in vectors if found is not None]))

    def _condition(self, person: Person, embedding: np.ndarray) -> Conditioning:
        """Conditioning whose reference has noise in the place of the face, as in training with ``degrade`` 1."""
        size = self._experiment.size
        keypoints = person.scene.motion().keypoints
        poses = PoseFrames(size, (draw_skeleton(people, size) for people in keypoints))
        face = embedding if self._with_face else None
        conditioning = self._engine.encode(person.fitted, person.fitted, face, poses, _SAMPLING)
        reference = conditioning.reference
        box = torch.from_numpy(person.face_box.astype(np.float32))[None] / STRIDE
        noise = keyed_noise(person.number, "degraded", [0], tuple(reference.shape[1:]))
        return replace(conditioning, reference=degrade_faces(reference, box, torch.tensor([True]), noise))

    def _denoiser(self, conditioning: Conditioning) -> Denoise:
        return self._engine.denoiser(conditioning, plan_windows(FRAMES, length=FRAMES, overlap=0), (1.0, 1.0))

    def _render(self, person: Person, embedding: np.ndarray) -> list[np.ndarray]:
        conditioning, sigmas = self._condition(person, embedding), SCHEDULES[self._schedule](STEPS)
        shape = tuple(conditioning.reference.shape[1:])
        x = keyed_noise(person.number, "latents", range(FRAMES), shape) * initial_scale(float(sigmas[0]))
        with self._engine.resident("unet", "pose_net"), torch.no_grad():
            x = sample_euler(self._denoiser(conditioning), x, sigmas, refine=self._refine(person))
        frames = self._decode(x)
        return [self._pasted(frame, person) for frame in frames] if self._treatment == "paste" else frames

    def _refine(self, person: Person) -> Refine | None:
        """Face optimisation towards the person's reference with the defaults of ``sa animate``, None without."""
        if self._treatment != "optimize":
            return None
        defaults = RefineConfig()
        settings = FaceOptimizationSettings(
            mode="crop", steps=defaults.steps_of(STEPS), iterations=defaults.iterations, lr=defaults.lr,
            lr_schedule=defaults.schedule, anchor=defaults.anchor, chunk=FRAMES, mask_dilation=defaults.mask_dilation,
        )  # fmt: skip
        boxes = np.stack([frame.face_boxes[:1] for frame in person.frames]).astype(np.float64)
        references = [FaceBox(image=person.large.image, box=person.large.face_boxes[0])]
        size = self._experiment.size
        return face_optimization(self._engine, settings, references=references, boxes=boxes, size=size)

    def _pasted(self, frame: np.ndarray, person: Person) -> np.ndarray:
        """``frame`` with the reference's face on the one that the detector finds; unchanged if it finds none."""
        found = self._engine.faces().boxes(frame)
        pasted = paste(frame, found[0].landmarks, person.large.image, person.large.landmarks[0]) if found else None
        return frame if pasted is None else pasted

    def _decode(self, latents: Tensor) -> list[np.ndarray]:
        with self._engine.resident("vae"), torch.no_grad():
            return [frame.copy() for frame in self._engine.decoder.frames(latents, chunk=FRAMES)]

    def _latents(self, person: Person) -> Tensor:
        """Scaled latents of the true frames, float32[t,c,h/8,w/8]."""
        images = to_signed(np.stack([frame.image for frame in person.frames]))
        with self._engine.resident("vae"), torch.no_grad():
            vae = self._engine.networks["vae"]
            return vae.encode(images).latent_dist.mode() * vae.config.scaling_factor

    def _latent_errors(self, person: Person) -> Row:
        """Mean squared error of denoised latents in dB inside and outside of faces, averaged over ``SIGMAS``."""
        conditioning, latents = self._condition(person, person.embedding), self._latents(person)
        shape, errors = tuple(latents.shape[1:]), []
        with self._engine.resident("unet", "pose_net"), torch.no_grad():
            denoise = self._denoiser(conditioning)
            for sigma in SIGMAS:
                noise = keyed_noise(person.number, f"error {sigma}", range(FRAMES), shape)
                square = (denoise(latents + sigma * noise, sigma) - latents).square().mean(dim=1, keepdim=True)
                weights = person.mask, 1 - person.mask
                errors.append([float((square * weight).sum() / weight.sum()) for weight in weights])
        inside, outside = (10 * np.log10(np.array(errors))).mean(axis=0)
        return {"inside": round(float(inside), 5), "outside": round(float(outside), 5)}


def write_sheet(path: Path, rows: Sequence[Sequence[np.ndarray]]) -> None:
    """People below one another: reference, truth, output, and the output with the next person's face vector."""
    enlarged = [[cv2.resize(image, (_CELL * image.shape[1] // image.shape[0], _CELL)) for image in row] for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.concatenate([np.concatenate(row, axis=1) for row in enlarged]))
