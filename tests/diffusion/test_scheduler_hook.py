"""Refinement through a scheduler: every family's clean estimate, bytes that stay, and what cannot be refined."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import pytest
import torch
from einops import rearrange

from stableanimator_cli.diffusion.face_optimization import FaceOptimization, FaceOptimizationSettings, Target
from stableanimator_cli.diffusion.sampler import Step, sample_euler, sample_heun
from stableanimator_cli.diffusion.scheduler_hook import FAMILIES, Axes, refined

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PLAIN = {**SD, "clip_sample": False}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
STEPS = 5
SHAPE = (1, 4, 3, 4, 4)

CASES = [
    *[(name, {**PLAIN, "prediction_type": kind})
      for name in ("DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler",
                   "CogVideoXDDIMScheduler", "HeunDiscreteScheduler")
      for kind in ("epsilon", "v_prediction", "sample")],
    *[(name, {**SD, "prediction_type": kind})
      for name in ("EulerDiscreteScheduler", "LMSDiscreteScheduler", "UniPCMultistepScheduler",
                   "DPMSolverMultistepScheduler", "DEISMultistepScheduler")
      for kind in ("epsilon", "v_prediction", "sample")],
    *[("EulerAncestralDiscreteScheduler", {**SD, "prediction_type": kind}) for kind in ("epsilon", "v_prediction")],
    *[(name, FLOW) for name in ("UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "DEISMultistepScheduler")],
    ("UniPCMultistepScheduler", {**SD, "prediction_type": "epsilon", "predict_x0": False,
                                 "final_sigmas_type": "sigma_min"}),
    ("DPMSolverMultistepScheduler", {**SD, "prediction_type": "epsilon", "algorithm_type": "sde-dpmsolver++"}),
    ("DDIMScheduler", {**PLAIN, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
                       "timestep_spacing": "trailing"}),
    ("EulerDiscreteScheduler", {**SD, "prediction_type": "v_prediction", "use_karras_sigmas": True,
                                "timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 700.0}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "stochastic_sampling": True}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
]  # fmt: skip


# diffusers makes its tables of sigmas from arrays of a kind that numpy is about to leave behind
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


def made(name: str, config: dict[str, Any], steps: int = STEPS) -> Any:
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(steps)
    return scheduler


def noise(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stepped(scheduler: Any, each: Callable[[Any, torch.Tensor, Any], None] | None = None) -> torch.Tensor:
    """Denoise by a model that answers with fixed noise, as pipelines do; a generator where the scheduler takes one."""
    x = noise(0) * float(scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else 1)
    options = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = torch.Generator().manual_seed(1)
    for index, t in enumerate(scheduler.timesteps):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        result = scheduler.step(noise(2 + index), t, x, **options)
        if each is not None:
            each(result, x, t)
        x = result.prev_sample
    return x


class Recorder:
    """A refinement that moves each estimate by noise of its own, and keeps what it saw and said."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.said: list[torch.Tensor] = []

    def __call__(self, clean: torch.Tensor, step: Step) -> torch.Tensor:
        self.steps.append(step)
        self.said.append(clean + 0.3 * noise(100 + step.index, tuple(clean.shape)))
        return self.said[-1]


def own_estimate(scheduler: Any, result: Any, sample: torch.Tensor, step: Step) -> tuple[torch.Tensor, float]:
    """The clean estimate that the scheduler worked with in the step that it just took, and by how much more than a
    float's own its rounding shows: some schedulers keep the noise, from which the estimate is had again."""
    if "pred_original_sample" in result:
        return result.pred_original_sample, 1.0
    if hasattr(scheduler, "model_outputs"):
        held = scheduler.model_outputs[-1]
        if scheduler.config.get("predict_x0", True) and scheduler.config.get("algorithm_type") != "deis":
            return held, 1.0
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(torch.tensor(step.sigma, dtype=torch.float64))
        return ((sample - sigma * held) / alpha).float(), float(1 / alpha)
    if scheduler.config.get("stochastic_sampling"):
        again = torch.Generator().manual_seed(1)
        for _ in range(step.index + 1):
            drawn = torch.randn(SHAPE, generator=again)
        return (result.prev_sample - step.sigma_next * drawn) / (1 - step.sigma_next), 1.0
    slope = (result.prev_sample - sample) / (step.sigma_next - step.sigma)
    return sample - step.sigma * slope, 1.0


