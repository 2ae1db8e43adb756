"""Batches for training: step n of a seed is the same batch whoever asks for it, in whatever order and process.

Nothing is detected. Skeletons and masks are drawn from key points and kept in memory, compressed; videos are decoded
only where latents or image tokens are not cached.
"""

from __future__ import annotations

import zlib
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Items

from stableanimator_cli.engine.conditioning import clip_pixels, to_signed
from stableanimator_cli.engine.training.batch import Batch
from stableanimator_cli.errors import ConfigError, SaError
from stableanimator_cli.motion.geometry import Mode, resize_transform
from stableanimator_cli.train.annotations import CELL, ClipAnnotations
from stableanimator_cli.train.buckets import Size, into_buckets
from stableanimator_cli.train.clips import TrainingClip
from stableanimator_cli.train.dataset import Dataset, observe
from stableanimator_cli.train.latent_cache import CacheFile, is_cached, latents_file, tokens_file
from stableanimator_cli.train.memory_cache import BoundedCache
from stableanimator_cli.train.sampling import BatchSampler, ReferenceSource, choose_frames, keyed_rng

_AHEAD = 2  # batches each worker is ahead
_OWN = ("calls", "_facts", "_drawn", "_rows")  # of a loader, what does not travel to worker processes


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderSettings:
    """How clips become samples. ``sizes`` (width, height), one bucket each; ``frames`` of a clip, ``stride`` apart;
    ``reference``: see ``order.choose_frames``. ``vae`` and ``image_encoder`` are the sha256 of the networks whose
    caches are read, None where pixels are wanted. ``memory`` bytes may be kept by each process that loads."""

    sizes: tuple[Size, ...]
    frames: int = 16
    stride: int = 4
    resize: Mode = "stretch"
    reference: ReferenceSource = "unchosen"
    vae: str | None = None
    image_encoder: str | None = None
    memory: int = 1 << 30

    def __post_init__(self) -> None:
        if not self.sizes:
            raise ConfigError("--sizes", None, "one size or more")
        for width, height in self.sizes:
            if min(width, height) < CELL or width % CELL or height % CELL:
                raise ConfigError("--sizes", f"{width}x{height}", f"sides that are multiples of {CELL}")
        for flag, value in (("--frames", self.frames), ("--stride", self.stride)):
            if value < 1:
                raise ConfigError(flag, value, "1 or more")
        for flag, value, choice in (
            ("--resize", self.resize, Mode),
            ("data.reference", self.reference, ReferenceSource),
        ):
            if value not in get_args(choice):
                raise ConfigError(flag, value, f"one of {', '.join(get_args(choice))}")

    @property
    def least(self) -> int:
        """Frames that a clip must have: those of a sample, and another one to be the reference of a picture."""
        return max(self.frames, 2)


