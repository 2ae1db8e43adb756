"""Options of ``sa bench``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.config.parse import check_device, device_option, dump_size, parse_size
from stableanimator_cli.config.schema import check_fields, option, require
from stableanimator_cli.errors import ConfigError

NAMES = (
    "roofline", "cost", "operators", "unet", "vae", "sample", "long", "hjb", "train", "preprocess", "evaluate",
    "compare", "frontier", "gate", "card",
)  # fmt: skip
CHANNELS_LAST, COMPILED = "channels-last", "compiled"
UNET_VARIANTS = ("plain", "prepared", "batched", CHANNELS_LAST, COMPILED)
VAE_VARIANTS = ("plain", CHANNELS_LAST, "chunks of 4", "chunks of 1")
VARIANTS = tuple(dict.fromkeys((*UNET_VARIANTS, *VAE_VARIANTS)))
MIN_SIDE, STRIDE = 64, 8  # pixels
CLONE_HINT = "git clone https://github.com/Francis-Rings/StableAnimator, and give that folder"
_EACH = "depends on the bench"
# benches that have --pairs, --size and --networks, --frames
_TIMED = ("operators", "unet", "vae", "sample", "hjb", "train", "preprocess", "evaluate", "compare")
_WITH_SIZE = ("cost", "long", "frontier", *_TIMED)
_WITH_FRAMES = tuple(name for name in _WITH_SIZE if name not in ("frontier", "evaluate"))
DEFAULTS: Mapping[str, Any] = {
    "networks": "puppet", "pairs": 7, "iterations": 3, "margin": 8, "budget": 10.0, "bench": "puppet", "search": 4,
    "clips": 8, "work": Path("frontier"),
}  # fmt: skip
"""Defaults of options that are None if they are not given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """One run of ``sa bench``. ``size``, ``frames`` and ``steps`` are None for the default of each bench.

    Options of one bench are None if they are not given, so that other benches can refuse them; ``value`` has defaults.
    """

    # fmt: off
    names: tuple[str, ...] = option("NAME", (), complete=NAMES, metavar="NAME...", default_text="",
        help=f"Benches to run: {', '.join(NAMES)}.")
    networks: str | None = option("--networks", None, complete="model", metavar="full|NAME|FOLDER",
        default_text="puppet (cost, card: full)",
        help="full: the released shapes with random weights; else a catalogue name or model folder.")
    size: tuple[int, int] | None = option("--size", None, parse=parse_size, metavar="WxH", default_text=_EACH,
        help="Width and height in pixels, as 576x1024.")
    frames: int | None = option("--frames", None, metavar="T", ge=1, default_text=_EACH, help="Frames.")
    steps: int | None = option("--steps", None, metavar="N", ge=1, default_text=_EACH, help="Denoising steps.")
    pairs: int | None = option("--pairs", None, metavar="N", ge=1, default_text="7",
        help="Rounds of each comparison; variants alternate.")
    variants: tuple[str, ...] = option("--variant", (), complete=VARIANTS, metavar="VARIANT",
        default_text="all but compiled",
        help="unet, vae: a variant to compare with the plain call (may be repeated): prepared, batched, channels-last, "
        "compiled, 'chunks of 4', 'chunks of 1'.")
    face: int | None = option("--face", None, metavar="PIXELS", ge=8, default_text="the drawn face; 128 in cost",
        help="hjb, cost: side of the face.")
    iterations: int | None = option("--refine-iters", None, metavar="K", ge=1, default_text="3",
        help="hjb, compare: iterations per step.")
    margin: int | None = option("--margin", None, metavar="LATENTS", ge=0, default_text="8",
        help="hjb: latents around the face in a crop.")
    video: Path | None = option("--video", None, metavar="FILE", default_text="a drawn figure",
        help="preprocess: a video.")
    against: Path | None = option("--against", None, metavar="FOLDER",
        help="compare, card: a clone of the reference implementation. Its code is run, in a process of its own.")
    python: Path | None = option("--python", None, metavar="FILE", default_text="that of sa",
        help="compare, card: Python interpreter that runs the clone.")
    baseline: Path | None = option("--baseline", None, metavar="FILE.json", default_text="those of the package",
        help="gate: recorded counters.")
    accept: bool = option("--accept", False,
        help="gate: record the counters found. card: add the card to your own table, from which --card takes times.")
    rows: tuple[str, ...] = option("--rows", (), metavar="ROW|GROUP", default_text="all",
        help="card: a row or a group of rows, as unet or unet/512x512 (may be repeated).")
    budget: float | None = option("--budget", None, metavar="MINUTES", ge=0, default_text="10",
        help="card: minutes for all rows.")
    small: bool = option("--small", False, help="card: the small model and small sizes, on any device.")
    bench: str | None = option("--bench", None, metavar="puppet|tiktok|DIR", default_text="puppet",
        help="frontier: videos with a ground truth, as `sa evaluate --bench` takes them.")
    data: Path | None = option("--data", None, metavar="DIR", default_text="$SA_DATA",
        help="frontier: folder that holds tiktok/ or another published bench.")
    search: int | None = option("--search", None, metavar="N", ge=1, default_text="4",
        help="frontier: videos, by name, that choose the settings.")
    clips: int | None = option("--clips", None, metavar="N", ge=1, default_text="8",
        help="frontier: further videos that measure them.")
    work: Path | None = option("--work", None, metavar="DIR", default_text="frontier",
        help="frontier: folder of the measurements; the same command resumes them.")
    plot: Path | None = option("--plot", None, metavar="FILE.pdf|png",
        help="frontier: also draw quality against calls. Needs matplotlib.")
    device: str = device_option(None)
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = option("--dtype", "auto",
        help="Floating-point type of the networks.")
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)
        check_device(self.device)
        require(bool(self.names), "NAME", None, f"one or more of {', '.join(NAMES)}")
        for flag, values, choices in (("NAME", self.names, NAMES), ("--variant", self.variants, VARIANTS)):
            for value in values:
                if value not in choices:
                    raise ConfigError(flag, value, f"one of {', '.join(choices)}")
        if self.size is not None and (any(side % STRIDE for side in self.size) or min(self.size) < MIN_SIDE):
            size = "x".join(map(str, self.size))
            raise ConfigError("--size", size, f"sides that are multiples of {STRIDE}, {MIN_SIDE} or more")
        if "card" in self.names and self.names != ("card",):
            raise ConfigError(
                "NAME", " ".join(self.names), "card alone: it has a time budget of its own", hint="sa bench card"
            )
        if "card" in self.names:
            given = (
                ("--size", self.size and dump_size(self.size)), ("--frames", self.frames),
                ("--steps", self.steps), ("--variant", " ".join(self.variants)),
                ("--dtype", None if self.dtype == "auto" else self.dtype),
            )  # fmt: skip
            for flag, value in given:
                if value:
                    hint = "--rows chooses among its rows, --small has small sizes"
                    raise ConfigError(flag, value, "no such option with card, which measures all of them", hint=hint)
        for flag, value, benches in (
            ("--accept", self.accept and "on", ("gate", "card")), ("--video", self.video, ("preprocess",)),
            ("--against", self.against, ("compare", "card")), ("--rows", " ".join(self.rows), ("card",)),
            ("--small", self.small and "on", ("card",)), ("--plot", self.plot, ("frontier",)),
            ("--data", self.data, ("frontier",)), ("--bench", self.bench, ("frontier",)),
            ("--search", self.search, ("frontier",)), ("--clips", self.clips, ("frontier",)),
            ("--work", self.work, ("frontier",)), ("--budget", self.budget, ("card",)),
            ("--refine-iters", self.iterations, ("hjb", "compare")), ("--margin", self.margin, ("hjb",)),
            ("--face", self.face, ("hjb", "cost")), ("--variant", " ".join(self.variants), ("unet", "vae")),
            ("--baseline", self.baseline, ("gate",)), ("--networks", self.networks, _WITH_SIZE),
            ("--size", self.size and "x".join(map(str, self.size)), _WITH_SIZE),
            ("--frames", self.frames, _WITH_FRAMES),
            ("--steps", self.steps, ("sample", "long", "compare")), ("--pairs", self.pairs, _TIMED),
        ):  # fmt: skip
            if value is not None and value is not False and value != "" and not set(benches) & set(self.names):
                hint = f"sa bench {benches[0]} {flag}" if value == "on" else None
                raise ConfigError(flag, str(value), f"the bench {' or '.join(benches)} among NAME", hint=hint)
        if self.against is None and "compare" in self.names:
            raise ConfigError("--against", None, "a clone of the reference implementation", hint=CLONE_HINT)
        if self.python is not None and self.against is None:
            raise ConfigError("--python", str(self.python), "--against FOLDER beside it")

    def value(self, name: str) -> Any:
        """An option of one bench, or its default if it is not given."""
        given = getattr(self, name)
        return DEFAULTS[name] if given is None else given

    @property
    def device_config(self) -> DeviceConfig:
        return DeviceConfig(device=self.device, dtype=self.dtype)