@pytest.mark.parametrize(("name", "config"), CASES)
def test_the_schedulers_own_estimate_is_the_refined_one(name, config):
    scheduler, recorder = made(name, config), Recorder()
    checked = []

    def check(result, sample, t):
        if len(recorder.said) > len(checked):  # not a second evaluation
            expected = rearrange(recorder.said[-1], "t c h w -> 1 c t h w")
            found, gain = own_estimate(scheduler, result, sample, recorder.steps[-1])
            size = max(gain, float(sample.abs().max()))  # what is rounded is the output, as large as the noise is
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * size)
            checked.append(found)

    with refined(scheduler, recorder):
        after = stepped(scheduler, check)
    assert [(step.index, step.total) for step in recorder.steps] == [(index, STEPS) for index in range(STEPS)]
    assert len(checked) == STEPS
    levels = [step.sigma for step in recorder.steps]
    assert levels == sorted(levels, reverse=True)
    assert [step.sigma_next for step in recorder.steps[:-1]] == levels[1:]
    assert not torch.equal(after, stepped(made(name, config)))


@pytest.mark.parametrize(("name", "config"), CASES)
@pytest.mark.parametrize("same", [lambda clean, step: clean, lambda clean, step: clean.clone()], ids=["very", "equal"])
def test_an_unchanged_estimate_changes_no_byte(name, config, same):
    scheduler = made(name, config)
    with refined(scheduler, same):
        through = stepped(scheduler)
    assert torch.equal(through, stepped(made(name, config)))


def test_every_family_is_tried():
    assert {name for name, _ in CASES} == set(FAMILIES)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_it_is_the_refinement_of_our_own_samplers(name):
    scheduler = made(name, {**SD, "prediction_type": "epsilon"})
    sigmas = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]]) if name[0] == "H" else scheduler.sigmas
    start = noise(0) * float(scheduler.init_noise_sigma)

    def denoise(x, sigma):
        return x / (1 + sigma**2) + 0.1

    theirs = start
    with refined(scheduler, Recorder()):
        for t in scheduler.timesteps:
            scheduler.scale_model_input(theirs, t)
            level = float(scheduler.sigmas[scheduler.step_index or 0])
            theirs = scheduler.step((theirs - denoise(theirs, level)) / level, t, theirs).prev_sample
    folded = rearrange(start, "1 c t h w -> t c h w")
    if name[0] == "H":
        ours = sample_heun(denoise, folded, sigmas, noise=lambda index: folded, refine=Recorder())
    else:
        ours = sample_euler(denoise, folded, sigmas, refine=Recorder())
    torch.testing.assert_close(rearrange(theirs, "1 c t h w -> t c h w"), ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("shape", "fold", "frames"),
    [
        ((1, 4, 3, 6, 5), None, (3, 4, 6, 5)),
        ((1, 3, 4, 6, 5), "1 t c h w", (3, 4, 6, 5)),
        ((1, 4, 6, 5), None, (1, 4, 6, 5)),
        ((3, 4, 6, 5), "t c h w", (3, 4, 6, 5)),
        ((1, 4, 3, 6, 5), Axes("1 c t h w", skip=1), (2, 4, 6, 5)),
    ],
)
def test_latents_of_several_shapes(shape, fold, frames):
    scheduler, recorder = made("DDIMScheduler", PLAIN), Recorder()
    output, sample, t = noise(1, shape), noise(2, shape), scheduler.timesteps[0]
    before = scheduler.step(output, t, sample).pred_original_sample
    with refined(scheduler, recorder, fold=fold):
        after = scheduler.step(model_output=output, timestep=t, sample=sample).pred_original_sample
    assert recorder.said[0].shape == frames
    moved = (after != before).transpose(0, 2 if shape[1] == 4 and len(shape) == 5 else 1 if len(shape) == 5 else 0)
    skipped = getattr(fold, "skip", 0)
    assert not moved[:skipped].any()
    assert moved[skipped:].float().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_in_and_out(dtype):
    scheduler, recorder = made("EulerDiscreteScheduler", {**SD, "prediction_type": "v_prediction"}), Recorder()
    x, t = noise(0).to(dtype), scheduler.timesteps[1]
    scheduler.scale_model_input(x, t)
    with refined(scheduler, recorder):
        result = scheduler.step(noise(1).to(dtype), t, x)
    assert recorder.said[0].dtype == torch.float32
    assert result.prev_sample.dtype == dtype
    expected = rearrange(recorder.said[0], "t c h w -> 1 c t h w")
    torch.testing.assert_close(result.pred_original_sample.float(), expected, atol=8 * torch.finfo(dtype).eps, rtol=0)


