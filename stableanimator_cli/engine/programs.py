"""TorchScript files: programs, run only if the bytes that are about to run have the recorded sha256.

The file is read once. What is hashed is what is loaded, so neither a remembered digest nor a file that is swapped in
between can put other code in its place. ``torch.jit.load`` is called in this file alone; a test holds that.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch

from stableanimator_cli.errors import ModelDamaged, ModelMissing
from stableanimator_cli.files import translate_os_errors


def load_program(path: Path, sha256: str, device: torch.device, *, hint: str) -> Any:
    """The TorchScript program of ``path`` on ``device``, in evaluation mode.

    ``sha256`` are the 64 hexadecimal digits that its bytes must have; ``hint`` says where to get such a file. Raises
    ``ModelMissing`` if there is no such file and ``ModelDamaged`` if it has another digest or does not open.
    """
    if not path.is_file():
        raise ModelMissing(f"{path} is not there", hint=hint)
    with translate_os_errors(path):
        program = path.read_bytes()
    found = hashlib.sha256(program).hexdigest()
    if found != sha256:
        raise ModelDamaged(f"{path}: found sha256 {found}, expected {sha256}: a program, so it was not run", hint=hint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch discourages the format; the file is what papers used
        try:
            return torch.jit.load(io.BytesIO(program), map_location=device).eval()
        except (RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())[:120]
            raise ModelDamaged(f"{path}: does not open as TorchScript ({why})", hint=hint) from error
