"""Optimisers: AdamW like the reference implementation, and Muon for networks that are trained from scratch.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) orthogonalises the update of each matrix, so that
directions with small gradients are learned as fast as others. torch's Muon accepts matrices only; convolution kernels
are passed as views [out, in*k*k]. Norms, biases, scalars and narrow matrices use AdamW. Updates have the RMS of AdamW's
(``match_rms_adamw``, Liu et al. 2025, arXiv:2502.16982), so one learning rate serves both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from stableanimator_cli.config.train import OptimizerConfig

_NARROW = 16  # shortest side of a matrix that Muon optimises


def build_optimizer(settings: OptimizerConfig, lr: float, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimiser of ``settings``. ``parameters`` must have their final dtype and memory format."""
    adamw = {
        "betas": (settings.beta1, settings.beta2),
        "eps": settings.epsilon,
        "weight_decay": settings.weight_decay,
    }
    if settings.kind == "muon":
        return MuonAndAdamW(parameters, lr, adamw)
    return torch.optim.AdamW(list(parameters), lr=lr, **adamw)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for matrices and kernels, AdamW with arguments ``adamw`` for the rest, at the groups' learning rate.

    ``optimizers`` are the two, without the one that has no parameters.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, adamw: dict[str, Any]) -> None:
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for parameter in parameters:
            groups[_is_matrix(parameter)].append(parameter)
        super().__init__([{"params": group} for group in groups.values() if group], {"lr": lr})
        self.optimizers: list[torch.optim.Optimizer] = []
        self._views = [(parameter, nn.Parameter(_as_matrix(parameter.detach()))) for parameter in groups[True]]
        if groups[True]:
            views = [view for _, view in self._views]
            decay = adamw["weight_decay"]
            self.optimizers.append(torch.optim.Muon(views, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
        if groups[False]:
            self.optimizers.append(torch.optim.AdamW(groups[False], lr=lr, **adamw))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("this optimiser does not support closures")
        for optimizer, group in zip(self.optimizers, self.param_groups, strict=True):
            for inner in optimizer.param_groups:
                inner["lr"] = group["lr"]
        for parameter, view in self._views:
            view.grad = None if parameter.grad is None else _as_matrix(parameter.grad, like=parameter)
        for optimizer in self.optimizers:
            optimizer.step()
        for _, view in self._views:
            view.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["parts"], strict=True):
            optimizer.load_state_dict(state)


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) >= _NARROW


def _as_matrix(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """View ``tensor`` as [out, rest] in the memory order of ``like``, by default its own, without copying a parameter.

    The order of columns does not matter to an orthogonal update.
    """
    like = tensor if like is None else like
    if not like.is_contiguous():
        channels_last = (0, *range(2, like.ndim), 1)
        if not like.permute(channels_last).is_contiguous():
            raise ValueError(f"a parameter of shape {tuple(like.shape)} has an unknown memory format")
        tensor = tensor.permute(channels_last)
    return tensor.reshape(like.shape[0], -1)
