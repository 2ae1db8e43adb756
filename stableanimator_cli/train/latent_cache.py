"""What the frozen networks say of every frame of a clip, computed once and kept in its folder.

``latents-WxH.safetensors`` holds ``moments`` float16[t,2c,h/8,w/8]: mean and log-variance of the VAE's posterior at one
size, so that training can draw from it anew each time. ``embeddings.safetensors`` holds ``tokens`` float16[t,d]: the
image encoder's answer, which sees a frame at its own size. The header says of which clip, network and size they are; a
file of others is never read, and is replaced where caches are asked for. Files appear whole, so a run that was killed
goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stableanimator_cli.clip_folder import FaceTable, save_faces
from stableanimator_cli.engine.conditioning import clip_pixels, to_signed
from stableanimator_cli.engine.weights import sorted_metadata
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import MARK, atomic_write, check_replaceable, translate_os_errors
from stableanimator_cli.motion.geometry import Mode, resize_transform
from stableanimator_cli.progress import NullReporter, Reporter
from stableanimator_cli.records import ChannelOrder, Face
from stableanimator_cli.train import leftovers
from stableanimator_cli.train.buckets import Bucket, Size
from stableanimator_cli.train.clips import TrainingClip

FORMAT = "1"
MOMENTS, TOKENS = "moments", "tokens"
_MAKE = "--cache {} makes it anew; --cache off does without"


class FindsFaces(Protocol):
    """``detect.face.FaceReader``, as far as it is needed here."""

    channel_order: ChannelOrder

    def faces(self, image: np.ndarray) -> tuple[Face, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoders:
    """The networks as functions, each with the sha256 of its weights; None is not asked for.

    ``latents``: float32[n,3,h,w] in -1..1 -> moments [n,2c,h/8,w/8]. ``tokens``: float32[n,3,224,224] normalised for
    CLIP -> [n,d]. ``faces``: writes ``faces.npz`` for clips of the reference implementation, which have none.
    """

    latents: Callable[[Tensor], Tensor] | None = None
    vae: str = ""
    tokens: Callable[[Tensor], Tensor] | None = None
    image_encoder: str = ""
    faces: FindsFaces | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """``made`` and ``kept`` files, ``frames`` that were encoded, ``bytes`` written."""

    made: int
    kept: int
    frames: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        return {"made": self.made, "kept": self.kept, "frames": self.frames, "bytes": self.bytes}


@dataclass(frozen=True, slots=True)
class CacheFile:
    """One cache of one clip: where it is, the array in it, and the header that it must bear."""

    path: Path
    array: str
    header: Mapping[str, str]

    def check(self) -> None:
        """``BadInput`` says what is there instead: nothing, something damaged, or the cache of something else."""
        kind = "latents" if self.array == MOMENTS else "embeddings"
        hint = _MAKE.format(kind)
        with _opened(self.path, kind) as file:
            found = file.metadata() or {}
            names = list(file.keys())
            if self.array not in names:
                raise BadInput(self.path, f"no array {self.array!r}", f"cached {kind}", hint=hint)
            part = file.get_slice(self.array)
            shape, dtype = part.get_shape(), part.get_dtype()
        for key, wanted in self.header.items():
            if found.get(key) != wanted:
                told, expected = (_short(key, value) for value in (found.get(key, "none"), wanted))
                raise BadInput(self.path, f"{kind} of {key} {told}", f"{key} {expected}", hint=hint)
        if dtype != "F16" or not self._has_shape(shape):
            raise BadInput.because(self.path, f"its {self.array} {shape} of {dtype} do not fit the clip", hint=hint)

    def _has_shape(self, shape: Sequence[int]) -> bool:
        """One row per frame; latents are an eighth as wide and as high as the images."""
        if len(shape) < 2 or shape[0] != int(self.header["frames"]) or shape[1] < 1:
            return False
        if self.array == TOKENS:
            return len(shape) == 2
        width, height = (int(side) // 8 for side in self.header["size"].split("x"))
        return len(shape) == 4 and list(shape[2:]) == [height, width]

    def exists(self) -> bool:
        return self.path.exists()

    def fits(self) -> bool:
        """Whether it is there and what it must be."""
        try:
            self.check()
        except BadInput:
            return False
        return True

    def read(self, frames: Sequence[int]) -> Tensor:
        """The rows of these frames as float32, without reading others."""
        with _opened(self.path, self.array) as file:
            rows = file.get_slice(self.array)
            return torch.stack([rows[int(frame)] for frame in frames]).float()

    def read_all(self) -> Tensor:
        """All rows, float16 as they are stored."""
        with _opened(self.path, self.array) as file:
            return file.get_tensor(self.array)

    def bytes(self) -> int:
        return self.path.stat().st_size

    def write(self, rows: Tensor) -> int:
        self._check_replaceable()
        data = sorted_metadata(save({self.array: rows.contiguous()}, metadata={**self.header, MARK: FORMAT}))
        with atomic_write(self.path) as part, translate_os_errors(self.path):
            part.write_bytes(data)
        return len(data)

    def _check_replaceable(self) -> None:
        """``BadInput`` if a file that is no cache of ours has the name. Those of versions before the mark have the same
        keys."""
        with suppress(BadInput), _opened(self.path, self.array) as file:
            if self.header.keys() <= (file.metadata() or {}).keys():
                return
        check_replaceable(self.path)


def latents_file(clip: TrainingClip, size: Size, *, vae: str, resize: Mode) -> CacheFile:
    """Where the latents of a clip are at one size (width, height)."""
    shape = f"{size[0]}x{size[1]}"
    header = {"format": FORMAT, "clip": clip.key, "frames": str(clip.frames), "vae": vae, "size": shape}
    return CacheFile(clip.path / f"latents-{shape}.safetensors", MOMENTS, header | {"resize": resize})


def tokens_file(clip: TrainingClip, *, image_encoder: str) -> CacheFile:
    """Where the image tokens of a clip are."""
    header = {"format": FORMAT, "clip": clip.key, "frames": str(clip.frames), "image_encoder": image_encoder}
    return CacheFile(clip.path / "embeddings.safetensors", TOKENS, header)


def lacks_faces(clip: TrainingClip) -> bool:
    """Whether the faces of ``clip`` have not been looked for: ``sa preprocess`` finds them, the reference
    implementation's folders have none."""
    return clip.folder is None and not clip.faces_file().exists()


