"""Rendering, face optimisation and training on a card that is not here: no tensor is on the wrong device or of a wrong
dtype."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stableanimator_cli import StableAnimatorPipeline
from stableanimator_cli.catalogue import open_model
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.diffusion.face_optimization import FaceOptimization, FaceOptimizationSettings
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.engine import Engine, EngineCache
from stableanimator_cli.engine.face_optimization import FaceBox, face_optimization
from stableanimator_cli.engine.render import SampleOptions, Timings, sample
from stableanimator_cli.engine.training import TrainingSettings, open_training, step_inputs, trainable_parameters
from stableanimator_cli.train.ema import EMA
from tests.engine.training_samples import SEED
from tests.engine.training_samples import sample as batch
from tests.pretend_card import CARD, pretended_card
from tests.tiny import engine_of, rendered, request

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or torch.backends.cuda.is_built(), reason="a build of torch for the CPU"
)
BOX = (8.0, 8.0, 40.0, 40.0)


@pytest.fixture
def card() -> Iterator[None]:
    with pretended_card():
        yield


def opened(folder: Path, **settings: Any) -> Engine:
    return Engine.open(open_model(folder), DevicePlan.of(DeviceConfig(device=str(CARD), **settings)))


def test_it_refuses_what_a_card_refuses(card):
    x = torch.ones(2, device=CARD)
    assert (x + torch.ones(2, device=CARD)).device == CARD
    assert (x + torch.tensor(1.0)).cpu().tolist() == [2.0, 2.0]
    with pytest.raises(RuntimeError, match="same device"):
        torch.add(x, torch.ones(2))
    with torch.autocast("cuda", torch.bfloat16):
        assert nn.functional.linear(x[None], x[None]).dtype == torch.bfloat16
    with pytest.raises((RuntimeError, TypeError)):
        x.numpy()


@pytest.mark.parametrize("settings", [{"dtype": "float32"}, {"offload": "model", "quantization": "int8"}])
def test_a_rendering(tiny_model, settings):
    wanted = request(3, steps=1)
    with engine_of(tiny_model) as engine:
        expected = rendered(engine, wanted).astype(int)
    with pretended_card(), opened(tiny_model, **settings) as engine:
        assert (engine.plan.dtype == torch.float32) == ("dtype" in settings)
        found = rendered(engine, wanted)
    assert np.abs(found - expected).mean() < (0.1 if "dtype" in settings else 8)


def test_a_step_that_is_reported_is_computed(card, tiny_model, monkeypatch):
    """Launches run ahead of a card: progress, checkpoints and the seconds of a stage would be those of launching."""
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: events.append("waited"))
    options = SampleOptions(on_window=lambda: events.append("window"), on_step=lambda *_: events.append("step"))
    with opened(tiny_model) as engine:
        sample(engine, request(2, window=2, guidance=(1.0, 1.0)), Timings(), options)
    assert events == ["waited", *["window", "waited", "step"] * 2]


def test_each_run_of_an_open_engine_has_its_own_peak(card, tiny_model, monkeypatch):
    """A record would hold the peak of the largest run of the process."""
    reset: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    plan = DevicePlan.of(DeviceConfig(device=str(CARD)))
    with EngineCache() as engines:
        for count in (1, 2):
            engines.open(open_model(tiny_model), plan)
            assert reset == [CARD] * count


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of its schedulers with numpy 2
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
def test_the_pipeline_of_diffusers_moves_networks_onto_the_card(tiny_model):
    """diffusers' hook moves the VAE in ``encode`` and ``decode``, once their inputs are there."""
    wanted = request(2, window=2, steps=1)

    def frames(pipe: StableAnimatorPipeline) -> np.ndarray:
        pipe.set_progress_bar_config(disable=True)
        poses = [wanted.poses.frame(index) for index in range(2)]
        generator = torch.Generator().manual_seed(0)
        return pipe(
            wanted.image, poses, face_embedding=wanted.face, num_inference_steps=1, generator=generator,
            output_type="np",
        ).frames  # fmt: skip

    expected = frames(StableAnimatorPipeline.from_pretrained(tiny_model))
    with pretended_card():
        pipe = StableAnimatorPipeline.from_pretrained(tiny_model)
        pipe.enable_model_cpu_offload(device=CARD)
        steps, pipe.scheduler.set_timesteps = pipe.scheduler.set_timesteps, lambda count, device: steps(count)
        found = frames(pipe)
    assert np.abs(found - expected).max() < 1e-2


class Colours(nn.Module):
    """A recogniser whose vector are the mean colours."""

    size = (112, 112)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(3))

    def embed(self, crops: Tensor) -> Tensor:
        self.repeatable = torch.are_deterministic_algorithms_enabled()
        return crops.mean(dim=(2, 3)) @ self.matrix  # type: ignore[operator]


def optimisation(engine: Engine, image: np.ndarray, mode: Any, frames: int) -> FaceOptimization:
    engine.networks._loaders["recogniser"] = Colours
    return face_optimization(
        engine, FaceOptimizationSettings(mode=mode, steps=(0, 9), iterations=1, chunk=2),
        references=[FaceBox(image=image, box=np.float32(BOX))], boxes=np.tile(np.float32(BOX), (frames, 1, 1)),
        size=(64, 64),
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["full", "crop"])
def test_face_optimisation(card, tiny_model, mode):
    wanted = request(2, window=2, steps=1, guidance=(1.0, 1.0))
    with opened(tiny_model) as engine:
        hook = optimisation(engine, wanted.resized, mode, 2)
        latents = sample(engine, wanted, Timings(), SampleOptions(refine=hook))
        assert engine.networks["recogniser"].repeatable  # a resumed run writes the same bytes
    assert (latents.device, latents.dtype) == (CARD, torch.float32)
    assert [entry.faces for entry in hook.log] == [2]
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_training_step(card, tiny_model):
    settings = TrainingSettings(dtype="bfloat16", checkpointing="blocks", reference_degrade=1.0)
    parts = open_training(open_model(tiny_model), settings, CARD, seed=SEED)
    learned = trainable_parameters(parts.model)
    optimizer, average = torch.optim.AdamW(learned.values()), EMA(0.9)
    losses = parts.model(step_inputs(parts, batch([0, 1], cached=False), SEED, 2))
    assert (losses.device, losses.dtype) == (CARD, torch.float32)
    losses.sum().backward()
    assert all(parameter.grad is not None for parameter in learned.values())
    nn.utils.clip_grad_norm_(learned.values(), 1.0)
    optimizer.step()
    average.update(learned, 1)
    assert {value.device for value in average.values.values()} == {CARD}
