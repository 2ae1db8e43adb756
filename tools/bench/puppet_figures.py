"""Measure the puppet model's detectors on people and movements that no training saw.

``python -m tools.bench.puppet_figures [--model FOLDER] [--count N] [--json]`` reads fixed lists of the test split
through the tool's own wrappers (preprocessing and decoding of rtmlib and insightface). It prints each measured figure
with its requirement. Thresholds of verification are chosen on the validation split. Exits with code 8 if a figure
misses its requirement.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stableanimator_cli import catalogue
from stableanimator_cli.detect import onnx
from stableanimator_cli.detect.face import FaceReader, align
from stableanimator_cli.detect.pose import PersonDetector, PoseEstimator
from stableanimator_cli.puppets.render import PuppetFrame
from stableanimator_cli.puppets.scene import sample_scene
from tools.command import exit_code_of, positive
from tools.figure_networks.data import LABELS, head_size, person_box, present

BODY = slice(0, 18)
WRISTS = (4, 7)
SIZES = ((128, 128), (256, 256), (192, 256), (512, 512))
_FIRST = 50_000  # scenes from here on; no contact sheet and no trial used them
_SAME = 0.5  # intersection over union from which two boxes match
_OF_HEAD = 0.8  # PCKh's unit, 0.6 of the diagonal of the head's box, in head heights
_CLIPS, _TIMES = 2, 2


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured number with its requirement ``mark``: a minimum or a maximum. ``count`` is the sample size."""

    name: str
    value: float
    mark: float | None
    minimum: bool
    count: int

    @property
    def holds(self) -> bool:
        return self.mark is None or (self.value >= self.mark if self.minimum else self.value <= self.mark)

    def row(self) -> str:
        required = "" if self.mark is None else f"{'>=' if self.minimum else '<='} {self.mark:g}"
        return f"{self.name:<48} {self.value:8.4f}  {required:<9} {'' if self.holds else 'MISSED':<7} n={self.count}"


def at_least(name: str, value: float, mark: float | None, count: int) -> Figure:
    return Figure(name, float(value), mark, True, count)


def at_most(name: str, value: float, mark: float, count: int) -> Figure:
    return Figure(name, float(value), mark, False, count)


