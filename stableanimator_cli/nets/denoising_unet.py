"""What the engine and training ask of every denoising UNet, whatever its blocks are."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any


class DenoisingUNet:
    """A mixin of diffusers' UNets. Attributes are those of ``unet.AnimationUNet``."""

    @abstractmethod
    def spatial_cross_attentions(self) -> dict[str, Any]:
        """The layers with an ID adapter, by name."""

    @abstractmethod
    def zero_temporal_branches(self) -> None:
        """Set the last layers of temporal residual branches to zero: a UNet of images at the start of training."""

    @property
    @abstractmethod
    def sample_channels(self) -> int:
        """Channels of ``sample``: noisy latents, then those of the reference."""

    def init_adapters_from_attention(self) -> None:
        """Copy every layer's ``to_k``/``to_v`` into its adapter: the initialisation of training from SVD."""
        for attn in self.spatial_cross_attentions().values():
            attn.processor.id_to_k.weight.data.copy_(attn.to_k.weight)
            attn.processor.id_to_v.weight.data.copy_(attn.to_v.weight)
