"""Names and suffixes of weight files."""

from __future__ import annotations

from pathlib import Path

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".onnx")
GGUF = ".gguf"


def weights_read(folder: Path) -> list[Path]:
    """Weight files of a network's ``folder`` that are read.

    GGUF files come before all others, safetensors before pickles, and variants (``model.fp16.safetensors``) are not
    read beside safetensors without one. A clone of a repository with git-lfs may have only pointers for the others.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix in (GGUF, *WEIGHT_SUFFIXES))
    quantized = [file for file in files if file.suffix == GGUF]
    tensors = [file for file in files if file.suffix == ".safetensors"]
    plain = [file for file in tensors if "." not in file.stem]
    onnx = [file for file in files if file.suffix == ".onnx"]
    return quantized or (plain or tensors) + onnx or files


def weight_names(name: str) -> tuple[str, ...]:
    """Accepted file names for a listed weight file: the listed name and other forms of the same network.

    A ``.safetensors`` comes before the ``.pth`` that it was converted from; of diffusers' half and full precision
    files, the listed one comes first.
    """
    path = Path(name)
    if path.suffix not in WEIGHT_SUFFIXES or path.suffix == ".onnx":
        return (name,)
    stem = path.stem.removesuffix(".fp16")
    full, half = f"{stem}.safetensors", f"{stem}.fp16.safetensors"
    other = (f"{stem}.bin", f"{stem}.fp16.bin", f"{stem}.pth")
    order = (name, full, half, *other) if path.suffix == ".safetensors" else (full, half, name, *other)
    return tuple(dict.fromkeys(order))
