"""The training loop of all the small networks: seeded, resumable at any time, with small checkpoints.

The batch of a step follows from the step's number, so a resumed run sees the same images in the same order as an
uninterrupted one. The result is the moving average of the weights (Polyak averaging), which a short training at a high
learning rate needs.
"""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stableanimator_cli.engine.device import has_bfloat16
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import temporary_path
from stableanimator_cli.puppets.sample import derive_seed
from tools.figure_networks.data import Recipe

Batch = dict[str, Tensor]
Report = Callable[[str], None]

_SAVE_EVERY = 45.0  # seconds
_REPORT_EVERY = 50  # steps
_EMA = 0.995
_WARM_UP = 40


class Task(ABC):
    """A network to train: its data, its loss and its files.

    ``network`` returns an initialised module; ``loss`` returns the value to minimise and numbers to report.
    """

    name: str
    steps: int
    batch_size: int
    lr: float = 2e-3
    weight_decay: float = 0.02
    recipes: Sequence[Recipe] = ()

    @abstractmethod
    def network(self) -> nn.Module: ...

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Load the caches into memory."""

    @abstractmethod
    def batch(self, step: int) -> Batch: ...

    @abstractmethod
    def loss(self, net: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]: ...

    @abstractmethod
    def export(self, net: nn.Module, folder: Path) -> list[Path]:
        """Write the trained network's files into ``folder``; returns their paths."""

    def settings(self) -> dict[str, Any]:
        """The settings that a checkpoint must have to be resumed."""
        data = [recipe.name for recipe in self.recipes]
        return {"name": self.name, "steps": self.steps, "batch_size": self.batch_size, "rate": self.lr, "data": data}


def train(task: Task, folder: Path, report: Report, *, workers: int = 1, until: int | None = None) -> nn.Module:
    """The task's trained network, resumed from ``folder`` if a checkpoint exists.

    ``until`` stops earlier (for tests). Raises ``BadInput`` if the checkpoint is damaged or has other settings.
    """
    torch.manual_seed(derive_seed("train", task.name))
    net = task.network()
    for weight in net.parameters():
        if weight.ndim == 4:  # the layout in which a CPU convolves fastest
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    average = task.network()
    average.load_state_dict(net.state_dict())
    optimizer = torch.optim.AdamW(_groups(net, task.weight_decay), lr=task.lr, betas=(0.9, 0.98))
    path = folder / f"{task.name}.pt"
    step = _resume(path, task, net, average, optimizer)
    last = task.steps if until is None else min(until, task.steps)
    if step < last:
        for recipe in task.recipes:
            recipe.prepare(folder, workers, report)
        task.load(folder)
        if step:
            report(f"{task.name}: resumed at step {step} of {task.steps}")
    started = saved = time.monotonic()
    first = step
    half = has_bfloat16(torch.device("cpu"))
    net.train()
    shown: dict[str, float] = {}
    while step < last:
        for group in optimizer.param_groups:
            group["lr"] = task.lr * _schedule(step, task.steps)
        # Noise within the network follows from the step too, so a resumed run repeats an uninterrupted one.
        torch.manual_seed(derive_seed("step", task.name, step))
        batch = task.batch(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss, numbers = task.loss(net, batch, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        step += 1
        _update_average(average, net, min(_EMA, (1 + step) / (10 + step)))
        for key, value in {"loss": float(loss.detach()), **numbers}.items():
            shown[key] = value if key not in shown else 0.95 * shown[key] + 0.05 * value
        if step % _REPORT_EVERY == 0 or step == last:
            seconds = (time.monotonic() - started) / (step - first)
            numbers_text = " ".join(f"{key} {value:.4f}" for key, value in shown.items())
            report(f"{task.name}: step {step} of {task.steps}, {numbers_text}, {seconds * (last - step):.0f} s left")
        if step == last or time.monotonic() - saved > _SAVE_EVERY:
            _save(path, task, step, net, average, optimizer)
            saved = time.monotonic()
    return average.eval().requires_grad_(False)


def _groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _schedule(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / _WARM_UP)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))))


@torch.no_grad()
def _update_average(average: nn.Module, net: nn.Module, decay: float) -> None:
    for averaged, current in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        if averaged.is_floating_point():
            averaged.lerp_(current, 1 - decay)
        else:
            averaged.copy_(current)


def _save(
    path: Path, task: Task, step: int, net: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = temporary_path(path)
    state = {"settings": task.settings(), "step": step, "net": net.state_dict(), "average": average.state_dict()}
    if step < task.steps:  # a finished network is not resumed
        state["optimizer"] = optimizer.state_dict()
    torch.save(state, temp)
    os.replace(temp, path)


def _resume(path: Path, task: Task, net: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    hint = "delete it to restart, or name another folder"
    try:
        state = torch.load(path, weights_only=True)
        stored = state["settings"]
        if stored == task.settings():
            net.load_state_dict(state["net"])
            average.load_state_dict(state["average"])
            if "optimizer" in state:
                optimizer.load_state_dict(state["optimizer"])
            return int(state["step"])
    except Exception as error:  # torch.load raises errors of any kind for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(path, f"a damaged checkpoint ({reason})", f"one of {task.name}", hint=hint) from error
    raise BadInput(path, f"a checkpoint of {stored}", f"one of {task.settings()}", hint=hint)
