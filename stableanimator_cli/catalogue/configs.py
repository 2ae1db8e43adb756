"""JSON configs of networks, checked for type and range before a network is built.

A config determines the memory and time of a network: an untrusted model folder could otherwise request 10^9 layers.
Keys that are not listed here are left to the libraries that read them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stableanimator_cli.errors import ModelDamaged
from stableanimator_cli.readers import damaged_model, read_json
from stableanimator_cli.readers_fields import shown

_MAX_SIZE = 2**16
_MAX_COUNT = 64  # layers of a block, blocks of a network
_MAX_BYTES = 2**20  # bytes of a file
_HINT = "compare the config with the one that the weights came with"

_COUNTS = ("layers_per_block", "num_hidden_layers", "num_tokens", "transformer_layers_per_block")
_SIZES = (
    "hidden_size", "intermediate_size", "num_attention_heads", "attention_head_dim", "image_size", "patch_size",
    "projection_dim", "num_channels", "in_channels", "out_channels", "block_out_channels", "addition_time_embed_dim",
    "projection_class_embeddings_input_dim", "cross_attention_dim", "num_frames", "norm_num_groups", "latent_channels",
    "sample_size", "noise_latent_channels", "id_embeddings_dim", "clip_embeddings_dim", "num_train_timesteps",
    "tubelet_size",
)  # fmt: skip
_POSITIVE = ("scaling_factor", "layer_norm_eps", "sigma_min", "sigma_max", "beta_start", "beta_end")
_FLAGS = ("force_upcast", "fusion")
_TEXTS = ("down_block_types", "up_block_types", "hidden_act")


def read_config(path: Path) -> Mapping[str, Any]:
    """A network's JSON config without its writer's keys (``_class_name``, ``_diffusers_version``).

    Raises ``ModelDamaged`` that names the file, and the key if the value of one is wrong.
    """
    raw = read_json(path, "a network's config (JSON)", limit=_MAX_BYTES, error=damaged_model, hint=_HINT)
    if not isinstance(raw, dict):
        raise ModelDamaged(f"{path}: found a {type(raw).__name__}, expected a JSON object", hint=_HINT)
    config = {key: value for key, value in raw.items() if not key.startswith("_")}
    for key, value in config.items():
        expected = _expected(key, value)
        if expected is not None:
            raise ModelDamaged(f"{path}: {shown(key)}: found {shown(value)}, expected {expected}", hint=_HINT)
    return config


def _expected(key: str, value: Any) -> str | None:
    """The expected value of ``key`` in words, None if ``value`` is valid."""
    if value is None:  # the library's default
        return None
    if key in _COUNTS:
        return _whole(value, _MAX_COUNT)
    if key in _SIZES:
        return _whole(value, _MAX_SIZE)
    if key in _POSITIVE:
        good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
        return None if good else "a positive number"
    if key in _FLAGS:
        return None if isinstance(value, bool) else "true or false"
    if key in _TEXTS:
        texts = value if isinstance(value, list) else [value]
        good = 0 < len(texts) <= _MAX_COUNT and all(isinstance(text, str) and len(text) <= 100 for text in texts)
        return None if good else f"a text, or a list of at most {_MAX_COUNT}"
    return None


def _whole(value: Any, largest: int) -> str | None:
    """Check a whole number, one per block, or a list of them per block."""
    level = [value]
    for _ in range(3):
        if all(type(item) is int for item in level):
            good = 0 < len(level) <= _MAX_COUNT * _MAX_COUNT and all(1 <= item <= largest for item in level)
            return None if good else f"a whole number from 1 to {largest}, or a list of them"
        if not all(type(item) is int or (isinstance(item, list) and 0 < len(item) <= _MAX_COUNT) for item in level):
            break
        level = [inner for item in level for inner in (item if isinstance(item, list) else [item])]
    return f"a whole number from 1 to {largest}, or a list of them"
