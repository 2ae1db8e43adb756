"""Batches for training. The batch of a step depends on the seed and the step alone.

Nothing is detected. Skeletons and masks are drawn from keypoints and cached in memory, compressed; videos are decoded
only if latents or image tokens are not cached.
"""

from __future__ import annotations

import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor

from stableanimator_cli.catalogue.download import weight_digests
from stableanimator_cli.config.train import StageConfig, TrainConfig
from stableanimator_cli.engine.conditioning import clip_pixels, to_signed
from stableanimator_cli.engine.training.batch import Batch
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.motion.geometry import Mode, resize_transform
from stableanimator_cli.records import ModelFolder
from stableanimator_cli.train.annotations import CELL, MotionAnnotations
from stableanimator_cli.train.buckets import Size, into_buckets
from stableanimator_cli.train.clips import TrainingClip
from stableanimator_cli.train.dataset import ClipAnnotations, Dataset, load_annotations
from stableanimator_cli.train.latent_cache import CacheFile, are_latents_cached, is_cached, latents_file, tokens_file
from stableanimator_cli.train.memory_cache import BoundedCache
from stableanimator_cli.train.people import SamplePeople, same_arrangement, stack_people
from stableanimator_cli.train.sampling import BatchSampler, ReferenceSource, choose_frames, keyed_rng

_AHEAD = 2  # batches that each worker prepares ahead


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderSettings:
    """Settings by which clips become samples.

    ``sizes`` (width, height), one bucket each; ``frames`` per sample, ``stride`` apart; ``reference``: see
    ``sampling.choose_frames``. ``vae`` and ``image_encoder``: sha256 of the networks whose caches are read, None for
    pixels. ``memory``: limit of the in-memory caches in bytes. ``people``: the most people of a clip that have a face
    vector and a region of their own.
    """

    sizes: tuple[Size, ...]
    frames: int = 16
    stride: int = 4
    resize: Mode = "stretch"
    reference: ReferenceSource = "unchosen"
    vae: str | None = None
    image_encoder: str | None = None
    memory: int = 1 << 30
    people: int = 1


def loader_settings(config: TrainConfig, stage: StageConfig, dataset: Dataset, model: ModelFolder) -> LoaderSettings:
    """Settings of a stage's loader. Caches of the kinds in ``--cache``, all if none are named, are read if all clips
    have one.

    All headers are checked here, so that a training does not fail on one later. Raises ``BadInput`` if one is not
    valid, or only some clips have one.
    """
    data = config.data
    settings = LoaderSettings(
        sizes=stage.sizes or (),
        frames=stage.frames,
        stride=data.stride,
        resize=data.resize,
        reference=data.reference,
        memory=data.ram_mb << 20,
        people=data.people,
    )
    if data.cache == "off":
        return settings
    if data.reads("latents"):
        vae = weight_digests(model, ("vae",))["vae"]
        if are_latents_cached(dataset.clips, settings.sizes, vae=vae, resize=data.resize):
            settings = replace(settings, vae=vae)
    if data.reads("embeddings"):
        encoder = weight_digests(model, ("image_encoder",))["image_encoder"]
        clips = [clip for bucket in into_buckets(dataset.clips, settings.sizes) for clip in bucket.clips]
        if is_cached([tokens_file(clip, image_encoder=encoder) for clip in clips]):
            settings = replace(settings, image_encoder=encoder)
    return settings


class _Sample(NamedTuple):
    """Clip, frames and reference of a sample."""

    index: int
    clip: TrainingClip
    frames: list[int]
    reference: int
    annotations: ClipAnnotations


