"""Speed of detection in batches and frame by frame, on a drawn clip or a video."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli import catalogue
from stableanimator_cli.bench.context import BenchRun
from stableanimator_cli.bench.results import Table
from stableanimator_cli.detect.capture import BATCH, Detectors, extract_motion
from stableanimator_cli.detect.roles import ROLES
from stableanimator_cli.media import open_clip, read_image, write_image
from stableanimator_cli.motion.masks import face_mask
from stableanimator_cli.motion.skeleton import draw_skeleton
from stableanimator_cli.puppets.scene import sample_scene
from stableanimator_cli.records import Clip


def open_or_draw_clip(video: Path | None, size: tuple[int, int], frames: int) -> Clip:
    """The first frames of a video, or a drawn figure that waves. They are decoded or drawn before measuring."""
    if video is not None:
        opened = open_clip(video)
        items = list(islice(opened.frames(), frames))
        base = replace(opened, count=len(items))
    else:
        scene = sample_scene("test", 0, framing="whole", size=size, frames=frames, behaviour="wave")
        items = [(Fraction(t, 8), np.ascontiguousarray(frame.image)) for t, frame in enumerate(scene.clip())]
        path = Path("drawn figure")
        base = Clip(path=path, size=size, fps=Fraction(8), count=frames, audio=False, frames=lambda: iter(()))
    return replace(base, frames=lambda: iter(items))


def time_detection(bench: BenchRun) -> Table:
    """Time detection of all people: in batches, overlapped as it runs, frame by frame, and through PNG files."""
    shape = bench.shape((256, 256), 32)
    clip = open_or_draw_clip(bench.config.video, shape.size, shape.frames)
    opened = Detectors.open(catalogue.open_model(bench.detector_model(), ROLES), str(bench.plan.device))
    frames = [frame for _, frame in clip.frames()]
    points: dict[str, list[np.ndarray]] = {}

    def detect(name: str, batch: int) -> None:
        points[name] = []
        for start in range(0, len(frames), batch):
            part = frames[start : start + batch]
            boxes = opened.people.detect(part)
            points[name] += opened.points.estimate(part, boxes)
            if opened.faces is not None:
                for frame in part:
                    opened.faces.faces(frame)

    def through_files() -> None:
        """Store frames, skeletons and masks as PNG files, as the reference implementation's scripts do."""
        points["one by one, PNG files"] = []
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for index, frame in enumerate(frames):
                write_image(folder / f"frame_{index}.png", frame)
            for index in range(len(frames)):
                frame = read_image(folder / f"frame_{index}.png")
                size = frame.shape[1], frame.shape[0]
                (people,) = opened.points.estimate([frame], opened.people.detect([frame]))
                points["one by one, PNG files"].append(people)
                write_image(folder / f"pose_{index}.png", draw_skeleton(people, size))
                if opened.faces is not None:
                    mask = face_mask([face.box for face in opened.faces.faces(frame)], size, missing="full")
                    write_image(folder / f"face_{index}.png", mask[..., None].repeat(3, 2))

    variants: dict[str, Callable[[], Any]] = {
        "one by one": lambda: detect("one by one", 1),
        f"batches of {BATCH}": lambda: detect(f"batches of {BATCH}", BATCH),
        "as it runs (overlapped, tracked)": lambda: extract_motion(clip, opened),
        "one by one, PNG files": through_files,
    }
    timed = bench.time(variants)
    rows = []
    for name in variants:
        seconds = timed.median(name)
        row: dict[str, Any] = {"way": name, "frames per second": len(frames) / seconds}
        row |= {"times faster than one by one": timed.ratio("one by one", name) if name != "one by one" else None}
        row |= {"points apart from one by one, pixels": _max_distance(points["one by one"], points.get(name))}
        rows.append(row)
    return Table(
        title=f"Detection by {opened.model.name}: {len(frames)} frames of {clip.size[0]}x{clip.size[1]}",
        rows=rows,
        note=f"{bench.rounds} round(s), interleaved; frames are decoded before. Networks: {opened.describe()}.",
    )


def _max_distance(expected: list[np.ndarray], actual: list[np.ndarray] | None) -> float | None:
    """Maximum distance of a coordinate; None if a variant has one person only, NaN if their numbers differ."""
    if actual is None:
        return None
    distance = 0.0
    for one, other in zip(expected, actual, strict=True):
        if one.shape != other.shape:
            return float("nan")
        if one.size:
            distance = max(distance, float(np.abs(one[..., :2] - other[..., :2]).max()))
    return distance
