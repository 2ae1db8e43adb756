"""Frechet distances against closed forms, scipy's matrix root, and the cases in which that root breaks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from stableanimator_cli.errors import BadInput
from stableanimator_cli.metrics.frechet import Moments, frechet_distance


def rows(count: int, width: int, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, width)) @ rng.standard_normal((width, width)) + shift) * scale


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return frechet_distance(Moments.of(a), Moments.of(b))


def with_moments(mean: np.ndarray, deviations: np.ndarray) -> np.ndarray:
    """Vectors whose sample mean and (diagonal, unbiased) covariance are exactly these."""
    width = len(mean)
    corners = np.concatenate([np.diag(deviations), -np.diag(deviations)]) * np.sqrt((2 * width - 1) / 2)
    return mean + corners


@pytest.mark.parametrize("width", [1, 3, 40])
def test_closed_form_of_diagonal_gaussians(width):
    rng = np.random.default_rng(width)
    (m1, m2), (s1, s2) = rng.standard_normal((2, width)), rng.random((2, width)) + 0.1
    a, b = with_moments(m1, s1), with_moments(m2, s2)
    expected = np.sum((m1 - m2) ** 2) + np.sum((s1 - s2) ** 2)
    assert distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_closed_form_of_gaussians_that_share_axes():
    rng = np.random.default_rng(5)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    s1, s2 = rng.random((2, 6))
    a, b = with_moments(np.zeros(6), s1) @ turn.T, with_moments(np.ones(6), s2) @ turn.T
    expected = np.sum((np.ones(6) @ turn.T) ** 2) + np.sum((s1 - s2) ** 2)
    assert distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_it_is_the_usual_formula_where_that_works():
    a, b = rows(400, 12, 1), rows(300, 12, 2, shift=0.5)
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    apart = a.mean(axis=0) - b.mean(axis=0)
    expected = apart @ apart + np.trace(s1) + np.trace(s2) - 2 * np.trace(np.real(np.asarray(sqrtm(s1 @ s2))))
    assert distance(a, b) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("count", [2, 5, 30, 200])
def test_a_set_is_no_distance_from_itself(count):
    a = rows(count, 30, 3)
    assert distance(a, a[::-1]) <= 1e-10 * np.trace(np.cov(a, rowvar=False))


@pytest.mark.parametrize(("ours", "theirs"), [(3, 4), (2, 50), (10, 21)])
def test_fewer_vectors_than_dimensions(ours, theirs):
    width = 20
    a, b = rows(ours, width, 4), rows(theirs, width, 5)
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # an independent way: eigenvalues of S1^(1/2) S2 S1^(1/2)
    values, vectors = np.linalg.eigh(s1)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    common = np.sqrt(np.linalg.eigvalsh(root @ s2 @ root).clip(0)).sum()
    apart = a.mean(axis=0) - b.mean(axis=0)
    expected = apart @ apart + np.trace(s1) + np.trace(s2) - 2 * common
    assert distance(a, b) == pytest.approx(expected, rel=1e-5)  # the root of zero eigenvalues limits that way


def test_singular_covariances_that_share_no_direction():
    a, b = np.zeros((60, 4)), np.zeros((50, 4))
    a[:, 0], b[:, 1] = np.linspace(-1, 1, 60), np.linspace(-2, 2, 50)
    assert distance(a, b) == pytest.approx(a[:, 0].var(ddof=1) + b[:, 1].var(ddof=1), rel=1e-12)


def test_vectors_that_are_all_the_same():
    a, b = np.full((5, 3), 2.0), np.full((7, 3), 4.0)
    assert distance(a, a) == 0
    assert distance(a, b) == 12
    many, others = np.full((50, 3), 2.0), np.full((70, 3), 4.0)
    assert distance(many, others) == pytest.approx(12)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("count", [5, 300])
def test_the_scale_of_features_does_not_matter(scale, count):
    a, b = rows(count, 10, 6), rows(count, 10, 7)
    assert distance(a * scale, b * scale) == pytest.approx(distance(a, b) * scale**2, rel=1e-9)


def test_a_far_mean_costs_no_digits():
    a, b = rows(300, 8, 8), rows(300, 8, 9)
    assert distance(a + 1e6, b + 1e6) == pytest.approx(distance(a, b), rel=1e-6)


@pytest.mark.parametrize(("ours", "theirs", "which"), [(1, 5, "predicted"), (5, 1, "reference"), (0, 5, "predicted")])
def test_one_clip_is_an_error(ours, theirs, which):
    with pytest.raises(BadInput, match=f"{which} videos: found {min(ours, theirs)} clip.* expected 2 or more"):
        distance(rows(ours, 4), rows(theirs, 4))


def test_widths_must_agree():
    with pytest.raises(ValueError, match="4 and of 5"):
        distance(rows(9, 4), rows(9, 5))
    moments = Moments.of(rows(2, 4))
    with pytest.raises(ValueError, match="rows of 4"):
        moments.add(rows(2, 5))
    with pytest.raises(ValueError, match="not finite"):
        moments.add(np.full(4, np.nan))
    for count in (2, 30):
        with pytest.raises(ValueError, match=r"width \d|rows of \d"):
            moments.merge(Moments.of(rows(count, 5)))
    assert moments.count == 2


@pytest.mark.parametrize("count", [4, 9, 10, 11, 57])
def test_batches_and_parts_give_the_same_moments(count):
    data = rows(count, 10, 11, shift=30)
    expected = np.cov(data, rowvar=False)
    one_by_one, batches = Moments(), Moments()
    for row in data:
        one_by_one.add(row)
    for start in range(0, count, 7):
        batches.add(data[start : start + 7])
    cut = count // 3
    parts = Moments.merged([Moments.of(data[:cut]), Moments.of(data[cut:])])
    for moments in (one_by_one, batches, parts, Moments.from_arrays(parts.to_arrays())):
        assert moments.count == count
        np.testing.assert_allclose(moments.mean, data.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(moments.covariance, expected, atol=1e-9 * np.abs(expected).max())


def test_merging_leaves_the_parts_alone():
    a, b = Moments.of(rows(30, 4, 1)), Moments.of(rows(3, 4, 2))
    before = a.covariance.copy()
    Moments.merged([a, b, a])
    assert (a.count, b.count) == (30, 3)
    np.testing.assert_array_equal(a.covariance, before)


def test_memory_is_flat_in_the_count():
    moments = Moments()
    for seed in range(200):
        moments.add(rows(5, 8, seed))
    assert moments.count == 1000
    assert sum(array.size for array in moments.to_arrays().values()) <= 8 * 8 + 8 * 8 + 8 + 1


def test_few_clips_are_biased_upward():
    """Why distances of different counts are not compared."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((6, 6))
    told = [
        np.mean([distance(rng.standard_normal((n, 6)) @ mixing, rng.standard_normal((n, 6)) @ mixing) for _ in "abcd"])
        for n in (8, 64, 512)
    ]
    assert told[0] > 2 * told[1] > 4 * told[2] > 0
