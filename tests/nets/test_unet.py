"""The UNet's two ways are one: contexts prepared once against every layer computed anew on every call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from stableanimator_cli.bench.counters import track_memory
from stableanimator_cli.nets import unet_blocks
from stableanimator_cli.nets.context import Context
from stableanimator_cli.nets.id_adapter import IDAdapter
from stableanimator_cli.nets.unet import AnimationUNet
from tests.random_model import TINY, weights

FRAMES = 3
WIDTH = TINY["unet"]["cross_attention_dim"]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return weights("unet", TINY, 0, torch.float32)


def unet_of(state: dict[str, Tensor], mode: str = "distribution") -> AnimationUNet:
    unet = AnimationUNet(id_mode=mode, **TINY["unet"])  # type: ignore[arg-type]
    unet.load_state_dict(state)
    return unet.eval()


@pytest.fixture(scope="module")
def unet(state) -> AnimationUNet:
    return unet_of(state)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(batch: int = 1, height: int = 8, width: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sample, tokens (one image, four face), time ids and pose features."""
    return (
        noise(1, batch, FRAMES, 8, height, width),
        noise(2, batch, 5, WIDTH),
        torch.tensor([[6.0, 127.0, 0.02]]).repeat(batch, 1),
        noise(3, batch * FRAMES, 32, height, width),
    )


def contexts(tokens: Tensor) -> dict[str, Context]:
    return {
        "conditional": Context(tokens[:, :1], tokens[:, 1:]),
        "unconditional": Context(torch.zeros_like(tokens[:, :1]), torch.zeros_like(tokens[:, 1:])),
        "no face": Context(tokens[:, :1], None),
        "image and zero face": Context(tokens[:, :1], torch.zeros_like(tokens[:, 1:])),
    }


@pytest.mark.parametrize("branch", contexts(torch.zeros(1, 5, 1)))
@pytest.mark.parametrize("mode", ["distribution", "addition", "norm", "off"])
def test_prepared_contexts_equal_the_long_way(state, mode, branch):
    unet = unet_of(state, mode)
    sample, tokens, ids, pose = inputs()
    context = contexts(tokens)[branch]
    prepared = unet.prepare(context)
    assert len(prepared.layers) == len(unet.spatial_cross_attentions()) + len(unet.temporal_cross_attentions())
    long, short = (unet(sample, 0.7, c, ids, pose) for c in (context, prepared))
    assert long.std() > 0.1
    assert (long - short).abs().max() <= 1e-5


@pytest.mark.parametrize(("height", "width"), [(7, 9), (8, 5), (9, 8)])
def test_latents_of_odd_sides_go_through_both_ways(unet, height, width):
    sample, tokens, ids, pose = inputs(height=height, width=width)
    context = contexts(tokens)["conditional"]
    long, short = (unet(sample, 0.7, c, ids, pose) for c in (context, unet.prepare(context)))
    assert long.shape == (1, FRAMES, 4, height, width)
    assert (long - short).abs().max() <= 1e-5


@pytest.mark.parametrize("prepared", [False, True])
def test_a_batch_of_two_equals_two_singles(unet, prepared):
    sample, tokens, ids, pose = inputs(batch=2)
    ids[1, 0] = 11.0  # each video has its own rate
    steps = torch.tensor([0.7, -0.4])

    def run(rows: slice) -> Tensor:
        context = contexts(tokens[rows])["conditional"]
        features = pose.view(2, FRAMES, *pose.shape[1:])[rows].flatten(0, 1)
        return unet(sample[rows], steps[rows], unet.prepare(context) if prepared else context, ids[rows], features)

    both = run(slice(0, 2))
    singles = torch.cat([run(slice(0, 1)), run(slice(1, 2))])
    assert (both[0] - both[1]).abs().max() > 0.1
    assert (both - singles).abs().max() <= 1e-5


