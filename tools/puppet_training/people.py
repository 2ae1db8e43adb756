"""Score a model on held-out portraits of two people: each one's identity, and the swap test.

``python -m tools.puppet_training.people [MODEL] [--count N] [--steps N] [--out FILE.jsonl]`` animates the clips of
``heldout_people.json`` with each person's face vector and region, again with the two vectors exchanged, the same with
the reference's faces hidden (``sa animate --hide-reference-face``), and again with another seed. The judge compares
each drawn face with the references of both people. Exchanging the vectors must exchange the faces. Hair is the
reference picture's in any case, and the judge sees it: frames that are drawn with exchanged faces show what an exchange
can reach. Outside the faces it may change no more than another seed does. Exits with code 8 if a requirement fails. The
sheet beside ``--out`` shows per clip the reference, a true frame, the output, the output with exchanged vectors and
hidden faces, and the drawn exchange.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stableanimator_cli import catalogue
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.engine.conditioning import PeopleFaces
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import Timings, render
from stableanimator_cli.errors import NoFace
from stableanimator_cli.motion.geometry import resize_transform
from stableanimator_cli.motion.person_regions import person_regions
from stableanimator_cli.puppets.render import PuppetFrame
from stableanimator_cli.puppets.scene import Scene
from tools.bench.puppet_figures import Figure, at_least, at_most, match_boxes
from tools.bench.puppet_model import HeldOutClip, OutputDetectors, request_of
from tools.command import exit_code_of, positive
from tools.puppet_training.clips import exchanged_faces
from tools.puppet_training.heldout import LIST_OF_PEOPLE, open_scene, read_list
from tools.puppet_training.measure import face_scores
from tools.puppet_training.score import defaults_of, write_results

_MARGIN = 0.3  # of a face's sides, around it: what a face's change may touch
_COLUMNS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PairClip:
    """A clip of two people. ``clip`` has the embedding of the first; ``vectors`` float32[2,512] the embeddings of both
    faces in the reference, ``judged`` float32[2,512] the judge's unit vectors of them, ``target`` the drawn frames, and
    ``exchanged`` the same with each other's faces."""

    clip: HeldOutClip
    vectors: np.ndarray
    judged: np.ndarray
    regions: np.ndarray
    target: list[PuppetFrame]
    exchanged: list[PuppetFrame]


def open_pair(scene: Scene, detectors: OutputDetectors) -> PairClip:
    """Draw a clip and compute the vectors of both faces, at their true landmarks in a reference of twice the size."""
    size = scene.size
    reference = scene.reference((2 * size[0], 2 * size[1]))
    known = [detectors.faces.recognise(reference.image, points) for points in reference.landmarks]
    compared = [detectors.judge_at(reference.image, points) for points in reference.landmarks]
    vectors = np.stack([vector for vector in known if vector is not None])
    judged = np.stack([vector for vector in compared if vector is not None])
    if not len(vectors) == len(judged) == len(reference.landmarks):
        raise NoFace(
            f"held-out scene {scene.seed}: a face of its reference cannot be aligned", hint="make the list again"
        )
    motion = scene.motion()
    return PairClip(
        clip=HeldOutClip(
            scene=scene,
            large=reference.image,
            fitted=resize_transform((2 * size[0], 2 * size[1]), size, "crop").apply_image(reference.image, "lanczos"),
            embedding=vectors[0],
            judged=judged[0],
        ),
        vectors=vectors,
        judged=judged,
        regions=person_regions(motion.keypoints, motion.present, motion.face_boxes, size),
        target=list(scene.clip()),
        exchanged=list(exchanged_faces(scene).clip()),
    )


def animate(
    engine: Engine, pair: PairClip, vectors: np.ndarray, defaults: dict[str, Any], seed: int, *, hidden: bool = False
) -> list[np.ndarray]:
    """Animate a clip with a face vector per person. ``hidden``: the reference's own faces are noise."""
    boxes = pair.clip.scene.reference().face_boxes.astype(np.float64) if hidden else None
    request = request_of(pair.clip, pair.vectors[0], defaults, seed)
    request = replace(request, face=PeopleFaces(vectors=vectors, regions=pair.regions), hidden_faces=boxes)
    return [frame.copy() for frame in render(engine, request, Timings())]


def similarities(output: Sequence[np.ndarray], pair: PairClip, detectors: OutputDetectors) -> np.ndarray:
    """Mean similarity of the face at each person's place to each person's reference, float[place,person].

    NaN if no frame shows a face at that place.
    """
    found: list[list[np.ndarray]] = [[], []]
    for image, frame in zip(output, pair.target, strict=True):
        faces = detectors.faces.boxes(image)
        boxes = np.array([face.box for face in faces]).reshape(-1, 4)
        visible = np.flatnonzero(np.isfinite(frame.face_boxes).all(axis=1))
        for detected, place in match_boxes(boxes, frame.face_boxes[visible]):
            vector = detectors.judge_at(image, faces[detected].landmarks)
            if vector is not None:
                found[visible[place]].append(vector)
    means = [np.mean(vectors, axis=0) if vectors else np.full(pair.judged.shape[1], np.nan) for vectors in found]
    return np.stack(means) @ pair.judged.T


