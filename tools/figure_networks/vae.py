"""The puppet model's temporal VAE and image encoder: the classes of SVD, at widths that a CPU can train.

``python -m tools.figure_networks.vae`` trains both (``make puppet-vae``), with the loop, caches and checkpoints of
``tools.figure_networks.detectors``. Sources: Blattmann et al., "Stable Video Diffusion" (the temporal decoder); Radford
et al., "Learning Transferable Visual Models From Natural Language Supervision" (the encoder's architecture and its
contrastive loss, here between two moments of one scene).

Temporal kernels start with zeros beside their middle. So a decoder trained on single images also decodes clips; the
last part of the training uses clips and changes them. The encoder starts as the best linear one (``linear_start``).
From a random start both halves agree on lightness first and ignore colour for an hour.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from stableanimator_cli.files import atomic_write, translate_os_errors
from stableanimator_cli.nets.norm_groups import set_norm_groups
from stableanimator_cli.nets.time_conv import TimeConv, with_time_convs
from stableanimator_cli.puppets.sample import derive_rng
from stableanimator_cli.records import CLIP_PIXELS
from tools.command import exit_code_of
from tools.figure_networks.data import CLIP_SIDE, CLIPS, FRAMES, draw_clips
from tools.figure_networks.detectors import parse, run
from tools.figure_networks.loop import Batch, Task

LATENTS = 16
NORM_GROUPS = 8
VAE_CONFIG: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "block_out_channels": [32, 64, 96, 96],
    "layers_per_block": 1,
    "norm_num_groups": NORM_GROUPS,
    "latent_channels": LATENTS,
    "scaling_factor": 1.0,
    "force_upcast": True,
}
ENCODER_CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 224,
    "patch_size": 32,
    "projection_dim": 128,
    "hidden_act": "gelu",
}
_CROP = 64
_CLIPS_FROM = 0.85  # of the steps: from here on, every second batch is a clip
_ENCODER_FROM = 0.15  # of the steps: until then only the decoder is trained
_NOISE = 0.05  # initial deviation of the posterior
_FAR = 10.0  # initial constants in the groups of the last norm


class Autoencoder(nn.Module):
    """diffusers' temporal VAE for training: fast temporal kernels that start as single-frame ones."""

    def __init__(self) -> None:
        super().__init__()
        config = {key: value for key, value in VAE_CONFIG.items() if key != "norm_num_groups"}
        self.vae = with_time_convs(set_norm_groups(AutoencoderKLTemporalDecoder(**config), NORM_GROUPS))
        for module in self.vae.modules():
            if isinstance(module, TimeConv):
                with torch.no_grad():
                    module.weight[:, :, [0, 2]] = 0

    def forward(self, frames: Tensor, t: int, noise: float, encoder: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Frames [b*t,3,h,w] in -1..1 -> decoded frames, means and log variances of the latents.

        ``noise`` scales the posterior's noise. Without ``encoder`` only the decoder gets gradients.
        """
        with torch.set_grad_enabled(encoder and torch.is_grad_enabled()):
            posterior = self.vae.encode(frames, return_dict=False)[0]
        latents = posterior.mean + noise * posterior.std * torch.randn_like(posterior.mean)
        return self.vae.decode(latents, num_frames=t, return_dict=False)[0], posterior.mean, posterior.logvar


class VaeTask(Task):
    name = "vae"
    steps, batch_size = 5000, 8
    lr, weight_decay = 1e-3, 1e-4
    recipes = (CLIPS,)

    def network(self) -> Autoencoder:
        net = Autoencoder()
        linear_start(net.vae, sample_images("train", 40))
        return net

    def load(self, folder: Path) -> None:
        self.videos = CLIPS.load(folder)["video"]

    def batch(self, step: int) -> Batch:
        rng = derive_rng(self.name, step)
        n, length = self.videos.shape[:2]
        if step > _CLIPS_FROM * self.steps and step % 2:
            x, y = (int(v) for v in rng.integers(0, CLIP_SIDE - _CROP + 1, 2))
            frames, t = self.videos[int(rng.integers(n)), :, y : y + _CROP, x : x + _CROP], length
        else:
            # Full images too: the statistics of group norms differ between crops and full images.
            side = (_CROP, CLIP_SIDE)[step // 2 % 2]
            count = self.batch_size * _CROP**2 // side**2
            picks = np.stack([rng.integers(n, size=count), rng.integers(length, size=count)])
            corners = rng.integers(0, CLIP_SIDE - side + 1, (count, 2))
            frames = np.stack(
                [self.videos[i, k][y : y + side, x : x + side] for (i, k), (x, y) in zip(picks.T, corners, strict=True)]
            )
            t = 1
        pixels = torch.from_numpy(frames.astype(np.float32)).permute(0, 3, 1, 2).div(127.5).sub(1)
        if rng.random() < 0.5:
            pixels = pixels.flip(3)
        return {"frames": pixels, "t": torch.tensor(t)}

    def loss(self, net: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        # Noise from the start would hide faint components; colour is fainter than lightness for long.
        noise = min(1.0, max(0.0, 4 * step / self.steps - 1))
        decoded, mean, log_variance = net(batch["frames"], int(batch["t"]), noise, step >= _ENCODER_FROM * self.steps)
        error = decoded.float() - batch["frames"]
        # A plain loss is satisfied by lightness alone: colour and large areas have terms of their own.
        colour = (error - error.mean(dim=1, keepdim=True)).abs().mean()
        areas = F.avg_pool2d(error, 8).square().mean()
        square = error.square().mean()
        mean, log_variance = mean.float(), log_variance.float()
        spread = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        total = error.abs().mean() + 10 * square + colour + 4 * areas + 2e-4 * spread
        return total, {"psnr": float(-10 * torch.log10(square.detach() / 4)), "spread": float(spread.detach())}

    def export(self, net: nn.Module, folder: Path) -> list[Path]:
        assert isinstance(net, Autoencoder)
        state = unit_latents(net.vae, sample_images("val", 40))
        return _write(folder, "vae", VAE_CONFIG, state)


def sample_images(split: str, scenes: int) -> Tensor:
    """Two frames of each of ``scenes`` clips: float32[2*scenes,3,128,128] in -1..1."""
    frames = draw_clips(0, split=split, scenes=scenes)["video"][:, ::4].reshape(-1, CLIP_SIDE, CLIP_SIDE, 3)
    return torch.from_numpy(frames.astype(np.float32)).permute(0, 3, 1, 2).div(127.5).sub(1)


@torch.no_grad()
def linear_start(vae: AutoencoderKLTemporalDecoder, frames: Tensor) -> None:
    """Initialise the encoder with the principal components of 8x8 patches of ``frames``, within its own layers.

    Its residual branches start with zeros. Two strided convolutions arrange pixels as channels, the third one projects.
    In the last norm each component is two opposite channels, beside two large constant ones in the same group. The norm
    then divides by the constant, and ``silu(x) - silu(-x) = x``. Faint components stay fainter (the fourth root of
    their variance), so at the highest noise a denoiser sees the most important ones.
    """
    encoder = vae.encoder
    for block in [*encoder.down_blocks, encoder.mid_block]:
        for resnet in block.resnets:
            _zero_init(resnet.conv2)
            if resnet.conv_shortcut is not None:  # a wider level: the input channels stay first
                resnet.conv_shortcut.weight[: resnet.in_channels] = torch.eye(resnet.in_channels)[..., None, None]
                nn.init.zeros_(resnet.conv_shortcut.bias)
    for attention in encoder.mid_block.attentions:
        _zero_init(attention.get_submodule("to_out.0"))
    weight, bias = _weight_and_bias(encoder.conv_in)
    weight[:3] = 0
    bias[:3] = 0
    weight[:3, :, 1, 1] = torch.eye(3)
    down = [encoder.get_submodule(f"down_blocks.{level}.downsamplers.0.conv") for level in range(3)]
    folded = frames
    for conv, channels in zip(down, (3, 12), strict=False):
        weight, bias = _weight_and_bias(conv)
        weight[: 4 * channels] = 0
        bias[: 4 * channels] = 0
        weight[: 4 * channels, :channels, :2, :2] = torch.eye(4 * channels).reshape(-1, channels, 2, 2)
        folded = F.pixel_unshuffle(folded, 2)
    patches = F.unfold(folded, 2, stride=2).transpose(1, 2).flatten(0, 1)  # [n,192]
    mean = patches.mean(dim=0)
    variances, basis = torch.linalg.eigh(torch.cov(patches.T))
    variances, basis = variances.flip(0)[:LATENTS], basis.flip(1)[:, :LATENTS]
    unit = basis / variances.sqrt()  # [192,k]: components of unit deviation
    spread = (variances / variances[0]) ** 0.25
    spread = spread / spread.square().mean().sqrt()
    (weight, bias), (out, out_bias) = _weight_and_bias(down[2]), _weight_and_bias(encoder.conv_out)
    per_group = len(weight) // NORM_GROUPS
    out.zero_()
    for k in range(LATENTS):
        group, slot = k % NORM_GROUPS, k // NORM_GROUPS
        first = group * per_group + 2 * slot
        for row, sign in ((first, 1), (first + 1, -1)):
            weight[row] = 0
            weight[row, :48, :2, :2] = sign * unit[:, k].reshape(48, 2, 2)
            bias[row] = -sign * mean @ unit[:, k]
            out[k, row, 1, 1] = sign
    for group in range(NORM_GROUPS):
        for row, sign in ((group * per_group - 2, 1), (group * per_group - 1, -1)):
            weight[row], bias[row] = 0, sign * _FAR
    out_bias.zero_()
    out_bias[LATENTS:] = 2 * math.log(_NOISE)
    weight, bias = _weight_and_bias(vae.quant_conv)
    weight[:] = torch.eye(2 * LATENTS)[..., None, None]
    bias.zero_()
    latents = torch.cat([vae.encode(part, return_dict=False)[0].mean for part in frames.split(16)])
    out[:LATENTS] *= (spread / latents.std(dim=(0, 2, 3)))[:, None, None, None]


def _weight_and_bias(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and bias of a convolution or a linear layer; all of this VAE have both."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter)
    assert isinstance(bias, nn.Parameter)
    return weight, bias


def _zero_init(layer: nn.Module) -> None:
    for parameter in _weight_and_bias(layer):
        nn.init.zeros_(parameter)


@torch.no_grad()
def unit_latents(vae: AutoencoderKLTemporalDecoder, frames: Tensor) -> dict[str, Tensor]:
    """The VAE's weights, rescaled so that latents have unit deviation over ``frames`` and decode to the same images.

    SVD conditions on unscaled latents and denoises scaled ones; with ``scaling_factor`` 1 both are as large as the
    noise. One scale for all channels, which keeps faint ones faint, moves from the encoder's last convolution into the
    decoder's first.
    """
    means = torch.cat([vae.encode(part, return_dict=False)[0].mean for part in frames.split(8)])
    deviation = means.square().mean().sqrt()
    state = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    for kind in ("weight", "bias"):
        moments = state[f"quant_conv.{kind}"]
        moments[:LATENTS] /= deviation.reshape(-1, *[1] * (moments.ndim - 1))
    state["quant_conv.bias"][LATENTS:] -= 2 * deviation.log()  # the second half are logarithms of variances
    state["decoder.conv_in.weight"] *= deviation
    return state


class ContrastiveEncoder(nn.Module):
    """transformers' CLIP image encoder and the temperature of its contrastive loss."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**ENCODER_CONFIG))
        self.sharpness = nn.Parameter(torch.tensor(2.3))

    def forward(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.clip(pixel_values=pixels).image_embeds.float())


class EncoderTask(Task):
    name = "image_encoder"
    steps, batch_size = 400, 64
    lr = 1e-3
    recipes = (FRAMES,)

    def network(self) -> ContrastiveEncoder:
        return ContrastiveEncoder()

    def load(self, folder: Path) -> None:
        data = FRAMES.load(folder)
        self.images, self.sizes = data["image"].reshape(-1, 4, *data["image"].shape[1:]), data["size"][::4]

    def batch(self, step: int) -> Batch:
        rng = derive_rng(self.name, step)
        side = ENCODER_CONFIG["image_size"]
        pairs = np.empty((2, self.batch_size, side, side, 3), np.float32)
        for n, pick in enumerate(rng.choice(len(self.images), size=self.batch_size, replace=False)):
            width, height = self.sizes[pick]
            for k, t in enumerate(rng.choice(4, size=2, replace=False)):
                image = cv2.resize(self.images[pick, t, :height, :width], (side, side))
                light = float(rng.uniform(0.85, 1.15))
                pairs[k, n] = ((image.astype(np.float32) - 127.5) * light + 127.5).clip(0, 255)
        flat = pairs.reshape(-1, side, side, 3) / 255
        mean, std = (np.array(values, np.float32) for values in CLIP_PIXELS)
        flat = (flat - mean) / std
        return {"pixels": torch.from_numpy(np.ascontiguousarray(flat.transpose(0, 3, 1, 2), np.float32))}

    def loss(self, net: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(net, ContrastiveEncoder)
        one, two = net(batch["pixels"]).chunk(2)
        logits = one @ two.T * net.sharpness.clamp(max=4).exp()
        own = torch.arange(len(one))
        right = (logits.argmax(dim=1) == own).float().mean()
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2, {"right": float(right)}

    def export(self, net: nn.Module, folder: Path) -> list[Path]:
        assert isinstance(net, ContrastiveEncoder)
        return _write(folder, "image_encoder", ENCODER_CONFIG, net.clip.state_dict())


def _write(folder: Path, role: str, config: dict[str, Any], state: dict[str, Tensor]) -> list[Path]:
    """Write a network's config, and its weights as float16 (integers as they are)."""
    half = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous() for name, tensor in state.items()
    }
    paths = [folder / f"{role}.json", folder / f"{role}.safetensors"]
    with atomic_write(paths[0]) as temp, translate_os_errors(paths[0]):
        temp.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    with atomic_write(paths[1]) as temp, translate_os_errors(paths[1]):
        save_file(half, temp, metadata={"format": "pt"})
        temp.chmod(0o644)  # safetensors writes files that only their owner can read
    return paths


TASKS: tuple[type[Task], ...] = (VaeTask, EncoderTask)


def main(arguments: Sequence[str] | None = None) -> None:
    names = [task.name for task in TASKS]
    options = parse(arguments, names, "Train the puppet model's temporal VAE and image encoder.")
    chosen = [task for task in TASKS if not options.tasks or task.name in options.tasks]
    run(chosen, options.work, options.out, threads=options.threads, workers=options.workers)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
