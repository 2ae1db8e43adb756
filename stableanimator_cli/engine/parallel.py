"""Several processes for one video: each call's windows and guidance branches are distributed over ranks.

Rank 0 is the run: it reads, samples, decodes, writes and reports. Workers hold the UNet and the PoseNet, receive what a
sampling needs once (``Job``), and then compute their share of the window branches of every call. Rank 0 receives their
outputs and sums all in the plan's order, so that the result is one process's to the bit on equal processors.

The ranks are a ``torch.distributed`` group of torchrun's processes (``torchrun_group``), or of processes that rank 0
starts (``spawned_group``), which listen on the loopback address alone. Only JSON and tensors are sent
(``parallel_messages``), with gloo through host memory on GPUs as well: a call moves megabytes for seconds of work, and
gloo reports a lost peer at once. NCCL's watchdog would end rank 0 as well, and the state of the run with it.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from itertools import chain
from subprocess import DEVNULL, Popen, TimeoutExpired
from sys import executable
from typing import IO, Any

import torch
import torch.distributed as dist
from torch import Tensor

from stableanimator_cli import distributed
from stableanimator_cli.diffusion.deepcache import DeepFeatureCache
from stableanimator_cli.diffusion.guidance import Predict, WindowOutputs, window_branches, window_outputs
from stableanimator_cli.diffusion.windows import WindowPlan
from stableanimator_cli.engine.conditioning import Conditioning
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.parallel_messages import Job, PackedFrames, encode_job, read_error, send
from stableanimator_cli.engine.parallel_worker import (
    END,
    HEADER,
    JOB,
    LATENTS,
    OUTPUT,
    RANK_VARIABLE,
    STARTUP_TIMEOUT,
    frames_of,
    header,
    join,
    listening_store,
    partition,
    torchrun_store,
)
from stableanimator_cli.errors import ConfigError, Interrupted, SaError

RESPONSE_TIMEOUT = 1800.0  # seconds that rank 0 waits for an output before it gives a rank up
_WORKER_CODE = "from stableanimator_cli.engine.parallel_worker import run_spawned_worker; run_spawned_worker()"

SpawnedWorker = tuple[Popen[bytes], IO[bytes]]  # process, stderr


class RankLost(Interrupted):
    """A rank died, does not respond, or failed with an error of its own (``reported``). Rank 0's state is intact."""

    def __init__(self, message: str, reported: SaError | None = None) -> None:
        super().__init__(message, hint="run the same command to resume, with any --gpus")
        self.reported = reported


