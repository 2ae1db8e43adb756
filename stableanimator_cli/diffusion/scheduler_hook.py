"""A ``Refine`` hook on the denoised estimate of any diffusers pipeline, through its scheduler's ``step``.

A pipeline passes each model output to ``scheduler.step``, and its callbacks do not see the denoised estimate. That is
linear in the model output, ``denoised = p * sample + q * output`` with p and q from the scheduler's tables. So the
output ``output + (refined - denoised) / q`` has the refined estimate, and the scheduler continues with its own solver,
order and noise. Schedulers are recognised by class names and read by attributes: diffusers is not imported.

Sources: Song et al., "Denoising Diffusion Implicit Models" eq. 12 (alphas); Salimans & Ho, "Progressive Distillation"
§4 (v); Karras et al., "Elucidating the Design Space" Table 1 (sigmas); Lipman et al., "Flow Matching" (flow).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import update_wrapper
from types import MappingProxyType, MethodType
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor

from stableanimator_cli.diffusion.sampler import Refine, Step


class Fold(Protocol):
    """Layout of one video's frames in a pipeline's latents."""

    def frames(self, latents: Tensor) -> Tensor:
        """The pipeline's latents -> [t,c,h,w]."""
        ...

    def back(self, frames: Tensor, latents: Tensor) -> Tensor:
        """``latents`` with ``frames`` [t,c,h,w] put back."""
        ...


@dataclass(frozen=True, slots=True)
class Axes:
    """Latents with the axes ``order`` in einops notation: ``1 c t h w``, ``1 t c h w``, ``1 c h w`` or ``t c h w``.

    The first ``skip`` latents along time are not part of the video and stay unchanged (Wan-Animate's reference image).
    """

    order: str
    skip: int = 0

    def __post_init__(self) -> None:
        if sorted(self.order.split()) not in (["1", "c", "h", "t", "w"], ["1", "c", "h", "w"], ["c", "h", "t", "w"]):
            raise ValueError(f"fold {self.order!r}, expected c, h, w with t or 1 (the batch) or both, as '1 c t h w'")

    def frames(self, latents: Tensor) -> Tensor:
        return self._unfold(latents)[self.skip :]

    def back(self, frames: Tensor, latents: Tensor) -> Tensor:
        full = torch.cat([self._unfold(latents)[: self.skip], frames]) if self.skip else frames
        return rearrange(full, f"{self._axes} -> {self.order}")

    @property
    def _axes(self) -> str:
        return "t c h w" if "t" in self.order.split() else "1 c h w"

    def _unfold(self, latents: Tensor) -> Tensor:
        shape, axes = list(latents.shape), self.order.split()
        if len(shape) != len(axes):
            raise ValueError(f"latents {shape}, expected {len(axes)} axes ({self.order}): name the axes with fold")
        if "1" in axes and shape[axes.index("1")] != 1:
            raise ValueError(
                f"latents {shape} are a batch of {shape[axes.index('1')]}, expected 1 ({self.order}): give one prompt "
                "and one video per prompt, or name the axes with fold"
            )
        return rearrange(latents, f"{self.order} -> {self._axes}")


@contextmanager
def refined(scheduler: Any, refine: Refine, *, fold: Fold | str | None = None) -> Iterator[None]:
    """Make each ``scheduler.step`` within it use ``refine(denoised, step)`` as its denoised estimate.

    ``refine`` receives the estimate as float32 [t,c,h,w] in the scale of the pipeline's latents, and a ``Step`` with
    the scheduler's denoising steps and noise levels (flow matching: 0 to 1). ``FaceOptimization`` is such a function.
    If it returns equal values the model output is unchanged. Of a Heun step the first evaluation is refined. ``fold``
    is the layout of frames in latents, as axes in einops notation or a ``Fold``; by default ``1 c t h w``, with four
    axes ``1 c h w``.

    The scheduler's own ``step`` is restored on exit. Copies of the scheduler are not refined. Raises ``ValueError`` for
    an unknown scheduler or prediction type, for settings that make the estimate nonlinear (``thresholding``,
    ``clip_sample``, churn), and for latents that ``fold`` does not fit.
    """
    estimate = _find_family(scheduler)
    fold = Axes(fold) if isinstance(fold, str) else fold
    own = vars(scheduler).get("step")
    scheduler.step = _RefinedStep(scheduler, scheduler.step, estimate, refine, fold)
    try:
        yield
    finally:
        if own is None:
            del scheduler.step  # uncovers the class's own
        else:
            scheduler.step = own


