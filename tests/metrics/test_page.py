"""``docs/metrics.md`` has every metric, and no digest that the catalogue does not have."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import stableanimator_cli.metrics
from stableanimator_cli import catalogue
from stableanimator_cli.metrics.result import METRICS

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_every_metric_has_its_row():
    for room in sorted(Path(stableanimator_cli.metrics.__path__[0]).glob("[a-z]*.py")):
        importlib.import_module(f"stableanimator_cli.metrics.{room.stem}")
    rows = "\n".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `"))
    assert set(METRICS) - set(re.findall(r"`(\w+)`", rows)) == set()


def test_files_and_digests_are_the_catalogues():
    names = ("lpips", "i3d", "resnet3d", "puppet", "vjepa-vith16")
    listed = {row.path: row for name in names for row in catalogue.entry(name).files}
    for name in ("clip-vit-base-patch32", "dino-vits16"):  # whose files have one name
        listed |= {f"{name}/{row.path}": row for row in catalogue.entry(name).files}
    rows = re.findall(r"^\| `(\S+\.(?:pth|pt|onnx|bin|tar))` \| (\S+) \| (.*) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 12
    for name, size, told in rows:
        assert size == ("unknown" if listed[name].bytes is None else f"{listed[name].bytes:,}")
        digest = re.search(r"`([0-9a-f]{64})`", told)
        assert (digest[1] if digest else None) == listed[name].sha256
