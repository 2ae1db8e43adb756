"""Interface of video diffusion backbones: networks, sampling and decoding. One module per backbone.

``backbone_of(model)`` returns the backbone that a model folder names in ``model.toml``. Its module has the backbone's
name (``-`` becomes ``_``) and contains ``BACKBONE``, an instance of ``Backbone``; the facts that verbs need without
torch are in ``stableanimator_cli.backbone_facts``. No other module compares names of backbones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:  # the engine imports this module
    import numpy as np

    from stableanimator_cli.config.animate import SamplingConfig, WindowConfig
    from stableanimator_cli.diffusion.face_optimization import ChunkDecoder
    from stableanimator_cli.diffusion.schedule import Scalings
    from stableanimator_cli.diffusion.training import Preconditioning, Prediction
    from stableanimator_cli.diffusion.windows import WindowPlan
    from stableanimator_cli.engine.device import DevicePlan
    from stableanimator_cli.engine.engine import Engine
    from stableanimator_cli.engine.render import RenderRequest, SampleOptions, Timings
    from stableanimator_cli.nets.id_adapter import IDMode
    from stableanimator_cli.records import ModelFolder

Build = Callable[[], nn.Module]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewound:
    """A sampling after fewer steps: its latents, ``step``, ``extra`` (``SampleOptions``), and entries of its log."""

    latents: Tensor
    step: int
    extra: Mapping[str, Tensor]
    log: int


class LatentDecoder(Protocol):
    """Latents to frames."""

    def pixels(self, latents: Tensor) -> Tensor:
        """Latents [t,c,h,w] in the sampler's scale, decoded together -> RGB [T,3,H,W] in [-1,1], differentiable."""
        ...

    def frames(self, latents: Tensor, *, chunk: int, overlap: int = 0) -> Iterator[np.ndarray]:
        """Yield uint8[h,w,3] frames in order, decoded in chunks of ``chunk`` latents along time."""
        ...


class Backbone(Protocol):
    """One backbone, without state: everything about a run is in the engine and the request."""

    def builders(self, model: ModelFolder, id_mode: IDMode) -> dict[str, Build]:
        """One function per network that builds it from the model's configs, without weights."""
        ...

    def networks(self, model: ModelFolder, plan: DevicePlan, id_mode: IDMode) -> dict[str, Build]:
        """One function per network that loads it strictly in the dtype and quantization of ``plan``, on the CPU."""
        ...

    def count_calls(self, request: RenderRequest) -> dict[str, int]:
        """Calls of each network in a rendering, known before anything is loaded; ``windows``: calls of
        ``SampleOptions.on_window``."""
        ...

    def remaining_windows(self, request: RenderRequest, first_step: int) -> int:
        """Calls of ``SampleOptions.on_window`` from ``first_step`` to the end."""
        ...

    def plan_windows(self, frames: int, windows: WindowConfig) -> WindowPlan:
        """The windows of a video of ``frames`` frames, an anchor in front included."""
        ...

    def total_steps(self, request: RenderRequest) -> int:
        """Steps of a rendering; more than ``sampling.steps`` if windows are sampled one after the other."""
        ...

    def resumable_steps(self, sampling: SamplingConfig) -> Container[int]:
        """Numbers of finished steps from which ``sample`` can resume."""
        ...

    def rewind(
        self, request: RenderRequest, windows: Sequence[int], latents: Tensor, extra: Mapping[str, Tensor]
    ) -> Rewound | None:
        """The part of finished ``latents`` that remains if ``windows`` are sampled again; None if that is nothing."""
        ...

    def sample(self, engine: Engine, request: RenderRequest, timings: Timings, options: SampleOptions) -> Tensor:
        """See ``render.sample``."""
        ...

    def decode(self, engine: Engine, request: RenderRequest, latents: Tensor, timings: Timings) -> Iterator[np.ndarray]:
        """See ``render.decode``."""
        ...

    def decoder(self, vae: Any, calls: Counter[str]) -> LatentDecoder:
        """The decoder of ``networks["vae"]``. ``calls["vae_decode"]`` counts its calls."""
        ...

    def face_decoder(self, vae: Any, calls: Counter[str], *, checkpointed: bool, margin: int) -> FaceDecoder:
        """The same decoder for face optimisation; see ``decoder.FaceDecoder``."""
        ...


class DenoisingBackbone(Backbone, Protocol):
    """A backbone that is a denoiser of windows: our samplers, guidance, windows and training drive its UNet.

    The UNet has the interface of ``nets.unet.AnimationUNet``.
    """

    prediction: Prediction

    def configs(self, model: ModelFolder) -> Mapping[str, Mapping[str, Any]]:
        """JSON configs of a checkpoint, by role."""
        ...

    def scalings(self, sigma: float) -> Scalings:
        """The denoised estimate from the network's output at one noise level > 0."""
        ...

    def preconditioning(self, sigma: Tensor) -> Preconditioning:
        """``scalings`` for a batch of noise levels float32[b]."""
        ...

    def read(self, model: ModelFolder, role: str) -> dict[str, Tensor]:
        """The state dict of a network from the model's files, by the names of ``builders``' network."""
        ...


if TYPE_CHECKING:

    class FaceDecoder(ChunkDecoder, Protocol):
        """``ChunkDecoder`` with ``working``, a context in which gradients do not underflow."""

        def working(self) -> Any: ...


def backbone_of(model: ModelFolder) -> Any:
    """The ``Backbone`` of a model folder."""
    return import_module(f"{__name__}.{model.backbone.replace('-', '_')}").BACKBONE
