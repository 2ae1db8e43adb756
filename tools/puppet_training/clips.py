"""Clip folders of portraits with caches of latents and image tokens, drawn from seeds.

``python -m tools.puppet_training.clips OUT --model FOLDER --people N`` writes them, resumes where it stopped, and adds
more people if N grows. Latents come from the drawn images themselves: a video would blur colours first. Every clip
starts with the figure at rest, which is its reference. ``--share-several S`` adds clips of two and three people side by
side, twice as many of two, until they are the share S of all clips. ``--share-exchanged S`` draws the references of a
share S with other faces (``exchanged_faces``): only the face embedding then determines the face of the frames.
``--hide-exchanged`` replaces these other faces with noise, and computes the embedding from the face under other hair
(``exchanged_hair``), as that of another person is when the command is given it: hair must come from the reference.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import copy
from dataclasses import replace
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from stableanimator_cli import catalogue
from stableanimator_cli.clip_folder import FACES, load_faces, save_faces
from stableanimator_cli.config.parse import Size
from stableanimator_cli.detect.face import FaceReader
from stableanimator_cli.diffusion.schedule import keyed_noise
from stableanimator_cli.engine.conditioning import clip_pixels, degrade_faces, to_signed
from stableanimator_cli.engine.weights import loaders
from stableanimator_cli.files import sha256_of
from stableanimator_cli.puppets.dataset import PuppetPlan, write_puppets
from stableanimator_cli.puppets.sample import (
    Identity,
    derive_rng,
    exaggerate_features,
    global_index,
    sample_identity,
)
from stableanimator_cli.puppets.scene import Scene
from stableanimator_cli.train.dataset import open_dataset
from stableanimator_cli.train.latent_cache import latents_file, tokens_file
from tools.command import exit_code_of
from tools.puppet_training.heldout import SIZE
from tools.puppet_training.vae import half_precision
from tools.settings import check_settings
from tools.truth_clips import write_clips

_PART = 250  # people per folder of drawings
_SEED = 31  # of the first folder
_OTHERS = 400_000_000  # people of exchanged faces from this index on; no drawn clip shows them
_HAIR = ("hair", "hair_colour", "hair_phase")
_SEVERAL = {2: ("two", 10_000, 2 / 3), 3: ("three", 20_000, 1 / 3)}  # people per clip: name, seed, share of these clips


def plan_of(
    out: Path, part: int, videos: int, frames: int, fps: Fraction, size: Size = SIZE, framing: str = "portrait",
    people: int = 1, seed: int = 0,
) -> PuppetPlan:  # fmt: skip
    """The content of folder ``part`` of the drawings, of ``videos`` in all folders, each of ``people`` people."""
    name, first, _ = _SEVERAL.get(people, ("", _SEED, 1.0))
    return PuppetPlan(
        folder=out / f"drawings-{name}{'-' if name else ''}{part:03d}",
        videos=min(_PART, videos - part * _PART),
        people=people,
        frames=frames,
        size=size,
        fps=fps,
        seed=seed + first + part,
        framing=framing,
        reference_first=True,
    )


def count_several(people: int, share: float) -> dict[int, int]:
    """Number of clips by people per clip: ``people`` of one person, and the share ``share`` of all of several."""
    several = people * share / (1 - share)
    return {1: people} | {count: round(several * part) for count, (_, _, part) in _SEVERAL.items()}


def check_shares(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse shares below 0 or above 1, and a ``--share-several`` that leaves no clip of one person."""
    if not 0 <= options.share_several < 1:
        parser.error(f"argument --share-several: {options.share_several:g}, expected 0 or more and less than 1")
    if not 0 <= options.share_exchanged <= 1:
        parser.error(f"argument --share-exchanged: {options.share_exchanged:g}, expected 0 to 1")


