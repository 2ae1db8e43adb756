"""``sa puppets`` from the outside."""

from __future__ import annotations

import json
import subprocess
import sys

import typer
from typer.testing import CliRunner

from stableanimator_cli.cli.puppets import puppets

app = typer.Typer()
app.command()(puppets)


def test_writes_a_folder_and_prints_its_name(tmp_path):
    folder = tmp_path / "figures"
    arguments = [str(folder), "--videos", "1", "--frames", "2", "--size", "64x48", "--progress", "none"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout == f"{folder}\n"
    again = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert json.loads(again.stdout) == {"folder": str(folder), "written": 0, "kept": 1, "frames": 0}


def test_importing_the_verb_is_cheap():
    heavy = ("numpy", "cv2", "av", "torch", "onnxruntime")
    code = f"import sys, stableanimator_cli.cli.puppets; print([n for n in {heavy} if n in sys.modules])"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == "[]\n"
