"""Options of ``sa evaluate``. See ``config.schema`` for the merging of flags, file and defaults."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stableanimator_cli.config.parse import check_device, device_option, dump_paths, model_option
from stableanimator_cli.config.paths import paths_of
from stableanimator_cli.config.schema import check_fields, option, require
from stableanimator_cli.errors import ConfigError

PUBLISHED_BENCHES = ("tiktok", "unseen100")
"""Benches of the paper's Table 1."""
DATASETS = (*PUBLISHED_BENCHES, "ubc-fashion", "ted")
"""Benches whose videos are stored below ``data``."""
_NUMBERS = re.compile(r"\s*\d{1,9}(\s*,\s*\d{1,9})*\s*")


def parse_numbers(value: Any, label: str) -> tuple[int, ...]:
    """``"16,32"`` -> (16, 32): whole numbers from 0."""
    text = _dump(value) if isinstance(value, tuple) else value
    if not isinstance(text, str) or _NUMBERS.fullmatch(text) is None:
        raise ConfigError(label, value, "whole numbers with commas between, as 16,32")
    return tuple(int(part) for part in text.split(","))


def parse_names(value: Any, label: str) -> tuple[str, ...]:
    """``"00335,00336"`` -> ("00335", "00336")."""
    text = _dump(value) if isinstance(value, tuple) else value
    names = [part.strip() for part in text.split(",")] if isinstance(text, str) else []
    if not names or not all(names) or any("/" in name for name in names):
        raise ConfigError(label, value, "names with commas between, as 00335,00336")
    return tuple(names)


def parse_strip_videos(value: Any, label: str) -> str | tuple[str, ...]:
    """One of ``STRIP_RULES`` as it is, else names."""
    return value if value in STRIP_RULES else parse_names(value, label)


