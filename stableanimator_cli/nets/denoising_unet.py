"""Common interface of the denoising UNets for the engine and training, whatever their blocks are."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from stableanimator_cli.nets.context import Context
from stableanimator_cli.nets.id_adapter import IDAdapter, IDMode
from stableanimator_cli.nets.unet_blocks import BlockRunner, Checkpointing, call_block, checkpointed, prepared_layers


class DenoisingUNet:
    """A mixin of diffusers' UNets: noisy latents and reference latents in, the network's output out.

    ``id_tokens`` face tokens follow the image token in ``encoder_hidden_states``. Several people have a set of
    ``id_tokens`` each, and a region (``Context``).

    ``checkpointing`` is for training. ``blocks`` recomputes each residual block and each transformer block, spatial or
    temporal, in the backward pass. ``diffusers`` checkpoints as the stock class, which stores the activations of
    temporal transformer blocks. ``off`` stores all.

    ``ff_chunks`` is for rendering. Feed-forward layers, eight times as wide inside as their input, process that many
    chunks of positions one after another, in place. The output is equal within rounding. Chunks apply without
    gradients only; ``checkpointing`` saves memory in training.
    """

    id_tokens: int
    checkpointing: Checkpointing
    ff_chunks: int
    run: BlockRunner
    up_blocks: Any

    def add_id_adapters(self, id_tokens: int, id_mode: IDMode) -> None:
        """Install an ID adapter in every spatial cross-attention, and the attributes above."""
        self.id_tokens = id_tokens
        self.checkpointing = "off"
        self.ff_chunks = 1
        self.run = call_block
        for attn in self.spatial_cross_attentions().values():
            attn.set_processor(IDAdapter(attn.inner_dim, attn.cross_attention_dim, id_tokens=id_tokens, mode=id_mode))

    @abstractmethod
    def spatial_cross_attentions(self) -> dict[str, Any]:
        """The layers with an ID adapter, by name."""

    def temporal_cross_attentions(self) -> dict[str, Any]:
        """The temporal layers with keys of image tokens, by name: none if blocks only attend along time."""
        return {}

    @abstractmethod
    def zero_temporal_branches(self) -> None:
        """Set the last layers of temporal residual branches to zero: a UNet of images at the start of training."""

    @property
    @abstractmethod
    def sample_channels(self) -> int:
        """Channels of ``sample``: noisy latents, then those of the reference."""

    @property
    def num_up_layers(self) -> int:
        """Layers (a residual block and its attention) of the up blocks: the maximum of ``layers`` below."""
        return sum(len(block.resnets) for block in self.up_blocks)

    def init_adapters_from_attention(self) -> None:
        """Copy every layer's ``to_k``/``to_v`` into its adapter: the initialisation of training from SVD."""
        for attn in self.spatial_cross_attentions().values():
            attn.processor.id_to_k.weight.data.copy_(attn.to_k.weight)
            attn.processor.id_to_v.weight.data.copy_(attn.to_v.weight)

    def prepare(self, context: Context) -> Context:
        """Compute the part of cross-attention that depends on tokens alone (equal within 1e-5 in float32)."""
        layers = prepared_layers(self.spatial_cross_attentions().values(), context)
        return Context(context.image, context.face, layers, regions=context.regions)

    def runners(self) -> tuple[BlockRunner, BlockRunner]:
        """Runners of the blocks that diffusers checkpoints, and of those that it does not."""
        run = checkpointed if self.checkpointing != "off" and torch.is_grad_enabled() else self.run
        return run, run if self.checkpointing == "blocks" else self.run

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | Context,
        added_time_ids: Tensor | None = None,
        pose: Tensor | None = None,
        *,
        image_only: bool = False,
    ) -> Tensor:
        """``sample`` [b,t,c,h,w] with ``sample_channels``, ``timestep`` as the network embeds it (scalar or [b]),
        ``added_time_ids`` [b,3], ``pose`` [bt,c0,h,w] from PoseNet or None -> [b,t,c',h,w].

        ``image_only`` switches temporal mixing off.
        """
        return self._forward(sample, timestep, encoder_hidden_states, added_time_ids, pose, image_only=image_only)[0]

    def forward_caching(self, *inputs: Any, layers: int) -> tuple[Tensor, Tensor]:
        """The output of ``forward(*inputs)``, and the deep features for ``forward_cached``.

        These are [bt,c,h',w'], the input of the last ``layers`` layers of the up blocks, before any upsampling.
        """
        return self._forward(*inputs, layers=layers)

    def forward_cached(self, *inputs: Any, layers: int, deep: Tensor) -> Tensor:
        """The output of ``forward(*inputs)`` with deep features of another noise level (DeepCache, Ma et al., CVPR
        2024).

        Only the first layers of the down blocks and the last ``layers`` of the up blocks are computed, which skip
        connections join. Exact for ``deep`` of the same call, otherwise approximate.
        """
        return self._forward(*inputs, layers=layers, deep=deep)[0]

    @abstractmethod
    def _forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        context: Any,
        added_time_ids: Any,
        pose: Tensor | None = None,
        *,
        image_only: bool = False,
        layers: int = 0,
        deep: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The output, and the input of the last ``layers`` up layers; with ``deep`` only these layers run."""