def test_gradients_are_possible_in_inference_mode():
    def refine(clean, step):
        with torch.enable_grad():
            variable = clean.clone().requires_grad_(True)
            (variable**2).sum().backward()
        return clean - 0.1 * variable.grad

    with torch.inference_mode():
        scheduler = made("DDIMScheduler", PLAIN)
        assert noise(0).is_inference()
        plain = stepped(scheduler)
        with refined(scheduler, refine):
            assert not torch.equal(stepped(scheduler), plain)


def test_a_schedule_that_starts_in_the_middle():
    scheduler, recorder = made("UniPCMultistepScheduler", FLOW), Recorder()
    scheduler.set_begin_index(2)
    with refined(scheduler, recorder):
        scheduler.step(noise(1), scheduler.timesteps[2], noise(0))
    assert (recorder.steps[0].index, recorder.steps[0].total) == (2, STEPS)


def test_the_scheduler_is_as_before_whatever_happens():
    scheduler = made("DDIMScheduler", PLAIN)
    before = dict(vars(scheduler))

    def failing(clean, step):
        raise RuntimeError("no face today")

    with refined(scheduler, failing):
        assert "eta" in inspect.signature(scheduler.step).parameters  # pipelines look there
    with pytest.raises(RuntimeError, match="no face today"):
        takes_a_step(scheduler, refine=failing)
    assert vars(scheduler) == before
    inner, outer = Recorder(), Recorder()
    with refined(scheduler, inner):
        with refined(scheduler, outer):
            stepped(scheduler)
        stepped(scheduler)
    assert (len(inner.steps), len(outer.steps)) == (2 * STEPS, STEPS)
    assert vars(scheduler).keys() == before.keys()


def test_a_copy_made_within_is_a_scheduler_of_its_own():
    scheduler, recorder = made("EulerDiscreteScheduler", {**SD, "prediction_type": "epsilon"}), Recorder()
    with refined(scheduler, recorder):
        other = copy.deepcopy(scheduler)
        stepped(other)
        assert (recorder.steps, scheduler.step_index, other.step_index) == ([], None, STEPS)


class Strange:
    """A scheduler that nobody knows."""


def takes_a_step(scheduler: Any, shape=SHAPE, fold: Any = None, refine: Any = None, **options: Any) -> None:
    with refined(scheduler, refine or Recorder(), fold=fold):
        scheduler.step(noise(1, shape), scheduler.timesteps[0], noise(0, shape), **options)


