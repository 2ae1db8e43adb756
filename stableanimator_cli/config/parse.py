"""Parse and write values of options: sizes, rates, ranges, guidance, memory, lists of paths.

Every ``parse_...(value, label)`` reads a value of the shell or TOML and raises ``ConfigError`` naming ``label``; every
``dump_...`` is its inverse for TOML. Standard library only.
"""

from __future__ import annotations

import os
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from stableanimator_cli.config.paths import path_of, paths_of
from stableanimator_cli.config.schema import option, require
from stableanimator_cli.errors import ConfigError

# Panels of the help that several verbs have.
OUTPUT = "Output"
SAMPLING = "Sampling"
DEVICE = "Device"

Size = tuple[int, int]
Range = tuple[int | None, int | None]
Guidance = tuple[float, float]
MAX_FPS = 1000
_MIN_FPS = Fraction(1, 1000)
_LONGEST_RATE = 24  # characters
_LARGEST_TERM = 2**31 - 1  # of the fraction that FFmpeg stores
_NEAR = Fraction(1, 10**6)  # frames per second, more than floats and ``_LARGEST_TERM`` round
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "mib": 2**20, "gib": 2**30, "tib": 2**40}


LARGEST_SIDE = 16384  # pixels: x264 encodes no larger frame


def parse_size(value: str | Size, label: str = "--size") -> Size:
    """``"576x1024"`` -> (width, height) in pixels."""
    text = "x".join(map(str, value)) if isinstance(value, tuple) else value
    match = re.fullmatch(r"\s*([1-9]\d{0,4})\s*[xX×]\s*([1-9]\d{0,4})\s*", text) if isinstance(text, str) else None
    size = (0, 0) if match is None else (int(match[1]), int(match[2]))
    if not 1 <= min(size) <= max(size) <= LARGEST_SIDE:
        raise ConfigError(label, value, f"WxH in pixels, each 1 to {LARGEST_SIDE}, as 576x1024")
    return size


def parse_range(value: str | Range, label: str = "--frames") -> Range:
    """``"A:B"`` -> (A, B), half-open as a Python slice; either side may be left out."""
    text = dump_range(value) if isinstance(value, tuple) else value
    match = re.fullmatch(r"\s*(-?\d{1,9})?\s*:\s*(-?\d{1,9})?\s*", text) if isinstance(text, str) else None
    if match is None:
        raise ConfigError(
            label, value, "A:B, as 0:48, 10: or :100", hint="A is the first frame, B the one after the last"
        )
    return (None if match[1] is None else int(match[1])), (None if match[2] is None else int(match[2]))


def parse_guidance(value: str | float | Guidance, label: str = "--guidance") -> Guidance:
    """``"3"`` -> (3.0, 3.0); ``"1:3"`` -> (1.0, 3.0), a linear rise from the first frame to the last."""
    text = ":".join(map(str, value)) if isinstance(value, tuple) else value
    try:
        if isinstance(text, bool) or not isinstance(text, str | int | float):
            raise ValueError
        first, colon, last = str(text).partition(":")
        return float(first), float(last if colon else first)
    except ValueError:
        raise ConfigError(label, value, "a number, or FIRST:LAST as 1:3") from None


INTERVAL = "off, or LO:HI, noise levels from 0 on, LO below HI, as 0.5:50"


def parse_interval(value: str | Guidance, label: str = "--guidance-interval") -> Guidance | None:
    """``"0.5:50"`` -> (0.5, 50.0): noise levels, the first excluded and the last included; ``"off"`` -> None, all."""
    if value == "off":
        return None
    text = ":".join(map(str, value)) if isinstance(value, tuple) else value
    try:
        low, colon, high = str(text).partition(":")
        if not isinstance(text, str) or not colon:
            raise ValueError
        return float(low), float(high)
    except ValueError:
        raise ConfigError(label, value, INTERVAL) from None


def parse_cache_interval(value: str | int, label: str = "--cache-features") -> int:
    """``"3"`` -> 3, every third step computed in full; ``"off"`` -> 1, every step."""
    if value == "off":
        return 1
    text = value if isinstance(value, str) else "" if isinstance(value, bool) else str(value)
    if not re.fullmatch(r"\s*[0-9]{1,4}\s*", text) or int(text) < 2:
        raise ConfigError(label, value, "off, or a number of steps, 2 or more")
    return int(text)


def dump_cache_interval(steps: int) -> int | str:
    return "off" if steps == 1 else steps


PREVIEWS = ("off", "video", "live", "both")


def parse_preview(value: str | bool, label: str = "--preview") -> str:
    """A word of ``PREVIEWS``; true is ``video`` and false ``off``, as older versions wrote."""
    if isinstance(value, bool):
        return "video" if value else "off"
    require(value in PREVIEWS, label, value, f"one of {', '.join(PREVIEWS)}, or true or false")
    return value


HIDDEN_FACES = ("off", "exchanged", "all")


