"""Number of groups of a network's GroupNorms: 32 in every released model, fewer in narrow ones.

diffusers fixes 32 in its temporal decoder and its spatio-temporal blocks. With 32 or 64 channels a group then has one
or two channels, and such a norm removes the image's mean brightness and colour. Small models set another number in
their JSON config (``norm_num_groups``); weights and their names stay the same.
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)

DEFAULT_NORM_GROUPS = 32


def set_norm_groups(network: Network, groups: int) -> Network:
    """Set the number of groups of every GroupNorm of ``network``. Raises ``ValueError`` if it does not divide the
    channels."""
    for name, module in network.named_modules():
        if isinstance(module, nn.GroupNorm):
            if groups < 1 or module.num_channels % groups:
                raise ValueError(
                    f"norm_num_groups {groups} does not divide the {module.num_channels} channels of {name}"
                )
            module.num_groups = groups
    return network
