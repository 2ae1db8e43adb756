"""Face optimisation in two of diffusers' own pipelines, unforked: AnimateDiff (epsilon, DDIM) and Wan-Animate (flow
matching, UniPC, a VAE that compresses time), with small random weights and a small ArcFace."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    UNet2DConditionModel,
    WanAnimatePipeline,
)
from PIL import Image
from torch import Tensor

from stableanimator_cli.diffusion.face_optimization import Box, FaceOptimization, FaceOptimizationSettings, Target
from stableanimator_cli.diffusion.sampler import Step
from stableanimator_cli.diffusion.scheduler_hook import Axes, Fold, refined
from stableanimator_cli.nets.arcface import ArcFace, crop_resize
from tests import tiny_wan
from tests.nets.iresnet import IResNet, filled, to_onnx

SIZE, STEPS = 64, 4
BOX: Box = (16, 16, 39, 39)

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


PAGE = Path(__file__).resolve().parents[2] / "docs" / "face-optimization.md"
USE, DECODERS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def decoders() -> dict[str, Any]:
    """The decoders of the documentation: what users copy is what is tried."""
    names: dict[str, Any] = {}
    exec(compile(DECODERS, str(PAGE), "exec"), names)
    return names


@dataclass
class Backbone:
    """A pipeline, how to run it, and what is needed to see its faces."""

    pipe: Any
    call: dict[str, Any]
    decoder: Any
    frames: int
    fold: Fold | None
    own_estimate: Callable[[Any, Any], Tensor]  # scheduler, result of its step -> latents
    seen: list[Tensor] = field(default_factory=list)

    def run(self, refine: Callable[[Tensor, Step], Tensor] | None = None) -> Tensor:
        """The latents that the pipeline ends with; the scheduler's own estimates are kept in ``seen``."""
        generator = torch.Generator().manual_seed(3)
        if refine is None:
            return self.pipe(**self.call, generator=generator).frames
        scheduler, seen = self.pipe.scheduler, self.seen
        seen.clear()
        plain = scheduler.step

        def watched(*args: Any, **kwargs: Any) -> Any:
            result = plain(*args, **kwargs)
            seen.append(self.own_estimate(scheduler, result).clone())
            return result

        scheduler.step = watched
        try:
            with refined(scheduler, refine, fold=self.fold):
                return self.pipe(**self.call, generator=generator).frames
        finally:
            assert scheduler.step is watched  # refined() gave back what it found
            del scheduler.step

    def folded(self, latents: Tensor) -> Tensor:
        return (self.fold or Axes("1 c t h w")).frames(latents)


@pytest.fixture(scope="module")
def recogniser() -> ArcFace:
    return ArcFace(to_onnx(filled(IResNet(widths=(4, 8, 8, 16), features=32, stem=4))))


def animate_diff() -> Backbone:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        norm_num_groups=2,
        attention_head_dim=2,
    )
    adapter = MotionAdapter(
        block_out_channels=(8, 8), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
    ).requires_grad_(False)
    pipe = AnimateDiffPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        motion_adapter=adapter,
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False),
    )
    pipe.set_progress_bar_config(disable=True)
    call = {
        "prompt_embeds": torch.randn(1, 5, 8),
        "negative_prompt_embeds": torch.randn(1, 5, 8),
        "guidance_scale": 2.0,
        "num_frames": 4,
        "height": SIZE,
        "width": SIZE,
        "num_inference_steps": STEPS,
        "output_type": "latent",
    }
    return Backbone(
        pipe, call, decoders()["ImageDecoder"](vae), 4, None, lambda scheduler, result: result.pred_original_sample
    )


def wan_animate() -> Backbone:
    pipe = WanAnimatePipeline(**{**tiny_wan.parts(), "tokenizer": None, "text_encoder": None})
    vae = pipe.vae.requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    picture = Image.new("RGB", (SIZE, SIZE), (200, 100, 50))
    call = {
        "image": picture,
        "pose_video": [picture] * 9,
        "face_video": [picture.resize((16, 16))] * 9,
        "prompt_embeds": torch.randn(1, 512, 16),
        "segment_frame_length": 9,
        "height": SIZE,
        "width": SIZE,
        "num_inference_steps": STEPS,
        "output_type": "latent",
    }
    fold = Axes("1 c t h w", skip=1)  # the first latent is the reference picture's
    return Backbone(
        pipe, call, decoders()["WanDecoder"](vae), 9, fold, lambda scheduler, result: scheduler.model_outputs[-1]
    )