def parse_hidden_faces(value: str | bool, label: str = "--hide-reference-face") -> str:
    """A word of ``HIDDEN_FACES``; true is ``all`` and false ``off``, as older versions wrote."""
    if isinstance(value, bool):
        return "all" if value else "off"
    require(value in HIDDEN_FACES, label, value, f"one of {', '.join(HIDDEN_FACES)}, or true or false")
    return value


FRAME_NAME = "frame_%05d.png"
OUTPUT_NAME = "out.mp4"
"""A name for a video, for hints where the given one leads to none."""


def parse_output(value: str | Path, label: str = "--output") -> Path:
    """A path; ``"frames/"`` with its slash is ``frames/frame_%05d.png``: PNG files in a folder."""
    if not isinstance(value, str | Path):
        raise ConfigError(label, value, "a path")
    if str(value) == "-":
        raise ConfigError(label, "-", "a file: no video is written to standard output", hint=f"try {OUTPUT_NAME}")
    path = path_of(value, label)
    return path / FRAME_NAME if str(value).endswith(("/", os.sep)) else path


def dump_preview(preview: str) -> str | bool:
    return {"off": False, "video": True}.get(preview, preview)


def parse_fps(value: str | float | Fraction, label: str = "--fps") -> Fraction:
    """Exact frames per second: ``"30000/1001"``, ``"25"`` or ``"29.97"``.

    The NTSC family (23.976, 29.97, 59.94 ...), rounded to two digits or more, means n * 1000/1001, as in SMPTE 170M:
    29.97 is 30000/1001 and not 2997/100. Other fractions that exceed the integers of a container become the nearest one
    that fits.
    """
    expected = "frames per second, as 25, 29.97 or 30000/1001"
    if isinstance(value, bool) or not isinstance(value, str | int | float | Fraction):
        raise ConfigError(label, value, expected)
    text = str(value).strip()
    try:
        number = Decimal(0) if "/" in text else Decimal(text)
        # 1e999999999 would be a number of a billion digits
        far = len(text) > _LONGEST_RATE or not number.is_finite() or (number != 0 and abs(number.adjusted()) > 9)
        if isinstance(value, Fraction):
            rate = value
        else:
            rate = Fraction(0) if far else Fraction(text) if "/" in text else Fraction(number)
        if max(rate.numerator, rate.denominator) > _LARGEST_TERM:
            rate = rate.limit_denominator(_LARGEST_TERM // MAX_FPS)
    except (ValueError, ArithmeticError):
        raise ConfigError(label, value, expected) from None
    require(_MIN_FPS <= rate <= MAX_FPS, label, value, f"{expected}, {float(_MIN_FPS):g} to {MAX_FPS}")
    digits = len(text.partition(".")[2])
    for nominal in (24, 30, 48, 60, 120):
        exact = Fraction(nominal * 1000, 1001)
        if digits >= 2 and abs(rate - exact) < max(Fraction(1, 2 * 10**digits), _NEAR):
            return exact
    return rate


def parse_bytes(value: object, label: str = "--max-memory") -> int:
    """``"6GB"`` -> 6 * 10**9; ``"22GiB"`` -> 22 * 2**30. A number alone is bytes, a mebibyte or more."""
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


def dump_range(sides: tuple[float | None, float | None]) -> str:
    return ":".join("" if side is None else str(side) for side in sides)


def dump_guidance(guidance: Guidance) -> float | str:
    first, last = guidance
    return first if first == last else f"{first:g}:{last:g}" if _short(first, last) else f"{first!r}:{last!r}"


def dump_interval(interval: Guidance) -> str:
    return ":".join(f"{level:g}" if _short(level) else repr(level) for level in interval)


def _short(*numbers: float) -> bool:
    return all(float(f"{number:g}") == number for number in numbers)


def parse_inputs(value: Any, label: str = "INPUT") -> tuple[Path, ...]:
    """Paths from the command line, or from TOML: a text with one path per line."""
    paths = paths_of(value, label)
    require(bool(paths), label, value, "one path or more")
    return paths


def dump_paths(paths: tuple[Path, ...]) -> str:
    return "\n".join(map(str, paths))


def check_device(device: str) -> None:
    """Raise ``ConfigError`` unless ``device`` is ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N``."""
    known = re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", device) is not None
    require(known, "--device", device, "auto, cpu, cuda, cuda:N or mps")


def model_option() -> Any:
    """The option ``--model`` of all verbs."""
    return option(
        "--model", None, complete="model", metavar="NAME|FOLDER", default_text="$SA_MODEL, else stableanimator",
        help="Model: a name of the catalogue (sa models list), a model folder, or OWNER/NAME of the Hugging Face hub.",
    )  # fmt: skip


def device_option(panel: str | None = DEVICE) -> Any:
    """The option ``--device`` of all verbs."""
    return option("--device", "auto", metavar="DEVICE", panel=panel, help="Device: auto, cpu, cuda, cuda:N or mps.")
