"""Choose settings so that a rendering fits into ``--max-memory``: exact ones first, then approximations.

Each step sees the stage that needs most memory, and returns other settings, or None if it does not help there. The
first step that helps is applied and the memory estimated again, until it is below the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.engine.compilation import pays_to_compile
from stableanimator_cli.engine.memory.render import MemoryEstimator
from stableanimator_cli.errors import OutOfMemory


@dataclass(frozen=True, slots=True)
class Choice:
    """A changed setting and its effect on the result."""

    what: str
    error: str

    def __str__(self) -> str:
        return f"{self.what} ({self.error})"


Change = tuple[AnimateConfig, Choice] | None

_EXACT = "exact"
_OFFLOADED = "exact but slow: every call moves the weights of the network"
_ROUNDING = "equal within rounding"
_BORDERS = "approximate: chunk borders may be visible"
_QUANTIZED = "approximate: one byte per weight, error of about 1 % of a layer's output"
_SHORTER = "approximate: shorter windows"


def fit_to_limit(config: AnimateConfig, estimator: MemoryEstimator) -> tuple[AnimateConfig, tuple[Choice, ...]]:
    """Settings that fit into ``config.device.max_memory`` bytes, with ``max_memory`` None, and the changes.

    Raises ``OutOfMemory`` if no combination is small enough.
    """
    limit = config.device.max_memory
    if limit is None:
        return config, ()
    # the limit decides on checkpoints, not this machine's memory: they are exact, and some steps are not
    estimator = replace(estimator, available=min(limit, estimator.available or limit))
    changed: dict[str, Choice] = {}
    while (memory := estimator.of(config)).total > limit:
        steps = _STEPS[estimator.model.facts.denoiser]
        change: Change = next(filter(None, (step(config, memory.worst, estimator) for step in steps)), None)
        if change is None:
            limit_text = f"--max-memory {limit / 1e9:g}GB ({limit / 2**30:.2f} GiB)"
            raise OutOfMemory(
                f"{limit_text} is too small; the minimum is {memory.describe()}",
                hint=_hint(memory.worst, estimator),
            )
        config, choice = change
        changed[choice.what.split(" ")[0]] = choice
    if pays_to_compile(config, estimator.device, estimator.size, estimator.frames):
        config = _device(config, compile="blocks")
        changed["--compile"] = Choice("--compile blocks", f"{_ROUNDING}; worth its compile time in a run this long")
    if config.refine.face == "full":
        checkpointing = "on" if estimator.checkpointed(config) else "off"
        config = replace(config, refine=replace(config.refine, checkpointing=checkpointing))
    return replace(config, device=replace(config.device, max_memory=None)), tuple(changed.values())


def _hint(stage: str, estimator: MemoryEstimator) -> str:
    if stage == "motion detection":
        return "detect the motion before: `sa preprocess MOTION -o DATASET`, then animate after the clip folder"
    return "use a smaller --size" + ("" if estimator.dtype.itemsize == 2 else ", or --dtype bfloat16")


def _offload_model(config: AnimateConfig, stage: str, estimator: MemoryEstimator) -> Change:
    if config.device.offload != "none" or estimator.device.type == "cpu":
        return None
    what = "--offload model" + (" without --cuda-graphs" if config.device.cuda_graphs else "")
    return _device(config, offload="model", cuda_graphs=False), Choice(what, _EXACT)


def _offload_group(config: AnimateConfig, stage: str, estimator: MemoryEstimator) -> Change:
    denoises = stage == estimator.model.facts.denoiser
    if not denoises or config.device.offload != "model" or estimator.device.type == "cpu":
        return None
    return _device(config, offload="group"), Choice("--offload group", _OFFLOADED)


def _ff_chunks(config: AnimateConfig, stage: str, estimator: MemoryEstimator) -> Change:
    chunks = 4 * config.device.ff_chunks
    if stage != "UNet" or chunks > 16:
        return None
    return _device(config, ff_chunks=chunks), Choice(f"--ff-chunks {chunks}", _ROUNDING)


def _pose_budget(config: AnimateConfig, stage: str, estimator: MemoryEstimator) -> Change:
    if stage not in ("UNet", "face optimisation") or config.device.pose_budget_mb <= 1:
        return None
    return _device(config, pose_budget_mb=1), Choice("device.pose_budget_mb 1", _EXACT)


def _decode_chunk(config: AnimateConfig, stage: str, estimator: MemoryEstimator) -> Change:
    chunk = min(config.decode.chunk, estimator.frames) // 2
    if stage not in ("VAE decoder", "face optimisation") or chunk < 1:
        return None
    decode = replace(config.decode, chunk=chunk, overlap=min(config.decode.overlap, chunk // 2))
    return replace(config, decode=decode), Choice(f"--decode-chunk {chunk}", _BORDERS)


def _cache_features(config: AnimateConfig, stage: str, estimator: MemoryEstimator) -> Change:
    if stage not in ("UNet", "face optimisation") or config.sampling.cache_features == 1:
        return None
    return replace(config, sampling=replace(config.sampling, cache_features=1)), Choice("--cache-features off", _EXACT)


def _quantization(config: AnimateConfig, stage: str, estimator: MemoryEstimator) -> Change:
    resident = config.device.offload == "none" or stage == "UNet"
    if not resident or config.device.quantization != "plain":
        return None
    return _device(config, quantization="int8"), Choice("--quantize int8", _QUANTIZED)


def _window(config: AnimateConfig, stage: str, estimator: MemoryEstimator) -> Change:
    length = min(config.windows.length, estimator.frames) // 2
    if stage != "UNet" or length < 4:
        return None
    windows = replace(config.windows, length=length, overlap=min(config.windows.overlap, length // 4))
    return replace(config, windows=windows), Choice(f"--window {length}", _SHORTER)


def _face_chunk(config: AnimateConfig, stage: str, estimator: MemoryEstimator) -> Change:
    """Fewer frames that face optimisation decodes together; the video itself is decoded one latent after the other."""
    chunk = config.decode.chunk // 2
    if stage != "face optimisation" or chunk < estimator.model.facts.frame_stride:
        return None
    what = Choice(f"--decode-chunk {chunk}", "approximate: gradients end at a chunk's first latent")
    return replace(config, decode=replace(config.decode, chunk=chunk)), what


def _fp8(config: AnimateConfig, stage: str, estimator: MemoryEstimator) -> Change:
    resident = config.device.offload == "none" or stage == estimator.model.facts.denoiser
    if not resident or config.device.quantization != "plain":
        return None
    return _device(config, quantization="fp8"), Choice("--quantize fp8", "approximate: one byte per weight")


def _segment(config: AnimateConfig, stage: str, estimator: MemoryEstimator) -> Change:
    """Shorter segments, whose frames still fill the latents."""
    stride = estimator.model.facts.frame_stride
    length = config.windows.length // 2 // stride * stride + 1
    if stage == "text encoder" or length <= max(2 * config.windows.overlap, stride) or length >= config.windows.length:
        return None
    return replace(config, windows=replace(config.windows, length=length)), Choice(f"--window {length}", _SHORTER)


_STEPS: Mapping[str, tuple[Callable[[AnimateConfig, str, MemoryEstimator], Change], ...]] = {
    "UNet": (
        _offload_model,
        _ff_chunks,
        _pose_budget,
        _cache_features,
        _offload_group,
        _decode_chunk,
        _quantization,
        _window,
    ),
    "Transformer": (_offload_model, _offload_group, _face_chunk, _fp8, _segment),
}
"""By the kind of network that denoises."""


def _device(config: AnimateConfig, **changes: Any) -> AnimateConfig:
    return replace(config, device=replace(config.device, **changes))
