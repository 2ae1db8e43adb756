"""The Face Encoder: what depends on what, how it starts, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from stableanimator_cli.nets.face_encoder import FaceEncoder, FaceEncoderConfig

CONFIG = FaceEncoderConfig(cross_attention_dim=64, clip_embeddings_dim=48, depth=2)


@pytest.fixture(scope="module")
def trained() -> FaceEncoder:
    torch.manual_seed(4)
    encoder = FaceEncoder(CONFIG)
    torch.nn.init.normal_(encoder.fusion_model.proj_out.weight, std=0.1)
    return encoder.eval().requires_grad_(False)


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, 512, generator=generator) * 20, torch.randn(batch, 1, 48, generator=generator)


def test_four_tokens_a_face_that_depend_on_face_and_picture(trained):
    face, image = inputs()
    tokens = trained(face, image)
    assert tokens.shape == (2, 4, 64)
    assert (trained(face.roll(1, 0), image) - tokens).abs().max() > 0.1
    assert (trained(face, image.roll(1, 0)) - tokens).abs().max() > 0.01
    assert (tokens[:, 0] - tokens[:, 1]).abs().max() > 0.1


def test_a_batch_is_its_faces_one_by_one(trained):
    face, image = inputs()
    together = trained(face, image)
    for index in range(2):
        assert (trained(face[index : index + 1], image[index : index + 1]) - together[index]).abs().max() <= 1e-5


def test_a_fresh_encoder_gives_zero_tokens():
    """Why training starts from the picture alone: LayerNorm of a zero projection is exactly zero."""
    face, image = inputs()
    assert not FaceEncoder(CONFIG)(face, image).any()


def test_the_shortcut_adds_the_unfused_tokens(trained):
    face, image = inputs()
    fused = trained(face, image)
    plain, half, whole = (trained(face, image, shortcut=s) for s in (0.0, 0.5, 1.0))
    assert torch.allclose(whole - plain, fused, atol=1e-5)
    assert torch.allclose(half - plain, fused / 2, atol=1e-5)
    assert (plain - fused).abs().max() > 0.1


def test_half_precision_stays_near_float32(trained):
    face, image = inputs()
    half = FaceEncoder(CONFIG)
    half.load_state_dict(trained.state_dict())
    tokens = half.to(torch.bfloat16)(face.bfloat16(), image.bfloat16())
    assert tokens.dtype == torch.bfloat16
    reference = trained(face, image)
    assert (tokens.float() - reference).abs().max() <= 0.1 * reference.abs().max()


def test_the_full_size_has_the_published_number_of_weights():
    with torch.device("meta"):
        encoder = FaceEncoder(FaceEncoderConfig())
    assert sum(p.numel() for p in encoder.parameters()) == 57_183_232


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="cross_attention_dim 100 is not a multiple of 64"):
        FaceEncoderConfig(cross_attention_dim=100)
