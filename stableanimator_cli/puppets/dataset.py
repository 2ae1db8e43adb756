"""Write puppets to disk: videos, reference images and the ground truth of both.

A folder holds ``puppets.json`` (its settings) and per video:

* ``videos/00000.mp4`` and ``references/00000.png``;
* ``truth/00000.npz``: the motion (``motion.motion_file``);
* ``truth/00000.faces.npz``: ``boxes`` float32[t,p,4] and ``landmarks`` float32[t,p,5,2], NaN if no face is visible,
  ``identities`` int64[p], ``depth`` int64[p] with 0 nearest;
* ``truth/00000.json``: identity, clothes and the behaviour per frame. It is written last, so an interrupted run resumes
  with the first video without it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli import __version__
from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.files import MARK, atomic_write, locked_output, translate_os_errors
from stableanimator_cli.media import VideoWriter, write_image
from stableanimator_cli.motion.motion_file import save_motion, write_arrays
from stableanimator_cli.progress import NullReporter, Reporter
from stableanimator_cli.puppets.render import PuppetFrame
from stableanimator_cli.puppets.sample import MAX_PEOPLE, SPLITS
from stableanimator_cli.puppets.scene import FRAMINGS, MAX_SIDE, MIN_SIDE, Scene, frames_to_motion, sample_scene
from stableanimator_cli.readers import read_json
from stableanimator_cli.readers_fields import Fields, shown

MAX_VIDEOS = 100_000  # a seed owns this many scenes, so that two seeds share none
MAX_SEED = 1_000_000
_SETTINGS = "puppets.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PuppetPlan:
    """Settings of a puppets folder. ``size`` is (width, height), both even as H.264 requires."""

    folder: Path
    videos: int = 8
    frames: int = 16
    size: tuple[int, int] = (128, 128)
    fps: Fraction = Fraction(8)
    people: int = 1
    seed: int = 0
    split: str = "train"
    framing: str = "half"
    reference_first: bool = False  # each video opens with the reference drawing, one frame more

    def __post_init__(self) -> None:
        width, height = self.size
        even = width % 2 == 0 and height % 2 == 0 and all(MIN_SIDE <= side <= MAX_SIDE for side in self.size)
        checks = (
            (1 <= self.videos <= MAX_VIDEOS, "--videos", self.videos, f"1 to {MAX_VIDEOS}"),
            (self.frames >= 1, "--frames", self.frames, "1 or more"),
            (even, "--size", f"{width}x{height}", f"even sides of {MIN_SIDE} to {MAX_SIDE} pixels"),
            (0 < self.fps <= 1000, "--fps", str(self.fps), "more than 0 and at most 1000"),
            (1 <= self.people <= MAX_PEOPLE, "--people", self.people, f"1 to {MAX_PEOPLE}"),
            (0 <= self.seed <= MAX_SEED, "--seed", self.seed, f"0 to {MAX_SEED}"),
            (self.split in SPLITS, "--split", self.split, f"one of {', '.join(SPLITS)}"),
            (self.framing in FRAMINGS, "--framing", self.framing, f"one of {', '.join(FRAMINGS)}"),
        )
        for holds, option, found, expected in checks:
            if not holds:
                raise ConfigError(option, found, expected)

    def settings(self) -> dict[str, Any]:
        """Settings that all videos of a folder share; the number of videos may grow."""
        shared = {"format": _FORMAT} | dataclasses.asdict(self) | {"size": list(self.size), "fps": str(self.fps)}
        return {name: value for name, value in shared.items() if name not in ("folder", "videos")}

    def scene(self, n: int) -> Scene:
        """The scene of video ``n``."""
        return sample_scene(
            self.split,
            self.seed * MAX_VIDEOS + n,
            people=self.people,
            framing=self.framing,
            size=self.size,
            frames=self.frames,
            fps=self.fps,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PuppetReport:
    """Number of ``written`` and ``existing`` videos, and of written ``frames``."""

    folder: Path
    written: int
    existing: int
    frames: int

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "written": self.written, "kept": self.existing, "frames": self.frames}

    def summary(self) -> str:
        return str(self.folder)


def write_puppets(plan: PuppetPlan, reporter: Reporter | None = None) -> PuppetReport:
    """Write the missing videos of ``plan``.

    Raises ``BadInput`` if the folder holds other files or puppets of other settings, or cannot be written.
    """
    if plan.folder.exists() and not plan.folder.is_dir():
        raise BadInput(plan.folder, "a file", "a folder", hint="choose another DIR")
    with locked_output(plan.folder, "sa puppets", folder=True):
        return _write_puppets(plan, reporter or NullReporter())


def _write_puppets(plan: PuppetPlan, reporter: Reporter) -> PuppetReport:
    _check_settings(plan)
    missing = [
        n for n in range(plan.videos) if not all(path.exists() for path in _video_paths(plan.folder, n).values())
    ]
    if len(missing) < plan.videos:
        reporter.info(f"{plan.folder}: {plan.videos - len(missing)} of {plan.videos} videos exist already")
    drawn = len(missing) * (plan.frames + plan.reference_first)
    with reporter.progress(drawn, "puppets", "frame") as bar:
        for n in missing:
            _write_video(plan, n, bar.update)
    return PuppetReport(folder=plan.folder, written=len(missing), existing=plan.videos - len(missing), frames=drawn)


def _check_settings(plan: PuppetPlan) -> None:
    """Write the settings of a new folder, or check those of an existing one."""
    file = plan.folder / _SETTINGS
    if not file.exists():
        if plan.folder.is_dir() and any(not entry.name.startswith(".") for entry in plan.folder.iterdir()):
            expected = "a new folder, an empty one, or one that this command wrote"
            raise BadInput(plan.folder, "a folder with other things", expected, hint="choose another DIR")
        _write_json(file, plan.settings())
        return
    what, hint = "the settings of a puppets folder", "choose another DIR"
    found = dict(Fields.of(read_json(file, what, hint=hint), file, what, hint=hint).table)
    found.setdefault("reference_first", False)  # missing in older folders
    for key, expected in plan.settings().items():
        if found.get(key) != expected:
            raise BadInput(
                file, f"{key} {shown(found.get(key))}", f"{key} {expected} as requested",
                hint=f"repeat the settings of {file.name} to resume, or choose another DIR",
            )  # fmt: skip


def _video_paths(folder: Path, n: int) -> dict[str, Path]:
    return {
        "video": folder / "videos" / f"{n:05d}.mp4",
        "reference": folder / "references" / f"{n:05d}.png",
        "motion": folder / "truth" / f"{n:05d}.npz",
        "faces": folder / "truth" / f"{n:05d}.faces.npz",
        "record": folder / "truth" / f"{n:05d}.json",
    }


def _write_video(plan: PuppetPlan, n: int, update: Any) -> None:
    scene, paths = plan.scene(n), _video_paths(plan.folder, n)
    reference = scene.reference()
    opening = [reference] if plan.reference_first else []
    paths["video"].parent.mkdir(parents=True, exist_ok=True)
    frames: list[PuppetFrame] = []
    tag = {"puppets": f"{plan.split} seed {plan.seed} video {n}"}
    with VideoWriter(paths["video"], plan.size, plan.fps, tag=tag) as video:
        for frame in itertools.chain(opening, scene.clip()):
            video.write(frame.image)
            # Only the ground truth is needed later: images of a long clip would fill the memory.
            frames.append(dataclasses.replace(frame, image=frame.image[:0]))
            update(1)
    paths["reference"].parent.mkdir(parents=True, exist_ok=True)
    write_image(paths["reference"], reference.image)
    save_motion(paths["motion"], frames_to_motion(frames, plan.size, plan.fps))
    write_arrays(
        paths["faces"],
        {
            "boxes": np.stack([frame.face_boxes for frame in frames]),
            "landmarks": np.stack([frame.landmarks for frame in frames]),
            "identities": frames[0].identities,
            "depth": frames[0].depth,
        },
    )
    people = []
    for k, person in enumerate(scene.people):
        people.append(
            {
                "identity": dataclasses.asdict(person.identity),
                "build": dataclasses.asdict(person.build),
                "clothes": dataclasses.asdict(person.clothes),
                "depth": int(frames[0].depth[k]),
                "behaviour": ["reference"] * len(opening) + [scene.behaviour(t, k) for t in range(plan.frames)],
                "reference": {
                    "face_box": _rounded(reference.face_boxes[k]),
                    "landmarks": _rounded(reference.landmarks[k]),
                    "keypoints": _rounded(reference.keypoints[k]),
                },
            }
        )
    record = {"video": n, "framing": scene.framing, "backdrop": scene.backdrop.kind, "people": people}
    files = {name: str(path.relative_to(plan.folder)) for name, path in paths.items() if name != "record"}
    _write_json(paths["record"], plan.settings() | record | {"files": files})


def _rounded(array: np.ndarray) -> list[Any] | None:
    """Round to 0.01 pixels; None if a value is NaN."""
    return None if np.isnan(array).any() else np.round(array.astype(float), 2).tolist()


def _write_json(path: Path, data: dict[str, Any]) -> None:
    with atomic_write(path, marked=True) as temp, translate_os_errors(path):
        temp.write_text(json.dumps(data | {MARK: __version__}, indent=1) + "\n", encoding="utf-8")
