"""Muon on matrices and kernels, AdamW on the rest: against what each does alone, in memory, and restored."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from stableanimator_cli.config.train import OptimizerConfig
from stableanimator_cli.train.optimizer import MuonAndAdamW, build_optimizer


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(16, 32, 3), nn.GroupNorm(4, 32), nn.Flatten(), nn.Linear(32, 24), nn.SiLU(), nn.Linear(24, 4)
    )


def _loss(network: nn.Module, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(8, 16, 3, 3, generator=generator), torch.randn(8, 4, generator=generator)
    return (network(x) - y).square().mean()


def _train(network: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[float]:
    losses = []
    for seed in range(first, last):
        loss = _loss(network, seed)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def test_matrices_are_muons_and_the_rest_is_adamws() -> None:
    ours, alone = _network(), _network()
    optimizer = build_optimizer(OptimizerConfig(kind="muon", weight_decay=0.0), 1e-2, ours.parameters())
    muon = torch.optim.Muon([alone[3].weight], lr=1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    rest = [p for m in (alone[0], alone[1], alone[3], alone[5]) for p in m.parameters() if p is not alone[3].weight]
    adamw = torch.optim.AdamW([p for p in rest if p.ndim == 1 or p is alone[5].weight], lr=1e-2, weight_decay=0.0)
    for network in (ours, alone):
        _loss(network, 0).backward()
    for step in (optimizer, muon, adamw):
        step.step()
    assert torch.equal(ours[3].weight, alone[3].weight)
    assert torch.equal(ours[5].weight, alone[5].weight), "four rows: too narrow for Muon"
    assert torch.equal(ours[1].weight, alone[1].weight)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_kernel_moves_by_an_orthogonal_matrix_whatever_its_memory(channels_last: bool) -> None:
    network = _network()
    if channels_last:
        network[0].weight.data = network[0].weight.data.contiguous(memory_format=torch.channels_last)
    before = network[0].weight.detach().clone()
    optimizer = build_optimizer(OptimizerConfig(kind="muon", weight_decay=0.0), 1e-2, network.parameters())
    _train(network, optimizer, 0, 1)
    moved = (before - network[0].weight.detach()).flatten(1) / (1e-2 * 0.2 * 144**0.5)
    values = torch.linalg.svdvals(moved)
    assert values.max() < 1.3
    assert values[5] > 0.6  # eight samples give a gradient of few directions: those go equally far


def test_restored_it_goes_on_as_if_never_stopped() -> None:
    settings = OptimizerConfig(kind="muon")
    whole = _network()
    unbroken = _train(whole, build_optimizer(settings, 1e-2, whole.parameters()), 0, 6)
    half = _network()
    first = build_optimizer(settings, 1e-2, half.parameters())
    before = _train(half, first, 0, 3)
    state = copy.deepcopy(first.state_dict())
    second = build_optimizer(settings, 1e-2, half.parameters())
    second.load_state_dict(state)
    assert before + _train(half, second, 3, 6) == unbroken


def test_the_groups_rate_is_everybodys() -> None:
    network = _network()
    optimizer = build_optimizer(OptimizerConfig(kind="muon", weight_decay=0.0), 1e-2, network.parameters())
    before = [parameter.detach().clone() for parameter in network.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    _train(network, optimizer, 0, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_no_closure() -> None:
    with pytest.raises(ValueError, match="closures"):
        MuonAndAdamW(_network().parameters(), 1e-2, {"weight_decay": 0.0}).step(lambda: 0.0)
