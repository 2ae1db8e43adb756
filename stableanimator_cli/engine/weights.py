"""Load weight files into networks: strict, by name, built on the meta device, without executing pickles."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stableanimator_cli.catalogue.place import SOURCE_SHA256
from stableanimator_cli.engine.backbones import DenoisingBackbone, backbone_of
from stableanimator_cli.errors import ModelDamaged, ModelMissing, SaError
from stableanimator_cli.files import MARK, sha256_of
from stableanimator_cli.host_memory import trim
from stableanimator_cli.nets.arcface import ArcFace
from stableanimator_cli.nets.id_adapter import IDMode
from stableanimator_cli.records import ModelFolder

_ALIGNMENT = 64  # bytes, of torch's CPU allocator
_UNREADABLE = (  # errors that torch.load raises for damaged files
    SafetensorError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError,
    AssertionError, ArithmeticError, ImportError,
)  # fmt: skip


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a ``.safetensors``, ``.pth`` or ``.bin`` file.

    Pickles are read with ``weights_only=True``: one that holds anything but tensors raises ``ModelDamaged``.
    """
    if not path.is_file():
        raise ModelMissing(f"{path} is missing", hint="`sa models verify` lists what else is missing")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a TorchScript program, which is refused below
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
    except UnpicklingError as error:
        if "GLOBAL" not in str(error):  # torch names a refused object; other messages are about bytes
            raise _unreadable(path, "no checkpoint of torch") from error
        raise ModelDamaged(
            f"{path} holds Python objects besides tensors and was not opened",
            hint="a pickle can run code: get the file again from its source, or convert it there to .safetensors",
        ) from error
    except _UNREADABLE as error:
        lines = str(error).splitlines() or ["it ends too early"]  # a truncated file gives an EOFError without a message
        if isinstance(error, LookupError):  # its message is an opcode or key of the pickle
            lines = ["no checkpoint of torch"]
        raise _unreadable(path, lines[0][:120]) from error
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ModelDamaged(f"{path} is not a state dict", hint="expected a mapping of names to tensors")
    return dict(tensors)


def _unreadable(path: Path, why: str) -> ModelDamaged:
    return ModelDamaged(
        f"{path} cannot be read as weights ({why})",
        hint="the file is truncated or of another kind: compare its size with its source and get it again",
    )


def convert_to_safetensors(source: Path, target: Path) -> None:
    """Write the state dict of ``source`` as safetensors to ``target``, atomically.

    The file records the sha256 of ``source``, by which a later import recognises it. Raises ``OSError`` if ``target``
    cannot be written.
    """
    tensors = {name: tensor.contiguous().clone() for name, tensor in read_tensors(source).items()}
    temp = target.with_name(target.name + ".part")
    try:
        save_file(tensors, temp, metadata={"format": "pt", SOURCE_SHA256: sha256_of(source), "written_by": MARK})
        _order_metadata(temp)
        temp.chmod(source.stat().st_mode)  # safetensors creates files that only their owner can read
        os.replace(temp, target)
    except SafetensorError as error:  # its message contains the system's: "I/O error: ... (os error 28)"
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(target)) from error
    finally:
        temp.unlink(missing_ok=True)


def _order_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file in place, as the library writes keys in random order."""
    with path.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = _sorted_header(stream.read(length))
        stream.seek(8)
        stream.write(header)


def sorted_metadata(data: bytes) -> bytes:
    """The bytes of a safetensors file with sorted metadata, so that equal content has equal bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    return data[:8] + _sorted_header(data[8:end]) + data[end:]


def _sorted_header(text: bytes) -> bytes:
    header = json.loads(text)
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return ordered.ljust(len(text)) if len(ordered) <= len(text) else text


def load(build: Callable[[], nn.Module], path: Path, dtype: torch.dtype) -> nn.Module:
    """Build a network and fill it strictly from ``path`` in ``dtype``: frozen, in evaluation mode, on the CPU."""
    return fill(build, read_tensors(path), dtype, path)


def fill(build: Callable[[], nn.Module], tensors: Mapping[str, Tensor], dtype: torch.dtype, source: Path) -> nn.Module:
    """``load`` from ``tensors``; errors name ``source``."""
    with torch.device("meta"), building(source):
        network = build()
    state = network.state_dict()
    compare(source, {name: tensor.shape for name, tensor in state.items()}, tensors)
    _check_dtypes(source, state, tensors)
    network.load_state_dict({name: _cast(tensor, dtype) for name, tensor in tensors.items()}, assign=True)
    _fill_buffers(network)
    return network.eval().requires_grad_(False)


