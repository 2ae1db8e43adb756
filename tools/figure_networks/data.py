"""Training data of the small networks: drawn frames, aligned faces and clips, stored in a folder of shards.

Every shard follows from its number alone. So interrupted drawing resumes at the next shard, and two caches of one
recipe hold the same numbers. A shard is an ``.npz`` of arrays of equal length and is written atomically.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from stableanimator_cli.files import atomic_write, translate_os_errors
from stableanimator_cli.puppets.moves import MOVES
from stableanimator_cli.puppets.sample import HAIR_STYLES, MAX_PEOPLE, TOPS, derive_rng
from stableanimator_cli.puppets.scene import sample_scene

Arrays = dict[str, np.ndarray]

FRAME_SIDE = 160
"""Long side of drawn frames: the detectors' input of 640 after pooling by four."""

ALIGNED, MARGIN = 112, 8
"""Side of an aligned face, and the margin around it for augmentation by shifts."""

CLIP_SIDE, CLIP_FRAMES = 128, 8

TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""ArcFace's positions of eyes, nose and mouth corners in an image of 112 x 112 (Deng et al.)."""

LABELS: Mapping[str, tuple[str, ...]] = {"behaviour": tuple(MOVES), "hair": HAIR_STYLES, "top": TOPS}
"""The classes of the video classifier, by label."""

_SIZES = ((160, 160), (160, 120), (120, 160), (160, 90), (96, 160))
_SIZE_SHARE = (0.4, 0.15, 0.2, 0.1, 0.15)
_FACE, _BROWS, _CHIN = slice(24, 92), slice(24 + 17, 24 + 27), 24 + 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A cache to draw: ``draw(shard)`` returns the arrays of one of ``shards`` shards."""

    name: str
    shards: int
    draw: Callable[[int], Arrays]

    def path(self, folder: Path, shard: int) -> Path:
        return folder / "cache" / f"{self.name}-{shard:05d}.npz"

    def prepare(self, folder: Path, workers: int, report: Callable[[str], None]) -> None:
        """Draw the missing shards with ``workers`` processes."""
        missing = [n for n in range(self.shards) if not self.path(folder, n).exists()]
        if not missing:
            return
        # Spawned, not forked: the copy of a process with threads of torch may deadlock.
        with ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn")) as pool:
            for done, _ in enumerate(pool.map(partial(_draw_shard, self, folder), missing), 1):
                if done % 20 == 0 or done == len(missing):
                    report(f"{self.name}: drawn {self.shards - len(missing) + done} of {self.shards} shards")

    def load(self, folder: Path) -> Arrays:
        """All shards in order, concatenated."""
        parts: list[Arrays] = []
        for n in range(self.shards):
            with np.load(self.path(folder, n), allow_pickle=False) as archive:
                parts.append({key: archive[key] for key in archive.files})
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _draw_shard(recipe: Recipe, folder: Path, shard: int) -> None:
    cv2.setNumThreads(1)
    arrays = recipe.draw(shard)
    path = recipe.path(folder, shard)
    with atomic_write(path) as temp, translate_os_errors(path), temp.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


# Frames with the points of all people, for the person, pose and face detectors.


def draw_frames(
    shard: int, *, split: str = "train", scenes: int = 25, times: int = 4, portraits: float = 0.0
) -> Arrays:
    """``scenes * times`` frames of one to three people.

    ``image`` uint8[n,160,160,3] (grey outside the frame), ``size`` int[n,2], ``keypoints`` float32[n,3,134,3], ``face``
    float32[n,3,4], ``landmarks`` float32[n,3,5,2]; NaN if a person is missing or a face is not visible.
    """
    n = scenes * times
    out = {
        "image": np.full((n, FRAME_SIDE, FRAME_SIDE, 3), 114, np.uint8),
        "size": np.zeros((n, 2), np.int64),
        "keypoints": np.full((n, MAX_PEOPLE, 134, 3), np.nan, np.float32),
        "face": np.full((n, MAX_PEOPLE, 4), np.nan, np.float32),
        "landmarks": np.full((n, MAX_PEOPLE, 5, 2), np.nan, np.float32),
    }
    for s in range(scenes):
        index = shard * scenes + s
        rng = derive_rng("frames", split, index)
        people = int(rng.choice(3, p=(0.6, 0.27, 0.13))) + 1
        width, height = _SIZES[int(rng.choice(len(_SIZES), p=_SIZE_SHARE))]
        framing = "portrait" if portraits and derive_rng("portraits", split, index).random() < portraits else "mixed"
        scene = sample_scene(split, index, people=people, framing=framing, size=(width, height), clip=7)
        for k, t in enumerate(rng.uniform(0, 400, times)):
            frame, row = scene.frame(float(t)), s * times + k
            out["image"][row, :height, :width] = frame.image
            out["size"][row] = width, height
            out["keypoints"][row, :people] = frame.keypoints
            out["face"][row, :people], out["landmarks"][row, :people] = frame.face_boxes, frame.landmarks
    return out


def head_size(points: np.ndarray) -> float:
    """Approximate height of a head in pixels, from brows and chin, visible or not: float[134,3] -> pixels."""
    return float(1.56 * np.linalg.norm(points[_BROWS, :2].mean(axis=0) - points[_CHIN, :2]))


def present(points: np.ndarray) -> bool:
    """Whether a person is visible enough to be detected: three body points, as in ``scene.motion_of``."""
    return bool((points[:18, 2] > 0).sum() >= 3)


def person_box(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A person's box from the visible points, with the head up to its hair, clipped to the image: float[4]."""
    seen = points[points[:, 2] > 0, :2]
    if points[[0, 1, 14, 15, 16, 17], 2].any():
        brow, chin, head = points[_BROWS, :2].mean(axis=0), points[_CHIN, :2], head_size(points)
        middle = points[_FACE, :2].mean(axis=0)
        top = brow + (brow - chin) * 0.95
        sides = middle + np.array([[-0.5, 0], [0.5, 0]]) * head
        seen = np.concatenate([seen, top[None], sides])
    limit = np.array(size) - 1
    return np.concatenate([seen.min(axis=0).clip(0, limit), seen.max(axis=0).clip(0, limit)])


