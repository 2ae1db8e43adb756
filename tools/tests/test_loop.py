"""The training loop: a resumed run repeats an uninterrupted one; unusable checkpoints are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stableanimator_cli.errors import BadInput
from stableanimator_cli.puppets.sample import derive_rng
from tools.figure_networks import loop
from tools.figure_networks.data import Recipe
from tools.figure_networks.loop import Batch, Task, train


class Line(Task):
    """Learn y = 3 x - 1 with some noise in the loss, so that random states matter too."""

    name, steps, batch_size, lr = "line", 120, 16, 0.1

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


def test_it_learns_and_reports(tmp_path: Path) -> None:
    lines: list[str] = []
    net = train(Line(), tmp_path, lines.append)
    assert not net.training
    x = torch.randn(256, 1, generator=torch.Generator().manual_seed(0))
    assert float((net(x) - (3 * x - 1)).square().mean()) < 0.5
    assert "line: step 50 of 120, loss" in lines[0]
    assert lines[-1].endswith("0 s left")


def test_a_resumed_run_repeats_an_uninterrupted_one(tmp_path: Path) -> None:
    uninterrupted = train(Line(), tmp_path / "full", lambda _: None)
    train(Line(), tmp_path / "resumed", lambda _: None, until=37)
    lines: list[str] = []
    resumed = train(Line(), tmp_path / "resumed", lines.append)
    assert lines[0] == "line: resumed at step 37 of 120"
    for name, tensor in uninterrupted.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, rtol=0, atol=0)
    assert [path.name for path in (tmp_path / "resumed").iterdir()] == ["line.pt"]


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first = train(Line(), tmp_path, lambda _: None)
    size = (tmp_path / "line.pt").stat().st_size
    task = Line()
    again = train(task, tmp_path, lambda text: pytest.fail(text))
    assert not hasattr(task, "loaded")
    torch.testing.assert_close(list(again.parameters()), list(first.parameters()), rtol=0, atol=0)
    assert (tmp_path / "line.pt").stat().st_size == size


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    train(Line(), tmp_path, lambda _: None, until=3)
    longer = Line()
    longer.steps = 200
    with pytest.raises(BadInput, match=r"line\.pt: found a checkpoint of .*'steps': 120.*expected one of .*200"):
        train(longer, tmp_path, lambda _: None)


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    """The detectors of portraits have the names of the others and the same default folder."""
    train(Line(), tmp_path, lambda _: None)
    other = Line()
    other.recipes = (Recipe(name="portraits", shards=0, draw=lambda shard: {}),)
    with pytest.raises(BadInput, match=r"line\.pt: found a checkpoint of .*expected one of .*portraits"):
        train(other, tmp_path, lambda _: None)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "line.pt").write_bytes(b"PK\x03\x04 half of a file")
    with pytest.raises(BadInput, match="a damaged checkpoint") as caught:
        train(Line(), tmp_path, lambda _: None)
    assert caught.value.hint is not None
    assert "delete it" in caught.value.hint


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [loop._schedule(step, 1000) for step in range(1000)]
    assert rates[0] < 0.05 < rates[20] < rates[60]
    assert rates[999] == pytest.approx(0.01, abs=1e-4)
