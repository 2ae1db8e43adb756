"""What a run is asked to do: frozen dataclasses that check themselves and whose errors name the flag.

``resolve`` merges flags over a TOML file over a model's defaults over the defaults below; ``to_toml`` writes the result
so that the same run can be asked for again. Paths in a file mean what they would mean on the command line: they are
relative to the working directory. Standard library only.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Literal

from stableanimator_cli.config.refine import RefineConfig
from stableanimator_cli.config.schema import (
    check_choices,
    from_mapping,
    load,
    option,
    require,
    resolve,
    to_toml,
)
from stableanimator_cli.errors import ConfigError

__all__ = [
    "AnimateConfig",
    "DecodeConfig",
    "DeviceConfig",
    "RefineConfig",
    "SamplingConfig",
    "WindowConfig",
    "from_mapping",
    "load",
    "parse_bytes",
    "parse_fps",
    "parse_guidance",
    "parse_range",
    "parse_size",
    "resolve",
    "to_toml",
]

Size = tuple[int, int]
Range = tuple[int | None, int | None]
Guidance = tuple[float, float]
MAX_FPS = 1000
_LONGEST_RATE = 24  # characters
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "mib": 2**20, "gib": 2**30, "tib": 2**40}


LARGEST_SIDE = 16384  # pixels: x264 encodes no larger frame


def parse_size(value: str | Size, label: str = "--size") -> Size:
    """``"576x1024"`` -> (width, height) in pixels."""
    if isinstance(value, tuple):
        return value
    match = re.fullmatch(r"\s*([1-9]\d{0,4})\s*[xX×]\s*([1-9]\d{0,4})\s*", value) if isinstance(value, str) else None
    size = (0, 0) if match is None else (int(match[1]), int(match[2]))
    if not 1 <= min(size) <= max(size) <= LARGEST_SIDE:
        raise ConfigError(label, value, f"WxH in pixels, each 1 to {LARGEST_SIDE}, as 576x1024")
    return size


def parse_range(value: str | Range, label: str = "--frames") -> Range:
    """``"A:B"`` -> (A, B), half-open and with the meaning of a Python slice; either side may be left out."""
    if isinstance(value, tuple):
        return value
    match = re.fullmatch(r"\s*(-?\d{1,9})?\s*:\s*(-?\d{1,9})?\s*", value) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(
            label, value, "A:B, as 0:48, 10: or :100", hint="A is the first frame, B the one after the last"
        )
    return (None if match[1] is None else int(match[1])), (None if match[2] is None else int(match[2]))


def parse_guidance(value: str | float | Guidance, label: str = "--guidance") -> Guidance:
    """``"3"`` -> (3.0, 3.0); ``"1:3"`` -> (1.0, 3.0), a linear rise from the first frame to the last."""
    if isinstance(value, tuple):
        return value
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        first, colon, last = str(value).partition(":")
        return float(first), float(last if colon else first)
    except ValueError:
        raise ConfigError(label, value, "a number, or FIRST:LAST as 1:3") from None


_INTERVAL = "LO:HI, noise levels from 0 on, LO below HI, as 0.5:50"


def parse_interval(value: str | Guidance, label: str = "--guidance-interval") -> Guidance:
    """``"0.5:50"`` -> (0.5, 50.0): noise levels, the first left out and the last included."""
    if isinstance(value, tuple):
        return value
    try:
        low, colon, high = str(value).partition(":")
        if not isinstance(value, str) or not colon:
            raise ValueError
        return float(low), float(high)
    except ValueError:
        raise ConfigError(label, value, _INTERVAL) from None


def parse_cache_interval(value: str | int, label: str = "--cache-features") -> int:
    """``"3"`` -> 3, every third step computed whole; ``"off"`` -> 1, every step."""
    if value == "off":
        return 1
    text = value if isinstance(value, str) else "" if isinstance(value, bool) else str(value)
    if not re.fullmatch(r"\s*[0-9]{1,4}\s*", text) or int(text) < 2:
        raise ConfigError(label, value, "off, or a number of steps, 2 or more")
    return int(text)


def _dump_reuse(steps: int) -> int | str:
    return "off" if steps == 1 else steps


def parse_fps(value: str | float | Fraction, label: str = "--fps") -> Fraction:
    """Frames a second, exactly: ``"30000/1001"``, ``"25"`` or ``"29.97"``.

    The rounded names of the NTSC family (23.976, 29.97, 59.94 ...) mean n * 1000/1001, as in SMPTE 170M: 29.97 is
    30000/1001 and not 2997/100.
    """
    if isinstance(value, Fraction):
        return value
    expected = "frames a second, as 25, 29.97 or 30000/1001"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(label, value, expected)
    text = str(value).strip()
    try:
        number = Decimal(0) if "/" in text else Decimal(text)
        # 1e999999999 would be a number of a billion digits
        far = len(text) > _LONGEST_RATE or not number.is_finite() or (number != 0 and abs(number.adjusted()) > 9)
        rate = Fraction(0) if far else Fraction(text) if "/" in text else Fraction(number)
    except (ValueError, ArithmeticError):
        raise ConfigError(label, value, expected) from None
    require(0 < rate <= MAX_FPS, label, value, f"{expected}, at most {MAX_FPS}")
    digits = len(text.partition(".")[2])
    for nominal in (24, 30, 48, 60, 120):
        exact = Fraction(nominal * 1000, 1001)
        if digits in (2, 3) and rate == round(exact, digits):
            return exact
    return rate


def parse_bytes(value: object, label: str = "--max-memory") -> int:
    """``"6GB"`` -> 6 * 10**9; ``"22GiB"`` -> 22 * 2**30; bytes alone, but below a mebibyte a unit was forgotten."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*", value) if isinstance(value, str) else None
    unit = _UNITS.get(match[2].lower()) if match else None
    forgotten = match is not None and not match[2] and float(match[1]) < 2**20
    if match is None or unit is None or float(match[1]) <= 0 or forgotten:
        raise ConfigError(label, value, "an amount of memory with its unit, as 24GB or 22GiB")
    return round(float(match[1]) * unit)


