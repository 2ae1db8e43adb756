"""Several people: each set of face tokens where its region is, and one person everywhere as without regions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from stableanimator_cli.bench.networks import random_weights
from stableanimator_cli.engine.cuda_graphs import GraphedCalls
from stableanimator_cli.engine.weights import fill
from stableanimator_cli.nets import id_adapter
from stableanimator_cli.nets import unet as nets_unet
from stableanimator_cli.nets.compiled import CompiledBlocks
from stableanimator_cli.nets.context import Context, resize_regions
from stableanimator_cli.nets.id_adapter import IDAdapter
from stableanimator_cli.nets.memory_format import set_channels_last
from stableanimator_cli.nets.unet import AnimationUNet
from stableanimator_cli.nets.unet_blocks import call_block
from tests.nets.test_id_adapter import BATCH, POSITIONS, adapter, layer  # noqa: F401 (a fixture)
from tests.nets.test_id_adapter import inputs as layer_inputs
from tests.random_model import TINY

FRAMES = 3
WIDTH = TINY["unet"]["cross_attention_dim"]
MODES = ("distribution", "addition", "norm", "off")


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build() -> AnimationUNet:
    return AnimationUNet(**TINY["unet"])


@pytest.fixture
def unet() -> AnimationUNet:
    return fill(build, random_weights(build), torch.float32, Path("random"))  # type: ignore[return-value]


def soft_regions(seed: int, sets: int, height: int = 8, width: int = 8, frames: int = FRAMES) -> Tensor:
    return noise(seed, frames, sets, height, width).mul(3).softmax(dim=1)


def one_hot(sets: int, chosen: int, height: int = 8, width: int = 8) -> Tensor:
    regions = torch.zeros(FRAMES, sets, height, width)
    regions[:, chosen] = 1
    return regions


def call(unet: AnimationUNet, context: Context, height: int = 8, width: int = 8) -> Tensor:
    ids = torch.tensor([[6.0, 127.0, 0.02]])
    return unet(noise(1, 1, FRAMES, 8, height, width), 0.5, context, ids, noise(4, FRAMES, 32, height, width))


def context_of(sets: int, regions: Tensor | None) -> Context:
    """``sets`` sets of tokens, of which the first is the same whatever their number."""
    face = torch.cat([noise(30 + index, 1, 4, WIDTH) for index in range(sets)], dim=1)
    return Context(noise(2, 1, 1, WIDTH), face, regions=regions)


def layer_sets(sets: int) -> tuple[Tensor, Tensor, Tensor]:
    hidden, image, _ = layer_inputs()
    return hidden, image, noise(5, BATCH, 4 * sets, image.shape[-1])


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_features_are_the_weighted_sum_of_each_sets_own_attention(layer, mode, monkeypatch):  # noqa: F811
    ours = adapter(mode)
    hidden, image, face = layer_sets(3)
    weights = noise(6, 3, BATCH, POSITIONS, 1).softmax(dim=0)
    query = layer.to_q(hidden)
    alone = [id_adapter.attend(layer, query, ours.id_to_k(f), ours.id_to_v(f)) for f in face.split(4, 1)]
    base = id_adapter.attend(layer, query, layer.to_k(image), layer.to_v(image))
    mixed = sum(weight * part for weight, part in zip(weights, alone, strict=True))
    expected = base if mode == "off" else ours._add(base, mixed, 1.0, repeats=1)
    expected = id_adapter.project_out(layer, expected)
    found = ours.cross_attention(layer, hidden, image, face, None, weights)
    assert (found - expected).abs().max() <= 1e-6
    jointly = ours.cross_attention(layer, hidden, image, face)  # one softmax over all tokens is something else
    assert mode == "off" or (found - jointly).abs().max() > 1e-2


@torch.no_grad()
def test_a_position_in_one_region_gets_that_persons_features(layer, monkeypatch):  # noqa: F811
    """Added without alignment, whose statistics are those of all positions, the output shows them directly."""
    ours = adapter("addition")
    hidden, image, face = layer_sets(3)
    weights = noise(6, 3, BATCH, POSITIONS, 1).softmax(dim=0)
    owner = {0: 1, 4: 0, 9: 2}  # position: set
    for position, index in owner.items():
        weights[:, :, position] = 0
        weights[index, :, position] = 1
    found = ours.cross_attention(layer, hidden, image, face, None, weights)
    for position, index in owner.items():
        alone = ours.cross_attention(layer, hidden, image, face.split(4, 1)[index])
        assert torch.equal(found[:, position], alone[:, position])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_one_person_everywhere_is_one_set_to_the_bit(mode, prepared, dtype):
    build = lambda: AnimationUNet(id_mode=mode, **TINY["unet"])  # noqa: E731
    unet = fill(build, random_weights(build), dtype, Path("random"))
    ids = torch.tensor([[6.0, 127.0, 0.02]])
    one, several = (
        replace(context, image=context.image.to(dtype), face=context.face.to(dtype))
        for context in (context_of(1, None), context_of(3, one_hot(3, 0, 7, 9)))
    )
    outputs = [
        unet(noise(1, 1, FRAMES, 8, 7, 9).to(dtype), 0.5, unet.prepare(given) if prepared else given, ids.to(dtype))
        for given in (one, several)
    ]
    assert torch.equal(*outputs)
    assert outputs[0].float().std() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("mode", ["distribution", "addition", "norm"])
def test_the_order_of_people_does_not_matter(mode, prepared):
    build = lambda: AnimationUNet(id_mode=mode, **TINY["unet"])  # noqa: E731
    unet = fill(build, random_weights(build), torch.float32, Path("random"))
    regions = soft_regions(7, 3)
    given = context_of(3, regions)
    first, second, nobody = given.face.split(4, dim=1)
    swapped = Context(given.image, torch.cat([second, first, nobody], 1), regions=regions[:, [1, 0, 2]])
    vectors_only = replace(swapped, regions=regions)
    outputs = [call(unet, unet.prepare(c) if prepared else c) for c in (given, swapped, vectors_only)]
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-5  # sums in another order
    assert (outputs[0] - outputs[2]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("sides", [(8, 8), (7, 9), (5, 8), (1, 3)])
def test_prepared_and_full_attention_agree_with_regions_of_every_size(unet, sides):
    context = context_of(3, soft_regions(8, 3, *sides))
    full, prepared = (call(unet, given, *sides) for given in (context, unet.prepare(context)))
    assert torch.isfinite(full).all()
    assert (full - prepared).abs().max() <= 1e-5


@pytest.mark.parametrize("size", [(4, 5), (4, 4), (2, 3), (1, 1), (7, 9)])
def test_smaller_regions_are_averages_that_still_sum_to_one(size):
    regions = soft_regions(9, 3, 7, 9)
    small = resize_regions(regions, size)
    assert small.shape == (FRAMES, 3, *size)
    assert (small.sum(1) - 1).abs().max() <= 1e-6
    assert torch.equal(resize_regions(one_hot(3, 0, 7, 9), size), one_hot(3, 0, *size))  # 1 and 0 stay 1 and 0
    if size == (7, 9):
        assert small is regions
    if size == (1, 1):
        assert (small[..., 0, 0] - regions.mean((2, 3))).abs().max() <= 1e-6


def test_a_batch_of_two_videos_equals_two_singles(unet):
    regions, face, image = soft_regions(10, 3, frames=2 * FRAMES), noise(11, 2, 12, WIDTH), noise(12, 2, 1, WIDTH)
    sample, ids = noise(1, 2, FRAMES, 8, 8, 8), torch.tensor([[6.0, 127.0, 0.02]]).repeat(2, 1)
    for prepare in (unet.prepare, lambda context: context):
        with torch.no_grad():
            both = unet(sample, 0.5, prepare(Context(image, face, regions=regions)), ids)
            singles = [
                unet(
                    sample[k : k + 1], 0.5,
                    prepare(Context(image[k : k + 1], face[k : k + 1], regions=regions.split(FRAMES)[k])), ids[:1],
                )
                for k in range(2)
            ]  # fmt: skip
        assert (both - torch.cat(singles)).abs().max() <= 1e-5


@torch.no_grad()
def test_a_sample_without_a_face_gets_image_features_alone(unet):
    context = context_of(3, soft_regions(7, 3))
    none = call(unet, Context(context.image, None))
    assert (call(unet, replace(context, has_face=torch.zeros(1))) - none).abs().max() <= 1e-5
    assert torch.equal(call(unet, replace(context, has_face=torch.ones(1))), call(unet, context))


@torch.no_grad()
def test_zero_tokens_need_no_regions(unet):
    """Guidance's unconditional branch."""
    several = replace(context_of(3, soft_regions(7, 3)), face=torch.zeros(1, 12, WIDTH))
    one = replace(several, face=torch.zeros(1, 4, WIDTH), regions=None)
    assert torch.equal(call(unet, several), call(unet, one))
    assert torch.equal(call(unet, unet.prepare(several)), call(unet, unet.prepare(one)))


