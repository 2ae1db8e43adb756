"""Options of ``sa animate`` that were given and change nothing beside the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.records import ModelFolder

_OF_OPTIMISATION = (
    "refine_steps", "refine_iters", "refine_lr", "refine_schedule", "refine_target", "refine_anchor", "refine_region",
)  # fmt: skip


def options_without_effect(config: AnimateConfig, model: ModelFolder, flags: Mapping[str, Any]) -> list[str]:
    """One message for each reason. Only ``flags``, by option name, are named: files may hold what they need not."""
    messages = []
    for names, reason in _reasons(config, model, typed=flags.get("refine_face") is not None):
        given = [f"--{name.replace('_', '-')}" for name in names if flags.get(name) is not None]
        if given:
            messages.append(f"{', '.join(given)}: no effect, as {reason}")
    return messages


def _reasons(config: AnimateConfig, model: ModelFolder, *, typed: bool) -> Iterator[tuple[tuple[str, ...], str]]:
    refine, sampling = config.refine, config.sampling
    if refine.face == "off":
        if typed:
            by = "--refine-face off"
        elif config.preset in ("quick", "fast"):
            by = f"preset {config.preset}"
        else:
            by = "by a config file or the model's card"
        yield _OF_OPTIMISATION, f"faces are not optimised ({by}): add --refine-face crop to optimise them"
    elif refine.iterations == 0:
        rest = tuple(name for name in _OF_OPTIMISATION if name != "refine_iters")
        yield rest, "faces are not optimised (no iterations)"
    elif refine.face == "auto" and "face" not in model.files:
        yield _OF_OPTIMISATION, f"faces are not optimised: {model.name} has no face recogniser"
    if max(sampling.guidance) <= 1:
        yield ("guidance_interval",), "a guidance of 1 or less needs no second branch"
    if not config.has_live_preview:
        yield ("preview_every",), "there is no live preview: add --preview live"
