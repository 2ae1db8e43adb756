"""Variants of the same call of the UNet and of the VAE's decoder, timed in alternation, with the error of each relative
to the plain variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from stableanimator_cli.bench.context import BenchRun, ClipShape
from stableanimator_cli.bench.counters import count_all
from stableanimator_cli.bench.networks import load_network
from stableanimator_cli.bench.results import Table
from stableanimator_cli.config.bench import CHANNELS_LAST, COMPILED, UNET_VARIANTS, VAE_VARIANTS
from stableanimator_cli.engine.device import DevicePlan, memory_guard
from stableanimator_cli.nets.compiled import CompiledBlocks
from stableanimator_cli.nets.context import Context
from stableanimator_cli.nets.memory_format import set_channels_last
from stableanimator_cli.nets.unet import AnimationUNet
from stableanimator_cli.nets.unet_blocks import call_block

_SIGMA_INPUT = 0.5  # 0.25 ln sigma, somewhere in the middle of a run


def _noise(*shape: int, plan: DevicePlan) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(plan.device, plan.dtype)


def unet_variants(
    unet: AnimationUNet, shape: ClipShape, plan: DevicePlan, call: Callable[..., Tensor] | None = None
) -> dict[str, Callable[[], Tensor]]:
    """One guided step of one window [2,t,c,h,w] (unconditional, conditional), in every variant. ``call`` replaces the
    UNet if given."""
    call = call or unet
    channels, token = unet.sample_channels, unet.config["cross_attention_dim"]
    height, width = shape.latent
    sample = _noise(1, shape.frames, channels, height, width, plan=plan)
    pose = _noise(shape.frames, unet.config["block_out_channels"][0], height, width, plan=plan)
    image, face = _noise(1, 1, token, plan=plan), _noise(1, unet.id_tokens, token, plan=plan)
    ids = torch.tensor([[6.0, 127.0, 0.02]], device=plan.device)
    given, none = Context(image, face), Context(torch.zeros_like(image), torch.zeros_like(face))
    prepared = [unet.prepare(none), unet.prepare(given)]
    both = Context(torch.cat([none.image, image]), torch.cat([torch.zeros_like(face), face]))
    twice, poses = sample.repeat(2, 1, 1, 1, 1), torch.cat([torch.zeros_like(pose), pose])

    def separately(contexts: list[Context]) -> Tensor:
        outputs = [call(sample, _SIGMA_INPUT, c, ids, p) for c, p in zip(contexts, (None, pose), strict=True)]
        return torch.cat(outputs)

    return {
        "plain": lambda: separately([none, given]),
        "prepared": lambda: separately(prepared),
        "batched": lambda: unet(twice, _SIGMA_INPUT, both, ids.repeat(2, 1), poses),
        CHANNELS_LAST: lambda: separately(prepared),
        COMPILED: lambda: separately(prepared),
    }


def guided_step(
    unet: AnimationUNet, shape: ClipShape, plan: DevicePlan, call: Callable[..., Tensor]
) -> Callable[[], Tensor]:
    """The variant ``prepared`` through ``call``, which is the UNet or replaces it."""
    return unet_variants(unet, shape, plan, call)["prepared"]


def decoding(vae: Any, shape: ClipShape, plan: DevicePlan) -> Callable[[int], Tensor]:
    """A function of the number of frames in a chunk that decodes noise of that shape: [t,3,h,w]."""
    latents = _noise(shape.frames, vae.config["latent_channels"], *shape.latent, plan=plan)

    def decode(chunk: int) -> Tensor:
        return torch.cat(
            [vae.decode(part, num_frames=len(part), return_dict=False)[0] for part in latents.split(chunk)]
        )

    return decode


def configure_variant(network: nn.Module, variant: str) -> None:
    """Set memory format and block runner as ``--channels-last`` and ``--compile blocks`` do."""
    set_channels_last(network, enabled=variant == CHANNELS_LAST)
    if isinstance(network, AnimationUNet):
        network.run = _compiled() if variant == COMPILED else call_block


@cache
def _compiled() -> CompiledBlocks:
    return CompiledBlocks()


def time_unet(bench: BenchRun) -> list[Table]:
    """Time a guided step (both branches) of one window, in each variant; ``plain`` is always among them."""
    model, shape = bench.model(), bench.shape((128, 128), 16)
    selected = bench.config.variants or tuple(name for name in UNET_VARIANTS if name != COMPILED)
    with memory_guard("measuring the UNet", "use a smaller --size or --frames, or --dtype bfloat16"), torch.no_grad():
        network = cast(AnimationUNet, load_network(model, "unet", bench.plan.dtype).to(bench.plan.device))
        variants = unet_variants(network, shape, bench.plan)
        rows = _compare_variants(bench, network, {n: variants[n] for n in UNET_VARIANTS if n in ("plain", *selected)})
    title = f"UNet of {model.name}, a guided step of {shape}, {bench.dtype}"
    return [Table(title=title, rows=rows, note=f"Both branches of one window. {bench.rounds} round(s), interleaved.")]


def time_vae(bench: BenchRun) -> list[Table]:
    """Time decoding of all frames at once, and in other variants. Chunks give other frames by design."""
    model, shape = bench.model(), bench.shape((128, 128), 8)
    selected = bench.config.variants or VAE_VARIANTS
    with memory_guard("measuring the VAE", "use a smaller --size or --frames, or --dtype bfloat16"), torch.no_grad():
        network: Any = load_network(model, "vae", bench.plan.dtype).to(bench.plan.device)
        decode = decoding(network, shape, bench.plan)
        chunks = {"plain": shape.frames, CHANNELS_LAST: shape.frames, "chunks of 4": 4, "chunks of 1": 1}
        variants = {name: partial(decode, n) for name, n in chunks.items() if name in ("plain", *selected)}
        rows = _compare_variants(bench, network, variants)
    note = f"{bench.rounds} round(s), interleaved. Chunks give other frames by design: the decoder sees along time."
    return [Table(title=f"Decoder of {model.name}, {shape}, {bench.dtype}", rows=rows, note=note)]


def _compare_variants(
    bench: BenchRun, network: nn.Module, variants: Mapping[str, Callable[[], Tensor]]
) -> list[dict[str, Any]]:
    """Per variant: seconds, ratio to ``plain``, percentage of the roof, bytes alive, and the error of its output."""
    costs, outputs = {}, {}
    for name, run in variants.items():
        configure_variant(network, name)
        if name == COMPILED:  # counters would stop its graph
            outputs[name] = run().float().cpu()
        else:
            costs[name] = count_all(lambda name=name, run=run: outputs.update({name: run().float().cpu()}))
        bench.tick()
    timed = bench.time(variants, warm_up=0, setup=partial(configure_variant, network))
    rows = []
    for name in variants:
        seconds, cost = timed.median(name), costs.get(name)
        rows.append(
            {
                "way": name,
                "ms": 1e3 * seconds,
                "times faster than plain": timed.ratio("plain", name) if name != "plain" else None,
                "TFLOP": cost.flops / 1e12 if cost else None,
                "% of roof": bench.roof().percent(cost.flops, seconds) if cost else None,
                "GiB alive": cost.bytes / 2**30 if cost else None,
                "greatest error / greatest value": relative_error(outputs["plain"], outputs[name]),
            }
        )
    return rows


def relative_error(expected: Tensor, actual: Tensor) -> float:
    """Maximum difference relative to the maximum expected value."""
    return float((actual - expected).abs().max() / expected.abs().max())
