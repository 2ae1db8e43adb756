"""Device plans, what running out of memory becomes, and which networks stay on a device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from stableanimator_cli.config.animate import AnimateConfig, DeviceConfig
from stableanimator_cli.engine import compilation, host_weights
from stableanimator_cli.engine.device import (
    DevicePlan,
    Networks,
    emulation_warning,
    float32_precision,
    has_bfloat16,
    memory_guard,
    peak_memory,
)
from stableanimator_cli.engine.host_weights import named_tensors, pack
from stableanimator_cli.errors import ConfigError, ModelMissing, OutOfMemory
from tests.tiny import CPU, engine_of


def test_a_cpu_computes_in_float32_unless_told():
    plan = DevicePlan.of(DeviceConfig(device="cpu"))
    assert (plan.device.type, plan.dtype, plan.config.offload) == ("cpu", torch.float32, "none")
    assert plan.config.pose_budget_mb == 1024
    other = DevicePlan.of(DeviceConfig(device="cpu", dtype="bfloat16", offload="model", pose_budget_mb=3))
    assert (other.dtype, other.config.pose_budget_mb) == (torch.bfloat16, 3)
    assert plan.describe() == "cpu, float32"
    assert other.describe() == "cpu, bfloat16, swapping networks"


@pytest.mark.parametrize(
    ("cuda", "capability", "mps", "device", "dtype"),
    [
        (True, (9, 0), False, "cuda", torch.bfloat16),
        (True, (8, 0), False, "cuda", torch.bfloat16),
        (True, (7, 5), False, "cuda", torch.float16),  # Turing emulates bfloat16, slowly
        (False, None, True, "mps", torch.float16),
        (False, None, False, "cpu", torch.float32),
    ],
)
def test_auto_takes_the_best_device_there_is(monkeypatch, cuda, capability, mps, device, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **more: True)  # counts emulation
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    plan = DevicePlan.of(DeviceConfig())
    assert (plan.device.type, plan.dtype) == (device, dtype)


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"bf16": True, "architecture": "aarch64"}, True),
     ({"avx512_bf16": False, "avx512_f": True}, False), ({}, False)],
)  # fmt: skip
def test_a_plan_names_the_type_that_a_processor_computes_faster(monkeypatch, capabilities, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_bfloat16(torch.device("cpu")) is native
    plan = DevicePlan.of(DeviceConfig(device="cpu"))
    assert plan.dtype == torch.float32
    assert ("--dtype bfloat16" in plan.advice()) is native
    requested = DevicePlan.of(DeviceConfig(device="cpu", dtype="float32"))
    assert requested.advice() == ""


@pytest.mark.parametrize(
    ("capabilities", "dtype", "warns"),
    [({"avx512_bf16": False, "amx_bf16": False}, torch.bfloat16, True), ({"bf16": False}, torch.bfloat16, True),
     ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16, False), ({}, torch.bfloat16, False),
     ({"avx512_bf16": False}, torch.float32, False)],
)  # fmt: skip
def test_bfloat16_that_is_computed_in_software_is_a_warning(monkeypatch, capabilities, dtype, warns):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert (emulation_warning(torch.device("cpu"), dtype) is not None) is warns
    assert emulation_warning(torch.device("cuda"), dtype) is None


def test_a_torch_that_cannot_say_what_a_processor_computes_advises_nothing(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert DevicePlan.of(DeviceConfig(device="cpu")).advice() == ""


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
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
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

    plan = replace(CPU, device=torch.device("meta"), config=DeviceConfig(offload="model" if swap else "none"))
    return Networks({name: loader(name) for name in ("unet", "vae", "pose_net")}, plan), log, loaded


def test_networks_load_when_first_wanted_and_once():
    held, _, loaded = networks(swap=False)
    assert loaded == []
    with held.resident("vae"):
        assert loaded == ["vae"]
    with held.resident("vae", "unet"):
        assert loaded == ["vae", "unet"]


class Small(nn.Module):
    """Weights of several types and orders in memory, one shared, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 3, 3).to(memory_format=torch.channels_last)
        self.linear = nn.Linear(3, 5).to(torch.bfloat16)
        self.tied = self.linear
        self.register_buffer("ids", torch.arange(7)[None])
        self.register_buffer("odd", torch.rand(6, 4).T)


