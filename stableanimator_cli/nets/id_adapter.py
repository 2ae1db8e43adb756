"""Distribution-aware ID adapter (StableAnimator, Eq. 2): face tokens enter the spatial cross-attention.

One adapter sits in every spatial ``attn2`` of the UNet as its attention processor, so that its weights are named
``...attn2.processor.id_to_{k,v}.weight`` as in the released state dict. Letters: ``bt`` folded video and frame, ``n``
positions, ``d`` width, ``k`` tokens, ``s`` sets of face tokens.

Several people: each has a set of tokens and a region of the image, and one more set is for the background. A position
attends to each set by itself, and the results are summed with the regions' weights. The statistics of Eq. 2 are those
of the sum. So one person whose region is the full image gets the result of one set, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from einops import rearrange, repeat
from torch import Tensor, nn

IDMode = Literal["distribution", "addition", "norm", "off"]
_NO_VARIANCE = 1e-30
EPSILON = 1e-5  # added to the face features' standard deviation, as the reference implementation does


@dataclass(frozen=True, slots=True)
class PreparedCrossAttention:
    """Values that one cross-attention layer computes from tokens alone, once per video instead of once per call.

    Either ``constant`` [b,1,d] is the layer's full output: one image token makes softmax trivial, and face features
    are absent or zero. Or ``base`` [b,1,d] holds the image features, and ``keys``/``values`` [b,s*k,d] those of the
    face.
    """

    constant: Tensor | None = None
    base: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None


def attend(attn: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Multi-head attention on projected tensors: [b,n,d] x [b,k,d] -> [b,n,d], scale 1/sqrt(head width)."""
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=attn.heads) for x in (query, key, value))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


def project_out(attn: Attention, x: Tensor) -> Tensor:
    """The layer's output projection; dropout (second entry) is inactive in every released configuration."""
    return attn.to_out[1](attn.to_out[0](x))


