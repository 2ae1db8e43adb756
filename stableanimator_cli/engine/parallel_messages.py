"""What ranks send to one another (``parallel``): JSON text and tensors, nothing that could hold code.

The sockets that carry it may be reached by other programs: torchrun's store and gloo's connections listen on the
network, those of a group that rank 0 starts on the loopback address. So no message is a pickle, and none is evaluated.
A wrong message can make a run fail. It cannot make it run anything.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.diffusion.windows import Window, WindowPlan
from stableanimator_cli.engine.conditioning import PoseFrames
from stableanimator_cli.engine.device import DTYPES, DevicePlan
from stableanimator_cli.errors import SaError
from stableanimator_cli.nets.id_adapter import IDMode
from stableanimator_cli.records import ModelFolder

MESSAGE = 4  # tag of a message's parts
LARGEST_TEXT = 1 << 26  # bytes of JSON
LARGEST_ERROR = 1 << 16
_TENSORS = ("image", "face", "reference", "time_ids")
_DTYPES = {**DTYPES, "float64": torch.float64, "int64": torch.int64, "uint8": torch.uint8}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a helper needs of a sampling: the networks, ``Conditioning`` by its parts (on the CPU), the windows,
    ``share`` of their pairs, and the ``shape`` [t,c,h,w] of the latents. ``threads`` of rank 0 decide roundings.
    ``layers`` are those of ``Deep``, 0 where no deep features are kept."""

    model: ModelFolder
    plan: DevicePlan
    id_mode: IDMode
    threads: int
    image: Tensor
    face: Tensor | None
    reference: Tensor
    time_ids: Tensor
    poses: PoseFrames
    windows: WindowPlan
    guidance: tuple[float, float]
    share: range
    shape: tuple[int, ...]
    layers: int = 0


class PackedFrames:
    """Some frames of a video's skeletons, compressed: what one rank looks at. ``size`` is (width, height)."""

    def __init__(self, total: int, size: tuple[int, int], packed: Mapping[int, bytes]) -> None:
        self._total = total
        self.size = size
        self.packed = packed

    @classmethod
    def of(cls, frames: PoseFrames, indices: Iterable[int]) -> PackedFrames:
        """Pack the named ones of ``frames``."""
        pictures = {index: np.ascontiguousarray(frames.frame(index)) for index in sorted(set(indices))}
        size = next(((p.shape[1], p.shape[0]) for p in pictures.values()), (0, 0))
        return cls(len(frames), size, {index: zlib.compress(p.data, 1) for index, p in pictures.items()})

    def only(self, indices: Iterable[int]) -> PackedFrames:
        """The same with fewer frames."""
        return PackedFrames(self._total, self.size, {index: self.packed[index] for index in sorted(set(indices))})

    def __len__(self) -> int:
        return self._total

    def frame(self, index: int) -> np.ndarray:
        width, height = self.size
        data = zlib.decompressobj().decompress(self.packed[index], 3 * width * height + 1)
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def encode_job(job: Job, poses: PackedFrames) -> tuple[dict[str, Any], list[Tensor]]:
    """A job with its skeletons as JSON data and tensors."""
    tensors = {name: getattr(job, name) for name in _TENSORS if getattr(job, name) is not None}
    blob = b"".join(poses.packed.values())
    data = {
        "model": {
            "name": job.model.name,
            "path": str(job.model.path),
            "files": {role: str(path) for role, path in job.model.files.items()},
            "configs": {role: dict(config) for role, config in job.model.configs.items()},
            "licence": job.model.licence,
            "face_channel_order": job.model.face_channel_order,
        },
        "plan": {
            "device": str(job.plan.device),
            "dtype": _NAMES[job.plan.dtype],
            "config": asdict(job.plan.config),
        },
        "id_mode": job.id_mode,
        "threads": job.threads,
        "windows": [_windows(placement) for placement in (job.windows.windows, *job.windows.shifted)],
        "guidance": list(job.guidance),
        "share": [job.share.start, job.share.stop],
        "shape": list(job.shape),
        "layers": job.layers,
        "poses": {
            "total": len(poses),
            "size": list(poses.size),
            "bytes": {str(index): len(part) for index, part in poses.packed.items()},
        },
        "tensors": list(tensors),
    }
    return data, [*tensors.values(), torch.frombuffer(bytearray(blob or b"\0"), dtype=torch.uint8)]


