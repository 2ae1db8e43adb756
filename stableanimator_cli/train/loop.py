"""The training loop: stages, steps, gradient accumulation, ranks and checkpoints.

The loss of a step is the mean over the global batch. Each rank computes its share in micro-batches, so the number of
ranks and ``memory.micro_batch`` change nothing but the order of additions.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from stableanimator_cli.config.train import StageConfig, TrainConfig
from stableanimator_cli.engine.device import memory_guard
from stableanimator_cli.engine.training.batch import Batch
from stableanimator_cli.engine.training.fsdp import gather, scatter_state, shard
from stableanimator_cli.errors import BadInput, Interrupted, command
from stableanimator_cli.progress import Reporter
from stableanimator_cli.train.checkpoint import State, TrainPosition
from stableanimator_cli.train.checkpoint_writer import CheckpointWriter
from stableanimator_cli.train.ema import EMA
from stableanimator_cli.train.lr_schedule import learning_rate
from stableanimator_cli.train.metrics_log import Metrics, bad_batch
from stableanimator_cli.train.optimizer import build_optimizer
from stableanimator_cli.train.processes import gather_rows
from stableanimator_cli.train.stage import TrainingStage

if TYPE_CHECKING:
    from accelerate import Accelerator

HINT = "use a smaller --micro-batch, --checkpointing blocks, --train adapters, a smaller --sizes, or --max-memory"


class Loop:
    """One training in this process, one of ``accelerator.num_processes``. ``state``: where it resumes, or None."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        open_stage: Callable[[int], TrainingStage],
        writer: CheckpointWriter,
        metrics: Metrics,
        reporter: Reporter,
        state: State | None,
    ) -> None:
        self.config = config
        self.position = TrainPosition() if state is None else state.position
        self._accelerator, self._ranks = accelerator, accelerator.num_processes
        self._open_stage, self._writer = open_stage, writer
        self._metrics, self._reporter = metrics, reporter
        self._ema = EMA(config.optimizer.ema)
        self._updated_weights: dict[str, Tensor] = {}
        self._optimizer_state: Mapping[str, Any] | None = None
        self._scaler = torch.amp.GradScaler(accelerator.device.type, enabled=config.memory.dtype == "float16")
        if state is not None:
            self._ema.values = {name: value.float() for name, value in state.average.items()}
            self._updated_weights = dict(state.weights)
            self._optimizer_state = state.optimizer
            if state.scaler:
                self._scaler.load_state_dict(dict(state.scaler))

    def run(self) -> None:
        """Train all remaining stages. Raises ``SaError``; written checkpoints stay."""
        stages = self.config.stage or ()
        hint = f"`{command('sa', 'train', '--resume', self.config.output)}` resumes from the last checkpoint"
        total = sum(stage.steps or 0 for stage in stages)
        with self._reporter.progress(total, "train", "step", initial=self.position.step) as bar:
            try:
                for index in range(self.position.stage, len(stages)):
                    if index != self.position.stage:
                        self.position = replace(self.position, stage=index, within=0)
                        self._optimizer_state = None
                    if self.position.within < (stages[index].steps or 0):
                        self._train_stage(stages[index], bar.update)
            except KeyboardInterrupt:
                raise Interrupted(f"interrupted at step {self.position.step}", hint=hint) from None
            except RuntimeError as error:
                if self._ranks == 1 or not _is_lost_rank(error):
                    raise
                with suppress(ValueError):  # outside the main thread, which receives no signals
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends all ranks: report this first
                message = f"another of the {self._ranks} processes exited at step {self.position.step}"
                raise Interrupted(message, hint=hint) from None

    def _train_stage(self, stage: StageConfig, show: Callable[..., None]) -> None:
        self._accelerator.free_memory()
        self._updated_weights = {name: value.cpu() for name, value in gather(self._updated_weights).items()}
        with memory_guard("loading the networks", HINT):
            opened = self._open_stage(self.position.stage)
        parameters = dict(opened.model.named_parameters())
        _restore(parameters, self._updated_weights)
        sharded = self._ranks > 1 and self.config.memory.sharding == "full"
        if sharded:
            with memory_guard("sharding the networks", HINT):
                shard(opened.model, torch.device(self._accelerator.device))
            parameters = dict(opened.model.named_parameters())
        for name in self._updated_weights:
            self._updated_weights[name] = parameters[name].detach()
        trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        self._updated_weights |= {name: parameter.detach() for name, parameter in trained.items()}
        self._ema.attach(parameters)
        settings = self.config.optimizer
        wrapped = self._accelerator.prepare_model(opened.model) if self._ranks > 1 and not sharded else opened.model
        optimizer = build_optimizer(settings, stage.lr, trained.values())
        if self._optimizer_state is not None:
            optimizer.load_state_dict(scatter_state(self._optimizer_state, list(trained.values())))
            self._optimizer_state = None
        wrapped.train()
        last = cast(int, stage.steps)
        for batch in opened.stream(self.position.within, last):
            started = time.perf_counter()
            lr = learning_rate(stage, self.position.within)
            for group in optimizer.param_groups:
                group["lr"] = lr
            losses = self._gradients(opened, wrapped, batch)
            loss = self._mean(losses)
            norm = self._update(optimizer, trained, batch, loss, losses)
            step, within = self.position.step + 1, self.position.within + 1
            samples = self.position.samples + stage.batch
            self.position = replace(self.position, step=step, within=within, samples=samples)
            if settings.ema:
                self._ema.update(trained, step)
            self._metrics.write(
                {
                    "step": step,
                    "stage": stage.name,
                    "loss": loss,
                    "rate": lr,
                    "gradient": norm if math.isfinite(norm) else None,
                    "seconds": round(time.perf_counter() - started, 4),
                    "samples": samples,
                }
            )
            self._accelerator.log({"loss": loss, "rate": lr, "gradient": norm}, step=step)
            show(1, stage=stage.name, loss=loss, rate=lr)
            if self._writer.is_due(self.position, within == last):
                self._save(opened, optimizer)

    def _gradients(self, opened: TrainingStage, wrapped: nn.Module, batch: Batch) -> Tensor:
        """Accumulate the gradients of this rank's share of a batch; return its losses, float32[b]."""
        total = len(batch)
        size = self.config.memory.micro_batch or total
        losses: list[Tensor] = []
        for start in range(0, total, size):
            micro = batch if size >= total else batch.part(start, min(start + size, total))
            # sharded gradients are always synchronised, as no rank could hold them all: ``no_sync`` does nothing there
            synced = start + size >= total or self._ranks == 1
            no_sync = nullcontext() if synced else self._accelerator.no_sync(wrapped)
            with no_sync, memory_guard("a training step", HINT):
                loss = wrapped(opened.inputs(micro))
                self._scaler.scale(loss.sum() / total).backward()
            losses.append(loss.detach().float())
        return torch.cat(losses)

    def _mean(self, losses: Tensor) -> float:
        """The mean over the shares of all ranks, which have equal sizes."""
        if self._ranks > 1:
            losses = cast(Tensor, self._accelerator.reduce(losses.mean(), "mean"))
        return float(losses.mean())

    def _update(
        self,
        optimizer: torch.optim.Optimizer,
        trained: Mapping[str, nn.Parameter],
        batch: Batch,
        loss: float,
        losses: Tensor,
    ) -> float:
        """Check and clip the gradients and update the weights; return the gradient norm before clipping."""
        self._scaler.unscale_(optimizer)
        parameters = [parameter for parameter in trained.values() if parameter.grad is not None]
        limit = self.config.optimizer.max_grad_norm or math.inf
        norm = float(gather(nn.utils.clip_grad_norm_(parameters, limit)))
        # GradScaler finds the scale of float16 by overflowing; it then skips the step, which is no error
        calibrating = self._scaler.is_enabled() and self._scaler.get_scale() > 1
        checked = 0.0 if calibrating and not math.isfinite(norm) else norm
        problem = self._metrics.check_spike(loss, checked, self.config.optimizer.loss_spike_factor)
        if problem is not None:
            samples = list(zip(batch.clips, batch.frames.tolist(), losses.tolist(), strict=True))
            if self._ranks > 1:
                samples = gather_rows(self._accelerator, samples)
            raise bad_batch(self.position.step + 1, problem, samples)
        self._scaler.step(optimizer)
        self._scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _save(self, opened: TrainingStage, optimizer: torch.optim.Optimizer) -> None:
        self._accelerator.wait_for_everyone()
        main = self._accelerator.is_main_process
        weights = gather({name: value.detach() for name, value in self._updated_weights.items()}, keep=main)
        average = gather(self._ema.values, keep=main)
        moments = gather(optimizer.state_dict(), keep=main)
        if main:
            dtype = torch.float16 if self.config.saving.weights == "float16" else torch.float32
            tensors = opened.export({**weights, **average}, dtype)
            state = State(
                position=self.position,
                weights=weights,
                average=average,
                optimizer=moments,
                scaler=self._scaler.state_dict() if self._scaler.is_enabled() else {},
            )
            scores = self._writer.save(tensors, state)
            if scores is not None:
                self._metrics.add(scores)
                known = {name: value for name, value in scores.items() if value is not None}
                self._accelerator.log(known, step=self.position.step)
        self._accelerator.wait_for_everyone()


def _is_lost_rank(error: RuntimeError) -> bool:
    """Whether gloo or NCCL raised ``error`` because another process does not respond."""
    text = str(error).lower()
    return any(word in text for word in ("gloo", "nccl", "connection"))


@torch.no_grad()
def _restore(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    """Copy ``weights`` into the parameters. Raises ``BadInput`` for unknown names and other shapes."""
    for name, value in weights.items():
        if name not in parameters or parameters[name].shape != value.shape:
            hint = "use the version of sa and the model folder that the run was started with"
            raise BadInput("state", f"weights {name} that the networks do not have", "the same networks", hint=hint)
        parameters[name].copy_(value)
