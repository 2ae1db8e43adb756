"""The shell starts ``sa`` at every TAB: nothing heavy may be imported before a verb runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stableanimator_cli.media import write_picture
from tests.conftest import ROOT
from tests.media_samples import make_video

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


def run_sa(*args: str) -> tuple[set[str], str]:
    """The modules that a command imports, and what it prints on stderr with its exit code below."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *args], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    stderr, _, loaded = done.stderr.rpartition("loaded:")
    return set(loaded.split()), stderr


def loaded_by(*args: str, code: int = 0) -> set[str]:
    loaded, stderr = run_sa(*args)
    assert stderr.endswith(f"left with: {code}\n"), stderr
    return loaded


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


NETWORKS = {"torch", "diffusers", "transformers", "accelerate", "onnxruntime", "insightface", "rtmlib"}


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files that people have, good and bad, and folders: by the name that ``{name}`` stands for in a command line."""
    folder = tmp_path_factory.mktemp("typed")
    image = np.full((64, 64, 3), 90, np.uint8)
    write_picture(folder / "person.png", image)
    (folder / "broken.png").write_bytes((folder / "person.png").read_bytes()[:60])
    make_video(folder / "dance.mp4", [image] * 3)
    (folder / "text.mp4").write_text("no video\n" * 20)
    (folder / "run").mkdir()
    (folder / "run" / "config.toml").write_text("")
    (folder / "mine").write_text("by hand")
    (folder / "empty").mkdir()
    return {path.stem if path.suffix != ".mp4" else path.name: str(path) for path in folder.iterdir()} | {
        "out": str(folder / "out.mp4"), "new": str(folder / "new")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("animate {dance.mp4} {person} -o {out}", 3, "swapped? sa animate"),
        ("animate {dance.mp4} {dance.mp4} -o {out}", 3, "found a video or a motion, expected an image of the person"),
        ("animate {person} {text.mp4} -o {out}", 3, "text.mp4"),
        ("animate {broken} {dance.mp4} -o {out}", 3, "broken.png"),
        ("animate {person} {empty} -o {out}", 3, "empty"),
        ("animate {person} {dance.mp4} -o {out} --device mps", 2, "--device: found 'mps', expected a device of this"),
        ("animate {person} {dance.mp4} -o {mine}.mp4 --size 3x3", 2, "--size"),
        ("train {empty} -o {new} --steps 2 --device mps", 2, "--device: found 'mps'"),
        ("train {empty} -o {new}", 2, "steps"),
        ("train {empty} -o {run} --steps 2", 3, "found an existing run, expected a new folder"),
        ("train --resume {empty}", 3, "no config.toml"),
        ("train --resume {new}", 3, "no config.toml"),
        ("preprocess {text.mp4} -o {new} --lint", 3, "text.mp4"),
        ("preprocess {empty} -o {new}", 3, "a folder without videos or pictures"),
        ("preprocess {dance.mp4} -o {person}", 3, "found a file, expected a folder for the clips"),
        ("evaluate {text.mp4} {dance.mp4} -o {new}", 3, "text.mp4"),
        ("evaluate {dance.mp4} {dance.mp4} -o {new} --device mps", 2, "--device: found 'mps'"),
        ("evaluate --bench unseen100", 3, "unseen100"),
        ("replay {dance.mp4}", 3, "dance.json"),
        ("replay {new}.mp4", 3, "new"),
        ("bench nonsense", 2, "nonsense"),
        ("models pull nonsense", 5, "no model named 'nonsense'"),
        ("models import {empty}", 5, "empty"),
        ("puppets {person}", 2, ""),
        ("demo {person}", 3, "person.png"),
    ],
)
def test_mistakes_are_reported_before_networks_are_imported(
    line: str, code: int, message: str, typed: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SA_HOME", str(tmp_path))
    monkeypatch.setenv("SA_DATA", "")
    monkeypatch.setenv("SA_MODEL", "puppet")
    words = [word.format_map(typed) for word in line.split()]
    loaded, stderr = run_sa(*words)
    assert f"left with: {code}\n" in stderr
    assert message in stderr
    assert loaded.isdisjoint(NETWORKS)


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