def _dump_rule(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else _dump(value)


def _dump(parts: tuple[Any, ...]) -> str:
    return ",".join(map(str, parts))


# Panels of the help.
BENCH = "Benches and ablations"
FIGURES = "Figures for a paper"
STRIP_RULES = ("spread", "worst", "median", "best")
STUDY = "Study of preference"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """One run of ``sa evaluate``; each option's help describes it.

    ``inputs`` are PREDICTED and REFERENCE, the folders of a study, or files of answers. ``model`` provides detectors
    and the face recogniser, and animates benches.
    """

    # fmt: off
    inputs: tuple[Path, ...] = option("PREDICTED REFERENCE", (), parse=paths_of, dump=dump_paths,
        metavar="[PREDICTED [REFERENCE]]",
        help="Generated videos and their ground truth: a video or a folder of images each, or folders of these, paired "
        "by name. PREDICTED alone, with --reference-picture, is scored without a ground truth. With --study: folders "
        "of videos, ours first. With --tally: answers.")
    output: Path | None = option("--output", None, short="-o", metavar="SCORES",
        default_text="scores/NAME, with the name of the bench or of the folder of videos",
        help="Folder to write: scores.json, scores.csv, scores.tex, curves.jsonl, report.html, videos/.")
    protocol: Literal["disco256", "native"] | None = option("--protocol", None,
        default_text="disco256 for tiktok and unseen100, else native",
        help="disco256: central square at 256x256, numbers as published tables have them; native: as the videos are.")
    truncate: bool = option("--truncate", False,
        help="Leave out frames without a counterpart and list them; otherwise they are an error.")
    reference_picture: Path | None = option("--reference-picture", None, metavar="IMAGE|DIR",
        default_text="frame 0 of REFERENCE",
        help="Image that was animated, or a folder with one per video, for CSIM, CLIP-I and DINO.")
    poses: Path | None = option("--poses", None, metavar="MOTION|DIR",
        default_text="read from REFERENCE by the detectors",
        help="Driving motion (.npz, OpenPose .json), or a folder with one per video.")
    borders: tuple[int, ...] | None = option("--borders", None, parse=parse_numbers, dump=_dump, metavar="N,N",
        default_text="from the run record",
        help="First frames of windows and decoded chunks, for the seam score.")
    model: str | None = model_option()
    min_csim: float | None = option("--min-csim", None, metavar="X", default_text="no check", ge=-1, le=1,
        help="Minimum similarity to the reference image (csim_ref, -1 to 1) of each video; exit code 8 below it, or "
        "if no frame shows a face.")
    judge: str | None = option("--judge", None, metavar="FILE.onnx|NAME|FOLDER",
        default_text="the model's judge, else buffalo_l", help="Independent face recogniser.")
    bench: str | None = option("--bench", None, metavar="puppet|tiktok|unseen100|ubc-fashion|ted|DIR", panel=BENCH,
        default_text="none",
        help="Animate the videos of a bench, score them, and print our row under the published ones of Table 1. A "
        "folder holds videos/NAME.mp4, references/NAME.png, poses/NAME.npz.")
    data: Path | None = option("--data", None, metavar="DIR", panel=BENCH, default_text="$SA_DATA",
        help="Folder that holds tiktok/, unseen100/, ubc-fashion/ or ted/.")
    ids: tuple[str, ...] | None = option("--ids", None, parse=parse_names, dump=_dump, metavar="NAME,NAME",
        panel=BENCH, default_text="00335 to 00340 of tiktok, else all", help="Only these videos of a bench.")
    figures: int = option("--figures", 8, metavar="N", ge=1, le=10000, panel=BENCH,
        help="Number of videos of the bench puppet.")
    people: int = option("--people", 1, metavar="1|2|3", ge=1, le=3, panel=BENCH,
        help="People per video of the bench puppet, each scored on their own.")
    length: int = option("--length", 32, metavar="T", ge=1, le=100000, panel=BENCH,
        help="Frames per video of the bench puppet.")
    animate: Path | None = option("--animate", None, metavar="SETTINGS.toml", panel=BENCH,
        default_text="the model's own", help="Settings of the animation, as sa animate --config takes them.")
    baselines: Path | None = option("--baselines", None, formerly="rivals", old_flag="--rivals", metavar="DIR",
        default_text="none",
        help="Videos of other systems, one folder per system with the names of ours: scored alike, and compared with "
        "ours video by video.")
    face_paste: bool = option("--face-paste", False,
        help="Add a system to the comparison: our videos with the reference image's face pasted onto every frame, in "
        "animated/face-paste/. Needs --reference-picture or --bench.")
    ablation: Literal["table2", "table3", "table4", "table5"] | None = option("--ablation", None, panel=BENCH,
        default_text="none; the bench is puppet", help="Score the variants of one table of the paper on --bench.")
    variants: Path | None = option("--variants", None, metavar="DIR", panel=BENCH,
        help="Folder with one model per variant: ours, no-face-masks, no-face-encoder, addition, norm, ip-adapter, ...")
    seeds: tuple[int, ...] = option("--seeds", (0, 1, 2), parse=parse_numbers, dump=_dump, metavar="N,N,N",
        panel=BENCH, default_text="0,1,2", help="Sampling seeds of an ablation, three or more.")
    strips: int | None = option("--strips", None, metavar="N", ge=0, le=1000, panel=FIGURES,
        default_text="no figures", help="Write figures/ as PDF and PNG: strips of N videos (reference, pose, ground "
        "truth, each system) and plots. Needs matplotlib.")
    strip_videos: str | tuple[str, ...] | None = option("--strip-videos", None, parse=parse_strip_videos,
        dump=_dump_rule, metavar="spread|worst|median|best|NAME,NAME", panel=FIGURES, default_text="spread",
        help="Videos of the strips by their rank in CSIM (without faces: PSNR), or by name. spread: evenly spaced "
        "ranks from the worst to the best.")
    study: bool = option("--study", False, panel=STUDY,
        help="Write a page that asks people which of two videos is better. Inputs: our folder, then the others.")
    comparisons: int | None = option("--comparisons", None, metavar="N", ge=1, le=100000, panel=STUDY,
        default_text="all", help="Comparisons per person, in balanced blocks of all videos and systems.")
    tally: bool = option("--tally", False, panel=STUDY,
        help="Count answers of a study, files or folders that hold them, and print Table 6; -o writes it as text, "
        "JSON, CSV and LaTeX.")
    bootstrap_samples: int = option("--bootstrap-samples", 200, formerly="draws", old_flag="--draws", metavar="N",
        ge=100, le=1000000, help="Bootstrap samples for the standard error of Frechet distances.")
    seed: int = option("--seed", 0, metavar="N", ge=0, le=2**63 - 1,
        help="Seed of the intervals, and of the order of a study.")
    device: str = device_option()
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)
        check_device(self.device)
        self._check_task()

    def _check_task(self) -> None:
        """Raise unless there is one task with the options it needs."""
        named = [
            name
            for name, given in (("--bench", self.bench and not self.ablation), ("--ablation", self.ablation),
                                ("--study", self.study), ("--tally", self.tally))
            if given
        ]  # fmt: skip
        if len(named) > 1:
            raise ConfigError(named[1], "on", f"one task per run, not {' with '.join(named)}")
        task = named[0] if named else None
        if task is None and len(self.inputs) != 2 and not self.without_target:
            raise ConfigError(
                "PREDICTED REFERENCE", " ".join(map(str, self.inputs)) or None, "two files or folders of videos",
                hint="give the generated videos and their ground truth, --reference-picture IMAGE beside one input "
                "to score it without, or --bench puppet",
            )  # fmt: skip
        if self.without_target and self.truncate:
            raise ConfigError("--truncate", "on", "a ground truth, whose frames are compared")
        if task in ("--bench", "--ablation") and self.inputs:
            raise ConfigError("PREDICTED", str(self.inputs[0]), f"nothing beside {task}, which makes its own videos")
        if task == "--study" and len(self.inputs) < 2:
            raise ConfigError(
                "--study", ", ".join(map(str, self.inputs)) or None, "two folders or more, ours first",
                hint="add a folder per system that ours is compared with, its videos under the names of ours",
            )  # fmt: skip
        if self.comparisons is not None and not self.study:
            raise ConfigError("--comparisons", self.comparisons, "--study, whose page asks for them")
        if task == "--tally" and not self.inputs:
            raise ConfigError("--tally", None, "files of answers, or folders that hold them")
        self._check_bench(is_bench=task in ("--bench", "--ablation"))
        if self.ablation is not None:
            if self.variants is None:
                raise ConfigError("--ablation", self.ablation, "--variants DIR with one model folder per variant")
            distinct = len(set(self.seeds))
            require(distinct == len(self.seeds) >= 3, "--seeds", _dump(self.seeds), "three different seeds")
        elif self.variants is not None:
            raise ConfigError("--variants", str(self.variants), "--ablation table2, table3, table4 or table5")
        if task in ("--ablation", "--study", "--tally"):
            for name, value in (("--baselines", self.baselines), ("--min-csim", self.min_csim),
                                ("--face-paste", "on" if self.face_paste else None)):  # fmt: skip
                if value is not None:
                    raise ConfigError(name, str(value), f"nothing beside {task}")
        if self.face_paste and task is None and self.reference_picture is None:
            raise ConfigError("--face-paste", "on", "--reference-picture IMAGE|DIR, whose faces are pasted")
        if self.strips is None and self.strip_videos is not None:
            raise ConfigError("--strip-videos", _dump_rule(self.strip_videos), "--strips N, which writes them")
        if self.strips is not None and task in ("--study", "--tally"):
            raise ConfigError("--strips", self.strips, f"nothing beside {task}, which has no scores")
        if task in ("--bench", "--ablation", "--tally"):
            for name, path in (("--reference-picture", self.reference_picture), ("--poses", self.poses)):
                if path is not None:
                    raise ConfigError(
                        name, str(path), f"nothing beside {task}",
                        hint="leave it out" if self.tally else "a folder of a bench holds references/ and poses/",
                    )  # fmt: skip

    def _check_bench(self, *, is_bench: bool) -> None:
        """Raise for options of benches that would have no effect."""
        is_drawn = self.bench == "puppet" or (self.bench is None and self.ablation is not None)
        for names, used, expected in (
            (("data", "ids", "animate"), is_bench, "--bench or --ablation, whose videos it is about"),
            (("figures", "people", "length"), is_drawn, "--bench puppet, which it is about"),
            (("seeds",), self.ablation is not None, "--ablation, which it is about"),
        ):
            for name in () if used else names:
                value = getattr(self, name)
                if value != self.__dataclass_fields__[name].default:
                    shown = (
                        _dump(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
                    )
                    raise ConfigError(f"--{name}", shown, expected)
        if self.ids is not None and len(set(self.ids)) < len(self.ids):
            raise ConfigError("--ids", _dump(self.ids), "each name once")

    @property
    def system_name(self) -> str:
        """Name of the scored videos in figures: that of their folder or file."""
        path = self.inputs[0].resolve() if self.inputs else Path("ours")
        return path.stem if path.is_file() else path.name or "ours"

    @property
    def without_target(self) -> bool:
        """Whether the videos are scored without a ground truth."""
        task = self.bench or self.ablation or self.study or self.tally
        return not task and len(self.inputs) == 1 and self.reference_picture is not None

    @property
    def default_output(self) -> Path | None:
        """The folder of a run without ``output``: ``scores/NAME``. None with ``tally``, which prints its result."""
        if self.tally:
            return None
        named = self.variants or (Path(self.bench) if self.bench is not None else self.inputs[0])
        name = "study" if self.study else named.resolve().name
        return Path("scores") / (name.removesuffix(named.suffix) if named.is_file() else name or "videos")

    @property
    def rules(self) -> Literal["disco256", "native"]:
        """The protocol of this run."""
        return self.protocol or ("disco256" if self.bench in PUBLISHED_BENCHES else "native")
