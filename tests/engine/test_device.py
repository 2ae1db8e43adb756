"""Device plans, what running out of memory becomes, and which networks stay on a device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from stableanimator_cli.config import DeviceConfig
from stableanimator_cli.engine.device import DevicePlan, Networks, memory_guard, peak_memory
from stableanimator_cli.errors import ConfigError, ModelMissing, OutOfMemory
from tests.tiny import CPU


def test_a_cpu_computes_in_float32_unless_told():
    plan = DevicePlan.of(DeviceConfig(device="cpu"))
    assert (plan.device.type, plan.dtype, plan.swap) == ("cpu", torch.float32, False)
    assert plan.pose_budget == 1024 * 2**20
    other = DevicePlan.of(DeviceConfig(device="cpu", dtype="bfloat16", offload="swap", pose_budget_mb=3))
    assert (other.dtype, other.swap, other.pose_budget) == (torch.bfloat16, True, 3 * 2**20)
    assert plan.describe() == "cpu, float32"
    assert other.describe() == "cpu, bfloat16, swapping networks"


@pytest.mark.parametrize(
    ("cuda", "bf16", "mps", "device", "dtype"),
    [
        (True, True, False, "cuda", torch.bfloat16),
        (True, False, False, "cuda", torch.float16),
        (False, False, True, "mps", torch.float16),
        (False, False, False, "cpu", torch.float32),
    ],
)
def test_auto_takes_the_best_device_there_is(monkeypatch, cuda, bf16, mps, device, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    plan = DevicePlan.of(DeviceConfig())
    assert (plan.device.type, plan.dtype) == (device, dtype)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there_is_refused_with_the_way_on(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device") as caught:
        DevicePlan.of(DeviceConfig(device=name))
    assert "use cpu" in str(caught.value.hint)


def test_a_card_too_many_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"found 'cuda:2', expected cuda:0 to cuda:1"):
        DevicePlan.of(DeviceConfig(device="cuda:2"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1 GB)"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_every_allocators_complaint_becomes_out_of_memory(error):
    with pytest.raises(OutOfMemory) as caught, memory_guard("denoising", "use a smaller --size"):
        raise error
    assert caught.value.message == "out of memory while denoising"
    assert caught.value.hint == "use a smaller --size"
    assert caught.value.exit_code == 6
    assert caught.value.__cause__ is error


def test_a_real_allocation_that_cannot_be_becomes_out_of_memory():
    with pytest.raises(OutOfMemory), memory_guard("trying", "less"):
        torch.empty(1 << 60, dtype=torch.uint8)


def test_other_errors_pass_the_guard_unchanged():
    for error in (RuntimeError("shapes do not match"), ModelMissing("unet"), ValueError("x")):
        with pytest.raises(type(error), match=str(error)), memory_guard("denoising", "less"):
            raise error


def test_peak_memory_is_in_bytes():
    peak = peak_memory(torch.device("cpu"))
    assert 10 * 2**20 < peak["host"] < 2**40
    assert set(peak) == {"host"}


class Where(nn.Module):
    """Remembers where it was sent."""

    def __init__(self, log: list[tuple[str, str]], name: str) -> None:
        super().__init__()
        self.log, self.name = log, name

    def to(self, device):  # type: ignore[override]
        self.log.append((self.name, str(device)))
        return self


def networks(swap: bool) -> tuple[Networks, list[tuple[str, str]], list[str]]:
    log: list[tuple[str, str]] = []
    loaded: list[str] = []

    def loader(name: str):
        def load() -> nn.Module:
            loaded.append(name)
            return Where(log, name)

        return load

    plan = replace(CPU, device=torch.device("meta"), swap=swap)
    return Networks({name: loader(name) for name in ("unet", "vae", "pose_net")}, plan), log, loaded


def test_networks_load_when_first_wanted_and_once():
    held, _, loaded = networks(swap=False)
    assert loaded == []
    with held.resident("vae"):
        assert loaded == ["vae"]
    with held.resident("vae", "unet"):
        assert loaded == ["vae", "unet"]


def test_swapping_sends_the_others_away_before_it_brings_the_named():
    held, log, _ = networks(swap=True)
    with held.resident("vae"):
        pass
    log.clear()
    with held.resident("unet", "pose_net"):
        assert log == [("vae", "cpu"), ("unet", "meta"), ("pose_net", "meta")]


def test_without_swapping_everything_stays():
    held, log, _ = networks(swap=False)
    with held.resident("vae"), held.resident("unet"):
        pass
    assert ("vae", "cpu") not in log


def test_closing_lets_go_of_all_networks():
    held, _, loaded = networks(swap=False)
    with held.resident("vae"):
        pass
    held.close()
    with held.resident("vae"):
        assert loaded == ["vae", "vae"]
