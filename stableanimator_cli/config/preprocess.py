"""Options of ``sa preprocess``. See ``config.schema`` for how flags, file and defaults are merged."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from stableanimator_cli.config.parse import (
    OUTPUT,
    Range,
    Size,
    check_device,
    device_option,
    dump_paths,
    dump_range,
    dump_size,
    model_option,
    parse_fps,
    parse_inputs,
    parse_range,
    parse_size,
)
from stableanimator_cli.config.schema import check_fields, option, require
from stableanimator_cli.errors import ConfigError

Align = Literal["upstream", "affine", "bones", "similarity", "none"]
Shard = tuple[int, int]


def parse_shard(value: str | Shard, label: str = "--shard") -> Shard:
    """``"0/4"`` -> (0, 4): the first of four parts of the list."""
    text = "/".join(map(str, value)) if isinstance(value, tuple) else value
    match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*([1-9]\d{0,5})\s*", text) if isinstance(text, str) else None
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(label, value, "I/N with I from 0 to N - 1, as 0/4")
    return int(match[1]), int(match[2])


def _dump_shard(shard: Shard) -> str:
    return f"{shard[0]}/{shard[1]}"


# Panels of the help.
PEOPLE = "People"
MANY = "Many videos"
CONVERT = "Conversion"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessConfig:
    """One run of ``sa preprocess``.

    ``output`` is the folder of clips, or the file or folder that a motion is converted to; ``poses`` the skeleton video
    of one clip. ``every`` detects people in every k-th frame only; ``gap`` is the longest gap in frames that is closed,
    ``smooth`` the width of the smoothing in frames, 0 for none. ``source``: a clip folder links to its video or
    holds a copy. ``ray`` is the address of a cluster, ``local`` for one on this machine. ``person`` None is
    the largest of a video, and everybody of a motion that is converted; ``people`` counts the largest ones. ``size``
    (width, height), ``order`` and ``to`` are about conversions alone.
    """

    # fmt: off
    inputs: tuple[Path, ...] = option("INPUT", parse=parse_inputs, dump=dump_paths, metavar="INPUT...",
        help="Videos, images, folders of them, or a list (.txt); or one motion to convert: .npz, .npy, OpenPose JSON "
        "(a file or a folder), a skeleton video or folder.")
    output: Path | None = option("--output", None, short="-o", metavar="DIR|FILE",
        default_text="INPUT.clips beside the input",
        help="Folder of clips; for a motion the file (.npz, .json, .npy, .mp4) or folder to write.")
    poses: Path | None = option("--poses", None, metavar="OUT.mp4", default_text="none",
        help="Write a lossless skeleton video of one input, and OUT.npz, ready for sa animate.")
    layout: Literal["clips", "upstream"] = option("--layout", "clips",
        help="Clip folders, or the reference implementation's rec|vec/NNNNN/{images,poses,faces}.")
    to: Literal["json", "png"] = option("--to", "json", panel=CONVERT,
        help="Content of an output folder: OpenPose JSON or skeleton images.")
    model: str | None = model_option()
    order: Literal["134", "133"] = option("--order", "134", panel=CONVERT,
        help="Keypoints of a .npy: our 134, or the 133 of COCO-WholeBody.")
    size: Size | None = option("--size", None, parse=parse_size, dump=dump_size, metavar="WxH", panel=CONVERT,
        default_text="from the file", help="Width and height in pixels, for a motion whose file lacks them.")
    person: str | None = option("--person", None, metavar="largest|all|N|x0,y0,x1,y1", panel=PEOPLE,
        default_text="largest for videos, all for motions",
        help="Person to take: the largest, all, the N-th to appear (from 0; from left to right in a "
        "frame), or the one inside a box in pixels.")
    people: int | None = option("--people", None, metavar="N", ge=1, le=64, panel=PEOPLE, default_text="see --person",
        help="Take the N largest people. The preview and the contact sheet show their numbers, which --person of "
        "sa animate means.")
    align: Align = option("--align", "none", panel=PEOPLE,
        help="Fit the motion to the person in --reference: as in the reference implementation, by scale and shift, "
        "with that body's limb lengths, or by rotation too.")
    reference: Path | None = option("--reference", None, metavar="IMAGE", panel=PEOPLE, default_text="none",
        help="Image that will be animated. The misalignment of the motion is reported.")
    smooth: float = option("--smooth", 0.0, metavar="FRAMES", ge=0, le=1000, panel=PEOPLE,
        help="Width of temporal smoothing of keypoints; 0 for none.")
    gap: int = option("--gap", 8, metavar="FRAMES", ge=0, le=10000, panel=PEOPLE,
        help="Longest gap in detection that is interpolated.")
    every: int = option("--every", 1, metavar="K", ge=1, le=64, panel=PEOPLE,
        help="Detect people in every K-th frame only; keypoints are detected in each frame.")
    detect_threshold: float = option("--detect-threshold", 0.3, metavar="SCORE", panel=PEOPLE, gt=0, lt=1,
        help="Minimum score of a person, between 0 and 1.")
    frames: Range | None = option("--frames", None, parse=parse_range, dump=dump_range, metavar="A:B", panel=OUTPUT,
        default_text="all", help="Frames A to B of the motion, B not included, as a Python slice: 0:48, 10:, :100.")
    fps: Fraction | None = option("--fps", None, parse=parse_fps, metavar="RATE", panel=OUTPUT,
        default_text="the motion's own",
        help="Frame rate to resample the motion to, up to 1000 frames per second, as 25 or 30000/1001 (29.97 is that).")
    source: Literal["link", "copy"] = option("--source", "link",
        help="Store a link to the video in the clip folder, or a copy.")
    preview: bool = option("--preview", False,
        help="With --poses: also write OUT.preview.png, the motion over the --reference image, else over black.")
    lint: bool = option("--lint", False,
        help="Only check the dataset INPUT; exit code 8 if training would fail on it.")
    workers: int = option("--workers", 1, metavar="N", ge=1, le=256, panel=MANY, help="Processes on this machine.")
    shard: Shard | None = option("--shard", None, parse=parse_shard, dump=_dump_shard, metavar="I/N", panel=MANY,
        default_text="all", help="Only part I (from 0) of N of the list, for several machines with one -o.")
    ray: str | None = option("--ray", None, metavar="ADDRESS", panel=MANY, default_text="none",
        help="A Ray cluster, local for one on this machine; needs the package ray.")
    device: str = device_option()
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)
        if self.person is not None:
            known = re.fullmatch(r"largest|all|\d{1,6}|[^,]+,[^,]+,[^,]+,[^,]+", self.person)
            require(bool(known), "--person", self.person, "largest, all, a person's number, or a box x0,y0,x1,y1")
        if self.people is not None and self.person is not None:
            raise ConfigError("--people", self.people, f"no --person {self.person} beside it")
        check_device(self.device)
        self._check_pairs()

    def _check_pairs(self) -> None:
        """Check options that require or exclude one another."""
        if self.align != "none" and self.reference is None:
            raise ConfigError("--align", self.align, "a --reference IMAGE to align to")
        if self.ray is not None and self.workers > 1:
            raise ConfigError("--workers", self.workers, "no --workers with --ray", hint="the cluster decides how many")
        if self.preview and self.poses is None:
            raise ConfigError("--preview", "on", "--poses OUT.mp4, beside which the preview goes")
        if self.poses is not None and self.poses.suffix.lower() not in (".mp4", ".mov", ".m4v"):
            raise ConfigError("--poses", str(self.poses), "a name ending in .mp4 or .mov", hint="-o writes other forms")

    @property
    def selected_person(self) -> str:
        """Person whose motion is extracted: ``largest`` by default."""
        return self.person or "largest"

    def of_clip(self) -> dict[str, Any]:
        """Settings that determine a clip; if one changes, clips are written again."""
        return {
            "layout": self.layout,
            "person": self.selected_person,
            "smooth": self.smooth,
            "gap": self.gap,
            "every": self.every,
            "detect_threshold": self.detect_threshold,
            "frames": None if self.frames is None else list(self.frames),
            "fps": None if self.fps is None else str(self.fps),
            "source": self.source,
            **({} if self.people is None else {"people": self.people}),
        }
