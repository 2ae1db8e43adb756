"""Guidance and windows joined into a denoiser, with a network whose answers are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stableanimator_cli.diffusion.guidance import (
    alternate,
    guidance_per_frame,
    is_guided,
    windowed_denoiser,
    with_guidance_interval,
)
from stableanimator_cli.diffusion.schedule import scalings
from stableanimator_cli.diffusion.windows import Window, plan_windows

SHAPE = (4, 2, 2)


class Network:
    """Answers a function of its input; conditional answers lie ``gap`` higher. Remembers what it was asked."""

    def __init__(self, gap: float = 1.0) -> None:
        self.gap = gap
        self.asked: list[tuple[tuple[int, ...], bool]] = []

    def __call__(self, latents: Tensor, c_noise: float, window: Window, conditional: bool) -> Tensor:
        self.asked.append((window.frames, conditional))
        assert len(latents) == len(window.frames)
        return torch.tanh(latents) + c_noise + (self.gap if conditional else 0.0)


def latents(frames: int) -> Tensor:
    return torch.randn((frames, *SHAPE), generator=torch.Generator().manual_seed(frames)) * 5


@pytest.mark.parametrize("blend", ["smooth", "upstream"])
def test_windows_of_a_network_that_treats_frames_alone_change_nothing(blend):
    x, sigma = latents(13), 2.5
    one = windowed_denoiser(Network(), plan_windows(13, length=13, overlap=0), guidance=(3, 3))
    many = windowed_denoiser(Network(), plan_windows(13, length=5, overlap=2, blend=blend), guidance=(3, 3))
    assert torch.allclose(many(x, sigma), one(x, sigma), atol=1e-5)
    scale = scalings(sigma)
    v = torch.tanh(x * scale.c_in) + scale.c_noise + 3.0
    assert torch.allclose(one(x, sigma), scale.skip * x + scale.out * v, atol=1e-5)


@pytest.mark.parametrize(("guidance", "branches"), [((1, 1), 1), ((0.5, 1), 1), ((0, 0), 1), ((3, 3), 2), ((1, 3), 2)])
def test_no_guidance_asks_the_conditional_branch_alone(guidance, branches):
    network, plan = Network(), plan_windows(9, length=5, overlap=1)
    windowed_denoiser(network, plan, guidance=guidance)(latents(9), 1.0)
    assert is_guided(*guidance) == (branches == 2)
    assert network.asked == [(w.frames, c) for w in plan for c in (True, False)[:branches]]


def test_guidance_of_one_is_the_conditional_answer():
    x = latents(6)
    plan = plan_windows(6, length=4, overlap=1)
    one, three = (windowed_denoiser(Network(0.0), plan, guidance=(g, g))(x, 1.0) for g in (1.0, 3.0))
    assert torch.allclose(one, three, atol=1e-6)  # branches agree here, so strength does not matter


def test_guidance_rises_over_the_frames_of_the_video_not_of_the_window():
    assert guidance_per_frame(1, 3, 5).flatten().tolist() == [1, 1.5, 2, 2.5, 3]
    assert guidance_per_frame(1, 3, 5).shape == (5, 1, 1, 1)
    assert guidance_per_frame(2, 3, 1).flatten().tolist() == [2]
    x, sigma, plan = latents(9), 1.0, plan_windows(9, length=4, overlap=1)
    scale = scalings(sigma)
    denoised = windowed_denoiser(Network(), plan, guidance=(1, 3))(x, sigma)
    v = torch.tanh(x * scale.c_in) + scale.c_noise + torch.linspace(1, 3, 9).view(-1, 1, 1, 1)
    assert torch.allclose(denoised, scale.skip * x + scale.out * v, atol=1e-5)


def test_each_window_is_told_when_it_is_done():
    plan, done = plan_windows(13, length=5, overlap=2), []
    windowed_denoiser(Network(), plan, guidance=(3, 3), on_window=lambda: done.append(1))(latents(13), 1.0)
    assert len(done) == len(plan)


def test_overlapping_answers_are_blended_by_the_plans_weights():
    """A network that answers its window's number: a frame's output is the weighted mean of the numbers."""
    plan = plan_windows(9, length=6, overlap=2)
    numbers = {window.frames: float(k) for k, window in enumerate(plan)}

    def predict(latents: Tensor, c_noise: float, window: Window, conditional: bool) -> Tensor:
        return torch.full_like(latents, numbers[window.frames])

    x = torch.zeros(9, *SHAPE)
    scale = scalings(1.0)
    blended = windowed_denoiser(predict, plan, guidance=(1, 1))(x, 1.0) / scale.out
    assert blended.mean((1, 2, 3)).tolist() == pytest.approx([0, 0, 0, 0, 0.25, 0.75, 1, 1, 1])


def test_guidance_on_an_interval_is_guidance_inside_and_none_outside():
    network, plan, x = Network(), plan_windows(6, length=4, overlap=1), latents(6)
    guided, plain = (windowed_denoiser(network, plan, guidance=(g, g)) for g in (3.0, 1.0))
    denoise = with_guidance_interval((0.5, 50.0), guided, plain)
    for sigma, inside in ((700.0, False), (50.1, False), (50.0, True), (1.0, True), (0.5, False), (0.01, False)):
        network.asked.clear()
        answer = denoise(x, sigma)
        assert len(network.asked) == len(plan) * (2 if inside else 1), sigma
        assert torch.equal(answer, (guided if inside else plain)(x, sigma))


def test_a_network_that_looks_at_frames_alone_does_not_see_windows_move():
    """Whatever turn it is: the answer is that of no windows at all. Turns go on as they are told, and begin again."""
    plan = plan_windows(11, length=4, overlap=1, blend="shifted")
    asked: list[tuple[int, ...]] = []

    def predict(latents, c_noise, window, conditional):
        asked.append(window.frames)
        return latents.square() * (1 + conditional)

    ways = [
        windowed_denoiser(predict, plan.placement(turn), guidance=(1.0, 3.0)) for turn in range(plan.num_placements)
    ]
    moving = alternate(ways, iter([0, 0, 3, 9]))
    whole = windowed_denoiser(predict, plan_windows(11, length=11, overlap=0), guidance=(1.0, 3.0))
    x = torch.linspace(-1, 1, 11 * 2 * 2 * 2).reshape(11, 2, 2, 2)
    for turn in (0, 0, 3, 1):
        asked.clear()
        torch.testing.assert_close(moving(x, 0.7), whole(x, 0.7))
        assert asked[: 2 * len(plan) : 2] == [window.frames for window in plan.placement(turn)]
