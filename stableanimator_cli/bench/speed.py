"""One network at a time: ways of asking the UNet and the VAE's decoder for the same answer, by turns, with the error of
each beside the plain way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from stableanimator_cli.bench.counters import count_all
from stableanimator_cli.bench.harness import time_interleaved
from stableanimator_cli.bench.networks import load_network
from stableanimator_cli.bench.results import Table
from stableanimator_cli.bench.roofline import Roof, synchronizer
from stableanimator_cli.engine.device import DevicePlan, memory_guard
from stableanimator_cli.nets.compiled import CompiledBlocks
from stableanimator_cli.nets.memory_format import set_channels_last
from stableanimator_cli.nets.unet import AnimationUNet, Context, call_block
from stableanimator_cli.records import STRIDE, ModelFolder

CHANNELS_LAST = "channels-last"
COMPILED = "compiled"
UNET_VARIANTS = ("plain", "prepared", "batched", CHANNELS_LAST, COMPILED)
VAE_VARIANTS = ("plain", CHANNELS_LAST, "chunks of 4", "chunks of 1")
_SIGMA_INPUT = 0.5  # 0.25 ln sigma, somewhere in the middle of a run
Tick = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipShape:
    """``size`` (width, height) in pixels and ``frames``."""

    size: tuple[int, int]
    frames: int

    @property
    def latent(self) -> tuple[int, int]:
        """(height, width)."""
        return self.size[1] // STRIDE, self.size[0] // STRIDE

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.size[0]}x{self.size[1]}"


def _noise(*shape: int, plan: DevicePlan) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(plan.device, plan.dtype)


def unet_variants(unet: AnimationUNet, shape: ClipShape, plan: DevicePlan) -> dict[str, Callable[[], Tensor]]:
    """One guided step of one window [2,t,c,h,w] (unconditional, conditional) in every way that ``ready`` got ready."""
    channels, token = unet.config["in_channels"], unet.config["cross_attention_dim"]
    height, width = shape.latent
    sample = _noise(1, shape.frames, channels, height, width, plan=plan)
    pose = _noise(shape.frames, unet.config["block_out_channels"][0], height, width, plan=plan)
    image, face = _noise(1, 1, token, plan=plan), _noise(1, unet.id_tokens, token, plan=plan)
    ids = torch.tensor([[6.0, 127.0, 0.02]], device=plan.device)
    given, none = Context(image, face), Context(torch.zeros_like(image), torch.zeros_like(face))
    prepared = [unet.prepare(none), unet.prepare(given)]
    both = Context(torch.cat([none.image, image]), torch.cat([torch.zeros_like(face), face]))
    twice, poses = sample.repeat(2, 1, 1, 1, 1), torch.cat([torch.zeros_like(pose), pose])

    def apart(contexts: list[Context]) -> Tensor:
        answers = [unet(sample, _SIGMA_INPUT, c, ids, p) for c, p in zip(contexts, (None, pose), strict=True)]
        return torch.cat(answers)

    return {
        "plain": lambda: apart([none, given]),
        "prepared": lambda: apart(prepared),
        "batched": lambda: unet(twice, _SIGMA_INPUT, both, ids.repeat(2, 1), poses),
        CHANNELS_LAST: lambda: apart(prepared),
        COMPILED: lambda: apart(prepared),
    }


def configure_variant(network: nn.Module, variant: str) -> None:
    """Weights in the memory order, and blocks called as a way is about: ``--channels-last``, ``--compile blocks``."""
    set_channels_last(network, enabled=variant == CHANNELS_LAST)
    if isinstance(network, AnimationUNet):
        network.run = _compiled() if variant == COMPILED else call_block


@cache
def _compiled() -> CompiledBlocks:
    return CompiledBlocks()


def time_unet(
    model: ModelFolder,
    plan: DevicePlan,
    shape: ClipShape,
    variants: tuple[str, ...],
    rounds: int,
    roof: Roof,
    tick: Tick,
) -> Table:
    """A guided step (both branches) of one window, in the ways asked for; ``plain`` is always among them."""
    with memory_guard("measuring the UNet", "use a smaller --size or --frames, or --dtype bfloat16"), torch.no_grad():
        network = cast(AnimationUNet, load_network(model, "unet", plan.dtype).to(plan.device))
        ways = unet_variants(network, shape, plan)
        ways = {name: ways[name] for name in UNET_VARIANTS if name in ("plain", *variants)}
        rows = _compare_variants(network, ways, rounds, roof, plan, tick)
    return Table(
        title=f"UNet of {model.name}, a guided step of {shape}, {dtype_name(plan)}",
        rows=rows,
        note=f"Both branches of one window. {rounds} round(s), interleaved.",
    )


def time_vae(
    model: ModelFolder,
    plan: DevicePlan,
    shape: ClipShape,
    variants: tuple[str, ...],
    rounds: int,
    roof: Roof,
    tick: Tick,
) -> Table:
    """Decoding all frames at once, and in other ways. Chunks are another answer, as the decoder looks along time."""
    with memory_guard("measuring the VAE", "use a smaller --size or --frames, or --dtype bfloat16"), torch.no_grad():
        network: Any = load_network(model, "vae", plan.dtype).to(plan.device)
        latents = _noise(shape.frames, network.config["latent_channels"], *shape.latent, plan=plan)

        def decode(chunk: int) -> Tensor:
            parts = [network.decode(part, num_frames=len(part), return_dict=False)[0] for part in latents.split(chunk)]
            return torch.cat(parts)

        ways = {
            "plain": lambda: decode(shape.frames),
            CHANNELS_LAST: lambda: decode(shape.frames),
            "chunks of 4": lambda: decode(4),
            "chunks of 1": lambda: decode(1),
        }
        ways = {name: way for name, way in ways.items() if name in ("plain", *variants)}
        rows = _compare_variants(network, ways, rounds, roof, plan, tick)
    return Table(
        title=f"Decoder of {model.name}, {shape}, {dtype_name(plan)}",
        rows=rows,
        note=f"{rounds} round(s), interleaved. Chunks give other frames by design: the decoder sees along time.",
    )


def _compare_variants(
    network: nn.Module,
    variants: Mapping[str, Callable[[], Tensor]],
    rounds: int,
    roof: Roof,
    plan: DevicePlan,
    tick: Tick,
) -> list[dict[str, Any]]:
    """A row a way: seconds, ratio to ``plain``, share of the roof, bytes alive, and the error of its answer."""
    costs, answers = {}, {}
    for name, way in variants.items():
        configure_variant(network, name)
        if name == COMPILED:  # counters would stop its graph
            answers[name] = way().float().cpu()
        else:
            costs[name] = count_all(lambda name=name, way=way: answers.update({name: way().float().cpu()}))
        tick()
    timed = time_interleaved(
        variants,
        rounds,
        warm_up=0,
        setup=lambda way: configure_variant(network, way),
        synchronize=synchronizer(plan.device),
        tick=tick,
    )
    rows = []
    for name in variants:
        seconds, cost = timed.median(name), costs.get(name)
        row: dict[str, Any] = {"way": name, "ms": 1e3 * seconds}
        row |= {"times faster than plain": timed.ratio("plain", name) if name != "plain" else None}
        row |= {"TFLOP": cost.flops / 1e12 if cost else None}
        row |= {"% of roof": roof.percent(cost.flops, seconds) if cost else None}
        row |= {"GiB alive": cost.bytes / 2**30 if cost else None}
        row |= {"greatest error / greatest value": relative_error(answers["plain"], answers[name])}
        rows.append(row)
    return rows


def relative_error(expected: Tensor, actual: Tensor) -> float:
    """Greatest difference as a share of the greatest value that was expected."""
    return float((actual - expected).abs().max() / expected.abs().max())


def dtype_name(plan: DevicePlan) -> str:
    return str(plan.dtype).removeprefix("torch.")
