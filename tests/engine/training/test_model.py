"""The training module: what learns, what a step is made of, and that the way it is computed changes no loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stableanimator_cli.catalogue import open_model
from stableanimator_cli.engine.conditioning import degrade_faces
from stableanimator_cli.engine.memory.train import meta_model, predict
from stableanimator_cli.engine.training import (
    TrainingParts,
    TrainingSettings,
    export_configs,
    export_tensors,
    open_training,
    step_inputs,
    trainable_parameters,
)
from stableanimator_cli.engine.training.inputs import dropout_masks
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.nets.context import Context
from stableanimator_cli.nets.lora import LoraLinear, is_lora
from tests.engine.training_samples import CPU, SEED, opened, sample
from tests.random_model import _folder, configs_of


def losses(parts: TrainingParts, indices=(0, 1), batch: int = 2, **more) -> torch.Tensor:
    return parts.model(step_inputs(parts, sample(list(indices), **more), SEED, batch))


def gradients(parts: TrainingParts, **more) -> dict[str, torch.Tensor | None]:
    losses(parts, **more).mean().backward()
    return {name: p.grad for name, p in trainable_parameters(parts.model).items()}


def test_attentions_is_the_released_choice_at_full_size():
    model = meta_model(_folder(configs_of("full")), TrainingSettings(train="attentions"))
    learning = trainable_parameters(model)
    unet = [p.numel() for name, p in learning.items() if name.startswith("unet.")]
    assert (len(unet), round(sum(unet) / 1e6, 1)) == (944, 796.0)
    others = {
        role: sum(p.numel() for p in model.get_submodule(role).parameters()) for role in ("pose_net", "face_encoder")
    }
    assert others == {"pose_net": 205_557, "face_encoder": 57_183_232}
    assert sum(p.numel() for p in learning.values()) == sum(unet) + sum(others.values())


@pytest.mark.parametrize(
    ("train", "roles"),
    [
        ("all", {"unet", "pose_net", "face_encoder"}),
        ("adapters", {"unet", "pose_net", "face_encoder"}),
        ("pose+face", {"pose_net", "face_encoder"}),
        ("lora", {"unet"}),
    ],
)
def test_other_choices(tiny_model, train, roles):
    names = list(trainable_parameters(opened(tiny_model, train=train).model))
    assert {name.split(".")[0] for name in names} == roles
    unet = [name for name in names if name.startswith("unet.")]
    if train == "adapters":
        assert unet
        assert all(".processor.id_to_" in name for name in unet)
    if train == "lora":
        assert all(is_lora(name) for name in unet)


@pytest.mark.parametrize(
    "settings",
    [
        {"train": "all"},
        {"train": "all", "face": False},
        {"train": "all", "id_adapter": "off"},
        {"train": "all", "face_encoder": False},
        {"train": "all", "image_only": True},
        {"train": "lora"},
    ],
    ids=str,
)
@pytest.mark.parametrize("faces", [True, False])
def test_every_parameter_that_learns_gets_a_gradient_in_every_step(tiny_model, settings, faces):
    frames = 1 if settings.get("image_only") else 2
    found = gradients(opened(tiny_model, **settings), frames=frames, faces=faces)
    assert found
    assert [name for name, gradient in found.items() if gradient is None] == []
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())


@pytest.mark.parametrize("way", ["blocks", "diffusers"])
def test_checkpointing_changes_neither_loss_nor_gradient(tiny_model, way):
    plain, forgetful = opened(tiny_model, train="all"), opened(tiny_model, train="all", checkpointing=way)
    torch.testing.assert_close(losses(forgetful), losses(plain), rtol=0, atol=0)
    ours, theirs = gradients(forgetful), gradients(plain)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_and_keeps_float32_masters(tiny_model, dtype):
    half = opened(tiny_model, dtype=dtype)
    torch.testing.assert_close(losses(half), losses(opened(tiny_model)), rtol=0.02, atol=0)
    assert {p.dtype for p in trainable_parameters(half.model).values()} == {torch.float32}
    resting = {p.dtype for p in half.model.parameters() if not p.requires_grad}
    assert getattr(torch, dtype) in resting
    whole = opened(tiny_model, dtype=dtype, float32_frozen=True)
    assert {p.dtype for p in whole.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_matrices_beside_low_rank_updates_are_held_in_the_type_of_computing(tiny_model, dtype):
    half = opened(tiny_model, train="lora", lora_rank=2, dtype=dtype)
    layers = [module for module in half.model.unet.modules() if isinstance(module, LoraLinear)]
    assert layers
    assert {layer.weight.dtype for layer in layers} == {getattr(torch, dtype)}
    assert {p.dtype for layer in layers for p in (layer.lora_down, layer.lora_up)} == {torch.float32}
    torch.testing.assert_close(losses(half), losses(opened(tiny_model)), rtol=0.02, atol=0)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(half).values() if gradient is not None)
    model = open_model(tiny_model)
    held = predict(model, half.settings, size=(64, 64), frames=2).weights
    assert held < 0.7 * predict(model, replace(half.settings, dtype="float32"), size=(64, 64), frames=2).weights


def test_shares_of_a_batch_make_the_same_losses_as_the_whole(tiny_model):
    parts = opened(tiny_model, dropout_prob=0.2, reference_degrade=0.5)
    together = losses(parts, (4, 5, 6, 7), batch=4)
    apart = torch.cat([losses(parts, (4, 5), batch=4), losses(parts, (6, 7), batch=4)])
    torch.testing.assert_close(apart, together, atol=1e-5, rtol=1e-5)
    assert len({round(loss, 5) for loss in together.tolist()}) == 4


def test_a_sample_without_a_face_is_as_if_there_were_no_face_tokens(tiny_model):
    mixed = losses(opened(tiny_model), faces=[True, False])
    faceless = losses(opened(tiny_model, face=False), faces=[True, False])
    torch.testing.assert_close(mixed[1], faceless[1], rtol=1e-5, atol=1e-6)
    assert abs(mixed.tolist()[0] - faceless.tolist()[0]) > 1e-3


def test_what_is_not_cached_is_encoded(tiny_model):
    parts = opened(tiny_model, noise_aug=0.0)
    raw = sample([0, 1], cached=False)
    vae, encoder = parts.networks["vae"], parts.networks["image_encoder"]
    with torch.no_grad():
        moments = vae.encode(raw.pixels.flatten(0, 1)).latent_dist.parameters.unflatten(0, (2, 3))
        reference = vae.encode(raw.reference_pixels).latent_dist.parameters
        token = encoder(pixel_values=raw.clip_pixels).image_embeds[:, None]
    cached = replace(sample([0, 1]), moments=moments, reference_moments=reference, image_token=token)
    one, two = (step_inputs(parts, batch, SEED, 2) for batch in (raw, cached))
    for name in ("latents", "reference", "image", "noise", "sigma"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), atol=1e-5, rtol=1e-4)
    noisy = step_inputs(opened(tiny_model, noise_aug=0.5), raw, SEED, 2)
    assert float((noisy.reference - one.reference).abs().max()) > 1e-3
    assert noisy.time_ids.tolist() == [[6.0, 127.0, 0.5]] * 2


def test_latents_are_drawn_anew_for_every_index_and_the_same_for_the_same(tiny_model):
    parts = opened(tiny_model)
    batch = sample([0, 0])
    later = replace(batch, index=torch.tensor([0, 9]))
    first, second = (step_inputs(parts, one, SEED, 1) for one in (batch, later))
    torch.testing.assert_close(first.latents[1], second.latents[0], rtol=0, atol=0)
    assert float((second.latents[1] - second.latents[0]).abs().max()) > 1e-3
    assert float((second.noise[1] - second.noise[0]).abs().max()) > 1e-1


def test_released_dropout_keeps_face_and_pose():
    u = torch.tensor([0.05, 0.15, 0.25, 0.35])
    keeps = {name: value.tolist() for name, value in dropout_masks(u, TrainingSettings()).items()}
    assert keeps == {
        "keep_image": [0, 0, 1, 1],
        "keep_reference": [1, 0, 0, 1],
        "keep_face": [1, 1, 1, 1],
        "keep_pose": [1, 1, 1, 1],
    }
    full = dropout_masks(u, TrainingSettings(dropout="full"))
    assert full["keep_face"].tolist() == full["keep_pose"].tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("dropout", ["released", "full"])
def test_the_face_encoder_sees_the_image_token_that_dropout_hides_from_the_unet(tiny_model, dropout):
    """As the reference implementation trains: face tokens are computed from the image token before dropout."""
    parts = opened(tiny_model, dropout=dropout)
    inputs = step_inputs(parts, sample([0, 1]), SEED, 2)
    contexts: list[Context] = []
    hook = parts.model.unet.register_forward_pre_hook(lambda _, given: contexts.append(given[2]))
    ones, off = torch.ones(2), torch.zeros(2)
    for keep, image in ((ones, inputs.image), (off, inputs.image), (ones, torch.zeros_like(inputs.image))):
        parts.model(replace(inputs, keep_image=keep, keep_face=ones, image=image))
    hook.remove()
    with_token, dropped, without_token = contexts
    assert not dropped.image.any()
    assert torch.equal(dropped.face, with_token.face)
    assert not torch.allclose(without_token.face, with_token.face, atol=1e-3)  # the token matters to the encoder


def test_full_dropout_trains_guidances_unconditional_branch(tiny_model):
    """Zero image and face tokens, zero reference, no pose: what ``Engine.denoiser`` asks without its condition."""
    parts = opened(tiny_model, dropout="full")
    inputs = step_inputs(parts, sample([0, 1]), SEED, 2)
    off = torch.zeros(2)
    dropped = replace(inputs, keep_image=off, keep_reference=off, keep_face=off, keep_pose=off)
    unet = parts.model.unet
    noisy = inputs.latents + inputs.sigma.view(-1, 1, 1, 1, 1) * inputs.noise
    c_in = (inputs.sigma.square() + 1).rsqrt().view(-1, 1, 1, 1, 1)
    given = torch.cat([noisy * c_in, torch.zeros_like(noisy)], dim=2)
    with torch.no_grad():
        asked = unet(given, 0.25 * inputs.sigma.log(), torch.zeros(2, 5, 64), inputs.time_ids)
        trained = parts.model._predict(dropped, noisy * c_in, 0.25 * inputs.sigma.log())
    torch.testing.assert_close(trained, asked, atol=1e-5, rtol=1e-5)


def test_a_degraded_reference_loses_its_face_alone():
    generator = torch.Generator().manual_seed(0)
    reference, noise = torch.randn(2, 3, 4, 8, 8, generator=generator)[:, :3]
    boxes = torch.tensor([[2.2, 1.0, 5.5, 4.0], [2.2, 1.0, 5.5, 4.0], [float("nan")] * 4])
    made = degrade_faces(reference, boxes, torch.tensor([True, False, True]), noise)
    torch.testing.assert_close(made[1:], reference[1:], rtol=0, atol=0)
    moved = (made[0] != reference[0]).any(dim=0)
    assert moved.nonzero().min(dim=0).values.tolist() == [1, 2]
    assert moved.nonzero().max(dim=0).values.tolist() == [3, 5]
    inside = made[0, :, 1:4, 2:6]
    assert float((inside.mean() - reference[0, :, 1:4, 2:6].mean()).abs()) < 0.6


def test_low_rank_updates_begin_at_nothing_and_are_merged(tiny_model):
    parts = opened(tiny_model, train="lora", lora_rank=4)
    torch.testing.assert_close(losses(parts), losses(opened(tiny_model)), rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        for name, parameter in trainable_parameters(parts.model).items():
            if name.endswith("lora_up"):
                parameter.normal_(std=0.1)
    moved = losses(parts)
    tensors = export_tensors(parts.model)
    assert not any(is_lora(name) for name in tensors["unet"])
    plain = opened(tiny_model)
    plain.model.unet.load_state_dict(tensors["unet"])
    torch.testing.assert_close(losses(plain), moved, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="--train"):
        open_training(open_model(tiny_model), TrainingSettings(train="lora"), CPU, fresh=("pose_net",))


def test_exported_tensors_are_the_files_and_take_an_average(tiny_model):
    parts = opened(tiny_model)
    tensors = export_tensors(parts.model)
    for role in ("unet", "pose_net", "face_encoder"):
        there = load_file(tiny_model / f"{role}.safetensors")
        assert sorted(tensors[role]) == sorted(there)
        assert all(bool((tensors[role][name] == tensor).all()) for name, tensor in there.items())
        assert all(tensor.is_contiguous() for tensor in tensors[role].values())
    average = {"pose_net.scale": torch.tensor([7.0])}
    assert export_tensors(parts.model, average)["pose_net"]["scale"].tolist() == [7.0]
    with pytest.raises(KeyError, match="no tensor"):
        export_tensors(parts.model, {"pose_net.scales": torch.zeros(1)})


def svd_alone(tiny_model: Path, folder: Path) -> Path:
    """The tiny model as SVD is: a UNet without adapters, nothing of StableAnimator's."""
    folder.mkdir()
    text = (tiny_model / "model.toml").read_text()
    for role in ("pose_net", "face_encoder"):
        text = text.replace(f'[components.{role}]\nfile = "{role}.safetensors"\n', f"[components.{role}]\n")
    (folder / "model.toml").write_text(text)
    for path in tiny_model.iterdir():
        if path.name not in ("model.toml", "pose_net.safetensors", "face_encoder.safetensors", "unet.safetensors"):
            (folder / path.name).symlink_to(path)
    unet = load_file(tiny_model / "unet.safetensors")
    save_file({k: v for k, v in unet.items() if ".processor." not in k}, folder / "unet.safetensors")
    return folder