def draw_part(plan: PuppetPlan, out: Path, model: str) -> None:
    """Draw one folder and write its clip folders."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    write_puppets(plan)
    entry = catalogue.open_model(model, require=("face",))
    reader = FaceReader(entry.files["face"], entry.face_channel_order, "cpu")
    write_clips(plan.folder, out / plan.folder.name.replace("drawings", "clips"), reader)


def exchanged_faces(scene: Scene) -> Scene:
    """The scene with other faces (skin included) under the same hair: of the next person, or of one from elsewhere."""
    return _with_identities(
        scene, lambda own, other: replace(other, number=own.number, **{name: getattr(own, name) for name in _HAIR})
    )


def exchanged_hair(scene: Scene) -> Scene:
    """The scene with other hair above the same faces: of the next person, or of one from elsewhere."""
    return _with_identities(scene, lambda own, other: replace(own, **{name: getattr(other, name) for name in _HAIR}))


def _with_identities(scene: Scene, combine: Callable[[Identity, Identity], Identity]) -> Scene:
    """The scene with people of ``combine(own, other)``."""
    known = [person.identity for person in scene.people]
    if len(known) == 1:
        number = int(derive_rng("exchanged face", scene.seed).integers(_OTHERS, 2 * _OTHERS))
        known.append(exaggerate_features(sample_identity(global_index("train", number))))
    exchanged = copy(scene)
    exchanged.people = tuple(
        replace(person, identity=combine(person.identity, other))
        for person, other in zip(scene.people, [*known[1:], known[0]], strict=False)
    )
    return exchanged


@torch.no_grad()
def encode_part(
    plan: PuppetPlan, clips: Path, model: str, device: str, size: Size | None = None, exchanged: float = 0.0,
    hide: bool = False,
) -> int:  # fmt: skip
    """Write the missing caches; returns the number of clips that lacked one. Images are drawn again, at ``size``.

    References of a share ``exchanged`` of the clips have other faces than the embeddings of the clip folder. ``hide``:
    with noise in their place, as with ``sa animate --hide-reference-face``, and with ``embed_other_hair``.
    """
    size = size or plan.size
    entry = catalogue.open_model(model)
    load = loaders(entry, torch.float32, "distribution")
    vae, encoder = load["vae"]().to(device), load["image_encoder"]().to(device)
    reader = FaceReader(entry.files["face"], entry.face_channel_order, "cpu") if hide else None
    digests = sha256_of(entry.files["vae"]), sha256_of(entry.files["image_encoder"])
    written = 0
    for clip in open_dataset([clips], min_frames=2).clips:
        latents = latents_file(clip, size, vae=digests[0], resize="stretch")
        tokens = tokens_file(clip, image_encoder=digests[1])
        if latents.is_valid() and tokens.is_valid():
            continue
        scene = plan.scene(int(clip.name))
        apart = derive_rng("exchanged", scene.seed).random() < exchanged
        reference = (exchanged_faces(scene) if apart else scene).reference(size)
        images = np.stack([frame.image for frame in (reference, *scene.clip(size))])
        moments = _moments(vae, to_signed(images).to(device))
        if apart and reader is not None:
            embed_other_hair(clip.path, scene, reader)
            moments[0] = _hide_faces(moments[0], reference.face_boxes * (moments.shape[3] / size[0]), scene.seed)
        latents.write(moments)
        tokens.write(encoder(pixel_values=clip_pixels(images).to(device)).image_embeds.half().cpu())
        written += 1
    return written


def embed_other_hair(clip: Path, scene: Scene, reader: FaceReader) -> None:
    """Write the embeddings of the faces under other hair as those of a clip folder's reference."""
    faces = load_faces(clip / FACES)
    reference = exchanged_hair(scene).reference(scene.size)
    embeddings = faces.embeddings.copy()
    for row in faces.at(0):
        embedding = reader.recognise(reference.image, reference.landmarks[faces.person[row]])
        if embedding is not None:
            embeddings[row] = embedding
    save_faces(clip / FACES, replace(faces, embeddings=embeddings))


def _moments(vae: Any, pixels: Tensor) -> Tensor:
    with half_precision(pixels):
        return vae.encode(pixels).latent_dist.parameters.half().cpu()


def _hide_faces(moments: Tensor, boxes: np.ndarray, seed: int) -> Tensor:
    """The moments [2c,h,w] of a reference with noise in the place of the faces. ``boxes`` [p,4] in cells."""
    mean, log_variance = moments.float().chunk(2)
    noise = keyed_noise(seed, "hidden", [0], tuple(mean.shape))
    mean = degrade_faces(mean[None], torch.from_numpy(boxes)[None], torch.ones(1, dtype=torch.bool), noise)[0]
    return torch.cat([mean, log_variance]).to(moments.dtype)


def write_all(
    out: Path, model: str, *, people: int, frames: int = 4, fps: Fraction = Fraction(2), device: str = "cpu",
    workers: int = 1, size: Size = SIZE, encoded: Size | None = None, framing: str = "portrait", share: float = 0.0,
    exchanged: float = 0.0, hide: bool = False, seed: int = 0,
) -> list[Path]:  # fmt: skip
    """Write the missing clips and caches; returns the folders of clips.

    ``size`` (w, h) of the videos, from which face embeddings are computed; ``encoded``: of latents, if it differs.
    ``share`` of the clips show several people (``count_several``), ``exchanged`` have references with other faces;
    ``hide``: with noise in their place. Another ``seed`` draws other people, if it is larger by the number of folders.

    Raises ``BadInput`` if ``out`` has clips with other references: a cache does not show how its reference was drawn.
    """
    references = {"share-exchanged": exchanged, "hide-exchanged": hide}
    check_settings(out / "settings.json", references, started=any(out.glob("clips-*")))
    plans = [
        plan_of(out, part, videos, frames, fps, size, framing, count, seed)
        for count, videos in count_several(people, share).items()
        for part in range(-(-videos // _PART))
    ]
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(draw_part, plans, [out] * len(plans), [model] * len(plans)))
    folders = []
    for plan in plans:
        if workers == 1:
            draw_part(plan, out, model)
        folders.append(out / plan.folder.name.replace("drawings", "clips"))
        written = encode_part(plan, folders[-1], model, device, encoded, exchanged, hide)
        print(f"{folders[-1]}: {written} clips encoded", flush=True)
    return folders


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.puppet_training.clips", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True, help="the model folder whose VAE encodes")
    parser.add_argument("--people", type=int, required=True)
    parser.add_argument("--frames", type=int, default=4, help="per clip, beside the reference")
    parser.add_argument(
        "--fps", type=Fraction, default=Fraction(2), help="2: distant moments, for training on single images"
    )
    parser.add_argument(
        "--share-several", type=float, default=0.0, metavar="S", help="share of clips of 2 and 3 people"
    )
    parser.add_argument(
        "--share-exchanged", type=float, default=0.0, metavar="S", help="share of references with other faces"
    )
    parser.add_argument("--hide-exchanged", action="store_true", help="noise in the place of these other faces")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    options = parser.parse_args(arguments)
    check_shares(parser, options)
    write_all(
        options.out, options.model, people=options.people, frames=options.frames, fps=options.fps,
        device=options.device, workers=options.workers, share=options.share_several, exchanged=options.share_exchanged,
        hide=options.hide_exchanged,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
