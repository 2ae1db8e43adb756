"""Deep features of a network kept between evaluations (DeepCache, Ma et al., CVPR 2024): approximate, and opt-in.

From one noise level to the next the deep features of a UNet change little. Evaluations that are not computed whole take
those of the last one that was, each window and guidance branch its own, and compute only what lies nearest to the
latents. Which evaluations are whole is known before the first; whoever answers (this process, or several) is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from stableanimator_cli.diffusion.guidance import WindowBranch
from stableanimator_cli.diffusion.sampler import Denoise


@dataclass(slots=True)
class DeepFeatureCache:
    """Deep features ``kept`` by window and branch [t,c,h,w], for a network whose last ``layers`` layers of the way up
    are always computed. ``whole``: the present evaluation computes everything and is what is kept."""

    layers: int
    refresh: bool = True
    features: dict[WindowBranch, Tensor] = field(default_factory=dict)

    def start_call(self, refresh: bool) -> None:
        """The next evaluation. Before a whole one everything goes, so that two of them are never held at once."""
        self.refresh = refresh
        if refresh:
            self.features.clear()


def with_deep_cache(denoise: Denoise, cache: DeepFeatureCache, refreshes: Iterator[bool]) -> Denoise:
    """``denoise``, which says to ``deep`` before each evaluation whether it is a whole one, as ``whole`` has it."""

    def denoise_again(x: Tensor, sigma: float) -> Tensor:
        cache.start_call(next(refreshes))
        return denoise(x, sigma)

    return denoise_again
