"""A worker of ``parallel``: it receives a job and latents, and sends the outputs of its window branches."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from itertools import chain, pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from stableanimator_cli.diffusion.deepcache import DeepFeatureCache
from stableanimator_cli.diffusion.guidance import window_branches, window_outputs
from stableanimator_cli.diffusion.windows import WindowPlan
from stableanimator_cli.engine.conditioning import Conditioning
from stableanimator_cli.engine.device import memory_guard
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.parallel_messages import Job, decode_job, publish_error, receive
from stableanimator_cli.errors import Interrupted, SaError

STARTUP_TIMEOUT = timedelta(minutes=30)  # a process that dies is noticed before
LOOPBACK = "127.0.0.1"
HEADER, LATENTS, OUTPUT = 1, 2, 3  # message tags
JOB, END = math.inf, math.nan  # in a header, in place of the noise level
RANK_VARIABLE = "SA_RANK"  # environment of a spawned worker: rank, world size, port, process id of rank 0
# rank 0 may optimise faces and decode for hours between two calls; its death is noticed without a timeout
_WORKER_TIMEOUT = timedelta(days=30)


def partition(branches: int, world: int) -> list[range]:
    """Split window branches into one run per rank, so that neighbours share pose features. Rank 0 has the longest."""
    bounds = [-(-rank * branches // world) for rank in range(world + 1)]
    return [range(start, stop) for start, stop in pairwise(bounds)]


def frames_of(windows: WindowPlan, guidance: tuple[float, float], share: range) -> Tensor:
    """Sorted frames of a share of the window branches, int64[n]."""
    branches = window_branches(windows, guidance)[share.start : share.stop]
    return torch.tensor(sorted(set(chain.from_iterable(window.frames for window, _ in branches))), dtype=torch.int64)


def join(store: dist.Store, rank: int, world: int, timeout: timedelta, *, local: bool) -> None:
    """Join the process group; ``timeout`` is how long this process waits for another.

    ``local`` processes run on this machine, where gloo listens on the loopback address alone. Otherwise gloo listens on
    the interface of the machine's name or of ``GLOO_SOCKET_IFNAME``, as usual with torchrun.
    """
    with _loopback() if local else nullcontext():
        prefixed = dist.PrefixStore("sa", store)
        dist.init_process_group("gloo", store=prefixed, rank=rank, world_size=world, timeout=timeout)


@contextmanager
def _loopback() -> Iterator[None]:
    """Make gloo use the loopback interface; ``init_process_group`` has no other way."""
    name, before = "GLOO_SOCKET_IFNAME", os.environ.get("GLOO_SOCKET_IFNAME")
    known = {interface for _, interface in socket.if_nameindex()} if hasattr(socket, "if_nameindex") else set()
    os.environ[name] = next((interface for interface in ("lo", "lo0") if interface in known), "lo")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def listening_store() -> dist.TCPStore:
    """A store that listens on a free port of 127.0.0.1 alone. By default ``TCPStore`` listens on every address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen(128)
        port = listener.getsockname()[1]
        store = dist.TCPStore(
            LOOPBACK, port, is_master=True, wait_for_workers=False, timeout=STARTUP_TIMEOUT,
            master_listen_fd=listener.fileno(),
        )  # fmt: skip
        listener.detach()  # the store closes it
    return store


def torchrun_store() -> tuple[dist.Store, int, int]:
    """The store, rank and world size from torchrun's environment."""
    from torch.distributed.rendezvous import rendezvous  # not in every build of torch

    return next(rendezvous("env://", timeout=STARTUP_TIMEOUT))


def header(sigma: float, refresh: bool = True, placement: int = 0) -> Tensor:
    """The header of a message: a call's noise level, or ``JOB`` or ``END``; ``refresh`` of ``diffusion.deepcache``; the
    placement of the windows. Latents follow a call."""
    return torch.tensor([sigma, float(refresh), float(placement)], dtype=torch.float64)


def run_worker() -> None:
    """Run a worker that torchrun started, until rank 0 ends it or is lost."""
    store, rank, world = torchrun_store()
    _serve(store, rank, world, int(os.environ.get("LOCAL_RANK", rank)), local=False)


