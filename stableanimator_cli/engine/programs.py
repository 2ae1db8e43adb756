"""TorchScript programs, loaded only if their bytes have the recorded sha256.

The file is read once and the hashed bytes are loaded, so a file that is replaced in between cannot run. A test ensures
that ``torch.jit.load`` is called in this file only.
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
    """Load the TorchScript program ``path`` on ``device``, in evaluation mode.

    ``sha256`` are the expected 64 hexadecimal digits; ``hint`` is the errors' remedy. Raises ``ModelMissing`` for an
    absent file, and ``ModelDamaged`` if it has another digest or does not open.
    """
    if not path.is_file():
        raise ModelMissing(f"{path} is missing", hint=hint)
    with translate_os_errors(path):
        program = path.read_bytes()
    actual = hashlib.sha256(program).hexdigest()
    if actual != sha256:
        raise ModelDamaged(f"{path}: found sha256 {actual}, expected {sha256}: a program, so it was not run", hint=hint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the format of the file that papers use
        try:
            return torch.jit.load(io.BytesIO(program), map_location=device).eval()
        except (RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())[:120]
            raise ModelDamaged(f"{path}: does not open as TorchScript ({why})", hint=hint) from error
