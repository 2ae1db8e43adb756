"""Tables of a card's page, and its entry for the table of cards that ``--card`` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stableanimator_cli.bench.results import Table
from stableanimator_cli.bench.row_process import NOT_RUN, OK
from stableanimator_cli.cards import USER_TABLE, card_key, read_cards
from stableanimator_cli.catalogue import cache_dir
from stableanimator_cli.files import atomic_write

_TITLES = {
    "roofline": ("Roofline", "The best of some runs of products and of a copy."),
    "unet": ("UNet", "Both branches of a guided step of one window."),
    "parity": (
        "Parity", "Recordings of the reference implementation. `works` in float32: within the tolerance; else: the row "
        "ran and is finite. `error` is the one nearest to its limit.",
    ),
    "render": ("Renderings", "All in: encoding, denoising, decoding. Networks are loaded already."),
    "face": ("Face optimisation", "One refined step of three iterations (one with --small)."),
    "train": ("Training", "One step, optimiser included, batch size 1, cached latents."),
    "detectors": (
        "Detectors", "Largest distance of a keypoint from the CPU's, in pixels. Memory is ONNX Runtime's own.",
    ),
    "ranks": (
        "Two ranks",
        "The same video by two processes, each of which holds what one alone does; levels of 255. `s` is the first "
        "one's denoising, which also waits for the second one to start.",
    ),
    "variant": ("UNet by setting", "A guided step; error beside the plain way, over its greatest value."),
    "reference": (
        "Reference implementation",
        "In a process of its own, after ours. With --small its networks are larger than ours: not to be compared.",
    ),
}  # fmt: skip
_FIRST = ("status", "reason", "error", "seconds", "peak", "predicted", "tflop", "gflops", "took")
_RENDERING = "render/16x576x1024"


def card_tables(
    rows: Mapping[str, Mapping[str, Any]], names: Sequence[str], environment: Mapping[str, Any]
) -> list[Table]:
    """A table of the machine and one per group, with the rows of ``names`` in their order."""
    machine = [{"what": name, "value": str(value)} for name, value in environment.items() if value is not None]
    tables = [Table(title="Machine", rows=machine)]
    roof = {dtype: rows.get(f"roofline/{dtype}", {}).get("gflops") for dtype in ("float32", "bfloat16", "float16")}
    used = roof["float32"] if environment.get("memory") is None else roof["bfloat16"] or roof["float16"]
    for group, (title, note) in _TITLES.items():
        chosen = [name for name in names if name == group or name.startswith(f"{group}/")]
        cells = [
            _cells(name, rows.get(name, {"status": NOT_RUN}), roof.get(name.rpartition("/")[2], used))
            for name in chosen
        ]
        if cells:
            tables.append(Table(title=title, rows=cells, note=note))
    return tables


def _cells(name: str, row: Mapping[str, Any], roof: float | None) -> dict[str, Any]:
    """A row's cells; ``roof`` is that of the type that its networks have."""
    cells: dict[str, Any] = {"row": name, "works": "yes" if row["status"] == OK else row["status"]}
    cells |= {"error": row.get("error"), "s": row.get("seconds")}
    cells |= {"GiB peak": _gib(row.get("peak")), "GiB predicted": _gib(row.get("predicted"))}
    cells |= {"TFLOP": row.get("tflop"), "GFLOP/s": row.get("gflops")}
    if row.get("tflop") and roof and "gflops" not in row:
        cells["% of roof"] = 100 * row["tflop"] * 1e3 / row["seconds"] / roof
    cells |= {key: value for key, value in row.items() if key not in _FIRST}
    cells["why not"] = row.get("reason")
    return {key: value for key, value in cells.items() if value is not None}


def _gib(size: int | None) -> float | None:
    return None if size is None else size / 2**30


def card_entry(rows: Mapping[str, Mapping[str, Any]], environment: Mapping[str, Any]) -> str | None:
    """The card's entry as TOML: measured products and copies, and the share that a rendering reached. None without the
    memory of a card, or without its rates in float32 and float16."""
    rates = {dtype: rows.get(f"roofline/{dtype}", {}) for dtype in ("float32", "bfloat16", "float16")}
    if environment.get("memory") is None or not (rates["float32"].get("gflops") and rates["float16"].get("gflops")):
        return None
    native = float(environment.get("capability") or 0) >= 8 and rates["bfloat16"].get("gflops")
    lines = ["[[card]]", f'name = "{environment["device"]}"']
    lines += [f"bf16 = {rates['bfloat16']['gflops'] / 1e3:.1f}"] if native else []
    lines += [
        f"{key} = {rates[dtype]['gflops'] / 1e3:.1f}" for key, dtype in (("fp16", "float16"), ("fp32", "float32"))
    ]
    lines += [f"bandwidth = {rates['float32']['bandwidth']:.0f}", f"memory = {round(environment['memory'] / 2**30)}"]
    made = rows.get(_RENDERING, {})
    if made.get("status") == OK:
        rate = rates["bfloat16" if native else "float16"]["gflops"] / 1e3
        lines.append(f"share = {made['tflop'] / made['seconds'] / rate:.3f}")
    lines.append(f'source = "measured by sa bench card on {environment["date"]}, torch {environment["torch"]}"')
    return "\n".join(lines)


def update_card_table(entry: str) -> Path:
    """Put the entry into the user's table, in the place of one of the same card. Returns the table's path."""
    path = cache_dir() / USER_TABLE
    name = entry.splitlines()[1].partition('"')[2].rstrip('"')
    others = [block for block in _blocks(path) if card_key(_name_of(block)) != card_key(name)]
    with atomic_write(path) as temp:
        temp.write_text("\n\n".join([*others, entry]) + "\n", encoding="utf-8")
    return path


def _blocks(path: Path) -> list[str]:
    """The entries of a table as text. Raises ``ConfigError`` if it cannot be read."""
    if not path.exists():
        return []
    read_cards(path)
    parts = path.read_text(encoding="utf-8").split("[[card]]")[1:]
    return ["[[card]]\n" + part.strip() for part in parts]


def _name_of(block: str) -> str:
    line = next(line for line in block.splitlines() if line.startswith("name"))
    return line.partition('"')[2].rstrip().rstrip('"')
