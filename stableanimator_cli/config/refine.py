"""Settings of face optimisation, and the presets that choose them. Standard library only."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from stableanimator_cli.config.parse import dump_range
from stableanimator_cli.config.schema import check_fields, option, require
from stableanimator_cli.errors import ConfigError

RELEASED_STEPS = (21, 25)  # the reference implementation refines steps 0-20 of 25

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # measured by `sa bench frontier` on drawn figures (docs/performance.md); unknown of other weights
        "quick": {
            "refine_face": "off",
            "steps": 5,
            "schedule": "karras",
            "sampler": "euler",
            "guidance_interval": "0.3:200",  # all levels but the highest, which is noise alone, and the lowest
        },
        "fast": {"refine_face": "off"},
        # Late steps only: what earlier ones change is gone at the end, and two iterations there gained as much by a
        # recogniser that was not optimised as 21 times three (docs/log.md, 2026-11-29)
        "standard": {"refine_face": "auto", "refine_steps": "0.7:0.84", "refine_iters": 2},
        "released": {"refine_face": "full", "refine_schedule": "linear", "sampler": "euler"},
        "paper": {
            "refine_face": "full",
            "refine_iters": 10,
            "refine_schedule": "constant",
            "refine_steps": "0:",
            # Heun's correction evaluates at the next noise level and weighs that slope with the full step's length: a
            # few long steps down to 0.002 end in noise, optimised or not (docs/log.md). SVD is sampled with 25.
            "steps": 25,
            "sampler": "heun",
            "churn": 40.0,  # EDM's S_churn, S_min, S_max and S_noise for ImageNet-64 (Karras et al. 2022, Table 5)
            "churn_min": 0.05,
            "churn_max": 50.0,
            "churn_noise": 1.003,
        },
    }
)
"""Options that ``--preset`` sets, by name. Flags and files win over them. They win over the model's card if the preset
was requested; the card wins over the preset that it names, and over ``standard`` of a run without one."""


Steps = tuple[int | float | None, int | float | None]


def parse_steps(value: str | Steps, label: str = "--refine-steps") -> Steps:
    """``"0:21"`` -> (0, 21): denoising steps, half-open, as a Python slice. ``"0.7:0.84"``: fractions of the run."""
    text = dump_range(value) if isinstance(value, tuple) else value
    first, colon, last = text.partition(":") if isinstance(text, str) else ("", "", "")
    with contextlib.suppress(ValueError):
        if colon:
            return _parse_side(first.strip()), _parse_side(last.strip())
    expected = "A:B, as 0:21, or fractions of the run from 0.0 to 1.0, as 0.7:0.84"
    raise ConfigError(label, value, expected, hint="A is the first refined step, B the one after the last")


def _parse_side(text: str) -> int | float | None:
    """A step, a fraction (with a decimal point), or None. Raises ``ValueError``."""
    if not text:
        return None
    if "." not in text:
        return int(text)
    fraction = float(text)
    if not 0 <= fraction <= 1:
        raise ValueError(text)
    return fraction


def preset_options(name: str, file: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of a preset beside a config file.

    A file that was written in full, as ``to_toml`` and records do, leaves ``refine.steps`` out where it is the released
    share. Presets that came later do not change that.
    """
    preset = PRESETS.get(name, {})
    written = file.get("refine", {})
    in_full = isinstance(written, Mapping) and ("crop_margin" in written or "margin" in written)  # its older name
    if in_full and "steps" not in written:
        return {option: value for option, value in preset.items() if option != "refine_steps"}
    return preset


REFINE = "Keeping the face (HJB optimisation)"
"""Panel of the help."""

ONE_FRAME = "the same frame cannot be moved towards several faces; add --person largest to animate one person"
"""Hint of ``--refine-region frame`` with several people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineConfig:
    """HJB face optimisation (Algorithm 1) and the identity gate.

    ``face`` ``auto`` is ``crop`` if the model has a recogniser and the reference a face, else ``off``. ``steps`` None
    is the released share, 0:21 of 25, of any number of steps. ``mask_dilation`` and ``crop_margin`` are latents around
    a face box that change, and that are decoded. ``checkpointing`` of ``full`` recomputes the decoder's blocks in the
    backward pass: a tenth of the memory, a third more work; ``auto`` is ``on`` unless the predicted memory is there.
    """

    # fmt: off
    face: Literal["auto", "off", "full", "crop"] = option("--refine-face", "auto", model_default=True, panel=REFINE,
        help="full: decode full frames; Adam then changes the full image a little, background included. crop: decode "
        "the face and its surroundings only; the background is unchanged.")
    steps: Steps | None = option("--refine-steps", None, model_default=True, parse=parse_steps, dump=dump_range,
        metavar="A:B", panel=REFINE,
        default_text="0.7:0.84 by preset standard, 0: by paper, else 0:21 of 25, in proportion",
        help="Denoising steps that are refined, half-open: 14:21, or fractions of the run with a decimal point, "
        "0.7:0.84.")
    iterations: int = option("--refine-iters", 3, model_default=True, metavar="K", panel=REFINE, ge=0, le=1000,
        default_text="2 by preset standard, 10 by paper, else 3",
        help="Adam iterations per step, 0 to 1000.")
    lr: float = option("--refine-lr", 0.1, model_default=True, formerly="rate", metavar="X", panel=REFINE, gt=0, lt=100,
        help="Learning rate of Adam, above 0.")
    schedule: Literal["linear", "constant"] = option("--refine-schedule", "linear", model_default=True,
        renamed={"falling": "linear"}, panel=REFINE,
        help="The learning rate decreases as 1 - step/steps, or is constant.")
    target: float | None = option("--refine-target", None, metavar="X", panel=REFINE, default_text="none", gt=-1, le=1,
        help="Stop optimising a face in a step once its similarity is X (cosine): fewer iterations, the same on every "
        "machine.")
    anchor: Literal["none", "background"] = option("--refine-anchor", "none", model_default=True, panel=REFINE,
        help="background: only the surroundings of a face change, in full mode too.")
    region: Literal["box", "frame"] = option("--refine-region", "box", model_default=True, panel=REFINE,
        help="Compare the face box with the reference's face, or the full frame as Algorithm 1 is printed, for "
        "one person.")
    min_csim: float | None = option("--min-csim", None, metavar="X", panel=REFINE, default_text="no gate", ge=-1,
        le=1,
        help="Minimum similarity (cosine, -1 to 1) of each window's faces to the reference; exit code 8 below it.")
    gate_retries: int = option("--gate-retries", 0, formerly="redraw", old_flag="--redraw", metavar="N",
        panel=REFINE, ge=0, le=100,
        help="Sample windows that fail --min-csim again with other noise, at most N times.")
    checkpointing: Literal["auto", "on", "off"] = option("refine.checkpointing", "auto")
    mask_dilation: int = option("refine.mask_dilation", 4, formerly="reach", ge=0)
    crop_margin: int = option("refine.crop_margin", 8, formerly="margin")
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)
        minimum = f"{self.mask_dilation} latents (mask_dilation) or more"
        require(self.crop_margin >= self.mask_dilation, "refine.crop_margin", self.crop_margin, minimum)

    def steps_of(self, total: int) -> tuple[int, int]:
        """The half-open range of refined steps among ``total`` sampling steps."""
        if self.steps is None:
            refined, of = RELEASED_STEPS
            return 0, -(-refined * total // of)
        first, last = self.steps
        if isinstance(first, float):
            first = math.floor(round(first * total, 6))
        if isinstance(last, float):
            last = math.ceil(round(last * total, 6))
        chosen = range(total)[slice(first, last)]
        return chosen.start, chosen.stop