def test_without_a_face_the_walk_is_the_stock_networks(state):
    """Our walk through diffusers' blocks against diffusers' own, face tokens and pose left out."""
    stock = UNetSpatioTemporalConditionModel(**TINY["unet"])
    stock.load_state_dict({name: tensor for name, tensor in state.items() if ".processor." not in name})
    sample, tokens, ids, _ = inputs(height=7, width=9)
    theirs = stock.eval()(sample, 0.7, tokens[:, :1], ids).sample
    ours = unet_of(state)(sample, 0.7, Context(tokens[:, :1], None), ids)
    assert (ours - theirs).abs().max() <= 1e-5


def test_tokens_as_one_tensor_are_image_then_face(unet):
    sample, tokens, ids, pose = inputs()
    split = unet(sample, 0.7, Context(tokens[:, :1], tokens[:, 1:]), ids, pose)
    assert torch.equal(unet(sample, 0.7, tokens, ids, pose), split)
    assert unet.context(tokens, face=False).face is None


def test_pose_changes_the_output_and_is_felt_in_its_own_frame_first(unet):
    sample, tokens, ids, pose = inputs()
    calm = torch.zeros_like(pose)
    calm[1] = pose[1]
    moved = unet(sample, 0.7, tokens, ids, calm) - unet(sample, 0.7, tokens, ids, None)
    by_frame = moved[0].abs().mean((1, 2, 3))
    assert by_frame.argmax() == 1
    assert by_frame.min() > 0  # through temporal attention the others feel it too


def test_image_only_leaves_frames_to_themselves(unet):
    sample, tokens, ids, pose = inputs()
    other = sample.clone()
    other[:, 0] = 0
    alone, changed = (unet(x, 0.7, tokens, ids, pose, image_only=True) for x in (sample, other))
    assert torch.equal(alone[:, 1:], changed[:, 1:])
    assert not torch.equal(alone[:, 0], changed[:, 0])
    mixed, felt = (unet(x, 0.7, tokens, ids, pose) for x in (sample, other))
    assert (mixed[:, 1:] - felt[:, 1:]).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("branch", ["conditional", "unconditional", "image and zero face"])
def test_half_precision_stays_finite_where_the_face_encoder_says_nothing(state, dtype, prepared, branch):
    unet = unet_of(state).to(dtype)
    sample, tokens, ids, pose = (x.to(dtype) for x in inputs())
    context = contexts(tokens * 20)[branch]
    output = unet(sample, 0.7, unet.prepare(context) if prepared else context, ids, pose)
    assert output.dtype == dtype
    assert torch.isfinite(output).all()


def test_temporal_attention_is_given_the_image_token_alone(unet):
    sample, tokens, ids, pose = inputs()
    seen: list[Tensor] = []
    layers = unet.temporal_cross_attentions().values()
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
        )
        for layer in layers
    ]
    try:
        unet(sample, 0.7, tokens, ids, pose)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(seen) == len(layers) > 0
    assert all(given.shape[1] == 1 and (given == tokens[:, :1]).all() for given in seen)


def test_prepared_temporal_attention_knows_no_face(unet):
    _, tokens, _, _ = inputs()
    one, two = (unet.prepare(Context(tokens[:, :1], face)) for face in (tokens[:, 1:], -tokens[:, 1:]))
    for layer in unet.temporal_cross_attentions().values():
        assert torch.equal(one.layers[layer].constant, two.layers[layer].constant)
    for layer in unet.spatial_cross_attentions().values():
        assert not torch.equal(one.layers[layer].keys, two.layers[layer].keys)


def test_with_adapters_off_face_tokens_change_nothing(state):
    sample, tokens, ids, pose = inputs()
    other = tokens.clone()
    other[:, 1:] = -3
    silent = unet_of(state, "off")
    assert torch.equal(silent(sample, 0.7, tokens, ids, pose), silent(sample, 0.7, other, ids, pose))
    heard = unet_of(state)
    assert (heard(sample, 0.7, tokens, ids, pose) - heard(sample, 0.7, other, ids, pose)).abs().max() > 1e-3


def test_adapters_stand_in_every_spatial_cross_attention_and_only_there(unet):
    adapters = {name for name, module in unet.named_modules() if isinstance(module, IDAdapter)}
    assert adapters == {f"{name}.processor" for name in unet.spatial_cross_attentions()}
    # one a transformer: down 1, mid 1, up 2 (a block has one more on the way up)
    assert len(adapters) == 4
    assert not any("temporal" in name for name in adapters)
    assert all("temporal" in name for name in unet.temporal_cross_attentions())


