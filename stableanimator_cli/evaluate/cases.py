"""Cases of a bench: those of a folder, or drawn figures."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from stableanimator_cli.config.evaluate import DATASETS, EvaluateConfig
from stableanimator_cli.errors import BadInput, ConfigError, did_you_mean
from stableanimator_cli.evaluate.pairs import Pair, find_images, find_videos, listed, require_folder
from stableanimator_cli.files import check_replaceable, natural_key, visible_files
from stableanimator_cli.media import open_clip, write_image
from stableanimator_cli.media.decode import VIDEO_SUFFIXES
from stableanimator_cli.progress import Reporter
from stableanimator_cli.puppets.dataset import PuppetPlan, write_puppets
from stableanimator_cli.records import ModelFolder

TIKTOK_IDS = tuple(f"{number:05d}" for number in range(335, 341))
"""Videos of the TikTok dataset that no paper trains on. The ten of the papers are not published."""
_POINTS = (".npz", ".json")
_MOTIONS = (*_POINTS, *VIDEO_SUFFIXES)
PUPPET_SIZE = (128, 128)
PUPPET_FPS = Fraction(8)

LAYOUT = (
    "videos/NAME.mp4 (or NAME/ with its frames as images)",
    "references/NAME.png, unless it is the first frame of the video",
    "poses/NAME.npz (or .json, or a video of skeletons), unless the detectors are to read it from the video",
)
"""Files of a bench's folder, one line per kind."""
_TEST = "test"
"""Folder of the test videos of the datasets that come with splits, as their authors' scripts leave them."""
_SPLIT = frozenset({"ubc-fashion", "ted"})
_WHERE = {
    "tiktok": "get the TikTok dataset, whose licence forbids us to distribute it (default: its videos 00335 to 00340)",
    "unseen100": "the authors have not released their 100 videos: use videos of your own",
    "ubc-fashion": "get the Fashion dataset of DwNet (Zablotskaia et al. 2019), whose test/ may stand for videos/",
    "ted": "get the TED-talks dataset (Siarohin et al. 2021), whose test/ may stand for videos/",
}
_DRAWN = "without data: `sa evaluate --bench puppet` draws its own videos"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One animation. ``target`` is None for another person's movement. Keypoints are compared with ``poses``, None if
    ``motion`` has none."""

    name: str
    reference: Path
    motion: Path
    target: Path | None
    poses: Path | None

    def pair(self, predicted: Path) -> Pair:
        """The case's video with what it is compared with."""
        return Pair(name=self.name, predicted=predicted, target=self.target, reference=self.reference, poses=self.poses)


def find_cases(config: EvaluateConfig, model: ModelFolder, scratch: Path, reporter: Reporter) -> list[Case]:
    """Find or draw the cases of ``config.bench``. Generated files go to ``scratch``. Raises ``BadInput`` (exit 3) that
    explains the layout if data are missing."""
    assert config.bench is not None
    folder = bench_folder(config)
    return _puppets(config, model, scratch, reporter) if folder is None else _folder(folder, config, scratch, reporter)


def bench_folder(config: EvaluateConfig) -> Path | None:
    """The folder of a bench: DATA/NAME for published ones, else the folder itself; None for puppets, which are drawn.
    Raises ``BadInput`` (exit 3) that explains the layout if it does not exist."""
    assert config.bench is not None
    if config.bench == "puppet":
        return None
    if config.bench not in DATASETS:
        folder = Path(config.bench)
        if not folder.is_dir():
            kind = "no folder" if os.path.lexists(folder) else "no such folder"
            near = did_you_mean(config.bench, ("puppet", *DATASETS))
            raise BadInput(
                folder, f"{kind}, and no bench of that name", f"puppet, {', '.join(DATASETS)} or a folder",
                hint=(*([near] if near else []), "a folder holds", *LAYOUT, _DRAWN),
            )  # fmt: skip
        return folder
    data = config.data or (Path(os.environ["SA_DATA"]) if os.environ.get("SA_DATA") else None)
    layout = (f"DIR/{config.bench}/{line}" for line in LAYOUT)
    hint = (f"{_WHERE[config.bench]}, arrange them as below, and add --data DIR", *layout, _DRAWN)
    if data is None:
        raise BadInput(config.bench, "no --data DIR and no SA_DATA", "the folder of the bench's videos", hint=hint)
    require_folder(data, "the folder of the bench's videos")
    for folder in (data / config.bench, data):
        if _videos_of(folder, config.bench) is not None:
            return folder
    raise BadInput(data, f"no {config.bench}/videos", "the folder of the bench's videos", hint=hint)


