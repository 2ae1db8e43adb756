"""Train the VAE's decoder on latents that the denoiser made: it learns to decode their errors into sharp faces.

``python -m tools.puppet_training.decoder RUN`` draws people of the training split and lets ``models/puppet`` denoise
their latents from medium noise levels, so that the drawn frames stay the targets. It then trains the decoder with the
losses of ``tools.puppet_training.vae``. Interrupt at any time; run the same command to resume. ``RUN/vae.safetensors``
replaces ``models/puppet/vae.safetensors``: the encoder, and with it all latents, stays as it is.

Not used for the weights that ship: 300 to 400 steps on a CPU gained no sharpness without artefacts (``docs/log.md``).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stableanimator_cli import catalogue
from stableanimator_cli.bench.frontier_cases import face_slice
from stableanimator_cli.bench.rows import short_digests
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.diffusion.schedule import karras_sigmas
from stableanimator_cli.engine.conditioning import to_signed
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import SampleOptions, Timings, sample
from stableanimator_cli.errors import NoFace
from stableanimator_cli.files import atomic_write
from stableanimator_cli.puppets.sample import derive_rng, derive_seed
from stableanimator_cli.puppets.scene import sample_scene
from stableanimator_cli.records import NETWORKS, STRIDE
from tools.bench.puppet_model import OutputDetectors, open_clip, request_of
from tools.command import exit_code_of
from tools.puppet_training import vae
from tools.puppet_training.heldout import SIZE
from tools.puppet_training.measure import face_scores
from tools.settings import check_settings

FRAMES = 4
VALIDATION = 12  # people
_FIRST = 30_000  # index of the first person
_START = (2.0, 9.0)  # noise levels from which latents are denoised
_CLEAN = 0.25  # share of batches with encoded latents: the decoder must still decode these


def write_pairs(folder: Path, people: int, model: str, split: str, device: str) -> None:
    """Write ``FRAMES`` denoised latents with their encoded latents, images and face boxes per person.

    Existing files stay, so an interrupted call resumes. Raises ``BadInput`` if another model made them.
    """
    entry = catalogue.open_model(model)
    settings = {"weights": short_digests(entry, NETWORKS), "card": dict(entry.defaults)}
    check_settings(folder / "settings.json", settings, started=any(folder.glob("*.safetensors")))
    missing = [n for n in range(people) if not (folder / f"{n:04d}.safetensors").exists()]
    if not missing:
        return
    with Engine.open(entry, DevicePlan.of(DeviceConfig(device=device))) as engine:
        detectors = OutputDetectors(engine)
        for n in missing:
            pair = _denoise(engine, detectors, n, split)
            with atomic_write(folder / f"{n:04d}.safetensors") as temp:
                save_file({name: tensor.contiguous() for name, tensor in pair.items()}, temp)
            print(f"person {n + 1} of {people}", flush=True)


@torch.no_grad()
def _denoise(engine: Engine, detectors: OutputDetectors, n: int, split: str) -> dict[str, Tensor]:
    """Add noise of a level of the sampler to the latents of one clip, and denoise them with the card's settings."""
    rng = derive_rng("decoder pairs", split, n)
    clip = None
    while clip is None:
        person, moment = _FIRST + int(rng.integers(10_000)), int(rng.integers(1000))
        scene = sample_scene(split, person, clip=moment, frames=FRAMES, size=SIZE, framing="portrait")
        frames = list(scene.clip())
        if all(np.isfinite(frame.face_boxes).all() for frame in frames):
            try:
                clip = open_clip(scene, detectors)
            except NoFace:  # a face that the detector misses: another person
                clip = None
    request = request_of(clip, clip.embedding, dict(engine.model.defaults), n)
    images = np.stack([frame.image for frame in frames])
    network = engine.networks["vae"]
    encoded = torch.cat([network.encode(x, return_dict=False)[0].mean for x in to_signed(images).split(1)])
    clean = encoded * network.config["scaling_factor"]
    sigmas = karras_sigmas(request.sampling.steps)
    levels = [k for k, sigma in enumerate(sigmas) if _START[0] <= float(sigma) <= _START[1]]
    first = levels[int(rng.integers(len(levels)))]
    generator = torch.Generator().manual_seed(derive_seed("decoder noise", split, n))
    noisy = clean + sigmas[first] * torch.randn(clean.shape, generator=generator)
    denoised = sample(engine, request, Timings(), SampleOptions(latents=noisy, first_step=first))
    return {
        "denoised": (denoised.cpu() / network.config["scaling_factor"]).half(),
        "encoded": encoded.half(),
        "images": torch.from_numpy(images),
        "boxes": torch.from_numpy(np.stack([frame.face_boxes[0] for frame in frames]).astype(np.float32)),
    }