def test_adapters_start_from_their_own_layers_attention(state):
    unet = unet_of(state)
    layers = list(unet.spatial_cross_attentions().values())
    assert not any(torch.equal(layer.processor.id_to_k.weight, layer.to_k.weight) for layer in layers)
    unet.init_adapters_from_attention()
    for layer in layers:
        assert torch.equal(layer.processor.id_to_k.weight, layer.to_k.weight)
        assert torch.equal(layer.processor.id_to_v.weight, layer.to_v.weight)
        assert layer.processor.id_to_k.weight.data_ptr() != layer.to_k.weight.data_ptr()  # a copy: both can be trained


def test_several_image_tokens_leave_nothing_to_prepare(unet):
    sample, tokens, ids, pose = inputs()
    context = Context(tokens[:, :2], tokens[:, 1:])
    assert unet.prepare(context).layers == {}
    assert torch.equal(unet(sample, 0.7, unet.prepare(context), ids, pose), unet(sample, 0.7, context, ids, pose))


@pytest.mark.parametrize("branch", ["conditional", "unconditional", "no face"])
@pytest.mark.parametrize("batch", [1, 2])
def test_feed_forward_layers_in_pieces_change_nothing(state, batch, branch):
    unet = unet_of(state)
    sample, tokens, ids, pose = inputs(batch, height=7)  # 56 positions do not divide by 5
    prepared = unet.prepare(contexts(tokens)[branch])
    whole = unet(sample, 0.7, prepared, ids, pose)
    for pieces in (2, 5, 256):
        unet.ff_chunks = pieces
        assert (unet(sample, 0.7, prepared, ids, pose) - whole).abs().max() <= 1e-5


def test_feed_forward_layers_in_pieces_need_less_memory(state):
    unet, (sample, tokens, ids, pose) = unet_of(state), inputs(height=32, width=32)
    prepared, peaks = unet.prepare(Context(tokens[:, :1], tokens[:, 1:])), []
    for pieces in (1, 4):
        unet.ff_chunks = pieces
        peaks.append(track_memory(lambda: unet(sample, 0.7, prepared, ids, pose)).peak)
    assert peaks[1] < 0.85 * peaks[0], peaks


@pytest.mark.parametrize("shape", [(6, 1500, 64), (1500, 6, 64), (2, 3, 64)])
def test_a_cpu_computes_feed_forward_layers_in_small_chunks(monkeypatch, shape):
    torch.manual_seed(0)
    norm, feed, x = nn.LayerNorm(64), FeedForward(64, activation_fn="geglu"), torch.randn(shape)
    expected, memory = x + feed(norm(x)), {}
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(unet_blocks, "CACHED_DEVICES", {device})
        given = x.clone()
        assert (unet_blocks.feed_forward(norm, feed, given, 1) - expected).abs().max() <= 2e-6
        given = x.clone()
        memory[device] = track_memory(lambda: unet_blocks.feed_forward(norm, feed, given, 1)).peak  # noqa: B023
    if x.numel() > 2**18:
        assert memory["cpu"] < 0.6 * memory["cuda"], memory


def test_feed_forward_layers_without_gates_stay_as_they_are():
    norm, feed, x = nn.LayerNorm(64), FeedForward(64, activation_fn="gelu"), torch.randn(2, 3, 64)
    assert torch.equal(unet_blocks.feed_forward(norm, feed, x.clone(), 1), x + feed(norm(x)))


def test_training_keeps_its_graph_whatever_the_pieces(state):
    unet, (sample, tokens, ids, pose) = unet_of(state), inputs()
    gradients = []
    for pieces in (1, 4):
        unet.ff_chunks = pieces
        with torch.enable_grad():
            given = sample.clone().requires_grad_(True)
            unet(given, 0.7, tokens, ids, pose).sum().backward()
        gradients.append(given.grad)
    assert torch.equal(*gradients)
