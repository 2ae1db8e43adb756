"""Random weights under the published names of CLIP, DINO and V-JEPA, at any width, and forward passes written from
their papers with plain functions, to compare our networks with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, Tensor]
Config = Mapping[str, Any]

CLIP: Config = {
    "hidden_size": 16, "intermediate_size": 24, "projection_dim": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_channels": 3, "image_size": 224, "patch_size": 56, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
DINO: Config = {
    "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3, "num_channels": 3,
    "image_size": 224, "patch_size": 112, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
}  # fmt: skip
VJEPA: Config = {
    "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "num_channels": 3,
    "image_size": 224, "num_frames": 16, "patch_size": 112, "tubelet_size": 2,
}  # fmt: skip


def clip_shapes(c: Config) -> Shapes:
    """The image half of ``openai/clip-vit-base-patch32/pytorch_model.bin``, without ``position_ids``."""
    d, wide, patch = c["hidden_size"], c["intermediate_size"], c["patch_size"]
    shapes: Shapes = {
        "vision_model.embeddings.class_embedding": (d,),
        "vision_model.embeddings.patch_embedding.weight": (d, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": ((224 // patch) ** 2 + 1, d),
        "visual_projection.weight": (c["projection_dim"], d),
    }
    _norms(shapes, d, "vision_model.pre_layrnorm", "vision_model.post_layernorm")
    for n in range(c["num_hidden_layers"]):
        at = f"vision_model.encoder.layers.{n}"
        _norms(shapes, d, f"{at}.layer_norm1", f"{at}.layer_norm2")
        for part in "qkv":
            _linear(shapes, f"{at}.self_attn.{part}_proj", d, d)
        _linear(shapes, f"{at}.self_attn.out_proj", d, d)
        _linear(shapes, f"{at}.mlp.fc1", wide, d)
        _linear(shapes, f"{at}.mlp.fc2", d, wide)
    return shapes


def clip_rest() -> Tensors:
    """Parts of the same file that are not used."""
    return {
        "logit_scale": torch.tensor(4.6),
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "text_model.encoder.layers.0.mlp.fc1.bias": torch.zeros(5),
        "text_projection.weight": torch.zeros(4, 4),
        "vision_model.embeddings.position_ids": torch.arange(17)[None],
    }


def dino_shapes(c: Config) -> Shapes:
    """``facebook/dino-vits16/pytorch_model.bin``."""
    d, wide, patch = c["hidden_size"], c["intermediate_size"], c["patch_size"]
    shapes: Shapes = {
        "embeddings.cls_token": (1, 1, d),
        "embeddings.position_embeddings": (1, (224 // patch) ** 2 + 1, d),
        "embeddings.patch_embeddings.projection.weight": (d, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (d,),
    }
    _norms(shapes, d, "layernorm")
    for n in range(c["num_hidden_layers"]):
        at = f"encoder.layer.{n}"
        _norms(shapes, d, f"{at}.layernorm_before", f"{at}.layernorm_after")
        for part in ("query", "key", "value"):
            _linear(shapes, f"{at}.attention.attention.{part}", d, d)
        _linear(shapes, f"{at}.attention.output.dense", d, d)
        _linear(shapes, f"{at}.intermediate.dense", wide, d)
        _linear(shapes, f"{at}.output.dense", d, wide)
    return shapes


def vjepa_shapes(c: Config) -> Shapes:
    """``target_encoder`` of ``vith16.pth.tar``, which was saved from wrapped modules."""
    d, wide, patch, tubelet = c["hidden_size"], c["intermediate_size"], c["patch_size"], c["tubelet_size"]
    bare: Shapes = {
        "pos_embed": (1, c["num_frames"] // tubelet * (c["image_size"] // patch) ** 2, d),
        "patch_embed.proj.weight": (d, 3, tubelet, patch, patch),
        "patch_embed.proj.bias": (d,),
    }
    _norms(bare, d, "norm")
    for n in range(c["num_hidden_layers"]):
        _norms(bare, d, f"blocks.{n}.norm1", f"blocks.{n}.norm2")
        _linear(bare, f"blocks.{n}.attn.qkv", 3 * d, d)
        _linear(bare, f"blocks.{n}.attn.proj", d, d)
        _linear(bare, f"blocks.{n}.mlp.fc1", wide, d)
        _linear(bare, f"blocks.{n}.mlp.fc2", d, wide)
    return {f"module.backbone.{name}": shape for name, shape in bare.items()}


def probe_shapes(c: Config) -> Shapes:
    """``classifier`` of ``ssv2-probe.pth.tar``."""
    d, wide, at = c["hidden_size"], c["intermediate_size"], "pooler.cross_attention_block"
    bare: Shapes = {"pooler.query_tokens": (1, 1, d)}
    _norms(bare, d, f"{at}.norm1", f"{at}.norm2")
    for name, out, into in (("xattn.q", d, d), ("xattn.kv", 2 * d, d), ("xattn.proj", d, d), ("mlp.fc1", wide, d),
                            ("mlp.fc2", d, wide)):  # fmt: skip
        _linear(bare, f"{at}.{name}", out, into)
    _linear(bare, "linear", 174, d)
    return {f"module.{name}": shape for name, shape in bare.items()}


def _norms(shapes: Shapes, width: int, *names: str) -> None:
    shapes |= {f"{name}.{part}": (width,) for name in names for part in ("weight", "bias")}


def _linear(shapes: Shapes, name: str, out: int, into: int) -> None:
    shapes |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def random(shapes: Shapes, seed: int = 0) -> Tensors:
    """Values that keep the size of what flows through them, no two tensors alike."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        fan = math.prod(shape[1:]) if len(shape) > 1 and not name.endswith(("embed", "embeddings", "tokens")) else 4
        made[name] = torch.randn(shape, generator=generator) / math.sqrt(fan)
        if "norm" in name and name.endswith("weight"):
            made[name] = 1 + 0.3 * made[name]
    return made


