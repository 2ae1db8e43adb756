"""A whole rendering: calls as planned, noise by seed and frame, frames as they are taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stableanimator_cli.diffusion.sampler import Step
from stableanimator_cli.engine.backbones.svd import BACKBONE
from stableanimator_cli.engine.decoder import Decoder
from stableanimator_cli.engine.render import SampleOptions, Timings, check_finite, decode, initial_noise, render, sample
from stableanimator_cli.errors import CheckFailed, OutOfMemory
from tests.tiny import engine_of, rendered, request

GOLDEN = Path(__file__).parents[1] / "golden" / "reference"


@pytest.fixture(scope="module")
def engine(tiny_model):
    with engine_of(tiny_model) as opened:
        yield opened


@pytest.mark.parametrize(
    ("options", "unet", "decodes"),
    [
        ({"frames": 3, "steps": 2, "guidance": (1.0, 1.0)}, 2, 1),
        ({"frames": 3, "steps": 2, "guidance": (3.0, 3.0)}, 4, 1),
        ({"frames": 9, "steps": 2, "guidance": (1.0, 3.0), "chunk": 3}, 2 * 4 * 2, 3),
        ({"frames": 9, "steps": 3, "guidance": (1.0, 1.0), "sampler": "heun", "chunk": 4}, 5 * 4, 3),
        ({"frames": 9, "steps": 2, "guidance": (3.0, 3.0), "sampler": "heun"}, 3 * 4 * 2, 3),
        ({"frames": 9, "chunk": 4, "decode_overlap": 2, "steps": 1, "guidance": (1.0, 1.0)}, 4, 4),
        ({"frames": 9, "chunk": 4, "decode_overlap": 3, "steps": 1, "guidance": (1.0, 1.0)}, 4, 6),
        ({"frames": 1, "chunk": 1, "steps": 1, "guidance": (1.0, 1.0)}, 1, 1),
        ({"frames": 9, "blend": "upstream", "overlap": 2, "steps": 1, "guidance": (1.0, 1.0)}, 4, 3),
        ({"frames": 9, "blend": "shifted", "steps": 3, "guidance": (1.0, 1.0)}, 15, 3),
    ],
)
def test_networks_run_as_often_as_the_plan_says(tiny_model, options, unet, decodes):
    wanted = request(**options)
    planned, stages, windows = BACKBONE.count_calls(wanted), Timings(), []
    with engine_of(tiny_model) as engine:
        frames = list(render(engine, wanted, stages, SampleOptions(on_window=lambda: windows.append(1))))
    assert (planned["unet"], planned["vae_decode"]) == (unet, decodes)
    assert len(windows) == planned.pop("windows")
    assert {name: engine.calls[name] for name in planned} == planned
    assert stages.calls == engine.calls
    assert len(frames) == wanted.plan.total == wanted.frames
    assert set(stages.seconds) == {"encode", "denoise", "decode"}
    assert engine.calls["pose_net_frames"] == wanted.plan.total


def test_the_same_request_gives_the_same_frames_and_another_seed_others(engine):
    first = rendered(engine, request(5))
    np.testing.assert_array_equal(first, rendered(engine, request(5)))
    assert (first != rendered(engine, request(5, seed=6))).mean() > 0.1


def test_fresh_noise_of_a_shorter_video_is_a_prefix(engine):
    long, short = (initial_noise(request(frames), 4) for frames in (9, 5))
    assert torch.equal(long[:5], short)
    assert len({frame.numpy().tobytes() for frame in long}) == 9


def test_an_anchor_in_front_does_not_shift_the_noise_of_the_frames_that_stay():
    plain, anchored = initial_noise(request(5), 4), initial_noise(replace(request(6), has_anchor=True), 4)
    assert torch.equal(anchored[1:], plain)
    assert not (anchored[:1] == plain).all((1, 2, 3)).any()


@pytest.mark.parametrize(("name", "seed", "frames"), [("basic_pipeline", 1234, 10), ("basic_pipeline_ramp", 99, 8)])
def test_repeated_noise_is_the_reference_implementations(name, seed, frames):
    recorded: Tensor = load_file(GOLDEN / f"{name}.safetensors")["initial_noise_tile"][0]
    wanted = request(frames, window=6, size=(128, 192), noise="repeat", seed=seed)
    noise = initial_noise(wanted, 4)
    assert noise.shape == (frames, 4, 24, 16)
    assert all(torch.equal(noise[k], recorded[k % 6]) for k in range(frames))


def test_an_anchor_is_rendered_but_not_given_out(engine):
    wanted = replace(request(6), has_anchor=True)
    assert wanted.frames == 5
    latents = sample(engine, wanted, Timings())
    assert len(latents) == 6
    frames = np.stack(list(decode(engine, wanted, latents, Timings())))
    plain = np.stack(list(decode(engine, request(5), latents[1:], Timings())))
    np.testing.assert_array_equal(frames, plain)


def test_churn_needs_heun_to_be_felt_and_keeps_to_the_seed(engine):
    options = {"sampler": "heun", "steps": 3}
    calm, churned, again = (rendered(engine, request(3, churn=c, **options)) for c in (0.0, 20.0, 20.0))
    np.testing.assert_array_equal(churned, again)
    assert (calm != churned).mean() > 0.05


def test_who_watches_sees_each_step_with_its_latents(engine):
    seen: list[tuple[Step, Tensor]] = []
    options = SampleOptions(on_step=lambda x, _, step: seen.append((step, x)))
    latents = sample(engine, request(3, steps=3), Timings(), options)
    assert [(step.index, step.total) for step, _ in seen] == [(0, 3), (1, 3), (2, 3)]
    assert torch.equal(seen[-1][1], latents)


def test_frames_are_decoded_while_they_are_taken(tiny_model):
    with engine_of(tiny_model) as engine:
        frames = render(engine, request(6, chunk=2), Timings())
        next(frames)
        assert engine.calls["vae_decode"] == 1
        assert torch.is_grad_enabled()  # a generator that waits must not leave the mode off for everybody
        assert len(list(frames)) == 5
        assert engine.calls["vae_decode"] == 3


def test_latents_that_are_not_finite_are_a_failed_check_not_a_black_video(tiny_model):
    with engine_of(tiny_model) as engine:
        next(iter(engine.networks["unet"].parameters())).data.fill_(float("nan"))
        with pytest.raises(CheckFailed, match="not finite") as caught:
            rendered(engine, request(2))
        assert "sa models verify" in str(caught.value.hint)  # float32 does not overflow
        engine.plan = replace(engine.plan, dtype=torch.float16)
        with pytest.raises(CheckFailed) as caught:
            check_finite(torch.tensor(float("nan")), engine)
    assert "--dtype bfloat16" in str(caught.value.hint)


def test_decoded_pixels_that_are_not_finite_are_a_failed_check_not_a_black_video(tiny_model):
    with engine_of(tiny_model) as engine:
        vae = engine.networks["vae"]
        vae.decoder.conv_out.bias.data.fill_(float("nan"))
        with pytest.raises(CheckFailed, match="decoding produced values that are not finite") as caught:
            rendered(engine, request(2))
        assert caught.value.hint == "check the weights with `sa models verify`"
        vae.decoder.to(torch.float16)
        with pytest.raises(CheckFailed) as caught:
            next(engine.decoder.frames(torch.zeros(1, 4, 8, 8), chunk=1))
    assert "--dtype bfloat16" in str(caught.value.hint)


def test_memory_that_runs_out_names_stage_and_setting(engine, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Decoder, "pixels", full)
    with pytest.raises(OutOfMemory, match="while decoding") as caught:
        rendered(engine, request(2))
    assert "--decode-chunk (now 4)" in str(caught.value.hint)
    monkeypatch.setattr(type(engine.networks["unet"]), "forward", full)
    with pytest.raises(OutOfMemory, match="while denoising") as caught:
        rendered(engine, request(2))
    assert "--window" in str(caught.value.hint)


@pytest.mark.parametrize("sampling", [{}, {"sampler": "heun", "churn": 4.0}])
def test_an_interval_of_guidance_asks_as_often_as_was_planned(tiny_model, sampling, capsys):
    whole, part, none = (
        request(3, steps=3, guidance=guidance, guidance_interval=interval, **sampling)
        for guidance, interval in (((3.0, 3.0), None), ((3.0, 3.0), (1.0, 100.0)), ((1.0, 1.0), None))
    )
    frames, calls = [], []
    for wanted in (whole, part, none):
        with engine_of(tiny_model) as engine:
            frames.append(rendered(engine, wanted).astype(int))
            calls.append(engine.calls["unet"])
            assert calls[-1] == BACKBONE.count_calls(wanted)["unet"]
    assert calls[2] < calls[1] < calls[0] == 2 * calls[2]
    error = abs(frames[1] - frames[0]).mean()
    with capsys.disabled():
        print(f"\n{sampling or 'euler'}: {calls[1]} of {calls[0]} calls, mean error {error:.2f} of 255 levels")
    assert error > 0