def _folder(folder: Path, config: EvaluateConfig, scratch: Path, reporter: Reporter) -> list[Case]:
    assert config.bench is not None
    videos_folder = _videos_of(folder, config.bench)
    if videos_folder is None:
        hint = (f"mkdir {folder / 'videos'}", "a folder holds", *LAYOUT)
        raise BadInput(folder, "no folder videos in it", "the folder of a bench", hint=hint)
    videos = find_videos(videos_folder)
    names = config.ids or (TIKTOK_IDS if config.bench == "tiktok" else tuple(videos))
    lacking = [name for name in names if name not in videos]
    if lacking:
        raise BadInput(videos_folder, f"no video named {listed(lacking)}", f"those of --ids, {len(names)} in all")
    images = find_images(folder / "references") if (folder / "references").is_dir() else {}
    motions = _find_motions(folder / "poses")
    for part, used in (("references", images), ("poses", motions)):
        _warn_of_unused(folder / part, videos.keys() & used.keys(), reporter)
    cases = []
    for name in names:
        motion = motions.get(name)
        cases.append(
            Case(
                name=name,
                reference=images.get(name) or _first_frame(videos[name], scratch / "references" / f"{name}.png"),
                motion=motion or videos[name],
                target=videos[name],
                poses=motion if motion is not None and motion.suffix.lower() in _POINTS else None,
            )
        )
    return cases


def _find_motions(folder: Path) -> dict[str, Path]:
    """Motions by name: of several files of one name, the first of ``_MOTIONS``."""
    files = visible_files(folder) if folder.is_dir() else []
    motions = [file for file in files if file.suffix.lower() in _MOTIONS]
    return {file.stem: file for file in sorted(motions, key=lambda file: -_MOTIONS.index(file.suffix.lower()))}


def _warn_of_unused(folder: Path, used: Collection[str], reporter: Reporter) -> None:
    """Warn of what is in ``folder`` without giving any of the names ``used``: its video would silently get another
    reference or motion."""
    entries = folder.iterdir() if folder.is_dir() else ()
    unused = [e.name for e in entries if not e.name.startswith(".") and (e.is_dir() or e.stem not in used)]
    if unused:
        names = listed(sorted(unused, key=natural_key))
        reporter.warning(f"{folder}: not used, since no video has that name or the kind of file is another: {names}")


def _videos_of(folder: Path, bench: str) -> Path | None:
    """``videos/`` of a bench's folder, or ``test/`` of a dataset with splits; None without."""
    names = ("videos", _TEST) if bench in _SPLIT else ("videos",)
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _first_frame(video: Path, image: Path) -> Path:
    """Write frame 0 of a video, the usual reference of this field's evaluations. It is written every time: an earlier
    video of that name may have had another."""
    check_replaceable(image)
    write_image(image, next(iter(open_clip(video).frames()))[1])
    return image


def _puppets(config: EvaluateConfig, model: ModelFolder, scratch: Path, reporter: Reporter) -> list[Case]:
    """Figures of the test split, each driven by itself, and each by the next one's movement."""
    if config.ids is not None:
        names = ",".join(config.ids)
        raise ConfigError("--ids", names, "no names with --bench puppet", hint="set their number with --figures N")
    size = _size(model)
    plan = PuppetPlan(
        folder=scratch / "puppets",
        videos=config.figures,
        frames=config.length,
        size=size,
        fps=PUPPET_FPS,
        people=config.people,
        split="test",
        framing="portrait",
    )
    folder = write_puppets(plan, reporter).folder
    names = [f"{n:05d}" for n in range(config.figures)]
    cases = []
    for index, name in enumerate(names):
        image, motion = folder / "references" / f"{name}.png", folder / "truth" / f"{name}.npz"
        target = folder / "videos" / f"{name}.mp4"
        cases.append(Case(name=name, reference=image, motion=motion, target=target, poses=motion))
        other = names[(index + 1) % len(names)]
        if other != name:
            driving = folder / "truth" / f"{other}.npz"
            cases.append(Case(name=f"{name}-as-{other}", reference=image, motion=driving, target=None, poses=driving))
    return cases


def _size(model: ModelFolder) -> tuple[int, int]:
    width, cross, height = str(model.defaults.get("size", "")).partition("x")
    return (int(width), int(height)) if cross and width.isdecimal() and height.isdecimal() else PUPPET_SIZE
