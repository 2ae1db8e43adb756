"""The processes of a training and the device of each: one process, or those that torchrun started."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from stableanimator_cli import distributed
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.config.train import TrainConfig
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = timedelta(days=2)
"""How long a process waits for the others. Caching, validation and saving take hours, NCCL's own limit is ten minutes;
a process that ends is noticed by torchrun at once."""


def open_accelerator(config: TrainConfig) -> Accelerator:
    """An ``Accelerator`` on the device of ``--device``, or, under torchrun, on this process's own GPU.

    Raises ``ConfigError`` if several processes were given one GPU, or if the tracker is not installed.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    device = DevicePlan.of(DeviceConfig(device=config.device)).device
    world = distributed.world_size()
    if world > 1 and ":" in config.device:
        expected = f"a device without a number: each of the {world} processes has a GPU of its own"
        raise ConfigError("--device", config.device, expected, hint=f"--device {config.device.split(':')[0]}")
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",  # the engine casts
        log_with=_tracker(config),
        project_dir=str(config.output),
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
    )
    if world == 1:  # accelerate would take the first GPU, whichever was named
        if device.type == "cuda":
            device = torch.device("cuda", device.index or 0)  # ``set_device`` refuses a device without a number
            torch.cuda.set_device(device)
        vars(accelerator.state)["device"] = device
    return accelerator


def _tracker(config: TrainConfig) -> str | None:
    if config.track != "tensorboard":
        return None
    from accelerate.tracking import is_tensorboard_available

    if not is_tensorboard_available():
        hint = "pip install tensorboard, or leave --track out: curves.png and metrics.jsonl are always there"
        raise ConfigError("--track", "tensorboard", "a package that is installed", hint=hint)
    return "tensorboard"
