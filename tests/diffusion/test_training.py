"""Noise levels, scalings and the loss of training: facts of the released training, and what any of them must keep."""

from __future__ import annotations

import math

import pytest
import torch

from stableanimator_cli.diffusion.schedule import scalings
from stableanimator_cli.diffusion.training import (
    denoising_loss,
    interpolated_cosine_sigmas,
    keyed_uniform,
    log_normal_sigmas,
    preconditioning,
    stratified_quantiles,
)


def test_interpolated_cosine_levels_have_the_known_quantiles():
    known = {0.0: 700.0, 0.01: 59, 0.05: 12.6, 0.25: 2.06, 0.5: 0.72, 0.75: 0.25, 0.95: 0.044, 0.99: 0.0102, 1.0: 0.002}
    found = interpolated_cosine_sigmas(torch.tensor(list(known), dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(list(known.values())), rtol=0.05, atol=0)  # as measured from draws


def test_log_normal_levels_have_their_mean_and_deviation_and_no_infinity():
    u = (torch.arange(20_000) + 0.5) / 20_000
    logs = log_normal_sigmas(u, 0.5, 1.5).log()
    assert float(logs.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(logs.std()) == pytest.approx(1.5, abs=0.01)
    edges = log_normal_sigmas(torch.tensor([0.0, 0.5, 1 - 1e-12], dtype=torch.float64), 0.5, 5.0)
    torch.testing.assert_close(edges, torch.tensor([0.002, math.exp(0.5), 700.0]))


def test_strata_hold_one_quantile_each():
    rand = keyed_uniform(3, "sigma", range(32))
    u = stratified_quantiles(rand, torch.arange(32), 32)
    assert (u * 32).long().tolist() == list(range(32))
    assert len(set((u * 32 % 1).tolist())) == 32


@pytest.mark.parametrize("sigma", [0.002, 0.7, 700.0])
def test_scalings_of_a_batch_are_those_of_the_sampler(sigma):
    batch, single = preconditioning(torch.tensor([1.0, sigma])), scalings(sigma)
    for name in ("skip", "out", "c_in", "c_noise"):
        assert float(getattr(batch, name)[1]) == pytest.approx(getattr(single, name), rel=1e-5)


@pytest.mark.parametrize(("form", "weight"), [("released", 2.0), ("paper", 4.0), ("off", 1.0)])
def test_a_face_weighs_by_the_form(form, weight):
    latents = torch.zeros(2, 3, 4, 6, 6)
    mask = torch.stack([torch.zeros(3, 1, 6, 6), torch.ones(3, 1, 6, 6)])
    plain, face = denoising_loss(latents + 0.5, latents, torch.tensor([2.0, 2.0]), mask, form)
    assert float(plain) == pytest.approx(0.25 * 5 / 4)
    assert float(face / plain) == pytest.approx(weight)


def test_samples_do_not_mix():
    generator = torch.Generator().manual_seed(0)
    estimate, latents = torch.randn(2, 2, 3, 4, 5, 6, generator=generator)
    mask = torch.rand(2, 3, 1, 5, 6, generator=generator)
    sigma = torch.tensor([0.1, 30.0])
    together = denoising_loss(estimate, latents, sigma, mask, "released")
    apart = [denoising_loss(estimate[[k]], latents[[k]], sigma[[k]], mask[[k]], "released") for k in range(2)]
    torch.testing.assert_close(together, torch.cat(apart))


def test_keyed_numbers_are_uniform_and_their_own():
    many = keyed_uniform(0, "sigma", range(4000))
    assert float(many.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(many.std()) == pytest.approx(12**-0.5, abs=0.01)
    assert float(many.min()) >= 0
    assert float(many.max()) < 1
    torch.testing.assert_close(keyed_uniform(0, "sigma", [7, 3]), many[[7, 3]], rtol=0, atol=0)
    for other in (keyed_uniform(1, "sigma", range(100)), keyed_uniform(0, "dropout", range(100))):
        assert not torch.isin(other, many).any()
