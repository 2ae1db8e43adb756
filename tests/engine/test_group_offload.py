"""Group offload and CUDA graphs, on stand-ins for a card: what moves when, and what is read from where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import Tensor

from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.engine import compilation, cuda_graphs, group_offload
from stableanimator_cli.engine import engine as engine_room
from stableanimator_cli.engine.cuda_graphs import GraphedCalls
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.nets.compiled import CompiledBlocks
from stableanimator_cli.nets.context import Context
from tests.tiny import engine_of, rendered, request


class Away(group_offload.GroupOffload):
    """What waits is NaN (or -1), and the numbers lie on "the card": reading a weight outside of its turn shows."""

    def __init__(self, unet: torch.nn.Module, calls: Counter[str]) -> None:
        super().__init__(torch.device("cpu"), calls)
        self.names = {module: name for name, module in unet.named_modules()}
        self.visits: list[str] = []
        self.card: dict[int, Tensor] = {}
        for block in group_offload.blocks_of(unet):
            for tensor in group_offload._tensors(block):
                self.card[id(tensor)] = tensor.data
                tensor.data = torch.full_like(tensor, float("nan") if tensor.is_floating_point() else -1)

    def fetched(self, tensor: Tensor) -> Tensor:
        assert (tensor != tensor if tensor.is_floating_point() else tensor == -1).all()  # nothing is brought twice
        return self.card[id(tensor)]

    def on_device(self, *modules: torch.nn.Module) -> AbstractContextManager[None]:
        self.visits += [self.names[module] for module in modules]
        return super().on_device(*modules)


@pytest.mark.parametrize("plan", [{}, {"quantization": "int8", "ff_chunks": 2}])
def test_weights_are_read_in_their_turn_only(tiny_model, plan):
    wanted = request(4, window=4, steps=1)
    with engine_of(tiny_model, **plan) as engine:
        plain = rendered(engine, wanted)
    with engine_of(tiny_model, **plan) as engine:
        unet = engine.networks["unet"]
        unet.run = away = Away(unet, engine.calls)
        assert np.array_equal(rendered(engine, wanted), plain)
        blocks = [away.names[block] for block in group_offload.blocks_of(unet)]
        calls = [name for name in away.visits if not name.endswith("attn2")]
        assert calls[: len(calls) // 2] == calls[len(calls) // 2 :]  # a branch after the other
        assert sorted(calls) == sorted(2 * blocks)
        assert engine.calls["blocks_moved"] == len(calls) == 2 * len(blocks)
        block = group_offload.blocks_of(unet)[0]
        assert all(tensor.data_ptr() != away.card[id(tensor)].data_ptr() for tensor in group_offload._tensors(block))


class Slow:
    """A ``DoubleBuffer`` on a CPU whose copies arrive only when something waits for them.

    Its buffers are NaN before and after, so weights that are read too early or too late show.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        self.buffers = [torch.full((size,), 255, dtype=torch.uint8) for _ in range(2)]
        self.coming: list[tuple[int, Tensor]] = []
        self.reading: int | None = None
        self.log: list[tuple[str, int]] = []

    def copy(self, host: Tensor, slot: int) -> None:
        assert slot != self.reading  # a real one waits for it, and then nothing runs side by side
        self.log.append(("copy", slot))
        self.coming.append((slot, host))

    def acquire(self, slot: int) -> None:
        assert self.reading is None
        for place, host in self.coming:
            if place == slot:
                self.buffers[slot][: len(host)] = host
        self.coming = [entry for entry in self.coming if entry[0] != slot]
        self.reading = slot
        self.log.append(("acquire", slot))

    def release(self, slot: int) -> None:
        assert self.reading == slot
        self.buffers[slot].fill_(255)
        self.reading = None
        self.log.append(("release", slot))


