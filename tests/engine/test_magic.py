"""The backbone magic in the engine: published files by their names, whole renderings, clear errors for halves."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stableanimator_cli.catalogue import open_animator
from stableanimator_cli.catalogue.published import open_published
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.diffusers_pipeline import StableAnimatorPipeline
from stableanimator_cli.engine.backbones.magic import BACKBONE, motion_config
from stableanimator_cli.engine.conditioning import to_signed
from stableanimator_cli.engine.decoder import to_uint8
from stableanimator_cli.engine.memory.render import MemoryEstimator
from stableanimator_cli.engine.memory.train_step import random_inputs
from stableanimator_cli.engine.render import SampleOptions, Timings, sample
from stableanimator_cli.engine.training import TrainingSettings, open_training
from stableanimator_cli.engine.weights import build_on_meta, builders, fill, loaders
from stableanimator_cli.errors import ModelDamaged, ModelMissing
from stableanimator_cli.nets.context import Context
from stableanimator_cli.nets.motion_unet import MotionUNet
from stableanimator_cli.records import NETWORKS, ModelFolder
from tests.magic_models import CONFIGS, folder_of, published_networks, write_magic, write_published
from tests.tiny import engine_of, rendered, request

CPU = torch.device("cpu")
START = ("unet", "vae", "image_encoder", "motion_adapter")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_magic(tmp_path_factory.mktemp("models") / "magic")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("published")
    return path, write_published(path)


def magic_request(frames: int = 6, **more: Any) -> Any:
    return request(frames, schedule="ddim", **more)


def open_start(path: Path) -> ModelFolder:
    return open_published(path, "magic", START)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trained_unet(model: ModelFolder) -> MotionUNet:
    unet: Any = open_training(model, TrainingSettings(sigma="timesteps"), CPU).model.unet
    return unet.eval()


def test_a_rendering_of_windows_repeats_and_the_reference_counts(folder):
    wanted = magic_request()
    with engine_of(folder) as engine:
        first = rendered(engine, wanted)
        assert {name: engine.calls[name] for name in ("unet", "vae_decode")} == {
            name: BACKBONE.count_calls(wanted)[name] for name in ("unet", "vae_decode")
        }
        np.testing.assert_array_equal(first, rendered(engine, wanted))
        other = replace(wanted, resized=255 - wanted.resized)
        assert (first != rendered(engine, other)).mean() > 0.1
        without_face = rendered(engine, replace(wanted, face=None))
        assert (first != without_face).mean() > 0.01


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_a_resumed_sampling_equals_an_unbroken_one(folder, sampler):
    wanted, states = magic_request(steps=3, sampler=sampler, guidance=(2.0, 2.0)), []
    options = SampleOptions(on_step=lambda latents, denoised, step: states.append((latents.clone(), denoised.clone())))
    with engine_of(folder) as engine:
        whole = sample(engine, wanted, Timings(), options)
        latents, denoised = states[1]
        again = sample(engine, wanted, Timings(), SampleOptions(latents=latents, denoised=denoised, first_step=2))
    assert torch.equal(whole, again)


@pytest.mark.parametrize("options", [{"offload": "group"}, {"offload": "model"}, {"ff_chunks": 4}])
def test_ways_to_save_memory_do_not_change_frames(folder, options):
    with engine_of(folder) as engine, engine_of(folder, **options) as saving:
        plain, frames = rendered(engine, magic_request()), rendered(saving, magic_request())
    assert int(np.abs(plain.astype(int) - frames.astype(int)).max()) <= 1


def test_faces_are_optimised_through_the_vae_of_images(folder):
    """Gradients reach the latents, a checkpointed decoder equals the plain one, and a crop equals its part."""
    model = open_animator(folder)
    vae: Any = loaders(model, torch.float32, "distribution")["vae"]()
    latents = noise(2, 4, 12, 12)
    plain = BACKBONE.decoder(vae, Counter()).pixels(latents)
    for checkpointed in (False, True):
        decoder, variable = BACKBONE.face_decoder(vae, Counter(), checkpointed=checkpointed, margin=12), latents.clone()
        variable.requires_grad_(True)
        pixels = decoder.pixels(variable)
        torch.testing.assert_close(pixels, plain, rtol=1e-4, atol=1e-5)
        pixels.square().mean().backward()
        assert variable.grad is not None
        assert float(variable.grad.abs().min()) > 0
    with torch.no_grad(), decoder.with_recorded_stats(latents, [range(2)]):
        crop, (x, y) = decoder.crop(latents, range(2), (40, 24, 63, 55))
    height, width = crop.shape[-2:]
    torch.testing.assert_close(crop, plain[..., y : y + height, x : x + width], rtol=1e-3, atol=1e-4)


def test_published_files_fill_the_networks_they_were_saved_from(published):
    path, networks = published
    unet = trained_unet(open_start(path))
    stock = UNetMotionModel.from_unet2d(networks["unet"], networks["motion_adapter"])
    x, tokens = noise(1, 5, 4, 8, 8), noise(1, 1, 64, seed=2)
    expected = stock(x.transpose(1, 2), 700, tokens.expand(5, -1, -1), return_dict=False)[0].transpose(1, 2)
    actual = unet.denoise(x, torch.tensor([700.0]), Context(tokens, None), None, {})[0]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    for name, tensor in unet.appearance.state_dict().items():
        assert torch.equal(tensor, networks["unet"].state_dict()[name])
    for attention in unet.spatial_cross_attentions().values():
        assert torch.equal(attention.processor.id_to_k.weight, attention.to_k.weight)


def test_original_names_of_motion_modules_are_read(published, tmp_path):
    path, networks = published
    shutil.copytree(path, tmp_path / "old")
    renamed = {}
    for name, tensor in networks["motion_adapter"].state_dict().items():
        if name.endswith("pos_embed.pe"):
            continue
        for new, old in (
            (".transformer_blocks", ".temporal_transformer.transformer_blocks"),
            (".attn1", ".attention_blocks.0"), (".attn2", ".attention_blocks.1"),
            (".norm1", ".norms.0"), (".norm2", ".norms.1"), (".norm3", ".ff_norm"),
        ):  # fmt: skip
            name = name.replace(new, old)
        for part in (".norm.", ".proj_in.", ".proj_out."):
            if ".temporal_transformer" not in name:
                name = name.replace(part, f".temporal_transformer{part}")
        renamed[name] = tensor
    block = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
    renamed[f"{block}.attention_blocks.0.pos_encoder.pe"] = noise(1, 24, 32)  # computed, not read
    file = tmp_path / "old" / "motion_adapter" / "diffusion_pytorch_model.safetensors"
    file.unlink()
    torch.save(renamed, file.with_suffix(".ckpt"))
    first, second = (trained_unet(open_start(folder)).state_dict() for folder in (path, tmp_path / "old"))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-6, atol=1e-6)


def test_the_first_names_of_the_vaes_attention_are_read(published, tmp_path):
    path, networks = published
    shutil.copytree(path, tmp_path / "old")
    file = tmp_path / "old" / "vae" / "diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = load_file(file)
    for new, first in old.items():
        tensors = {name.replace(new, first): tensor for name, tensor in tensors.items()}
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, file)
    vae: Any = loaders(open_start(tmp_path / "old"), torch.float32, "distribution")["vae"]()
    image = to_signed(np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8))
    expected = networks["vae"].encode(image).latent_dist.mode()
    torch.testing.assert_close(vae.encode(image).latent_dist.mode(), expected)


def test_clip_files_with_a_text_encoder_are_read(published, tmp_path):
    path, networks = published
    shutil.copytree(path, tmp_path / "clip")
    file, config = (tmp_path / "clip" / "image_encoder" / name for name in ("model.safetensors", "config.json"))
    extra = {"text_model.embeddings.token_embedding.weight": noise(3, 4), "logit_scale": torch.tensor(1.0)}
    save_file(load_file(file) | extra, file)
    vision = json.loads(config.read_text())
    config.write_text(json.dumps({"model_type": "clip", "vision_config": vision, "projection_dim": 64}))
    encoder = loaders(open_start(tmp_path / "clip"), torch.float32, "distribution")["image_encoder"]()
    expected = networks["image_encoder"].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in encoder.state_dict().items())


FULL = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    },
    "vae": {
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "image_encoder": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 224, "patch_size": 14, "projection_dim": 768,
    },
}  # fmt: skip
"""The published configs of Stable Diffusion 1.5, and of CLIP ViT-L/14."""


@pytest.mark.parametrize(("positions", "middle", "modules"), [(24, False, 20), (32, True, 21)])
def test_full_key_sets_are_the_published_ones(positions, middle, modules):
    """Names and shapes of mm_sd_v15 (without a module in the middle) and mm_sd_v15_v2, on the meta device."""
    adapter = {"motion_max_seq_length": positions, "use_motion_mid_block": middle, "motion_num_attention_heads": 8}
    build = builders(folder_of({**FULL, "motion_adapter": adapter}), "distribution")
    state = build_on_meta(build["unet"]).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    config = {key: value for key, value in FULL["unet"].items() if not key.startswith("_")}
    with torch.device("meta"):
        image = UNet2DConditionModel(**config).state_dict()
        motion = MotionAdapter(motion_max_seq_length=positions, use_motion_mid_block=middle).state_dict()
    assert len(image) == 686
    own = {name for name in shapes if not name.startswith("appearance.") and ".id_to_" not in name}
    assert own == image.keys() | motion.keys()
    assert all(shapes[name] == tuple(tensor.shape) for name, tensor in (image | motion).items())
    assert len({name.split(".motion_modules.")[0] + name.split(".motion_modules.")[1][0] for name in motion}) == modules
    appearance = {name.removeprefix("appearance.") for name in shapes if name.startswith("appearance.")}
    assert all(shapes[f"appearance.{name}"] == tuple(image[name].shape) for name in appearance)
    gone = set(image) - appearance
    assert all("up_blocks.3.attentions.2" in name or name.startswith(("conv_norm_out", "conv_out")) for name in gone)
    adapters = {name for name in shapes if ".id_to_" in name}
    assert len(adapters) == 32  # two per spatial cross-attention, 16 as in IP-Adapter
    for name in (
        "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.pos_embed.pe",
        "down_blocks.0.motion_modules.0.transformer_blocks.0.pos_embed.pe",
    ):
        assert (name in shapes) == (name in motion)
    vae = build_on_meta(build["vae"]).state_dict()
    with torch.device("meta"):
        assert vae.keys() == AutoencoderKL(**FULL["vae"]).state_dict().keys()


def test_a_config_of_another_family_is_converted_or_refused():
    svd = {
        **CONFIGS["unet"],
        "in_channels": 8,
        "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
        "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
        "num_attention_heads": [1, 2],
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 96,
    }
    config = motion_config(folder_of({**CONFIGS, "unet": svd}))
    assert config["in_channels"] == 4
    assert config["down_block_types"] == ["CrossAttnDownBlockMotion", "DownBlockMotion"]
    assert isinstance(builders(folder_of({**CONFIGS, "unet": svd}), "off")["unet"](), MotionUNet)
    for role, change, message in (
        ("unet", {"flip_sin_to_cos": False}, "flip_sin_to_cos False, expected True"),
        ("motion_adapter", {"conv_in_channels": 9}, "conv_in_channels 9"),
        ("image_encoder", {"projection_dim": 128}, "tokens of 128 values, the UNet's cross-attention 64"),
    ):
        broken = {**CONFIGS, role: {**CONFIGS.get(role, {}), **change}}
        with pytest.raises(ModelDamaged, match=message):
            builders(folder_of(broken), "distribution")
    with pytest.raises(ModelDamaged, match="no network that can be built"):
        builders(folder_of({**CONFIGS, "unet": {**CONFIGS["unet"], "colour": 3}}), "off")["unet"]()


def test_half_of_a_backbone_is_named(published, folder, tmp_path):
    path, _ = published
    shutil.copytree(path, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "motion_adapter")
    with pytest.raises(
        ModelMissing, match=r"missing motion_adapter \(motion_adapter/diffusion_pytorch_model.safetensors\)"
    ):
        open_start(tmp_path / "half")
    model = open_published(tmp_path / "half", "magic", ("unet",))
    with pytest.raises(ModelDamaged, match="a UNet of images without motion modules, and half has no motion_adapter"):
        trained_unet(model)
    # motion modules of another width
    shutil.copytree(path / "motion_adapter", tmp_path / "half" / "motion_adapter")
    wide = MotionAdapter(block_out_channels=(64, 64), motion_layers_per_block=1, motion_norm_num_groups=8)
    save_file(wide.state_dict(), tmp_path / "half" / "motion_adapter" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ModelDamaged, match=r"motion_adapter/diffusion_pytorch_model.safetensors does not fit .*shape"):
        trained_unet(open_start(tmp_path / "half"))
    # a model folder whose UNet lacks what training adds
    shutil.copytree(folder, tmp_path / "cut")
    file = tmp_path / "cut" / "unet.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if ".id_to_" not in name}, file)
    with pytest.raises(ModelDamaged, match=r"unet.safetensors does not fit the network: 8 missing tensor"):
        loaders(open_animator(tmp_path / "cut"), torch.float32, "distribution")["unet"]()
    # and one without a network
    text = (tmp_path / "cut" / "model.toml").read_text().replace("[components.vae]", "[components.vea]")
    (tmp_path / "cut" / "model.toml").write_text(text)
    with pytest.raises(ModelMissing, match="lacks vae"):
        open_animator(tmp_path / "cut")


def test_a_step_is_the_error_of_the_predicted_noise(folder):
    """The loss is the plain mean squared error of epsilon, as DDPM's, with MagicAnimate's inputs."""
    settings = TrainingSettings(sigma="timesteps", face_mask="off", train="all")
    model = open_training(open_animator(folder), settings, CPU).model
    torch.manual_seed(0)
    inputs = replace(random_inputs(model, 2, 3, (64, 64), CPU), sigma=torch.tensor([0.1, 3.0]))
    outputs: list[Tensor] = []
    model.unet.register_forward_hook(lambda module, given, output: outputs.append(output.detach()))
    loss = model(inputs)
    expected = (outputs[0] - inputs.noise).square().flatten(1).mean(dim=1)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    loss.mean().backward()
    assert [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None] == []


def test_all_roles_are_loaded_strictly(folder):
    model = open_animator(folder)
    assert model.networks == NETWORKS
    for role, build in builders(model, "distribution").items():
        tensors = BACKBONE.read(model, role)
        first = next(iter(tensors))
        with pytest.raises(ModelDamaged, match="1 missing tensor"):
            fill(build, {name: value for name, value in tensors.items() if name != first}, torch.float32, Path(role))


def test_published_networks_of_the_tests_are_not_trivial():
    for network in published_networks().values():
        assert isinstance(network, nn.Module)
        assert all(float(parameter.std()) > 0 for parameter in network.parameters() if parameter.numel() > 1)


def test_frames_are_the_vaes_own(folder):
    vae: Any = loaders(open_animator(folder), torch.float32, "distribution")["vae"]()
    latents = noise(3, 4, 8, 8)
    frames = list(BACKBONE.decoder(vae, Counter()).frames(latents, chunk=2))
    expected = to_uint8(vae.decode(latents / vae.config.scaling_factor).sample)
    np.testing.assert_array_equal(np.stack(frames), expected)


def test_memory_and_time_are_predicted_from_the_configs(folder):
    model = open_animator(folder)
    estimator = MemoryEstimator(model=model, device=CPU, dtype=torch.float32, size=(64, 64), frames=6)
    config = AnimateConfig(reference=Path("r.png"), motion=Path("m.mp4"), output=Path("o.mp4"), size=(64, 64))
    stages = estimator.of(config).stages
    assert stages["UNet"][1] > 0
    weights = sum(file.stat().st_size for role, file in model.files.items() if role in ("unet", "pose_net"))
    assert stages["UNet"][0] >= weights * 0.95
    cached = replace(config, sampling=replace(config.sampling, cache_features=2))
    assert estimator.of(cached).stages["UNet"][1] > stages["UNet"][1]
    assert {name: counter.total > 0 for name, counter in estimator.work(config).items()} == {
        "unet": True,
        "decoder": True,
    }


def test_the_pipeline_of_diffusers_refuses_another_backbone(folder):
    with pytest.raises(ModelDamaged, match="a model of the backbone magic, expected svd"):
        StableAnimatorPipeline.from_pretrained(folder)
