"""Renderings of several people: whose face goes where, what one person must be, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stableanimator_cli import catalogue
from stableanimator_cli.config.animate import DeviceConfig, SamplingConfig
from stableanimator_cli.engine import parallel
from stableanimator_cli.engine.backbones.svd import BACKBONE
from stableanimator_cli.engine.conditioning import PeopleFaces
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.memory.profile import PeakMemoryMode
from stableanimator_cli.engine.parallel_messages import PackedFrames, decode_job, encode_job
from stableanimator_cli.engine.render import RenderRequest, SampleOptions, Timings, sample
from stableanimator_cli.errors import ModelDamaged
from tests.engine.memory_samples import FRAMES, config, prediction
from tests.engine.memory_samples import SIZE as MEMORY_SIZE
from tests.engine.test_parallel import forked  # noqa: F401 (a fixture)
from tests.engine.test_parallel_messages import Drawn, job_of
from tests.tiny import engine_of, rendered, request

LEFT, RIGHT = 0, 1


def vectors(people: int = 2) -> np.ndarray:
    return np.random.default_rng(21).standard_normal((people, 512)).astype(np.float32)


def side_by_side(frames: int, cells: tuple[int, int] = (8, 8)) -> np.ndarray:
    """Two people left and right, soft between them, nobody below: float32[t,3,h,w]."""
    width, height = cells
    right = np.broadcast_to(np.linspace(-1, 2, width, dtype=np.float32).clip(0, 1), (frames, height, width)).copy()
    regions = np.stack([1 - right, right, np.zeros_like(right)], axis=1)
    below = slice(3 * height // 4, None)
    regions[:, :2, below], regions[:, 2, below] = 0, 1
    return regions


def everywhere(frames: int, people: int, person: int, cells: tuple[int, int] = (8, 8)) -> np.ndarray:
    regions = np.zeros((frames, people + 1, *cells[::-1]), np.float32)
    regions[:, person] = 1
    return regions


def with_people(given: RenderRequest, vectors: np.ndarray, regions: np.ndarray) -> RenderRequest:
    return replace(given, face=PeopleFaces(vectors=vectors, regions=regions))


@pytest.fixture(scope="module")
def engine(tiny_model):
    with engine_of(tiny_model) as opened:
        yield opened


def latents_of(engine: Engine, given: RenderRequest, **more: Any) -> Tensor:
    return sample(engine, given, Timings(), SampleOptions(**more))


@pytest.mark.parametrize("people", [1, 2])
@pytest.mark.parametrize("sampling", [{"guidance": (3.0, 3.0)}, {"sampler": "heun", "blend": "shifted"}])
def test_one_person_everywhere_is_one_vector_to_the_bit(engine, people, sampling):
    given = request(7, **sampling)
    faces = vectors(people)
    faces[0] = given.face
    one = latents_of(engine, given)
    assert torch.equal(latents_of(engine, with_people(given, faces, everywhere(7, people, 0))), one)
    if people == 2:
        assert (latents_of(engine, with_people(given, faces, everywhere(7, 2, 1))) - one).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_too(tiny_model, dtype):
    given = request(3)
    faces = vectors()
    faces[0] = given.face
    with engine_of(tiny_model, dtype=dtype) as engine:
        one, same, two = (
            latents_of(engine, each)
            for each in (
                given, with_people(given, faces, everywhere(3, 2, 0)), with_people(given, faces, side_by_side(3))
            )
        )  # fmt: skip
    assert torch.equal(one, same)
    assert torch.isfinite(two).all()
    assert not torch.equal(one, two)


def test_people_in_another_order_are_the_same_people(engine):
    given, faces, regions = request(5), vectors(), side_by_side(5)
    first = latents_of(engine, with_people(given, faces, regions))
    renamed = latents_of(engine, with_people(given, faces[::-1].copy(), regions[:, [1, 0, 2]]))
    swapped = latents_of(engine, with_people(given, faces[::-1].copy(), regions))
    assert (renamed - first).abs().max() <= 1e-3
    assert (swapped - first).abs().max() > 1e-2


def test_regions_belong_to_frames_in_windows_that_overlap(engine):
    """Only frames 4 to 6 show the second person: a window that holds none of them is one of the first person alone."""
    given, faces = request(7, window=4, overlap=1, steps=1, guidance=(1.0, 1.0)), vectors()
    regions = everywhere(7, 2, 0)
    late = regions.copy()
    late[4:] = everywhere(3, 2, 1)
    seen: list[np.ndarray] = []
    unet = engine.networks["unet"]
    plain = unet.forward

    def watched(sample, noise, context, ids, pose):
        seen.append(context.regions.clone())
        return plain(sample, noise, context, ids, pose)

    unet.forward = watched
    try:
        latents_of(engine, with_people(given, faces, late))
    finally:
        del unet.forward
    assert len(seen) == len(given.plan)
    for window, found in zip(given.plan.placement(0), seen, strict=True):
        assert torch.equal(found, torch.from_numpy(late[list(window.frames)]))


def test_a_person_without_a_known_face_is_conditioned_like_nobody(engine):
    given, faces, regions = request(3), vectors(), side_by_side(3)
    faces[RIGHT] = np.nan
    nobodys = regions.copy()
    nobodys[:, 2] += nobodys[:, RIGHT]
    nobodys[:, RIGHT] = 0
    unknown = latents_of(engine, with_people(given, faces, regions))
    merged = latents_of(engine, with_people(given, vectors(), nobodys))
    assert (unknown - merged).abs().max() <= 1e-4  # sums in another order
    assert (unknown - latents_of(engine, with_people(given, vectors(), regions))).abs().max() > 1e-2


def test_if_no_face_is_known_there_are_no_face_tokens(engine):
    given = request(3, face=False)
    unknown = with_people(given, np.full((2, 512), np.nan, np.float32), side_by_side(3))
    assert torch.equal(latents_of(engine, unknown), latents_of(engine, given))


def test_nobodys_tokens_are_those_of_a_vector_of_zeros(engine):
    given = with_people(request(2), vectors(), side_by_side(2))
    encoded = engine.encode(given.image, given.resized, given.face, given.poses, SamplingConfig())
    assert encoded.face.shape == (1, 12, 64)
    assert encoded.regions.shape == (2, 3, 8, 8)
    zeros = engine.encode(given.image, given.resized, np.zeros(512, np.float32), given.poses, SamplingConfig())
    assert torch.equal(encoded.face[:, 8:], zeros.face)
    assert zeros.face.abs().max() > 0


def test_prepared_contexts_denoise_as_without_preparation(engine):
    given = with_people(request(6), vectors(), side_by_side(6))
    encoded = engine.encode(given.image, given.resized, given.face, given.poses, SamplingConfig())
    x = torch.randn((6, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs = [engine.denoiser(encoded, given.plan, (3, 3), prepared=p)(x, 1.5) for p in (True, False)]
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-4


@pytest.mark.parametrize(
    "device", [{"offload": "model"}, {"offload": "group"}, {"ff_chunks": 3}, {"channels_last": True}]
)
def test_other_ways_to_compute_give_the_same_video(tiny_model, engine, device):
    given = with_people(request(5), vectors(), side_by_side(5))
    expected = rendered(engine, given)
    with engine_of(tiny_model, **device) as other:
        assert np.abs(rendered(other, given).astype(int) - expected).max() <= 1


def test_cached_deep_features_run_with_regions(tiny_model):
    given = with_people(request(5, steps=4, cache_features=2), vectors(), side_by_side(5))
    with engine_of(tiny_model) as engine:
        found = latents_of(engine, given)
        assert engine.calls["unet_shallow"] == BACKBONE.count_calls(given)["unet_shallow"] > 0
        whole = latents_of(engine, with_people(request(5, steps=4), vectors(), side_by_side(5)))
    assert torch.isfinite(found).all()
    assert 0 < (found - whole).abs().mean() < whole.abs().mean()


def test_calls_are_those_of_one_person(tiny_model):
    given = request(9, guidance=(3.0, 3.0))
    people = with_people(given, vectors(), side_by_side(9))
    assert BACKBONE.count_calls(people) == BACKBONE.count_calls(given)
    with engine_of(tiny_model) as engine:
        rendered(engine, people)
        planned = BACKBONE.count_calls(people)
        planned.pop("windows")
        assert {name: engine.calls[name] for name in planned} == planned


def test_an_anchor_in_front_has_regions_of_its_own(engine):
    given = replace(request(6), has_anchor=True)
    regions = side_by_side(6)
    anchored = with_people(given, vectors(), regions)
    first = latents_of(engine, anchored)
    assert len(rendered(engine, anchored)) == 5
    changed = regions.copy()
    changed[0] = everywhere(1, 2, LEFT)[0]
    assert not torch.equal(latents_of(engine, with_people(given, vectors(), changed)), first)


def test_a_sampling_of_people_resumes_to_the_bit(engine):
    given = with_people(request(5, steps=3), vectors(), side_by_side(5))
    states: list[tuple[Tensor, Tensor]] = []
    options = SampleOptions(on_step=lambda x, denoised, step: states.append((x.clone(), denoised.clone())))
    whole = sample(engine, given, Timings(), options)
    latents, denoised = states[0]
    assert torch.equal(latents_of(engine, given, latents=latents, denoised=denoised, first_step=1), whole)


def test_two_processes_compute_what_one_does(tiny_model, engine, forked):  # noqa: F811
    given = with_people(request(9, guidance=(3.0, 3.0), blend="shifted"), vectors(), side_by_side(9))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = latents_of(engine, given)
        with engine_of(tiny_model) as first, parallel.spawned_group(2) as group:
            two = latents_of(first, given, distribute=group.distribute)
            assert first.calls["unet"] == BACKBONE.count_calls(given)["unet"]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, two)


def test_regions_are_part_of_a_job():
    pictures = np.zeros((7, 24, 16, 3), np.uint8)
    job = job_of(PackedFrames.of(Drawn(pictures, {0}), [0]))
    regions = torch.rand(7, 3, 3, 2)
    for sent in (regions, None):
        data, tensors = encode_job(replace(job, regions=sent))
        again = decode_job(json.loads(json.dumps(data)), tensors)
        assert torch.equal(again.face, job.face)
        assert again.regions is None if sent is None else torch.equal(again.regions, sent)


def test_predicted_memory_is_what_lives(tiny_model):
    cells = (MEMORY_SIZE[0] // 8, MEMORY_SIZE[1] // 8)
    estimator = replace(prediction(tiny_model), face_sets=3)
    predicted = estimator.of(config())
    with engine_of(tiny_model) as engine, engine.resident(*BACKBONE.networks(engine.model, engine.plan, "off")):
        given = request(FRAMES, window=FRAMES, overlap=2, size=MEMORY_SIZE)
        people = PeopleFaces(vectors=vectors(), regions=side_by_side(FRAMES, cells))
        encoded = engine.encode(given.image, given.resized, people, given.poses, given.sampling)
        with PeakMemoryMode() as counted, torch.no_grad():
            x = torch.zeros(FRAMES, 4, *cells[::-1])
            engine.denoiser(encoded, given.plan, (1.0, 1.0))(x, 1.0)
    assert estimator._unet(FRAMES, DeviceConfig()) == pytest.approx(counted.peak, rel=0.1)
    one = prediction(tiny_model).of(config())
    assert predicted.stages["UNet"][1] - one.stages["UNet"][1] == encoded.regions.numel() * 4
    assert predicted.stages["UNet"][0] == one.stages["UNet"][0]
    graphs = config(device=DeviceConfig(cuda_graphs=True))
    assert estimator.of(graphs).stages["UNet"][1] > prediction(tiny_model).of(graphs).stages["UNet"][1]
    flops = [each.work(config())["unet"].total for each in (prediction(tiny_model), estimator)]
    assert flops[0] < flops[1] < 1.2 * flops[0]


@pytest.fixture(scope="module")
def puppet():
    plan = DevicePlan(device=torch.device("cpu"), dtype=torch.float32)
    with Engine.open(catalogue.open_model("puppet"), plan) as opened:
        yield opened


def test_the_shipped_model_gives_each_half_of_the_image_its_own_persons_face(puppet):
    """One step without guidance, where features mix least: exchanging a vector changes its own half the most."""
    given = request(2, window=2, overlap=1, size=(128, 128), steps=1, guidance=(1.0, 1.0))
    norms = np.float32([[20.0], [20.0], [20.0]])
    faces = vectors(3)
    faces = faces / np.linalg.norm(faces, axis=1, keepdims=True) * norms
    regions = side_by_side(2, (16, 16))
    both = latents_of(puppet, with_people(given, faces[:2], regions))
    changed = {
        LEFT: latents_of(puppet, with_people(given, faces[[2, 1]], regions)),
        RIGHT: latents_of(puppet, with_people(given, faces[[0, 2]], regions)),
    }
    for side, found in changed.items():
        difference = (found - both).abs().mean((0, 1))
        halves = [difference[:, :5].mean(), difference[:, -5:].mean()]
        assert halves[side] > 1.5 * halves[1 - side], (side, halves)


def test_the_shipped_model_with_one_person_everywhere_is_one_vector_to_the_bit(puppet):
    given = replace(request(2, window=2, overlap=1, size=(72, 88), steps=1), face=vectors()[0])
    one = latents_of(puppet, given)
    assert torch.equal(latents_of(puppet, with_people(given, vectors(), everywhere(2, 2, 0, (9, 11)))), one)


def broken(**changes: Any) -> dict[str, np.ndarray]:
    return {"vectors": vectors(), "regions": side_by_side(4)} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vectors": vectors()[0]}, r"face vectors of shape \(512,\), expected \(people, 512\)"),
        ({"vectors": np.zeros((0, 512), np.float32)}, r"face vectors of shape \(0, 512\)"),
        (
            {"regions": side_by_side(4)[:, :2]},
            r"regions of shape \(4, 2, 8, 8\), expected \(frames, 3, height, width\)",
        ),
        ({"regions": side_by_side(4)[0]}, r"regions of shape \(3, 8, 8\)"),
        ({"regions": side_by_side(0)}, r"regions of shape \(0, 3, 8, 8\)"),
        ({"regions": side_by_side(4) * 0.9}, "regions must be at least 0 and sum to 1"),
        ({"regions": np.full((4, 3, 8, 8), np.nan, np.float32)}, "regions must be at least 0 and sum to 1"),
        ({"regions": side_by_side(4) * np.float32([[[[2]], [[2]], [[-1]]]])}, "regions must be at least 0"),
        ({"vectors": np.where(np.arange(512) < 5, np.nan, vectors())}, "a face vector is not finite"),
        ({"vectors": vectors() * np.inf}, "a face vector is not finite"),
    ],
)
def test_faces_that_contradict_themselves_are_refused(changes, message):
    PeopleFaces(**broken())
    with pytest.raises(ValueError, match=message):
        PeopleFaces(**broken(**changes))


@pytest.mark.parametrize(
    "regions", [side_by_side(3), side_by_side(5), side_by_side(4, (8, 7)), side_by_side(4, (9, 8))]
)
def test_regions_of_another_video_are_refused(engine, regions):
    with pytest.raises(ValueError, match=r"expected \(4, 3, 8, 8\) for 4 frames of 64x64 pixels"):
        latents_of(engine, with_people(request(4), vectors(), regions))


def test_vectors_of_another_length_are_named(engine):
    short = np.ones((2, 128), np.float32)
    with pytest.raises(ModelDamaged, match=r"shape \(128,\), the face encoder of '?tiny'? expects \(512,\)"):
        latents_of(engine, with_people(request(4), short, side_by_side(4)))