@pytest.mark.parametrize("plan", [{}, {"quantization": "int8", "ff_chunks": 2}, {"channels_last": True}])
def test_the_next_block_comes_while_one_is_at_work(tiny_model, plan):
    wanted = request(4, window=4, steps=2)
    with engine_of(tiny_model, **plan) as engine:
        plain = rendered(engine, wanted)
    opened: list[Slow] = []

    def open_buffers(device: torch.device, size: int) -> Slow:
        opened.append(Slow(device, size))
        return opened[-1]

    with engine_of(tiny_model, **plan) as engine:
        unet = engine.networks["unet"]
        group_offload.pack_blocks(unet, pin=False)
        unet.run = run = group_offload.GroupOffload(torch.device("cpu"), engine.calls, buffers=open_buffers)
        assert np.array_equal(rendered(engine, wanted), plain)
        blocks = len(group_offload.blocks_of(unet))
        (slow,) = opened
        assert engine.calls["blocks_moved"] == 4 * blocks  # two steps, two branches
        assert len(slow.buffers[0]) == max(
            len(group_offload._host_blocks[block].packed.slab) for block in group_offload.blocks_of(unet)
        )
        first = [what for what, _ in slow.log[: 3 * blocks]]
        assert first == ["copy", "acquire", "release"] * blocks  # the order is not known yet
        later = [what for what, _ in slow.log[3 * blocks :]]
        assert later == ["copy", "acquire", "copy", "release"] + ["acquire", "copy", "release"] * (3 * blocks - 1)
        slots = [slot for what, slot in slow.log if what == "acquire"]
        assert slots == [(1, 0)[index % 2] for index in range(4 * blocks)]
        run.release()
        assert np.array_equal(rendered(engine, wanted), plain)
        assert len(opened) == 2


def test_blocks_that_come_in_another_order_are_still_right(tiny_model):
    """Deep features: some calls leave blocks out."""
    wanted = request(4, window=4, steps=4, cache_features=2)
    with engine_of(tiny_model) as engine:
        plain = rendered(engine, wanted)
    with engine_of(tiny_model) as engine:
        unet = engine.networks["unet"]
        group_offload.pack_blocks(unet, pin=False)
        unet.run = group_offload.GroupOffload(torch.device("cpu"), engine.calls, buffers=Slow)
        assert np.array_equal(rendered(engine, wanted), plain)
        assert engine.calls["unet_shallow"] > 0


def test_what_waited_is_back_after_an_error():
    layer = torch.nn.Linear(2, 2)
    before = [tensor.data_ptr() for tensor in layer.parameters()]

    class Broken(group_offload.GroupOffload):
        def fetched(self, tensor: Tensor) -> Tensor:
            return tensor.data.clone()

    def fail(block: torch.nn.Linear) -> Tensor:
        assert [tensor.data_ptr() for tensor in block.parameters()] != before
        raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        Broken(torch.device("cpu"), Counter())(fail, layer)
    assert [tensor.data_ptr() for tensor in layer.parameters()] == before


def test_blocks_are_nearly_all_of_the_network(tiny_model):
    with engine_of(tiny_model) as engine:
        unet = engine.networks["unet"]
    in_blocks = {id(tensor) for block in group_offload.blocks_of(unet) for tensor in group_offload._tensors(block)}
    stay = group_offload.outside_blocks(unet)
    assert {id(tensor) for tensor in unet.parameters()} == in_blocks | {id(tensor) for tensor in stay}
    assert in_blocks.isdisjoint(id(tensor) for tensor in stay)
    assert sum(tensor.numel() for tensor in stay) * 4 == group_offload.bytes_of(unet) - sum(
        map(group_offload.bytes_of, group_offload.blocks_of(unet))
    )
    with engine_of(tiny_model, offload="group") as engine, engine.resident("unet"):
        unet = engine.networks["unet"]
        comes = engine.networks._copies["unet"]._tensors()
        assert {id(tensor) for tensor in comes.values()} == {
            id(tensor) for tensor in group_offload.outside_blocks(unet)
        }


def test_settings_of_blocks_go_together(tiny_model, monkeypatch):
    """Compiled code, blocks in turn (on a CPU moves are none), one byte a weight, pieces, windows and guidance."""
    wanted, others = request(3, window=2, overlap=1, steps=1), {"quantization": "int8", "ff_chunks": 2}
    with engine_of(tiny_model, **others) as engine:
        plain = rendered(engine, wanted)
    monkeypatch.setattr(engine_room, "CompiledBlocks", lambda: CompiledBlocks("aot_eager"))
    with engine_of(tiny_model, offload="group", compile="blocks", **others) as engine:
        found = rendered(engine, wanted)
        assert engine.calls["unet"] == 4
        assert engine.calls["blocks_moved"] == 4 * len(group_offload.blocks_of(engine.networks["unet"]))
    assert np.abs(found.astype(int) - plain.astype(int)).max() <= 1