def decode_job(data: Mapping[str, Any], tensors: Sequence[Tensor]) -> Job:
    """The job of ``encode_job``."""
    model, plan, poses = data["model"], data["plan"], data["poses"]
    given = dict(zip(data["tensors"], tensors, strict=False))
    blob, packed, start = tensors[-1].numpy().tobytes(), {}, 0
    for index, length in poses["bytes"].items():
        packed[int(index)] = blob[start : start + length]
        start += length
    windows = [
        tuple(Window(tuple(w["frames"]), tuple(w["weights"])) for w in placement) for placement in data["windows"]
    ]
    total, channels, height, width = data["shape"]
    return Job(
        model=ModelFolder(
            name=model["name"],
            path=Path(model["path"]),
            files={role: Path(path) for role, path in model["files"].items()},
            configs=model["configs"],
            defaults={},
            licence=model["licence"],
            face_channel_order=model["face_channel_order"],
        ),
        plan=DevicePlan(
            device=torch.device(plan["device"]), dtype=DTYPES[plan["dtype"]], config=DeviceConfig(**plan["config"])
        ),
        id_mode=data["id_mode"],
        threads=data["threads"],
        image=given["image"],
        face=given.get("face"),
        reference=given["reference"],
        time_ids=given["time_ids"],
        poses=PackedFrames(poses["total"], (poses["size"][0], poses["size"][1]), packed),
        windows=WindowPlan(total, windows[0], tuple(windows[1:])),
        guidance=(data["guidance"][0], data["guidance"][1]),
        share=range(*data["share"]),
        shape=(total, channels, height, width),
        layers=data["layers"],
    )


def send(rank: int, data: Mapping[str, Any], tensors: Sequence[Tensor] = ()) -> None:
    """Send JSON data and tensors to a rank, which calls ``receive``."""
    heads = [{"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape)} for tensor in tensors]
    text = json.dumps({"data": data, "tensors": heads}).encode()
    dist.send(torch.tensor([len(text)]), rank, tag=MESSAGE)
    dist.send(torch.frombuffer(bytearray(text), dtype=torch.uint8), rank, tag=MESSAGE)
    for tensor in tensors:
        dist.send(tensor.cpu().contiguous().reshape(-1).view(torch.uint8), rank, tag=MESSAGE)


def receive(rank: int) -> tuple[dict[str, Any], list[Tensor]]:
    """What a rank sends with ``send``. Raises ``ValueError`` for a message of another form."""
    length = torch.zeros(1, dtype=torch.int64)
    dist.recv(length, rank, tag=MESSAGE)
    if not 0 < int(length) <= LARGEST_TEXT:
        raise ValueError(f"rank {rank} announced a message of {int(length)} bytes")
    text = torch.empty(int(length), dtype=torch.uint8)
    dist.recv(text, rank, tag=MESSAGE)
    told = json.loads(text.numpy().tobytes())
    tensors = []
    for head in told["tensors"]:
        dtype, shape = _DTYPES[head["dtype"]], [int(side) for side in head["shape"]]
        flat = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
        dist.recv(flat, rank, tag=MESSAGE)
        tensors.append(flat.view(dtype).view(shape))
    return told["data"], tensors


def publish_error(store: dist.Store, rank: int, error: SaError) -> None:
    """Leave in the store why a rank has failed."""
    with suppress(RuntimeError):  # the store may have ended with rank 0
        store.set(f"failed/{rank}", error.to_json())


def read_error(store: dist.Store, rank: int) -> SaError | None:
    """The error that a rank left in the store; None without one. Whatever the store holds, it is read as JSON."""
    with suppress(RuntimeError):  # the store may have ended with torchrun
        if store.check([f"failed/{rank}"]):
            return SaError.from_json(store.get(f"failed/{rank}")[:LARGEST_ERROR])
    return None


def _windows(placement: Sequence[Window]) -> list[dict[str, Any]]:
    return [{"frames": list(window.frames), "weights": list(window.weights)} for window in placement]