def is_cached(files: Sequence[CacheFile]) -> bool:
    """Whether the caches are there: all of them, or none.

    ``BadInput`` where some are missing (a run that made them was stopped) and where one is of another network, size or
    clip: silently going without would cost the time that they were made to save.
    """
    missing = [file for file in files if not file.exists()]
    if len(missing) == len(files):
        return False
    if missing:
        kind = "latents" if missing[0].array == MOMENTS else "embeddings"
        found = f"no cache, where {len(files) - len(missing)} of {len(files)} clips have one"
        raise BadInput(missing[0].path, found, f"{kind} of all clips", hint=f"--cache {kind} goes on with them")
    for file in files:
        file.check()
    return True


def build_cache(
    buckets: Sequence[Bucket],
    encoders: Encoders,
    *,
    resize: Mode = "stretch",
    batch: int = 8,
    shard: tuple[int, int] = (0, 1),
    reporter: Reporter | None = None,
) -> CacheReport:
    """Write what is missing for the clips of ``buckets``, ``batch`` frames through a network at once.

    Every video is decoded once for all networks, in a thread of its own. ``shard`` (I, N) does the I-th of N parts of
    the clips: one a rank. Caches of other networks, sizes or clips are replaced. ``BadInput`` names clip and frame.
    """
    reporter = reporter or NullReporter()
    mine = [(clip, bucket.size) for bucket in buckets for clip in bucket.clips][shard[0] :: shard[1]]
    made = kept = frames = written = 0
    with reporter.progress(sum(clip.frames for clip, _ in mine), "cache", "frame") as bar:
        for clip, size in mine:
            leftovers.remove_from_clip(clip.path)
            jobs = _jobs(clip, size, encoders, resize)
            todo = [(file, encode) for file, encode in jobs if not file.fits()]
            kept += len(jobs) - len(todo)
            reads_faces = encoders.faces is not None and lacks_faces(clip)
            if todo or reads_faces:
                rows = _encode(clip, [encode for _, encode in todo], encoders.faces if reads_faces else None, batch)
                frames += clip.frames
                for (file, _), encoded in zip(todo, rows, strict=True):
                    written += file.write(encoded)
                made += len(todo) + reads_faces
            bar.update(clip.frames)
    return CacheReport(made=made, kept=kept, frames=frames, bytes=written)


