"""``--study``: an offline web page on which people choose the better of two videos without knowing their systems.

As in the user study of StableAnimator (section 4.4), the reference image and the pose video come first, then the two
videos in random order, then four questions. Each person gets a balanced block of the comparisons (``study_blocks``), in
random order and with ours on either side equally often. Several people can use one browser, pause and continue. The
page saves answers as ``answers-NAME.json``, which ``--tally`` counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stableanimator_cli import html_pages
from stableanimator_cli.config.evaluate import EvaluateConfig
from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.evaluate.driving_points import Unmatched, indices_shown, read_poses
from stableanimator_cli.evaluate.pairs import Pair, check_names, find_videos
from stableanimator_cli.evaluate.report import TOOL, write_text
from stableanimator_cli.evaluate.run_record import read_record, resize_mode
from stableanimator_cli.evaluate.scores import Table
from stableanimator_cli.evaluate.study_blocks import balanced_blocks
from stableanimator_cli.files import atomic_write, check_replaceable, json_text, sha256_of, translate_os_errors
from stableanimator_cli.media import VideoWriter, open_clip, read_image, write_image
from stableanimator_cli.motion.geometry import Mode, resize_transform
from stableanimator_cli.motion.skeleton import draw_frame
from stableanimator_cli.progress import Reporter
from stableanimator_cli.readers import read_json
from stableanimator_cli.records import Clip

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
    """A written study: the page, all its comparisons, and how many each person makes, in one of ``blocks``."""

    output: Path
    systems: tuple[str, ...]
    comparisons: int
    per_person: int
    blocks: int
    exit_code: int = 0
    failure: None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "output": str(self.output),
            "page": str(self.output / PAGE),
            "systems": list(self.systems),
            "comparisons": self.comparisons,
            "comparisons_per_person": self.per_person,
            "blocks": self.blocks,
        }

    def summary(self) -> str:
        return str(self.output / PAGE)

    def shown(self) -> list[Table]:
        return []


def write_study(
    config: EvaluateConfig, with_sides: Callable[[Sequence[Pair], EvaluateConfig], list[Pair]], reporter: Reporter
) -> Study:
    """Write ``study.html`` and its ``media/`` into ``--output``. Each other input is compared with the first, ours, on
    every video. Media are named by a digest of the study's seed and their names.

    Raises ``BadInput`` if a folder lacks a video of ours, or no reference image is given.
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
        check_names(sides[0], config.inputs[0], side, path)
    pairs = with_sides([Pair(name=name, predicted=path) for name, path in sides[0].items()], config)
    _check_comparisons(config, len(pairs) * (len(systems) - 1))
    pages = _known_pages(out)
    plans = [_plan(pair, [side[pair.name] for side in sides], reporter) for pair in pairs]
    cases = []
    with reporter.progress(len(pairs), "study", "video") as bar:
        for plan in plans:
            cases.append(_case(plan, systems, out, config.seed))
            bar.update()
    trials = [{"case": number, "against": system} for number in range(len(cases)) for system in range(1, len(systems))]
    shows = [plan.digests() for plan in plans]  # answers about other videos of the same names are of another study
    study = hashlib.sha256(json.dumps([config.seed, cases, systems, shows], sort_keys=True).encode()).hexdigest()[:12]
    blocks = balanced_blocks(len(cases), len(systems) - 1, config.comparisons or len(trials), config.seed)
    sizes = [open_clip(plan.videos[0]).size for plan in plans]
    shown = {
        "study": study,
        "format": FORMAT,
        "cases": [{**_blind(case), "size": size} for case, size in zip(cases, sizes, strict=True)],
        "trials": trials,
        "blocks": blocks,
        "size": len(blocks[0]),
    }
    page = "".join(html_pages.render("evaluate", "study", study=shown, questions=QUESTIONS)).encode()
    write_text(
        out / KEY,
        json_text(
            {
                "tool": TOOL,
                "format": FORMAT,
                "study": study,
                "ours": systems[0],
                "systems": systems,
                "cases": cases,
                "pages": [*pages, hashlib.sha256(page).hexdigest()],
            },
            indent=1,
        ),
    )
    with atomic_write(out / PAGE) as temp, translate_os_errors(out / PAGE):
        temp.write_bytes(page)
    return Study(
        output=out, systems=tuple(systems), comparisons=len(trials), per_person=len(blocks[0]), blocks=len(blocks)
    )


def _check_comparisons(config: EvaluateConfig, total: int) -> None:
    if config.comparisons is not None and config.comparisons > total:
        raise ConfigError(
            "--comparisons", config.comparisons, f"at most {total}, all of this study",
            hint="without it everybody makes all comparisons",
        )  # fmt: skip


def _known_pages(out: Path) -> list[str]:
    """SHA-256 of the page that will be replaced, if there is one. The page is blind and names no program: the key,
    which carries the mark, identifies it by its digest. Raises ``BadInput`` for another file of that name."""
    check_replaceable(out / KEY)
    path = out / PAGE
    if not os.path.lexists(path):
        return []
    key = read_json(out / KEY, "the key of a study") if (out / KEY).is_file() else {}
    pages = key.get("pages") if isinstance(key, dict) else None
    if path.is_file() and not path.is_symlink() and isinstance(pages, list):
        digest = sha256_of(path)
        if digest in pages:
            return [digest]
    check_replaceable(path)
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """One case: the videos, ours first, their frame rates, the motion's frame for each frame of ours, and the resizing
    of the motion."""

    pair: Pair
    videos: tuple[Path, ...]
    rates: tuple[Fraction, ...]
    skeletons: tuple[int, ...] = ()
    resize: Mode = "crop"

    def digests(self) -> list[str]:
        """sha256 of everything that people see of the case."""
        shown = (*self.videos, self.pair.reference, self.pair.poses)
        return [sha256_of(path) for path in shown if path is not None]


