"""Several people with the backbone magic: what one person must be, whose vector counts where, and a training step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stableanimator_cli.catalogue import open_animator
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.memory.train_step import random_inputs
from stableanimator_cli.engine.render import RenderRequest
from stableanimator_cli.engine.training import TrainingSettings, open_training, trainable_parameters
from tests.engine.test_people import everywhere, latents_of, side_by_side, vectors, with_people
from tests.magic_models import write_magic
from tests.tiny import engine_of, request

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_magic(tmp_path_factory.mktemp("models") / "magic")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with engine_of(folder) as opened:
        yield opened


def given(frames: int = 5) -> RenderRequest:
    return request(frames, schedule="ddim", guidance=(2.0, 2.0))


def test_one_person_everywhere_is_one_vector_to_the_bit(engine):
    faces = vectors()
    faces[0] = given().face
    one = latents_of(engine, given())
    assert torch.equal(latents_of(engine, with_people(given(), faces, everywhere(5, 2, 0))), one)
    assert (latents_of(engine, with_people(given(), faces, everywhere(5, 2, 1))) - one).abs().max() > 1e-3


def test_exchanged_vectors_are_exchanged_people(engine):
    faces, regions = vectors(), side_by_side(5)
    first = latents_of(engine, with_people(given(), faces, regions))
    swapped = latents_of(engine, with_people(given(), faces[::-1].copy(), regions))
    renamed = latents_of(engine, with_people(given(), faces[::-1].copy(), regions[:, [1, 0, 2]]))
    change = (swapped - first).abs().max()
    assert change > 1e-3
    assert (renamed - first).abs().max() < change / 10


def test_a_step_trains_each_person_by_their_region(folder):
    settings = TrainingSettings(sigma="timesteps", face_mask="off", train="all", dropout_prob=0.0)
    model = open_training(open_animator(folder), settings, CPU).model
    inputs = random_inputs(model, 1, 3, (64, 64), CPU, people=2)
    regions = inputs.regions
    assert regions is not None
    nowhere = regions.clone()
    nowhere[:, :, 2] += nowhere[:, :, 1]
    nowhere[:, :, 1] = 0
    for shares, moves in ((regions, True), (nowhere, False)):
        face = inputs.face.clone().requires_grad_(True)
        model(replace(inputs, face=face, regions=shares)).sum().backward()
        assert face.grad is not None
        assert bool(face.grad[0, 0].any())
        assert bool(face.grad[0, 1].any()) == moves
    assert all(parameter.grad is not None for parameter in trainable_parameters(model).values())
