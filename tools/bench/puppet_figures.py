"""The table of figures of the puppet entry's detectors, on people and movements that no training saw.

``python -m tools.bench.puppet_figures [--model FOLDER] [--count N] [--json]`` reads fixed lists of the
test split through the tool's own wrappers (rtmlib's and insightface's preparation and decoding) and prints what was
found beside what is asked for. Thresholds of verification are chosen on the validation split. Leaves with 8 where a
figure misses its mark.
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
from tools.figure_networks.data import LABELS, head_size, person_box, present

BODY = slice(0, 18)
WRISTS = (4, 7)
SIZES = ((128, 128), (256, 256), (192, 256), (512, 512))
_FIRST = 50_000  # scenes from here on: no contact sheet and no trial looked at them
_SAME = 0.5  # intersection over union from which two boxes are of one thing
_OF_HEAD = 0.8  # PCKh's unit, 0.6 of the diagonal of the head's box, in heights of a head
_CLIPS, _TIMES = 2, 2


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number: its name, value, what is asked for (``>=`` or ``<=``), and over how many things."""

    name: str
    value: float
    mark: float | None
    least: bool
    count: int

    @property
    def holds(self) -> bool:
        return self.mark is None or (self.value >= self.mark if self.least else self.value <= self.mark)

    def row(self) -> str:
        asked = "" if self.mark is None else f"{'>=' if self.least else '<='} {self.mark:g}"
        return f"{self.name:<48} {self.value:8.4f}  {asked:<9} {'' if self.holds else 'MISSED':<7} n={self.count}"


def at_least(name: str, value: float, mark: float | None, count: int) -> Figure:
    return Figure(name, float(value), mark, True, count)


def at_most(name: str, value: float, mark: float, count: int) -> Figure:
    return Figure(name, float(value), mark, False, count)


def frames(
    count: int, people: int, split: str = "test", offset: int = 0
) -> Iterator[tuple[PuppetFrame, tuple[int, int]]]:
    """A fixed list of frames of a split, of changing framing and size, each of another scene."""
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