def frames(
    count: int, people: int, split: str = "test", offset: int = 0
) -> Iterator[tuple[PuppetFrame, tuple[int, int]]]:
    """A fixed list of frames of a split, each of another scene, with varying framing and size."""
    for n in range(count):
        size = SIZES[n % len(SIZES)]
        index = _FIRST + offset + n
        scene = sample_scene(split, index, people=people, framing="mixed", size=size, clip=3)
        yield scene.frame(7.5 * n), size


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes float[n,4] and float[m,4] -> [n,m]."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:4], b[None, :, 2:4])
    shared = (high - low).clip(0).prod(axis=2)
    area = [(boxes[:, 2:4] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    return shared / np.maximum(area[0][:, None] + area[1][None] - shared, 1e-9)


def match_boxes(detected: np.ndarray, target: np.ndarray) -> list[tuple[int, int]]:
    """Index pairs (detected, target) of boxes that match, each at most once, best first."""
    pairs: list[tuple[int, int]] = []
    if not len(detected) or not len(target):
        return pairs
    shared = overlap(detected, target)
    while shared.max() >= _SAME:
        i, j = np.unravel_index(shared.argmax(), shared.shape)
        pairs.append((int(i), int(j)))
        shared[i], shared[:, j] = -1, -1
    return pairs


def pose_figures(people: PersonDetector, points: PoseEstimator, count: int) -> list[Figure]:
    """One person: detection, and PCKh of the points from detected boxes and from true ones."""
    errors: dict[str, list[np.ndarray]] = {"chain": [], "true boxes": []}
    visibility, found, total, false = [], 0, 0, 0
    for frame, size in frames(count, 1):
        truth = frame.keypoints[0]
        boxes = people.detect([frame.image])[0]
        if not present(truth):
            false += len(boxes)
            continue
        box = person_box(truth, size)[None]
        total += 1
        pairs = match_boxes(boxes, box)
        found += bool(pairs)
        false += len(boxes) - len(pairs)
        seen = truth[BODY, 2] > 0
        for name, use in (("chain", boxes[[i for i, _ in pairs]]), ("true boxes", box)):
            if len(use):
                estimate = points.estimate([frame.image], [use])[0][0]
                error = np.linalg.norm(estimate[BODY, :2] - truth[BODY, :2], axis=1) / (_OF_HEAD * head_size(truth))
            else:
                error = np.full(18, np.inf)
            if name == "true boxes":
                visibility.append((estimate[BODY, 2] > 0.3) == seen)
            errors[name].append(np.where(seen, error, np.nan))
    rows = [
        at_least("person found", found / max(total, 1), None, total),
        at_most("false people per frame", false / count, 0.02, count),
    ]
    for name, values in errors.items():
        table = np.stack(values)
        known = ~np.isnan(table)
        wrists = known[:, WRISTS]
        hits = {limit: (table <= limit) & known for limit in (0.5, 0.2)}
        marks = (0.98, 0.9, 0.75) if name == "chain" else (None, None, None)
        rows += [
            at_least(f"body PCKh@0.5, {name}", hits[0.5].sum() / known.sum(), marks[0], int(known.sum())),
            at_least(f"body PCKh@0.2, {name}", hits[0.2].sum() / known.sum(), marks[1], int(known.sum())),
            at_least(
                f"wrists PCKh@0.2, {name}", hits[0.2][:, WRISTS].sum() / wrists.sum(), marks[2], int(wrists.sum())
            ),
        ]
    rows.append(at_least("visibility of body points, accuracy", np.concatenate(visibility).mean(), None, 18 * total))
    return rows


def pair_figures(people: PersonDetector, points: PoseEstimator, count: int) -> list[Figure]:
    """Two people: both found once, with the points of each nearer to their own truth than to the other's."""
    separated, total = 0, 0
    for frame, size in frames(count, 2, offset=10_000):
        if not all(present(truth) for truth in frame.keypoints):
            continue
        total += 1
        boxes = people.detect([frame.image])[0]
        pairs = match_boxes(boxes, np.stack([person_box(truth, size) for truth in frame.keypoints]))
        if len(pairs) != 2:
            continue
        estimates = points.estimate([frame.image], [boxes[[i for i, _ in pairs]]])[0]
        separated += all(
            _distance(estimate, frame.keypoints[j]) < _distance(estimate, frame.keypoints[1 - j])
            for estimate, (_, j) in zip(estimates, pairs, strict=True)
        )
    return [at_least("two people separated", separated / max(total, 1), 0.95, total)]


def _distance(points: np.ndarray, truth: np.ndarray) -> float:
    seen = truth[BODY, 2] > 0
    return float(np.linalg.norm(points[BODY, :2] - truth[BODY, :2], axis=1)[seen].mean())


def face_figures(faces: FaceReader, count: int) -> list[Figure]:
    """Visible faces found, false detections, and landmark errors."""
    hits = total = false = detections = 0
    errors = []
    for people in (1, 2, 3):
        for frame, _ in frames(max(count // 3, 1), people, offset=20_000 * people):
            visible = ~np.isnan(frame.face_boxes).any(axis=1)
            detected = faces.boxes(frame.image)
            boxes = np.array([face.box for face in detected]).reshape(-1, 4)
            pairs = match_boxes(boxes, frame.face_boxes[visible])
            total, hits = total + int(visible.sum()), hits + len(pairs)
            detections, false = detections + len(detected), false + len(detected) - len(pairs)
            for i, j in pairs:
                box = frame.face_boxes[visible][j]
                error = np.linalg.norm(detected[i].landmarks - frame.landmarks[visible][j], axis=1).mean()
                errors.append(error / max(box[2:] - box[:2]))
    return [
        at_least("visible faces found", hits / total, 0.98, total),
        at_most("false faces among detections", false / max(detections, 1), 0.02, detections),
        at_most("landmark error, in face sizes, mean", float(np.mean(errors)), 0.1, len(errors)),
    ]


def embeddings(split: str, people: int, first: int, read: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors [n,512] of faces of unseen people, the number of each person [n], and of the clip [n].

    ``read`` computes the vector of a frame; frames for which it gives None are left out.
    """
    vectors, persons, clips = [], [], []
    for index in range(first, first + people):
        for clip in range(_CLIPS):
            size = SIZES[(index + clip) % len(SIZES)]
            scene = sample_scene(split, index, size=size, clip=20 + clip)
            selected = 0
            for t in range(0, 200, 11):
                frame = scene.frame(float(t))
                if selected == _TIMES or np.isnan(frame.landmarks).any():
                    continue
                selected += 1
                vector = read(frame)  # type: ignore[operator]
                if vector is not None:
                    vectors.append(vector / np.linalg.norm(vector))
                    persons.append(index)
                    clips.append(clip)
    return np.stack(vectors), np.array(persons), np.array(clips)


def accuracy(sample: tuple[np.ndarray, np.ndarray, np.ndarray], threshold: float | None) -> tuple[float, float, int]:
    """Balanced accuracy of "the same person" over pairs: (accuracy, threshold, number of same pairs).

    Pairs of one person are from different clips. ``threshold`` None chooses the best one.
    """
    vectors, persons, clips = sample
    cosine = vectors @ vectors.T
    upper = np.triu(np.ones(cosine.shape, bool), 1)
    same_person = persons[:, None] == persons[None]
    same = cosine[upper & same_person & (clips[:, None] != clips[None])]
    other = cosine[upper & ~same_person]
    limits = np.linspace(-0.2, 0.95, 231) if threshold is None else np.array([threshold])
    scores = [((same > limit).mean() + (other <= limit).mean()) / 2 for limit in limits]
    best = int(np.argmax(scores))
    return float(scores[best]), float(limits[best]), len(same)


def recogniser_figures(face_folder: Path, judge: Path, faces: FaceReader, people: int) -> list[Figure]:
    """Verification of unseen people: from true landmarks, and from detected ones."""
    rows = []
    for name, path in (("recogniser", face_folder / "arcface_puppet.onnx"), ("judge", judge)):
        opened = onnx.session(path, "cpu")

        def read(frame: PuppetFrame, opened: object = opened) -> np.ndarray | None:
            return embed(opened, frame.image, frame.landmarks[0])

        _, threshold, _ = accuracy(embeddings("val", people // 2, _FIRST, read), None)
        value, _, count = accuracy(embeddings("test", people, _FIRST, read), threshold)
        rows.append(at_least(f"verification, {name}", value, 0.97, count))
        if name == "recogniser":

            def detect(frame: PuppetFrame) -> np.ndarray | None:
                detected = faces.faces(frame.image)
                return detected[0].embedding if detected else None

            value, _, count = accuracy(embeddings("test", people, _FIRST, detect), threshold)
            rows.append(at_least("verification, detected landmarks", value, None, count))
    return rows


def embed(opened: object, image: np.ndarray, landmarks: np.ndarray) -> np.ndarray | None:
    """The embedding of a face by an opened network with ArcFace's contract; None if it cannot be aligned."""
    face = align(image, landmarks)
    if face is None:
        return None
    pixels = (face.astype(np.float32) - 127.5) / 127.5
    return onnx.run(opened, np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))[0][0]  # type: ignore[arg-type]


def video_figures(path: Path, count: int) -> list[Figure]:
    """Accuracy of the classifier of clips: behaviour, hair and top."""
    opened = onnx.session(path, "cpu")
    right = dict.fromkeys(LABELS, 0)
    behaviours = LABELS["behaviour"]
    for n in range(count):
        behaviour = behaviours[n % len(behaviours)]
        scene = sample_scene("test", _FIRST + n, size=(64, 64), behaviour=behaviour, clip=4)
        clip = np.stack([scene.frame(13.0 * n + t).image for t in range(8)])
        pixels = (clip.astype(np.float32) - 127.5) / 127.5
        outputs = onnx.run(opened, np.ascontiguousarray(pixels.transpose(3, 0, 1, 2)[None]))
        person = scene.people[0]
        truth = {"behaviour": behaviour, "hair": person.identity.hair, "top": person.clothes.top}
        for name, logits in zip(LABELS, outputs[4:], strict=True):
            right[name] += LABELS[name][int(logits[0].argmax())] == truth[name]
    return [at_least(f"clips: {name}, accuracy", right[name] / count, None, count) for name in LABELS]


def figures(folder: str, count: int) -> Iterator[Figure]:
    model = catalogue.open_model(folder)
    people = PersonDetector(model.files["person_detector"], "cpu")
    points = PoseEstimator(model.files["pose_detector"], "cpu")
    faces = FaceReader(model.files["face"], model.face_channel_order, "cpu")
    yield from pose_figures(people, points, count)
    yield from pair_figures(people, points, count)
    yield from face_figures(faces, count)
    yield from recogniser_figures(model.files["face"], model.files["judge"], faces, max(count // 2, 10))
    yield from video_figures(model.files["video"], count)
    files = [model.files[role] for role in ("person_detector", "pose_detector", "judge", "video")]
    total = sum(file.stat().st_size for file in [*files, *model.files["face"].glob("*.onnx")])
    yield at_most("size of the six files, MB", total / 1e6, 10.0, 6)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.puppet_figures", description=__doc__)
    parser.add_argument("--model", default="puppet", help="catalogue name or folder")
    parser.add_argument("--count", type=positive, default=300, help="images of each list")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args(arguments)
    missed = False
    for figure in figures(options.model, options.count):
        missed |= not figure.holds
        fields = {name: getattr(figure, name) for name in ("name", "value", "mark", "holds", "count")}
        sys.stdout.write((json.dumps(fields) if options.json else figure.row()) + "\n")
        sys.stdout.flush()
    return 8 if missed else 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main, resumes=False))