class WorkerGroup:
    """Rank 0's side of the group. ``children`` are the spawned workers by rank, none with torchrun."""

    def __init__(self, world: int, store: dist.Store, children: Mapping[int, SpawnedWorker]) -> None:
        self.world = world
        self._store = store
        self._children = children
        self._joined = False

    def join(self) -> None:
        """Wait for the workers, which may still be importing. Raises ``RankLost``."""
        limit = time.monotonic() + STARTUP_TIMEOUT.total_seconds()
        for rank in self._children:
            while not self._store.check([f"here/{rank}"]):
                self._check()
                if time.monotonic() > limit:
                    seconds = STARTUP_TIMEOUT.total_seconds()
                    raise RankLost(f"rank {rank} of {self.world} did not start within {seconds:g} s")
                time.sleep(0.02)
        join(self._store, 0, self.world, timedelta(seconds=RESPONSE_TIMEOUT), local=bool(self._children))
        self._joined = True

    def distribute(
        self,
        engine: Engine,
        conditioning: Conditioning,
        plan: WindowPlan,
        guidance: tuple[float, float],
        predict: Predict,
        deep: DeepFeatureCache | None = None,
    ) -> Callable[[int], WindowOutputs]:
        """By placement, the outputs of its window branches: rank 0's from ``predict``, the others' received.

        A rank always computes the same positions of the list of branches, and caches their deep features if ``deep``.
        """
        if not self._joined:
            self.join()
        shares = partition(len(window_branches(plan, guidance)), self.world)
        busy = [rank for rank in range(1, self.world) if shares[rank]]
        self._send_jobs(engine, conditioning, plan, guidance, {rank: shares[rank] for rank in busy}, deep)

        def outputs_at(index: int) -> WindowOutputs:
            placement = plan.placement(index)
            branches = window_branches(placement, guidance)
            frames = {rank: frames_of(placement, guidance, shares[rank]) for rank in busy}
            own_outputs = window_outputs(predict, branches[: len(shares[0])], engine.backbone.scalings)

            def outputs(x: Tensor, sigma: float) -> Iterator[Tensor]:
                refresh = deep is None or deep.refresh
                head = header(sigma, refresh, index)
                pending = [sending for rank in busy for sending in self._send_call(rank, head, x, frames[rank])]
                for output in own_outputs(x, sigma):
                    self._check()
                    yield output
                for rank, _, work in pending:
                    with self._errors_of(rank):
                        work.wait()
                for rank in busy:
                    for window, _ in branches[shares[rank].start : shares[rank].stop]:
                        output = torch.empty((len(window.frames), *x.shape[1:]), dtype=x.dtype)
                        with self._errors_of(rank):
                            dist.recv(output, rank, tag=OUTPUT)
                        engine.calls["unet"] += 1
                        if not refresh:
                            engine.calls["unet_shallow"] += 1
                        yield output.to(x.device)

            return outputs

        return outputs_at

    def _send_jobs(
        self,
        engine: Engine,
        conditioning: Conditioning,
        plan: WindowPlan,
        guidance: tuple[float, float],
        shares: Mapping[int, range],
        deep: DeepFeatureCache | None,
    ) -> None:
        placements = [plan.placement(index) for index in range(plan.num_placements)]
        frames = {
            rank: set(chain.from_iterable(frames_of(windows, guidance, share).tolist() for windows in placements))
            for rank, share in shares.items()
        }
        packed = PackedFrames.of(conditioning.pose.frames, chain.from_iterable(frames.values()))
        job = Job(
            model=engine.model,
            plan=engine.plan,
            id_mode=engine.id_mode,
            threads=torch.get_num_threads(),
            image=conditioning.image.cpu(),
            face=None if conditioning.face is None else conditioning.face.cpu(),
            regions=None if conditioning.regions is None else conditioning.regions.cpu(),
            reference=conditioning.reference.cpu(),
            time_ids=conditioning.time_ids.cpu(),
            poses=packed,
            windows=plan,
            guidance=guidance,
            share=range(0),
            shape=(plan.total, *conditioning.reference.shape[1:]),
            layers=0 if deep is None else deep.layers,
        )
        for rank, share in shares.items():
            message = encode_job(replace(job, share=share, poses=packed.select(frames[rank])))
            with self._errors_of(rank):
                dist.send(header(JOB), rank, tag=HEADER)
                send(rank, *message)

    def _send_call(self, rank: int, head: Tensor, x: Tensor, frames: Tensor) -> list[tuple[int, Tensor, Any]]:
        """Start to send a call. The tensors must stay alive until they are received."""
        with self._errors_of(rank):
            messages = ((head, HEADER), (x[frames.to(x.device)].cpu(), LATENTS))
            return [(rank, tensor, dist.isend(tensor, rank, tag=tag)) for tensor, tag in messages]

    @contextmanager
    def _errors_of(self, rank: int) -> Iterator[None]:
        """gloo's errors mean that ``rank`` is lost."""
        try:
            yield
        except RuntimeError as error:
            raise self._lost(rank, str(error)) from None

    def _check(self) -> None:
        """Raise ``RankLost`` if a spawned worker has exited."""
        for rank, (child, _) in self._children.items():
            if child.poll() is not None:
                raise self._lost(rank, "")

    def _lost(self, rank: int, message: str) -> RankLost:
        name = f"rank {rank} of {self.world}"
        if not self._children:  # torchrun terminates all ranks now: this one first saves its state and reports
            with suppress(ValueError):  # signals can only be set in the main thread
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
        reported = read_error(self._store, rank)
        if reported is not None:
            return RankLost(f"{name}: {reported.message}", reported)
        if "timed out" in message.lower():
            return RankLost(f"{name} has not answered for {RESPONSE_TIMEOUT:g} s")
        if rank not in self._children:
            return RankLost(f"{name} died")
        child, stderr = self._children[rank]
        with suppress(TimeoutExpired):  # its connection closes just before it exits
            child.wait(2)
        code = child.poll()
        how = "" if code is None else f" (signal {-code})" if code < 0 else f" (exit code {code})"
        stderr.seek(0)
        last = [line for line in stderr.read().decode(errors="replace").splitlines() if line.strip()][-1:]
        return RankLost(f"{name} died{how}" + "".join(f": {line.strip()}" for line in last))

    def close(self, *, success: bool) -> None:
        """End the workers and leave the group. Spawned workers have exited afterwards in any case."""
        success = self._joined and success
        if success:
            for rank in range(1, self.world):
                with suppress(RuntimeError):  # a rank that is lost needs no message
                    dist.send(header(END), rank, tag=HEADER)
        for child, _ in self._children.values():
            if success:
                with suppress(TimeoutExpired):
                    child.wait(10)
            child.kill()
            child.wait()
        if self._joined:
            dist.destroy_process_group()


