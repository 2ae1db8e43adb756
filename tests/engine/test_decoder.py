"""Latents to pixels: chunks, cross-fades between them, and whole levels."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stableanimator_cli.catalogue import open_model
from stableanimator_cli.engine.decoder import Decoder, to_uint8
from stableanimator_cli.engine.weights import loaders
from stableanimator_cli.nets.time_conv import TimeConv


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def vae(tiny_model):
    return loaders(open_model(tiny_model), torch.float32, "distribution")["vae"]()


def latents(frames: int) -> Tensor:
    return torch.randn((frames, 4, 8, 8), generator=torch.Generator().manual_seed(frames)) * 0.18215


class Counting(Decoder):
    """Instead of a network: frames as bright as 0.1 times their latent, and another offset for every run."""

    def __init__(self, offset: float) -> None:
        self.offset, self.runs = offset, []

    def pixels(self, latents: Tensor) -> Tensor:
        self.runs.append(len(latents))
        shift = self.offset * (len(self.runs) - 1)
        return latents[:, :1, :1, :1].expand(-1, 3, 2, 2) * 0.1 + shift


def test_pixels_undo_the_samplers_scale(vae):
    x = latents(3)
    decoded = Decoder(vae, Counter()).pixels(x)
    assert decoded.shape == (3, 3, 64, 64)
    assert torch.equal(decoded, vae.decode(x / 0.18215, num_frames=3).sample)


def test_pixels_pass_gradients_to_latents(vae):
    with torch.enable_grad():
        x = latents(2).requires_grad_()
        Decoder(vae, Counter()).pixels(x).square().mean().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize("frames", [1, 3])
def test_temporal_convolutions_are_products_that_equal_the_librarys(vae, frames):
    library = copy.deepcopy(vae)
    for module in library.decoder.modules():
        if isinstance(module, TimeConv):
            module.__class__ = nn.Conv3d
    assert sum(isinstance(module, TimeConv) for module in vae.decoder.modules()) > 10
    assert not any(isinstance(module, TimeConv) for module in library.modules())
    expected = Decoder(library, Counter()).pixels(latents(frames))
    torch.testing.assert_close(Decoder(vae, Counter()).pixels(latents(frames)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("total", "chunk"), [(1, 4), (4, 4), (5, 4), (8, 4), (7, 3), (3, 1)])
def test_without_overlap_each_chunk_is_decoded_by_itself(vae, total, chunk):
    calls: Counter[str] = Counter()
    x = latents(total)
    frames = np.stack(list(Decoder(vae, calls).frames(x, chunk=chunk)))
    parts = [to_uint8(vae.decode(part / 0.18215, num_frames=len(part)).sample) for part in x.split(chunk)]
    np.testing.assert_array_equal(frames, np.concatenate(parts))
    assert calls["vae_decode"] == -(-total // chunk)


@pytest.mark.parametrize(
    ("total", "chunk", "overlap"), [(9, 4, 1), (9, 4, 3), (10, 4, 2), (5, 5, 2), (11, 3, 1), (2, 4, 3), (13, 6, 5)]
)
def test_a_constant_video_stays_constant_through_any_cross_fades(total, chunk, overlap):
    decoder = Counting(offset=0.0)
    frames = np.stack(list(decoder.frames(torch.full((total, 4, 1, 1), 3.0), chunk=chunk, overlap=overlap)))
    assert frames.shape == (total, 2, 2, 3)
    assert set(frames.flatten().tolist()) == {round((0.3 / 2 + 0.5) * 255)}
    assert sum(decoder.runs) - overlap * (len(decoder.runs) - 1) == total


def test_frames_keep_their_order_through_cross_fades():
    ramp = torch.linspace(-9, 9, 12).view(12, 1, 1, 1).expand(-1, 4, 1, 1)
    plain, faded = (np.stack(list(Counting(offset=0.0).frames(ramp, chunk=5, overlap=overlap))) for overlap in (0, 2))
    np.testing.assert_array_equal(plain, faded)
    assert (np.diff(faded[:, 0, 0, 0].astype(int)) > 0).all()


def test_shared_frames_go_from_one_chunks_answer_to_the_nexts():
    """The second run answers 0.4 brighter: over 3 shared frames the step becomes quarters."""
    frames = np.stack(list(Counting(offset=0.4).frames(torch.zeros(7, 4, 1, 1), chunk=5, overlap=3)))
    shift = (frames[:, 0, 0, 0].astype(float) / 255 - 0.5) * 2
    np.testing.assert_allclose(shift, [0, 0, 0.1, 0.2, 0.3, 0.4, 0.4], atol=0.01)


def test_a_chunk_is_decoded_only_when_its_frames_are_taken():
    decoder = Counting(offset=0.0)
    frames = decoder.frames(torch.zeros(9, 4, 1, 1), chunk=3)
    assert decoder.runs == []
    next(frames)
    assert decoder.runs == [3]


def test_levels_are_clamped_and_rounded_to_the_nearest():
    levels = np.arange(256, dtype=np.float32)
    for nudge in (-0.49, 0.0, 0.49):
        signed = torch.from_numpy((levels + np.float32(nudge)) / 127.5 - 1).view(1, 1, 16, 16).expand(1, 3, -1, -1)
        np.testing.assert_array_equal(to_uint8(signed)[0, ..., 0].flatten(), np.arange(256))
    wild = torch.tensor([-9.0, -1, 1, 9]).view(1, 1, 2, 2).expand(1, 3, -1, -1)
    assert to_uint8(wild)[0, ..., 2].flatten().tolist() == [0, 0, 255, 255]
    assert to_uint8(wild.bfloat16()).shape == (1, 2, 2, 3)
