"""One training step: settings, input tensors, and the module that DDP or FSDP wraps."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from stableanimator_cli.diffusion.training import MaskWeighting, denoising_loss
from stableanimator_cli.engine.backbones import DenoisingBackbone
from stableanimator_cli.engine.device import DTYPES, Networks
from stableanimator_cli.engine.training.trainable import TRAINED, Train, choose_trainable
from stableanimator_cli.nets.context import Context
from stableanimator_cli.nets.face_encoder import FaceEncoder
from stableanimator_cli.nets.id_adapter import IDMode
from stableanimator_cli.nets.lora import LoraLinear
from stableanimator_cli.nets.pose_net import PoseNet
from stableanimator_cli.nets.unet import AnimationUNet
from stableanimator_cli.nets.unet_blocks import Checkpointing

Dtype = Literal["float32", "bfloat16", "float16"]
Dropout = Literal["released", "full"]
Sigma = Literal["cosine", "lognormal", "timesteps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """Settings of training: weights, noise and computation.

    * ``train``: see ``trainable.choose_trainable``. ``image_only``: a stage of single images, in which temporal layers
      are skipped and frozen.
    * ``face_mask``, ``sigma`` (``lognormal`` with mean and std of log sigma): see ``diffusion.training``.
    * ``dropout_prob`` p, from one uniform number u per sample: the image token is zero for u < 2p, the reference for
      p <= u < 3p. ``full`` also zeroes pose and face tokens if both are zero: guidance's unconditional branch.
    * Ablations: ``face_encoder`` False passes the projected vector to the adapters unfused (Table 2), ``id_adapter``
      (Table 4), ``face`` False means no face tokens.
    * ``noise_aug`` is added to reference pixels that are encoded here, and is a conditioning input like ``fps`` and
      ``motion_bucket``. A cached reference is the posterior's mode without noise.
    * ``reference_degrade``: fraction of samples whose reference has its face replaced with noise.
    * ``dtype`` of the computation; weights that learn stay float32. Frozen weights have ``dtype`` unless
      ``float32_frozen``, for a later stage that trains them.
    """

    train: Train = "attentions"
    lora_rank: int = 16
    face_mask: MaskWeighting = "released"
    face_encoder: bool = True
    id_adapter: IDMode = "distribution"
    face: bool = True
    dropout: Dropout = "released"
    dropout_prob: float = 0.1
    sigma: Sigma = "cosine"
    sigma_mean: float = 0.7
    sigma_std: float = 1.6
    noise_aug: float = 0.02
    fps: int = 7
    motion_bucket: float = 127.0
    reference_degrade: float = 0.0
    checkpointing: Checkpointing = "off"
    dtype: Dtype = "float32"
    float32_frozen: bool = False
    image_only: bool = False

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} {getattr(self, name)!r}, expected one of {get_args(kind)}")


_CHOICES = {
    "train": Train,
    "face_mask": MaskWeighting,
    "id_adapter": IDMode,
    "dropout": Dropout,
    "sigma": Sigma,
    "checkpointing": Checkpointing,
    "dtype": Dtype,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """Tensors of one step on the training device, as ``inputs.step_inputs`` draws them.

    ``latents`` (scaled) and unit ``noise`` [b,t,c,h,w], ``sigma`` [b], ``reference`` [b,c,h,w] unscaled, ``image``
    [b,1,d] token, ``face`` [b,512], ``has_face`` [b] of ones and zeros, ``poses`` uint8[b,t,3,8h,8w], ``mask``
    [b,t,1,h,w], ``time_ids`` [b,3]. The four ``keep_*`` [b] are ones, or zeros for dropped inputs.

    If a sample shows several people, ``regions`` [b,t,p+1,h,w] weigh them and the background, and ``face`` is
    [b,p,512] with zeros for people without a known face; ``has_face`` is one if any of them has one.
    """

    latents: Tensor
    noise: Tensor
    sigma: Tensor
    reference: Tensor
    image: Tensor
    face: Tensor
    has_face: Tensor
    poses: Tensor
    mask: Tensor
    time_ids: Tensor
    keep_image: Tensor
    keep_reference: Tensor
    keep_face: Tensor
    keep_pose: Tensor
    regions: Tensor | None = None


class TrainingModel(nn.Module):
    """UNet, PoseNet and Face Encoder as one module that returns the loss of each sample."""

    def __init__(
        self,
        unet: nn.Module,
        pose_net: nn.Module,
        face_encoder: nn.Module,
        settings: TrainingSettings,
        backbone: DenoisingBackbone,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.unet = cast(AnimationUNet, unet)
        self.pose_net = cast(PoseNet, pose_net)
        self.face_encoder = cast(FaceEncoder, face_encoder)
        self.settings = settings
        self.apply_settings(settings)

    def apply_settings(self, settings: TrainingSettings) -> None:
        """Apply the settings of another stage: trainable parameters, checkpointing, dtypes of the weights.

        Parameters stay the same objects; create the optimiser and DDP's wrapper afterwards. Raises ``ValueError`` for
        settings that the networks are built from (ablations, LoRA rank).
        """
        built = ("face_encoder", "id_adapter", "lora_rank")
        if any(getattr(settings, name) != getattr(self.settings, name) for name in built):
            raise ValueError(f"{', '.join(built)} cannot change between stages")
        if (settings.train == "lora") != any(isinstance(module, LoraLinear) for module in self.unet.modules()):
            raise ValueError("train 'lora' needs a model opened with train 'lora', and excludes other choices")
        self.settings = settings
        self.unet.checkpointing = settings.checkpointing
        choose_trainable(
            {role: self.get_submodule(role) for role in TRAINED},
            settings.train,
            face=settings.face,
            adapters=settings.id_adapter != "off",
            image_only=settings.image_only,
        )
        self._set_dtypes(torch.float32 if settings.float32_frozen else DTYPES[settings.dtype])

    def _set_dtypes(self, frozen: torch.dtype) -> None:
        """Set float32 for weights that learn, norms and scalars; ``frozen`` for matrices and kernels that do not."""
        for module in self.modules():
            layer = isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d)
            for parameter in module.parameters(recurse=False):
                dtype = frozen if layer and not parameter.requires_grad else torch.float32
                parameter.data = parameter.data.to(dtype)

    def forward(self, inputs: StepInputs) -> Tensor:
        """Loss of each sample, float32[b]; the optimiser minimises its mean over the global batch."""
        scale = self.backbone.preconditioning(inputs.sigma)
        skip, out, c_in = (rearrange(x, "b -> b 1 1 1 1") for x in (scale.skip, scale.out, scale.c_in))
        noisy = inputs.latents + rearrange(inputs.sigma, "b -> b 1 1 1 1") * inputs.noise
        with self.autocast(inputs.latents.device):
            output = self._predict(inputs, noisy * c_in, scale.c_noise)
        denoised = skip * noisy + out * output.float()
        return denoising_loss(
            denoised, inputs.latents, inputs.sigma, inputs.mask, self.settings.face_mask,
            prediction=self.backbone.prediction,
        )  # fmt: skip

    def _predict(self, inputs: StepInputs, scaled: Tensor, c_noise: Tensor) -> Tensor:
        frames = scaled.shape[1]
        face = None
        if self.settings.face:
            tokens = self._face_tokens(inputs)
            face = tokens * rearrange(inputs.keep_face, "b -> b 1 1").to(tokens.dtype)
        context = Context(
            inputs.image * rearrange(inputs.keep_image, "b -> b 1 1"),
            face,
            has_face=inputs.has_face if face is not None else None,
            regions=None if inputs.regions is None else rearrange(inputs.regions, "b t s h w -> (b t) s h w"),
        )
        skeletons = rearrange(inputs.poses, "b t c h w -> (b t) c h w").float() / 127.5 - 1
        pose = self.pose_net(skeletons)
        pose = pose * inputs.keep_pose.repeat_interleave(frames).view(-1, 1, 1, 1).to(pose.dtype)
        reference = inputs.reference * rearrange(inputs.keep_reference, "b -> b 1 1 1")
        sample = torch.cat([scaled, reference[:, None].expand(-1, frames, -1, -1, -1)], dim=2)
        return self.unet(sample, c_noise, context, inputs.time_ids, pose, image_only=self.settings.image_only)

    def _face_tokens(self, inputs: StepInputs) -> Tensor:
        """Tokens [b,k,c] of one face per sample, or [b,s*k,c] of people and background, a zero vector."""
        if inputs.regions is None:
            return self.face_encoder(inputs.face, inputs.image)
        sets = inputs.regions.shape[2]
        vectors = F.pad(inputs.face, (0, 0, 0, 1)).flatten(0, 1)
        tokens = self.face_encoder(vectors, inputs.image.repeat_interleave(sets, dim=0))
        return rearrange(tokens, "(b s) k c -> b (s k) c", s=sets)

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Autocast to the dtype of the settings. No cache of casts: each weight is used once per step."""
        if self.settings.dtype == "float32" or device.type == "meta":  # ``memory.train_step`` casts on ``meta``
            return nullcontext()
        return torch.autocast(device.type, DTYPES[self.settings.dtype], cache_enabled=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingParts:
    """``model`` on ``device``, with VAE and image encoder in ``networks``, loaded when a batch first needs them.

    ``fresh`` names the networks that were initialised at random. ``scaling`` is the VAE's scaling factor.
    """

    model: TrainingModel
    networks: Networks
    device: torch.device
    fresh: tuple[str, ...]
    scaling: float

    @property
    def settings(self) -> TrainingSettings:
        return self.model.settings
