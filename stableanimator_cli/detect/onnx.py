"""ONNX Runtime sessions: the only module that imports onnxruntime.

Files are checked before they are opened, so that a missing, empty or wrong file is an error of one line, not a protobuf
message. The provider of each session is reported, since ONNX Runtime silently falls back to the CPU.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stableanimator_cli.catalogue.damage import check_no_pointer, fetch_again
from stableanimator_cli.errors import ModelDamaged, ModelMissing, OutOfMemory, is_out_of_memory
from stableanimator_cli.host_memory import trim
from stableanimator_cli.progress import Reporter

if TYPE_CHECKING:
    import onnxruntime as ort

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
COREML = "CoreMLExecutionProvider"


def _runtime() -> Any:
    """ONNX Runtime, imported on first use, so that mistakes in a command are reported before."""
    import onnxruntime

    return onnxruntime


Provider = str | tuple[str, dict[str, object]]

_ON_CPU = "--device cpu runs it in main memory"
_ERRORS_ONLY = 3  # ONNX Runtime's severity: its warnings about graph optimisation do not matter to users


def providers_for(device: str, available: Iterable[str] | None = None) -> list[Provider]:
    """Execution providers for a device, best first, the CPU always last.

    ``device`` is ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; ``available`` replaces the providers of this ONNX
    Runtime (for tests). An unavailable provider is omitted: torch with CUDA beside the CPU build of ONNX Runtime is the
    usual installation, and detection works there too. ``describe`` reports the choice. Raises ``ValueError`` for
    another device.
    """
    have = set(_runtime().get_available_providers() if available is None else available)
    kind, _, index = device.partition(":")
    known = kind in ("auto", "cpu", "cuda", "mps") and (not index or (kind == "cuda" and index.isdecimal()))
    if not known or device.endswith(":"):
        raise ValueError(f"device {device!r}: expected auto, cpu, cuda, cuda:N or mps")
    chosen: list[Provider] = []
    if kind in ("auto", "cuda") and CUDA in have:
        # The default algorithm search times every kernel again for each batch size, the last short batch included.
        chosen.append((CUDA, {"device_id": int(index or 0), "cudnn_conv_algo_search": "HEURISTIC"}))
    if kind in ("auto", "mps") and COREML in have:
        chosen.append(COREML)
    return [*chosen, CPU]


def session_options(threads: int | None = None, *, arena: bool = True) -> ort.SessionOptions:
    """Options of every session: ``threads`` within an operator (None: ONNX Runtime's choice), errors only.

    ``arena`` False frees memory on the CPU after each run, for sessions that stay open beside other networks. Runs then
    take somewhat longer (docs/performance.md).
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads {threads}: expected 1 or more")
    options = _runtime().SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.enable_cpu_mem_arena = arena
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    return options


def check_file(path: Path | str) -> Path:
    """Return ``path`` if it may be an ONNX file.

    Raises ``ModelMissing`` if it does not exist. Raises ``ModelDamaged`` for a folder, an empty file, a git-lfs pointer
    or a web page saved under the model's name.
    """
    path = Path(path)
    if not path.exists():
        raise ModelMissing(f"{path}: no such file, expected an ONNX model", hint="name an existing file")
    if not path.is_file():
        raise ModelDamaged(f"{path}: found a folder, expected an ONNX file", hint="name the .onnx file inside it")
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    if not head:
        raise ModelDamaged(f"{path}: found nothing in it, expected an ONNX model", hint=fetch_again(path))
    check_no_pointer(path)
    if head[:1] == b"<":
        raise ModelDamaged(f"{path}: found a web page, expected an ONNX model", hint=fetch_again(path))
    return path


def session(
    path: Path | str, device: str = "auto", threads: int | None = None, *, arena: bool = True
) -> ort.InferenceSession:
    """Open an ONNX file on a device; ``arena``: see ``session_options``.

    Raises ``ModelMissing``, ``OutOfMemory``, ``ModelDamaged`` (one line, with the reason that ONNX Runtime gives) and
    ``ValueError`` (an unknown device).
    """
    path = check_file(path)
    options, providers = settings(device, threads, arena=arena)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the errors of providers that do not load there
            opened = _runtime().InferenceSession(str(path), sess_options=options, providers=providers)
    except Exception as error:  # its error classes share no base but Exception
        raise not_opened(path, error) from error
    trim()
    note_fallback(opened, device, path.name)
    return opened


def settings(
    device: str, threads: int | None = None, *, arena: bool = True
) -> tuple[ort.SessionOptions, list[Provider]]:
    """Options and providers of every session. Loads the libraries that the providers need."""
    options, providers = session_options(threads, arena=arena), providers_for(device)
    if providers[0] != CPU:
        _load_libraries()
    return options, providers


_fallbacks: list[str] = []


def note_fallback(opened: ort.InferenceSession, device: str, name: str) -> None:
    """Record for ``warn_of_fallbacks`` that the network ``name`` runs on the CPU although a card was chosen."""
    chosen = _name(providers_for(device)[0])
    if opened.get_providers()[0] != chosen:
        kind = chosen.removesuffix("ExecutionProvider")
        _fallbacks.append(f"{name} runs on the CPU: the libraries of ONNX Runtime's {kind} provider did not load")


def warn_of_fallbacks(reporter: Reporter) -> None:
    """Warn once of each opened network that runs on the CPU although a card was chosen."""
    while _fallbacks:
        reporter.warning(f"{_fallbacks.pop(0)}; `sa doctor` checks the installation, --device cpu chooses the CPU")


def run(opened: ort.InferenceSession, pixels: np.ndarray) -> list[np.ndarray]:
    """All outputs of a network of one input. Raises ``OutOfMemory`` if the device has no room for the batch."""
    try:
        return [np.asarray(out) for out in opened.run(None, {opened.get_inputs()[0].name: pixels})]
    except Exception as error:  # its error classes share no base but Exception
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"no memory for an ONNX network on a batch of {len(pixels)}", hint=_ON_CPU) from error


