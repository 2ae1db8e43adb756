"""Three training steps against their recording (``tests.golden_training``), and what must hold of any recording."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stableanimator_cli.diffusion.training import interpolated_cosine_sigmas
from stableanimator_cli.engine.training.model import StepInputs
from stableanimator_cli.nets.face_encoder import FaceEncoder
from stableanimator_cli.train import checkpoint
from stableanimator_cli.train.ema import EMA
from tests.golden_training import BATCH, CLIP_NORM, DECAY, ROLES, STEPS, record, run_steps
from tests.regen import TRAINING

Ran = tuple[Path, list[StepInputs], list[tuple[torch.Tensor, torch.Tensor]]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The run, its steps' inputs, and what the Face Encoder was given in each step."""
    given: list[tuple[torch.Tensor, torch.Tensor]] = []
    forward = FaceEncoder.forward

    def watched(self: FaceEncoder, face: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        given.append((face.detach().clone(), image.detach().clone()))
        return forward(self, face, image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FaceEncoder, "forward", watched)
        return *run_steps(tmp_path_factory.mktemp("golden")), given


def differences(actual: Any, expected: Any, where: str = "") -> list[str]:
    """Every number that is not the recorded one within 1 in 1,000."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        return [line for key in expected for line in differences(actual[key], expected[key], f"{where}/{key}")]
    if isinstance(expected, list):
        assert len(actual) == len(expected), where
        return [
            line
            for n, pair in enumerate(zip(actual, expected, strict=True))
            for line in differences(*pair, f"{where}/{n}")
        ]
    near = math.isclose(actual, expected, rel_tol=1e-3, abs_tol=2e-4)
    return [] if near else [f"{where}: {actual}, recorded {expected}"]


def test_steps_are_the_recorded_ones(ran):
    run_folder, seen, _ = ran
    assert differences(record(run_folder, seen), json.loads(TRAINING.read_text())) == []


def test_each_sample_of_a_batch_has_a_noise_level_of_its_own_stratum(ran):
    for inputs in ran[1]:
        for place, sigma in enumerate(inputs.sigma.tolist()):
            edges = torch.tensor([place / BATCH, (place + 1) / BATCH], dtype=torch.float64)
            high, low = interpolated_cosine_sigmas(edges).tolist()
            assert low <= sigma <= high


def test_latents_are_scaled_by_the_factor_of_the_vae(ran):
    """The clip's pixels through the VAE by itself: deviation of the latents against that of its mean."""
    from stableanimator_cli.catalogue import open_model
    from stableanimator_cli.engine.conditioning import to_signed
    from stableanimator_cli.engine.weights import loaders
    from stableanimator_cli.train.dataset import open_dataset

    run_folder, seen, _ = ran
    model = open_model(run_folder.parent / "tiny")
    factor = model.configs["vae"]["scaling_factor"]
    assert factor < 0.5
    clips = open_dataset([run_folder.parent / "data"], min_frames=2).clips
    frames = torch.cat(
        [to_signed(torch.stack([torch.as_tensor(p) for _, p in clip.video().frames()]).numpy()) for clip in clips]
    )
    with torch.no_grad():
        posterior = loaders(model, torch.float32, "distribution")["vae"]().encode(frames).latent_dist
    expected = (posterior.mean.var() + posterior.std.square().mean()).sqrt() * factor
    actual = torch.cat([inputs.latents.flatten() for inputs in seen]).std()
    assert float(actual / expected) == pytest.approx(1, abs=0.25)


def test_the_face_encoder_sees_the_image_token_that_the_unet_does_not(ran):
    _, seen, given = ran
    dropped = 0
    for inputs, (face, image) in zip(seen, given, strict=True):
        assert torch.equal(image, inputs.image)
        assert torch.equal(face, inputs.face)
        assert bool(image.abs().amax(dim=(1, 2)).gt(0).all())
        dropped += int((inputs.keep_image == 0).sum())
    assert dropped  # else this test would see nothing


def test_gradients_are_clipped_before_the_optimiser_sees_them(ran):
    from stableanimator_cli.train.metrics_log import read_metrics

    run_folder = ran[0]
    first = read_metrics(run_folder)[0]["gradient"]
    assert first > 1.5 * CLIP_NORM
    state = checkpoint.read_state(run_folder / "checkpoints" / "step-1").optimizer["state"]
    moment = math.sqrt(sum(float(value["exp_avg"].double().square().sum()) for value in state.values()))
    assert moment == pytest.approx((1 - 0.9) * CLIP_NORM, rel=1e-3)


def test_a_checkpoint_holds_the_average_and_not_the_last_weights(ran):
    run_folder = ran[0]
    average = EMA(DECAY)
    for step in range(1, STEPS + 1):
        folder = run_folder / "checkpoints" / f"step-{step}"
        state = checkpoint.read_state(folder)
        average.update({name: torch.nn.Parameter(value) for name, value in state.weights.items()}, step)
        differs = False
        for role in ROLES:
            file = load_file(folder / f"{role}.safetensors")
            for name, value in file.items():
                if f"{role}.{name}" in state.weights:
                    assert torch.equal(value, average.values[f"{role}.{name}"])
                    differs |= not torch.equal(value, state.weights[f"{role}.{name}"])
        assert differs == (step > 1)
