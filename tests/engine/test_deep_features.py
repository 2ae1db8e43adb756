"""A rendering that takes deep features again: whose they are, how often, what it holds, and where it may break off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stableanimator_cli.animate import checkpoint
from stableanimator_cli.animate.replay import replay
from stableanimator_cli.animate.result import Animation, AnimationPlan
from stableanimator_cli.animate.run import run
from stableanimator_cli.config.animate import AnimateConfig, DecodeConfig, DeviceConfig, SamplingConfig, WindowConfig
from stableanimator_cli.config.refine import RefineConfig
from stableanimator_cli.diffusion.deepcache import DeepFeatureCache
from stableanimator_cli.engine.backbones.svd import BACKBONE
from stableanimator_cli.engine.conditioning import PoseFeatures
from stableanimator_cli.engine.memory.fit import fit_to_limit
from stableanimator_cli.engine.render import Timings, render
from stableanimator_cli.errors import ConfigError, Interrupted
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.nets.unet import AnimationUNet
from tests.animate.clips import plain_picture
from tests.engine.memory_samples import FRAMES, SIZE, config, prediction
from tests.tiny import engine_of, rendered, request, waving


@pytest.mark.parametrize(
    ("sampling", "unet", "shallow"),
    [
        ({"guidance": (1.0, 1.0), "cache_features": 2}, 20, 8),
        ({"guidance": (3.0, 3.0), "cache_features": 3}, 40, 24),
        ({"guidance": (1.0, 1.0), "cache_features": 2, "sampler": "heun"}, 36, 16),
        ({"guidance": (3.0, 3.0), "cache_features": 5, "guidance_interval": (1.0, 100.0)}, 24, 8),
        ({"guidance": (3.0, 3.0), "cache_features": 2, "blend": "shifted"}, 50, 20),
    ],
)
def test_the_network_is_computed_whole_as_often_as_was_planned(tiny_model, sampling, unet, shallow):
    wanted = request(9, steps=5, **sampling)  # four windows, five that move
    planned, stages = BACKBONE.count_calls(wanted), Timings()
    assert (planned["unet"], planned["unet_shallow"]) == (unet, shallow)
    with engine_of(tiny_model) as engine:
        assert len(list(render(engine, wanted, stages))) == 9
    assert (stages.calls["unet"], stages.calls["unet_shallow"]) == (unet, shallow)


def test_each_window_and_branch_takes_its_own_features_of_the_last_whole_step(tiny_model, monkeypatch):
    """The anchor's latents tell a window's call from another's only together with what they are asked with."""
    kept: list[tuple[float, torch.Tensor]] = []
    taken: list[tuple[float, torch.Tensor]] = []
    with_deep, from_deep = AnimationUNet.forward_caching, AnimationUNet.forward_cached

    def keep(self, sample, level, *given, **more):
        answer, deep = with_deep(self, sample, level, *given, **more)
        kept.append((level, deep))
        return answer, deep

    def take(self, sample, level, *given, deep, **more):
        taken.append((level, deep))
        return from_deep(self, sample, level, *given, deep=deep, **more)

    monkeypatch.setattr(AnimationUNet, "forward_caching", keep)
    monkeypatch.setattr(AnimationUNet, "forward_cached", take)
    with engine_of(tiny_model) as engine:
        rendered(engine, request(9, steps=4, guidance=(2.0, 2.0), cache_features=2))
    assert len(kept) == len(taken) == 2 * 8  # whole and shallow by turns: four windows of two branches each
    assert all(own is deep for (_, own), (_, deep) in zip(kept, taken, strict=True))
    assert all(before > now for (before, _), (now, _) in zip(kept, taken, strict=True))


def test_windows_that_move_stay_while_deep_features_are_taken(tiny_model, monkeypatch):
    """Features that were not kept for a window would be a KeyError; those of other frames must not be taken."""
    asked: list[tuple[tuple[int, ...], bool]] = []
    wanted = request(9, steps=5, guidance=(1.0, 1.0), cache_features=2, blend="shifted")
    window = PoseFeatures.window
    monkeypatch.setattr(PoseFeatures, "window", lambda self, frames: asked.append(frames) or window(self, frames))
    with engine_of(tiny_model) as engine:
        rendered(engine, wanted)
    by_step = [asked[start : start + 5] for start in range(0, 25, 5)]
    assert by_step == [[w.frames for w in wanted.plan.placement(turn)] for turn in (0, 0, 1, 1, 2)]


def test_off_is_what_it_was_and_one_step_is_exact(tiny_model):
    with engine_of(tiny_model) as engine:
        plain = rendered(engine, request(5, steps=3))
        assert engine.calls["unet_shallow"] == 0
        np.testing.assert_array_equal(plain, rendered(engine, request(5, steps=3, cache_layers=1)))
        near = rendered(engine, request(5, steps=3, cache_features=2))
        assert (near != plain).mean() > 0.01
        one = rendered(engine, request(5, steps=1))
        np.testing.assert_array_equal(one, rendered(engine, request(5, steps=1, cache_features=4)))


def many_windows(**sampling) -> AnimateConfig:
    return replace(
        config(
            windows=WindowConfig(length=4, overlap=2), decode=DecodeConfig(chunk=1), refine=RefineConfig(face="off")
        ),
        sampling=SamplingConfig(**sampling),
    )


