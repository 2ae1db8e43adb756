"""The ID adapter against Eq. 2 written plainly, and where its numbers could break."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from stableanimator_cli.engine.memory.profile import PeakMemoryMode
from stableanimator_cli.nets.id_adapter import IDAdapter

WIDTH, CROSS, HEADS = 32, 24, 2
BATCH, POSITIONS = 3, 10


@pytest.fixture(scope="module")
def layer() -> Attention:
    torch.manual_seed(11)
    attn = Attention(query_dim=WIDTH, cross_attention_dim=CROSS, heads=HEADS, dim_head=WIDTH // HEADS)
    return attn.requires_grad_(False)


def adapter(mode: str = "distribution", seed: int = 12) -> IDAdapter:
    torch.manual_seed(seed)
    return IDAdapter(WIDTH, CROSS, mode=mode).requires_grad_(False)  # type: ignore[arg-type]


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, image token, face tokens."""
    generator = torch.Generator().manual_seed(13)
    shapes = ((BATCH, POSITIONS, WIDTH), (BATCH, 1, CROSS), (BATCH, 4, CROSS))
    hidden, image, face = (torch.randn(shape, generator=generator) for shape in shapes)
    return hidden, image, face


def plain(layer: Attention, ours: IDAdapter, hidden: Tensor, image: Tensor, face: Tensor, mode: str) -> Tensor:
    """Frame by frame and head by head, as the equation reads."""
    frames = []
    for x, e, i in zip(hidden, image, face, strict=True):

        def attention(k: Tensor, v: Tensor, q: Tensor) -> Tensor:
            heads = []
            for h in range(HEADS):
                part = slice(h * WIDTH // HEADS, (h + 1) * WIDTH // HEADS)
                weight = F.softmax(q[:, part] @ k[:, part].T / (WIDTH // HEADS) ** 0.5, dim=-1)
                heads.append(weight @ v[:, part])
            return torch.cat(heads, dim=-1)

        q = layer.to_q(x)
        a = attention(layer.to_k(e), layer.to_v(e), q)
        p = attention(ours.id_to_k(i), ours.id_to_v(i), q)
        if mode == "distribution":
            p = (p - p.mean()) * (a.std() / (p.std() + 1e-5)) + a.mean()
        elif mode == "norm":
            p = (p - p.mean()) / (p.std() + 1e-5)
        elif mode == "off":
            p = torch.zeros_like(p)
        frames.append(layer.to_out[0](a + p))
    return torch.stack(frames)


@pytest.mark.parametrize("mode", ["distribution", "addition", "norm", "off"])
def test_every_mode_is_its_equation(layer, mode):
    ours = adapter(mode)
    hidden, image, face = inputs()
    expected = plain(layer, ours, hidden, image, face, mode)
    assert (ours(layer, hidden, torch.cat([image, face], dim=1)) - expected).abs().max() <= 1e-5
    assert (ours.cross_attention(layer, hidden, image, face) - expected).abs().max() <= 1e-5


def test_modes_differ_from_one_another(layer):
    hidden, image, face = inputs()
    modes = ("distribution", "addition", "norm", "off")
    outputs = [adapter(mode).cross_attention(layer, hidden, image, face) for mode in modes]
    gaps = [(a - b).abs().max() for k, a in enumerate(outputs) for b in outputs[k + 1 :]]
    assert min(gaps) > 1e-3


@pytest.mark.parametrize("mode", ["distribution", "addition", "norm", "off"])
@pytest.mark.parametrize("kind", ["face", "zero face", "no face"])
def test_the_short_way_equals_the_long_way_for_several_frames_a_video(layer, mode, kind):
    """One video of ``BATCH`` frames: tokens given once, prepared once."""
    ours = adapter(mode)
    hidden, image, face = inputs()
    image, face = image[:1], face[:1] * (kind == "face")
    given = None if kind == "no face" else face
    prepared = ours.prepare(layer, image, given)
    assert prepared is not None
    assert (prepared.constant is None) == (kind == "face" and mode != "off")
    long = ours.cross_attention(
        layer, hidden, image.expand(BATCH, -1, -1), None if given is None else given.expand(BATCH, -1, -1)
    )
    assert (ours.apply(layer, hidden, prepared, BATCH) - long).abs().max() <= 1e-5


def test_alignment_gives_face_features_the_image_features_mean_and_spread(layer, monkeypatch):
    """With to_out taken away the output is A + P', so P' can be looked at."""
    ours = adapter()
    hidden, image, face = inputs()
    base = layer.to_v(image).expand(-1, POSITIONS, -1)
    monkeypatch.setattr("stableanimator_cli.nets.id_adapter.project_out", lambda _, x: x)
    aligned = ours.cross_attention(layer, hidden, image, face) - base
    assert torch.allclose(aligned.mean((1, 2)), base.mean((1, 2)), atol=1e-5)
    assert torch.allclose(aligned.std((1, 2)), base.std((1, 2)), rtol=1e-3)


@pytest.mark.parametrize("mode", ["distribution", "addition", "norm"])
def test_frames_without_a_face_and_a_smaller_scale_get_their_share(layer, mode):
    ours, none = adapter(mode), adapter("off")
    hidden, image, face = inputs()
    has_face = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    without, whole = (each.cross_attention(layer, hidden, image, face) for each in (none, ours))
    expected = torch.where(has_face > 0, whole, without)
    assert (ours.cross_attention(layer, hidden, image, face, has_face) - expected).abs().max() <= 1e-6
    ours.scale = 0.25
    part = ours.cross_attention(layer, hidden, image, face)
    assert (part - (without + 0.25 * (whole - without))).abs().max() <= 1e-5


def test_alignment_passes_over_the_features_three_times():
    ours, faces, base = adapter(), torch.empty(4, 64, WIDTH, device="meta"), torch.empty(4, 1, WIDTH, device="meta")
    with torch.no_grad(), PeakMemoryMode() as found:
        ours._add(base, faces, 1.0, repeats=64)
    assert found.peak < 2.2 * faces.numel() * 4  # what is centred, and the sum


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["distribution", "norm"])
def test_constant_face_features_give_no_nan_in_half_precision(layer, dtype, mode):
    """Zero tokens make P constant; image features spread wider than 0.65 overflowed float16's 1e-5 in the reference."""
    hidden, image, _ = (x.to(dtype) for x in inputs())
    half, ours = Attention(WIDTH, CROSS, heads=HEADS, dim_head=WIDTH // HEADS).to(dtype), adapter(mode).to(dtype)
    half.load_state_dict(layer.state_dict())
    face = torch.zeros(BATCH, 4, CROSS, dtype=dtype)
    image = image * 8
    assert half.to_v(image).float().std() > 0.65
    long = ours.cross_attention(half, hidden, image, face)
    short = ours.apply(half, hidden, ours.prepare(half, image, face), 1)
    assert long.dtype == short.dtype == dtype
    assert torch.isfinite(long).all()
    assert (long.float() - short.float()).abs().max() <= 0.02 * long.float().abs().max()


def test_at_the_start_of_training_the_adapter_adds_the_image_features_mean(layer):
    ours = adapter()
    hidden, image, face = inputs()
    base = layer.to_v(image)
    expected = layer.to_out[0](base + base.mean((1, 2), keepdim=True)).expand(-1, POSITIONS, -1)
    assert (ours.cross_attention(layer, hidden, image, torch.zeros_like(face)) - expected).abs().max() <= 1e-5


def test_an_unknown_mode_and_missing_tokens_are_refused(layer):
    with pytest.raises(ValueError, match="ID adapter mode 'both'"):
        adapter("both")
    with pytest.raises(ValueError, match="needs encoder_hidden_states"):
        adapter()(layer, inputs()[0])
