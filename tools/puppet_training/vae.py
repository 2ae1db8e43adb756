"""Train the VAE of the small model at 256x256.

The loss is L1, a perceptual term and a patch discriminator, with more weight on faces. ``python -m
tools.puppet_training.vae RUN`` starts from ``models/puppet`` and writes checkpoints into the
folder RUN every few minutes. Interrupt at any time; run the same command to resume. ``--device cuda --batch 16
--workers 12`` trains on a GPU. Sources: Esser et al., "Taming Transformers" (the balance of the adversarial gradient);
Rombach et al., "Latent Diffusion Models" (the loss); Mao et al., "Least Squares GAN".
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder
from safetensors.torch import save_file
from torch import Tensor, nn

from stableanimator_cli.bench.frontier_cases import face_slice
from stableanimator_cli.engine.device import has_bfloat16
from stableanimator_cli.files import atomic_write
from stableanimator_cli.puppets.render import PuppetFrame
from stableanimator_cli.puppets.sample import derive_seed
from tools.command import exit_code_of
from tools.figure_networks.vae import unit_latents
from tools.puppet_training.figures import Crops, batches, sample_frames
from tools.puppet_training.measure import face_scores, psnr
from tools.puppet_training.networks import Discriminator, Features, open_vae, set_channels_last
from tools.settings import check_settings

MODEL = Path("models/puppet")
CHECKPOINT = "vae.pt"
FIXED = ("freeze_encoder", "lr", "batch", "pixels", "perceptual", "adversarial", "matching", "judge_lr")
"""Options that a run has from its first command; ``--steps`` may grow."""
_WARM_UP = 60  # steps of a growing learning rate
ALONE = 100  # steps in which only the discriminator is trained by its loss
_EMA = 0.998
_KL = 2e-4


@dataclass
class Trainer:
    """The networks, their optimisers and the next step."""

    options: argparse.Namespace
    vae: AutoencoderKLTemporalDecoder
    average: AutoencoderKLTemporalDecoder
    judge: Discriminator
    features: Features
    step: int = 0
    shown: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for network in (self.vae, self.average, self.judge, self.features):
            network.to(self.options.device)
            set_channels_last(network)
        self.average.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.vae.parameters(), self.options.lr, (0.9, 0.98), weight_decay=1e-4)
        self.judge_optimizer = torch.optim.Adam(self.judge.parameters(), betas=(0.5, 0.95))

    def lr(self) -> float:
        share = min(1.0, self.step / self.options.steps)
        return self.options.lr * min(1.0, (self.step + 1) / _WARM_UP) * (0.03 + 0.485 * (1 + math.cos(math.pi * share)))

    def losses(self, decoded: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The reconstruction loss on decoded pixels."""
        error = (decoded - target) * weight
        colour = (error - error.mean(dim=1, keepdim=True)).abs().mean()
        square = error.square().mean()
        perceptual = decoded.new_zeros(())
        for predicted, expected in zip(self.features(decoded), self.features(target), strict=True):
            across = F.interpolate(weight, predicted.shape[-2:], mode="area")
            a, b = (maps / (maps.square().sum(dim=1, keepdim=True) + 1e-3).sqrt() for maps in (predicted, expected))
            perceptual = perceptual + ((a - b).square().sum(dim=1, keepdim=True) * across).mean()
        pixels = error.abs().mean() + 4 * square + 0.5 * colour
        total = self.options.pixels * pixels + self.options.perceptual * perceptual
        return total, {"l1": float(error.detach().abs().mean()), "perceptual": float(perceptual.detach())}

    def train_step(self, pixels: Tensor, weight: Tensor, latents: Tensor | None = None) -> dict[str, float]:
        """One step of the VAE and one of the discriminator; given ``latents``, of the decoder alone."""
        torch.manual_seed(derive_seed("portrait vae", self.step))
        half = half_precision(pixels)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr()
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with half:
            latents, spread = self._encode(pixels) if latents is None else (latents, None)
            decoded = self.vae.decode(latents, num_frames=1, return_dict=False)[0].float()
        free = decoded.detach().requires_grad_()
        total, numbers = self.losses(free, pixels, weight)
        gradient = torch.autograd.grad(total, free)[0]
        if self.options.adversarial and self.step >= ALONE:
            with half if self.options.half_judge else nullcontext():
                with torch.no_grad():
                    real = self.judge(pixels)[0]
                fake, logits = self.judge(free)
                matched = torch.stack([(a - b).abs().mean() for a, b in zip(fake, real, strict=True)]).sum()
                fooled = ((logits.float() - 1).square() * F.interpolate(weight, logits.shape[-2:], mode="area")).mean()
                adversary = torch.autograd.grad(fooled + self.options.matching * matched, free)[0]
            # The gradients meet at the pixels; the adversary's is a fraction of the reconstruction's (Esser et al.).
            ratio = gradient.norm() / adversary.norm().clamp(min=1e-12)
            gradient = gradient + self.options.adversarial * ratio * adversary
            numbers |= {"fooled": float(fooled.detach()), "matched": float(matched.detach())}
        self.optimizer.zero_grad(set_to_none=True)
        if spread is None:
            decoded.backward(gradient)
        else:
            torch.autograd.backward([decoded, _KL * spread], [gradient, None])
        nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimizer.step()
        if self.options.adversarial:
            numbers |= self._train_judge(pixels, decoded.detach(), half)
        self.step += 1
        self._update_average()
        return numbers | {"psnr": float(-10 * torch.log10((decoded.detach() - pixels).square().mean() / 4))}

    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Sampled latents, and their divergence from unit noise unless the encoder is frozen."""
        with torch.set_grad_enabled(not self.options.freeze_encoder):
            posterior = self.vae.encode(pixels, return_dict=False)[0]
        latents = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        spread = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return latents, None if self.options.freeze_encoder else spread

    def _train_judge(self, real: Tensor, fake: Tensor, half: Any) -> dict[str, float]:
        with half if self.options.half_judge else nullcontext():
            yes, no = self.judge(torch.cat([real, fake]))[1].float().chunk(2)
            loss = 0.5 * ((yes - 1).square().mean() + no.square().mean())
        for group in self.judge_optimizer.param_groups:
            group["lr"] = self.options.judge_lr
        self.judge_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.judge_optimizer.step()
        return {"judge": float(loss.detach())}

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(_EMA, (1 + self.step) / (10 + self.step))
        for averaged, current in zip(self.average.state_dict().values(), self.vae.state_dict().values(), strict=True):
            averaged.lerp_(current, 1 - decay)

    # Checkpoints

    def save(self, path: Path) -> None:
        """Write the state of the training."""
        state = {
            "step": self.step,
            "vae": self.vae.state_dict(),
            "average": self.average.state_dict(),
            "judge": self.judge.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "judge_optimizer": self.judge_optimizer.state_dict(),
        }
        with atomic_write(path) as temp:
            torch.save(state, temp)

    def resume(self, path: Path) -> None:
        """Read a file of ``save``."""
        state = torch.load(path, map_location=self.options.device, weights_only=True)
        self.step = state["step"]
        for name in ("vae", "average", "judge", "optimizer", "judge_optimizer"):
            getattr(self, name).load_state_dict(state[name])

    def export(self, path: Path) -> None:
        """Write the averaged VAE like that of ``models/puppet``: float16, latents of unit deviation over portraits.

        A frozen encoder keeps its latents as they are: a denoiser was trained with them.
        """
        state = self.average.state_dict()
        if not self.options.freeze_encoder:
            state = unit_latents(self.average, pixels_of(sample_frames(32)).to(self.options.device))
        with atomic_write(path) as temp:
            save_file({name: tensor.half().contiguous().cpu() for name, tensor in state.items()}, temp)


def half_precision(pixels: Tensor) -> torch.autocast:
    """Autocast to bfloat16 if the device multiplies it in hardware."""
    kind = pixels.device.type
    return torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu" or has_bfloat16(torch.device(kind)))


def pixels_of(frames: list[PuppetFrame]) -> Tensor:
    """Images as float32[n,3,h,w] in -1..1."""
    images = np.stack([frame.image for frame in frames]).astype(np.float32)
    return torch.from_numpy(images).permute(0, 3, 1, 2).div(127.5).sub(1)


@torch.no_grad()
def decode_means(vae: AutoencoderKLTemporalDecoder, frames: list[PuppetFrame], device: str) -> list[np.ndarray]:
    """Encode each frame and decode the mean of its posterior: uint8 images."""
    out = []
    for pixels in pixels_of(frames).to(device).split(1):
        with half_precision(pixels):
            mean = vae.encode(pixels, return_dict=False)[0].mean
            image = vae.decode(mean, num_frames=1, return_dict=False)[0][0].float().permute(1, 2, 0)
        out.append(image.add(1).mul(127.5).round().clamp(0, 255).byte().cpu().numpy())
    return out


def evaluate(vae: AutoencoderKLTemporalDecoder, frames: list[PuppetFrame], device: str, sheet: Path) -> str:
    """Score the reconstruction of unseen faces, in one line; ``sheet`` shows the first ones, target over output."""
    images = decode_means(vae, frames, device)
    scores = np.array(
        [face_scores(image, frame.image, frame.face_boxes[0]) for image, frame in zip(images, frames, strict=True)]
    )
    columns = []
    for image, frame in list(zip(images, frames, strict=True))[:8]:
        crop = face_slice(frame.face_boxes[0], (256, 256))
        pair = np.concatenate([cv2.resize(each[crop], (160, 160)) for each in (frame.image, image)])
        columns.append(pair)
    cv2.imwrite(str(sheet), np.ascontiguousarray(np.concatenate(columns, axis=1)[:, :, ::-1]))
    full = np.mean([psnr(image, frame.image) for image, frame in zip(images, frames, strict=True)])
    return f"face {scores[:, 0].mean():.2f} dB, sharpness {scores[:, 1].mean():.3f}, whole {full:.2f} dB"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.puppet_training.vae", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run", type=Path, help="the folder of checkpoints and sheets")
    parser.add_argument("--steps", type=int, default=9000, help="length of the learning rate schedule")
    parser.add_argument("--until", type=int, help="stop at this step")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument(
        "--freeze-encoder", action="store_true", help="keep the latents that a denoiser was trained with"
    )
    parser.add_argument("--batch", type=int, default=2, help="crops of 128 pixels per step")
    parser.add_argument("--pixels", type=float, default=1.0, help="weight of the errors of pixels")
    parser.add_argument("--perceptual", type=float, default=0.2, help="weight of the perceptual term")
    parser.add_argument("--adversarial", type=float, default=0.8, help="the adversary's share of the gradient")
    parser.add_argument("--matching", type=float, default=2.0, help="weight of the discriminator's features")
    parser.add_argument("--judge-lr", type=float, default=1e-3, help="learning rate of the discriminator")
    parser.add_argument("--half-judge", action="store_true", help="bfloat16 in the discriminator")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw")
    parser.add_argument("--save-every", type=float, default=180, help="seconds")
    parser.add_argument("--look-every", type=float, default=600, help="seconds between sheets")
    return parser.parse_args(arguments)


def open_trainer(options: argparse.Namespace, weights: Path) -> Trainer:
    """The training of the VAE ``weights`` in ``options.run``, resumed from its checkpoint if there is one.

    Raises ``BadInput`` if that has other settings.
    """
    settings = {name: getattr(options, name) for name in FIXED}
    check_settings(options.run / "settings.json", settings, started=(options.run / CHECKPOINT).exists())
    torch.manual_seed(derive_seed("portrait vae"))
    trainer = Trainer(options, open_vae(weights), open_vae(weights), Discriminator(), Features(MODEL / "video.onnx"))
    if (options.run / CHECKPOINT).exists():
        trainer.resume(options.run / CHECKPOINT)
        print(f"resumed at step {trainer.step}", flush=True)
    return trainer


def train(trainer: Trainer, train_step: Callable[[], dict[str, float]], look: Callable[[Path], str]) -> None:
    """Repeat ``train_step``; save, and write figures and a sheet by ``look``, every few minutes and at the end."""
    options, shown = trainer.options, trainer.shown
    last = min(options.steps, options.until or options.steps)
    started = saved = looked = time.monotonic()
    start = trainer.step
    if not start:
        print(f"step 0: {look(options.run / 'start.png')}", flush=True)
    while trainer.step < last:
        for key, value in train_step().items():
            shown[key] = value if key not in shown else 0.98 * shown[key] + 0.02 * value
        now, end = time.monotonic(), trainer.step == last
        if trainer.step % 100 == 0 or end:
            numbers = " ".join(f"{key} {value:.4f}" for key, value in shown.items())
            print(f"step {trainer.step}, {(now - started) / (trainer.step - start):.2f} s each: {numbers}", flush=True)
        if end or now - looked > options.look_every:
            print(f"step {trainer.step}: {look(options.run / f'step-{trainer.step:06d}.png')}", flush=True)
            trainer.export(options.run / "vae.safetensors")
            looked = now
        # After the export: a resumed run takes the weights of the last checkpoint for exported.
        if end or now - saved > options.save_every:
            trainer.save(options.run / CHECKPOINT)
            saved = now


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(1 if options.device == "cpu" else 4)
    trainer = open_trainer(options, MODEL / "vae.safetensors")
    frames = sample_frames(12)
    data = batches(Crops(options.steps, options.batch), trainer.step, options.steps, options.workers)

    def train_step() -> dict[str, float]:
        pixels, weight = (tensor.to(options.device) for tensor in next(data))
        return trainer.train_step(pixels, weight)

    train(trainer, train_step, lambda sheet: evaluate(trainer.average, frames, options.device, sheet))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
