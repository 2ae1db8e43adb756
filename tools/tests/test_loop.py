"""The training loop: what was cut goes on as if it had not been, and what cannot go on says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stableanimator_cli.errors import BadInput
from stableanimator_cli.puppets.sample import derive_rng
from tools.figure_networks import loop
from tools.figure_networks.loop import Batch, Task, trained


class Line(Task):
    """Learn y = 3 x - 1 with some noise inside the loss, so that random numbers matter too."""

    name, steps, batch_size, rate = "line", 120, 16, 0.1

    def network(self) -> nn.Module:
        return nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))

    def load(self, folder: Path) -> None:
        self.loaded = True

    def batch(self, step: int) -> Batch:
        return {"x": torch.from_numpy(derive_rng("line", step).normal(size=(self.batch_size, 1))).float()}

    def loss(self, net: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        x = batch["x"]
        return (net(x) - (3 * x - 1) + 0.01 * torch.randn_like(x)).square().mean(), {"step": step}

    def export(self, net: nn.Module, folder: Path) -> list[Path]:
        raise NotImplementedError


def test_it_learns_and_tells(tmp_path: Path) -> None:
    lines: list[str] = []
    net = trained(Line(), tmp_path, lines.append)
    assert not net.training
    x = torch.randn(256, 1, generator=torch.Generator().manual_seed(0))
    assert float((net(x) - (3 * x - 1)).square().mean()) < 0.5
    assert "line: step 50 of 120, loss" in lines[0]
    assert lines[-1].endswith("0 s to go")


def test_cut_and_gone_on_with_is_the_same_as_uncut(tmp_path: Path) -> None:
    whole = trained(Line(), tmp_path / "whole", lambda _: None)
    trained(Line(), tmp_path / "cut", lambda _: None, until=37)
    lines: list[str] = []
    pieces = trained(Line(), tmp_path / "cut", lines.append)
    assert lines[0] == "line: resumes at step 37 of 120"
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(pieces.state_dict()[name], tensor, rtol=0, atol=0)
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["line.pt"]


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    first = trained(Line(), tmp_path, lambda _: None)
    size = (tmp_path / "line.pt").stat().st_size
    task = Line()
    again = trained(task, tmp_path, lambda text: pytest.fail(text))
    assert not hasattr(task, "loaded")
    torch.testing.assert_close(list(again.parameters()), list(first.parameters()), rtol=0, atol=0)
    assert (tmp_path / "line.pt").stat().st_size == size


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    trained(Line(), tmp_path, lambda _: None, until=3)
    longer = Line()
    longer.steps = 200
    with pytest.raises(BadInput, match=r"line\.pt: found a checkpoint of .*'steps': 120.*expected one of .*200"):
        trained(longer, tmp_path, lambda _: None)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "line.pt").write_bytes(b"PK\x03\x04 half of a file")
    with pytest.raises(BadInput, match="a checkpoint that does not open") as caught:
        trained(Line(), tmp_path, lambda _: None)
    assert caught.value.hint is not None
    assert "delete it" in caught.value.hint


def test_the_rate_rises_and_falls() -> None:
    rates = [loop._schedule(step, 1000) for step in range(1000)]
    assert rates[0] < 0.05 < rates[20] < rates[60]
    assert rates[999] == pytest.approx(0.01, abs=1e-4)
