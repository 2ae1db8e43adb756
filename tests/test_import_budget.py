"""The shell starts ``sa`` at every TAB: nothing heavy may be imported before a verb runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

HEAVY = (
    "torch", "numpy", "cv2", "diffusers", "transformers", "onnxruntime", "onnx", "av", "PIL", "scipy", "skimage",
    "safetensors", "accelerate", "insightface", "rtmlib", "huggingface_hub", "pydantic", "tqdm",
)  # fmt: skip

PROBE = """
import sys
sys.argv = ["sa", *sys.argv[1:]]
from stableanimator_cli.__main__ import main
try:
    main()
except SystemExit as left:
    assert not left.code, left.code
print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def loaded_by(*args: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *args], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stderr.splitlines()[-1].removeprefix("loaded:").split())


@pytest.mark.parametrize(
    "args", [("--help",), ("animate", "--help"), ("models", "--help"), ("--version",)], ids=" ".join
)
def test_help_loads_nothing_heavy(args: tuple[str, ...]) -> None:
    loaded = loaded_by(*args)
    assert "typer" in loaded
    assert loaded.isdisjoint(HEAVY)
