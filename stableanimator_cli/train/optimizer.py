"""The optimisers of training: AdamW as upstream has it, and Muon for the matrices of a network begun from nothing.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) makes each update of a matrix orthogonal, so that
directions with small gradients are learned as fast as those with large ones. torch's own takes matrices only; here
convolution kernels go to it as matrices [out, in*k*k] of the same memory. What is no matrix (norms, biases, scalars,
few channels) stays with AdamW. Updates have the root mean square of AdamW's (``match_rms_adamw``, Liu et al. 2025,
arXiv:2502.16982), so one rate serves both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from stableanimator_cli.config.train import OptimizerConfig

_NARROW = 16  # a matrix with a shorter side has too few directions to even out


def optimizer_of(settings: OptimizerConfig, rate: float, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser that ``settings`` name, over ``parameters`` in their final memory and type."""
    adamw = {
        "betas": (settings.beta1, settings.beta2),
        "eps": settings.epsilon,
        "weight_decay": settings.weight_decay,
    }
    if settings.kind == "muon":
        return MuonAndAdamW(parameters, rate, adamw)
    return torch.optim.AdamW(list(parameters), lr=rate, **adamw)


class MuonAndAdamW(torch.optim.Optimizer):
    """torch's Muon on matrices and kernels, torch's AdamW (with ``adamw``) on the rest; both at the groups' rate."""

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float, adamw: dict[str, Any]) -> None:
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for parameter in parameters:
            groups[_is_matrix(parameter)].append(parameter)
        super().__init__([{"params": group} for group in groups.values() if group], {"lr": rate})
        self._parts: list[torch.optim.Optimizer] = []
        self._views = [(parameter, nn.Parameter(_as_matrix(parameter.detach()))) for parameter in groups[True]]
        if groups[True]:
            views = [view for _, view in self._views]
            decay = adamw["weight_decay"]
            self._parts.append(torch.optim.Muon(views, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
        if groups[False]:
            self._parts.append(torch.optim.AdamW(groups[False], lr=rate, **adamw))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update of every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("closures are not for this optimiser")
        for part, group in zip(self._parts, self.param_groups, strict=True):
            for own in part.param_groups:
                own["lr"] = group["lr"]
        for parameter, view in self._views:
            view.grad = None if parameter.grad is None else _as_matrix(parameter.grad, like=parameter)
        for part in self._parts:
            part.step()
        for _, view in self._views:
            view.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) >= _NARROW


def _as_matrix(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """[out, rest] in the order in which ``like`` (the tensor itself, where not given) lies in memory: of a parameter
    that is a view, never a copy. An order of columns of its own changes nothing for an orthogonal update."""
    like = tensor if like is None else like
    if not like.is_contiguous():
        channels_last = (0, *range(2, like.ndim), 1)
        if not like.permute(channels_last).is_contiguous():
            raise ValueError(f"a parameter of shape {tuple(like.shape)} lies in memory in no order known here")
        tensor = tensor.permute(channels_last)
    return tensor.reshape(like.shape[0], -1)
