"""How near the detected motion of puppets is to the truth: ``python -m tests.preprocess.truth [MODEL]`` prints it.

Scenes of the test split: nobody in them and nothing they do was trained on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from stableanimator_cli.catalogue import open_model
from stableanimator_cli.detect.capture import Capture, CaptureOptions, Detectors, extract_motion
from stableanimator_cli.detect.roles import ROLES
from stableanimator_cli.motion.keypoints import BODY, bounding_box, visible
from stableanimator_cli.puppets.scene import Scene, sample_scene
from stableanimator_cli.records import Clip, Motion

SIZE = (256, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearness:
    """``error``: mean distance of seen body points from the truth, in shares of the body's size; ``within``: share of
    them within a tenth; ``present`` share of frames of the truth in which the person is; ``face``: share of visible
    faces met with an overlap of half or more; ``false``: share of faceless frames in which one was claimed (None where
    there is no such frame); ``switches``: how often a person goes on as another."""

    error: float
    within: float
    present: float
    face: float
    false: float | None
    switches: int


def clip_of(scene: Scene) -> Clip:
    def frames() -> Iterator[tuple[Fraction | None, np.ndarray]]:
        for index, frame in enumerate(scene.clip()):
            yield index / scene.fps, np.ascontiguousarray(frame.image)

    return Clip(path=Path("scene.mp4"), size=scene.size, fps=scene.fps, count=scene.frames, audio=False, frames=frames)


def look(scene: Scene, detectors: Detectors) -> Capture:
    return extract_motion(clip_of(scene), detectors, CaptureOptions(person="all"))


def compare(found: Motion, truth: Motion) -> Nearness:
    """Each frame's people are paired with the nearest of the truth; a pair counts by its body points."""
    errors, inside, present, switches = [], [], [], 0
    met, claimed = [], []
    last: dict[int, int] = {}
    for t in range(len(truth)):
        for p in np.flatnonzero(truth.present[t]):
            body = truth.keypoints[t, p, BODY].astype(np.float64)
            seen = visible(body) & ((body[:, :2] >= 0) & (body[:, :2] < truth.size)).all(axis=-1)
            if seen.sum() < 3:
                continue
            box = bounding_box(body)
            size = float(np.sqrt((box[2] - box[0]) * (box[3] - box[1])))
            others = np.flatnonzero(found.present[t])
            away = [
                float(np.linalg.norm(found.keypoints[t, q, BODY][seen, :2] - body[seen, :2], axis=-1).mean()) / size
                for q in others
            ]
            near = bool(away) and min(away) < 0.5
            present.append(near)
            if not near:
                continue
            q = int(others[int(np.argmin(away))])
            switches += last.get(int(p), q) != q
            last[int(p)] = q
            each = np.linalg.norm(found.keypoints[t, q, BODY][seen, :2] - body[seen, :2], axis=-1) / size
            errors.append(float(each.mean()))
            inside.append(float((each < 0.1).mean()))
            true, told = truth.face_boxes[t, p], found.face_boxes[t, q]
            if np.isfinite(true).all():
                met.append(bool(np.isfinite(told).all()) and _overlap(true, told) >= 0.5)
            else:
                claimed.append(bool(np.isfinite(told).all()))
    return Nearness(
        error=_mean(errors), within=_mean(inside), present=_mean(present), face=_mean(met),
        false=_mean(claimed) if claimed else None, switches=switches,
    )  # fmt: skip


def scenes() -> dict[str, Scene]:
    """What preprocessing must get through."""
    usual = {"size": SIZE, "frames": 48, "fps": Fraction(12)}
    return {
        "one, half": sample_scene("test", 11, framing="half", **usual),
        "one, whole": sample_scene("test", 12, framing="whole", **usual),
        "two people": sample_scene("test", 13, people=2, framing="half", **usual),
        "turning away": sample_scene("test", 14, framing="half", behaviour="turn", **usual),
        "leaving and coming back": sample_scene("test", 15, framing="half", behaviour="visit", **usual),
    }


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    sides = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(min=0)
    shared = float(sides.prod())
    return shared / float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared)


def _mean(values: list) -> float:
    return float(np.mean(values)) if values else float("nan")


def main(words: list[str]) -> None:
    detectors = Detectors.open(open_model(words[0] if words else "puppet", ROLES), "cpu")
    print(
        "| scene | body error | within 0.1 | person found | face found | false face | switches |\n" + "|---" * 7 + "|"
    )
    for name, scene in scenes().items():
        one = compare(look(scene, detectors).motion, scene.motion())
        false = "-" if one.false is None else f"{one.false:.1%}"
        print(
            f"| {name} | {one.error:.3f} | {one.within:.1%} | {one.present:.1%} | {one.face:.1%} | {false} | "
            f"{one.switches} |"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
