"""DeepCache (Ma et al., CVPR 2024): reuse a network's deep features between evaluations. Approximate and opt-in.

Deep features of a UNet change little from one noise level to the next. An evaluation either refreshes them or reuses
those of the last refresh and computes only the outermost layers. Features are cached per window and guidance branch.
The schedule of refreshes is known before the first evaluation, so that several processes can follow it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from stableanimator_cli.diffusion.guidance import WindowBranch
from stableanimator_cli.diffusion.sampler import Denoise


@dataclass(slots=True)
class DeepFeatureCache:
    """Deep ``features`` [t,c,h,w] by window and branch.

    The last ``layers`` layers of the up path are always computed. ``refresh``: the current evaluation computes all
    layers and fills the cache.
    """

    layers: int
    refresh: bool = True
    features: dict[WindowBranch, Tensor] = field(default_factory=dict)

    def start_call(self, refresh: bool) -> None:
        """Start an evaluation. A refresh clears the cache first, so that memory holds one set of features."""
        self.refresh = refresh
        if refresh:
            self.features.clear()


def with_deep_cache(denoise: Denoise, cache: DeepFeatureCache, refreshes: Iterator[bool]) -> Denoise:
    """Wrap ``denoise`` so that each evaluation refreshes ``cache`` or reuses it, as ``refreshes`` yields."""

    def cached_denoise(x: Tensor, sigma: float) -> Tensor:
        cache.start_call(next(refreshes))
        return denoise(x, sigma)

    return cached_denoise