def test_channels_last_renders_the_same(tiny_model):
    wanted = request(4, window=4, steps=1)
    with engine_of(tiny_model) as engine:
        plain = rendered(engine, wanted)
    with engine_of(tiny_model, channels_last=True) as engine:
        found = rendered(engine, wanted)
        assert not engine.networks["vae"].decoder.conv_in.weight.is_contiguous()
    assert np.abs(found.astype(int) - plain.astype(int)).max() <= 1


class Tape:
    """A ``Record`` without a card: it knows the call and the tensor that its answers are written to."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        self.recorded += 1
        answer = run()
        return (lambda: answer.copy_(run())), answer


def test_replays_read_what_is_given_and_answers_last():
    tape, seen = Tape(), []

    def network(sample: Tensor, noise: Tensor, context: Context, ids: Tensor, pose: Tensor | None) -> Tensor:
        seen.append((sample.data_ptr(), noise.data_ptr()))
        return sample * 2 + noise + context.image.sum() + (0 if pose is None else pose.sum())

    calls = GraphedCalls(network, tape)
    one, other, ids = Context(torch.ones(1), None), Context(torch.zeros(1), None), torch.zeros(1, 3)
    first = calls(torch.full((2,), 1.0), 0.5, one, ids)
    second = calls(torch.full((2,), 3.0), 0.25, one, ids)
    assert (first.tolist(), second.tolist()) == ([3.5, 3.5], [7.25, 7.25])  # the first is not overwritten
    assert tape.recorded == 1
    assert len(set(seen)) == 1  # the same addresses each time
    posed = calls(torch.ones(2), 0.0, other, ids, torch.ones(3))
    assert posed.tolist() == [5.0, 5.0]
    assert calls(torch.ones(2), 0.0, other, ids, torch.zeros(3)).tolist() == [2.0, 2.0]
    assert calls(torch.ones(5), 0.0, one, ids).tolist() == [3.0] * 5  # a shorter window is another graph
    assert tape.recorded == 3


def test_each_card_records_on_a_stream_of_its_own(monkeypatch):
    """torch's own stream for recordings is that of the first card of a process: kernels of another run beside it."""
    streams: list[Any] = []
    cuda = MagicMock(Stream=lambda device=None: SimpleNamespace(device=device, wait_stream=lambda other: None))
    cuda.graph = lambda graph, pool, stream=None: streams.append(stream) or nullcontext()
    monkeypatch.setattr(cuda_graphs.torch, "cuda", cuda)
    for card in (torch.device("cuda:0"), torch.device("cuda:1")):
        recorder = cuda_graphs.Recorder(card)
        for _ in range(2):
            recorder(lambda: torch.ones(1))
    assert [stream and str(stream.device) for stream in streams] == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]


def test_what_this_machine_cannot_do_is_told_before_anything_is_loaded(monkeypatch):
    with pytest.raises(ConfigError, match="--cuda-graphs: found true, expected a CUDA card") as told:
        DevicePlan.of(DeviceConfig(device="cpu", cuda_graphs=True))
    assert "leave --cuda-graphs out" in str(told.value.hint)
    with pytest.raises(ConfigError, match="--cuda-graphs: found true, expected no --offload group"):
        DeviceConfig(cuda_graphs=True, offload="group")
    plan = DevicePlan.of(DeviceConfig(device="cpu", compile="blocks", offload="group", channels_last=True))
    assert plan.describe() == "cpu, float32, compiled blocks, channels last, blocks in turn"
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"--compile: found 'blocks', expected a C\+\+ compiler \(no-such-compiler\)"):
        DevicePlan.of(DeviceConfig(device="cpu", compile="blocks"))
    assert "off on mps" in compilation.missing("mps")[0]


def test_headers_are_part_of_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(compilation.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert "Python.h" in compilation.missing("cpu")[0]
