"""The one training loop: stages, steps, accumulation, ranks, checkpoints. What a step sees follows from its number.

The loss of a step is the mean over the global batch: each rank takes its share of the samples and a share in parts of
``memory.micro``, so ranks and parts change nothing but the order in which numbers are added up.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from stableanimator_cli.config.train import StageConfig, TrainConfig
from stableanimator_cli.engine.device import memory_guard
from stableanimator_cli.engine.training.fsdp import gather, scatter_state, shard
from stableanimator_cli.errors import BadInput, Interrupted
from stableanimator_cli.progress import Reporter
from stableanimator_cli.train.checkpoint import State
from stableanimator_cli.train.ema import EMA
from stableanimator_cli.train.gathering import gather_rows
from stableanimator_cli.train.lr_schedule import learning_rate
from stableanimator_cli.train.metrics_log import Metrics, bad_batch
from stableanimator_cli.train.optimizer import optimizer_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from stableanimator_cli.engine.training.batch import Batch

HINT = "use a smaller --micro-batch, --checkpointing blocks, --train adapters, a smaller --sizes, or --max-memory"
B = TypeVar("B")


class OpenStage(Protocol):
    """A stage with its networks in memory. ``model(inputs(batch))`` is the loss of each sample, float32[b]."""

    model: nn.Module

    def stream(self, first: int, last: int) -> Iterator[Batch]: ...

    def inputs(self, batch: Batch) -> Any: ...

    def export(self, trained: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
        """Weights by role: the ``trained`` ones in ``dtype``, all others as the files of the base model hold them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPosition:
    """Where a training is: ``step`` steps done in all, ``within`` of them in stage number ``stage``."""

    step: int = 0
    stage: int = 0
    within: int = 0
    samples: int = 0


@dataclass(slots=True, kw_only=True)
class Hooks:
    """What the loop asks for: a stage opened, a checkpoint written (by one rank; what validation then measured, or None
    without one), and whether one is due."""

    open_stage: Callable[[int], OpenStage]
    save: Callable[[TrainPosition, dict[str, dict[str, Tensor]], State], Mapping[str, float | None] | None]
    wants: Callable[[TrainPosition, bool], bool]