@cache
def _load_libraries() -> None:
    """Let ONNX Runtime load the CUDA libraries of torch's packages, in which it does not search by default."""
    preload = getattr(_runtime(), "preload_dlls", None)
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):
            preload()


def not_opened(path: Path, error: Exception) -> ModelDamaged | OutOfMemory:
    """The error for a library's failure to open ``path``: the device lacks memory, or the weights are damaged."""
    if is_out_of_memory(error):
        return OutOfMemory(f"no memory for the ONNX network {path.name}", hint=_ON_CPU)
    reason = " ".join(str(error).split()) or type(error).__name__
    if len(reason) > 200:
        reason = reason[:197] + "..."
    return ModelDamaged(f"{path}: does not open as an ONNX model ({reason})", hint=fetch_again(Path(path)))


def describe(opened: ort.InferenceSession, device: str = "auto") -> str:
    """The device of a session in words, with the reason if it is not the requested ``device``."""
    return _describe(opened.get_providers(), device)


def together(where: Mapping[str, str]) -> str:
    """Devices by network in one text; a single name if all are equal."""
    if len(set(where.values())) == 1:
        return next(iter(where.values()))
    return ", ".join(f"{name} on {device}" for name, device in where.items())


def _describe(active: Sequence[str], device: str) -> str:
    first = active[0].removesuffix("ExecutionProvider")
    chosen = _name(providers_for(device)[0])
    if chosen not in (CPU, active[0]):
        kind = device if device != "auto" else chosen.removesuffix("ExecutionProvider")
        return f"{first} ({kind} was {'requested' if device != 'auto' else 'chosen'}, but its libraries did not load)"
    expected = {"cuda": CUDA, "mps": COREML}.get(device.partition(":")[0])
    if expected is None or expected == active[0]:
        return first
    remedy = "; install onnxruntime-gpu in place of onnxruntime" if expected == CUDA else ""
    return f"{first} ({device} was requested, but this ONNX Runtime has no {expected}{remedy})"


def on_card(device: str) -> bool:
    """Whether sessions on this device should run on a CUDA card."""
    return _name(providers_for(device)[0]) == CUDA


def _name(provider: Provider) -> str:
    return provider if isinstance(provider, str) else provider[0]


def batch_axis(opened: ort.InferenceSession) -> int | None:
    """The batch size that a session's first input fixes, None if any batch is accepted."""
    size = opened.get_inputs()[0].shape[0]
    return size if isinstance(size, int) and size > 0 else None