@contextmanager
def torchrun_group() -> Iterator[WorkerGroup | None]:
    """In rank 0 of torchrun's processes: the group, joined. None in a process without others."""
    if distributed.world_size() == 1:
        yield None
        return
    store, rank, world = torchrun_store()
    if rank != 0:
        raise ValueError(f"rank {rank} is a worker")
    with _closing(WorkerGroup(world, store, {})) as group:
        group.join()
        yield group


@contextmanager
def spawned_group(world: int) -> Iterator[WorkerGroup]:
    """Rank 0 and ``world - 1`` workers started on this machine, which import while this process continues."""
    store = listening_store()
    children: dict[int, SpawnedWorker] = {}
    with ExitStack() as files, _closing(WorkerGroup(world, store, children)) as group:
        for rank in range(1, world):
            stderr = files.enter_context(tempfile.TemporaryFile())
            environment = os.environ | {RANK_VARIABLE: f"{rank} {world} {store.port} {os.getpid()}"}
            # in a session of its own: Ctrl-C is for rank 0, which ends the workers
            worker = Popen(
                [executable, "-c", _WORKER_CODE], env=environment, stdin=DEVNULL, stdout=DEVNULL, stderr=stderr,
                start_new_session=True,
            )  # fmt: skip
            children[rank] = (worker, stderr)
        yield group


@contextmanager
def _closing(group: WorkerGroup) -> Iterator[WorkerGroup]:
    success = False
    try:
        yield group
        success = True
    finally:
        group.close(success=success)


def check(plan: DevicePlan, requested: str, world: int, *, local: bool) -> None:
    """Check that ``world`` processes have a device each; ``local``: all on this machine. Raises ``ConfigError``.

    ``requested`` is ``--device`` as given.
    """
    if not dist.is_available() or not dist.is_gloo_available():
        raise ConfigError("--gpus", world, "1: this build of torch has no gloo", hint="leave --gpus out")
    if plan.device.type == "mps":
        raise ConfigError("--gpus", world, "1 on mps", hint="leave --gpus out, or use --device cpu")
    if plan.device.index is not None:
        expected = "cuda with several processes: each takes a card"
        raise ConfigError("--device", requested, expected, hint="use --device cuda")
    if local and plan.device.type == "cuda" and world > torch.cuda.device_count():
        expected = f"1 to {torch.cuda.device_count()}, the cards that this torch sees"
        raise ConfigError("--gpus", world, expected, hint="see CUDA_VISIBLE_DEVICES")