def why_not_refined(scheduler: Any) -> str | None:
    """Why ``refined`` refuses a scheduler, None if it does not."""
    try:
        _find_family(scheduler)
    except ValueError as error:
        return str(error)
    return None


@dataclass(frozen=True, slots=True)
class _Coefficients:
    """``clean = p * sample + q * output`` at one step."""

    step: Step
    p: float
    q: float


class _RefinedStep:
    """A scheduler's ``step`` that refines first. It has the wrapped signature, which pipelines inspect."""

    def __init__(
        self,
        scheduler: Any,
        inner: Callable[..., Any],
        estimate: Callable[[Any, Any], _Coefficients],
        refine: Refine,
        fold: Fold | None,
    ) -> None:
        self._scheduler = scheduler
        self._inner = inner
        self._estimate = estimate
        self._refine = refine
        self._fold = fold
        update_wrapper(self, inner, updated=())  # the inner one may have attributes of the same names

    def __call__(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(self._inner).bind(model_output, timestep, sample, *args, **kwargs).arguments
        name = type(self._scheduler).__name__
        for option in ("s_churn", "per_token_timesteps"):
            if isinstance(given.get(option), Tensor) or given.get(option):
                raise ValueError(f"{name}: a step with {option} has no single clean estimate to refine; leave it out")
        if model_output.shape != sample.shape:
            found = f"a model output {list(model_output.shape)} for latents {list(sample.shape)}"
            raise ValueError(f"{name}: {found}, expected the same shape (no learned variance)")
        # Heun's second evaluation only corrects the slope of the first (StableAnimator, Algorithm 1).
        if getattr(self._scheduler, "state_in_first_order", True):
            model_output = self._refined_output(model_output, timestep, sample)
        return self._inner(model_output, timestep, sample, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy steps unrefined: pipelines copy schedulers for other modalities (sound)."""
        copied = memo.get(id(self._scheduler), self._scheduler)
        function = getattr(self._inner, "__func__", None)
        return deepcopy(self._inner, memo) if function is None else MethodType(function, copied)

    def _refined_output(self, output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
        at = self._estimate(self._scheduler, timestep)
        fold = self._fold or Axes("1 c h w" if sample.ndim == 4 else "1 c t h w")
        # tensors created in inference mode cannot have gradients, and leaving that mode enables gradients
        with torch.inference_mode(False), torch.no_grad():
            exact = torch.promote_types(sample.dtype, torch.float32)
            clean = at.p * sample.to(exact) + at.q * output.to(exact)
            frames = fold.frames(clean)
            better = self._refine(frames, at.step)
            if better is frames:
                return output
            if better.shape != frames.shape:
                raise ValueError(f"refine returned {list(better.shape)} for a clean estimate {list(frames.shape)}")
            better = better.detach().to(frames)
            if torch.equal(better, frames):
                return output
            return (output.to(exact) + (fold.back(better, clean) - clean) / at.q).to(output.dtype)


def _find_family(scheduler: Any) -> Callable[[Any, Any], _Coefficients]:
    """The function that computes coefficients for this kind of scheduler. Raises ``ValueError`` if unsupported."""
    kinds = [kind.__name__ for kind in type(scheduler).__mro__]
    name = kinds[0]
    found = next((FAMILIES[kind] for kind in kinds if kind in FAMILIES), None)
    if found is None:
        raise ValueError(f"{name}: a scheduler that cannot be refined; known are {', '.join(sorted(FAMILIES))}")
    estimate, predictions = found
    config = scheduler.config
    for option in ("thresholding", "clip_sample", "invert_sigmas"):
        if config.get(option):
            hint = f"make it again with {option}=False: {name}.from_config(scheduler.config, {option}=False)"
            raise ValueError(f"{name}: {option}={config[option]}, expected False for a refined clean estimate; {hint}")
    prediction = config.get("prediction_type", "flow_prediction")
    if prediction not in predictions:
        raise ValueError(f"{name}: prediction_type {prediction!r}, expected one of {', '.join(predictions)}")
    return estimate


def _from_alphas(scheduler: Any, timestep: Any) -> _Coefficients:
    """DDIM and DDPM: ``sample = sqrt(a) clean + sqrt(1 - a) noise`` with a from ``alphas_cumprod``."""
    found = (scheduler.timesteps == int(timestep)).nonzero()
    if not len(found):
        raise ValueError(f"{type(scheduler).__name__}: step at timestep {int(timestep)}, which is not in its timesteps")
    index, total = int(found[0]), len(scheduler.timesteps)
    last = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
    after = float(scheduler.alphas_cumprod[int(scheduler.timesteps[index + 1])]) if index + 1 < total else last
    share = float(scheduler.alphas_cumprod[int(timestep)])
    step = Step(index, total, _noise_level(share), _noise_level(after))
    return _coefficients(scheduler, step, math.sqrt(share), math.sqrt(1 - share))


def _from_sigmas(scheduler: Any, timestep: Any) -> _Coefficients:
    """Euler and its kin: ``sample = clean + sigma noise``; v is that of the sample scaled by 1 / sqrt(1 + sigma^2)."""
    step = _current_step(scheduler, timestep)
    scale = 1 / math.sqrt(1 + step.sigma**2)
    if scheduler.config["prediction_type"] == "v_prediction":
        return _Coefficients(step, scale**2, -step.sigma * scale)
    return _coefficients(scheduler, step, 1.0, step.sigma)


def _from_flow(scheduler: Any, timestep: Any) -> _Coefficients:
    """Flow matching: ``sample = (1 - sigma) clean + sigma noise``, the output is noise minus clean."""
    step = _current_step(scheduler, timestep)
    return _Coefficients(step, 1.0, -step.sigma)


def _from_solver(scheduler: Any, timestep: Any) -> _Coefficients:
    """Multistep solvers: ``sample = alpha clean + sigma_t noise`` with both from the level of the step."""
    step = _current_step(scheduler, timestep)
    if scheduler.config["prediction_type"] == "flow_prediction":
        return _Coefficients(step, 1.0, -step.sigma)
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(torch.tensor(step.sigma, dtype=torch.float64))
    return _coefficients(scheduler, step, float(alpha), float(sigma))


def _coefficients(scheduler: Any, step: Step, alpha: float, sigma: float) -> _Coefficients:
    """From ``sample = alpha clean + sigma noise`` and what the model predicts."""
    prediction = scheduler.config["prediction_type"]
    if prediction == "epsilon":
        if alpha == 0:
            where = f"{type(scheduler).__name__}: step {step.index}"
            raise ValueError(f"{where} starts from pure noise, where epsilon does not determine the clean estimate")
        return _Coefficients(step, 1 / alpha, -sigma / alpha)
    if prediction == "v_prediction":
        return _Coefficients(step, alpha, -sigma)
    return _Coefficients(step, 0.0, 1.0)  # the clean sample itself


def _current_step(scheduler: Any, timestep: Any) -> Step:
    """The next step of a scheduler with a table of sigmas, found as its ``step`` does, without side effects."""
    index = scheduler.step_index
    if index is None:
        index = scheduler.begin_index
    if index is None:
        at = timestep.to(scheduler.timesteps.device) if isinstance(timestep, Tensor) else timestep
        index = scheduler.index_for_timestep(at)
    total = len(scheduler.timesteps)
    levels = float(scheduler.sigmas[index]), float(scheduler.sigmas[index + 1])
    if hasattr(scheduler, "state_in_first_order"):  # each step but the last is twice in the tables
        return Step(index // 2, (total + 1) // 2, *levels)
    return Step(index, total, *levels)


def _noise_level(share: float) -> float:
    """Noise relative to signal, from the signal's share of the variance."""
    return math.sqrt((1 - share) / share) if share > 0 else math.inf


_NOISE = ("epsilon", "v_prediction", "sample")
_SOLVER = (*_NOISE, "flow_prediction")

FAMILIES: Mapping[str, tuple[Callable[[Any, Any], _Coefficients], tuple[str, ...]]] = MappingProxyType(
    {
        "DDIMScheduler": (_from_alphas, _NOISE),
        "DDIMParallelScheduler": (_from_alphas, _NOISE),
        "DDPMScheduler": (_from_alphas, _NOISE),
        "DDPMParallelScheduler": (_from_alphas, _NOISE),
        "CogVideoXDDIMScheduler": (_from_alphas, _NOISE),
        "EulerDiscreteScheduler": (_from_sigmas, _NOISE),
        "EulerAncestralDiscreteScheduler": (_from_sigmas, _NOISE[:2]),
        "HeunDiscreteScheduler": (_from_sigmas, _NOISE),
        "LMSDiscreteScheduler": (_from_sigmas, _NOISE),
        "FlowMatchEulerDiscreteScheduler": (_from_flow, ("flow_prediction",)),
        "FlowMatchHeunDiscreteScheduler": (_from_flow, ("flow_prediction",)),
        "UniPCMultistepScheduler": (_from_solver, _SOLVER),
        "DPMSolverMultistepScheduler": (_from_solver, _SOLVER),
        "DEISMultistepScheduler": (_from_solver, _SOLVER),
    }
)
"""Supported schedulers by class name: the function that computes coefficients, and prediction types."""