def matched(found: np.ndarray, true: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (found, true) of boxes that are of one thing, each at most once, best first."""
    pairs: list[tuple[int, int]] = []
    if not len(found) or not len(true):
        return pairs
    shared = overlap(found, true)
    while shared.max() >= _SAME:
        i, j = np.unravel_index(shared.argmax(), shared.shape)
        pairs.append((int(i), int(j)))
        shared[i], shared[:, j] = -1, -1
    return pairs


def pose_figures(people: PersonDetector, points: PoseEstimator, count: int) -> list[Figure]:
    """One person: found, and how near the points are in heads (PCKh), by the whole chain and from true boxes."""
    errors: dict[str, list[np.ndarray]] = {"chain": [], "true boxes": []}
    seen_right, found, asked, false = [], 0, 0, 0
    for frame, size in frames(count, 1):
        truth = frame.keypoints[0]
        boxes = people.detect([frame.image])[0]
        if not present(truth):
            false += len(boxes)
            continue
        box = person_box(truth, size)[None]
        asked += 1
        pairs = matched(boxes, box)
        found += bool(pairs)
        false += len(boxes) - len(pairs)
        seen = truth[BODY, 2] > 0
        for name, use in (("chain", boxes[[i for i, _ in pairs]]), ("true boxes", box)):
            if len(use):
                guess = points.estimate([frame.image], [use])[0][0]
                error = np.linalg.norm(guess[BODY, :2] - truth[BODY, :2], axis=1) / (_OF_HEAD * head_size(truth))
            else:
                error = np.full(18, np.inf)
            if name == "true boxes":
                seen_right.append((guess[BODY, 2] > 0.3) == seen)
            errors[name].append(np.where(seen, error, np.nan))
    rows = [
        at_least("person found", found / asked, None, asked),
        at_most("false people a frame", false / count, 0.02, count),
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
    rows.append(at_least("body point seen or not, right", np.concatenate(seen_right).mean(), None, 18 * asked))
    return rows


def pair_figures(people: PersonDetector, points: PoseEstimator, count: int) -> list[Figure]:
    """Two people: both found, each once, and each one's points nearer to their own truth than to the other's."""
    apart, asked = 0, 0
    for frame, size in frames(count, 2, offset=10_000):
        if not all(present(truth) for truth in frame.keypoints):
            continue
        asked += 1
        boxes = people.detect([frame.image])[0]
        pairs = matched(boxes, np.stack([person_box(truth, size) for truth in frame.keypoints]))
        if len(pairs) != 2:
            continue
        guesses = points.estimate([frame.image], [boxes[[i for i, _ in pairs]]])[0]
        apart += all(
            _distance(guess, frame.keypoints[j]) < _distance(guess, frame.keypoints[1 - j])
            for guess, (_, j) in zip(guesses, pairs, strict=True)
        )
    return [at_least("two people kept apart", apart / asked, 0.95, asked)]


def _distance(guess: np.ndarray, truth: np.ndarray) -> float:
    seen = truth[BODY, 2] > 0
    return float(np.linalg.norm(guess[BODY, :2] - truth[BODY, :2], axis=1)[seen].mean())


def face_figures(faces: FaceReader, count: int) -> list[Figure]:
    """Faces found where one can be seen, answers where none is, and how near the landmarks are."""
    hits = asked = false = answers = 0
    marks = []
    for people in (1, 2, 3):
        for frame, _ in frames(count // 3, people, offset=20_000 * people):
            true = ~np.isnan(frame.face_boxes).any(axis=1)
            found = faces.boxes(frame.image)
            boxes = np.array([face.box for face in found]).reshape(-1, 4)
            pairs = matched(boxes, frame.face_boxes[true])
            asked, hits = asked + int(true.sum()), hits + len(pairs)
            answers, false = answers + len(found), false + len(found) - len(pairs)
            for i, j in pairs:
                box = frame.face_boxes[true][j]
                error = np.linalg.norm(found[i].landmarks - frame.landmarks[true][j], axis=1).mean()
                marks.append(error / max(box[2:] - box[:2]))
    return [
        at_least("face found where visible", hits / asked, 0.98, asked),
        at_most("false faces among answers", false / max(answers, 1), 0.02, answers),
        at_most("landmarks off, shares of a face, mean", float(np.mean(marks)), 0.1, len(marks)),
    ]


def embeddings(split: str, people: int, first: int, read: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors [n,512] of faces of unseen people with who they are [n] and in which clip [n]; frames in which
    ``read`` finds no vector are left out."""
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
    """Balanced accuracy of "the same person" over pairs from different clips, at ``threshold`` or, where that is None,
    at the best one: (accuracy, threshold, same pairs). Pairs of different people are all there are."""
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
    """Verification of people in no training set: from true landmarks, and by the whole chain."""
    rows = []
    for name, path in (("recogniser", face_folder / "arcface_puppet.onnx"), ("judge", judge)):
        opened = onnx.session(path, "cpu")

        def read(frame: PuppetFrame, opened: object = opened) -> np.ndarray | None:
            return embed(opened, frame.image, frame.landmarks[0])

        _, threshold, _ = accuracy(embeddings("val", people // 2, _FIRST, read), None)
        value, _, count = accuracy(embeddings("test", people, _FIRST, read), threshold)
        rows.append(at_least(f"verification, {name}", value, 0.97, count))
        if name == "recogniser":

            def whole(frame: PuppetFrame) -> np.ndarray | None:
                found = faces.faces(frame.image)
                return found[0].embedding if found else None

            value, _, count = accuracy(embeddings("test", people, _FIRST, whole), threshold)
            rows.append(at_least("verification, found landmarks", value, None, count))
    return rows


def embed(opened: object, image: np.ndarray, landmarks: np.ndarray) -> np.ndarray | None:
    """The vector of a face in a picture by an opened network of ArcFace's contract."""
    face = align(image, landmarks)
    if face is None:
        return None
    pixels = (face.astype(np.float32) - 127.5) / 127.5
    return onnx.run(opened, np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))[0][0]  # type: ignore[arg-type]


def video_figures(path: Path, count: int) -> list[Figure]:
    """How often the classifier of clips names what is done and worn."""
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
    return [at_least(f"clips: {name} named", right[name] / count, None, count) for name in LABELS]


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
    parser.add_argument("--count", type=int, default=300, help="pictures of each list")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)
    missed = False
    for figure in figures(options.model, options.count):
        missed |= not figure.holds
        fields = {name: getattr(figure, name) for name in ("name", "value", "mark", "holds", "count")}
        sys.stdout.write((json.dumps(fields) if options.json else figure.row()) + "\n")
        sys.stdout.flush()
    return 8 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
