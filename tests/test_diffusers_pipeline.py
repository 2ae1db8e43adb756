"""``StableAnimatorPipeline``: frames of ``sa animate``, schedulers and callbacks of diffusers, a model folder."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

from stableanimator_cli import StableAnimatorPipeline, catalogue
from stableanimator_cli.catalogue import schema
from stableanimator_cli.catalogue.download import verify
from stableanimator_cli.engine.conditioning import PeopleFaces
from stableanimator_cli.engine.render import Timings, sample
from stableanimator_cli.errors import BadInput, ModelMissing, NoFace
from stableanimator_cli.media import read_image
from tests.tiny import engine_of, rendered, request

pytestmark = [  # of diffusers' schedulers with numpy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def pipeline(tiny_model) -> StableAnimatorPipeline:
    pipe = StableAnimatorPipeline.from_pretrained(tiny_model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe: StableAnimatorPipeline, wanted: Any, **changed: Any) -> Any:
    """The pipeline with the inputs and settings of a request of ``sa animate --noise repeat``."""
    sampling, windows = wanted.sampling, changed.pop("windows", (4, 1))
    settings = {
        "face_embedding": wanted.face, "num_inference_steps": sampling.steps, "tile_size": windows[0],
        "tile_overlap": windows[1], "generator": torch.Generator().manual_seed(sampling.seed), "output_type": "latent",
        "min_guidance_scale": sampling.guidance[0], "max_guidance_scale": sampling.guidance[1],
        "motion_bucket_id": sampling.motion_bucket, "noise_aug_strength": sampling.noise_aug,
    }  # fmt: skip
    poses = [wanted.poses.frame(index) for index in range(wanted.plan.total)]
    return pipe(wanted.image, poses, **{**settings, **changed}).frames


@pytest.mark.parametrize("guidance", [(1.0, 1.0), (1.0, 3.0)], ids=["plain", "guided"])
@pytest.mark.parametrize("face", [True, False], ids=["face", "no face"])
def test_the_latents_are_those_of_the_command(pipeline, tiny_model, guidance, face):
    wanted = square_request(guidance=guidance, face=face, steps=6)  # from 700 to 0.002 at once, float32 cancels
    with engine_of(tiny_model) as engine:
        expected = sample(engine, wanted, Timings())
    latents = call(pipeline, wanted, allow_no_face=True)
    assert latents.shape == (1, *expected.shape)
    spread = float(expected.std())
    assert float((latents[0] - expected).abs().max()) < 1e-4 * spread


@pytest.mark.parametrize("known", [True, False])
def test_several_people_are_those_of_the_command(pipeline, tiny_model, known):
    wanted = square_request(guidance=(1.0, 3.0), steps=6)
    vectors = np.random.default_rng(4).standard_normal((2, 512)).astype(np.float32)
    regions = np.random.default_rng(5).random((6, 3, 8, 8), np.float32)
    people = PeopleFaces(
        vectors=vectors if known else np.full_like(vectors, np.nan),
        regions=regions / regions.sum(axis=1, keepdims=True),
    )
    wanted = dataclasses.replace(wanted, face=people)
    with engine_of(tiny_model) as engine:
        expected = sample(engine, wanted, Timings())
    latents = call(pipeline, wanted)
    assert float((latents[0] - expected).abs().max()) < 1e-4 * float(expected.std())
    if known:
        first = call(pipeline, dataclasses.replace(wanted, face=vectors[0]))
        assert float((latents[0] - first[0]).abs().max()) > 1e-2 * float(expected.std())
        with pytest.raises(ValueError, match=r"expected \(5, 3, 8, 8\) for 5 frames of 64x64 pixels"):
            call(pipeline, dataclasses.replace(square_request(frames=5), face=people))


def test_windows_shift_as_in_the_command(pipeline, tiny_model):
    wanted = square_request(blend="shifted", steps=6)
    with engine_of(tiny_model) as engine:
        expected = sample(engine, wanted, Timings())
    latents = call(pipeline, wanted, blend="shifted")
    assert float((latents[0] - expected).abs().max()) < 1e-4 * float(expected.std())


def square_request(**changed: Any) -> Any:
    """A request whose resized image is what the pipeline makes of its image: square, and of the output's size."""
    wanted = request(noise="repeat", **changed)
    return dataclasses.replace(wanted, image=wanted.resized)


def test_the_frames_are_those_of_the_command(pipeline, tiny_model):
    wanted = square_request()
    with engine_of(tiny_model) as engine:
        expected = rendered(engine, wanted)
    (frames,) = call(pipeline, wanted, output_type="pil")
    assert len(frames) == wanted.plan.total
    assert isinstance(frames[0], Image.Image)
    difference = np.abs(np.stack([np.asarray(frame) for frame in frames]).astype(int) - expected)
    assert difference.max() <= 1
    array = call(pipeline, wanted, output_type="np")
    assert array.shape == (1, *expected.shape)
    tensor = call(pipeline, wanted, output_type="pt")
    assert torch.equal(tensor.permute(0, 1, 3, 4, 2), torch.from_numpy(array))


