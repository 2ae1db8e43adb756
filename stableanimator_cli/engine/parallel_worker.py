"""A helper of several processes that make one video (``parallel``): what it is told, and how it answers."""

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

STARTING = timedelta(minutes=30)  # in which all processes must have come up: that one died is seen before
LOOPBACK = "127.0.0.1"
HEADER, LATENTS, ANSWER = 1, 2, 3  # tags of what is sent
JOB, END = math.inf, math.nan  # in a header, in place of a noise level
PLACE = "SA_RANK"  # rank, number of ranks, port, and who started it, in the environment of a process that rank 0 starts
# between two evaluations rank 0 may optimise faces and decode for hours; that it is gone is seen without a clock
_PATIENCE = timedelta(days=30)


def shares_of(pairs: int, world: int) -> list[range]:
    """Pairs in runs of neighbours, which share frames and pose features; those of rank 0 come first and are never
    fewer than another rank's."""
    cuts = [-(-rank * pairs // world) for rank in range(world + 1)]
    return [range(first, stop) for first, stop in pairwise(cuts)]


def frames_of(windows: WindowPlan, guidance: tuple[float, float], share: range) -> Tensor:
    """Frames that a share of the pairs looks at, in order: int64[n]."""
    pairs = window_branches(windows, guidance)[share.start : share.stop]
    return torch.tensor(sorted(set(chain.from_iterable(window.frames for window, _ in pairs))), dtype=torch.int64)


def join(store: dist.Store, rank: int, world: int, timeout: timedelta, *, local: bool) -> None:
    """Become one of ``world`` processes; ``timeout`` is how long one waits for another, each for itself.

    ``local``: all run on this machine, and gloo listens on the loopback address alone. Otherwise gloo listens where the
    machine's name or ``GLOO_SOCKET_IFNAME`` leads it, as torchrun's users expect.
    """
    with _loopback() if local else nullcontext():
        prefixed = dist.PrefixStore("sa", store)
        dist.init_process_group("gloo", store=prefixed, rank=rank, world_size=world, timeout=timeout)


@contextmanager
def _loopback() -> Iterator[None]:
    """Within it gloo opens its sockets on the loopback interface, the only way that ``init_process_group`` has."""
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
    """A store that listens on 127.0.0.1 alone, at a free port. By itself ``TCPStore`` listens on every address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen(128)
        port = listener.getsockname()[1]
        store = dist.TCPStore(
            LOOPBACK, port, is_master=True, wait_for_workers=False, timeout=STARTING,
            master_listen_fd=listener.fileno(),
        )  # fmt: skip
        listener.detach()  # the store closes it
    return store


def met() -> tuple[dist.Store, int, int]:
    """The store, this process's rank, and their number, as torchrun says them in the environment."""
    from torch.distributed.rendezvous import rendezvous  # not in every build of torch

    return next(rendezvous("env://", timeout=STARTING))


def header(sigma: float, whole: bool = True, turn: int = 0) -> Tensor:
    """What goes before everything else: the noise level of an evaluation whose latents follow, ``JOB`` or ``END``;
    whether the evaluation is a whole one (``diffusion.reuse``); and which placement of the windows has its turn."""
    return torch.tensor([sigma, float(whole), float(turn)], dtype=torch.float64)


def run_worker() -> None:
    """A helper of those that torchrun started: stays until rank 0 sends it home or is gone."""
    store, rank, world = met()
    _serve(store, rank, world, int(os.environ.get("LOCAL_RANK", rank)), local=False)


def child() -> None:
    """A helper that rank 0 started."""
    rank, world, port, parent = map(int, os.environ[PLACE].split())
    if os.getppid() != parent:  # rank 0 was killed while this process was importing
        raise SystemExit(Interrupted.exit_code)
    store = dist.TCPStore(LOOPBACK, port, is_master=False, timeout=STARTING)
    store.set(f"here/{rank}", "yes")
    _serve(store, rank, world, rank, local=True)


class _Gone(Exception):
    """Rank 0 is not there any more."""


def _serve(store: dist.Store, rank: int, world: int, card: int, *, local: bool) -> None:
    join(store, rank, world, _PATIENCE, local=local)
    try:
        _work(card)
    except (_Gone, KeyboardInterrupt):
        raise SystemExit(Interrupted.exit_code) from None
    except Exception as error:
        if not isinstance(error, SaError):
            error = SaError(f"a bug of ours: {type(error).__name__}: {error}")
        publish_error(store, rank, error)
        raise SystemExit(error.exit_code) from None
    finally:
        dist.destroy_process_group()


def _work(card: int) -> None:
    """Jobs and evaluations until rank 0 has no more."""
    with ExitStack() as stack, torch.no_grad():
        engine: Engine | None = None
        evaluate: Callable[[float, bool, int], None] | None = None
        while True:
            told = header(0.0)
            with _rank_0():
                dist.recv(told, 0, tag=HEADER)
            sigma, whole, turn = told.tolist()
            if math.isnan(sigma):
                return
            if math.isinf(sigma):
                with _rank_0():
                    data, tensors = receive(0)
                job = decode_job(data, tensors)
                if engine is None:
                    torch.set_num_threads(job.threads)
                    plan = replace(job.plan, device=_device(job.plan.device, card))
                    engine = stack.enter_context(Engine.open(job.model, plan, id_mode=job.id_mode))
                    stack.enter_context(engine.resident("unet", "pose_net"))
                evaluate = _prepared(engine, job)
            elif evaluate is not None:
                evaluate(sigma, bool(whole), int(turn))


def _prepared(engine: Engine, job: Job) -> Callable[[float, bool, int], None]:
    """A job's evaluation: takes latents, sends the answers of its share one by one."""
    device = engine.plan.device
    conditioning = Conditioning(
        image=job.image.to(device),
        face=None if job.face is None else job.face.to(device),
        reference=job.reference.to(device),
        time_ids=job.time_ids.to(device),
        pose=engine.pose_features(job.poses),
    )
    deep = DeepFeatureCache(job.layers) if job.layers else None
    predict = engine.predictor(conditioning, job.guidance, deep=deep)
    placements = [job.windows.placement(turn) for turn in range(job.windows.num_placements)]
    pairs = [window_branches(windows, job.guidance)[job.share.start : job.share.stop] for windows in placements]
    answers_of = [window_outputs(predict, share) for share in pairs]
    frames_by_turn = [frames_of(windows, job.guidance, job.share) for windows in placements]
    x = torch.zeros(job.shape, device=device)  # frames of other shares are not looked at

    def evaluate(sigma: float, whole: bool, turn: int) -> None:
        if deep is not None:
            deep.start_call(whole)
        answers, frames = answers_of[turn], frames_by_turn[turn]
        rows = torch.empty((len(frames), *job.shape[1:]))
        with _rank_0():
            dist.recv(rows, 0, tag=LATENTS)
        x[frames.to(device)] = rows.to(device)
        sent = []
        hint = "use a smaller --size or --window, --dtype bfloat16, or --offload model"
        with memory_guard("denoising", hint):
            for answer in answers(x, sigma):
                piece = answer.cpu().contiguous()
                with _rank_0():
                    sent.append((piece, dist.isend(piece, 0, tag=ANSWER)))
        for _, work in sent:
            with _rank_0():
                work.wait()

    return evaluate


def _device(device: torch.device, local: int) -> torch.device:
    """The card of a rank on its machine, which may see its own alone."""
    if device.type != "cuda":
        return device
    mine = torch.device("cuda", local % max(1, torch.cuda.device_count()))
    torch.cuda.set_device(mine)
    return mine


@contextmanager
def _rank_0() -> Iterator[None]:
    try:
        yield
    except RuntimeError:
        raise _Gone from None