class PairCrops:
    """Batches of pixels, their weights and latents, mostly over faces; every fourth batch has full images."""

    def __init__(self, pairs: Path, batch: int, side: int = 128) -> None:
        self.files = sorted(pairs.glob("*.safetensors"))
        self.batch, self.side = batch, side

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = derive_rng("decoder crops", step)
        full = step % 4 == 3
        side = SIZE[0] if full else self.side
        count = max(1, self.batch * self.side**2 // side**2) if full else self.batch
        kind = "encoded" if rng.random() < _CLEAN else "denoised"
        parts = []
        for _ in range(count):
            pair = load_file(self.files[int(rng.integers(len(self.files)))])
            parts.append(_crop(pair, kind, int(rng.integers(FRAMES)), side, rng))
        pixels, weights, latents = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
        return pixels, weights, latents


def _crop(
    pair: dict[str, Tensor], kind: str, t: int, side: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    box = pair["boxes"][t].numpy()
    weight = torch.ones(1, *SIZE[::-1])
    weight[(slice(None), *face_slice(box, SIZE))] = 2.0
    centre = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]) + rng.normal(0, 12, 2)
    x, y = (int(v) // STRIDE for v in np.clip(centre - side / 2, 0, (SIZE[0] - side, SIZE[1] - side)))
    cells = slice(y, y + side // STRIDE), slice(x, x + side // STRIDE)
    rows, columns = (slice(cell.start * STRIDE, cell.stop * STRIDE) for cell in cells)
    pixels = pair["images"][t].permute(2, 0, 1).float().div(127.5).sub(1)
    return pixels[:, rows, columns], weight[:, rows, columns], pair[kind][(t, slice(None), *cells)].float()


@torch.no_grad()
def evaluate(trainer: vae.Trainer, pairs: Path, sheet: Path, device: str) -> str:
    """Score the averaged decoder on the first frames of unseen people, in one line, and write a sheet of faces."""
    scores: dict[str, list[tuple[float, float]]] = {"denoised": [], "encoded": []}
    columns = []
    for path in sorted(pairs.glob("*.safetensors")):
        pair = load_file(path)
        box, target = pair["boxes"][0].numpy(), pair["images"][0].numpy()
        images = []
        for kind, rows in scores.items():
            latents = pair[kind][:1].float().to(device)
            with vae.half_precision(latents):
                decoded = trainer.average.decode(latents, num_frames=1, return_dict=False)[0][0].float()
            image = decoded.permute(1, 2, 0).add(1).mul(127.5).round().clamp(0, 255).byte().cpu().numpy()
            rows.append(face_scores(image, target, box))
            images.append(image)
        crop = face_slice(box, SIZE)
        columns.append(np.concatenate([cv2.resize(each[crop], (160, 160)) for each in (target, *images)]))
    cv2.imwrite(str(sheet), np.ascontiguousarray(np.concatenate(columns[:8], axis=1)[:, :, ::-1]))
    means = {kind: np.mean(rows, axis=0) for kind, rows in scores.items()}
    return "; ".join(f"{kind}: face {m[0]:.2f} dB, sharpness {m[1]:.3f}" for kind, m in means.items())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.puppet_training.decoder", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of pairs, checkpoints and sheets")
    parser.add_argument("--model", default=str(vae.MODEL), help="the denoiser and the decoder to start from")
    parser.add_argument("--people", type=int, default=240, help="of the training")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=2, help="crops of 128 pixels per step")
    parser.add_argument("--pixels", type=float, default=0.3, help="weight of the errors of pixels, which blur")
    parser.add_argument("--perceptual", type=float, default=0.6, help="weight of the perceptual term")
    parser.add_argument("--adversarial", type=float, default=2.0, help="the adversary's share of the gradient")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save-every", type=float, default=120, help="seconds")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(1 if options.device == "cpu" else 4)
    unseen = options.run / "pairs-val"
    write_pairs(options.run / "pairs", options.people, options.model, "train", options.device)
    write_pairs(unseen, VALIDATION, options.model, "val", options.device)
    settings = ["--freeze-encoder", "--steps", str(options.steps), "--lr", str(options.lr), "--device", options.device]
    settings += [
        "--pixels",
        str(options.pixels),
        "--perceptual",
        str(options.perceptual),
        "--adversarial",
        str(options.adversarial),
        "--batch",
        str(options.batch),
    ]
    weights = catalogue.open_model(options.model, ("vae",)).files["vae"]
    trainer = vae.open_trainer(vae.parse([str(options.run), *settings, "--half-judge"]), weights)
    crops = PairCrops(options.run / "pairs", options.batch)

    def train_step() -> dict[str, float]:
        pixels, weight, latents = (tensor.to(options.device) for tensor in crops[trainer.step])
        return trainer.train_step(pixels, weight, latents)

    vae.train(trainer, train_step, lambda sheet: evaluate(trainer, unseen, sheet, options.device))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
