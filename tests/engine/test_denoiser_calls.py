"""Which evaluations a sampling makes, which are whole, and where it can be taken up again."""

from __future__ import annotations

import pytest

from stableanimator_cli.config.animate import SamplingConfig
from stableanimator_cli.diffusion.schedule import karras_sigmas
from stableanimator_cli.engine.denoiser_calls import denoiser_calls, resumable_steps


def shown(**sampling) -> str:
    """W and s: whole and shallow evaluations, capital or not where guided is said by a +."""
    config = SamplingConfig(**{"guidance": (1.0, 1.0)} | sampling)
    words: dict[int, str] = {}
    for one in denoiser_calls(config):
        words[one.step] = words.get(one.step, "") + ("W" if one.refresh else "s") + "+" * one.guided
    return " ".join(words[step] for step in range(config.steps))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, "W W W W W"),
        ({"cache_features": 2}, "W s W s W"),
        ({"cache_features": 3}, "W s s W s"),
        ({"cache_features": 9}, "W s s s s"),
        ({"cache_features": 2, "guidance": (1.0, 2.0)}, "W+ s+ W+ s+ W+"),
        ({"cache_features": 2, "sampler": "heun"}, "WW ss WW ss W"),
        ({"cache_features": 2, "sampler": "heun", "churn": 9.0}, "WW ss WW ss W"),
    ],
)
def test_every_nth_step_is_whole(sampling, expected):
    assert shown(steps=5, **sampling) == expected


def test_what_follows_a_turn_of_guidance_is_whole_too():
    levels = karras_sigmas(6).tolist()
    within = (levels[4], levels[1])  # steps 1, 2 and 3
    assert shown(steps=6, cache_features=4, guidance=(2.0, 2.0), guidance_interval=within) == "W W+ s+ s+ W s"
    # in a step of two evaluations the second may be the first outside
    heun = {"sampler": "heun", "cache_features": 6, "guidance": (2.0, 2.0), "guidance_interval": within}
    assert shown(steps=6, **heun) == "WW+ s+s+ s+s+ s+W ss s"
    # without guidance there is no turn
    assert shown(steps=6, cache_features=4, guidance_interval=within) == "W s s s W s"


@pytest.mark.parametrize(("high", "expected"), [(700.0, "WW+ WW+ W+W+"), (990.0, "W+W+ W+W+ W+W+")])
def test_churn_raises_the_first_noise_levels_to_990_as_the_help_states(high, expected):
    churned = {"sampler": "heun", "churn": 40.0, "guidance": (2.0, 2.0), "guidance_interval": (0.5, high)}
    assert shown(steps=25, **churned).startswith(f"{expected} ")
    assert "(990 with --churn)" in SamplingConfig.__dataclass_fields__["guidance_interval"].metadata["help"]


def test_a_sampling_goes_on_only_where_a_step_begins_whole():
    assert resumable_steps(SamplingConfig(steps=5)) == {0, 1, 2, 3, 4, 5}
    assert resumable_steps(SamplingConfig(steps=5, cache_features=3)) == {0, 3, 5}
    assert resumable_steps(SamplingConfig(steps=5, cache_features=3, sampler="heun")) == {0, 3, 5}
    levels = karras_sigmas(6).tolist()
    turning = SamplingConfig(
        steps=6, cache_features=6, guidance=(2.0, 2.0), guidance_interval=(levels[4], levels[1]), sampler="heun"
    )
    assert resumable_steps(turning) == {0, 6}  # step 3 ends whole but begins with features of step 2
