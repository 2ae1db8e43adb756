"""Which device a training runs on, and how long its processes wait for one another: recorded calls, without a GPU."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from accelerate.utils import InitProcessGroupKwargs

from stableanimator_cli.config.train import TrainConfig
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.train import processes


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    calls: dict[str, Any] = {}

    class Recorder:
        def __init__(self, **given: Any) -> None:
            calls.update(given)
            self.state = SimpleNamespace(device=torch.device("cuda:0"))  # as accelerate chooses

        @property
        def device(self) -> torch.device:
            return self.state.device

    def plan(config: Any) -> Any:
        return SimpleNamespace(device=torch.device(config.device))

    monkeypatch.setattr(accelerate, "Accelerator", Recorder)
    monkeypatch.setattr(DevicePlan, "of", plan)

    def set_device(device: torch.device) -> None:
        torch._utils._get_device_index(device)  # what torch calls: it raises for a device without a number
        calls.update(set_device=device)

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    return calls


def config(device: str) -> TrainConfig:
    return TrainConfig(dataset=(Path("clips"),), output=Path("run"), device=device)


def test_the_gpu_that_was_named_is_trained_on(recorded):
    accelerator = processes.open_accelerator(config("cuda:1"))
    assert accelerator.device == torch.device("cuda:1")
    assert recorded["set_device"] == torch.device("cuda:1")
    assert recorded["cpu"] is False


def test_cuda_without_a_number_is_the_first_gpu(recorded):
    accelerator = processes.open_accelerator(config("cuda"))
    assert accelerator.device == torch.device("cuda:0")
    assert recorded["set_device"] == torch.device("cuda:0")


def test_processes_wait_longer_for_one_another_than_nccl_does_by_itself(recorded):
    processes.open_accelerator(config("cpu"))
    (group,) = [one for one in recorded["kwargs_handlers"] if isinstance(one, InitProcessGroupKwargs)]
    assert group.timeout is not None
    assert group.timeout >= timedelta(hours=12)
    assert "set_device" not in recorded


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("two_processes")
def test_several_processes_do_not_share_one_gpu(recorded, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"--device: found 'cuda:1', expected a device without a number"):
        processes.open_accelerator(config("cuda:1"))
    accelerator = processes.open_accelerator(config("cuda"))
    assert accelerator.device == torch.device("cuda:0")  # accelerate's own choice: by LOCAL_RANK


@pytest.mark.usefixtures("two_processes")
def test_a_machine_with_more_processes_than_gpus_is_refused(recorded, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node: found 2, expected at most 1, one"):
        processes.open_accelerator(config("cuda"))
    assert not recorded
    processes.open_accelerator(config("cpu"))
    assert recorded
