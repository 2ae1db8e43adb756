"""The shell starts ``sa`` at every TAB: nothing heavy may be imported before a verb runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stableanimator_cli.files import locked_output
from stableanimator_cli.media import write_image
from tests.conftest import ROOT
from tests.media_samples import make_video

HEAVY = (
    "torch", "numpy", "cv2", "diffusers", "transformers", "onnxruntime", "onnx", "av", "PIL", "scipy", "skimage",
    "safetensors", "accelerate", "insightface", "rtmlib", "huggingface_hub", "pydantic", "tqdm", "jinja2", "gradio",
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
        [sys.executable, "-c", PROBE, *args], cwd=ROOT, capture_output=True, text=True, timeout=600, check=True
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
    write_image(folder / "person.png", image)
    (folder / "broken.png").write_bytes((folder / "person.png").read_bytes()[:60])
    make_video(folder / "dance.mp4", [image] * 3)
    (folder / "text.mp4").write_text("no video\n" * 20)
    (folder / "run").mkdir()
    (folder / "run" / "config.toml").write_text("")
    (folder / "mine").write_text("by hand")
    (folder / "empty").mkdir()
    return {path.stem: str(path) for path in folder.iterdir()} | {
        "out": str(folder / "out.mp4"), "new": str(folder / "new")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "output", "folder"),
    [
        ("animate {person} {dance} -o {out} --model puppet", "out", False),
        ("train {empty} -o {new} --steps 2 --model puppet --device cpu", "new", True),
    ],
    ids=["animate", "train"],
)
def test_a_second_run_at_one_output_does_not_wait_for_torch(
    typed: dict[str, str], words: str, output: str, folder: bool
) -> None:
    args = words.format(**typed).split()
    with locked_output(Path(typed[output]), f"sa {args[0]}", folder=folder):
        loaded, stderr = run_sa(*args)
    assert f"it is being written by another `sa {args[0]}`" in stderr
    assert stderr.endswith("left with: 3\n")
    assert loaded.isdisjoint({"torch", "diffusers", "insightface"})
    assert not Path(typed[output]).exists()


MISTAKES = [
    ("animate {dance} {person} -o {out}", 3, "swapped? sa animate"),
    ("animate {dance} {dance} -o {out}", 3, "found a video or a motion, expected an image of the person"),
    ("animate {person} {text} -o {out}", 3, "text.mp4"),
    ("animate {broken} {dance} -o {out}", 3, "broken.png"),
    ("animate {person} {empty} -o {out}", 3, "empty"),
    ("animate {person} {dance} -o {out} --device mps", 2, "--device: found 'mps', expected a device of this"),
    ("animate {person} {dance} -o {mine}.mp4 --size 3x3", 2, "--size"),
    ("train {empty} -o {new} --steps 2 --device mps", 2, "--device: found 'mps'"),
    ("train {empty} -o {new}", 2, "steps"),
    ("train {empty} -o {run} --steps 2", 3, "found an existing run, expected a new folder"),
    ("train --resume {empty}", 3, "no config.toml"),
    ("train --resume {new}", 3, "no config.toml"),
    ("preprocess {text} -o {new} --lint", 3, "text.mp4"),
    ("preprocess {empty} -o {new}", 3, "a folder without videos or images"),
    ("preprocess {dance} -o {person}", 3, "found a file, expected a folder for the clips"),
    ("evaluate {text} {dance} -o {new}", 3, "text.mp4"),
    ("evaluate {dance} {dance} -o {new} --device mps", 2, "--device: found 'mps'"),
    ("evaluate --bench unseen100", 3, "unseen100"),
    ("replay {dance}", 3, "dance.json"),
    ("replay {new}.mp4", 3, "new"),
    ("bench nonsense", 2, "nonsense"),
    ("bench unet --device mps", 2, "--device: found 'mps'"),
    ("models pull nonsense", 5, "no model named 'nonsense'"),
    ("models import {empty}", 5, "empty"),
    ("puppets {person}", 3, "person.png"),
    ("demo {person}", 3, "person.png"),
]

MANY = """
import contextlib, io, json, sys
from stableanimator_cli import __main__ as entry
from stableanimator_cli.cli import console
for line in json.load(sys.stdin):
    sys.argv = ["sa", *line.split()]
    console.configure()
    words = io.StringIO()
    with contextlib.redirect_stderr(words):
        try:
            entry.main()
        except SystemExit as left:
            code = left.code
    print(json.dumps([code, words.getvalue(), sorted({name.partition(".")[0] for name in sys.modules})]))
"""


@pytest.fixture(scope="module")
def outcomes(typed: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Exit code, stderr and modules loaded so far, of all mistakes one after the other in one process."""
    folder = tmp_path_factory.mktemp("here")
    lines = [line for line, _, _ in MISTAKES]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SA_HOME": str(folder / "home"), "SA_DATA": "", "SA_MODEL": "puppet"}
    given = json.dumps([line.format_map(typed) for line in lines])
    done = subprocess.run(
        [sys.executable, "-c", MANY], cwd=folder, env=env, input=given, capture_output=True, text=True, timeout=900,
        check=True,
    )  # fmt: skip
    return dict(zip(lines, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize(("line", "code", "message"), MISTAKES)
def test_mistakes_are_reported_before_networks_are_imported(
    line: str, code: int, message: str, outcomes: dict[str, list[Any]]
) -> None:
    found, stderr, loaded = outcomes[line]
    assert found == code, stderr
    assert message in stderr
    assert NETWORKS.isdisjoint(loaded)


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