def test_images_of_pillow_are_those_of_the_file(pipeline, tmp_path):
    """As a phone turns them, with transparency, and of 16 bits: Pillow's own conversion loses all three."""
    pixels = square_request().image
    clear = np.dstack([pixels, np.arange(pixels[..., 0].size).reshape(pixels.shape[:2]).astype(np.uint8)])
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=turned)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) << 8).save(tmp_path / "deep.png")
    wanted = square_request(steps=1)
    for file in sorted(tmp_path.iterdir()):
        read = dataclasses.replace(wanted, image=read_image(file))
        with Image.open(file) as image:
            latents = call(pipeline, dataclasses.replace(wanted, image=image))
        assert torch.equal(latents, call(pipeline, read)), file.name
    with pytest.raises(ValueError, match=r"uint8\[h,w,3\], got float32"):
        call(pipeline, dataclasses.replace(wanted, image=pixels / np.float32(255)))


def test_schedulers_and_callbacks_of_diffusers(pipeline, tiny_model):
    wanted, seen = square_request(), []

    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append((index, tuple(tensors["latents"].shape)))
        return {"latents": tensors["latents"] * 0} if index == 1 else {}

    zeros = call(pipeline, wanted, callback_on_step_end=callback)
    assert seen == [(0, (1, 6, 4, 8, 8)), (1, (1, 6, 4, 8, 8))]
    assert not zeros.any()
    euler = call(pipeline, wanted)
    other = DPMSolverMultistepScheduler(
        prediction_type="v_prediction", use_karras_sigmas=True, algorithm_type="sde-dpmsolver++"
    )
    multistep = call(StableAnimatorPipeline.from_pretrained(tiny_model, scheduler=other), wanted)
    assert torch.isfinite(multistep).all()
    assert not torch.equal(multistep, euler)


def test_hooks_that_move_networks_change_nothing(pipeline, tiny_model):
    wanted = square_request()
    expected = call(pipeline, wanted)
    hooked = StableAnimatorPipeline.from_pretrained(tiny_model)
    moved = []
    for name in ("image_encoder", "face_encoder", "pose_net", "unet", "vae"):
        _, hook = cpu_offload_with_hook(getattr(hooked, name), torch.device("cpu"))
        moved.append(hook)
    assert torch.equal(call(hooked, wanted), expected)


def test_a_saved_pipeline_is_a_model_folder(pipeline, tiny_model, tmp_path):
    changed = StableAnimatorPipeline.from_pretrained(tiny_model)
    with torch.no_grad():
        changed.unet.conv_in.bias += 1
    changed.save_pretrained(tmp_path / "mine")
    verify(schema.read(tmp_path / "mine"))
    wanted = square_request(steps=6)
    again = call(StableAnimatorPipeline.from_pretrained(tmp_path / "mine"), wanted)
    assert torch.equal(again, call(changed, wanted))
    assert not torch.equal(again, call(pipeline, wanted))
    with engine_of(tmp_path / "mine") as engine:
        expected = sample(engine, wanted, Timings())
    assert float((again[0] - expected).abs().max()) < 1e-4 * float(expected.std())
    with pytest.raises(BadInput, match="existing"):
        changed.save_pretrained(tmp_path / "mine")


def test_what_is_missing_is_named(pipeline):
    wanted = square_request()
    with pytest.raises(ModelMissing, match="no face detector"):
        call(pipeline, wanted, face_embedding=None)
    with pytest.raises(ModelMissing, match="nowhere"):
        StableAnimatorPipeline.from_pretrained("./nowhere")
    with pytest.raises(ValueError, match="multiple of 8"):
        call(pipeline, wanted, width=60)
    with pytest.raises(ValueError, match="output_type 'numpy' is not one of pil, np, pt, latent"):
        call(pipeline, wanted, output_type="numpy")
    with pytest.raises(ValueError, match="one is needed per frame"):
        pipeline(wanted.image, [])
    with pytest.raises(ValueError, match="num_inference_steps is 0, expected 1 or more"):
        call(pipeline, wanted, num_inference_steps=0)
    for vector, problem in (
        (np.ones(511, np.float32), r"of shape \(511,\), expected \(512,\)"),
        (np.full(512, np.nan, np.float32), "is not finite"),
        (np.zeros(512, np.float32), "zeros only"),
    ):
        with pytest.raises(ValueError, match=f"face_embedding .*{problem}"):
            call(pipeline, wanted, face_embedding=vector)


def test_noise_is_drawn_where_the_generator_is(pipeline, monkeypatch):
    """As diffusers does: a CUDA generator draws on its GPU, which there is none of here."""
    devices = []

    def draw(shape, generator, device):
        devices.append(device)
        return torch.zeros(shape)

    monkeypatch.setattr("stableanimator_cli.diffusers_pipeline.randn_tensor", draw)
    call(pipeline, square_request(steps=1), generator=None)
    call(pipeline, square_request(steps=1), generator=SimpleNamespace(device=torch.device("cuda")))
    assert [device.type for device in devices] == ["cpu", "cpu", "cuda", "cuda"]


def test_the_face_of_an_image_is_found_or_named():
    pipe = StableAnimatorPipeline.from_pretrained("puppet")
    pipe.set_progress_bar_config(disable=True)
    assert catalogue.open_model("puppet").files["face"]
    blank = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(NoFace, match="no face found"):
        pipe(blank, [blank], num_inference_steps=1)
    assert len(pipe(blank, [blank], num_inference_steps=1, allow_no_face=True).frames[0]) == 1
