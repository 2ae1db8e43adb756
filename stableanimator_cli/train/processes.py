"""The processes of a training: one, or those that torchrun started, each with its own device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from stableanimator_cli import distributed
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.config.train import TrainConfig
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator

TIMEOUT = timedelta(days=2)
"""Time that a process waits for the others: caching and validation take hours, NCCL's default is ten minutes.

torchrun notices a process that exits at once.
"""


def open_accelerator(config: TrainConfig) -> Accelerator:
    """An ``Accelerator`` on the device of ``--device``, or, under torchrun, on this process's own GPU.

    Raises ``ConfigError`` if several processes were given one GPU, if a machine has more processes than GPUs, or if
    the tracker is not installed.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    device = DevicePlan.of(DeviceConfig(device=config.device)).device
    world = distributed.world_size()
    if world > 1 and ":" in config.device:
        expected = f"a device without a number: each of the {world} processes has a GPU of its own"
        raise ConfigError("--device", config.device, expected, hint=f"--device {config.device.split(':')[0]}")
    here = distributed.local_world_size()
    if world > 1 and device.type == "cuda" and here > torch.cuda.device_count():
        expected = f"at most {torch.cuda.device_count()}, one process for each GPU that this torch sees"
        raise ConfigError("torchrun --nproc-per-node", here, expected)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",  # the engine casts
        log_with=_tracker(config),
        project_dir=str(config.output),
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=TIMEOUT),
        ],
    )
    if world == 1:  # accelerate always takes the first GPU
        if device.type == "cuda":
            device = torch.device("cuda", device.index or 0)  # ``set_device`` needs a device with a number
            torch.cuda.set_device(device)
        vars(accelerator.state)["device"] = device
    return accelerator


def _tracker(config: TrainConfig) -> str | None:
    if config.track != "tensorboard":
        return None
    from accelerate.tracking import is_tensorboard_available

    if not is_tensorboard_available():
        hint = "pip install tensorboard, or omit --track: curves.png and metrics.jsonl are always written"
        raise ConfigError("--track", "tensorboard", "a package that is installed", hint=hint)
    return "tensorboard"


def gather_rows(accelerator: Accelerator, rows: Sequence[Any]) -> list[Any]:
    """The rows of all ranks in order, on every rank. Rows are JSON data; tuples become lists.

    They are sent as tensors: an object collective would unpickle what it receives from a socket.
    """
    text = torch.frombuffer(bytearray(json.dumps(list(rows)).encode()), dtype=torch.uint8).to(accelerator.device)
    lengths = cast(Tensor, accelerator.gather(torch.tensor([len(text)], device=accelerator.device))).tolist()
    padded = cast(Tensor, accelerator.gather(F.pad(text, (0, max(lengths) - len(text))))).cpu().view(len(lengths), -1)
    parts = (json.loads(part[:length].numpy().tobytes()) for part, length in zip(padded, lengths, strict=True))
    return [row for part in parts for row in part]