class Loader:
    """Load this rank's share of global batches of ``batch`` samples, which do not depend on ``world``.

    ``calls`` counts ``frames_decoded`` and ``skeletons_drawn``. Raises ``ConfigError`` if the ranks cannot share the
    batch equally.
    """

    def __init__(
        self,
        dataset: Dataset,
        settings: LoaderSettings,
        *,
        seed: int,
        batch: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ) -> None:
        if batch < 1 or batch % world:
            raise ConfigError("--batch", batch, f"a multiple of the {world} processes" if world > 1 else "1 or more")
        self.settings = settings
        self.buckets = into_buckets(dataset.clips, settings.sizes)
        self.sampler = BatchSampler([len(bucket.clips) for bucket in self.buckets], seed=seed, batch=batch)
        self.calls: Counter[str] = Counter()
        self._seed = seed
        self._batch = batch
        self._positions = range(rank * (batch // world), (rank + 1) * (batch // world))
        self._workers = workers
        self._annotations = BoundedCache(settings.memory // 4)
        self._drawings = BoundedCache(settings.memory // 4)
        self._rows = BoundedCache(settings.memory // 2)

    def batch(self, step: int) -> Batch:
        """This rank's share of the batch of one step."""
        bucket, items = self.sampler.at(step)
        clips, size = self.buckets[bucket].clips, self.buckets[bucket].size
        samples = [self._sample(step * self._batch + position, clips[items[position]]) for position in self._positions]
        poses = [[self._skeleton(sample, frame, size) for frame in sample.frames] for sample in samples]
        masks = [[self._mask(sample, frame, size) for frame in sample.frames] for sample in samples]
        people = self._people(samples, size)
        return Batch(
            index=torch.tensor([sample.index for sample in samples]),
            clips=tuple(sample.clip.name for sample in samples),
            frames=torch.tensor([sample.frames for sample in samples]),
            poses=_stack([np.stack(frames) for frames in poses]),
            mask=_stack([np.stack(frames)[:, None] for frames in masks]),
            face=people["face"],
            has_face=people["has_face"],
            reference_box=people["reference_box"],
            regions=people["regions"],
            **self._network_inputs(samples, size),
        )

    def stream(self, first: int, last: int) -> Iterator[Batch]:
        """Batches of the steps ``first:last`` in order, prepared ahead by worker threads, if any."""
        steps = range(first, last)
        if not self._workers:
            yield from map(self.batch, steps)
            return
        pending: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="load")
        try:
            for step in steps:
                pending.append(pool.submit(self.batch, step))
                if len(pending) >= self._workers * _AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _sample(self, index: int, clip: TrainingClip) -> _Sample:
        settings = self.settings
        rng = keyed_rng(self._seed, "sample", index)
        annotations = self._annotations.get(
            clip.path, lambda: load_annotations(clip, settings.people), lambda value: value.nbytes
        )
        centres = annotations.centres() if _shows_several(annotations) else None
        frames, reference = choose_frames(
            rng,
            clip.frames,
            settings.frames,
            stride=settings.stride,
            source=settings.reference,
            suitable=None if centres is None else lambda chosen: same_arrangement(centres, chosen),
        )
        return _Sample(index, clip, frames.tolist(), reference, annotations)

    def _network_inputs(self, samples: Sequence[_Sample], size: Size) -> dict[str, Tensor | None]:
        """Pixels of the frames and the reference, or the cached outputs of the encoders."""
        settings = self.settings
        inputs: dict[str, Tensor | None] = dict.fromkeys(
            ("pixels", "moments", "reference_pixels", "reference_moments", "clip_pixels", "image_token")
        )
        if settings.vae is not None:
            rows = [self._read_rows(self._latents(s.clip, size), [*s.frames, s.reference]) for s in samples]
            inputs["moments"] = torch.stack([row[:-1] for row in rows])
            inputs["reference_moments"] = torch.stack([row[-1] for row in rows])
        if settings.image_encoder is not None:
            inputs["image_token"] = torch.stack([self._read_rows(self._tokens(s.clip), [s.reference]) for s in samples])
        if settings.vae is not None and settings.image_encoder is not None:
            return inputs
        video, references, clip_references = [], [], []
        for sample in samples:  # one at a time: frames at the source's size are large
            images = self._decode(sample, {sample.reference, *(sample.frames if settings.vae is None else ())})
            if settings.image_encoder is None:
                clip_references.append(clip_pixels(images[sample.reference][None])[0])
            if settings.vae is None:
                transform = resize_transform(sample.clip.size, size, settings.resize)
                resized = {n: transform.apply_image(image, "bicubic") for n, image in images.items()}
                video += [resized[n] for n in sample.frames]
                references.append(resized[sample.reference])
        if settings.vae is None:
            inputs["pixels"] = to_signed(np.stack(video)).unflatten(0, (len(samples), -1))
            inputs["reference_pixels"] = to_signed(np.stack(references))
        if settings.image_encoder is None:
            inputs["clip_pixels"] = torch.stack(clip_references)
        return inputs

    def _decode(self, sample: _Sample, frames: set[int]) -> dict[int, np.ndarray]:
        images = sample.clip.images(sorted(frames))
        self.calls["frames_decoded"] += len(images)
        return images

    def _skeleton(self, sample: _Sample, frame: int, size: Size) -> np.ndarray:
        """uint8[3,h,w]"""

        def draw() -> np.ndarray:
            self.calls["skeletons_drawn"] += 1
            return sample.annotations.skeleton(frame, size, self.settings.resize)

        packed = self._compressed((sample.clip.path, frame, size), draw)
        return np.frombuffer(packed, np.uint8).reshape(size[1], size[0], 3).transpose(2, 0, 1)

    def _mask(self, sample: _Sample, frame: int, size: Size) -> np.ndarray:
        """float32[h/8,w/8] in 0..1."""
        packed = self._compressed(
            (sample.clip.path, frame, size, "mask"), lambda: sample.annotations.mask(frame, size, self.settings.resize)
        )
        cells = np.frombuffer(packed, np.uint8).reshape(size[1] // CELL, size[0] // CELL)
        return cells.astype(np.float32) / 255

    def _compressed(self, key: tuple[Any, ...], draw: Callable[[], np.ndarray]) -> bytes:
        """Bytes of a drawing, cached with zlib: skeletons are mostly black and shrink a hundred times."""
        packed = self._drawings.get(key, lambda: zlib.compress(np.ascontiguousarray(draw()).data, 1), len)
        return zlib.decompress(packed)

    def _people(self, samples: Sequence[_Sample], size: Size) -> dict[str, Any]:
        """Face vectors, faces in the references, and regions if a sample shows several people."""
        several = []
        for sample in samples:
            people, annotations = range(len(sample.annotations.people)), sample.annotations
            resize, regions = self.settings.resize, None
            if _shows_several(annotations):
                regions = annotations.regions(sample.frames, size, resize)
            several.append(
                SamplePeople(
                    vectors=[annotations.embedding(sample.reference, person) for person in people],
                    boxes=[self._reference_box(sample, size, person) for person in people],
                    regions=regions,
                )
            )
        cells = (size[1] // CELL, size[0] // CELL)
        return stack_people(several, frames=self.settings.frames, cells=cells)

    def _reference_box(self, sample: _Sample, size: Size, person: int) -> np.ndarray:
        box = sample.annotations.face_box(sample.reference, person)
        if box is None:
            return np.full(4, np.nan, np.float32)
        transform = resize_transform(sample.clip.size, size, self.settings.resize)
        return (transform.apply_points(box.reshape(2, 2)).reshape(4) / CELL).astype(np.float32)

    def _read_rows(self, file: CacheFile, frames: list[int]) -> Tensor:
        """Rows of a cache file, which is held in memory if it fits."""
        if self._rows.accepts(file.path, file.nbytes):
            return self._rows.get(file.path, file.read_all, lambda rows: rows.nbytes)[frames].float()
        return file.read(frames)

    def _latents(self, clip: TrainingClip, size: Size) -> CacheFile:
        return latents_file(clip, size, vae=self.settings.vae or "", resize=self.settings.resize)

    def _tokens(self, clip: TrainingClip) -> CacheFile:
        return tokens_file(clip, image_encoder=self.settings.image_encoder or "")


def _shows_several(annotations: ClipAnnotations) -> TypeGuard[MotionAnnotations]:
    return isinstance(annotations, MotionAnnotations) and len(annotations.people) > 1


def _stack(values: Sequence[np.ndarray]) -> Tensor:
    return torch.stack([torch.as_tensor(value) for value in values])
