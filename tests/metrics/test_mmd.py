"""JEDi's distance: the published kernel, pair by pair, equals the one from streamed moments."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stableanimator_cli.errors import BadInput
from stableanimator_cli.metrics.frechet import Moments
from stableanimator_cli.metrics.mmd import mmd_polynomial
from stableanimator_cli.metrics.result import METRICS
from stableanimator_cli.metrics.video import STYLES, prepare_jepa, set_distance


def by_pairs(x: np.ndarray, y: np.ndarray) -> float:
    """``mmd_poly(x, y, degree=2, coef0=0) * 100`` of the published code, whose gamma is one over the width."""

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([(np.dot(p, q) / len(p)) ** 2 for p in a for q in b]))

    return 100 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


@pytest.mark.parametrize(("n", "m", "d"), [(2, 3, 7), (5, 7, 12), (40, 33, 6)])  # fewer and more rows than numbers
def test_the_distance_is_the_published_one(n, m, d):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, d)) + 0.4, 1.5 * rng.normal(size=(m, d))
    value = mmd_polynomial(Moments.of(x), Moments.of(y))
    assert value == pytest.approx(by_pairs(x, y), rel=1e-9)
    assert value > 0.1
    parts = Moments.merged([Moments.of(x[:1]), Moments.of(x[1:])])
    assert mmd_polynomial(parts, Moments.of(y)) == pytest.approx(value, rel=1e-9)
    assert mmd_polynomial(Moments.of(x), Moments.of(x)) == pytest.approx(0, abs=1e-12)


def test_one_clip_is_an_error_and_widths_must_agree():
    rows = np.eye(3)
    with pytest.raises(BadInput, match="predicted videos: found 1 clip"):
        mmd_polynomial(Moments.of(rows[:1]), Moments.of(rows))
    with pytest.raises(ValueError, match="features of 3 and of 2"):
        mmd_polynomial(Moments.of(rows), Moments.of(rows[:, :2]))


def test_the_metric_says_how_it_was_made():
    style = STYLES["jedi"]
    rng = np.random.default_rng(0)
    ours, target = ({"a": Moments.of(rng.normal(size=(4, 5)))} for _ in range(2))
    value = set_distance(style, ours, target, {"network": "vjepa"})
    assert value.pooled == pytest.approx(mmd_polynomial(ours["a"], target["a"]))
    assert (value.about["clip_length"], value.about["clip_stride"], value.about["kernel"]) == (16, 16, "(x . y / d)^2")
    assert "ddof" not in value.about
    assert "ddof" in STYLES["fvd_disco"].about()
    assert METRICS["jedi"].better == "lower"
    assert "maximum mean discrepancy" in METRICS["jedi"].definition


def test_frames_are_squashed_and_normalised():
    frame = np.random.default_rng(1).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    plane = Image.fromarray(frame[..., 1].astype(np.float32)).resize((224, 224), Image.Resampling.BILINEAR)
    told = prepare_jepa(frame)
    assert (told.shape, told.dtype) == ((3, 224, 224), np.float32)
    np.testing.assert_allclose(told[1], (np.asarray(plane) / 255 - 0.456) / 0.224, atol=1e-5)
    exact = np.random.default_rng(2).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    np.testing.assert_allclose(prepare_jepa(exact)[0], (exact[..., 0] / 255 - 0.485) / 0.229, atol=1e-5)
