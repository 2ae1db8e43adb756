"""Settings chosen so that a rendering fits (``--max-memory``): exact ways first, then those that change the result.

Each way is asked about the stage that needs most, and answers with other settings or with None where it does not help
there. The first that helps is taken and the need counted again (``memory.Prediction``), until it is small enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.engine.compilation import pays_to_compile
from stableanimator_cli.engine.memory.render import MemoryEstimator
from stableanimator_cli.errors import OutOfMemory


@dataclass(frozen=True, slots=True)
class Choice:
    """One setting that was changed to make a run fit, and what that does to the result."""

    what: str
    error: str

    def __str__(self) -> str:
        return f"{self.what} ({self.error})"


_EXACT = "exact"
_MOVED = "exact, and slow: every network call moves the UNet's weights"
_ROUNDING = "equal within rounding"
_BORDERS = "approximate: other frames are decoded together, chunk borders may show"
_QUANTIZED = "approximate: one byte a weight, about 1 % of a layer's answer"
_SHORTER = "approximate: the network sees fewer frames at once"


def fit_to_limit(config: AnimateConfig, prediction: MemoryEstimator) -> tuple[AnimateConfig, tuple[Choice, ...]]:
    """Settings that bring a run below ``config.device.max_memory`` bytes, exact ways first, and what was changed.

    The result has ``max_memory`` None. Raises ``OutOfMemory`` if no combination is small enough.
    """
    limit = config.device.max_memory
    if limit is None:
        return config, ()
    changed: dict[str, Choice] = {}
    while (memory := prediction.of(config)).total > limit:
        found = [way for step in _WAYS if (way := step(config, memory.worst, prediction)) is not None]
        if not found:
            given = f"--max-memory {limit / 1e9:g}GB ({limit / 2**30:.2f} GiB)"
            raise OutOfMemory(
                f"{given}: the smallest prediction found is {memory.describe()}",
                hint="use a smaller --size" + ("" if prediction.dtype.itemsize == 2 else ", or --dtype bfloat16"),
            )
        config, choice = found[0]
        changed[choice.what.split(" ")[0]] = choice
    if pays_to_compile(config, prediction.device, prediction.size, prediction.frames):
        config = _device(config, compile="blocks")
        changed["--compile"] = Choice("--compile blocks", f"{_ROUNDING}; a run this long makes up for compiling")
    return replace(config, device=replace(config.device, max_memory=None)), tuple(changed.values())


Way = Callable[[AnimateConfig, str, MemoryEstimator], "tuple[AnimateConfig, Choice] | None"]


def _swap(config: AnimateConfig, stage: str, at: MemoryEstimator) -> tuple[AnimateConfig, Choice] | None:
    if config.device.offload != "none" or at.device.type == "cpu":
        return None
    what = "--offload model" + (" without --cuda-graphs" if config.device.cuda_graphs else "")
    return _device(config, offload="model", cuda_graphs=False), Choice(what, _EXACT)


def _groups(config: AnimateConfig, stage: str, at: MemoryEstimator) -> tuple[AnimateConfig, Choice] | None:
    if stage != "UNet" or config.device.offload != "model" or at.device.type == "cpu":
        return None
    return _device(config, offload="group"), Choice("--offload group", _MOVED)


def _pieces(config: AnimateConfig, stage: str, at: MemoryEstimator) -> tuple[AnimateConfig, Choice] | None:
    pieces = 4 * config.device.ff_chunks
    if stage != "UNet" or pieces > 16:
        return None
    return _device(config, ff_chunks=pieces), Choice(f"--ff-chunks {pieces}", _ROUNDING)


def _poses(config: AnimateConfig, stage: str, at: MemoryEstimator) -> tuple[AnimateConfig, Choice] | None:
    least = 1
    if stage not in ("UNet", "face optimisation") or config.device.pose_budget_mb == least:
        return None
    return _device(config, pose_budget_mb=least), Choice(f"device.pose_budget_mb {least}", _EXACT)


def _chunk(config: AnimateConfig, stage: str, at: MemoryEstimator) -> tuple[AnimateConfig, Choice] | None:
    chunk = min(config.decode.chunk, at.frames) // 2
    if stage not in ("VAE decoder", "face optimisation") or chunk < 1:
        return None
    decode = replace(config.decode, chunk=chunk, overlap=min(config.decode.overlap, chunk // 2))
    return replace(config, decode=decode), Choice(f"--decode-chunk {chunk}", _BORDERS)


def _features(config: AnimateConfig, stage: str, at: MemoryEstimator) -> tuple[AnimateConfig, Choice] | None:
    if stage not in ("UNet", "face optimisation") or config.sampling.cache_features == 1:
        return None
    return replace(config, sampling=replace(config.sampling, cache_features=1)), Choice("--cache-features off", _EXACT)


def _quantized(config: AnimateConfig, stage: str, at: MemoryEstimator) -> tuple[AnimateConfig, Choice] | None:
    held = config.device.offload == "none" or stage == "UNet"
    if not held or config.device.quantization != "plain":
        return None
    return _device(config, quantization="int8"), Choice("--quantize int8", _QUANTIZED)


def _window(config: AnimateConfig, stage: str, at: MemoryEstimator) -> tuple[AnimateConfig, Choice] | None:
    length = min(config.windows.length, at.frames) // 2
    if stage != "UNet" or length < 4:
        return None
    windows = replace(config.windows, length=length, overlap=min(config.windows.overlap, length // 4))
    return replace(config, windows=windows), Choice(f"--window {length}", _SHORTER)


_WAYS: tuple[Way, ...] = (_swap, _pieces, _poses, _features, _groups, _chunk, _quantized, _window)


def _device(config: AnimateConfig, **changes: Any) -> AnimateConfig:
    return replace(config, device=replace(config.device, **changes))
