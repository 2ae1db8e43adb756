"""The speed behind ``sa train --plan`` is that of the network's own operators, not of a matrix that launches bound."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stableanimator_cli.engine import throughput
from stableanimator_cli.engine.memory.profile import FlopCounter

CPU = torch.device("cpu")


def counted() -> FlopCounter:
    with FlopCounter() as counter:
        x = torch.empty(2, 8, 16, 16, device="meta", requires_grad=True)
        y = F.conv2d(x, torch.empty(4, 8, 3, 3, device="meta", requires_grad=True), padding=1)
        (y.flatten(1) @ torch.empty(1024, 32, device="meta")).sum().backward()
    return counter


def test_every_product_is_timed_at_its_own_shape(monkeypatch):
    counter = counted()
    assert sum(counter.calls.values()) == counter.total
    timed: list[tuple[str, tuple[int, ...]]] = []
    seconds = throughput._seconds

    def watched(call, device, dtype):
        timed.append((str(call[0]), call[1][0].shape))
        assert seconds(call, device, dtype) is not None  # runs here, backward included
        return 100.0, 0.5

    monkeypatch.setattr(throughput, "_seconds", watched)
    assert throughput.flops_per_second(counter.calls, CPU, torch.float32) == pytest.approx(200)
    assert ("aten.convolution.default", (2, 8, 16, 16)) in timed
    assert ("aten.mm.default", (2, 1024)) in timed
    assert any("convolution_backward" in name for name, _ in timed)


def test_operators_that_a_device_lacks_are_left_out():
    def refuse(*_: object) -> None:
        raise RuntimeError("no kernel")

    call = (refuse, (throughput.Operands((2, 2), (2, 1), True),), ())
    assert throughput.flops_per_second({call: 8.0}, CPU, torch.float32) is None
