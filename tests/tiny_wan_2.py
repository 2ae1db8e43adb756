"""Tiny Wan-Animate-2 pipelines with random weights, as folders that diffusers' modular pipelines read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    WanAnimate2Blocks,
    WanAnimate2DistilledBlocks,
    WanAnimate2Transformer3DModel,
)
from transformers import CLIPVisionConfig, CLIPVisionModel

from tests import tiny_wan

ROLES = ("transformer", "vae", "text_encoder", "image_encoder", "tokenizer", "scheduler")


def scheduler(*, distilled: bool = False) -> Any:
    """That of the published folders."""
    if distilled:
        return FlowMatchEulerDiscreteScheduler(shift=5.0)
    return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)


def parts(*, distilled: bool = False, layers: int = 2) -> dict[str, Any]:
    """All parts of a pipeline. The width of CLIP and its input's side are fixed in diffusers, which without the prompt
    leaves the tenth of ``layers`` out."""
    shared = tiny_wan.parts()
    torch.manual_seed(1)
    vision = CLIPVisionConfig(
        hidden_size=1280, projection_dim=4, num_hidden_layers=1, num_attention_heads=2, image_size=224,
        intermediate_size=8, patch_size=28,
    )  # fmt: skip
    return {
        **{role: shared[role] for role in ("vae", "text_encoder", "tokenizer")},
        "image_encoder": CLIPVisionModel(vision).eval(),
        "transformer": WanAnimate2Transformer3DModel(
            dim=24, ffn_dim=16, freq_dim=16, text_dim=16, num_heads=2, num_layers=layers
        ).eval(),
        "scheduler": scheduler(distilled=distilled),
    }


def write_pipeline(folder: Path, *, distilled: bool = False, layers: int = 2) -> Path:
    """A folder as the hub has it: the parts in diffusers' layout and both indices."""
    blocks = WanAnimate2DistilledBlocks if distilled else WanAnimate2Blocks
    pipe = blocks().init_pipeline()
    pipe.update_components(**parts(distilled=distilled, layers=layers))
    pipe.save_pretrained(str(folder), overwrite_modular_index=True)
    index = json.loads((folder / "modular_model_index.json").read_text())
    plain = {name: value[:2] for name, value in index.items() if isinstance(value, list)}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanAnimate2Pipeline", **plain}))
    return folder


def write_model(
    folder: Path, *, seeing: bool = True, distilled: bool = False, layers: int = 2, **defaults: Any
) -> Path:
    """The same with a ``model.toml`` (``tiny_wan.write_model``)."""
    write_pipeline(folder, distilled=distilled, layers=layers)
    return tiny_wan.describe(folder, "wan-animate-2", ROLES, seeing=seeing, **defaults)
