"""Rows of several ranks, gathered as JSON."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

from tests.train.test_ranks import free_port


def _rank(rank: int, port: str, out: str) -> None:
    import os

    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()} | {"ACCELERATE_USE_CPU": "true"})
    from accelerate import Accelerator

    from stableanimator_cli.train.processes import gather_rows

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    rows = [("clip ü", [1, 2], 0.25)] if rank == 0 else [("b", [3], float("inf")), ("c", [], 1.0)]
    Path(f"{out}{rank}").write_text(json.dumps(gather_rows(accelerator, rows)))
    accelerator.end_training()


def test_rows_of_unequal_length_are_the_same_on_every_rank(tmp_path):
    context, port = multiprocessing.get_context("spawn"), free_port()
    ranks = [context.Process(target=_rank, args=(rank, port, str(tmp_path / "out"))) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(240)
        assert rank.exitcode == 0
    found = [json.loads((tmp_path / f"out{rank}").read_text()) for rank in range(2)]
    assert found[0] == found[1] == [["clip ü", [1, 2], 0.25], ["b", [3], float("inf")], ["c", [], 1.0]]
