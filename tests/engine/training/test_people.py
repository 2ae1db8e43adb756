"""A training step of several people: gradients by region, batches of mixed samples, and its predicted memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stableanimator_cli.catalogue import open_model
from stableanimator_cli.engine.memory.train import meta_model, predict
from stableanimator_cli.engine.memory.train_step import meta_step_bytes, random_inputs, step_bytes
from stableanimator_cli.engine.training import TrainingParts, TrainingSettings, step_inputs, trainable_parameters
from stableanimator_cli.engine.training.batch import Batch
from stableanimator_cli.engine.training.model import StepInputs
from tests.engine.training_samples import CPU, SEED, opened, sample

FRAMES, CELLS = 3, 4


def with_people(batch: Batch, people: dict[int, tuple[bool, ...]]) -> Batch:
    """The batch with ``people`` in the samples of these positions (each: whether the face is known), one in others."""
    most = max(map(len, people.values()))
    count = len(batch)
    face = torch.zeros(count, most, 512)
    has_face = torch.zeros(count, most, dtype=torch.bool)
    regions = torch.zeros(count, FRAMES, most + 1, CELLS, CELLS)
    face[:, 0], has_face[:, 0] = batch.face, batch.has_face
    regions[:, :, 0] = 1
    for position, known in people.items():
        generator = torch.Generator().manual_seed(int(batch.index[position]))
        own = len(known)
        shares = torch.randn(FRAMES, own + 1, CELLS, CELLS, generator=generator).mul(2).softmax(dim=1)
        has_face[position, :own] = torch.tensor(known)
        face[position, :own] = torch.randn(own, 512, generator=generator) * has_face[position, :own, None]
        regions[position] = 0
        regions[position, :, :own], regions[position, :, -1] = shares[:, :-1], shares[:, -1]
    box = batch.reference_box[:, None].expand(-1, most, -1)
    return replace(batch, face=face, has_face=has_face, regions=regions, reference_box=box)


def losses(parts: TrainingParts, batch: Batch) -> Tensor:
    return parts.model(step_inputs(parts, batch, SEED, 2))


def gradients(parts: TrainingParts, batch: Batch) -> dict[str, Tensor | None]:
    losses(parts, batch).mean().backward()
    return {name: p.grad for name, p in trainable_parameters(parts.model).items()}


PAIR = {0: (True, True)}


def mixed(people: dict[int, tuple[bool, ...]] | None = None, **more: Any) -> Batch:
    return with_people(sample([0, 1], FRAMES, **more), people or PAIR)


@pytest.mark.parametrize(
    "settings",
    [
        {"train": "all"},
        {"train": "all", "face": False},
        {"train": "all", "id_adapter": "off"},
        {"train": "all", "id_adapter": "addition"},
        {"train": "all", "face_encoder": False},
        {"train": "lora"},
    ],
    ids=str,
)
@pytest.mark.parametrize("known", [(True, True), (False, True), (False, False)])
def test_every_parameter_that_learns_gets_a_finite_gradient(tiny_model, settings, known):
    found = gradients(opened(tiny_model, **settings), mixed({0: known, 1: known}))
    assert found
    assert [name for name, gradient in found.items() if gradient is None] == []
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())


def test_a_mixed_batch_has_the_losses_of_its_samples_alone(tiny_model):
    """Two people; one person, whose region is the full frame; one person without a face."""
    parts = opened(tiny_model)
    batch = sample([0, 1, 2], FRAMES, faces=[True, True, False])
    together = losses(parts, with_people(batch, {0: (True, True, False)}))
    plain = losses(parts, batch)
    alone = losses(parts, with_people(batch.part(0, 1), {0: (True, True, False)}))
    assert (together[1:] - plain[1:]).abs().max() <= 1e-5 * plain.max()
    assert (together[0] - alone[0]).abs() <= 1e-5 * plain.max()
    assert (together[0] - plain[0]).abs() > 1e-4 * plain[0]


def test_padding_people_change_nothing(tiny_model):
    parts = opened(tiny_model)
    two, padded = mixed(), mixed({0: (True, True), 1: (True, True, True)}).part(0, 1)
    assert padded.face.shape == (1, 3, 512)
    assert (losses(parts, two)[0] - losses(parts, padded)[0]).abs() <= 1e-5


def test_a_vector_moves_the_loss_by_its_region_alone(tiny_model):
    parts = opened(tiny_model, dropout_prob=0.0)
    inputs = step_inputs(parts, mixed(), SEED, 2)
    nowhere = inputs.regions.clone()
    nowhere[:, :, 2] += nowhere[:, :, 1]
    nowhere[:, :, 1] = 0
    for regions, moves in ((inputs.regions, True), (nowhere, False)):
        face = inputs.face.clone().requires_grad_(True)
        parts.model(replace(inputs, face=face, regions=regions)).sum().backward()
        assert bool(face.grad[0, 0].any())
        assert bool(face.grad[0, 1].any()) == moves
        assert not face.grad[1, 1].any()  # padding


@pytest.mark.parametrize("way", ["blocks", "diffusers"])
def test_checkpointing_changes_neither_loss_nor_gradient(tiny_model, way):
    plain, forgetful = opened(tiny_model, train="all"), opened(tiny_model, train="all", checkpointing=way)
    torch.testing.assert_close(losses(forgetful, mixed()), losses(plain, mixed()), rtol=0, atol=0)
    ours, theirs = gradients(forgetful, mixed()), gradients(plain, mixed())
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near(tiny_model, dtype):
    expected = losses(opened(tiny_model), mixed())
    torch.testing.assert_close(losses(opened(tiny_model, dtype=dtype), mixed()), expected, rtol=0.02, atol=0)


def test_single_images_of_several_people_train(tiny_model):
    parts = opened(tiny_model, image_only=True)
    inputs: StepInputs = random_inputs(parts.model, 2, 1, (32, 32), CPU, people=3)
    assert inputs.regions.shape == (2, 1, 4, 4, 4)
    assert bool(parts.model(inputs).isfinite().all())


@pytest.mark.parametrize("people", [1, 3])
def test_predicted_memory_of_a_step_is_what_lives(tiny_model, people):
    """The step on the CPU, whose attention also stores no matrix of scores."""
    settings = TrainingSettings(train="all")
    network = meta_model(open_model(tiny_model), settings)
    predicted = meta_step_bytes(network, 2, FRAMES, (64, 64), people=people)
    parts = opened(tiny_model, train="all")
    counted = step_bytes(parts.model, random_inputs(parts.model, 2, FRAMES, (64, 64), CPU, people=people))
    assert predicted == pytest.approx(counted, rel=0.05)


def test_several_people_are_part_of_the_prediction(tiny_model):
    model, settings = open_model(tiny_model), TrainingSettings(train="adapters")
    one, three = (predict(model, settings, size=(256, 256), frames=8, people=n).step for n in (1, 3))
    assert one < three < 1.5 * one
