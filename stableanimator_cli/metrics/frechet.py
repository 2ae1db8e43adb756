"""Frechet distance between two sets of feature vectors, from streamed moments.

``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` of Gaussians (Dowson and Landau, "The Frechet distance between
multivariate normal distributions"), with unbiased covariances as ``numpy.cov``. No matrix root is computed: with
``S = F F^T`` the trace of the root is the sum of the singular values of ``F1^T F2``. This is exact to rounding for
singular covariances and for fewer vectors than dimensions, where ``sqrtm`` returns complex numbers or fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from stableanimator_cli.errors import BadInput


class Moments:
    """Count, mean and covariance of vectors of one width d, added in any batches; ``merge`` joins two.

    Up to d vectors are stored as they are, which is exact and smaller than a covariance. More are folded
    into a mean and a scatter matrix [d,d] (Chan et al., "Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances"): memory does not grow with the count.
    """

    def __init__(self) -> None:
        self.count = 0
        self._rows: list[np.ndarray] = []
        self._waiting = 0
        self._mean: np.ndarray | None = None
        self._scatter: np.ndarray | None = None

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Moments of the rows of float[n,d]."""
        moments = cls()
        moments.add(features)
        return moments

    @classmethod
    def merged(cls, parts: Iterable[Moments]) -> Moments:
        """Moments of all parts together."""
        total = cls()
        for part in parts:
            total.merge(part)
        return total

    @property
    def width(self) -> int:
        """d, 0 if nothing was added."""
        if self._mean is not None:
            return len(self._mean)
        return self._rows[0].shape[1] if self._rows else 0

    def add(self, features: np.ndarray) -> None:
        """Add one vector float[d] or several float[n,d]. Raises ``ValueError`` unless they are finite and of one
        width."""
        rows = np.array(features, np.float64, ndmin=2)
        if rows.ndim != 2 or (self.width and rows.shape[1] != self.width) or not rows.shape[1]:
            raise ValueError(f"features of shape {np.shape(features)}, expected rows of {self.width or 'some'} numbers")
        if not np.isfinite(rows).all():
            raise ValueError("features that are not finite")
        if not len(rows):
            return
        self._rows.append(rows)
        self._waiting += len(rows)
        self.count += len(rows)
        if self._waiting > self.width:
            self._fold()

    def merge(self, other: Moments) -> None:
        """Add the vectors of another, which stays as it is."""
        if other._mean is not None and other._scatter is not None:
            if self.width and self.width != other.width:
                raise ValueError(f"moments of width {other.width} do not join those of width {self.width}")
            self._fold()
            self._join(other.count - other._waiting, other._mean, other._scatter)
        for rows in other._rows:
            self.add(rows)

    @property
    def mean(self) -> np.ndarray:
        """float64[d]. Raises ``ValueError`` if nothing was added."""
        if not self.count:
            raise ValueError("the mean of no vectors")
        total = np.zeros(self.width) if self._mean is None else (self.count - self._waiting) * self._mean
        for rows in self._rows:
            total = total + rows.sum(axis=0)
        return total / self.count

    @property
    def covariance(self) -> np.ndarray:
        """float64[d,d], unbiased. Raises ``ValueError`` below two vectors."""
        factor = self.factor()
        return factor @ factor.T

    def factor(self) -> np.ndarray:
        """F float64[d,k] with covariance ``F F^T``; k is at most d."""
        if self.count < 2:
            raise ValueError(f"the covariance of {self.count} vector(s)")
        if self._scatter is None:
            rows = np.concatenate(self._rows)
            return (rows - rows.mean(axis=0)).T / np.sqrt(self.count - 1)
        total = Moments.merged([self])
        total._fold()
        assert total._scatter is not None
        values, vectors = np.linalg.eigh(total._scatter / (self.count - 1))
        # Values below the rounding of the largest are noise, which a square root would amplify.
        significant = values > max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
        return vectors[:, significant] * np.sqrt(values[significant])

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Arrays for a file (``numpy.savez``), which ``from_arrays`` reads."""
        empty = np.zeros((0, self.width))
        return {
            "rows": np.concatenate([empty, *self._rows]),
            "count": np.array(self.count - self._waiting),
            "mean": np.zeros(0) if self._mean is None else self._mean,
            "scatter": np.zeros((0, 0)) if self._scatter is None else self._scatter,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Moments:
        """Read the arrays of ``to_arrays``. Raises ``ValueError`` or ``KeyError`` for others."""
        moments, folded = cls(), int(arrays["count"])
        if folded:
            mean, scatter = np.asarray(arrays["mean"], np.float64), np.asarray(arrays["scatter"], np.float64)
            if mean.ndim != 1 or scatter.shape != (len(mean), len(mean)):
                raise ValueError(f"a mean {mean.shape} with a scatter matrix {scatter.shape}")
            moments._join(folded, mean, scatter)
        if len(arrays["rows"]):
            moments.add(arrays["rows"])
        return moments

    def _fold(self) -> None:
        if not self._rows:
            return
        rows = np.concatenate(self._rows)
        self._rows, self._waiting = [], 0
        mean = rows.mean(axis=0)
        centred = rows - mean
        self.count -= len(rows)
        self._join(len(rows), mean, centred.T @ centred)

    def _join(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        if self._mean is None or self._scatter is None:
            self._mean, self._scatter = mean.copy(), scatter.copy()
            self.count += count
            return
        before, total = self.count - self._waiting, self.count - self._waiting + count
        step = mean - self._mean
        self._scatter = self._scatter + scatter + np.outer(step, step) * (before * count / total)
        self._mean = self._mean + step * (count / total)
        self.count += count


_SIDES = ("predicted videos", "reference videos")


def check_counts(a: Moments, b: Moments, names: tuple[str, str] = _SIDES) -> None:
    """Raise ``BadInput`` naming a side with fewer than two vectors, and ``ValueError`` if the widths differ."""
    for moments, name in zip((a, b), names, strict=True):
        if moments.count < 2:
            raise BadInput(
                name,
                f"{moments.count} clip{'' if moments.count == 1 else 's'}",
                "2 or more, which a covariance needs",
                hint="give more or longer videos, or leave the Frechet distances out",
            )
    if a.width != b.width:
        raise ValueError(f"features of {a.width} and of {b.width} numbers")


def frechet_distance(a: Moments, b: Moments, *, names: tuple[str, str] = _SIDES) -> float:
    """Frechet distance of two sets, 0 for equal means and covariances.

    Few vectors bias it upward: compare only distances of one count. Raises ``BadInput`` naming a side with fewer than
    two vectors, and ``ValueError`` if the widths differ.
    """
    check_counts(a, b, names)
    difference = a.mean - b.mean
    fa, fb = a.factor(), b.factor()
    spread = np.sum(fa * fa) + np.sum(fb * fb)
    common = np.linalg.svd(fa.T @ fb, compute_uv=False).sum() if fa.size and fb.size else 0.0
    return max(0.0, float(difference @ difference + spread - 2 * common))