@pytest.fixture(scope="module", params=[animate_diff, wan_animate])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return request.param()


def optimisation(backbone: Backbone, recogniser: ArcFace, iterations: int, **settings: Any) -> FaceOptimization:
    """Towards the face of a random picture; no face in the second frame."""
    picture = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(9)) * 2 - 1
    boxes = tuple(None if frame == 1 else BOX for frame in range(backbone.frames))
    return FaceOptimization(
        decoder=backbone.decoder,
        embed=lambda pixels, places: recogniser.embed(crop_resize(pixels, places)),
        targets=[Target(boxes=boxes, vector=recogniser.embed(picture)[0])],
        settings=FaceOptimizationSettings(
            **{"mode": "full", "steps": (0, STEPS), "iterations": iterations, "chunk": 8, **settings}
        ),
    )


def similarity(backbone: Backbone, optimise: FaceOptimization, latents: Tensor) -> float:
    with torch.no_grad():
        pixels = backbone.decoder.pixels(backbone.folded(latents)).clamp(-1, 1)
        vectors = optimise.embed(pixels, [BOX] * len(pixels))
    return float(F.cosine_similarity(vectors, optimise.targets[0].vector[None]).mean())


def test_no_iterations_change_no_byte(backbone, recogniser):
    plain, none = backbone.run(), optimisation(backbone, recogniser, 0)
    assert torch.equal(backbone.run(none), plain)
    assert none.log == []


def test_the_face_comes_nearer_and_the_schedulers_estimate_is_ours(backbone, recogniser):
    plain, optimise, said, steps = (
        backbone.run(),
        optimisation(backbone, recogniser, 6, lr=0.2, lr_schedule="constant"),
        [],
        [],
    )
    before = dict(vars(backbone.pipe.scheduler))

    def refine(clean: Tensor, step: Step) -> Tensor:
        steps.append(step)
        said.append(optimise(clean, step))
        return said[-1]

    latents = backbone.run(refine)
    assert vars(backbone.pipe.scheduler).keys() == before.keys()
    assert torch.equal(backbone.run(), plain)
    assert [(step.index, step.total) for step in steps] == [(index, STEPS) for index in range(STEPS)]
    for ours, theirs in zip(said, backbone.seen, strict=True):
        torch.testing.assert_close(backbone.folded(theirs), ours, atol=1e-5, rtol=1e-5)
    assert [entry.faces for entry in optimise.log] == [backbone.frames - 1] * STEPS
    assert all(entry.after > entry.before for entry in optimise.log)
    nearer, plainly = similarity(backbone, optimise, latents), similarity(backbone, optimise, plain)
    assert nearer > plainly + 0.005  # Adam is chaotic: with 1, 2 or 4 threads it gains 0.01 to 0.03


def test_the_background_can_be_left_alone(backbone, recogniser):
    optimise, said = optimisation(backbone, recogniser, 2, mode="crop", mask_dilation=0), []

    def refine(clean: Tensor, step: Step) -> Tensor:
        said.append(optimise(clean, step) != clean)
        return optimise(clean, step)

    backbone.run(refine)
    for moved in said:
        assert moved[..., 2:5, 2:5].any()
        moved[..., 2:5, 2:5] = False
        assert not moved.any()


def test_the_page_runs_as_it_is_written(recogniser, tmp_path, monkeypatch, capsys):
    backbone = wan_animate()
    monkeypatch.chdir(tmp_path)
    net = filled(IResNet(widths=(4, 8, 8, 16), features=32, stem=4))
    Path("glintr100.onnx").write_bytes(to_onnx(net).SerializeToString())
    names = {
        **decoders(),
        "pipe": backbone.pipe,
        "call": {**backbone.call, "output_type": "pt", "generator": torch.Generator().manual_seed(3)},
        "reference": torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(9)) * 2 - 1,
        "reference_box": BOX,
        "boxes": (BOX,) * backbone.frames,
    }
    exec(compile(USE, str(PAGE), "exec"), names)
    assert names["video"].shape == (backbone.frames, 3, SIZE, SIZE)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"step {index}" for index in range(STEPS)]
    assert all(line.endswith(f", {backbone.frames} faces") for line in lines)
