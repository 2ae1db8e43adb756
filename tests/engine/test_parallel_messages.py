"""What ranks send: data alone, over sockets of the loopback address."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.diffusion.windows import plan_windows
from stableanimator_cli.engine import parallel, parallel_messages
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.parallel_messages import Job, PackedFrames, decode_job, encode_job
from stableanimator_cli.engine.parallel_worker import STARTUP_TIMEOUT, join, listening_store
from stableanimator_cli.errors import ModelMissing
from stableanimator_cli.records import ModelFolder


class Writes:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


class Drawn:
    """Skeletons of seven frames, some of which must not be asked for."""

    def __init__(self, pictures: np.ndarray, known: set[int]) -> None:
        self.pictures, self.known = pictures, known

    def __len__(self) -> int:
        return len(self.pictures)

    def frame(self, index: int) -> np.ndarray:
        assert index in self.known
        return self.pictures[index]


def job_of(poses: Any, **more: Any) -> Job:
    given = {
        "model": ModelFolder(
            name="m", path=Path("models/m"), files={"unet": Path("models/m/unet.safetensors")},
            configs={"unet": {"block_out_channels": [32, 64], "act": "silu", "x": 0.1, "none": None}},
            defaults={}, licence="MIT", face_channel_order="rgb",
        ),
        "plan": DevicePlan(
            device=torch.device("cuda:1"), dtype=torch.bfloat16,
            config=DeviceConfig(device="cuda:1", offload="model", quantization="int8", ff_chunks=2),
        ),
        "id_mode": "norm", "threads": 3,
        "image": torch.randn(1, 1, 8, dtype=torch.bfloat16), "face": torch.randn(1, 4, 8, dtype=torch.float16),
        "reference": torch.randn(1, 4, 3, 2), "time_ids": torch.tensor([[6.0, 127.0, 0.02]], dtype=torch.float64),
        "poses": poses, "windows": plan_windows(7, length=4, overlap=1, blend="shifted"), "guidance": (1.0, 0.1 + 0.2),
        "share": range(2, 5), "shape": (7, 4, 3, 2), "layers": 2,
    }  # fmt: skip
    return Job(**{**given, **more})


def test_a_job_is_the_same_after_json_and_tensors():
    pictures = np.random.default_rng(0).integers(0, 256, (7, 24, 16, 3), dtype=np.uint8)
    packed = PackedFrames.of(Drawn(pictures, {0, 3, 5}), [5, 3, 0, 3])
    job = job_of(packed)
    data, tensors = encode_job(replace(job, poses=packed.select([0, 5])))
    again = decode_job(json.loads(json.dumps(data)), tensors)
    for field in fields(Job):
        mine, theirs = getattr(job, field.name), getattr(again, field.name)
        if isinstance(mine, Tensor):
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine, theirs)
        elif field.name != "poses":
            assert mine == theirs, field.name
    assert len(again.poses) == 7
    assert np.array_equal(again.poses.frame(5), pictures[5])
    assert sorted(again.poses.packed) == [0, 5]
    faceless = decode_job(*encode_job(replace(job, face=None)))
    assert faceless.face is None
    assert torch.equal(faceless.reference, job.reference)


def test_messages_arrive_whole_between_ranks(monkeypatch):
    """Over a stand-in for gloo; that bfloat16 and empty dimensions survive, and a length that is a lie is refused."""
    line: list[Tensor] = []
    monkeypatch.setattr(dist, "send", lambda tensor, rank, tag: line.append(tensor.clone()))
    monkeypatch.setattr(dist, "recv", lambda tensor, rank, tag: tensor.copy_(line.pop(0)))
    tensors = [torch.randn(3, 2).to(torch.bfloat16), torch.zeros(0, 4), torch.tensor([2**40])]
    parallel_messages.send(1, {"a": [1, None, "ü"]}, tensors)
    data, found = parallel_messages.receive(0)
    assert data == {"a": [1, None, "ü"]}
    assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(tensors, found, strict=True))
    line[:] = [torch.tensor([2**40])]
    with pytest.raises(ValueError, match="announced a message of 1099511627776 bytes"):
        parallel_messages.receive(0)


@pytest.mark.parametrize("hexed", [True, False])
def test_a_pickle_in_the_store_is_not_run(tmp_path, hexed):
    """The store of a group can be reached by other programs: what they leave there is read as data or not at all."""
    store, payload = dist.HashStore(), pickle.dumps(Writes(tmp_path / "ran"))
    pickle.loads(pickle.dumps(Writes(tmp_path / "it works")))
    assert (tmp_path / "it works").is_dir()
    store.set("failed/1", payload.hex() if hexed else payload)
    store.set("here/1", payload)
    lost = parallel.WorkerGroup(2, store, {})._lost(1, "Connection closed by peer")
    assert not (tmp_path / "ran").exists()
    assert str(lost) == "rank 1 of 2: an error that cannot be read"


def test_a_rank_says_why_it_failed_in_json():
    store = dist.HashStore()
    assert parallel_messages.read_error(store, 1) is None
    parallel_messages.publish_error(store, 1, ModelMissing("unet: no such file", hint="pull it"))
    assert json.loads(store.get("failed/1"))["error"] == "model-missing"
    told = parallel.WorkerGroup(2, store, {})._lost(1, "").reported
    assert type(told) is ModelMissing
    assert (told.message, told.hint) == ("unet: no such file", "pull it")


def listening() -> list[str]:
    connections = psutil.Process().net_connections("inet")
    return [connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN]


def test_a_group_of_this_machine_listens_on_the_loopback_address_alone(monkeypatch):
    """The store and gloo, whatever interface the user has named for gloo."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    before = len(listening())
    store = listening_store()
    guest = dist.TCPStore("127.0.0.1", store.port, is_master=False, timeout=STARTUP_TIMEOUT)
    guest.set("here/1", "yes")
    assert store.get("here/1") == b"yes"
    join(store, 0, 1, timedelta(seconds=30), local=True)
    try:
        ours = listening()[before:]
    finally:
        dist.destroy_process_group()
    assert len(ours) >= 2
    assert set(ours) == {"127.0.0.1"}
    assert os.environ["GLOO_SOCKET_IFNAME"] == "no-such-interface"