def _plan(pair: Pair, videos: Sequence[Path], reporter: Reporter) -> _Plan:
    """Check a case before any file is written. Raises ``BadInput`` for videos of different durations."""
    assert pair.reference is not None
    read_image(pair.reference)
    clips = [open_clip(video) for video in videos]
    times = [_times(clip) for clip in clips]
    rates = _rates(clips, [len(one) for one in times])
    if pair.poses is None:
        return _Plan(pair=pair, videos=tuple(videos), rates=rates)
    try:
        record = read_record(videos[0], reporter.warning)
        shown = indices_shown(pair.poses, read_poses(pair.poses), record, times[0])
    except Unmatched as error:
        raise BadInput.because(
            pair.poses, f"it cannot be shown beside {videos[0]}: {error}",
            hint="give the motion that drove the video, with the run record beside the video",
        ) from None  # fmt: skip
    return _Plan(pair=pair, videos=tuple(videos), rates=rates, skeletons=tuple(shown), resize=resize_mode(record))


def _times(clip: Clip) -> list[Fraction | None]:
    """Times of all frames. This decodes the clip: a truncated one is an error before anything is written."""
    times = [time for time, _ in clip.frames()]
    if not times:
        raise BadInput.because(clip.path, "it has no frames", hint="write the video again")
    return times


def _rates(clips: Sequence[Clip], counts: Sequence[int]) -> tuple[Fraction, ...]:
    """Frame rates of all videos of a case. Equal frame counts play at our rate, whatever the files have; other counts
    at their own rate, if the duration equals ours."""
    clock = clips[0].fps or next((clip.fps for clip in clips if clip.fps), _FPS)
    rates = []
    for clip, count in zip(clips, counts, strict=True):
        rate = clock if count == counts[0] or clip.fps is None else clip.fps
        if abs(count / rate - counts[0] / clock) > max(1 / rate, 1 / clock) / 2:
            lasts = [f"{float(n / r):.3g} s ({n} frames)" for n, r in ((count, rate), (counts[0], clock))]
            raise BadInput.because(
                clip.path,
                f"it lasts {lasts[0]}, {clips[0].path} {lasts[1]}",
                hint="people would see which is which: give both the same length",
            )
        rates.append(rate)
    return tuple(rates)


def _case(plan: _Plan, systems: Sequence[str], out: Path, seed: int) -> dict[str, Any]:
    pair, videos = plan.pair, plan.videos
    assert pair.reference is not None
    media = out / "media"

    def blind_name(*kind: str) -> str:
        """No two of a study are equal: no name of a file or a folder holds the separator."""
        name = "\0".join([str(seed), *kind, pair.name]).encode(errors="surrogateescape")  # file names may be no UTF-8
        return hashlib.sha256(name).hexdigest()[:16]

    image = media / f"{blind_name('reference')}.jpg"
    shown = Image.fromarray(read_image(pair.reference))
    shown.thumbnail((1024, 1024))
    write_image(image, np.asarray(shown))
    case: dict[str, Any] = {"name": pair.name, "reference": f"media/{image.name}", "poses": None, "videos": []}
    if pair.poses is not None:
        target = media / f"{blind_name('poses')}.mp4"
        case["poses"] = f"media/{_skeletons(pair.poses, plan, target).name}"
    for system, video, rate in zip(systems, videos, plan.rates, strict=True):
        target = media / f"{blind_name('system', system)}.mp4"
        case["videos"].append(f"media/{_playable(video, rate, target).name}")
    return case


def _blind(case: dict[str, Any]) -> dict[str, Any]:
    """A case without names of systems, for the page."""
    return {key: case[key] for key in ("reference", "poses", "videos")}


def _playable(video: Path, rate: Fraction, target: Path) -> Path:
    """A copy that browsers play, without traces of the system in name, metadata or container."""
    clip = open_clip(video)
    width, height = clip.size
    size = (width - width % 2, height - height % 2)
    with VideoWriter(target, size, rate, crf=14) as writer:
        for _, frame in clip.frames():
            writer.write(frame[: size[1], : size[0]])
    return target


def _skeletons(poses: Path, plan: _Plan, target: Path) -> Path:
    """Write the pose video with the size and rate of ours."""
    width, height = open_clip(plan.videos[0]).size
    size = (width - width % 2, height - height % 2)
    motion = read_poses(poses)
    motion = resize_transform(motion.size, size, plan.resize).transform_motion(motion)
    with VideoWriter(target, size, plan.rates[0], crf=14) as writer:
        for index in plan.skeletons:
            writer.write(draw_frame(motion, index))
    return target


def _names(inputs: Sequence[Path]) -> list[str]:
    names = [path.resolve().name for path in inputs]
    if len(set(names)) < len(names):
        raise BadInput(inputs[0], f"systems of one name ({', '.join(names)})", "a different folder name per system")
    return names
