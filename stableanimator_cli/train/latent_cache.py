"""Outputs of the frozen encoders for every frame of a clip, stored in its folder.

``latents-WxH.safetensors`` holds ``moments`` float16[t,2c,h/8,w/8]: mean and log-variance of the VAE's posterior, from
which training samples. ``embeddings.safetensors`` holds ``tokens`` float16[t,d] of the image encoder, from frames at
their own size. The header identifies clip, network and size; a file with another header is never read, and is replaced
if caches are requested. Files appear complete or not at all, so a killed run resumes where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from stableanimator_cli.catalogue.download import weight_digests
from stableanimator_cli.clip_folder import FaceTable, save_faces
from stableanimator_cli.config.train import TrainConfig
from stableanimator_cli.detect.read_ahead import read_ahead
from stableanimator_cli.engine.conditioning import clip_pixels, to_signed
from stableanimator_cli.engine.device import memory_guard
from stableanimator_cli.engine.weights import loaders, sorted_metadata
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import MARK, atomic_write, check_replaceable, translate_os_errors
from stableanimator_cli.motion.geometry import Mode, resize_transform
from stableanimator_cli.progress import NullReporter, Reporter
from stableanimator_cli.records import Face, ModelFolder
from stableanimator_cli.train import leftovers
from stableanimator_cli.train.annotations import CELL
from stableanimator_cli.train.buckets import Bucket, Size, into_buckets
from stableanimator_cli.train.clips import TrainingClip
from stableanimator_cli.train.dataset import Dataset

if TYPE_CHECKING:
    from stableanimator_cli.detect.face import FaceReader

FORMAT = "1"
MOMENTS, TOKENS = "moments", "tokens"
_KINDS = {MOMENTS: "latents", TOKENS: "embeddings"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoders:
    """The encoders as functions, each with the sha256 of its weights; None skips a cache.

    ``latents``: float32[n,3,h,w] in -1..1 -> moments [n,2c,h/8,w/8]. ``tokens``: float32[n,3,224,224] normalised for
    CLIP -> [n,d]. ``faces`` writes ``faces.npz`` for clips of the reference implementation, which have none.
    """

    latents: Callable[[Tensor], Tensor] | None = None
    vae: str = ""
    tokens: Callable[[Tensor], Tensor] | None = None
    image_encoder: str = ""
    faces: FaceReader | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """Number of ``written`` and ``reused`` files, ``bytes`` written."""

    written: int
    reused: int
    bytes: int


@dataclass(frozen=True, slots=True)
class CacheFile:
    """One cache of one clip: path, name of the array, the expected header, and the ``former`` key of the clip."""

    path: Path
    array: str
    header: Mapping[str, str]
    former: str = ""

    @property
    def kind(self) -> str:
        return _KINDS[self.array]

    @property
    def nbytes(self) -> int:
        """Size of the file, 0 if it is missing."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def _replace_hint(self) -> str:
        return f"--cache {self.kind} replaces it; --cache off ignores it"

    def check(self) -> None:
        """Raise ``BadInput`` if the file is missing, damaged, or the cache of something else."""
        hint = self._replace_hint
        with self._open() as file:
            actual = file.metadata() or {}
            if self.array not in list(file.keys()):
                raise BadInput(self.path, f"no array {self.array!r}", f"cached {self.kind}", hint=hint)
            rows = file.get_slice(self.array)
            shape, dtype = rows.get_shape(), rows.get_dtype()
        for key, value in self.header.items():
            if actual.get(key) != value and not (key == "clip" and self.former and actual.get(key) == self.former):
                found, expected = (_abbreviate(key, text) for text in (actual.get(key, "none"), value))
                raise BadInput(self.path, f"{self.kind} of {key} {found}", f"{key} {expected}", hint=hint)
        if dtype != "F16" or not self._has_shape(shape):
            raise BadInput.because(self.path, f"its {self.array} {shape} of {dtype} do not fit the clip", hint=hint)

    def _has_shape(self, shape: Sequence[int]) -> bool:
        """Whether there is one row per frame, and latents have an eighth of the image's size."""
        if len(shape) < 2 or shape[0] != int(self.header["frames"]) or shape[1] < 1:
            return False
        if self.array == TOKENS:
            return len(shape) == 2
        width, height = (int(side) // CELL for side in self.header["size"].split("x"))
        return len(shape) == 4 and list(shape[2:]) == [height, width]

    def is_valid(self) -> bool:
        try:
            self.check()
        except BadInput:
            return False
        return True

    def read(self, frames: Sequence[int]) -> Tensor:
        """Rows of the given frames as float32, without reading others."""
        with self._open() as file:
            rows = file.get_slice(self.array)
            return torch.stack([rows[int(frame)] for frame in frames]).float()

    def read_all(self) -> Tensor:
        """All rows in float16, as stored."""
        with self._open() as file:
            return file.get_tensor(self.array)

    def write(self, rows: Tensor) -> int:
        """Write the cache and return its size. Raises ``BadInput`` rather than replace a file that is no cache."""
        if not self._is_unmarked_cache():
            check_replaceable(self.path)
        data = sorted_metadata(save({self.array: rows.contiguous()}, metadata={**self.header, MARK: FORMAT}))
        with _hint_of_writes("use --cache off"), atomic_write(self.path) as temp, translate_os_errors(self.path):
            temp.write_bytes(data)
        return len(data)

    def _is_unmarked_cache(self) -> bool:
        """Whether the file has a cache's header: versions before ``MARK`` wrote the same keys without it."""
        with suppress(BadInput), self._open() as file:
            return self.header.keys() <= (file.metadata() or {}).keys()
        return False

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with safe_open(self.path, framework="pt") as file:
                yield file
        except FileNotFoundError:
            hint = f"make it with --cache {self.kind}"
            raise BadInput(self.path, "no file", f"cached {self.kind}", hint=hint) from None
        except (SafetensorError, OSError) as error:
            problem = f"a damaged file ({error})"
            raise BadInput(self.path, problem, f"cached {self.kind}", hint=self._replace_hint) from None


@contextmanager
def _hint_of_writes(otherwise: str) -> Iterator[None]:
    """The hint of files that cannot be written into a clip's folder: another ``-o`` does not move them."""
    try:
        yield
    except BadInput as error:
        error.hint = f"free some space and make the folder of the clip writable, or {otherwise}"
        raise


def _abbreviate(key: str, value: str) -> str:
    """Shorten digests to twelve characters."""
    return value[:12] if key in ("vae", "image_encoder", "clip") else value


def latents_file(clip: TrainingClip, size: Size, *, vae: str, resize: Mode) -> CacheFile:
    """The cache of a clip's latents at one size (width, height)."""
    shape = f"{size[0]}x{size[1]}"
    header = {"format": FORMAT, "clip": clip.key, "frames": str(clip.frames), "vae": vae, "size": shape}
    return CacheFile(clip.path / f"latents-{shape}.safetensors", MOMENTS, header | {"resize": resize}, clip.former_key)


def tokens_file(clip: TrainingClip, *, image_encoder: str) -> CacheFile:
    """The cache of a clip's image tokens."""
    header = {"format": FORMAT, "clip": clip.key, "frames": str(clip.frames), "image_encoder": image_encoder}
    return CacheFile(clip.path / "embeddings.safetensors", TOKENS, header, clip.former_key)


def is_cached(files: Sequence[CacheFile]) -> bool:
    """Whether all caches exist (True) or none (False).

    Raises ``BadInput`` if only some exist, as after an interrupted run, or one belongs to another network, size or
    clip: ignoring them silently would waste the time that it took to make them.
    """
    missing = [file for file in files if not file.path.exists()]
    if len(missing) == len(files):
        return False
    if missing:
        kind = missing[0].kind
        problem = f"no cache, but {len(files) - len(missing)} of {len(files)} clips have one"
        hint = f"make the missing ones with --cache {kind}"
        raise BadInput(missing[0].path, problem, f"{kind} of all clips", hint=hint)
    for file in files:
        file.check()
    return True


def are_latents_cached(clips: Sequence[TrainingClip], sizes: Sequence[Size], *, vae: str, resize: Mode) -> bool:
    """``is_cached`` of the latents of ``clips``, each at the one of ``sizes`` that it is trained at."""
    buckets = into_buckets(clips, sizes)
    return is_cached(
        [latents_file(clip, bucket.size, vae=vae, resize=resize) for bucket in buckets for clip in bucket.clips]
    )


def kinds_to_read(config: TrainConfig, dataset: Dataset, model: ModelFolder) -> str | None:
    """``--cache`` of a new run with the caches that exist for all clips at all sizes; ``off`` if there are none.

    So a resumed run reads what the run did, whatever others have cached meanwhile. None if only some stages have
    latents. Raises ``BadInput`` as ``is_cached`` does.
    """
    given = config.data.cache
    kinds = set() if given is None else {part.strip() for part in given.split(",")}
    if "off" in kinds:
        return given
    if _KINDS[MOMENTS] not in kinds:
        vae = weight_digests(model, ("vae",))["vae"]
        all_sizes = dict.fromkeys(stage.sizes or () for stage in config.stage or ())
        found = {are_latents_cached(dataset.clips, sizes, vae=vae, resize=config.data.resize) for sizes in all_sizes}
        if len(found) > 1:
            return given
        kinds |= {_KINDS[MOMENTS]} if True in found else set()
    if _KINDS[TOKENS] not in kinds:
        encoder = weight_digests(model, ("image_encoder",))["image_encoder"]
        if is_cached([tokens_file(clip, image_encoder=encoder) for clip in dataset.clips]):
            kinds.add(_KINDS[TOKENS])
    return ",".join(kind for kind in _KINDS.values() if kind in kinds) or "off"


def build_cache(
    buckets: Sequence[Bucket],
    encoders: Encoders,
    *,
    resize: Mode = "stretch",
    batch: int = 8,
    shard: tuple[int, int] = (0, 1),
    reporter: Reporter | None = None,
) -> CacheReport:
    """Write the missing caches of the clips in ``buckets``, ``batch`` frames per call of an encoder.

    Every video is decoded once for all encoders, in a thread of its own. ``shard`` (I, N) selects part I of N of the
    clips, one part per rank. Raises ``BadInput`` that names clip and frame.
    """
    selected = [(clip, bucket.size) for bucket in buckets for clip in bucket.clips][shard[0] :: shard[1]]
    written = reused = size_written = 0
    with (reporter or NullReporter()).progress(sum(clip.frames for clip, _ in selected), "cache", "frame") as bar:
        for clip, size in selected:
            leftovers.remove_from_clip(clip.path)
            jobs = _jobs(clip, size, encoders, resize)
            pending = [(file, encode) for file, encode in jobs if not file.is_valid()]
            reused += len(jobs) - len(pending)
            reader = encoders.faces if needs_faces(clip) else None
            if pending or reader is not None:
                rows = _encode(clip, [encode for _, encode in pending], reader, batch)
                size_written += sum(file.write(encoded) for (file, _), encoded in zip(pending, rows, strict=True))
                written += len(pending) + (reader is not None)
            bar.update(clip.frames)
    return CacheReport(written=written, reused=reused, bytes=size_written)


def needs_faces(clip: TrainingClip) -> bool:
    """Whether faces were not detected yet: only clips of ``sa preprocess`` come with faces."""
    return clip.folder is None and not clip.faces_path.exists()


Encode = Callable[[list[np.ndarray]], Tensor]


def _jobs(clip: TrainingClip, size: Size, encoders: Encoders, resize: Mode) -> list[tuple[CacheFile, Encode]]:
    jobs: list[tuple[CacheFile, Encode]] = []
    encode_latents, encode_tokens = encoders.latents, encoders.tokens
    if encode_latents is not None:
        transform = resize_transform(clip.size, size, resize)

        def moments(images: list[np.ndarray]) -> Tensor:
            return encode_latents(to_signed(np.stack([transform.apply_image(image, "bicubic") for image in images])))

        jobs.append((latents_file(clip, size, vae=encoders.vae, resize=resize), moments))
    if encode_tokens is not None:
        file = tokens_file(clip, image_encoder=encoders.image_encoder)
        jobs.append((file, lambda images: encode_tokens(clip_pixels(np.stack(images)))))
    return jobs


def _encode(clip: TrainingClip, encoders: Sequence[Encode], reader: FaceReader | None, batch: int) -> list[Tensor]:
    """float16 rows of each encoder for all frames. With a ``reader`` the faces are written too."""
    chunks: list[list[Tensor]] = [[] for _ in encoders]
    faces: list[tuple[int, int, Face]] = []
    done = 0
    for images, _ in read_ahead(clip.video(), batch):
        for rows, encode in zip(chunks, encoders, strict=True):
            rows.append(encode(images).detach().cpu().to(torch.float16))
        if reader is not None:
            for frame, image in enumerate(images, start=done):
                # Without a motion the largest face of a frame is assumed to be the main person's.
                faces += [(frame, 0 if rank == 0 else -1, face) for rank, face in enumerate(reader.faces(image))]
        done += len(images)
    if done != clip.frames:
        hint = "run `sa preprocess` on the video again"
        raise BadInput(clip.path, f"{done} frames in the video", f"{clip.frames}", hint=hint)
    encoded = [torch.cat(rows) for rows in chunks]
    for tensor in encoded:
        bad = (~tensor.flatten(1).isfinite().all(dim=1)).nonzero()
        if len(bad):
            problem, hint = "numbers that are not finite in the output of an encoder", "use --dtype float32"
            raise BadInput(clip.path, problem, "finite ones", frame=int(bad[0]), hint=hint)
    if reader is not None:
        with _hint_of_writes("copy the clips"):
            save_faces(clip.faces_path, FaceTable.of(faces, reader.channel_order))
    return encoded


def make_caches(
    config: TrainConfig,
    dataset: Dataset,
    model: ModelFolder,
    device: torch.device,
    shard: tuple[int, int],
    reporter: Reporter,
) -> None:
    """Write the missing caches that ``--cache`` requests, at the sizes of all stages, and missing faces.

    ``shard``: this rank's part of the clips.
    """
    cache = config.data.cache
    kinds = set() if cache in (None, "off") else {part.strip() for part in cache.split(",")}
    reader = _face_reader(dataset, model, device, reporter) if config.ablation.face == "on" else None
    if not kinds and reader is None:
        return
    all_sizes = dict.fromkeys(stage.sizes or () for stage in config.stage or ())
    buckets = [bucket for sizes in all_sizes for bucket in into_buckets(dataset.clips, sizes)]
    load = loaders(model, torch.float32, "distribution")
    latents, tokens = "latents" in kinds, "embeddings" in kinds
    encoders = Encoders(
        latents=latent_encoder(load["vae"]().to(device), device) if latents else None,
        vae=weight_digests(model, ("vae",))["vae"] if latents else "",
        tokens=token_encoder(load["image_encoder"]().to(device), device) if tokens else None,
        image_encoder=weight_digests(model, ("image_encoder",))["image_encoder"] if tokens else "",
        faces=reader,
    )
    with memory_guard("encoding frames for the caches", "use a smaller --sizes, or --cache off"):
        report = build_cache(buckets, encoders, resize=config.data.resize, shard=shard, reporter=reporter)
    if report.written:
        size = f"{report.bytes / 2**20:.1f} MiB"
        reporter.info(f"caches: {report.written} files written ({size}), {report.reused} reused")


def detect_faces(dataset: Dataset, model: ModelFolder, device: torch.device, reporter: Reporter) -> None:
    """Write the faces of clips that have none, and no other cache."""
    reader = _face_reader(dataset, model, device, reporter)
    if reader is not None:
        build_cache([Bucket(size=(CELL, CELL), clips=dataset.clips)], Encoders(faces=reader), reporter=reporter)


def _face_reader(dataset: Dataset, model: ModelFolder, device: torch.device, reporter: Reporter) -> FaceReader | None:
    """The model's face reader if a clip needs it; None if the model has none."""
    if "face" not in model.files or not any(needs_faces(clip) for clip in dataset.clips):
        return None
    from stableanimator_cli.detect.face import FaceReader  # its libraries take a second to import
    from stableanimator_cli.detect.onnx import warn_of_fallbacks

    reader = FaceReader(model.files["face"], model.face_channel_order, str(device))
    warn_of_fallbacks(reporter)
    return reader


def latent_encoder(vae: Any, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function from pixels [n,3,h,w] to mean and log-variance of the posterior [n,2c,h/8,w/8]."""

    def encode(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return vae.encode(pixels.to(device, vae.dtype)).latent_dist.parameters.float()

    return encode


def token_encoder(image_encoder: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function from pixels normalised for CLIP [n,3,224,224] to image tokens [n,d]."""

    def encode(pixels: Tensor) -> Tensor:
        weight = next(image_encoder.parameters())
        with torch.no_grad():
            return image_encoder(pixel_values=pixels.to(device, weight.dtype)).image_embeds.float()

    return encode