def test_what_is_kept_is_predicted(tiny_model, monkeypatch):
    on_cpu = prediction(tiny_model)
    plain, kept = (on_cpu.of(many_windows(cache_features=every)) for every in (1, 2))
    held: list[DeepFeatureCache] = []
    monkeypatch.setattr(
        "stableanimator_cli.engine.backbones.denoising.DeepFeatureCache",
        lambda layers: held.append(DeepFeatureCache(layers)) or held[0],
    )
    with engine_of(tiny_model) as engine:
        wanted = request(FRAMES, window=4, overlap=2, size=SIZE, guidance=(3.0, 3.0), cache_features=2)
        rendered(engine, wanted)
    more = kept.stages["UNet"][1] - plain.stages["UNet"][1]
    assert len(held[0].features) == 2 * len(wanted.plan) == 10
    assert more == sum(deep.numel() * deep.element_size() for deep in held[0].features.values())
    alone = on_cpu.of(many_windows(cache_features=2, guidance=(1.0, 1.0)))
    assert 2 * (alone.stages["UNet"][1] - plain.stages["UNet"][1]) == more


def test_to_fit_it_is_given_up_before_anything_that_costs_quality(tiny_model):
    """Of a long video what is kept of all windows is most of the memory where one layer alone is computed anew."""
    on_card = replace(prediction(tiny_model, "cuda", torch.bfloat16), frames=64)
    asked = many_windows(cache_features=2, cache_layers=1)
    without = replace(asked.sampling, cache_features=1)
    limit = on_card.of(replace(asked, sampling=without)).total
    assert on_card.of(asked).total > limit
    found, choices = fit_to_limit(
        replace(asked, device=DeviceConfig(max_memory=limit, offload="model", ff_chunks=16)), on_card
    )
    assert found.sampling == without
    assert "--cache-features off (exact)" in map(str, choices)
    assert not any("approximate" in str(choice) for choice in choices)


@pytest.fixture
def flags(tmp_path: Path, tiny_model: Path) -> dict[str, object]:
    return {
        "reference": plain_picture(tmp_path / "person.png"),
        "motion": save_motion(tmp_path / "poses.npz", waving(6)),
        "output": tmp_path / "out.mp4",
        "model": str(tiny_model),
        "size": "64x64",
        "window": 4,
        "steps": 5,
        "allow_no_face": True,
        "device": "cpu",
    }


def test_broken_off_it_goes_on_where_a_step_is_whole_and_ends_in_the_same_bytes(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    monkeypatch.setattr(checkpoint, "_WRITE_RATIO", 0)
    flags["cache_features"] = "2"
    whole = run(flags=flags | {"output": tmp_path / "whole.mp4"})
    assert isinstance(whole, Animation)
    seen: list[int] = []
    keep, shallow = checkpoint.CheckpointManager.save, AnimationUNet.forward_cached

    def note(self, saved):
        keep(self, saved)
        seen.append(saved.state.step)

    def break_in(self, *given, **more):
        if seen == [2]:  # in step 3, which takes features of step 2
            seen.append(-1)
            raise KeyboardInterrupt
        return shallow(self, *given, **more)

    monkeypatch.setattr(checkpoint.CheckpointManager, "save", note)
    monkeypatch.setattr(AnimationUNet, "forward_cached", break_in)
    with pytest.raises(Interrupted):
        run(flags=flags)
    again = run(flags=flags)
    assert isinstance(again, Animation)
    assert seen == [2, -1, 4, 5]
    assert again.video.read_bytes() == whole.video.read_bytes()
    assert again.calls["unet_shallow"] == whole.calls["unet_shallow"]


def test_a_plan_says_it_and_a_record_repeats_it(flags, tmp_path):
    flags["cache_features"] = "3"
    plan = run(flags=flags, plan_only=True)
    assert isinstance(plan, AnimationPlan)
    calls = plan.to_json()["calls"]
    assert f"{calls['unet']} UNet calls, {calls['unet_shallow']} of them with deep features" in plan.summary()
    assert calls["unet_shallow"] == 3 * calls["unet"] // 5
    report = run(flags=flags)
    assert isinstance(report, Animation)
    assert {name: report.calls[name] for name in ("unet", "unet_shallow")} == {
        name: calls[name] for name in ("unet", "unet_shallow")
    }
    told = replay(report.video)
    assert not told.differences
    other = run(flags=flags | {"cache_features": "off", "output": tmp_path / "off.mp4"})
    assert other.video.read_bytes() != report.video.read_bytes()


def test_more_layers_than_there_are_are_refused_at_once(flags, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[sampling]\ncache_features = 2\ncache_layers = 5\n")
    with pytest.raises(ConfigError, match=r"sampling\.cache_layers: found 5, expected 1 to 4, the layers"):
        run(flags=flags, config_file=file)
    with engine_of(Path(str(flags["model"]))) as engine, pytest.raises(ConfigError, match="1 to 4 with this model"):
        rendered(engine, request(2, cache_features=2, cache_layers=5))


def test_recorded_graphs_know_the_whole_network_alone(flags):
    with pytest.raises(ConfigError, match=r"--cuda-graphs: found true, expected no --cache-features"):
        run(flags=flags | {"cache_features": "2", "cuda_graphs": True}, plan_only=True)