class Loop:
    """One training in one process, of ``accelerator.num_processes``. ``state`` is what it goes on from."""

    def __init__(
        self, config: TrainConfig, dtype: str, accelerator: Accelerator, hooks: Hooks, metrics: Metrics,
        reporter: Reporter, state: State | None,
    ) -> None:  # fmt: skip
        self.config, self.accelerator, self.hooks, self.metrics, self.reporter = (
            config,
            accelerator,
            hooks,
            metrics,
            reporter,
        )
        self.place = TrainPosition() if state is None else TrainPosition(**state.progress["place"])
        self.average = EMA(config.optimizer.ema)
        self.touched: dict[str, Tensor] = {}
        self.optimizer_state: Mapping[str, Any] | None = None
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=dtype == "float16")
        if state is not None:
            self.average.values = {name: value.float() for name, value in state.average.items()}
            self.touched = dict(state.weights)
            self.optimizer_state = state.optimizer
            if state.scaler:
                self.scaler.load_state_dict(dict(state.scaler))
        stages = config.stage or ()
        self.total = sum(stage.steps or 0 for stage in stages)

    def run(self) -> None:
        """All stages from where the state is. Raises ``SaError``; checkpoints that were written stay."""
        stages = self.config.stage or ()
        hint = f"`sa train --resume {self.config.output}` goes on from the last checkpoint"
        with self.reporter.progress(self.total, "train", "step") as bar:
            if self.place.step:
                bar.update(self.place.step)
            try:
                for index in range(self.place.stage, len(stages)):
                    if index != self.place.stage:
                        self.place = replace(self.place, stage=index, within=0)
                        self.optimizer_state = None
                    if self.place.within < (stages[index].steps or 0):
                        self._stage(stages[index], bar.update)
            except KeyboardInterrupt:
                raise Interrupted(f"interrupted at step {self.place.step}", hint=hint) from None
            except RuntimeError as error:
                if self.accelerator.num_processes == 1 or not _is_lost_rank(error):
                    raise
                with suppress(ValueError):  # not in the main thread, which alone is sent anything
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends all home: first this is told
                message = f"another of the {self.accelerator.num_processes} processes is gone at step {self.place.step}"
                raise Interrupted(message, hint=hint) from None

    def _stage(self, stage: StageConfig, show: Callable[..., None]) -> None:
        self.accelerator.free_memory()
        self.touched = {name: value.cpu() for name, value in gather(self.touched).items()}
        with memory_guard("loading the networks", HINT):
            opened = self.hooks.open_stage(self.place.stage)
        parameters = dict(opened.model.named_parameters())
        _restore(parameters, self.touched)
        ranks = self.accelerator.num_processes
        sharded = ranks > 1 and self.config.memory.sharding == "full"
        if sharded:
            with memory_guard("cutting the networks into pieces", HINT):
                shard(opened.model, torch.device(self.accelerator.device))
            parameters = dict(opened.model.named_parameters())
        for name in self.touched:
            self.touched[name] = parameters[name].detach()
        trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        self.touched |= {name: parameter.detach() for name, parameter in trained.items()}
        self.average.attach(parameters)
        settings = self.config.optimizer
        wrapped = self.accelerator.prepare_model(opened.model) if ranks > 1 and not sharded else opened.model
        optimizer = optimizer_of(settings, stage.lr, trained.values())
        if self.optimizer_state is not None:
            optimizer.load_state_dict(scatter_state(self.optimizer_state, list(trained.values())))
            self.optimizer_state = None
        wrapped.train()
        share = stage.batch // self.accelerator.num_processes
        last = cast(int, stage.steps)
        for batch in opened.stream(self.place.within, last):
            started = time.perf_counter()
            rate = learning_rate(stage, self.place.within)
            for group in optimizer.param_groups:
                group["lr"] = rate
            losses = self._gradients(opened, wrapped, batch, share)
            loss = self._mean(losses)
            norm = self._update(optimizer, trained, batch, loss, losses)
            place = self.place
            self.place = replace(
                place, step=place.step + 1, within=place.within + 1, samples=place.samples + stage.batch
            )
            if settings.ema:
                self.average.update(trained, self.place.step)
            row = {
                "step": self.place.step,
                "stage": stage.name,
                "loss": loss,
                "rate": rate,
                "gradient": norm if math.isfinite(norm) else None,
                "seconds": round(time.perf_counter() - started, 4),
                "samples": self.place.samples,
            }
            self.metrics.write(row)
            self.accelerator.log({"loss": loss, "rate": rate, "gradient": norm}, step=self.place.step)
            show(1, stage=stage.name, loss=loss, rate=rate)
            if self.hooks.wants(self.place, self.place.within == last):
                self._save(opened, optimizer)

    def _gradients(self, opened: OpenStage, wrapped: nn.Module, batch: Batch, share: int) -> Tensor:
        """Add up the gradients of this rank's share; its losses float32[share]."""
        size = self.config.memory.micro_batch or share
        found: list[Tensor] = []
        for start in range(0, share, size):
            part = batch if size >= share else piece(batch, start, min(start + size, share))
            # in pieces no rank has room for gradients that are not shared: there ``no_sync`` does nothing
            shared = start + size >= share or self.accelerator.num_processes == 1
            with nullcontext() if shared else self.accelerator.no_sync(wrapped), memory_guard("a training step", HINT):
                losses = wrapped(opened.inputs(part))
                self.scaler.scale(losses.sum() / share).backward()
            found.append(losses.detach().float())
        return torch.cat(found)

    def _mean(self, losses: Tensor) -> float:
        """The mean over all ranks' shares, which are of one size."""
        if self.accelerator.num_processes > 1:
            losses = cast(Tensor, self.accelerator.reduce(losses.mean(), "mean"))
        return float(losses.mean())

    def _update(
        self,
        optimizer: torch.optim.Optimizer,
        trained: Mapping[str, nn.Parameter],
        batch: Batch,
        loss: float,
        losses: Tensor,
    ) -> float:
        """Check, clip and step; the gradient's norm before it was clipped."""
        self.scaler.unscale_(optimizer)
        given = [parameter for parameter in trained.values() if parameter.grad is not None]
        limit = self.config.optimizer.max_grad_norm or math.inf
        norm = float(gather(nn.utils.clip_grad_norm_(given, limit)))
        # float16 looks for its scale by overflowing: the step is left out, and that is no fault
        looking = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        seen = 0.0 if looking and not math.isfinite(norm) else norm
        what = self.metrics.check_spike(loss, seen, self.config.optimizer.loss_spike_factor)
        if what is not None:
            samples = list(zip(batch.clips, batch.frames.tolist(), losses.tolist(), strict=True))
            if self.accelerator.num_processes > 1:
                samples = gather_rows(self.accelerator, samples)
            raise bad_batch(self.place.step + 1, what, samples)
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _save(self, opened: OpenStage, optimizer: torch.optim.Optimizer) -> None:
        self.accelerator.wait_for_everyone()
        main = self.accelerator.is_main_process
        weights = gather({name: value.detach() for name, value in self.touched.items()}, keep=main)
        average = gather(self.average.values, keep=main)
        moments = gather(optimizer.state_dict(), keep=main)
        if main:
            dtype = torch.float16 if self.config.saving.weights == "float16" else torch.float32
            tensors = opened.export({**weights, **average}, dtype)
            progress = {"place": {key.name: getattr(self.place, key.name) for key in fields(TrainPosition)}}
            state = State(
                progress=progress,
                weights=weights,
                average=average,
                optimizer=moments,
                scaler=self.scaler.state_dict() if self.scaler.is_enabled() else {},
            )
            measured = self.hooks.save(self.place, tensors, state)
            if measured is not None:
                self.metrics.add(measured)
                known = {name: value for name, value in measured.items() if value is not None}
                self.accelerator.log(known, step=self.place.step)
        self.accelerator.wait_for_everyone()


def _is_lost_rank(error: RuntimeError) -> bool:
    """Is it what gloo and NCCL raise where a process that they wait for does not answer any more?"""
    said = str(error).lower()
    return any(word in said for word in ("gloo", "nccl", "connection"))


def piece(batch: B, start: int, stop: int) -> B:
    """Samples ``start`` to ``stop`` of a batch: every tensor and tuple of the record is cut along its first axis."""
    cut = {item.name: getattr(batch, item.name) for item in fields(cast(Any, batch))}
    return replace(
        cast(Any, batch), **{k: v[start:stop] if isinstance(v, Tensor | tuple) else v for k, v in cut.items()}
    )


@torch.no_grad()
def _restore(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    """Put ``weights`` into the parameters of their names."""
    for name, value in weights.items():
        if name not in parameters or parameters[name].shape != value.shape:
            hint = "the run was made with another version or another model folder"
            raise BadInput("state", f"weights {name} that the networks do not have", "the same networks", hint=hint)
        parameters[name].copy_(value)
