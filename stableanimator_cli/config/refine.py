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
        "released": {"refine_face": "full", "refine_schedule": "falling", "sampler": "euler"},
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
    reference a face, else ``off``. ``steps`` None is the released share, 0:21 of 25, at any number of steps. ``rate``
    is Adam's, ``falling`` with the step or ``constant``. ``region``: compare the face's box, or the whole decoded frame
    as Algorithm 1 is printed. ``reach`` and ``margin`` are latents round a box that move, and that are decoded.

    ``min_csim`` is the identity gate: windows whose faces are less similar are drawn again, up to ``redraw`` times."""

    face: Literal["auto", "off", "full", "crop"] = option("--refine-face", "auto")
    steps: Steps | None = option("--refine-steps", None, parse=parse_steps, dump=dump_steps)
    iterations: int = option("--refine-iters", 3)
    rate: float = option("--refine-lr", 0.1)
    schedule: Literal["falling", "constant"] = option("--refine-schedule", "falling")
    anchor: Literal["none", "background"] = option("--refine-anchor", "none")
    region: Literal["box", "frame"] = option("--refine-region", "box")
    min_csim: float | None = option("--min-csim", None)
    redraw: int = option("--redraw", 0)
    reach: int = option("refine.reach", 4)
    margin: int = option("refine.margin", 8)

    def __post_init__(self) -> None:
        check_choices(self)
        require(0 <= self.iterations <= 1000, "--refine-iters", self.iterations, "0 to 1000")
        require(0 < self.rate < 100, "--refine-lr", self.rate, "more than 0 and less than 100")
        if self.min_csim is not None:
            require(-1 <= self.min_csim <= 1, "--min-csim", self.min_csim, "a cosine, -1 to 1")
        require(0 <= self.redraw <= 100, "--redraw", self.redraw, "0 to 100")
        require(self.reach >= 0, "refine.reach", self.reach, "0 latents or more")
        require(self.margin >= self.reach, "refine.margin", self.margin, f"{self.reach} latents (reach) or more")

    def steps_of(self, total: int) -> tuple[int, int]:
        """The half-open range of refined steps when sampling takes ``total``."""
        if self.steps is None:
            refined, of = RELEASED_STEPS
            return 0, -(-refined * total // of)
        chosen = range(total)[slice(*self.steps)]
        return chosen.start, chosen.stop
