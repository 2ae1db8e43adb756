"""Cost of networks, counted on the ``meta`` device: FLOPs, peak bytes, operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stableanimator_cli.bench.counters import Counts, count_all, count_flops
from stableanimator_cli.bench.networks import FULL, network_on_meta, open_bench_model
from stableanimator_cli.bench.results import Table
from stableanimator_cli.diffusion.face_optimization import Box
from stableanimator_cli.engine.decoder import FaceDecoder
from stableanimator_cli.engine.engine import check_cache_layers
from stableanimator_cli.engine.memory.profile import prepare_context
from stableanimator_cli.nets.arcface import crop_resize
from stableanimator_cli.nets.context import Context
from stableanimator_cli.records import STRIDE, ModelFolder

Size = tuple[int, int]  # width, height in pixels
SIZES: tuple[Size, ...] = ((576, 1024), (512, 512))
TERA, GIB = 1e12, 2**30

# TFLOP of the released shapes for 16 frames, estimated independently of this counter from diffusers' own networks.
ESTIMATED = {
    ("unet", (576, 1024)): 51.20,
    ("unet", (512, 512)): 20.31,
    ("vae decode", (576, 1024)): 111.1,
    ("vae decode", (512, 512)): 48.7,
    ("vae encode", (576, 1024)): 16 * 2.61,
    ("vae encode", (512, 512)): 16 * 1.12,
    ("face optimisation, full", (576, 1024)): 312.3,
    ("face optimisation, full", (512, 512)): 135.7,
}


def unet_cost(model: ModelFolder, size: Size, frames: int, dtype: torch.dtype) -> dict[str, Counts]:
    """One call of one window: as it is, with projections of tokens prepared, and the unconditional branch."""
    unet: Any = network_on_meta(model, "unet", dtype)
    like = {"device": "meta", "dtype": dtype}
    width, height = (side // STRIDE for side in size)
    token = unet.config["cross_attention_dim"]
    image, face = torch.empty(1, 1, token, **like), torch.empty(1, unet.id_tokens, token, **like)
    sample = torch.empty(1, frames, unet.sample_channels, height, width, **like)
    ids = torch.empty(1, 3, **like)
    pose = torch.empty(frames, unet.config["block_out_channels"][0], height, width, **like)
    with torch.no_grad():
        contexts = {
            "unet": (Context(image, face), pose),
            "unet, prepared": (prepare_context(unet, image, face), pose),
            "unet, prepared, unconditional": (unet.prepare(Context(image, None)), None),
        }
        return {
            name: count_all(lambda c=context, p=given: unet(sample, 1.0, c, ids, p))
            for name, (context, given) in contexts.items()
        }


def vae_cost(model: ModelFolder, size: Size, frames: int, dtype: torch.dtype, chunk: int) -> dict[str, Counts]:
    """Decoding all frames in chunks, and encoding them one by one. Bytes are of one chunk and one frame."""
    vae: Any = network_on_meta(model, "vae", dtype)
    width, height = size
    latents = torch.empty(chunk, 4, height // STRIDE, width // STRIDE, device="meta", dtype=dtype)
    image = torch.empty(1, 3, height, width, device="meta", dtype=dtype)
    with torch.no_grad():
        decode = count_all(lambda: vae.decode(latents, num_frames=chunk, return_dict=False))
        encode = count_all(lambda: vae.encode(image, return_dict=False))
    return {
        "vae decode": Counts(decode.flops * frames // chunk, decode.bytes, decode.operators * frames // chunk),
        "vae encode": Counts(encode.flops * frames, encode.bytes, encode.operators * frames),
    }


def face_box(size: Size, side: int) -> Box:
    """A square face in the middle of the upper half, off the latents' grid, as faces are."""
    width, height = size
    left, top = (width - side) // 2 + 4, max(0, height // 4 - side // 2) + 4
    return left, top, min(width, left + side) - 1, min(height, top + side) - 1


def refine_iteration(
    decoder: FaceDecoder, clean: Tensor, chunk: int, box: Box, *, crop: bool = False, one_graph: bool = False
) -> None:
    """One iteration of face optimisation without its recogniser, forward and backward to the latents.

    Chunk by chunk, or with ``one_graph`` all chunks in one backward pass, as the reference implementation does.
    ``crop`` needs the decoder's recorded statistics.
    """
    variable = clean.clone().requires_grad_(True)
    losses = []
    for start in range(0, len(clean), chunk):
        frames = range(start, min(start + chunk, len(clean)))
        part, face = variable[frames.start : frames.stop], box
        if crop:
            pixels, (x, y) = decoder.crop(part, frames, box)
            face = (box[0] - x, box[1] - y, box[2] - x, box[3] - y)
        else:
            pixels = decoder.pixels(part)
        loss = crop_resize(pixels.float().clamp(-1, 1), [face] * len(part)).mean()
        if one_graph:
            losses.append(loss)
        else:
            loss.backward()
    if one_graph:
        torch.stack(losses).sum().backward()