@pytest.mark.parametrize(
    ("name", "config", "says"),
    [
        ("LCMScheduler", SD, "LCMScheduler: a scheduler that cannot be refined; known are CogVideoXDDIM"),
        ("DDIMScheduler", SD, "DDIMScheduler: clip_sample=True, expected False"),
        ("DPMSolverMultistepScheduler", {"thresholding": True}, "DPMSolverMultistepScheduler: thresholding=True"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas=True"),
        (
            "DDIMScheduler",
            {**PLAIN, "prediction_type": "magic"},
            "prediction_type 'magic', expected one of epsilon, v_",
        ),
        ("EulerDiscreteScheduler", {"prediction_type": "flow"}, "prediction_type 'flow'"),
    ],
)
def test_schedulers_that_cannot_be_refined(name, config, says):
    scheduler = made(name, config)
    with pytest.raises(ValueError, match=says):
        takes_a_step(scheduler)
    assert "step" not in vars(scheduler)
    with pytest.raises(ValueError, match="Strange: a scheduler that cannot be refined"):
        takes_a_step(Strange())


@pytest.mark.parametrize(
    ("shape", "fold", "says"),
    [
        ((2, 4, 3, 4, 4), None, "batch of 2, expected 1 .*one prompt"),
        ((2, 4, 4, 4), None, "batch of 2, expected 1 .*fold"),
        ((1, 64, 16), None, r"latents \[1, 64, 16\], expected 5 axes .*fold"),
        (SHAPE, "b c t h w", "fold 'b c t h w', expected c, h, w with t or 1"),
        (SHAPE, "1 c h w", r"latents \[1, 4, 3, 4, 4\], expected 4 axes"),
    ],
)
def test_latents_that_do_not_fold(shape, fold, says):
    with pytest.raises(ValueError, match=says):
        takes_a_step(made("DDIMScheduler", PLAIN), shape, fold)


def test_steps_that_cannot_be_refined():
    with pytest.raises(ValueError, match="EulerDiscreteScheduler: a step with s_churn"):
        takes_a_step(made("EulerDiscreteScheduler", SD), s_churn=1.0)
    with pytest.raises(ValueError, match=r"refine returned \[1, 4, 4, 4\] for a clean estimate \[3, 4, 4, 4\]"):
        takes_a_step(made("DDIMScheduler", PLAIN), refine=lambda clean, step: clean[:1])
    zero_snr = {**PLAIN, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(ValueError, match="DDIMScheduler: step 0 starts from pure noise"):
        takes_a_step(made("DDIMScheduler", zero_snr))


def test_outputs_and_timesteps_that_do_not_belong():
    scheduler = made("DDPMScheduler", {**PLAIN, "variance_type": "learned_range"})
    with refined(scheduler, Recorder()):
        with pytest.raises(ValueError, match=r"\[1, 8, 4, 4\] for latents \[1, 4, 4, 4\].*learned variance"):
            scheduler.step(noise(1, (1, 8, 4, 4)), scheduler.timesteps[0], noise(0, (1, 4, 4, 4)))
        with pytest.raises(ValueError, match="DDPMScheduler: step at timestep 7, which is not in its timesteps"):
            scheduler.step(noise(1), 7, noise(0))


@pytest.mark.parametrize("name", ["DDIMScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler"])
def test_faces_are_searched_in_every_step_and_again_in_the_next_segment(name):
    """A face that shows from the third step on is refined from there; a pipeline's next segment starts over."""
    box, asked = (0, 0, 31, 31), []

    def find(clean: torch.Tensor, frames: Sequence[int]) -> list[Target]:
        asked.append(list(frames))
        late = len(asked) % STEPS == 3  # nothing in steps 0 and 1, frame 2 in step 2, nothing more in steps 3 and 4
        return [Target(boxes=(None, None, box if late else None), vector=torch.ones(4))]

    optimise = FaceOptimization(
        PixelDecoder(),
        lambda pixels, boxes: pixels.mean(dim=(2, 3)) + torch.arange(4),
        [],
        FaceOptimizationSettings(mode="full", steps=(0, STEPS), iterations=1, chunk=3),
        detect=find,
    )
    scheduler = made(name, {**PLAIN, "prediction_type": "epsilon"} if name != "UniPCMultistepScheduler" else SD)
    for segment in (1, 2):
        scheduler.set_timesteps(STEPS)
        with refined(scheduler, optimise):
            stepped(scheduler)
        assert [(entry.step, entry.frames) for entry in optimise.log] == [(2, 1), (3, 1), (4, 1)] * segment
    assert asked == ([[0, 1, 2]] * 3 + [[0, 1]] * 2) * 2


class PixelDecoder:
    """Latents as pixels, eight to a side, with all four channels."""

    scale = 8

    def frames(self, latents: range) -> range:
        return latents

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
