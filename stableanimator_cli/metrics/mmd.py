"""Maximum mean discrepancy with the polynomial kernel of JEDi, from streamed moments.

Luo et al., "Beyond FVD: Enhanced Evaluation Metrics for Video Generation Quality" (oooolga/JEDi): 100 times the biased
estimate with ``k(x, y) = (x . y / d)^2``. As ``(x . y)^2`` is the product of ``x x^T`` and ``y y^T``, it equals
``100 |mean(x x^T) - mean(y y^T)|^2 / d^2``: mean and covariance contain all that it needs.
"""

from __future__ import annotations

import numpy as np

from stableanimator_cli.metrics.frechet import Moments, check_counts


def mmd_polynomial(a: Moments, b: Moments) -> float:
    """JEDi's distance of two sets, 0 for equal second moments.

    Raises ``BadInput`` below two vectors per side, as ``frechet_distance``, and ``ValueError`` if the widths differ.
    """
    check_counts(a, b)
    fa, fb = _second_moment_factor(a), _second_moment_factor(b)
    total = sum(sign * np.square(x.T @ y).sum() for sign, x, y in ((1, fa, fa), (1, fb, fb), (-2, fa, fb)))
    return max(0.0, float(100 * total / a.width**2))


def _second_moment_factor(moments: Moments) -> np.ndarray:
    """A float64[d,k] with ``A A^T`` the mean of ``x x^T``."""
    spread = moments.factor() * np.sqrt((moments.count - 1) / moments.count)
    return np.column_stack([spread, moments.mean])