def near_faces(frame: PuppetFrame, size: tuple[int, int]) -> np.ndarray:
    """Pixels in or around a face of the true frame, bool[h,w]."""
    mask = np.zeros((size[1], size[0]), bool)
    for x0, y0, x1, y1 in frame.face_boxes[np.isfinite(frame.face_boxes).all(axis=1)]:
        dx, dy = _MARGIN * (x1 - x0), _MARGIN * (y1 - y0)
        mask[max(0, int(y0 - dy)) : int(y1 + dy) + 1, max(0, int(x0 - dx)) : int(x1 + dx) + 1] = True
    return mask


def differences(one: Sequence[np.ndarray], other: Sequence[np.ndarray], pair: PairClip) -> tuple[float, float]:
    """Mean absolute difference of two outputs near faces and elsewhere, in levels of 255."""
    inside, outside = [], []
    for a, b, frame in zip(one, other, pair.target, strict=True):
        difference = np.abs(a.astype(np.int16) - b).mean(axis=2)
        near = near_faces(frame, (a.shape[1], a.shape[0]))
        inside.append(difference[near])
        outside.append(difference[~near])
    return float(np.concatenate(inside).mean()), float(np.concatenate(outside).mean())


def score_pair(outputs: dict[str, list[np.ndarray]], pair: PairClip, detectors: OutputDetectors) -> dict[str, Any]:
    """Figures of one clip from its outputs ``own``, ``swapped``, ``hidden`` (swapped, too) and ``seed``."""
    own, swapped, hidden = (similarities(outputs[name], pair, detectors) for name in ("own", "swapped", "hidden"))
    truth = similarities([frame.image for frame in pair.target], pair, detectors)
    drawn = similarities([frame.image for frame in pair.exchanged], pair, detectors)
    faces, exchanged = _face_scores(outputs["own"], pair.target), _face_scores(outputs["hidden"], pair.exchanged)
    inside, outside = differences(outputs["own"], outputs["swapped"], pair)
    inside_hidden, outside_hidden = differences(outputs["own"], outputs["hidden"], pair)
    inside_seed, outside_seed = differences(outputs["own"], outputs["seed"], pair)
    return {
        "own": _listed(np.diag(own)),
        "other": _listed(np.diag(own[:, ::-1])),
        "swapped_own": _listed(np.diag(swapped)),
        "swapped_other": _listed(np.diag(swapped[:, ::-1])),
        "hidden_own": _listed(np.diag(hidden)),
        "hidden_other": _listed(np.diag(hidden[:, ::-1])),
        "truth": _listed(np.diag(truth)),
        "drawn_own": _listed(np.diag(drawn)),
        "drawn_other": _listed(np.diag(drawn[:, ::-1])),
        "face": faces[0],
        "sharpness": faces[1],
        "hidden_face": exchanged[0],
        "near_swap": inside,
        "near_hidden": inside_hidden,
        "near_seed": inside_seed,
        "elsewhere_swap": outside,
        "elsewhere_hidden": outside_hidden,
        "elsewhere_seed": outside_seed,
    }


def _face_scores(output: Sequence[np.ndarray], frames: Sequence[PuppetFrame]) -> tuple[float, float]:
    """Mean PSNR and sharpness of all faces beside drawn frames."""
    scores = [
        face_scores(image, frame.image, box)
        for image, frame in zip(output, frames, strict=True)
        for box in frame.face_boxes
        if np.isfinite(box).all()
    ]
    return float(np.mean([value for value, _ in scores])), float(np.mean([value for _, value in scores]))


def _listed(values: np.ndarray) -> list[float | None]:
    return [round(float(value), 4) if np.isfinite(value) else None for value in values]