def test_training_from_svd_alone(tiny_model, tmp_path):
    folder = svd_alone(tiny_model, tmp_path / "svd")
    parts, again = opened(folder), opened(folder)
    assert parts.fresh == ("pose_net", "face_encoder")
    for attn in parts.model.unet.spatial_cross_attentions().values():
        torch.testing.assert_close(attn.processor.id_to_k.weight, attn.to_k.weight, rtol=0, atol=0)
        torch.testing.assert_close(attn.processor.id_to_v.weight, attn.to_v.weight, rtol=0, atol=0)
    for ours, theirs in zip(parts.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    found = gradients(parts)
    assert max(float(gradient.abs().max()) for gradient in found.values()) < 1e3


def test_without_a_face_encoder_a_checkpoint_says_so(tiny_model, tmp_path):
    settings = TrainingSettings(face_encoder=False)
    parts = open_training(open_model(tiny_model), settings, CPU)
    tensors = export_tensors(parts.model)["face_encoder"]
    assert {name.split(".")[0] for name in tensors} == {"proj", "norm"}
    configs = export_configs(open_model(tiny_model), settings)
    assert configs["face_encoder"]["fusion"] is False
    folder = tmp_path / "trained"
    folder.mkdir()
    for path in tiny_model.iterdir():
        if not path.name.startswith("face_encoder."):
            (folder / path.name).symlink_to(path)
    save_file(tensors, folder / "face_encoder.safetensors")
    (folder / "face_encoder.json").write_text(json.dumps(configs["face_encoder"]))
    torch.testing.assert_close(losses(opened(folder)), losses(parts), rtol=1e-6, atol=1e-6)


def test_a_stage_of_pictures_and_then_one_of_clips(tiny_model):
    parts = opened(tiny_model, train="all", image_only=True)
    before = {id(p) for p in parts.model.parameters()}
    pictures = list(trainable_parameters(parts.model))
    assert not [name for name in pictures if "temporal" in name or "time_mixer" in name]
    gradients(parts, frames=1)
    parts.model.apply_settings(TrainingSettings(train="all"))
    assert {id(p) for p in parts.model.parameters()} == before
    assert len(trainable_parameters(parts.model)) > len(pictures)
    torch.testing.assert_close(losses(parts), losses(opened(tiny_model, train="all")), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="between stages"):
        parts.model.apply_settings(TrainingSettings(id_adapter="norm"))
    with pytest.raises(ValueError, match="lora"):
        parts.model.apply_settings(TrainingSettings(train="lora"))


def test_a_wrong_word_is_refused():
    with pytest.raises(ValueError, match="train 'everything', expected one of"):
        TrainingSettings(train="everything")


def test_a_unet_begun_from_nothing_keeps_what_pictures_teach(tiny_model):
    with_time, without = (
        open_training(
            open_model(tiny_model), TrainingSettings(train="all", image_only=only), CPU, fresh=("unet",), seed=SEED
        )
        for only in (False, True)
    )
    torch.testing.assert_close(losses(with_time), losses(without), rtol=1e-5, atol=0)
    assert {name for name, grad in gradients(with_time).items() if grad is None} == set()
    temporal = [grad for name, grad in gradients(with_time).items() if ".temporal_res_block.conv2." in name]
    assert temporal
    assert all(grad is not None and grad.abs().max() > 0 for grad in temporal)