class IDAdapter(nn.Module):
    """Adds face features to the image features of one spatial cross-attention.

    ``mode``: ``distribution`` aligns mean and standard deviation of the face features with those of the image features
    before adding (Eq. 2, one scalar of each per frame over positions and channels). ``addition`` adds them unchanged,
    ``norm`` adds them normalised (Table 4), ``off`` ignores them. Statistics are float32 for every dtype: in float16
    the epsilon is subnormal, and a constant feature map would become NaN.
    """

    def __init__(self, width: int, cross_width: int, *, id_tokens: int = 4, mode: IDMode = "distribution") -> None:
        super().__init__()
        if mode not in get_args(IDMode):
            raise ValueError(f"ID adapter mode {mode!r}, expected one of {get_args(IDMode)}")
        self.id_to_k = nn.Linear(cross_width, width, bias=False)
        self.id_to_v = nn.Linear(cross_width, width, bias=False)
        self.id_tokens = id_tokens
        self.mode: IDMode = mode
        self.scale = 1.0

    def forward(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """The layer as an attention processor: [bt,n,d], tokens [bt,k+id_tokens,c] (face tokens last) -> [bt,n,d]."""
        if encoder_hidden_states is None:
            raise ValueError("an ID adapter needs encoder_hidden_states (image tokens, then face tokens)")
        image, face = encoder_hidden_states[:, : -self.id_tokens], encoder_hidden_states[:, -self.id_tokens :]
        return self.cross_attention(attn, hidden_states, image, face)

    def cross_attention(
        self,
        attn: Attention,
        x: Tensor,
        image: Tensor,
        face: Tensor | None,
        has_face: Tensor | None = None,
        regions: Tensor | None = None,
    ) -> Tensor:
        """Both attentions, without preparation. ``face`` None: image features only. ``has_face`` [bt,1,1] of ones and
        zeros has that effect per frame. ``regions`` [s,bt,n,1] weigh the sets of ``face`` [bt,s*k,c]."""
        query = attn.to_q(x)
        base = attend(attn, query, attn.to_k(image), attn.to_v(image))
        if face is None or self.mode == "off":
            return project_out(attn, base)
        faces = _attend_sets(attn, query, *self.project_face(face), regions)
        scale = self.scale if has_face is None else self.scale * has_face.float()
        return project_out(attn, self._add(base, faces, scale, repeats=1))

    def project_face(self, face: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [b,s*k,d] of face tokens [b,s*k,c].

        Sets are projected one by one: the rounding of a matrix product may depend on its number of rows.
        """
        sets = face.split(self.id_tokens, dim=1)
        if len(sets) == 1:
            return self.id_to_k(face), self.id_to_v(face)
        return torch.cat([self.id_to_k(one) for one in sets], 1), torch.cat([self.id_to_v(one) for one in sets], 1)

    def prepare(self, attn: Attention, image: Tensor, face: Tensor | None) -> PreparedCrossAttention | None:
        """Compute what depends on tokens alone; None for several image tokens, which allow no preparation."""
        if image.shape[1] != 1:
            return None
        base = attn.to_v(image)  # softmax over one key is 1: the attention returns its value at every position
        if face is None or self.mode == "off":
            return PreparedCrossAttention(constant=project_out(attn, base))
        if not face.any():  # zero tokens have zero values, so alignment only adds the image features' mean
            shift = base.float().mean((1, 2), keepdim=True) if self.mode == "distribution" else 0.0
            return PreparedCrossAttention(constant=project_out(attn, (base + self.scale * shift).to(base.dtype)))
        keys, values = self.project_face(face)
        return PreparedCrossAttention(base=base, keys=keys, values=values)

    def apply(
        self,
        attn: Attention,
        x: Tensor,
        prepared: PreparedCrossAttention,
        frames: int,
        regions: Tensor | None = None,
    ) -> Tensor:
        """Equal to ``cross_attention`` with the tokens of ``prepared``. x [(b frames),n,d]."""
        if prepared.constant is not None:
            return repeat(prepared.constant, "b 1 d -> (b t) 1 d", t=frames)
        base, keys, values = (
            repeat(part, "b k d -> (b t) k d", t=frames) for part in (prepared.base, prepared.keys, prepared.values)
        )
        faces = _attend_sets(attn, attn.to_q(x), keys, values, regions)
        return project_out(attn, self._add(base, faces, self.scale, repeats=x.shape[1]))

    def _add(self, base: Tensor, faces: Tensor, scale: float | Tensor, *, repeats: int) -> Tensor:
        """``base`` plus ``scale`` (a number, or [bt,1,1]) times the face features after Eq. 2, in float32.

        ``base`` may hold one position in place of ``repeats`` equal ones. The features are read three times
        (statistics, centring, one fused product and sum), not once per operation of the equation.
        """
        dtype, base, faces = base.dtype, base.float(), faces.float()
        if self.mode == "addition":
            return (base + scale * faces).to(dtype)
        std, mean = torch.std_mean(faces, dim=(1, 2), keepdim=True)  # unbiased
        base_std, shift = _std_mean_repeated(base, repeats) if self.mode == "distribution" else (1.0, None)
        gain = base_std / (std + EPSILON)
        if isinstance(scale, Tensor) or scale != 1:
            gain, shift = gain * scale, None if shift is None else shift * scale
        return torch.addcmul(base if shift is None else base + shift, faces - mean, gain).to(dtype)


def _attend_sets(attn: Attention, query: Tensor, keys: Tensor, values: Tensor, regions: Tensor | None) -> Tensor:
    """Face features [bt,n,d] of one set; with ``regions`` [s,bt,n,1] the float32 sum over sets, weighted by them.

    A weight of 1 and zeros elsewhere give that set's features exactly, as long as the others are finite.
    """
    if regions is None:
        return attend(attn, query, keys, values)
    sets = (part.chunk(len(regions), dim=1) for part in (keys, values))
    total: Tensor | None = None
    for weight, key, value in zip(regions.float(), *sets, strict=True):
        faces = attend(attn, query, key, value).float()
        total = weight * faces if total is None else total.addcmul_(weight, faces)
    if total is None:
        raise ValueError("regions without people")
    return total


def _std_mean_repeated(x: Tensor, repeats: int) -> tuple[Tensor, Tensor]:
    """Unbiased std and mean over (1, 2) of ``x`` repeated ``repeats`` times along dim 1, without repeating it."""
    mean = x.mean((1, 2), keepdim=True)
    squares = (x - mean).square().sum((1, 2), keepdim=True) * repeats
    variance = squares / (x.shape[1] * x.shape[2] * repeats - 1)
    # a dropped image token has no variance, where the gradient of a square root is infinite
    return variance.clamp_min(_NO_VARIANCE).sqrt(), mean
