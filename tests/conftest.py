"""What every test may use: ``sa`` as a process, and a console that no test inherits from another."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stableanimator_cli.cli import console

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _own_console() -> Iterator[None]:
    console.configure()
    yield
    console.configure()


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes: a write is refused in its midst, as by a full disk. Around the code under
    test alone, for pytest's own output may be a file as well."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def sa() -> Run:
    """Run ``sa ARGS`` as a process of its own in the repository root; words are wide, so that lines do not break."""

    def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "stableanimator_cli", *args],
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1", **env},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of the smallest networks, random float32 weights; not to be written into."""
    import torch

    from tests.random_model import TINY, write_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_model(folder, TINY, dtype=torch.float32)
    return folder


@pytest.fixture(scope="session")
def upstream_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in the layout of the reference implementation's downloads."""
    import torch

    from tests.random_model import TINY, write_upstream

    folder = tmp_path_factory.mktemp("downloads") / "tiny"
    write_upstream(folder, TINY, dtype=torch.float32)
    return folder


@pytest.fixture(scope="session")
def seeing_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny model with a face detector and recogniser: a red rectangle is a face."""
    from tests import onnx_samples

    folder = tmp_path_factory.mktemp("models") / "seeing"
    shutil.copytree(tiny_model, folder)
    onnx_samples.faces(folder / "faces")
    text = (folder / "model.toml").read_text().replace('"tiny"', '"seeing"')
    (folder / "model.toml").write_text(text + '\n[components.face]\nfile = "faces"\n')
    return folder


def pytest_collection_finish() -> None:
    """Objects that imports made are not garbage: each close of an engine would look at a million of them."""
    gc.collect()
    gc.freeze()