def _ln(x: Tensor, t: Tensors, name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.pow(2).mean(-1, keepdim=True) + eps).rsqrt()
    return centred * scale * t[f"{name}.weight"] + t[f"{name}.bias"]


def _fc(x: Tensor, t: Tensors, name: str) -> Tensor:
    return torch.einsum("...i,oi->...o", x, t[f"{name}.weight"]) + t[f"{name}.bias"]


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Head by head: softmax(q k^T / sqrt(width of a head)) v."""
    width = q.shape[-1] // heads
    parts = []
    for head in range(heads):
        at = slice(head * width, (head + 1) * width)
        scores = torch.einsum("bnd,bmd->bnm", q[..., at], k[..., at]) / math.sqrt(width)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        parts.append(torch.einsum("bnm,bmd->bnd", weights, v[..., at]))
    return torch.cat(parts, -1)


def _gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.erf(x / math.sqrt(2)))


def _patches(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    convolve: Callable[..., Tensor] = F.conv2d if weight.ndim == 4 else F.conv3d
    return convolve(x, weight, bias, stride=tuple(weight.shape[2:])).flatten(2).transpose(1, 2)


def clip_by_hand(t: Tensors, c: Config, x: Tensor) -> Tensor:
    """Radford et al., the image encoder: QuickGELU, norms before blocks, one more before the first."""
    at = "vision_model.embeddings"
    x = _patches(x, t[f"{at}.patch_embedding.weight"], None)
    x = torch.cat([t[f"{at}.class_embedding"].expand(len(x), 1, -1), x], 1) + t[f"{at}.position_embedding.weight"]
    x = _ln(x, t, "vision_model.pre_layrnorm", 1e-5)
    for n in range(c["num_hidden_layers"]):
        at = f"vision_model.encoder.layers.{n}"
        y = _ln(x, t, f"{at}.layer_norm1", 1e-5)
        q, k, v = (_fc(y, t, f"{at}.self_attn.{part}_proj") for part in "qkv")
        x = x + _fc(_attend(q, k, v, c["num_attention_heads"]), t, f"{at}.self_attn.out_proj")
        y = _fc(_ln(x, t, f"{at}.layer_norm2", 1e-5), t, f"{at}.mlp.fc1")
        x = x + _fc(y * torch.sigmoid(1.702 * y), t, f"{at}.mlp.fc2")
    return _ln(x[:, 0], t, "vision_model.post_layernorm", 1e-5) @ t["visual_projection.weight"].T


def dino_by_hand(t: Tensors, c: Config, x: Tensor) -> Tensor:
    """Caron et al.: a Vision Transformer's class token."""
    at = "embeddings.patch_embeddings.projection"
    x = _patches(x, t[f"{at}.weight"], t[f"{at}.bias"])
    x = torch.cat([t["embeddings.cls_token"].expand(len(x), -1, -1), x], 1) + t["embeddings.position_embeddings"]
    for n in range(c["num_hidden_layers"]):
        at = f"encoder.layer.{n}"
        y = _ln(x, t, f"{at}.layernorm_before", 1e-12)
        q, k, v = (_fc(y, t, f"{at}.attention.attention.{part}") for part in ("query", "key", "value"))
        x = x + _fc(_attend(q, k, v, c["num_attention_heads"]), t, f"{at}.attention.output.dense")
        y = _fc(_ln(x, t, f"{at}.layernorm_after", 1e-12), t, f"{at}.intermediate.dense")
        x = x + _fc(_gelu(y), t, f"{at}.output.dense")
    return _ln(x, t, "layernorm", 1e-12)[:, 0]


def vjepa_by_hand(encoder: Tensors, probe: Tensors, c: Config, x: Tensor) -> Tensor:
    """Bardes et al.: tokens of clips [b,3,t,h,w], and what a query pools from them; no projection after that."""
    t = {name.replace("module.backbone.", ""): tensor for name, tensor in encoder.items()}
    x = _patches(x, t["patch_embed.proj.weight"], t["patch_embed.proj.bias"]) + t["pos_embed"]
    for n in range(c["num_hidden_layers"]):
        q, k, v = _fc(_ln(x, t, f"blocks.{n}.norm1", 1e-6), t, f"blocks.{n}.attn.qkv").chunk(3, -1)
        x = x + _fc(_attend(q, k, v, c["num_attention_heads"]), t, f"blocks.{n}.attn.proj")
        x = x + _fc(
            _gelu(_fc(_ln(x, t, f"blocks.{n}.norm2", 1e-6), t, f"blocks.{n}.mlp.fc1")), t, f"blocks.{n}.mlp.fc2"
        )
    x = _ln(x, t, "norm", 1e-6)
    t = {name.replace("module.pooler.", ""): tensor for name, tensor in probe.items()}
    at, query = "cross_attention_block", t["query_tokens"].expand(len(x), -1, -1)
    k, v = _fc(_ln(x, t, f"{at}.norm1", 1e-5), t, f"{at}.xattn.kv").chunk(2, -1)
    query = query + _attend(_fc(query, t, f"{at}.xattn.q"), k, v, c["num_attention_heads"])
    y = _fc(_ln(query, t, f"{at}.norm2", 1e-5), t, f"{at}.mlp.fc1")
    return (query + _fc(_gelu(y), t, f"{at}.mlp.fc2"))[:, 0]
