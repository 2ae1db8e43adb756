"""Several processes for one video: windows and guidance branches of one evaluation, spread over ranks.

Rank 0 is the run: it reads, samples, decodes, writes and talks. The others are helpers. They hold the UNet and the
PoseNet, are told once what a sampling needs (``Job``), and then answer their share of the pairs of every evaluation
(``diffusion.guidance.pairs_of``). Their answers travel whole and rank 0 sums them in the plan's order, so that the
result is one rank's to the bit where the processors are alike.

The ranks are a group of ``torch.distributed``: of torchrun's processes (``launched``), or of processes that rank 0
starts itself (``started``), which listen on the loopback address alone. Only JSON and tensors travel
(``parallel_messages``), by gloo through host memory on GPUs as well: an evaluation moves megabytes for seconds of work,
and gloo says at once that a peer is gone. NCCL would wait for its watchdog, which ends rank 0 with the rest, and the
state of the run with it.
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
    ANSWER,
    END,
    HEADER,
    JOB,
    LATENTS,
    PLACE,
    STARTING,
    frames_of,
    header,
    join,
    listening_store,
    met,
    shares_of,
)
from stableanimator_cli.errors import ConfigError, Interrupted, SaError

SILENCE = 1800.0  # seconds without the answer that rank 0 waits for, after which a rank is given up


class RankLost(Interrupted):
    """A rank died, does not answer, or failed with an error of its own (``reported``). Rank 0's state is intact."""

    def __init__(self, message: str, reported: SaError | None = None) -> None:
        super().__init__(message, hint="run the same command to resume, with any --gpus")
        self.reported = reported


Child = tuple[Popen[bytes], IO[bytes]]  # a process that rank 0 started, and what it says


class WorkerGroup:
    """Rank 0's side. ``share`` goes into ``Engine.share``; ``close`` leaves the group. ``children`` by their rank."""

    def __init__(self, world: int, store: dist.Store, children: Mapping[int, Child]) -> None:
        self.world = world
        self._store = store
        self._children = children
        self._joined = False

    def join(self) -> None:
        """Wait for the others, which may still be importing. Raises ``RankLost``."""
        limit = time.monotonic() + STARTING.total_seconds()
        for rank in self._children:
            while not self._store.check([f"here/{rank}"]):
                self._check()
                if time.monotonic() > limit:
                    raise RankLost(f"rank {rank} of {self.world} did not come up in {STARTING.total_seconds():g} s")
                time.sleep(0.02)
        join(self._store, 0, self.world, timedelta(seconds=SILENCE), local=bool(self._children))
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
        """For each turn of the plan the answers to ``pairs_of(plan.at(turn), guidance)``: ours from ``predict``, the
        others' as they told them. A rank always answers the pairs at the same places of the list, and keeps their deep
        features itself where ``deep`` is kept here."""
        if not self._joined:
            self.join()
        shares = shares_of(len(window_branches(plan, guidance)), self.world)
        busy = [rank for rank in range(1, self.world) if shares[rank]]
        frames = {rank: _frames_of(plan, guidance, shares[rank]) for rank in busy}
        packed = PackedFrames.of(conditioning.pose.frames, chain.from_iterable(frames.values()))
        _, channels, height, width = conditioning.reference.shape
        job = Job(
            model=engine.model,
            plan=engine.plan,
            id_mode=engine.id_mode,
            threads=torch.get_num_threads(),
            image=conditioning.image.cpu(),
            face=None if conditioning.face is None else conditioning.face.cpu(),
            reference=conditioning.reference.cpu(),
            time_ids=conditioning.time_ids.cpu(),
            poses=packed,
            windows=plan,
            guidance=guidance,
            share=range(0),
            shape=(plan.total, channels, height, width),
            layers=0 if deep is None else deep.layers,
        )
        for rank in busy:
            with self._with(rank):
                dist.send(header(JOB), rank, tag=HEADER)
                send(rank, *encode_job(replace(job, share=shares[rank]), packed.only(frames[rank])))

        def answers_of(turn: int) -> WindowOutputs:
            pairs = window_branches(plan.placement(turn), guidance)
            frames = {rank: frames_of(plan.placement(turn), guidance, shares[rank]) for rank in busy}
            ours = window_outputs(predict, pairs[: len(shares[0])])

            def answers(x: Tensor, sigma: float) -> Iterator[Tensor]:
                whole = deep is None or deep.refresh
                head = header(sigma, whole, turn)
                sent = [sending for rank in busy for sending in self._ask(rank, head, x, frames[rank])]
                for answer in ours(x, sigma):
                    self._check()
                    yield answer
                for rank, _, work in sent:
                    with self._with(rank):
                        work.wait()
                for rank in busy:
                    for window, _ in pairs[shares[rank].start : shares[rank].stop]:
                        answer = torch.empty((len(window.frames), *x.shape[1:]), dtype=x.dtype)
                        with self._with(rank):
                            dist.recv(answer, rank, tag=ANSWER)
                        engine.calls["unet"] += 1
                        if not whole:
                            engine.calls["unet_shallow"] += 1
                        yield answer.to(x.device)

            return answers

        return answers_of

    def _ask(self, rank: int, head: Tensor, x: Tensor, frames: Tensor) -> list[tuple[int, Tensor, Any]]:
        """Begin to send an evaluation; what is sent is kept until it is there."""
        with self._with(rank):
            parts = ((head, HEADER), (x[frames.to(x.device)].cpu(), LATENTS))
            return [(rank, part, dist.isend(part, rank, tag=tag)) for part, tag in parts]

    @contextmanager
    def _with(self, rank: int) -> Iterator[None]:
        """Within it rank 0 deals with ``rank``: what gloo raises means that it is lost."""
        try:
            yield
        except RuntimeError as error:
            raise self._lost(rank, str(error)) from None

    def _check(self) -> None:
        """Raise ``RankLost`` where a process that rank 0 started has ended."""
        for rank, (child, _) in self._children.items():
            if child.poll() is not None:
                raise self._lost(rank, "")

    def _lost(self, rank: int, words: str) -> RankLost:
        name = f"rank {rank} of {self.world}"
        if not self._children:  # torchrun sends everybody home now: this process first keeps its state and says why
            with suppress(ValueError):  # not in the main thread, which alone is sent anything
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
        reported = read_error(self._store, rank)
        if reported is not None:
            return RankLost(f"{name}: {reported.message}", reported)
        if "timed out" in words.lower():
            return RankLost(f"{name} has not answered for {SILENCE:g} s")
        if rank not in self._children:
            return RankLost(f"{name} died")
        child, said = self._children[rank]
        with suppress(TimeoutExpired):  # its connection closes a moment before it is gone
            child.wait(2)
        code = child.poll()
        how = "" if code is None else f" (signal {-code})" if code < 0 else f" (exit code {code})"
        said.seek(0)
        last = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()][-1:]
        return RankLost(f"{name} died{how}" + "".join(f": {line.strip()}" for line in last))

    def close(self, *, well: bool) -> None:
        """Send the others home; those that rank 0 started are gone afterwards, ``well`` or not."""
        if self._joined and well:
            for rank in range(1, self.world):
                with suppress(RuntimeError):  # who is gone already needs no goodbye
                    dist.send(header(END), rank, tag=HEADER)
        for child, _ in self._children.values():
            if self._joined and well:
                with suppress(TimeoutExpired):
                    child.wait(10)
            child.kill()
            child.wait()
        if self._joined:
            dist.destroy_process_group()