def dump_size(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def dump_range(frames: Range) -> str:
    return ":".join("" if side is None else str(side) for side in frames)


def _dump_guidance(guidance: Guidance) -> float | str:
    first, last = guidance
    return first if first == last else f"{first:g}:{last:g}" if _short(first, last) else f"{first!r}:{last!r}"


def _dump_interval(interval: Guidance) -> str:
    return ":".join(f"{level:g}" if _short(level) else repr(level) for level in interval)


def _short(*numbers: float) -> bool:
    return all(float(f"{number:g}") == number for number in numbers)


def _finite(value: float, least: float = 0.0) -> bool:
    return math.isfinite(value) and value >= least


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How a latent is denoised.

    ``guidance`` rises linearly from the first frame of the whole video to its last; outside of ``guidance_interval``
    of noise levels (LO left out, HI included) there is none, an approximation that is off by default. ``noise``:
    ``fresh`` draws noise a frame, ``repeat`` repeats one window's noise. ``churn`` is EDM's S_churn over the whole run.
    Every ``cache_features``-th step is computed whole, and those between take its deep features: only the
    network's last ``cache_layers`` layers, and what leads to them, are computed then, which is approximate as well.
    ``noise_aug`` is the standard deviation of the noise on the reference picture; ``motion_bucket`` and
    ``conditioning_fps`` are what the network is told (Stable Video Diffusion's micro-conditioning), not what is written
    to the file.
    """

    steps: int = option("--steps", 25)
    guidance: Guidance = option("--guidance", (3.0, 3.0), parse=parse_guidance, dump=_dump_guidance)
    guidance_interval: Guidance | None = option("--guidance-interval", None, parse=parse_interval, dump=_dump_interval)
    cache_features: int = option("--cache-features", 1, parse=parse_cache_interval, dump=_dump_reuse)
    cache_layers: int = option("sampling.cache_layers", 2)
    sampler: Literal["euler", "heun"] = option("--sampler", "euler")
    churn: float = option("--churn", 0.0)
    churn_min: float = option("sampling.churn_min", 0.0)
    churn_max: float = option("sampling.churn_max", 1000.0)
    churn_noise: float = option("sampling.churn_noise", 1.0)
    noise: Literal["repeat", "fresh"] = option("--noise", "fresh")
    noise_aug: float = option("--noise-aug", 0.02)
    motion_bucket: float = option("--motion-bucket", 127.0)
    conditioning_fps: int = option("sampling.conditioning_fps", 7)
    seed: int = option("--seed", 0)

    def __post_init__(self) -> None:
        check_choices(self)
        require(1 <= self.steps <= 1000, "--steps", self.steps, "1 to 1000")
        require(all(map(_finite, self.guidance)), "--guidance", _dump_guidance(self.guidance), "0 or more")
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            holds = _finite(low) and _finite(high) and low < high
            require(holds, "--guidance-interval", _dump_interval(self.guidance_interval), _INTERVAL)
        require(self.cache_features >= 1, "--cache-features", self.cache_features, "off, or 2 steps or more")
        require(self.cache_layers >= 1, "sampling.cache_layers", self.cache_layers, "1 layer or more")
        require(_finite(self.churn), "--churn", self.churn, "0 or more")
        for name in ("churn_min", "churn_max", "churn_noise"):
            require(_finite(getattr(self, name)), f"sampling.{name}", getattr(self, name), "0 or more")
        most = f"at most sampling.churn_max ({self.churn_max:g})"
        require(self.churn_min <= self.churn_max, "sampling.churn_min", self.churn_min, most)
        require(_finite(self.noise_aug), "--noise-aug", self.noise_aug, "0 or more")
        require(_finite(self.motion_bucket), "--motion-bucket", self.motion_bucket, "0 or more")
        require(
            self.conditioning_fps >= 1, "sampling.conditioning_fps", self.conditioning_fps, "a whole number, 1 or more"
        )
        require(0 <= self.seed < 2**63, "--seed", self.seed, "0 to 2**63 - 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowConfig:
    """How a long video is cut: windows of ``length`` frames that share ``overlap`` with the next, joined by ``blend``
    (``upstream`` as the reference implementation does, ``smooth`` by raised cosines, ``shifted`` by these and elsewhere
    in every step, with one window more); ``anchor`` is the picture that later windows are conditioned on."""

    length: int = option("--window", 16)
    overlap: int = option("--overlap", 4)
    blend: Literal["upstream", "smooth", "shifted"] = option("--blend", "smooth")
    anchor: Literal["first", "reference"] = option("--anchor", "first")

    def __post_init__(self) -> None:
        check_choices(self)
        require(self.length >= 1, "--window", self.length, "1 frame or more")
        most = self.length - 1
        require(0 <= self.overlap <= most, "--overlap", self.overlap, f"0 to {most} (less than --window)")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeConfig:
    """How latents become pixels: ``chunk`` frames at a time, of which ``overlap`` were in the chunk before."""

    chunk: int = option("--decode-chunk", 4)
    overlap: int = option("--decode-overlap", 0)

    def __post_init__(self) -> None:
        require(self.chunk >= 1, "--decode-chunk", self.chunk, "1 frame or more")
        most = self.chunk - 1
        require(0 <= self.overlap <= most, "--decode-overlap", self.overlap, f"0 to {most} (less than --decode-chunk)")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """Where it runs, in how many processes (``gpus``: each takes a card), and in what type of number.
    ``offload = "model"`` keeps one network on the device at a time, ``"group"`` of the UNet one block;
    ``pose_budget_mb`` is the memory that pose features may fill, in MiB; ``ff_chunks`` is how many parts the UNet's
    feed-forward layers are computed in; ``compile``: its blocks are compiled; ``cuda_graphs``: its calls are recorded
    and replayed; ``channels_last``: how kernels of convolutions lie in memory; ``tf32``: float32 is computed in TF32.
    ``quantization`` is how the UNet's lie there; ``max_memory`` bytes: what of all this, of windows and of decoding
    has to change for the run to stay below it is chosen, and then it is None."""

    device: str = option("--device", "auto")
    gpus: int = option("--gpus", 1)
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = option("--dtype", "auto")
    offload: Literal["none", "model", "group"] = option(
        "--offload", "none", renamed={"swap": "model", "groups": "group"}
    )
    pose_budget_mb: int = option("device.pose_budget_mb", 1024)
    ff_chunks: int = option("--ff-chunks", 1, formerly="pieces", old_flag="--ff-pieces")
    quantization: Literal["plain", "int8", "fp8"] = option(
        "--quantize", "plain", formerly="weights", old_flag="--weights"
    )
    compile: Literal["off", "blocks"] = option("--compile", "off")
    cuda_graphs: bool = option("--cuda-graphs", False)
    channels_last: bool = option("--channels-last", False)
    tf32: bool = option("--tf32", False)
    max_memory: int | None = option("--max-memory", None, parse=parse_bytes, formerly="fit", old_flag="--fit")

    def __post_init__(self) -> None:
        check_choices(self)
        known = re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", self.device) is not None
        require(known, "--device", self.device, "auto, cpu, cuda, cuda:N or mps")
        require(1 <= self.gpus <= 1024, "--gpus", self.gpus, "1 to 1024")
        require(self.pose_budget_mb >= 1, "device.pose_budget_mb", self.pose_budget_mb, "1 MiB or more")
        require(1 <= self.ff_chunks <= 256, "--ff-chunks", self.ff_chunks, "1 to 256")
        if self.cuda_graphs and self.offload != "none":
            hint = "graphs read weights where they were recorded: leave one of the two out"
            raise ConfigError("--cuda-graphs", True, f"no --offload {self.offload}", hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnimateConfig:
    """One run of ``sa animate``. ``size`` is (width, height) and ``None`` means the model's own; ``frames`` a half-open
    range of the motion; ``fps`` the rate to resample the motion to, ``None`` its own; ``id_adapter`` ``None`` the
    model's own way of joining the face, ``force_ablation`` allows another one than it was trained with; ``preview``
    also writes ``OUT.preview.mp4`` beside the output."""

    reference: Path = option("REFERENCE")
    motion: Path = option("MOTION")
    output: Path = option("--output")
    model: str | None = option("--model", None)
    motion_kind: Literal["auto", "skeleton", "video"] = option("--motion-kind", "auto")
    size: Size | None = option("--size", None, parse=parse_size, dump=dump_size)
    resize: Literal["crop", "pad", "stretch"] = option("--resize", "crop")
    frames: Range | None = option("--frames", None, parse=parse_range, dump=dump_range)
    fps: Fraction | None = option("--fps", None, parse=parse_fps)
    audio: Literal["keep", "none"] = option("--audio", "keep")
    preview: bool = option("--preview", False)
    id_adapter: Literal["distribution", "addition", "norm", "off"] | None = option("--id-adapter", None)
    force_ablation: bool = option("--force-ablation", False)
    face_embedding: Path | None = option("--face-embedding", None)
    allow_no_face: bool = option("--allow-no-face", False)
    preset: Literal["fast", "standard", "released", "paper"] = option("--preset", "standard")
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)

    def __post_init__(self) -> None:
        check_choices(self)
        require(self.model != "", "--model", self.model, "a name of the catalogue or a folder")
        if self.size is not None:
            require(min(self.size) >= 1, "--size", dump_size(self.size), "a width and a height of 1 or more")
        if self.frames is not None:
            require(not _surely_empty(self.frames), "--frames", dump_range(self.frames), "A before B")
        if self.fps is not None:
            require(0 < self.fps <= 1000, "--fps", str(self.fps), "more than 0 and at most 1000")

    @property
    def preview_path(self) -> Path:
        """Where the preview goes: ``out.mp4`` -> ``out.preview.mp4``."""
        return self.output.with_name(f"{self.output.stem}.preview{self.output.suffix}")

    @property
    def record_path(self) -> Path:
        """Where the run record goes: ``out.mp4`` -> ``out.json``."""
        return self.output.with_suffix(".json")


def _surely_empty(frames: Range) -> bool:
    """Whether a slice holds nothing whatever the length; sides of unlike sign depend on the length and pass."""
    first, last = frames
    start = 0 if first is None else first
    if last is None:
        return False
    return last == 0 or ((start < 0) == (last < 0) and start >= last)
