"""What a bench animates: its folder's layout, and the puppets, which are drawn where they are wanted."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from stableanimator_cli.config.evaluate import PUBLISHED_BENCHES, EvaluateConfig
from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.evaluate.pairs import find_pictures, find_videos, listed
from stableanimator_cli.files import check_replaceable
from stableanimator_cli.media import open_clip, write_picture
from stableanimator_cli.progress import Reporter
from stableanimator_cli.puppets.dataset import PuppetPlan, write_puppets
from stableanimator_cli.records import ModelFolder

TIKTOK_IDS = tuple(f"{number:05d}" for number in range(335, 341))
"""The videos of the TikTok dataset that no paper trains on and everybody has. The papers' own ten are not published."""
_MOTIONS = (".npz", ".json", ".mp4", ".mov", ".m4v")
PUPPET_SIZE = (128, 128)
PUPPET_FPS = Fraction(8)

LAYOUT = """videos/NAME.mp4 (or NAME/ with its frames as pictures), references/NAME.png where it is not the first frame,
poses/NAME.npz (or .json, .mp4 of skeletons) where it is not to be read from the video"""
_WHERE = {
    "tiktok": "frames of the TikTok dataset, whose licence forbids that we bring them: 00335 to 00340 by default",
    "unseen100": "the authors have not released their 100 videos; any videos of this layout stand in for them",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing to animate. ``truth`` None: another person's movement. ``poses`` is what key points are compared with,
    None where ``motion`` has none."""

    name: str
    reference: Path
    motion: Path
    truth: Path | None
    poses: Path | None


def find_cases(config: EvaluateConfig, model: ModelFolder, scratch: Path, reporter: Reporter) -> list[Case]:
    """The cases of ``config.bench``. ``scratch`` takes what is drawn or cut out. ``BadInput`` (exit 3) explains the
    layout where data are missing."""
    assert config.bench is not None
    folder = place_of(config)
    return _puppets(config, model, scratch, reporter) if folder is None else _folder(folder, config, scratch)


def place_of(config: EvaluateConfig) -> Path | None:
    """The folder of a bench: DATA/NAME for the published ones, the folder itself else; None for puppets, which are
    drawn. ``BadInput`` (exit 3) explains the layout where it is not there."""
    assert config.bench is not None
    if config.bench == "puppet":
        return None
    if config.bench not in PUBLISHED_BENCHES:
        folder = Path(config.bench)
        if not folder.is_dir():
            raise BadInput(
                folder, "no such folder, and no bench of that name", "puppet, tiktok, unseen100 or a folder",
                hint=f"a folder holds {_one_line()}",
            )  # fmt: skip
        return folder
    named = config.data or (Path(os.environ["SA_DATA"]) if os.environ.get("SA_DATA") else None)
    hint = f"DIR/{config.bench} holds {_one_line()} ({_WHERE[config.bench]})"
    if named is None:
        raise BadInput(config.bench, "no --data DIR and no SA_DATA", "the folder of the bench's videos", hint=hint)
    for folder in (named / config.bench, named):
        if (folder / "videos").is_dir():
            return folder
    raise BadInput(named, f"no {config.bench}/videos", "the folder of the bench's videos", hint=hint)


def _one_line() -> str:
    return " ".join(LAYOUT.split())


def _folder(folder: Path, config: EvaluateConfig, scratch: Path) -> list[Case]:
    videos = folder / "videos"
    if not videos.is_dir():
        raise BadInput(folder, "no folder videos in it", f"a bench: {_one_line()}", hint=f"mkdir {videos}")
    found = find_videos(videos)
    wanted = config.ids or (TIKTOK_IDS if config.bench == "tiktok" else tuple(found))
    lacking = [name for name in wanted if name not in found]
    if lacking:
        raise BadInput(videos, f"no video named {listed(lacking)}", f"those of --ids, {len(wanted)} in all")
    pictures = find_pictures(folder / "references") if (folder / "references").is_dir() else {}
    cases = []
    for name in wanted:
        motion = next((p for p in (folder / "poses" / f"{name}{s}" for s in _MOTIONS) if p.is_file()), None)
        cases.append(
            Case(
                name=name,
                reference=pictures.get(name) or _first_frame(found[name], scratch / "references" / f"{name}.png"),
                motion=motion or found[name],
                truth=found[name],
                poses=motion if motion is not None and motion.suffix in (".npz", ".json") else None,
            )
        )
    return cases


def _first_frame(video: Path, picture: Path) -> Path:
    """Frame 0 of a video as a picture: the usual reference of this field's evaluations. Written every time, so that
    another video of that name is not animated from an earlier one's frame."""
    check_replaceable(picture)
    write_picture(picture, next(iter(open_clip(video).frames()))[1])
    return picture


def _puppets(config: EvaluateConfig, model: ModelFolder, scratch: Path, reporter: Reporter) -> list[Case]:
    """Figures of the test split, each driven by itself, and each by the next one's movement."""
    if config.ids is not None:
        names = ",".join(config.ids)
        raise ConfigError("--ids", names, "no names with --bench puppet", hint="--figures N says how many")
    size = _size(model)
    plan = PuppetPlan(
        folder=scratch / "puppets", videos=config.figures, frames=config.length, size=size, fps=PUPPET_FPS, split="test"
    )
    folder = write_puppets(plan, reporter).folder
    names = [f"{n:05d}" for n in range(config.figures)]
    cases = []
    for place, name in enumerate(names):
        picture, motion = folder / "references" / f"{name}.png", folder / "truth" / f"{name}.npz"
        truth = folder / "videos" / f"{name}.mp4"
        cases.append(Case(name=name, reference=picture, motion=motion, truth=truth, poses=motion))
        other = names[(place + 1) % len(names)]
        if other != name:
            driving = folder / "truth" / f"{other}.npz"
            cases.append(Case(name=f"{name}-as-{other}", reference=picture, motion=driving, truth=None, poses=driving))
    return cases


def _size(model: ModelFolder) -> tuple[int, int]:
    width, cross, height = str(model.defaults.get("size", "")).partition("x")
    return (int(width), int(height)) if cross and width.isdecimal() and height.isdecimal() else PUPPET_SIZE