def _frames_of(plan: WindowPlan, guidance: tuple[float, float], share: range) -> set[int]:
    """Frames that a share looks at in any placement of the windows."""
    placements = (plan.placement(turn) for turn in range(plan.num_placements))
    return set(chain.from_iterable(frames_of(windows, guidance, share).tolist() for windows in placements))


@contextmanager
def torchrun_group() -> Iterator[WorkerGroup | None]:
    """In rank 0 of the processes that torchrun started: the group, joined. None where this process is alone."""
    if distributed.world_size() == 1:
        yield None
        return
    store, rank, world = met()
    if rank != 0:
        raise ValueError(f"rank {rank} is a helper")
    with _closing(WorkerGroup(world, store, {})) as ranks:
        ranks.join()
        yield ranks


@contextmanager
def spawned_group(world: int) -> Iterator[WorkerGroup]:
    """Rank 0 and ``world - 1`` helpers of this machine, started here. They come up while this process goes on."""
    store = listening_store()
    words = [executable, "-c", "from stableanimator_cli.engine.parallel_worker import child; child()"]
    children: dict[int, Child] = {}
    with ExitStack() as files, _closing(WorkerGroup(world, store, children)) as ranks:
        for rank in range(1, world):
            said = files.enter_context(tempfile.TemporaryFile())
            place = os.environ | {PLACE: f"{rank} {world} {store.port} {os.getpid()}"}
            # a session of its own: Ctrl-C is for rank 0, which sends the others home
            helper = Popen(words, env=place, stdin=DEVNULL, stdout=DEVNULL, stderr=said, start_new_session=True)
            children[rank] = (helper, said)
        yield ranks


@contextmanager
def _closing(ranks: WorkerGroup) -> Iterator[WorkerGroup]:
    well = False
    try:
        yield ranks
        well = True
    finally:
        ranks.close(well=well)


def check(plan: DevicePlan, named: str, world: int, *, here: bool) -> None:
    """Whether ``world`` processes have a device each. ``named`` is ``--device`` as given; ``here``: on this machine."""
    if not dist.is_available() or not dist.is_gloo_available():
        raise ConfigError("--gpus", world, "1: this build of torch has no gloo", hint="leave --gpus out")
    if plan.device.type == "mps":
        raise ConfigError("--gpus", world, "1 on mps", hint="leave --gpus out, or use --device cpu")
    if plan.device.index is not None:
        raise ConfigError("--device", named, "cuda with several processes: each takes a card", hint="use --device cuda")
    if here and plan.device.type == "cuda" and world > torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(
            "--gpus", world, f"1 to {count}, the cards that this torch sees", hint="see CUDA_VISIBLE_DEVICES"
        )