def summarise(rows: list[dict[str, Any]]) -> Iterator[Figure]:
    """Figures over all people of all clips with their requirements; people without a drawn face are not right."""

    def column(key: str) -> np.ndarray:
        return np.array([np.nan if value is None else value for row in rows for value in row[key]], float)

    own, other = column("own"), column("other")
    swapped_own, swapped_other = column("swapped_own"), column("swapped_other")
    yield at_least("judge, own reference", float(np.nanmean(own)), 0.7, len(own))
    yield at_least("judge, the other's reference", float(np.nanmean(other)), None, len(other))
    yield at_least("judge, true frames to own reference", float(np.nanmean(column("truth"))), None, len(own))
    yield at_least("people nearer to their own reference", float((own > other).mean()), 1.0, len(own))
    yield at_least("exchanged: judge, own reference", float(np.nanmean(swapped_own)), None, len(own))
    yield at_least("exchanged: judge, the other's reference", float(np.nanmean(swapped_other)), None, len(own))
    yield at_least("exchanged: decrease to oneself", float(np.nanmean(own - swapped_own)), 0.1, len(own))
    yield at_least("exchanged: increase to the other", float(np.nanmean(swapped_other - other)), 0.1, len(own))
    nearer = swapped_other > swapped_own
    yield at_least("exchanged: people nearer to the other", float(nearer.mean()), 0.9, len(own))
    hidden_own, hidden_other = column("hidden_own"), column("hidden_other")
    yield at_least("hidden: judge, own reference", float(np.nanmean(hidden_own)), None, len(own))
    yield at_least("hidden: judge, the other's reference", float(np.nanmean(hidden_other)), None, len(own))
    nearer_hidden = hidden_other > hidden_own
    yield at_least("hidden: people nearer to the other", float(nearer_hidden.mean()), None, len(own))
    possible = column("drawn_other") > column("drawn_own")
    count = int(possible.sum())
    yield at_least("drawn: people nearer to the other", float(possible.mean()), None, len(own))
    yield at_least("exchanged: nearer, of those drawn nearer", float(nearer[possible].mean()), None, count)
    yield at_least("hidden: nearer, of those drawn nearer", float(nearer_hidden[possible].mean()), 0.9, count)
    for name in ("face", "sharpness"):
        yield at_least(f"{name} of both", _mean(rows, name), None, len(rows))
    # Similarity also rises where hair comes from the other vector; this does not.
    yield at_least("hidden: faces beside the drawn exchange", _mean(rows, "hidden_face"), None, len(rows))
    means = {
        key: _mean(rows, key)
        for key in ("near_swap", "near_hidden", "near_seed", "elsewhere_swap", "elsewhere_hidden", "elsewhere_seed")
    }
    yield at_least("change near faces, exchanged", means["near_swap"], None, len(rows))
    yield at_least("change near faces, hidden", means["near_hidden"], None, len(rows))
    yield at_least("change near faces, another seed", means["near_seed"], None, len(rows))
    noise = means["elsewhere_seed"]
    yield at_most("change elsewhere, exchanged (limit: another seed)", means["elsewhere_swap"], noise, len(rows))
    yield at_most("change elsewhere, hidden (limit: another seed)", means["elsewhere_hidden"], noise, len(rows))


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def sheet_of(cells: list[list[np.ndarray]], columns: int = _COLUMNS) -> np.ndarray:
    """Clips side by side at their full size, ``columns`` per row; every clip is a row of equally large images."""
    clips = [cv2.copyMakeBorder(np.concatenate(row, axis=1), 2, 2, 2, 2, cv2.BORDER_CONSTANT) for row in cells]
    clips += [np.zeros_like(clips[0])] * (-len(clips) % columns)
    return np.concatenate([np.concatenate(clips[n : n + columns], axis=1) for n in range(0, len(clips), columns)])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.puppet_training.people", description=__doc__)
    parser.add_argument("model", nargs="?", default="puppet", help="catalogue name or folder")
    parser.add_argument("--count", type=positive, default=16, help="clips, from the start of the list")
    parser.add_argument("--steps", type=int, help="instead of the card's")
    parser.add_argument("--guidance", type=float, help="instead of the card's")
    parser.add_argument("--guidance-interval", metavar="off|LO:HI", help="instead of the card's")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--out", type=Path, help="write rows as JSON lines, and a contact sheet beside them")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    model = catalogue.open_model(options.model)
    defaults = defaults_of(model, options)
    rows, cells = [], []
    with Engine.open(model, DevicePlan.of(DeviceConfig(device=options.device))) as engine:
        detectors = OutputDetectors(engine)
        for n, entry in enumerate(read_list(LIST_OF_PEOPLE)[: options.count]):
            pair = open_pair(open_scene(entry), detectors)
            outputs = {
                name: animate(engine, pair, vectors, defaults, seed, hidden=name == "hidden")
                for name, vectors, seed in (
                    ("own", pair.vectors, options.seed),
                    ("swapped", pair.vectors[::-1].copy(), options.seed),
                    ("hidden", pair.vectors[::-1].copy(), options.seed),
                    ("seed", pair.vectors, options.seed + 1),
                )
            }
            row = {"clip": n, **score_pair(outputs, pair, detectors)}
            rows.append(row)
            middle = len(pair.target) // 2
            cells.append([pair.clip.fitted, pair.target[middle].image, outputs["own"][middle]])
            cells[-1] += [outputs["hidden"][middle], pair.exchanged[middle].image]
            print(
                f"clip {n:2d}  own {row['own']}, other {row['other']}; exchanged: own {row['swapped_own']}, other "
                f"{row['swapped_other']}; hidden: own {row['hidden_own']}, other {row['hidden_other']}; elsewhere "
                f"{row['elsewhere_swap']:.2f}, seed {row['elsewhere_seed']:.2f}",
                flush=True,
            )
    return write_results(rows, list(summarise(rows)), sheet_of(cells), options.out)


if __name__ == "__main__":
    sys.exit(exit_code_of(main, resumes=False))
