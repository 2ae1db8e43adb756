"""Messages between the ranks of ``parallel``: JSON text and tensors, nothing that could hold code.

Other programs may reach the sockets: torchrun's store and gloo's connections listen on the network, those of a spawned
group on the loopback address. So no message is a pickle, and none is evaluated. A wrong message can make a run fail,
but cannot make it execute anything.
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

MESSAGE = 4  # tag
LARGEST_TEXT = 1 << 26  # bytes of JSON
LARGEST_ERROR = 1 << 16
_TENSORS = ("image", "face", "regions", "reference", "time_ids")
_OPTIONAL = ("face", "regions")
_DTYPES = {**DTYPES, "float64": torch.float64, "int64": torch.int64, "uint8": torch.uint8}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class PackedFrames:
    """Some skeleton images of a video, compressed. ``size`` is (width, height)."""

    def __init__(self, total: int, size: tuple[int, int], packed: Mapping[int, bytes]) -> None:
        self._total = total
        self.size = size
        self.packed = packed

    @classmethod
    def of(cls, frames: PoseFrames, indices: Iterable[int]) -> PackedFrames:
        images = {index: np.ascontiguousarray(frames.frame(index)) for index in sorted(set(indices))}
        size = next(((image.shape[1], image.shape[0]) for image in images.values()), (0, 0))
        return cls(len(frames), size, {index: zlib.compress(image.data, 1) for index, image in images.items()})

    def select(self, indices: Iterable[int]) -> PackedFrames:
        return PackedFrames(self._total, self.size, {index: self.packed[index] for index in sorted(set(indices))})

    def __len__(self) -> int:
        return self._total

    def frame(self, index: int) -> np.ndarray:
        width, height = self.size
        data = zlib.decompressobj().decompress(self.packed[index], 3 * width * height + 1)
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Inputs of a worker for a sampling: networks, conditioning tensors on the CPU, and windows.

    It computes the ``share`` of the window branches of latents of ``shape`` [t,c,h,w]. ``threads`` are rank 0's, as
    they decide rounding. ``layers`` are those of ``DeepFeatureCache``, 0 without one.
    """

    model: ModelFolder
    plan: DevicePlan
    id_mode: IDMode
    threads: int
    image: Tensor
    face: Tensor | None
    reference: Tensor
    time_ids: Tensor
    poses: PackedFrames
    windows: WindowPlan
    guidance: tuple[float, float]
    share: range
    shape: tuple[int, ...]
    layers: int = 0
    regions: Tensor | None = None


def encode_job(job: Job) -> tuple[dict[str, Any], list[Tensor]]:
    """A job as JSON data and tensors. The last tensor holds the packed skeletons."""
    tensors = {name: getattr(job, name) for name in _TENSORS if getattr(job, name) is not None}
    model, plan, poses = job.model, job.plan, job.poses
    blob = b"".join(poses.packed.values())
    data = {
        "model": {
            "name": model.name,
            "path": str(model.path),
            "files": {role: str(path) for role, path in model.files.items()},
            "configs": {role: dict(config) for role, config in model.configs.items()},
            "licence": model.licence,
            "face_channel_order": model.face_channel_order,
            "backbone": model.backbone,
        },
        "plan": {"device": str(plan.device), "dtype": _NAMES[plan.dtype], "config": asdict(plan.config)},
        "id_mode": job.id_mode,
        "threads": job.threads,
        "windows": [[asdict(window) for window in job.windows.placement(i)] for i in range(job.windows.num_placements)],
        "guidance": list(job.guidance),
        "share": [job.share.start, job.share.stop],
        "shape": list(job.shape),
        "layers": job.layers,
        "poses": {
            "total": len(poses),
            "size": list(poses.size),
            "bytes": {str(index): len(packed) for index, packed in poses.packed.items()},
        },
        "tensors": list(tensors),
    }
    return data, [*tensors.values(), torch.frombuffer(bytearray(blob or b"\0"), dtype=torch.uint8)]


def decode_job(data: Mapping[str, Any], tensors: Sequence[Tensor]) -> Job:
    """The job of ``encode_job``."""
    model, plan, poses = data["model"], data["plan"], data["poses"]
    blob, packed, start = tensors[-1].numpy().tobytes(), {}, 0
    for index, length in poses["bytes"].items():
        packed[int(index)] = blob[start : start + length]
        start += length
    first, *shifted = (
        tuple(Window(tuple(window["frames"]), tuple(window["weights"])) for window in placement)
        for placement in data["windows"]
    )
    return Job(
        model=ModelFolder(
            **{name: model[name] for name in ("name", "configs", "licence", "face_channel_order", "backbone")},
            path=Path(model["path"]),
            files={role: Path(path) for role, path in model["files"].items()},
            defaults={},
        ),
        plan=DevicePlan(
            device=torch.device(plan["device"]), dtype=DTYPES[plan["dtype"]], config=DeviceConfig(**plan["config"])
        ),
        **{name: data[name] for name in ("id_mode", "threads", "layers")},
        **{**dict.fromkeys(_OPTIONAL), **dict(zip(data["tensors"], tensors, strict=False))},
        poses=PackedFrames(poses["total"], (poses["size"][0], poses["size"][1]), packed),
        windows=WindowPlan(data["shape"][0], first, tuple(shifted)),
        guidance=(data["guidance"][0], data["guidance"][1]),
        share=range(*data["share"]),
        shape=tuple(data["shape"]),
    )


def send(rank: int, data: Mapping[str, Any], tensors: Sequence[Tensor] = ()) -> None:
    """Send JSON data and tensors to a rank that calls ``receive``."""
    heads = [{"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape)} for tensor in tensors]
    text = json.dumps({"data": data, "tensors": heads}).encode()
    dist.send(torch.tensor([len(text)]), rank, tag=MESSAGE)
    dist.send(torch.frombuffer(bytearray(text), dtype=torch.uint8), rank, tag=MESSAGE)
    for tensor in tensors:
        dist.send(tensor.cpu().contiguous().reshape(-1).view(torch.uint8), rank, tag=MESSAGE)


def receive(rank: int) -> tuple[dict[str, Any], list[Tensor]]:
    """Receive what a rank sends with ``send``. Raises ``ValueError`` for a message of another form."""
    length = torch.zeros(1, dtype=torch.int64)
    dist.recv(length, rank, tag=MESSAGE)
    if not 0 < int(length) <= LARGEST_TEXT:
        raise ValueError(f"rank {rank} announced a message of {int(length)} bytes")
    text = torch.empty(int(length), dtype=torch.uint8)
    dist.recv(text, rank, tag=MESSAGE)
    message = json.loads(text.numpy().tobytes())
    tensors = []
    for head in message["tensors"]:
        dtype, shape = _DTYPES[head["dtype"]], [int(side) for side in head["shape"]]
        flat = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
        dist.recv(flat, rank, tag=MESSAGE)
        tensors.append(flat.view(dtype).view(shape))
    return message["data"], tensors


def publish_error(store: dist.Store, rank: int, error: SaError) -> None:
    """Store the error that a rank fails with."""
    with suppress(RuntimeError):  # the store ends with rank 0
        store.set(f"failed/{rank}", error.to_json())


def read_error(store: dist.Store, rank: int) -> SaError | None:
    """The error that a rank stored, or None. It is read as JSON, whatever the store holds."""
    with suppress(RuntimeError):  # the store may end with torchrun
        if store.check([f"failed/{rank}"]):
            return SaError.from_json(store.get(f"failed/{rank}")[:LARGEST_ERROR])
    return None
