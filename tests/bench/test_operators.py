"""Times of operators beside the roofline: what is counted for which operator, and the rows of a profile."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from stableanimator_cli.bench.counters import count_flops
from stableanimator_cli.bench.operators import OTHERS, OUTSIDE, OperatorTimes, operator_rows, time_operators
from stableanimator_cli.bench.roofline import Roof
from tests.bench.test_measures import bench_run


def measured(run) -> OperatorTimes:
    """Each look at the clock is one second after the one before, so an operator takes one second."""
    ticks = count()
    with OperatorTimes(lambda: None, clock=lambda: float(next(ticks))) as times:
        run()
    return times


def test_an_operator_has_its_seconds_flops_and_bytes():
    a, b = torch.ones(4, 8), torch.ones(8, 2)
    times = measured(lambda: (a @ b, a.t() @ a, a.relu_()))
    assert times.calls == {"mm": 2, "t": 1, "relu_": 1}
    assert times.seconds == {"mm": 2.0, "t": 1.0, "relu_": 1.0}
    assert times.flops["mm"] == 2 * 4 * 8 * 2 + 2 * 8 * 4 * 8
    assert times.bytes["mm"] == 4 * (4 * 8 + 8 * 2 + 4 * 2) + 4 * (2 * 4 * 8 + 8 * 8)
    assert times.bytes["relu_"] == 4 * 4 * 8  # one tensor, whose result it is
    assert times.bytes["t"] == 0


def test_memory_that_is_shared_or_left_as_it_was_is_not_moved():
    x = torch.ones(4, 8)
    times = measured(lambda: (torch.ops.aten._unsafe_view(x, [8, 4]), torch.empty(99), torch.empty_like(x), x.clone()))
    assert {name for name, moved in times.bytes.items() if moved} == {"clone"}
    assert set(times.calls) >= {"_unsafe_view", "empty", "clone"}


def test_a_repeated_tensor_is_read_once():
    row = torch.ones(1, 8)
    times = measured(lambda: row.expand(1000, 8) + 1)
    assert times.bytes["add"] == 4 * (8 + 1000 * 8)


def test_attention_of_a_cpu_has_flops_forward_and_backward():
    q = torch.randn(2, 3, 16, 8, requires_grad=True)
    product = 2 * 2 * 3 * 16 * 16 * 8

    def both() -> None:
        F.scaled_dot_product_attention(q, q, q).sum().backward()

    flops = measured(both).flops
    assert flops["_scaled_dot_product_flash_attention_for_cpu"] == 2 * product
    assert flops["_scaled_dot_product_flash_attention_for_cpu_backward"] == 5 * product  # one is computed again


def test_rows_fall_by_time_and_sum_up():
    with torch.no_grad():
        times = measured(lambda: [torch.ones(64, 64) @ torch.ones(64, 64) for _ in range(99)])
        times.seconds["neg"], times.calls["neg"] = 1.0, 1
    roof = Roof(torch.float32, gflops=2 * 64**3 / 1e9, bandwidth=1e9)  # a product in a second, bytes in no time
    rows = {row["operator"]: row for row in operator_rows([times, times], roof, plain=400.0)}
    assert list(rows) == ["ones", "mm", f"{OTHERS} (1)", OUTSIDE, "all"]
    assert rows["mm"]["ms"] == rows["mm"]["ms by the roof"] == pytest.approx(99_000)
    assert rows["mm"]["% of the roof"] == pytest.approx(100)
    assert rows[OUTSIDE]["ms"] == pytest.approx(400_000 - 99_000 - 198_000 - 1_000)
    assert sum(row["% of the time"] for name, row in rows.items() if name != "all") == pytest.approx(100)
    assert rows["all"]["calls"] == 99 + 198 + 1


def test_a_model_is_measured_in_a_step_in_decoding_and_in_training(tiny_model: Path):
    tables = time_operators(bench_run(networks=str(tiny_model), size=(64, 64), frames=2))
    assert [table.title.split(" of ")[0].split(",")[0] for table in tables] == [
        "A guided step", "Decoding", "A training step",
    ]  # fmt: skip
    for table in tables:
        rows = {row["operator"]: row for row in table.rows}
        assert rows["convolution"]["GFLOP"] > 0
        assert rows["all"]["ms by the roof"] > 0
    assert "convolution_backward" in {row["operator"] for row in tables[2].rows}


@torch.no_grad()
def test_flops_are_those_that_are_counted_elsewhere():
    conv = torch.nn.Conv2d(4, 8, 3)
    x, q = torch.ones(2, 4, 9, 9), torch.ones(2, 3, 16, 8)

    def run() -> None:
        conv(x)
        F.scaled_dot_product_attention(q, q, q)

    assert sum(measured(run).flops.values()) == count_flops(run)