@pytest.mark.parametrize("checkpointing", ["off", "blocks", "diffusers"])
def test_gradients_reach_every_person_by_their_region(unet, checkpointing):
    unet.checkpointing = checkpointing
    face = context_of(3, None).face.requires_grad_(True)
    regions = torch.zeros(FRAMES, 3, 8, 8)
    regions[:, 0, :, :4], regions[:, 2, :, 4:] = 1, 1  # the second person is nowhere
    call(unet, Context(noise(2, 1, 1, WIDTH), face, regions=regions)).square().sum().backward()
    first, second, nobody = (part.abs().max() for part in face.grad.split(4, dim=1))
    assert first > 0 < nobody
    assert second == 0
    if checkpointing != "off":
        given = face.grad.clone()
        face.grad, unet.checkpointing = None, "off"
        call(unet, Context(noise(2, 1, 1, WIDTH), face, regions=regions)).square().sum().backward()
        assert torch.equal(face.grad, given)


@torch.no_grad()
def test_deep_features_of_the_same_call_give_its_output_to_the_bit(unet):
    context = unet.prepare(context_of(3, soft_regions(7, 3, 7, 9)))
    inputs = (noise(1, 1, FRAMES, 8, 7, 9), 0.5, context, torch.tensor([[6.0, 127.0, 0.02]]))
    output, deep = unet.forward_caching(*inputs, layers=2)
    assert torch.equal(output, unet(*inputs))
    assert torch.equal(unet.forward_cached(*inputs, layers=2, deep=deep), output)


