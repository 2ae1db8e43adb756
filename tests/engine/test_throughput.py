"""The speed behind ``sa train --plan`` is that of the network's own operators, not of a matrix that launches bound."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path

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


def test_a_measurement_is_kept_for_a_week_and_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SA_HOME", str(tmp_path))
    monkeypatch.setattr(throughput, "_waited", lambda: 0.0)
    calls, speeds = counted().calls, iter([5.0, 6.0, 7.0, 8.0])
    monkeypatch.setattr(throughput, "flops_per_second", lambda *_: next(speeds))
    today = datetime.date.today().isoformat()
    for _ in range(2):
        assert throughput.throughput(calls, CPU, torch.float32) == throughput.Throughput(5.0, today)
    more = {call: 3 * flops for call, flops in calls.items()}  # three times the steps: the same mixture
    assert throughput.throughput(more, CPU, torch.float32).flops_per_second == 5.0
    assert throughput.throughput(calls, CPU, torch.bfloat16).flops_per_second == 6.0
    file = tmp_path / "throughput.json"
    rows = json.loads(file.read_text())
    old = (datetime.date.today() - datetime.timedelta(days=8)).isoformat()
    for row in rows["measured"].values():
        row["date"] = old
    file.write_text(json.dumps(rows))
    assert throughput.throughput(calls, CPU, torch.float32) == throughput.Throughput(7.0, today)
    for damage in ("", "[]", '{"measured": {"a": 1}}', '{"measured": []}'):
        file.write_text(damage or "{")
    assert throughput.throughput(calls, CPU, torch.float32).flops_per_second == 8.0


def test_a_measurement_beside_other_programs_is_not_stored(tmp_path, monkeypatch):
    """It was valid for a week, in which every plan predicted the times of that load."""
    monkeypatch.setenv("SA_HOME", str(tmp_path))
    speeds, waited = iter([2.0, 3.0, 5.0]), iter([0.0, 1.0, 1.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(throughput, "flops_per_second", lambda *_: next(speeds))
    monkeypatch.setattr(throughput, "_waited", lambda: next(waited))
    for speed in (2.0, 3.0, 5.0, 5.0):
        assert throughput.throughput(counted().calls, CPU, torch.float32).flops_per_second == speed


@pytest.mark.skipif(not Path("/proc/thread-self/schedstat").is_file(), reason="Linux counts it")
def test_waiting_for_a_core_is_counted():
    """Two threads that share one core wait for it in turn."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"])  # inherits the core
        try:
            before, until = throughput._waited(), time.monotonic() + 30
            while throughput._waited() - before < 0.05:
                assert time.monotonic() < until
        finally:
            other.kill()
            other.wait()
    finally:
        os.sched_setaffinity(0, cores)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "throughput.json").write_text("mine")
    monkeypatch.setenv("SA_HOME", str(tmp_path))
    monkeypatch.setattr(throughput, "flops_per_second", lambda *_: 5.0)
    assert throughput.throughput(counted().calls, CPU, torch.float32).flops_per_second == 5.0
    assert (tmp_path / "throughput.json").read_text() == "mine"


def test_a_burst_of_load_does_not_count(monkeypatch):
    runs = iter([(100.0, 9.0), (100.0, 1.0), (100.0, 7.0), (100.0, 8.0), (100.0, 9.0)])
    monkeypatch.setattr(throughput, "_seconds", lambda *_: next(runs))
    call = (torch.ops.aten.mm.default, (), ())
    assert throughput.flops_per_second({call: 100.0}, CPU, torch.float32) == pytest.approx(100)