def face_optimization_cost(
    model: ModelFolder,
    size: Size,
    frames: int,
    dtype: torch.dtype,
    chunk: int,
    face: int,
    *,
    margin: int = 8,
    checkpointing: Sequence[bool] = (True, False),
) -> dict[str, Counts]:
    """One iteration over ``frames`` frames, with a face of ``face`` pixels per side: full frames with and without
    ``checkpointing``, and a crop, which is never checkpointed."""
    vae: Any = network_on_meta(model, "vae", dtype)
    width, height = size
    clean = torch.empty(frames, 4, height // STRIDE, width // STRIDE, device="meta", dtype=dtype)
    box, chunks = face_box(size, face), [range(n, min(n + chunk, frames)) for n in range(0, frames, chunk)]
    costs = {}
    for checkpointed in checkpointing:
        decoder = FaceDecoder(vae, Counter(), checkpointed=checkpointed, margin=margin)
        way = "" if checkpointed else ", not checkpointed"
        for name, one_graph in ((f"full{way}", False), (f"full, one graph{way}", True)):
            costs[f"face optimisation, {name}"] = count_all(
                lambda d=decoder, one_graph=one_graph: refine_iteration(d, clean, chunk, box, one_graph=one_graph)
            )
    decoder = FaceDecoder(vae, Counter(), margin=margin)
    with decoder.with_recorded_stats(clean, chunks):
        costs["face optimisation, crop"] = count_all(lambda: refine_iteration(decoder, clean, chunk, box, crop=True))
    return costs


def cost_tables(*, networks: str, sizes: tuple[Size, ...], frames: int, chunk: int, face: int) -> Iterator[Table]:
    """Cost of every network at every size; bfloat16, face optimisation in float32 as it runs by default."""
    model = open_bench_model(networks)
    for size in sizes:
        costs = unet_cost(model, size, frames, torch.bfloat16)
        costs |= vae_cost(model, size, frames, torch.bfloat16, chunk)
        costs |= face_optimization_cost(model, size, frames, torch.float32, chunk, face)
        estimated = ESTIMATED if networks == FULL and frames == 16 else {}
        rows = []
        for name, cost in costs.items():
            row = {"what": name, "TFLOP": cost.flops / TERA, "GiB alive": cost.bytes / GIB}
            row |= {"operators": cost.operators, "TFLOP estimated before": estimated.get((name, size))}
            rows.append(row)
        yield Table(
            title=f"{networks} networks, {frames} frames of {size[0]}x{size[1]}",
            rows=rows,
            note=f"Counted, not computed; chunks of {chunk}; bfloat16. Bytes are those of operator outputs, without "
            f"weights, per call (UNet), chunk (decoding) or frame (encoding). Face optimisation: one iteration without "
            f"the recogniser, a face of {face} pixels, float32.",
        )


@dataclass(frozen=True, slots=True)
class CachedCost:
    """FLOPs of one conditional UNet call: a ``full`` one, and by number of ``layers`` a shallow one with the bytes of
    the deep features that are cached for it."""

    full: int
    layers: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    def ratio(self, layers: int) -> float:
        """FLOPs of a shallow call relative to a full one."""
        return self.layers[layers][0] / self.full


def cached_cost(
    model: ModelFolder, size: tuple[int, int], frames: int, dtype: torch.dtype, layers: Sequence[int]
) -> CachedCost:
    """Count on the ``meta`` device, with the arguments of ``Engine.denoiser``.

    Raises ``ConfigError`` for ``layers`` that the UNet's decoder does not have.
    """
    unet: Any = network_on_meta(model, "unet", dtype)
    for count in layers:
        check_cache_layers(unet, count)
    options = {"device": "meta", "dtype": dtype}
    token, (width, height) = unet.config["cross_attention_dim"], (side // STRIDE for side in size)
    inputs = (
        torch.empty(1, frames, unet.sample_channels, height, width, **options),
        1.0,
        prepare_context(unet, torch.empty(1, 1, token, **options), torch.empty(1, unet.id_tokens, token, **options)),
        torch.empty(1, 3, **options),
        torch.empty(frames, unet.config["block_out_channels"][0], height, width, **options),
    )
    shallow: dict[int, tuple[int, int]] = {}
    with torch.no_grad():
        for count in layers:
            _, deep = unet.forward_caching(*inputs, layers=count)
            flops = count_flops(lambda n=count, d=deep: unet.forward_cached(*inputs, layers=n, deep=d))
            shallow[count] = flops, deep.numel() * deep.element_size()
        return CachedCost(count_flops(lambda: unet(*inputs)), shallow)
