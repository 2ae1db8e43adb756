"""The frozen networks as the functions that caches are made with, and the settings of a stage's loader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stableanimator_cli.config.train import StageConfig, TrainConfig
from stableanimator_cli.engine.device import memory_guard
from stableanimator_cli.engine.weights import loaders
from stableanimator_cli.files import sha256_of
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import ModelFolder
from stableanimator_cli.train.annotations import CELL
from stableanimator_cli.train.buckets import Bucket, into_buckets
from stableanimator_cli.train.dataset import Dataset
from stableanimator_cli.train.latent_cache import (
    Encoders,
    FindsFaces,
    build_cache,
    is_cached,
    lacks_faces,
    latents_file,
    tokens_file,
)
from stableanimator_cli.train.loader import LoaderSettings


def loader_settings(config: TrainConfig, stage: StageConfig, dataset: Dataset, model: ModelFolder) -> LoaderSettings:
    """With the digests of the networks whose caches are there for all clips. ``BadInput`` where a part of them is, or
    where they are of other networks."""
    data, sizes = config.data, stage.sizes or ()
    plain = LoaderSettings(
        sizes=sizes,
        frames=stage.frames,
        stride=data.stride,
        resize=data.resize,
        reference=data.reference,
        memory=data.ram_mb << 20,
    )
    if data.cache == "off":
        return plain
    pairs = [(clip, bucket.size) for bucket in into_buckets(dataset.clips, sizes) for clip in bucket.clips]
    vae, encoder = sha256_of(model.files["vae"]), sha256_of(model.files["image_encoder"])
    latents = is_cached([latents_file(clip, size, vae=vae, resize=data.resize) for clip, size in pairs])
    tokens = is_cached([tokens_file(clip, image_encoder=encoder) for clip, _ in pairs])
    return LoaderSettings(
        sizes=sizes,
        frames=stage.frames,
        stride=data.stride,
        resize=data.resize,
        reference=data.reference,
        memory=data.ram_mb << 20,
        vae=vae if latents else None,
        image_encoder=encoder if tokens else None,
    )


def make_caches(
    config: TrainConfig,
    dataset: Dataset,
    model: ModelFolder,
    device: torch.device,
    shard: tuple[int, int],
    reporter: Reporter,
) -> None:
    """Write the caches that ``--cache`` names and that are missing, at the sizes of all stages, and the faces of clips
    of the reference implementation, which have none; this rank's share of the clips."""
    kinds = set() if config.data.cache in (None, "off") else {part.strip() for part in config.data.cache.split(",")}
    reader = _reader(dataset, model, device, reporter) if config.ablation.face == "on" else None
    if not kinds and reader is None:
        return
    stages = config.stage or ()
    buckets = [
        bucket
        for sizes in dict.fromkeys(stage.sizes or () for stage in stages)
        for bucket in into_buckets(dataset.clips, sizes)
    ]
    load = loaders(model, torch.float32, "distribution")
    latents = moments(load["vae"]().to(device), device) if "latents" in kinds else None
    tokens = tokens_of(load["image_encoder"]().to(device), device) if "embeddings" in kinds else None
    encoders = Encoders(
        latents=latents,
        vae=sha256_of(model.files["vae"]) if latents is not None else "",
        tokens=tokens,
        image_encoder=sha256_of(model.files["image_encoder"]) if tokens is not None else "",
        faces=reader,
    )
    with memory_guard("encoding frames for the caches", "use a smaller --sizes, or --cache off"):
        report = build_cache(buckets, encoders, resize=config.data.resize, shard=shard, reporter=reporter)
    if report.made:
        reporter.info(f"caches: {report.made} files made, {report.kept} there, {report.bytes / 2**20:.1f} MiB written")


def find_faces(dataset: Dataset, model: ModelFolder, device: torch.device, reporter: Reporter) -> None:
    """Write the faces alone of clips that have none."""
    reader = _reader(dataset, model, device, reporter)
    if reader is not None:
        build_cache([Bucket(size=(CELL, CELL), clips=dataset.clips)], Encoders(faces=reader), reporter=reporter)


def _reader(dataset: Dataset, model: ModelFolder, device: torch.device, reporter: Reporter) -> FindsFaces | None:
    """The model's face reader if a clip still needs it; None if the model has none."""
    if "face" not in model.files or not any(lacks_faces(clip) for clip in dataset.clips):
        return None
    from stableanimator_cli.detect.face import FaceReader  # its libraries take a second to load
    from stableanimator_cli.detect.onnx import warn_of_fallbacks

    reader = FaceReader(model.files["face"], model.face_channel_order, str(device))
    warn_of_fallbacks(reporter)
    return reader


def moments(vae: Any, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Pixels [n,3,h,w] -> mean and log-variance of the posterior [n,2c,h/8,w/8]."""

    def encode(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return vae.encode(pixels.to(device, vae.dtype)).latent_dist.parameters.float()

    return encode


def tokens_of(encoder: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Pixels normalised for CLIP [n,3,224,224] -> [n,d]."""

    def encode(pixels: Tensor) -> Tensor:
        weight = next(encoder.parameters())
        with torch.no_grad():
            return encoder(pixel_values=pixels.to(device, weight.dtype)).image_embeds.float()

    return encode
