"""Settings of face optimisation, and the presets that choose them. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from stableanimator_cli.config.schema import check_fields, option, require
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


# Panels of the help.
REFINE = "Keeping the face (HJB optimisation)"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineConfig:
    """HJB face optimisation (Algorithm 1). ``face`` ``auto`` is ``crop`` where the model has a recogniser and the
    reference a face, else ``off``. ``steps`` None is the released share, 0:21 of 25, at any number of steps. ``lr``
    is Adam's, ``linear`` with the step or ``constant``. ``region``: compare the face's box, or the whole decoded frame
    as Algorithm 1 is printed. ``mask_dilation`` and ``crop_margin`` are latents round a box that move, and that are
    decoded.

    ``min_csim`` is the identity gate: windows whose faces are less similar are drawn again, up to ``gate_retries``
    times."""

    # fmt: off
    face: Literal["auto", "off", "full", "crop"] = option("--refine-face", "auto", panel=REFINE,
        help="full: decode whole frames; Adam then moves the whole picture a little, background too. crop: decode "
        "the face and what is near it only; the background is left alone.")
    steps: Steps | None = option("--refine-steps", None, parse=parse_steps, dump=dump_steps, metavar="A:B",
        panel=REFINE, default_text="0:21 of 25, in proportion", help="Denoising steps that are refined, half-open.")
    iterations: int = option("--refine-iters", 3, metavar="K", panel=REFINE, ge=0, le=1000,
        help="Adam iterations a step, 0 to 1000.")
    lr: float = option("--refine-lr", 0.1, formerly="rate", metavar="X", panel=REFINE, gt=0, lt=100,
        help="Adam's rate, above 0.")
    schedule: Literal["linear", "constant"] = option("--refine-schedule", "linear", renamed={"falling": "linear"},
        panel=REFINE, help="The rate falls as 1 - step/steps, or stays.")
    anchor: Literal["none", "background"] = option("--refine-anchor", "none", panel=REFINE,
        help="background: what is not near a face stays as it is, in full mode too.")
    region: Literal["box", "frame"] = option("--refine-region", "box", panel=REFINE,
        help="What is compared with the reference's face: its box, or the whole frame.")
    min_csim: float | None = option("--min-csim", None, metavar="X", panel=REFINE, default_text="no gate", ge=-1,
        le=1,
        help="Least similarity (cosine, -1 to 1) of each window's faces to the reference; exit code 8 below it.")
    gate_retries: int = option("--gate-retries", 0, formerly="redraw", old_flag="--redraw", metavar="N",
        panel=REFINE, ge=0, le=100,
        help="Draw windows that fail --min-csim again with other noise, N times at most.")
    mask_dilation: int = option("refine.mask_dilation", 4, formerly="reach", ge=0)
    crop_margin: int = option("refine.crop_margin", 8, formerly="margin")
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)
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
