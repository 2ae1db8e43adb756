"""A quantised transformer of Wan-Animate as a GGUF file by the names of the authors' checkpoint, as published."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from diffusers import WanAnimateTransformer3DModel
from torch import Tensor

from stableanimator_cli.catalogue import open_animator
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.errors import ModelDamaged
from tests.tiny import CPU
from tests.tiny_wan import FACE, copied, write_model

BLOCK = 32
"""Values that share a scale: only rows of a multiple are quantised."""
_NAMES = (  # of diffusers -> of the authors
    (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"^condition_embedder\.time_proj", "time_projection.1"),
    (r"^condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"^condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
    (r"^proj_out", "head.head"),
    (r"^scale_shift_table", "head.modulation"),
    (r"^(blocks\.\d+)\.scale_shift_table", r"\1.modulation"),
    (r"^(blocks\.\d+)\.ffn\.net\.0\.proj", r"\1.ffn.0"),
    (r"^(blocks\.\d+)\.ffn\.net\.2", r"\1.ffn.2"),
    (r"^(blocks\.\d+)\.norm2\.", r"\1.norm3."),
    (r"^(blocks\.\d+)\.attn1\.", r"\1.self_attn."),
    (r"^(blocks\.\d+)\.attn2\.", r"\1.cross_attn."),
    (r"^(blocks\..*)\.to_out\.0\.", r"\1.o."),
    (r"^(blocks\..*)\.to_([qkv])\.", r"\1.\2."),
    (r"^(blocks\..*)\.add_([kv])_proj\.", r"\1.\2_img."),
    (r"^(blocks\..*)\.norm_added_k\.", r"\1.norm_k_img."),
    (r"^face_adapter\.", "face_adapter.fuser_blocks."),
    (r"^(face_adapter\..*)\.norm_([qk])\.", r"\1.\2_norm."),
    (r"^(face_adapter\..*)\.to_q\.", r"\1.linear1_q."),
    (r"^(face_adapter\..*)\.to_k\.", r"\1.linear1_kv."),
    (r"^(face_adapter\..*)\.to_out\.", r"\1.linear2."),
    (r"^(face_encoder\.conv(?:1_local|2|3))\.", r"\1.conv."),
    (r"^motion_encoder\.motion_synthesis_weight", "motion_encoder.dec.direction.weight"),
    (r"^motion_encoder\.motion_network", "motion_encoder.enc.fc"),
    (r"^motion_encoder\.conv_in\.weight", "motion_encoder.enc.net_app.convs.0.0.weight"),
    (r"^motion_encoder\.conv_in\.act_fn\.bias", "motion_encoder.enc.net_app.convs.0.1.bias"),
    (r"^motion_encoder\.conv_out\.weight", "motion_encoder.enc.net_app.convs.8.weight"),
    (r"^motion_encoder\.res_blocks\.0\.", "motion_encoder.enc.net_app.convs.1."),
    (r"^motion_encoder\.res_blocks\.1\.", "motion_encoder.enc.net_app.convs.2."),
    (r"\.conv1\.weight$", ".conv1.0.weight"),
    (r"\.conv1\.act_fn\.bias$", ".conv1.1.bias"),
    (r"\.conv2\.weight$", ".conv2.1.weight"),
    (r"\.conv2\.act_fn\.bias$", ".conv2.2.bias"),
    (r"\.conv_skip\.weight$", ".skip.1.weight"),
)


def original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict by the authors' names."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("face_adapter.") and ".to_v." in name:
            continue
        if name.startswith("face_adapter.") and ".to_k." in name:
            tensor = torch.cat([tensor, state[name.replace(".to_k.", ".to_v.")]])
        if name.startswith("motion_encoder.") and name.endswith("act_fn.bias"):
            tensor = tensor[None, :, None, None]
        for own, theirs in _NAMES:
            name = re.sub(own, theirs, name)
        renamed[name] = tensor
    return renamed


def write_gguf(path: Path, state: Mapping[str, Tensor]) -> None:
    """All weights whose rows are long enough as Q8_0, others as float32."""
    writer, kind = gguf.GGUFWriter(str(path), "wan"), gguf.GGMLQuantizationType.Q8_0
    for name, tensor in state.items():
        values = tensor.float().contiguous().numpy()
        if tensor.ndim == 2 and tensor.shape[1] % BLOCK == 0:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan-Animate whose rows are long enough."""
    folder = write_model(tmp_path_factory.mktemp("models") / "plain", seeing=False)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    wider = {**config, "attention_head_dim": BLOCK // 2, "added_kv_proj_dim": BLOCK, "ffn_dim": BLOCK}
    shutil.rmtree(folder / "transformer")
    torch.manual_seed(0)
    kind: Any = WanAnimateTransformer3DModel
    kind.from_config(wider).save_pretrained(folder / "transformer")
    return folder


@pytest.fixture
def quantized(plain: Path, tmp_path: Path) -> Path:
    folder = copied(plain, tmp_path / "quantized")
    next((folder / "transformer").glob("*.safetensors")).unlink()
    write_gguf(folder / "transformer" / "q8.gguf", original(state_of(plain)))
    return folder


def state_of(folder: Path) -> dict[str, Tensor]:
    kind: Any = WanAnimateTransformer3DModel
    return kind.from_pretrained(folder / "transformer").state_dict()


def prediction(folder: Path) -> tuple[Tensor, torch.dtype]:
    """The transformer's output for fixed inputs, and the dtype in which it stores a large weight."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    with Engine.open(open_animator(folder), CPU) as engine, engine.resident("transformer"), torch.no_grad():
        network: Any = engine.networks["transformer"]
        (output,) = network(
            hidden_states=noise(1, 36, 4, 8, 8),
            timestep=torch.tensor([500]),
            encoder_hidden_states=noise(1, 8, 16),
            encoder_hidden_states_image=noise(1, 5, 4),
            pose_hidden_states=noise(1, 16, 3, 8, 8),
            face_pixel_values=noise(1, 3, 9, FACE, FACE),
            return_dict=False,
        )
        return output, network.blocks[0].attn1.to_q.weight.dtype


def test_a_quantised_file_predicts_nearly_the_same(plain, quantized):
    expected, full = prediction(plain)
    found, stored = prediction(quantized)
    assert (full, stored) == (torch.float32, torch.uint8)
    error = (found - expected).abs().mean() / expected.abs().mean()
    assert 0 < error < 0.02


def test_pointers_of_git_lfs_beside_a_quantised_file_are_not_read(quantized):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (quantized / "transformer" / "diffusion_pytorch_model-00001-of-00002.safetensors").write_bytes(pointer)
    assert prediction(quantized)[1] == torch.uint8
    (quantized / "transformer" / "q8.gguf").write_bytes(pointer)
    with pytest.raises(ModelDamaged, match=r"q8\.gguf: found a git-lfs pointer"):
        open_animator(quantized)


def test_a_file_that_lacks_a_tensor_is_refused(plain, quantized):
    state = original(state_of(plain))
    del state["blocks.1.cross_attn.v.weight"]
    write_gguf(quantized / "transformer" / "q8.gguf", state)
    missing = r"q8\.gguf does not fit its network: 1 missing tensor\(s\), first blocks\.1\.attn2\.to_v\.weight$"
    with pytest.raises(ModelDamaged, match=missing):
        prediction(quantized)
    shutil.copy(quantized / "transformer" / "q8.gguf", quantized / "transformer" / "q4.gguf")
    with pytest.raises(ModelDamaged, match=r"found 2 GGUF files \(q4\.gguf, q8\.gguf\), expected one"):
        prediction(quantized)


def test_a_file_with_a_tensor_that_the_network_does_not_have_is_refused(plain, quantized):
    state = {**original(state_of(plain)), "blocks.9.surplus.weight": torch.zeros(2, BLOCK), "extra": torch.zeros(3)}
    write_gguf(quantized / "transformer" / "q8.gguf", state)
    surplus = r"q8\.gguf does not fit its network: 2 surplus tensor\(s\), first blocks\.9\.surplus\.weight$"
    with pytest.raises(ModelDamaged, match=surplus):
        prediction(quantized)


def test_the_fixed_filters_of_published_files_are_no_surplus(plain, quantized):
    expected, _ = prediction(quantized)
    names = [f"motion_encoder.enc.net_app.convs.{n}.{part}.0.kernel" for n in (1, 2) for part in ("conv2", "skip")]
    write_gguf(
        quantized / "transformer" / "q8.gguf",
        {**original(state_of(plain)), **dict.fromkeys(names, torch.ones(4, 4))},
    )
    found, _ = prediction(quantized)
    assert torch.equal(found, expected)