Encode = Callable[[list[np.ndarray]], Tensor]


def _jobs(clip: TrainingClip, size: Size, encoders: Encoders, resize: Mode) -> list[tuple[CacheFile, Encode]]:
    jobs: list[tuple[CacheFile, Encode]] = []
    latents, tokens = encoders.latents, encoders.tokens
    if latents is not None:
        there = resize_transform(clip.size, size, resize)

        def moments(pictures: list[np.ndarray]) -> Tensor:
            return latents(to_signed(np.stack([there.apply_image(picture, "bicubic") for picture in pictures])))

        jobs.append((latents_file(clip, size, vae=encoders.vae, resize=resize), moments))
    if tokens is not None:
        file = tokens_file(clip, image_encoder=encoders.image_encoder)
        jobs.append((file, lambda pictures: tokens(clip_pixels(np.stack(pictures)))))
    return jobs


def _encode(clip: TrainingClip, encode: Sequence[Encode], reader: FindsFaces | None, batch: int) -> list[Tensor]:
    """float16 rows of each network for all frames; faces are written where a reader is given."""
    # Here, for it brings the detectors' libraries: a worker that only reads caches starts without them.
    from stableanimator_cli.detect.capture import read_ahead

    rows: list[list[Tensor]] = [[] for _ in encode]
    found: list[tuple[int, int, Face]] = []
    done = 0
    for pictures, _ in read_ahead(clip.video(), batch):
        for parts, function in zip(rows, encode, strict=True):
            parts.append(function(pictures).detach().cpu().to(torch.float16))
        for offset, picture in enumerate(pictures if reader is not None else ()):
            # Whom the motion follows is not known here: the largest face of a frame is taken for the person's.
            faces = reader.faces(picture) if reader is not None else ()
            found += [(done + offset, 0 if place == 0 else -1, face) for place, face in enumerate(faces)]
        done += len(pictures)
    if done != clip.frames:
        hint = "run `sa preprocess` on the video again"
        raise BadInput(clip.path, f"{done} frames in the video", f"{clip.frames}", hint=hint)
    whole = [torch.cat(parts) for parts in rows]
    for tensor in whole:
        bad = (~tensor.flatten(1).isfinite().all(dim=1)).nonzero()
        if len(bad):
            raise BadInput(
                clip.path, "numbers that are not finite in what a network says", "finite ones", frame=int(bad[0]),
                hint="encode in float32: --dtype float32",
            )  # fmt: skip
    if reader is not None:
        save_faces(clip.faces_file(), FaceTable.of(found, reader.channel_order))
    return whole


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise BadInput(path, "nothing there", f"cached {kind}", hint=f"--cache {kind} makes it") from None
    except (SafetensorError, OSError) as error:
        raise BadInput(path, f"a damaged file ({error})", f"cached {kind}", hint=_MAKE.format(kind)) from None


def _short(key: str, value: str) -> str:
    """Digests as their first twelve letters."""
    return value[:12] if key in ("vae", "image_encoder", "clip") else value
