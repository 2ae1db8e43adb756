"""Tiny Wan pipelines with random weights, as folders in diffusers' layout: the smallest networks with every part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanAnimatePipeline, WanAnimateTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from tests import onnx_samples

WINDOW, STEPS, FACE = 9, 3, 16
"""Frames of a segment, steps, and pixels per side of the face crops that the networks see."""
_ROLES = ("transformer", "vae", "text_encoder", "image_encoder", "tokenizer", "image_processor", "scheduler")


def parts(scheduler: Any = None) -> dict[str, Any]:
    """All parts of a ``WanAnimatePipeline``; UniPC unless told otherwise."""
    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "dance": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    text = UMT5Config(
        vocab_size=8, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, relative_attention_num_buckets=4
    )
    vision = CLIPVisionConfig(
        hidden_size=4, projection_dim=4, num_hidden_layers=2, num_attention_heads=2, image_size=4, intermediate_size=8,
        patch_size=2,
    )  # fmt: skip
    return {
        "tokenizer": PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        ),
        "text_encoder": UMT5EncoderModel(text).eval(),
        "vae": AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval(),
        "scheduler": scheduler
        or UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
        "image_processor": CLIPImageProcessorPil(size=4, crop_size=4),
        "image_encoder": CLIPVisionModel(vision).eval(),
        "transformer": WanAnimateTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            text_dim=16,
            freq_dim=16,
            ffn_dim=16,
            num_layers=2,
            rope_max_seq_len=32,
            image_dim=4,
            added_kv_proj_dim=24,
            motion_encoder_channel_sizes={"4": 4, "8": 4, "16": 4},
            motion_encoder_size=FACE,
            motion_style_dim=8,
            motion_dim=4,
            motion_encoder_dim=8,
            face_encoder_hidden_dim=8,
            face_encoder_num_heads=2,
            inject_face_latents_blocks=2,
        ).eval(),
    }


def write_pipeline(folder: Path, scheduler: Any = None) -> Path:
    """A folder as ``save_pretrained`` writes it, and nothing of ours."""
    pipe = WanAnimatePipeline(**parts(scheduler))
    pipe.save_pretrained(folder)
    return folder


def write_model(folder: Path, *, seeing: bool = True, **defaults: Any) -> Path:
    """The same with a ``model.toml``: small windows, and detectors for which a red rectangle is a face and a person."""
    write_pipeline(folder)
    return describe(folder, "wan-animate", _ROLES, seeing=seeing, **defaults)


def describe(folder: Path, backbone: str, roles: Sequence[str], *, seeing: bool = True, **defaults: Any) -> Path:
    """Write the ``model.toml`` of a pipeline's folder."""
    rows = {"size": "64x64", "window": WINDOW, "overlap": 1, "steps": STEPS, "guidance": 1.0, **defaults}
    lines = [
        f'name = "{folder.name}"', 'summary = "Random weights"', 'task = "animate"', 'licence = "Apache-2.0"',
        f'backbone = "{backbone}"', 'face_channel_order = "bgr"', "", "[defaults]",
        *(f"{name} = {json.dumps(value)}" for name, value in rows.items()),
    ]  # fmt: skip
    for role in roles:
        config = folder / role / "config.json"
        lines += ["", f"[components.{role}]", f'file = "{role}"']
        lines += [f'config = "{role}/config.json"'] if config.is_file() else []
    if seeing:
        onnx_samples.faces(folder / "faces")
        onnx_samples.yolox(folder / "person.onnx", batch="b")
        onnx_samples.simcc(folder / "pose.onnx")
        found = {"face": "faces", "person_detector": "person.onnx", "pose_detector": "pose.onnx"}
        lines += [line for role, file in found.items() for line in ("", f"[components.{role}]", f'file = "{file}"')]
    (folder / "model.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def copied(folder: Path, target: Path) -> Path:
    """A copy that may be damaged."""
    shutil.copytree(folder, target)
    return target
