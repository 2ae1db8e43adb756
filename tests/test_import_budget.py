"""The shell starts ``sa`` at every TAB: nothing heavy may be imported before a verb runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

HEAVY = (
    "torch", "numpy", "cv2", "diffusers", "transformers", "onnxruntime", "onnx", "av", "PIL", "scipy", "skimage",
    "safetensors", "accelerate", "insightface", "rtmlib", "huggingface_hub", "pydantic", "tqdm", "jinja2",
)  # fmt: skip

PROBE = """
import sys
sys.argv = ["sa", *sys.argv[1:]]
from stableanimator_cli.__main__ import main
try:
    main()
except SystemExit as left:
    code = left.code
print("left with:", code or 0, file=sys.stderr)
print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def loaded_by(*args: str, code: int = 0) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *args], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    *_, left, loaded = done.stderr.splitlines()
    assert left == f"left with: {code}", done.stderr
    return set(loaded.removeprefix("loaded:").split())


@pytest.mark.parametrize(
    "args", [("--help",), ("animate", "--help"), ("models", "--help"), ("--version",)], ids=" ".join
)
def test_help_loads_nothing_heavy(args: tuple[str, ...]) -> None:
    loaded = loaded_by(*args)
    assert "typer" in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("nobody.png", "dance.mp4", "-o", "out.mp4"), 3),
        (("README.md", "dance.mp4", "-o", "out.mp4"), 3),
        (("README.md", "README.md", "-o", "out.txt"), 2),
        (("README.md", "README.md", "-o", "out.mp4", "--size", "100x100"), 2),
        (("README.md", "README.md", "-o", "out.mp4", "--gate-retries", "2"), 2),
    ],
)
def test_who_mistypes_does_not_wait_for_torch(args: tuple[str, ...], code: int) -> None:
    assert loaded_by("animate", *args, "--model", "puppet", code=code).isdisjoint({"torch", "diffusers", "insightface"})


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("nowhere", "-o", "run", "--steps", "1"), 3),
        (("tests", "-o", "run"), 2),
        (("tests", "-o", "run", "--steps", "1", "--sharding", "full"), 2),
        (("tests", "-o", "tests/train", "--steps", "1"), 3),
        (("--resume", "tests"), 3),
        (("--resume", "tests", "--export", "model", "-o", "tests"), 3),
    ],
)
def test_a_mistyped_training_does_not_wait_for_torch(args: tuple[str, ...], code: int) -> None:
    loaded = loaded_by("train", *args, *(() if "--export" in args else ("--model", "puppet")), code=code)
    assert loaded.isdisjoint({"torch", "diffusers", "accelerate", "onnxruntime"})
