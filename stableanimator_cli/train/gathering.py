"""Data of all ranks together, as JSON in tensors: no object collective, which would unpickle what a socket brings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor


def gather_rows(accelerator: Accelerator, rows: Sequence[Any]) -> list[Any]:
    """The rows of all ranks in order, on every rank. Rows are JSON data; tuples come back as lists."""
    text = torch.frombuffer(bytearray(json.dumps(list(rows)).encode()), dtype=torch.uint8).to(accelerator.device)
    lengths = cast(Tensor, accelerator.gather(torch.tensor([len(text)], device=accelerator.device))).tolist()
    padded = cast(Tensor, accelerator.gather(F.pad(text, (0, max(lengths) - len(text))))).cpu().view(len(lengths), -1)
    parts = (json.loads(part[:length].numpy().tobytes()) for part, length in zip(padded, lengths, strict=True))
    return [row for part in parts for row in part]
