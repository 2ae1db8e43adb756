"""Deep features taken again: exact where they are of the same call, and the work that is left otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from stableanimator_cli.bench.counters import count_flops
from stableanimator_cli.bench.networks import FULL, network_on_meta, open_bench_model
from stableanimator_cli.engine.memory.profile import prepare_context
from tests.nets.test_unet import inputs, noise, unet_of
from tests.random_model import TINY, weights


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def unet():
    return unet_of(weights("unet", TINY, 0, torch.float32))


@pytest.mark.parametrize("sides", [(8, 8), (7, 9)])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_features_of_the_same_call_give_its_answer_to_the_bit(unet, layers, sides):
    assert unet.num_up_layers == 4
    sample, tokens, ids, pose = inputs(2, *sides)
    whole = unet(sample, 0.7, tokens, ids, pose)
    answer, deep = unet.forward_caching(sample, 0.7, tokens, ids, pose, layers=layers)
    assert torch.equal(answer, whole)
    assert torch.equal(unet.forward_cached(sample, 0.7, tokens, ids, pose, layers=layers, deep=deep), whole)
    # features lie where they are smallest: in front of the upsampler
    assert deep.shape[-2:] == (sides if layers == 1 else tuple(-(-side // 2) for side in sides))


def test_features_of_another_level_are_felt_and_so_are_latents_and_pose_of_this_one(unet):
    sample, tokens, ids, pose = inputs()
    _, deep = unet.forward_caching(sample, 0.7, tokens, ids, pose, layers=1)

    def again(x, moved):
        return unet.forward_cached(x, 0.6, tokens, ids, moved, layers=1, deep=deep)

    other = sample + 0.1 * noise(9, *sample.shape)
    near = again(other, pose)
    for changed in (unet(other, 0.6, tokens, ids, pose), again(sample, pose), again(other, 2 * pose)):
        assert (changed - near).abs().max() > 1e-3


def test_what_is_left_of_the_released_network_to_compute():
    """FLOPs of a call that takes features again, in shares of a whole one, at 16 frames of 576x1024."""
    model = open_bench_model(FULL)
    unet: Any = network_on_meta(model, "unet", torch.bfloat16)
    like = {"device": "meta", "dtype": torch.bfloat16}
    width = unet.config["cross_attention_dim"]
    context = prepare_context(unet, torch.empty(1, 1, width, **like), torch.empty(1, unet.id_tokens, width, **like))
    given = (
        torch.empty(1, 16, 8, 72, 128, **like), 1.0, context, torch.empty(1, 3, **like),
        torch.empty(16, 320, 72, 128, **like),
    )  # fmt: skip
    whole = count_flops(lambda: unet(*given))
    assert unet.num_up_layers == 12
    shares = []
    for layers in (1, 2, 3):
        _, deep = unet.forward_caching(*given, layers=layers)
        part = count_flops(lambda layers=layers, deep=deep: unet.forward_cached(*given, layers=layers, deep=deep))
        shares.append(part / whole)
    assert shares == pytest.approx([0.082, 0.246, 0.434], abs=0.02)