class Loader:
    """Batches of ``batch`` samples in all ranks together, of which this one (``rank`` of ``world``) makes its share:
    the global batch is the same whatever ``world`` is.

    ``calls`` counts what was done in this process: ``frames_decoded``, ``skeletons_drawn``. Raises ``ConfigError``
    where the batch does not divide among the ranks, ``BadInput`` where a cache that is asked for does not fit.
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
        parallel: Literal["threads", "processes"] = "threads",
    ) -> None:
        if batch < 1 or batch % world:
            raise ConfigError("--batch", batch, f"a multiple of the {world} processes" if world > 1 else "1 or more")
        self.settings = settings
        self.buckets = into_buckets(dataset.clips, settings.sizes)
        self.schedule = BatchSampler([len(bucket.clips) for bucket in self.buckets], seed=seed, batch=batch)
        self._seed = seed
        self._batch = batch
        self._places = range(rank * (batch // world), (rank + 1) * (batch // world))
        self._workers = workers
        self._parallel = parallel
        self._begin()
        self._check_caches()

    def _begin(self) -> None:
        """What each process has of its own: a share of memory for key points, for drawings, for cached rows."""
        self.calls: Counter[str] = Counter()
        self._facts = BoundedCache(self.settings.memory // 4)
        self._drawn = BoundedCache(self.settings.memory // 4)
        self._rows = BoundedCache(self.settings.memory // 2)

    def _check_caches(self) -> None:
        """All headers once, so that a training does not end at one of them."""
        pairs = [(clip, bucket.size) for bucket in self.buckets for clip in bucket.clips]
        for wanted, files in (
            (self.settings.vae, [self._latents(clip, size) for clip, size in pairs]),
            (self.settings.image_encoder, [self._tokens(clip) for clip, _ in pairs]),
        ):
            if wanted is not None and not is_cached(files):
                files[0].check()  # says that there is none

    def batch(self, step: int) -> Batch:
        """This rank's share of the batch of one step; nothing that was asked for before matters."""
        bucket, items = self.schedule.at(step)
        clips, size = self.buckets[bucket].clips, self.buckets[bucket].size
        samples = [self._sample(step * self._batch + place, clips[items[place]], size) for place in self._places]
        columns = {key: _column([sample[key] for sample in samples]) for key in samples[0]}
        columns["clips"] = tuple(sample["clips"] for sample in samples)
        if columns["pixels"] is not None:
            b, t = columns["pixels"].shape[:2]
            columns["pixels"] = to_signed(columns["pixels"].flatten(0, 1).numpy()).unflatten(0, (b, t))
        if columns["reference_pixels"] is not None:
            columns["reference_pixels"] = to_signed(columns["reference_pixels"].numpy())
        return Batch(**columns)

    def stream(self, first: int, last: int) -> Iterator[Batch]:
        """Batches of the steps ``first:last`` in order, made ahead by the workers; without any, when asked for."""
        steps = range(first, last)
        if not self._workers:
            yield from map(self.batch, steps)
        elif self._parallel == "threads":
            yield from self._threaded(steps)
        else:
            # A worker's error comes as a value: the loader of torch would build it anew from its text alone.
            loader = DataLoader(
                _Steps(self),
                batch_size=None,
                sampler=steps,
                num_workers=self._workers,
                prefetch_factor=_AHEAD,
                multiprocessing_context="spawn",
            )
            for item in loader:
                if isinstance(item, SaError):
                    raise item
                yield item

    def _threaded(self, steps: range) -> Iterator[Batch]:
        line: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="load")
        try:
            for step in steps:
                line.append(pool.submit(self.batch, step))
                if len(line) >= self._workers * _AHEAD:
                    yield line.popleft().result()
            while line:
                yield line.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _sample(self, index: int, clip: TrainingClip, size: Size) -> dict[str, Any]:
        settings = self.settings
        rng = keyed_rng(self._seed, "sample", index)
        frames, reference = choose_frames(
            rng, clip.frames, settings.frames, stride=settings.stride, source=settings.reference
        )
        seen = self._facts.get(clip.path, lambda: observe(clip), lambda made: made.bytes())
        vector = seen.faces.vector(reference)
        return {
            "index": np.int64(index),
            "clips": clip.name,
            "frames": frames,
            "face": np.zeros(512, np.float32) if vector is None else vector,
            "has_face": np.bool_(vector is not None),
            "poses": np.stack([self._skeleton(clip, seen, int(frame), size) for frame in frames]),
            "mask": np.stack([self._mask(clip, seen, int(frame), size) for frame in frames])[:, None],
            "reference_box": self._reference_box(clip, seen, reference, size),
            **self._seen_by_networks(clip, frames, reference, size),
        }

    def _seen_by_networks(self, clip: TrainingClip, frames: np.ndarray, reference: int, size: Size) -> dict[str, Any]:
        """Pixels, or what the networks said of them, of the frames and of the reference."""
        out: dict[str, Any] = dict.fromkeys(
            ("pixels", "moments", "reference_pixels", "reference_moments", "clip_pixels", "image_token")
        )
        wanted: set[int] = set()
        if self.settings.vae is not None:
            rows = self._cached(self._latents(clip, size), [*frames.tolist(), reference])
            out["moments"], out["reference_moments"] = rows[:-1], rows[-1]
        else:
            wanted |= {*frames.tolist(), reference}
        if self.settings.image_encoder is not None:
            out["image_token"] = self._cached(self._tokens(clip), [reference])
        else:
            wanted.add(reference)
        if not wanted:
            return out
        pictures = clip.pictures(sorted(wanted))
        self.calls["frames_decoded"] += len(pictures)
        if self.settings.vae is None:
            there = resize_transform(clip.size, size, self.settings.resize)
            fitted = {number: there.apply_image(picture, "bicubic") for number, picture in pictures.items()}
            out["pixels"] = np.stack([fitted[int(frame)] for frame in frames])
            out["reference_pixels"] = fitted[reference]
        if self.settings.image_encoder is None:
            out["clip_pixels"] = clip_pixels(pictures[reference][None])[0]
        return out

    def _skeleton(self, clip: TrainingClip, seen: ClipAnnotations, frame: int, size: Size) -> np.ndarray:
        """uint8[3,h,w]; skeletons are mostly black, so a hundred of them take the room of one."""

        def draw() -> bytes:
            self.calls["skeletons_drawn"] += 1
            return zlib.compress(np.ascontiguousarray(seen.skeleton(frame, size, self.settings.resize)).data, 1)

        packed = self._drawn.get((clip.path, frame, size), draw, len)
        return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(size[1], size[0], 3).transpose(2, 0, 1)

    def _mask(self, clip: TrainingClip, seen: ClipAnnotations, frame: int, size: Size) -> np.ndarray:
        """float32[h/8,w/8] in 0..1."""

        def draw() -> bytes:
            return zlib.compress(np.ascontiguousarray(seen.mask(frame, size, self.settings.resize)).data, 1)

        packed = self._drawn.get((clip.path, frame, size, "mask"), draw, len)
        cells = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(size[1] // CELL, size[0] // CELL)
        return cells.astype(np.float32) / 255

    def _reference_box(self, clip: TrainingClip, seen: ClipAnnotations, frame: int, size: Size) -> np.ndarray:
        box = seen.face_box(frame)
        if box is None:
            return np.full(4, np.nan, np.float32)
        there = resize_transform(clip.size, size, self.settings.resize)
        return (there.apply_points(box.reshape(2, 2)).reshape(4) / CELL).astype(np.float32)

    def _cached(self, file: CacheFile, frames: list[int]) -> Tensor:
        """Rows of a cache: of all its rows in memory where there is room for them, else read from the file."""
        if self._rows.takes(file.path, file.bytes()):
            whole = self._rows.get(file.path, file.read_all, lambda made: made.numel() * made.element_size())
            return whole[frames].float()
        return file.read(frames)

    def _latents(self, clip: TrainingClip, size: Size) -> CacheFile:
        return latents_file(clip, size, vae=self.settings.vae or "", resize=self.settings.resize)

    def _tokens(self, clip: TrainingClip) -> CacheFile:
        return tokens_file(clip, image_encoder=self.settings.image_encoder or "")

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process begins with: nothing that is kept here."""
        return {key: value for key, value in self.__dict__.items() if key not in _OWN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()


def _column(values: list[Any]) -> Any:
    """The values of one field of all samples as one tensor, or None."""
    if values[0] is None or isinstance(values[0], str):
        return None
    return torch.stack([value if isinstance(value, Tensor) else torch.as_tensor(value) for value in values])


class _Steps(Items[Batch]):
    """A loader as torch's workers want it: an item a step."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getitem__(self, step: int) -> Any:
        try:
            return self._loader.batch(step)
        except SaError as error:
            return error