@torch.no_grad()
def test_feed_forward_chunks_and_channels_last_give_the_same(unet):
    context = unet.prepare(context_of(3, soft_regions(7, 3)))
    expected = call(unet, context)
    unet.ff_chunks = 4
    assert (call(unet, context) - expected).abs().max() <= 1e-5
    set_channels_last(unet)
    assert (call(unet, context) - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_compiled_blocks_share_one_graph_whatever_the_regions(unet):
    torch._dynamo.reset()
    block = unet.get_submodule("up_blocks.1.attentions.0.transformer_blocks.0")
    run, before = CompiledBlocks("eager"), counters["stats"]["unique_graphs"]
    context = unet.prepare(context_of(3, soft_regions(7, 3)))
    for seed in (7, 8):
        own = nets_unet.block_context(context, block, soft_regions(seed, 3))
        given = (block, noise(5, FRAMES, 64, 32), *own, FRAMES, 1)
        expected = call_block(nets_unet._spatial_block, *given)
        assert torch.allclose(run(nets_unet._spatial_block, *given), expected, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == before + 1


@torch.no_grad()
def test_a_recorded_call_reads_the_regions_of_each_window(unet):
    recorded = []

    def record(run):
        recorded.append(run())
        return (lambda: recorded[-1].copy_(run())), recorded[-1]

    calls = GraphedCalls(unet, record)
    context = unet.prepare(context_of(3, soft_regions(7, 3)))
    sample, ids, pose = noise(1, 1, FRAMES, 8, 8, 8), torch.tensor([[6.0, 127.0, 0.02]]), noise(4, FRAMES, 32, 8, 8)
    outputs = []
    for seed in (7, 8, 7):
        window = replace(context, regions=soft_regions(seed, 3))
        outputs.append(calls(sample, 0.5, window, ids, pose))
        assert torch.equal(outputs[-1], unet(sample, 0.5, window, ids, pose))
    assert len(recorded) == 1
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], outputs[1])
    assert torch.equal(context.regions, soft_regions(7, 3))  # the caller's tensor is not written to


@torch.no_grad()
@pytest.mark.parametrize(
    ("sets", "regions", "message"),
    [
        (3, None, "12 face tokens without regions, expected 4"),
        (3, (FRAMES, 2, 8, 8), r"regions of shape \[3,? ?2,? ?8,? ?8\], expected \[3,3,8,8\] for 12 face tokens"),
        (2, (FRAMES, 2, 8, 4), r"expected \[3,2,8,8\] for 8 face tokens"),
        (2, (1, 2, 8, 8), r"expected \[3,2,8,8\]"),
        (2, (FRAMES, 2, 8), r"expected \[3,2,8,8\]"),
    ],
)
def test_tokens_and_regions_that_do_not_fit_are_refused(unet, sets, regions, message):
    context = context_of(sets, None if regions is None else torch.ones(regions))
    with pytest.raises(ValueError, match=message):
        call(unet, context)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite_with_large_tokens(unet, dtype):
    unet = unet.to(dtype)
    context = context_of(3, soft_regions(7, 3))
    given = Context(context.image.to(dtype) * 20, context.face.to(dtype) * 20, regions=context.regions)
    ids = torch.tensor([[6.0, 127.0, 0.02]], dtype=dtype)
    for each in (given, unet.prepare(given)):
        output = unet(noise(1, 1, FRAMES, 8, 8, 8).to(dtype), 0.5, each, ids)
        assert output.dtype == dtype
        assert torch.isfinite(output).all()


def test_an_adapter_projects_each_set_by_itself():
    ours = IDAdapter(32, 24).requires_grad_(False)
    face = noise(3, 2, 12, 24)
    keys, values = ours.project_face(face)
    for index, part in enumerate(face.split(4, 1)):
        assert torch.equal(keys[:, 4 * index : 4 * index + 4], ours.id_to_k(part))
        assert torch.equal(values[:, 4 * index : 4 * index + 4], ours.id_to_v(part))
