"""``--study``: a web page, offline, on which people say which of two videos is better, without knowing whose they are.

As in the user study of StableAnimator (its section 4.4): the reference picture and the pose video first, then the two
videos in random order, then four questions. The page draws the order of cases and of sides for each visitor and writes
``answers-NAME.json``, which says what was asked and answered; ``tally.py`` counts them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stableanimator_cli.config_evaluate import EvaluateConfig
from stableanimator_cli.errors import BadInput
from stableanimator_cli.evaluate.pairs import Pair, alone, find_videos
from stableanimator_cli.evaluate.report import write_text
from stableanimator_cli.evaluate.scores import Table
from stableanimator_cli.evaluate.study_html import page
from stableanimator_cli.media import VideoWriter, open_clip, read_picture, write_picture
from stableanimator_cli.motion.geometry import fit
from stableanimator_cli.motion.interchange import load_motion
from stableanimator_cli.motion.openpose import load_openpose
from stableanimator_cli.motion.skeleton import draw_frame
from stableanimator_cli.talk import Talk

FORMAT = 1
PAGE, KEY = "study.html", "study.json"
QUESTIONS = {
    "motion": "Which one follows the pose sequence better?",
    "appearance": "Which one keeps the appearance of the reference picture better: clothes, hair, body?",
    "background": "Which one keeps the background of the reference picture better?",
    "identity": "In which one is the face more that of the person in the reference picture?",
}
_FPS = Fraction(30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A written study: the page, and how many comparisons each visitor is asked."""

    output: Path
    systems: tuple[str, ...]
    comparisons: int
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "output": str(self.output),
            "page": str(self.output / PAGE),
            "systems": list(self.systems),
            "comparisons": self.comparisons,
        }

    def summary(self) -> str:
        return str(self.output / PAGE)

    def shown(self) -> list[Table]:
        return []


def write_study(
    config: EvaluateConfig, with_sides: Callable[[Sequence[Pair], EvaluateConfig], list[Pair]], talk: Talk
) -> Study:
    """Write ``study.html`` and its ``media/`` into ``--output``. The first input is ours; each other is compared with
    it on every video. Videos bear names that tell nothing: a digest of the study's seed and their own.

    ``BadInput`` where a folder lacks a video of ours, or no reference picture is given.
    """
    assert config.output is not None
    if config.reference_picture is None:
        raise BadInput(
            "--study", "no --reference-picture", "the picture or folder of pictures that the videos were made of",
            hint="people are shown the reference picture and, with --poses, the pose video first",
        )  # fmt: skip
    out, sides = config.output, [find_videos(path) for path in config.inputs]
    systems = _names(config.inputs)
    for path, side in zip(config.inputs[1:], sides[1:], strict=True):
        alone(sides[0], config.inputs[0], side, path)
    cases = []
    pairs = with_sides([Pair(name=name, predicted=path) for name, path in sides[0].items()], config)
    with talk.progress(len(pairs), "study", "video") as bar:
        for pair in pairs:
            cases.append(_case(pair, systems, [side[pair.name] for side in sides], out, config.seed))
            bar.update()
    trials = [{"case": number, "against": place} for number in range(len(cases)) for place in range(1, len(systems))]
    study = hashlib.sha256(json.dumps([config.seed, cases, systems], sort_keys=True).encode()).hexdigest()[:12]
    write_text(
        out / KEY,
        json.dumps({"format": FORMAT, "study": study, "ours": systems[0], "systems": systems, "cases": cases}, indent=1)
        + "\n",
    )
    shown = {"study": study, "format": FORMAT, "cases": [_blind(case) for case in cases], "trials": trials}
    write_text(out / PAGE, page(shown, QUESTIONS))
    return Study(output=out, systems=tuple(systems), comparisons=len(trials))


def _case(pair: Pair, systems: Sequence[str], videos: Sequence[Path], out: Path, seed: int) -> dict[str, Any]:
    assert pair.reference is not None
    media = out / "media"

    def named(what: str) -> str:
        return hashlib.sha256(f"{seed} {what} {pair.name}".encode()).hexdigest()[:16]

    picture = media / f"{named('reference')}.jpg"
    shown = Image.fromarray(read_picture(pair.reference))
    shown.thumbnail((1024, 1024))
    write_picture(picture, np.asarray(shown))
    case: dict[str, Any] = {"name": pair.name, "reference": f"media/{picture.name}", "poses": None, "videos": []}
    if pair.poses is not None:
        target = media / f"{named('poses')}.mp4"
        case["poses"] = f"media/{_skeletons(pair.poses, videos[0], target).name}"
    for place, video in enumerate(videos):
        target = media / f"{named(systems[place])}.mp4"
        case["videos"].append(f"media/{_playable(video, target).name}")
    return case


def _blind(case: dict[str, Any]) -> dict[str, Any]:
    """What the page may know: no names of systems stand in it, only places."""
    return {key: case[key] for key in ("reference", "poses", "videos")}


def _playable(video: Path, target: Path) -> Path:
    """A copy that a browser plays and whose name, metadata and container tell nothing."""
    clip = open_clip(video)
    if target.is_file() and target.stat().st_mtime > video.stat().st_mtime:
        return target
    width, height = clip.size
    size = (width - width % 2, height - height % 2)
    with VideoWriter(target, size, clip.fps or _FPS, crf=14) as writer:
        for _, frame in clip.frames():
            writer.write(frame[: size[1], : size[0]])
    return target


def _skeletons(poses: Path, like: Path, target: Path) -> Path:
    """The pose video in the size and rate of ours."""
    clip = open_clip(like)
    width, height = clip.size
    size = (width - width % 2, height - height % 2)
    motion = load_motion(poses) if poses.suffix.lower() == ".npz" else load_openpose(poses).motion
    motion = fit(motion.size, size, "crop").transform_motion(motion)
    with VideoWriter(target, size, clip.fps or _FPS, crf=14) as writer:
        for index, _ in enumerate(clip.frames()):
            if index == len(motion):
                break
            writer.write(draw_frame(motion, index))
    return target


def _names(inputs: Sequence[Path]) -> list[str]:
    names = [path.resolve().name for path in inputs]
    if len(set(names)) < len(names):
        raise BadInput(inputs[0], f"systems of one name ({', '.join(names)})", "a folder name a system")
    return names