def test_swapping_drops_what_was_on_the_device_and_copies_nothing_back(monkeypatch):
    """The card is a stand-in, whose copies are counted. What is there after leaving was there all the time."""
    made = {name: Small() for name in ("unet", "vae")}
    held = Networks(
        {name: lambda name=name: made[name] for name in made}, replace(CPU, config=DeviceConfig(offload="model"))
    )
    numbers = {name: {k: v.clone() for k, v in network.state_dict().items()} for name, network in made.items()}
    hosts = {network: {k: v.data_ptr() for k, v in made[network].state_dict().items()} for network in made}
    copied: list[int] = []

    def fetched(host: torch.Tensor, device: torch.device) -> torch.Tensor:
        copied.append(host.data_ptr())
        return host.clone()

    def away(name: str) -> bool:
        """Are all weights on the card? Either all are or none."""
        (found,) = {value.data_ptr() != hosts[name][key] for key, value in made[name].state_dict().items()}
        return found

    monkeypatch.setattr(host_weights, "fetched", fetched)
    with held.resident("unet"):
        assert away("unet")
        for _ in range(3):  # refined steps
            with held.resident("vae"):
                assert (away("unet"), away("vae")) == (False, True)
                made["vae"].to(torch.float64).to(torch.float32)  # as a VAE that overflows: its buffers are new objects
                made["vae"].linear.to(torch.bfloat16)
            assert (away("unet"), away("vae")) == (True, False)
        with held.resident("unet"):
            pass
    tensors = len(named_tensors(made["unet"]))
    assert len(copied) == (4 + 3) * tensors
    assert set(copied) <= {place for network in hosts.values() for place in network.values()}
    with held.resident():
        assert (away("unet"), away("vae")) == (False, False)
    for name, network in made.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, numbers[name][key]), key
            assert value.dtype == numbers[name][key].dtype


def test_weights_are_the_same_in_a_slab():
    """What a card is given: all in one allocation, each at a multiple of 256 bytes, strides included."""
    network = Small()
    before = {name: (tensor.clone(), tensor.stride()) for name, tensor in network.state_dict().items()}
    (packed,) = pack([named_tensors(network)], pin=False)
    storages = {tensor.untyped_storage().data_ptr() for tensor in named_tensors(network).values()}
    assert len(storages) == 1
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name][0])
        assert (tensor.data_ptr() - packed.slab.data_ptr()) % 256 == 0
    assert network.conv.weight.stride() == before["conv.weight"][1]
    assert network.odd.is_contiguous()
    other = packed.views(packed.slab.clone())
    assert torch.equal(other["linear.weight"], network.linear.weight)
    assert sorted(other) == sorted(named_tensors(network))


def test_float32_is_exact_unless_tf32_is_wanted(tiny_model):
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    assert before[1]  # torch's own default: convolutions in TF32
    for tf32 in (False, True):
        with engine_of(tiny_model, tf32=tf32):
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (tf32, tf32)
            assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")  # the compiler asks for it
    assert (matmul.allow_tf32, cudnn.allow_tf32) == before


def test_the_precision_of_a_block_survives_the_end_of_one_that_began_before():
    """As a plan of ``sa app`` that ends while a run works in another thread."""
    before = torch.backends.cudnn.allow_tf32
    plan, run = float32_precision(tf32=False), float32_precision(tf32=False)
    plan.__enter__()
    run.__enter__()
    plan.__exit__(None, None, None)
    assert not torch.backends.cudnn.allow_tf32
    run.__exit__(None, None, None)
    assert torch.backends.cudnn.allow_tf32 == before


def test_tf32_needs_float32_and_a_card(monkeypatch):
    with pytest.raises(ConfigError, match="--tf32: found true, expected --dtype float32 and a CUDA card") as caught:
        DevicePlan.of(DeviceConfig(device="cpu", tf32=True))
    assert "float32 on cpu: leave --tf32 out" in str(caught.value.hint)
    card(monkeypatch, (9, 0))
    with pytest.raises(ConfigError, match="--tf32") as caught:
        DevicePlan.of(DeviceConfig(tf32=True))
    assert "bfloat16 on cuda" in str(caught.value.hint)
    plan = DevicePlan.of(DeviceConfig(tf32=True, dtype="float32"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    assert plan.describe() == "H100, float32, TF32"
    assert DevicePlan.of(DeviceConfig(dtype="float32")).describe() == "H100, float32"


def card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(compilation, "missing", lambda kind: None)


def test_compiled_fp8_needs_a_card_that_has_it(monkeypatch):
    wanted = DeviceConfig(device="cuda", compile="blocks", quantization="fp8")
    card(monkeypatch, (8, 6))
    with pytest.raises(ConfigError, match=r"--quantize: found 'fp8', expected a card of .* 8\.9 or newer") as caught:
        DevicePlan.of(wanted)
    assert "--quantize int8, or leave --compile out" in str(caught.value.hint)
    DevicePlan.of(replace(wanted, quantization="int8"))
    DevicePlan.of(replace(wanted, compile="off"))
    long = AnimateConfig(reference=Path("a.png"), motion=Path("b.mp4"), output=Path("c.mp4"), device=wanted)
    off = replace(long, device=replace(wanted, compile="off"))
    given = (torch.device("cuda"), (1024, 576), 3000)
    assert not compilation.pays_to_compile(off, *given)  # --max-memory does not choose what is refused
    card(monkeypatch, (8, 9))
    assert DevicePlan.of(wanted).config.compile == "blocks"
    assert compilation.pays_to_compile(off, *given)


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