def loaders(model: ModelFolder, dtype: torch.dtype, id_mode: IDMode) -> dict[str, Callable[[], nn.Module]]:
    """One function per network of ``model`` that loads it, for a ``DenoisingBackbone``."""
    backbone: DenoisingBackbone = backbone_of(model)
    return {
        name: lambda name=name, build=build: fill(build, backbone.read(model, name), dtype, model.files[name])
        for name, build in backbone.builders(model, id_mode).items()
    }


def builders(model: ModelFolder, id_mode: IDMode) -> dict[str, Callable[[], nn.Module]]:
    """One function per network that builds it from the model's configs, without weights."""
    return backbone_of(model).builders(model, id_mode)


def build_on_meta(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network without weights on the meta device, for counting."""
    with torch.device("meta"):
        network = build()
    return nn.Module.to(network.to("meta"), dtype)  # diffusers creates some parameters on the CPU


@contextlib.contextmanager
def building(source: Path) -> Iterator[None]:
    """Turn errors of diffusers and transformers about an invalid config into ``ModelDamaged``."""
    try:
        yield
    except (SaError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers raises errors of many classes
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise ModelDamaged(
            f"{source}: its JSON config describes no network that can be built ({why})",
            hint="compare the config with the one that the weights came with",
        ) from error


def recogniser(path: Path) -> ArcFace:
    """The face recogniser's ONNX graph as a differentiable module, always float32."""
    try:
        network = ArcFace(path.read_bytes()).eval().requires_grad_(False)
        trim()
        return network
    except ValueError as error:
        raise ModelDamaged(
            f"{path}: {error}", hint="face optimisation needs an ArcFace graph; `--preset fast` needs none"
        ) from error


def network_config(model: ModelFolder, role: str) -> dict[str, Any]:
    """A network's JSON config without keys that are no arguments."""
    if role not in model.configs:
        raise ModelDamaged(f"{model.path}: no config for {role}", hint="a model folder names one in model.toml")
    return arguments(model.configs[role])


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON config of diffusers or transformers without keys that are no arguments."""
    ignored = ("architectures", "model_type", "torch_dtype", "dtype", "transformers_version")
    return {k: v for k, v in config.items() if not k.startswith("_") and k not in ignored}


def compare(path: Path, expected: Mapping[str, torch.Size], actual: Mapping[str, Tensor]) -> None:
    """Raise ``ModelDamaged`` unless names and shapes agree."""
    faults = []
    missing = [name for name in expected if name not in actual]
    extra = [name for name in actual if name not in expected]
    wrong = [name for name in expected if name in actual and expected[name] != actual[name].shape]
    if missing:
        faults.append(f"{len(missing)} missing tensor(s), first {missing[0]}")
    if extra:
        faults.append(f"{len(extra)} tensor(s) too many, first {extra[0]}")
    if wrong:
        name = wrong[0]
        faults.append(
            f"{len(wrong)} of a wrong shape, first {name}: {list(actual[name].shape)}, expected {list(expected[name])}"
        )
    if faults:
        raise ModelDamaged(
            f"{path} does not fit the network: {'; '.join(faults)}",
            hint="the file belongs to another network or another config: check both, or get them again",
        )


def _check_dtypes(path: Path, expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> None:
    """Raise ``ModelDamaged`` for weights that are no floating-point numbers: their scales would be missing."""
    wrong = [name for name in expected if expected[name].is_floating_point() and not actual[name].is_floating_point()]
    if wrong:
        dtype = str(actual[wrong[0]].dtype).removeprefix("torch.")
        raise ModelDamaged(
            f"{path} does not fit the network: {len(wrong)} tensor(s) are no floating-point numbers, "
            f"first {wrong[0]}: {dtype}",
            hint="the file is quantized by another program: get it in float32, float16 or bfloat16; see --quantize",
        )


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast, and copy to torch's alignment: rounding of CPU kernels depends on it, and on the file format without."""
    tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


def _fill_buffers(network: nn.Module) -> None:
    """Fill buffers that transformers leaves out of the state dict: position indices."""
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta and name == "position_ids":
                module.register_buffer(name, torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False)


def is_zip(path: Path) -> bool:
    """Torch's format since 1.6 is a zip archive, which can be memory-mapped."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"