# Aligned faces, for the recognisers.


def draw_faces(
    shard: int, *, first: int, split: str = "train", people: int = 10, clips: int = 4, times: int = 3
) -> Arrays:
    """Faces of ``people`` identities from scene ``first`` on, each in several clips (other clothes, another body).

    ``image`` uint8[n,128,128,3], ``person`` int[n] (the scene's index), ``clip`` int[n]. Faces that are not visible at
    any of the tried times are left out.
    """
    side = ALIGNED + 2 * MARGIN
    images, persons, clip_numbers = [], [], []
    for index in range(first + shard * people, first + (shard + 1) * people):
        for clip in range(clips):
            rng = derive_rng("faces", split, index, clip)
            pixels = int(rng.choice((112, 128, 160, 224, 288)))
            scene = sample_scene(split, index, framing="half", size=(pixels, pixels), clip=clip)
            found = 0
            for t in rng.uniform(0, 400, times * 3):
                frame = scene.frame(float(t))
                if found == times or np.isnan(frame.landmarks).any():
                    continue
                found += 1
                images.append(aligned(frame.image, frame.landmarks[0], side))
                persons.append(index)
                clip_numbers.append(clip)
    return {"image": np.stack(images), "person": np.array(persons), "clip": np.array(clip_numbers)}


def similarity(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least-squares rotation, scale and shift float[2,3] from ``points`` float[n,2] to ``target`` (Umeyama 1991)."""
    p, q = points - points.mean(axis=0), target - target.mean(axis=0)
    # In the plane the least squares solution is one complex number.
    z = (p[:, 0] - 1j * p[:, 1]) @ (q[:, 0] + 1j * q[:, 1]) / max(float((p**2).sum()), 1e-9)
    turn = np.array([[z.real, -z.imag], [z.imag, z.real]])
    return np.concatenate([turn, (target.mean(axis=0) - turn @ points.mean(axis=0))[:, None]], axis=1)


def aligned(image: np.ndarray, landmarks: np.ndarray, side: int = ALIGNED) -> np.ndarray:
    """The face on ArcFace's template, with an even margin if ``side`` is more than 112: uint8[side,side,3]."""
    matrix = similarity(landmarks.astype(float), TEMPLATE + (side - ALIGNED) / 2)
    return cv2.warpAffine(image, matrix, (side, side), borderValue=0.0)


# Clips, for the classifier of videos and for the temporal VAE.


def draw_clips(shard: int, *, split: str = "train", scenes: int = 25) -> Arrays:
    """Clips of one person with one behaviour.

    ``video`` uint8[n,8,128,128,3], ``label`` int[n,3] (``LABELS``), ``points`` float32[n,8,18,3] (body points relative
    to the image, and their visibility) and ``colour`` float32[n,9] of skin, hair and top, 0..1.
    """
    behaviours = LABELS["behaviour"]
    out: dict[str, list[np.ndarray]] = {"video": [], "label": [], "points": [], "colour": []}
    for index in range(shard * scenes, (shard + 1) * scenes):
        rng = derive_rng("clips", split, index)
        behaviour = behaviours[int(rng.integers(len(behaviours)))]
        framing = "half" if rng.random() < 0.7 else "whole"
        scene = sample_scene(split, index, framing=framing, frames=CLIP_FRAMES, behaviour=behaviour, clip=11)
        start = float(rng.uniform(0, 100))
        frames = [scene.frame(start + t) for t in range(CLIP_FRAMES)]
        identity, clothes = scene.people[0].identity, scene.people[0].clothes
        names = {"behaviour": behaviour, "hair": identity.hair, "top": clothes.top}
        scale = np.array([1 / CLIP_SIDE, 1 / CLIP_SIDE, 1], np.float32)
        out["video"].append(np.stack([frame.image for frame in frames]))
        out["label"].append(np.array([LABELS[key].index(names[key]) for key in LABELS]))
        out["points"].append(np.stack([frame.keypoints[0, :18] for frame in frames]) * scale)
        out["colour"].append(np.array([*identity.skin, *identity.hair_colour, *clothes.colour], np.float32) / 255)
    return {key: np.stack(values) for key, values in out.items()}


FRAMES = Recipe(name="frames", shards=240, draw=draw_frames)
FACES = Recipe(name="faces", shards=220, draw=partial(draw_faces, first=0))
JUDGE_FACES = Recipe(name="judge-faces", shards=110, draw=partial(draw_faces, first=100_000))
CLIPS = Recipe(name="clips", shards=90, draw=draw_clips)
