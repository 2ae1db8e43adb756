"""Load the parts of a pipeline folder in diffusers' layout: strictly, from local files, without executing pickles."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn

from stableanimator_cli.config.animate import SamplingConfig
from stableanimator_cli.diffusion.scheduler_hook import why_not_refined
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.errors import ConfigError, ModelDamaged, ModelMissing, SaError, is_out_of_memory
from stableanimator_cli.readers import damaged_model, read_json

_MODEL: Any = diffusers.ModelMixin  # its types are lost in diffusers' lazy imports
# Blur filters of Wan-Animate's motion encoder, which its authors' checkpoint and the GGUF files made from it hold as
# tensors. They are constants, which diffusers' network computes.
_FIXED_FILTER = r"^motion_encoder\.enc\.net_app\.convs\.\d+\.(conv2|skip)\.0\.kernel$"


def load_network(kind: type[Any], folder: Path, dtype: torch.dtype) -> nn.Module:
    """A network of diffusers or transformers, frozen, in evaluation mode, on the CPU.

    Modules that its class keeps in float32 stay so. A transformer may be one GGUF file beside its ``config.json``.
    Raises ``ModelDamaged`` for missing, surplus and misshapen tensors, and for files that cannot be read.
    """
    quantized = sorted(folder.glob("*.gguf"))
    if quantized:
        return _load_gguf(kind, quantized, folder, dtype)
    name = "torch_dtype" if issubclass(kind, _MODEL) else "dtype"
    with _reading(folder):
        network, report = kind.from_pretrained(
            folder, **{name: dtype}, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    _check_report(folder, report)
    return network.eval().requires_grad_(False)


def build_network(kind: type[Any], config: dict[str, Any]) -> nn.Module:
    """The same network from its config, without weights."""
    if issubclass(kind, _MODEL):
        return kind.from_config(config)
    return kind(kind.config_class.from_dict(config))


def load_scheduler(folder: Path) -> Any:
    """The scheduler that ``scheduler_config.json`` names."""
    path = folder / "scheduler_config.json"
    # DPM-Solver's config has lambda_min_clipped: -Infinity
    config = read_json(path, "the config of a scheduler", error=damaged_model, nan=True)
    name = config.get("_class_name") if isinstance(config, dict) else None
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise ModelDamaged(f"{path}: _class_name: found {name!r}, expected a scheduler of diffusers")
    with _reading(folder):
        return kind.from_pretrained(folder, local_files_only=True)


def check_scheduler(folder: Path, steps: int, *, refines: bool) -> None:
    """Raise ``ModelDamaged`` for a scheduler that does not make ``steps`` steps of one call each, or, if ``refines``,
    has no denoised estimate that face optimisation could refine."""
    scheduler, problem, hint = load_scheduler(folder), None, "use the scheduler that the weights came with"
    name = type(scheduler).__name__
    try:
        scheduler.set_timesteps(steps)
    except ValueError as error:  # of settings for which its pipeline computes a value
        problem = f"{name} cannot make {steps} steps ({error})"
    else:
        if len(scheduler.timesteps) != steps:
            problem = f"{name} makes {len(scheduler.timesteps)} calls in {steps} steps, expected one"
        elif refines:
            problem, hint = why_not_refined(scheduler), f"add --refine-face off, or {hint}"
    if problem is not None:
        raise ModelDamaged(f"{folder}: {problem}", hint=hint)


def load_part(kind: Any, folder: Path) -> Any:
    """A tokenizer or an image processor."""
    with _reading(folder):
        return kind.from_pretrained(folder, local_files_only=True)


def place(network: nn.Module, plan: DevicePlan) -> nn.Module:
    """Apply the settings of ``plan`` to a transformer by diffusers' own means: fp8 weights by layerwise casting,
    ``--offload group`` by group offloading, ``--compile`` by regional compilation."""
    config = plan.config
    module: Any = network
    if config.quantization == "fp8":
        module.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=plan.dtype)
    if config.offload == "group" and plan.device.type != "cpu":
        module.enable_group_offload(
            onload_device=plan.device, offload_device=torch.device("cpu"), offload_type="block_level",
            num_blocks_per_group=1,
        )  # fmt: skip
        module.places_itself = True  # the engine does not move it
    if config.compile == "blocks":
        module.compile_repeated_blocks()
    return module


def check_prompts(tokenizer: Any, sampling: SamplingConfig, length: int) -> None:
    """Raise ``ConfigError`` for a prompt of more than ``length`` tokens: the rest would be cut silently."""
    for flag, prompt in (("--prompt", sampling.prompt), ("--negative-prompt", sampling.negative_prompt)):
        count = len(tokenizer(" ".join(prompt.split()), add_special_tokens=True).input_ids)
        if count > length:
            raise ConfigError(flag, f"{count} tokens", f"at most {length}, which the text encoder reads")


def text_embedding(encoder: Any, tokenizer: Any, prompt: str, length: int, device: torch.device) -> Tensor:
    """UMT5's embedding [1,length,d] of a prompt: zero beyond its tokens, as Wan's pipelines make it."""
    tokens = tokenizer(
        [" ".join(prompt.split())], padding="max_length", max_length=length, truncation=True, add_special_tokens=True,
        return_attention_mask=True, return_tensors="pt",
    )  # fmt: skip
    mask = tokens.attention_mask
    states = encoder(tokens.input_ids.to(device), mask.to(device)).last_hidden_state
    count = int(mask.gt(0).sum())
    return torch.cat([states[:, :count], states.new_zeros(1, length - count, states.shape[-1])], dim=1)


def _load_gguf(kind: type[Any], files: list[Path], folder: Path, dtype: torch.dtype) -> nn.Module:
    if len(files) > 1:
        raise ModelDamaged(
            f"{folder}: found {len(files)} GGUF files ({', '.join(file.name for file in files)}), expected one",
            hint="keep the quantization that you want",
        )
    if importlib.util.find_spec("gguf") is None:
        raise ModelMissing(
            f"{files[0]}: GGUF weights need the package gguf, which is not installed",
            hint="pip install 'gguf>=0.10'",
        )
    with _reading(files[0]):
        network = _checked(kind, files[0]).from_single_file(
            str(files[0]), config=str(folder.parent), subfolder=folder.name, torch_dtype=dtype, local_files_only=True,
            quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=dtype),
        )  # fmt: skip
    network.__class__ = kind
    return network.eval().requires_grad_(False)


def _checked(kind: Any, file: Path) -> Any:
    """``kind`` that names missing and surplus tensors of ``file``.

    ``from_single_file`` fails for the former only when it moves the network, and only logs the latter.
    """
    surplus: set[str] = set()

    def state_dict(network: Any, *args: Any, **kwargs: Any) -> Any:
        return _Names(kind.state_dict(network, *args, **kwargs), surplus)

    def to(network: Any, *args: Any, **kwargs: Any) -> Any:
        missing = [name for name, parameter in network.named_parameters() if parameter.is_meta]
        known = (_FIXED_FILTER, *(kind._keys_to_ignore_on_load_unexpected or ()))
        others = [name for name in surplus if not any(re.search(pattern, name) for pattern in known)]
        _check_report(file, {"missing_keys": missing, "unexpected_keys": others, "mismatched_keys": []})
        return kind.to(network, *args, **kwargs)

    return type(kind.__name__, (kind,), {"state_dict": state_dict, "to": to})


class _Names(dict[str, Any]):
    """A network's state by name, which collects the names that are looked for in vain: those of a file's tensors."""

    def __init__(self, state: dict[str, Any], absent: set[str]) -> None:
        super().__init__(state)
        self._absent = absent

    def __contains__(self, name: object) -> bool:
        found = super().__contains__(name)
        if not found:
            self._absent.add(str(name))
        return found


def _check_report(folder: Path, report: Any) -> None:
    faults = [
        f"{len(found)} {what} tensor(s), first {sorted(map(str, found))[0]}"
        for key, what in (("missing_keys", "missing"), ("unexpected_keys", "surplus"), ("mismatched_keys", "misshapen"))
        if (found := report[key] if isinstance(report, dict) else getattr(report, key))
    ]
    if faults:
        raise ModelDamaged(
            f"{folder} does not fit its network: {'; '.join(faults)}",
            hint="the weights belong to another network or another config: get the folder again",
        )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors of the libraries into ``ModelDamaged``."""
    try:
        with quiet():
            yield
    except (SaError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the libraries raise errors of many classes
        if is_out_of_memory(error):
            raise
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise ModelDamaged(
            f"{path}: cannot be read ({why})", hint="compare the folder with its source and get it again"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep bars, notices and reports of diffusers and transformers from the terminal."""
    levels = diffusers.utils.logging.get_verbosity(), transformers.utils.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    diffusers.utils.logging.set_verbosity(50)
    transformers.utils.logging.set_verbosity(50)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers.utils.logging.set_verbosity(levels[0])
        transformers.utils.logging.set_verbosity(levels[1])
        if bars:
            transformers.utils.logging.enable_progress_bar()
