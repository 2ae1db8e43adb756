"""Settings of face optimisation, and the presets that choose them. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from stableanimator_cli.config.schema import check_choices, option, require
from stableanimator_cli.errors import ConfigError

RELEASED_STEPS = (21, 25)  # the reference implementation refines steps 0-20 of 25

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "fast": {"refine_face": "off"},
        "standard": {"refine_face": "auto"},
        "released": {"refine_face": "full", "refine_schedule": "linear", "sampler": "euler"},
        "paper": {
            "refine_face": "full",
            "refine_iters": 10,
            "refine_schedule": "constant",
            "refine_steps": "0:",
            # Heun's correction looks at the next noise level and weighs that slope with the whole step's length: a few
            # long steps down to 0.002 make noise of it, optimised or not (docs/log.md). 25 is what SVD is sampled with.
            "steps": 25,
            "sampler": "heun",
            "churn": 40.0,  # EDM's S_churn, S_min, S_max and S_noise for ImageNet-64 (Karras et al. 2022, Table 5)
            "churn_min": 0.05,
            "churn_max": 50.0,
            "churn_noise": 1.003,
        },
    }
)
"""What ``--preset`` sets, by option name; flags and files win over it, it wins over the model's card."""


Steps = tuple[int | None, int | None]


def parse_steps(value: str | Steps, label: str = "--refine-steps") -> Steps:
    """``"0:21"`` -> (0, 21): denoising steps, half-open, as a Python slice."""
    if isinstance(value, tuple):
        return value
    first, colon, last = value.partition(":") if isinstance(value, str) else ("", "", "")
    try:
        if colon:
            return (int(first) if first.strip() else None), (int(last) if last.strip() else None)
    except ValueError:
        pass
    raise ConfigError(label, value, "A:B, as 0:21", hint="A is the first step that is refined, B the one after them")


def dump_steps(value: Steps | None) -> str | None:
    return None if value is None else ":".join("" if side is None else str(side) for side in value)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineConfig:
    """HJB face optimisation (Algorithm 1). ``face`` ``auto`` is ``crop`` where the model has a recogniser and the
    reference a face, else ``off``. ``steps`` None is the released share, 0:21 of 25, at any number of steps. ``lr``
    is Adam's, ``linear`` with the step or ``constant``. ``region``: compare the face's box, or the whole decoded frame
    as Algorithm 1 is printed. ``mask_dilation`` and ``crop_margin`` are latents round a box that move, and that are
    decoded.

    ``min_csim`` is the identity gate: windows whose faces are less similar are drawn again, up to ``gate_retries``
    times."""

    face: Literal["auto", "off", "full", "crop"] = option("--refine-face", "auto")
    steps: Steps | None = option("--refine-steps", None, parse=parse_steps, dump=dump_steps)
    iterations: int = option("--refine-iters", 3)
    lr: float = option("--refine-lr", 0.1, formerly="rate")
    schedule: Literal["linear", "constant"] = option("--refine-schedule", "linear", renamed={"falling": "linear"})
    anchor: Literal["none", "background"] = option("--refine-anchor", "none")
    region: Literal["box", "frame"] = option("--refine-region", "box")
    min_csim: float | None = option("--min-csim", None)
    gate_retries: int = option("--gate-retries", 0, formerly="redraw", old_flag="--redraw")
    mask_dilation: int = option("refine.mask_dilation", 4, formerly="reach")
    crop_margin: int = option("refine.crop_margin", 8, formerly="margin")

    def __post_init__(self) -> None:
        check_choices(self)
        require(0 <= self.iterations <= 1000, "--refine-iters", self.iterations, "0 to 1000")
        require(0 < self.lr < 100, "--refine-lr", self.lr, "more than 0 and less than 100")
        if self.min_csim is not None:
            require(-1 <= self.min_csim <= 1, "--min-csim", self.min_csim, "a cosine, -1 to 1")
        require(0 <= self.gate_retries <= 100, "--gate-retries", self.gate_retries, "0 to 100")
        require(self.mask_dilation >= 0, "refine.mask_dilation", self.mask_dilation, "0 latents or more")
        require(
            self.crop_margin >= self.mask_dilation,
            "refine.crop_margin",
            self.crop_margin,
            f"{self.mask_dilation} latents (mask_dilation) or more",
        )

    def steps_of(self, total: int) -> tuple[int, int]:
        """The half-open range of refined steps when sampling takes ``total``."""
        if self.steps is None:
            refined, of = RELEASED_STEPS
            return 0, -(-refined * total // of)
        chosen = range(total)[slice(*self.steps)]
        return chosen.start, chosen.stop
