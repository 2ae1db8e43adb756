"""Run real training steps of the full-size networks with random weights, and compare the memory with its prediction.

``python -m tools.bench.training_step [--train adapters] [--frames 4] [--size 256x256] [--device cpu]`` runs forward,
backward, clipping and AdamW, and prints predicted and used memory. It reads no files but configs. On a GPU:
``--device cuda --dtype bfloat16 --train attentions --frames 16 --size 576x1024``.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from typing import get_args

import torch

from stableanimator_cli.bench.networks import FULL, open_bench_model
from stableanimator_cli.bench.training import random_training_model
from stableanimator_cli.config.parse import parse_size
from stableanimator_cli.engine.device import peak_memory
from stableanimator_cli.engine.memory.train import predict
from stableanimator_cli.engine.memory.train_step import random_inputs
from stableanimator_cli.engine.training.model import Dtype, TrainingSettings
from stableanimator_cli.engine.training.trainable import Train, trainable_parameters
from stableanimator_cli.nets.unet_blocks import Checkpointing
from tools.command import exit_code_of, positive


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.training_step", description=__doc__)
    parser.add_argument("--model", default=FULL, help="full, a catalogue name or a folder: only configs are read")
    parser.add_argument("--train", choices=get_args(Train), default="adapters")
    parser.add_argument("--checkpointing", choices=get_args(Checkpointing), default="blocks")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="bfloat16")
    parser.add_argument("--frames", type=positive, default=4)
    parser.add_argument("--size", type=parse_size, default=(256, 256))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=positive, default=1)
    options = parser.parse_args(arguments)
    settings = TrainingSettings(train=options.train, checkpointing=options.checkpointing, dtype=options.dtype)
    device = torch.device(options.device)
    model = open_bench_model(options.model)
    predicted = predict(model, settings, size=options.size, frames=options.frames, on_cpu=device.type == "cpu")
    print(f"predicted  {predicted.describe()}")
    network = random_training_model(model, settings, device)
    trained = list(trainable_parameters(network).values())
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    inputs = random_inputs(network, 1, options.frames, options.size, device)
    before = peak_memory(device)
    for step in range(options.steps):
        start = time.perf_counter()
        loss = network(inputs).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        print(f"step {step}     loss {float(loss.detach()):.4f}, gradient norm {float(norm):.3g}, ", end="")
        print(f"{time.perf_counter() - start:.1f} s")
    for kind, peak in peak_memory(device).items():
        print(f"peak {kind:6} {peak / 2**30:.2f} GiB ({before[kind] / 2**30:.2f} before the first step)")
    count = sum(parameter.numel() for parameter in trained)
    print(f"trained    {count:,} parameters in {len(trained)} tensors")
    return 0 if math.isfinite(float(loss.detach())) else 8


if __name__ == "__main__":
    sys.exit(exit_code_of(main, resumes=False))
