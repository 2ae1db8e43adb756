"""PoseNet: skeleton frames to a residual on the UNet's first feature map (as MimicMotion's; StableAnimator, Fig. 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stableanimator_cli.nets.placed import PlacedModule


class PoseNet(PlacedModule):
    """Skeleton pixels [b,3,8h,8w] in [-1,1] -> [b,noise_latent_channels,h,w].

    The caller folds time: inputs are single images, so features can be cached per frame. ``final_proj`` is initially
    zero, so that a new PoseNet does not change the UNet's output.
    """

    def __init__(self, noise_latent_channels: int = 320) -> None:
        super().__init__()
        plan = [(3, 3, 3, 1), (3, 16, 4, 2), (16, 16, 3, 1), (16, 32, 4, 2)]
        plan += [(32, 32, 3, 1), (32, 64, 4, 2), (64, 64, 3, 1), (64, 128, 3, 1)]
        layers: list[nn.Module] = []
        for width_in, width_out, kernel, stride in plan:
            layers += [nn.Conv2d(width_in, width_out, kernel, stride, padding=1), nn.SiLU()]
        self.conv_layers = nn.Sequential(*layers)
        self.final_proj = nn.Conv2d(128, noise_latent_channels, kernel_size=1)
        self.scale = nn.Parameter(torch.ones(1) * 2)
        self.reset()

    def reset(self) -> None:
        """The reference implementation's initialisation: He-like normal weights, zero biases, zero projection."""
        for layer in self.conv_layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=math.sqrt(2 / (layer.kernel_size[0] ** 2 * layer.in_channels)))
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.final_proj.weight)
        nn.init.zeros_(self.final_proj.bias)

    def forward(self, skeletons: Tensor) -> Tensor:
        features = self.final_proj(self.conv_layers(skeletons))
        # in the features' dtype: under autocast a float32 scale would promote the UNet's features to float32
        return features * self.scale.to(features.dtype)
