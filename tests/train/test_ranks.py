"""Two processes on a CPU learn what one learns from the same global batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stableanimator_cli.errors import ConfigError
from stableanimator_cli.train import run
from stableanimator_cli.train.metrics_log import read_metrics
from tests.conftest import ROOT
from tests.train.clip_folders import write_clip


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def start_ranks(world: int, words: list[str]) -> list[subprocess.Popen[str]]:
    """The processes of ``sa train``, started as torchrun starts them."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-m", "stableanimator_cli", *words],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                 "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                 "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        )
        for rank in range(world)
    ]  # fmt: skip


def in_ranks(world: int, words: list[str]) -> list[str]:
    """What they said on stdout."""
    children = start_ranks(world, words)
    said = []
    try:
        for rank, child in enumerate(children):
            out, err = child.communicate(timeout=580)
            assert child.returncode == 0, f"rank {rank} of {world}: {err[-3000:]}"
            said.append(out)
    finally:  # the others of one that failed would wait for it
        for child in children:
            child.kill()
            child.communicate()
    return said


def test_two_ranks_and_accumulation_give_the_losses_of_one(tiny_model: Path, tmp_path: Path) -> None:
    for index, frames in enumerate((4, 5)):
        write_clip(tmp_path / "data" / f"clip{index}", frames)
    flags = {
        "model": str(tiny_model), "steps": 3, "frames": 2, "batch": 4, "warmup": 0, "rate": 1e-3, "train": "adapters",
        "workers": 0, "device": "cpu", "checkpointing": "off", "cache": "latents,embeddings", "ema": 0.5,
    }  # fmt: skip
    torch.set_num_threads(1)
    run.run(flags=flags | {"dataset": [tmp_path / "data"], "output": tmp_path / "one"})
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    more = ["train", str(tmp_path / "data"), "-o", str(tmp_path / "two"), "--micro-batch", "1", "--quiet", *words]
    first, second = in_ranks(2, more)
    assert first.strip() == str(tmp_path / "two" / "model")
    assert second == ""  # one rank speaks
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)
    assert [row["gradient"] for row in two] == pytest.approx([row["gradient"] for row in one], rel=1e-3)
    assert [row["samples"] for row in two] == [4, 8, 12]
    mine, theirs = (load_file(tmp_path / name / "model" / "unet.safetensors") for name in ("one", "two"))
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-4, rtol=1e-3)


def test_a_batch_must_divide_among_the_ranks() -> None:
    from stableanimator_cli.config.schema import resolve
    from stableanimator_cli.config.train import TrainConfig

    given = {"dataset": ["clips"], "output": "RUN", "steps": 1, "batch": 3}
    with pytest.raises(ConfigError, match="multiple of the 2 processes") as caught:
        run._check_ranks(resolve(TrainConfig, given).resolve_stages((64, 64)), 2)
    assert "try 4" in str(caught.value.hint)
