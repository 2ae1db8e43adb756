"""What face optimisation costs, counted: bytes alive with and without chunks, FLOPs of a crop and of whole frames."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stableanimator_cli.diffusion.face_optimization import Box, FaceOptimization, FaceOptimizationSettings, Target
from stableanimator_cli.diffusion.sampler import Step
from stableanimator_cli.engine.decoder import FaceDecoder
from stableanimator_cli.engine.memory.profile import PeakMemoryMode
from tests.tiny import temporal_vae

ROOT = Path(__file__).resolve().parents[2]
FRAMES, CHUNK = 16, 4
BOX: Box = (8, 8, 47, 47)
MATRIX = torch.randn(48, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLTemporalDecoder:
    return temporal_vae(32)


def latents() -> Tensor:
    return torch.randn(FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(2)) * 0.18215


def embed(pixels: Tensor, boxes: Sequence[Box]) -> Tensor:
    """4x4 means of the box through a random matrix: next to nothing beside the decoder."""
    cut = [p[:, y0 : y1 + 1, x0 : x1 + 1] for p, (x0, y0, x1, y1) in zip(pixels, boxes, strict=True)]
    return torch.stack([F.adaptive_avg_pool2d(part, 4).flatten() for part in cut]) @ MATRIX


def target() -> Target:
    return Target(boxes=(BOX,) * FRAMES, vector=torch.randn(16, generator=torch.Generator().manual_seed(3)))


def by_chunks(decoder: FaceDecoder) -> Tensor:
    """One iteration as it is: each chunk's backward pass by itself."""
    settings = FaceOptimizationSettings(mode="full", steps=(0, 1), iterations=1, chunk=CHUNK)
    return FaceOptimization(decoder, embed, [target()], settings)(latents(), Step(0, 1, 1.0, 0.0))


def as_one_graph(decoder: FaceDecoder) -> Tensor:
    """The same iteration as the reference implementation runs it: all chunks decoded, then one backward pass."""
    variable = latents().requires_grad_(True)
    adam = torch.optim.Adam([variable], lr=0.1)
    pixels = torch.cat([decoder.pixels(part) for part in variable.split(CHUNK)]).clamp(-1, 1)
    similarity = F.cosine_similarity(embed(pixels, target().boxes), target().vector[None])
    (1 - similarity).abs().mean().backward()
    adam.step()
    return variable.detach()


def peak(run: Callable[[FaceDecoder], Tensor], decoder: FaceDecoder) -> tuple[int, Tensor]:
    with PeakMemoryMode() as counted:
        result = run(decoder)
    return counted.peak, result


@pytest.mark.parametrize(("checkpointed", "share"), [(False, 1 / 3), (True, 1.0)])
def test_chunk_by_chunk_holds_one_chunk(vae, checkpointed, share, capsys):
    decoder = FaceDecoder(vae, Counter(), checkpointed=checkpointed)
    chunked, moved = peak(by_chunks, decoder)
    whole, expected = peak(as_one_graph, decoder)
    way = f"{FRAMES} frames, chunks of {CHUNK}, checkpointing {'on' if checkpointed else 'off'}"
    with capsys.disabled():
        print(
            f"\n{way}: at most {chunked:,} bytes alive chunk by chunk, {whole:,} in one graph ({chunked / whole:.3f})"
        )
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=0)
    assert chunked < whole * share


def test_the_counter_counts_what_lives():
    one = torch.zeros(1000)
    with PeakMemoryMode() as counted:
        two = one + 1  # 4000
        two.add_(1)  # in place
        view = two[:10].view(2, 5)
        assert counted.alive == counted.peak == 4000
        del two
        assert counted.alive == 4000  # the view holds it
        del view
        assert counted.alive == 0
        variable = torch.zeros(500).requires_grad_(True)  # 2000
        held = variable.exp().exp().exp().sum()  # each of the three keeps its result for the way back
        assert counted.alive == 4 * 2000 + 4
        held.backward()
        assert counted.alive == 2 * 2000 + 4  # the graph is gone, the gradient is there
    assert counted.peak >= 5 * 2000


class FullDecoder:
    """SVD's own decoder without weights: shapes only."""

    def __init__(self) -> None:
        config = json.loads((ROOT / "models/svd-xt/vae.json").read_text(encoding="utf-8"))
        with torch.device("meta"):
            self.vae = AutoencoderKLTemporalDecoder(**config).to("meta").requires_grad_(False)

    def flops(self, mode: str, *, checkpointed: bool = True, back: bool = True, frames: int = CHUNK) -> int:
        """Of one chunk at 576x1024, decoded (and back to the latents): ``full``, or ``crop`` round a 128-pixel face
        that does not stand on the latents' grid."""
        decoder = FaceDecoder(self.vae, Counter(), checkpointed=checkpointed, margin=8)
        clean = torch.empty(frames, 4, 72, 128, device="meta")
        chunk = range(frames)
        with decoder.with_recorded_stats(clean, [chunk]):
            variable = clean.clone().requires_grad_(back)
            with FlopCounterMode(display=False) as counted:
                if mode == "full":
                    pixels = decoder.pixels(variable)
                else:
                    pixels, corner = decoder.crop(variable, chunk, (452, 220, 579, 347))
                    assert (tuple(pixels.shape[-2:]), corner) == ((33 * 8, 33 * 8), (48 * 8, 19 * 8))
                if back:
                    pixels.sum().backward()
        return counted.get_total_flops()


def test_a_crop_takes_a_quarter_of_the_flops_at_most(capsys):
    full = FullDecoder()
    chunks = FRAMES // CHUNK
    tera = {
        "full, checkpointed": full.flops("full"),
        "full, not checkpointed": full.flops("full", checkpointed=False),
        "full, forward only": full.flops("full", back=False),
        "crop": full.flops("crop"),
        "crop, forward only": full.flops("crop", back=False),
    }
    with capsys.disabled():
        print(f"\nTFLOP of one iteration, {FRAMES} frames at 576x1024, a 128-pixel face, margin 8:")
        print("\n".join(f"  {name}: {flops * chunks / 1e12:.1f}" for name, flops in tera.items()))
    # 6.94 TFLOP a frame is what this decoder was known to cost before: the counter sees all of it.
    assert tera["full, forward only"] / CHUNK == pytest.approx(6.94e12, rel=0.01)
    assert tera["crop"] * 4 < tera["full, not checkpointed"] < tera["full, checkpointed"]