def run_spawned_worker() -> None:
    """Run a worker that rank 0 started."""
    rank, world, port, parent = map(int, os.environ[RANK_VARIABLE].split())
    if os.getppid() != parent:  # rank 0 was killed during the imports
        raise SystemExit(Interrupted.exit_code)
    store = dist.TCPStore(LOOPBACK, port, is_master=False, timeout=STARTUP_TIMEOUT)
    store.set(f"here/{rank}", "yes")
    _serve(store, rank, world, rank, local=True)


class _RankZeroLost(Exception):
    pass


def _serve(store: dist.Store, rank: int, world: int, local_rank: int, *, local: bool) -> None:
    join(store, rank, world, _WORKER_TIMEOUT, local=local)
    try:
        _receive_jobs(local_rank)
    except (_RankZeroLost, KeyboardInterrupt):
        raise SystemExit(Interrupted.exit_code) from None
    except Exception as error:
        if not isinstance(error, SaError):
            error = SaError(f"internal error: {type(error).__name__}: {error}")
        publish_error(store, rank, error)
        raise SystemExit(error.exit_code) from None
    finally:
        dist.destroy_process_group()


def _receive_jobs(local_rank: int) -> None:
    """Compute jobs and calls until rank 0 sends ``END``."""
    with ExitStack() as stack, torch.no_grad():
        engine: Engine | None = None
        compute: Callable[[float, bool, int], None] | None = None
        while True:
            received = header(0.0)
            with _from_rank_zero():
                dist.recv(received, 0, tag=HEADER)
            sigma, refresh, placement = received.tolist()
            if math.isnan(sigma):
                return
            if math.isinf(sigma):
                with _from_rank_zero():
                    data, tensors = receive(0)
                job = decode_job(data, tensors)
                if engine is None:
                    torch.set_num_threads(job.threads)
                    plan = replace(job.plan, device=_local_device(job.plan.device, local_rank))
                    engine = stack.enter_context(Engine.open(job.model, plan, id_mode=job.id_mode))
                    stack.enter_context(engine.resident("unet", "pose_net"))
                compute = _start_job(engine, job)
            elif compute is not None:
                compute(sigma, bool(refresh), int(placement))


def _start_job(engine: Engine, job: Job) -> Callable[[float, bool, int], None]:
    """Return a function that receives latents and sends the outputs of the job's share one by one."""
    device = engine.plan.device
    conditioning = Conditioning(
        image=job.image.to(device),
        face=None if job.face is None else job.face.to(device),
        regions=None if job.regions is None else job.regions.to(device),
        reference=job.reference.to(device),
        time_ids=job.time_ids.to(device),
        pose=engine.pose_features(job.poses),
    )
    deep = DeepFeatureCache(job.layers) if job.layers else None
    predict = engine.predictor(conditioning, job.guidance, deep=deep)
    placements = [job.windows.placement(index) for index in range(job.windows.num_placements)]
    share = slice(job.share.start, job.share.stop)
    outputs_at = [
        window_outputs(predict, window_branches(windows, job.guidance)[share], engine.backbone.scalings)
        for windows in placements
    ]
    frames_at = [frames_of(windows, job.guidance, job.share) for windows in placements]
    x = torch.zeros(job.shape, device=device)  # frames of other shares are not read

    def compute(sigma: float, refresh: bool, placement: int) -> None:
        if deep is not None:
            deep.start_call(refresh)
        frames = frames_at[placement]
        rows = torch.empty((len(frames), *job.shape[1:]))
        with _from_rank_zero():
            dist.recv(rows, 0, tag=LATENTS)
        x[frames.to(device)] = rows.to(device)
        pending = []
        hint = "use a smaller --size or --window, --dtype bfloat16, or --offload model"
        with memory_guard("denoising", hint):
            for output in outputs_at[placement](x, sigma):
                chunk = output.cpu().contiguous()
                with _from_rank_zero():
                    pending.append((chunk, dist.isend(chunk, 0, tag=OUTPUT)))
        for _, work in pending:
            with _from_rank_zero():
                work.wait()

    return compute


def _local_device(device: torch.device, local_rank: int) -> torch.device:
    """The GPU of a rank on its machine, which may see only its own."""
    if device.type != "cuda":
        return device
    own = torch.device("cuda", local_rank % max(1, torch.cuda.device_count()))
    torch.cuda.set_device(own)
    return own


@contextmanager
def _from_rank_zero() -> Iterator[None]:
    """gloo's errors mean that rank 0 is lost."""
    try:
        yield
    except RuntimeError:
        raise _RankZeroLost from None
