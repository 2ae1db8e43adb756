"""How many groups a network's GroupNorms have: 32 in every released model, fewer in narrow ones.

diffusers writes 32 into its temporal decoder and its spatio-temporal blocks. With 32 groups on 32 or 64 channels a
group has one or two members, and a norm over so few takes the picture's mean lightness and colour with it. Small models
name another count in their JSON config (``norm_num_groups``); weights and their names stay the same.
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)

DEFAULT_NORM_GROUPS = 32


def set_norm_groups(network: Network, groups: int) -> Network:
    """Give every GroupNorm of ``network`` that many groups. ``ValueError`` where its channels do not divide by them."""
    for name, module in network.named_modules():
        if isinstance(module, nn.GroupNorm):
            if groups < 1 or module.num_channels % groups:
                raise ValueError(
                    f"norm_num_groups {groups} does not divide the {module.num_channels} channels of {name}"
                )
            module.num_groups = groups
    return network
