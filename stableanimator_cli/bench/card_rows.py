"""The rows of ``sa bench card``: their names, order and time limits. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import stableanimator_cli
from stableanimator_cli.errors import ConfigError, did_you_mean

Worker = Literal["ours", "parity", "reference"]

VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "fp8": {"quantization": "fp8"},
    "int8": {"quantization": "int8"},
    "channels-last": {"channels_last": True},
    "cuda-graphs": {"cuda_graphs": True},
    "group-offload": {"offload": "group"},
    "compiled": {"compile": "blocks"},
}
"""Fields of ``DeviceConfig``. A variant without a dtype has the device's own; in parity it has float32."""

NOT_COMPILED = "compiling takes minutes on a CPU: `sa bench unet --variant compiled` measures it there"
_HALF = ("bfloat16", "float16")
_UNET = tuple(VARIANTS)[1:]
CASES: dict[str, tuple[str, ...]] = {
    "unet_io": _UNET,
    "id_adapter_io": _HALF,
    "face_encoder_io": _HALF,
    "pose_net_io": _HALF,
    "basic_pipeline": _UNET,
    "basic_pipeline_ramp": _UNET,
    "hjb_step_i0": _HALF,
    "hjb_step_i1": _HALF,
    "hjb_pipeline": _UNET,
}
"""Recordings with networks, and the variants that change those; other recordings have a float32 row only."""

_SMALL_CASES = {"unet_io": _UNET, "id_adapter_io": _HALF, "face_encoder_io": _HALF, "pose_net_io": _HALF}
PRESETS = ("paper", "finetune-40gb", "finetune-24gb", "puppet")
COMMON_SIZES = ("512x512", "576x1024")  # of the released model


@dataclass(frozen=True, slots=True)
class CardRow:
    """One measurement: ``group/what``, the process that runs it, and the most ``seconds`` that it may take."""

    name: str
    worker: Worker
    seconds: float


def checkout() -> Path | None:
    """The folder of this checkout, None if the package is installed without its tests."""
    root = Path(stableanimator_cli.__file__).resolve().parent.parent
    return root if (root / "tests" / "parity.py").is_file() else None


def card_rows(recordings: Path | None, *, small: bool, against: bool) -> list[CardRow]:
    """All rows in the order in which they run: the quick and the important ones first."""
    sizes, long = (("64x64", "64x128"), "6x64x64") if small else (COMMON_SIZES, "64x512x512")
    frames = 2 if small else 16
    full = [(f"render/{frames}x{size}", 180.0) for size in sizes] + [(f"render/{long}", 180.0)]
    face = [("face/full", 90.0), ("face/crop", 90.0)]
    unet = [(f"unet/{size}", 90.0) for size in sizes]
    theirs = [*unet, *full, face[0], (f"train/{PRESETS[0]}", 90.0)]  # their one way of optimising faces and of training
    plain, slow = list(VARIANTS)[:-1], list(VARIANTS)[-1]
    groups: list[tuple[Worker, Sequence[tuple[str, float]]]] = [
        ("ours", [(f"roofline/{dtype}", 60.0) for dtype in ("float32", *_HALF)]),
        ("ours", unet),
        ("parity", [(f"parity/{case}/float32", 60.0) for case in _recorded(recordings, small)]),
        ("ours", full[:2]),
        ("ours", face),
        ("ours", [(f"train/{preset}", 90.0) for preset in PRESETS]),
        ("ours", [("detectors", 60.0), ("ranks", 120.0)]),
        (
            "parity",
            [(f"parity/{case}/{v}", 60.0) for v in plain[1:] for case in _cases(small) if v in _cases(small)[case]],
        ),
        ("ours", [(f"variant/{variant}", 60.0) for variant in plain]),
        ("ours", full[2:]),
        ("reference", [(f"reference/{name}", 1.5 * s) for name, s in theirs] if against else []),
        ("parity", [(f"parity/{case}/{slow}", 120.0) for case in _cases(small) if slow in _cases(small)[case]]),
        ("ours", [(f"variant/{slow}", 240.0)]),
    ]
    slower = 3 if small else 1  # a CPU that others use too
    return [CardRow(name, worker, slower * seconds) for worker, rows in groups for name, seconds in rows]


def _cases(small: bool) -> dict[str, tuple[str, ...]]:
    return _SMALL_CASES if small else CASES


def _recorded(folder: Path | None, small: bool) -> list[str]:
    """Recordings with a float32 row: those of the checkout, or all that are known if there are none."""
    if small or folder is None or not folder.is_dir():
        return list(_cases(small))
    others = {file.stem for file in folder.iterdir()} - {"configs", "state_shapes", "skeleton_draw_pose", "README"}
    return [*CASES, *sorted(others - set(CASES))]


def select_rows(rows: Sequence[CardRow], selected: Sequence[str]) -> list[CardRow]:
    """The rows that ``--rows`` names, by their name or group. Raises ``ConfigError`` for one that names none."""
    for name in selected:
        if not any(_matches(row, name) for row in rows):
            groups = list(dict.fromkeys(row.name.partition("/")[0] for row in rows))
            hint = did_you_mean(name, [*groups, *(row.name for row in rows)])
            raise ConfigError("--rows", name, f"a row, or a group: {', '.join(groups)}", hint=hint)
    return [row for row in rows if not selected or any(_matches(row, name) for name in selected)]


def _matches(row: CardRow, name: str) -> bool:
    return row.name == name or row.name.startswith(f"{name}/")


def size_of(name: str) -> tuple[int, int]:
    """The size that ends a row's name: ``render/16x576x1024`` -> (576, 1024)."""
    width, height = name.rpartition("/")[2].split("x")[-2:]
    return int(width), int(height)


def frames_of(name: str) -> int:
    """The frames in a row's name: ``render/16x576x1024`` -> 16."""
    return int(name.rpartition("/")[2].split("x")[0])
