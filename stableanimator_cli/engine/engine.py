"""One model on one device: load its networks, encode, denoise and decode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from stableanimator_cli.catalogue.remedy import remedy
from stableanimator_cli.config.animate import SamplingConfig
from stableanimator_cli.detect.face import FaceReader
from stableanimator_cli.diffusion.deepcache import DeepFeatureCache, with_deep_cache
from stableanimator_cli.diffusion.guidance import (
    Predict,
    WindowOutputs,
    alternate,
    blended_denoiser,
    is_guided,
    window_branches,
    window_outputs,
    windowed_denoiser,
    with_guidance_interval,
)
from stableanimator_cli.diffusion.sampler import Denoise
from stableanimator_cli.diffusion.schedule import image_noise, keyed_noise
from stableanimator_cli.diffusion.windows import Window, WindowPlan
from stableanimator_cli.engine.backbones import LatentDecoder, backbone_of
from stableanimator_cli.engine.conditioning import (
    Conditioning,
    PeopleFaces,
    PoseFeatures,
    PoseFrames,
    clip_token,
    degrade_faces,
    face_tokens,
    reference_latents,
    texture_error,
    time_ids,
)
from stableanimator_cli.engine.cuda_graphs import GraphedCalls, Recorder
from stableanimator_cli.engine.denoiser_calls import DenoiserCall
from stableanimator_cli.engine.device import (
    DevicePlan,
    Networks,
    float32_precision,
    memory_guard,
    reset_peak_memory,
)
from stableanimator_cli.engine.group_offload import GroupOffload
from stableanimator_cli.engine.weights import recogniser
from stableanimator_cli.errors import ConfigError, ModelDamaged, ModelMissing
from stableanimator_cli.nets.compiled import CompiledBlocks
from stableanimator_cli.nets.denoising_unet import DenoisingUNet
from stableanimator_cli.nets.id_adapter import IDMode
from stableanimator_cli.nets.memory_format import set_channels_last
from stableanimator_cli.nets.quantized import quantize_weights
from stableanimator_cli.nets.unet import AnimationUNet
from stableanimator_cli.nets.unet_blocks import BlockRunner, call_block
from stableanimator_cli.records import STRIDE, ModelFolder

Loader = Callable[[], nn.Module]

# Distribute the window branches of each placement over processes: ``parallel.WorkerGroup.distribute``
Distribute = Callable[
    ["Engine", Conditioning, WindowPlan, tuple[float, float], Predict, DeepFeatureCache | None],
    Callable[[int], WindowOutputs],
]


def apply_plan(networks: Mapping[str, Loader], plan: DevicePlan) -> dict[str, Loader]:
    """The same loaders, with the quantization and memory format of ``plan`` applied to UNet and VAE."""
    config = plan.config
    changed = {"unet": lambda: quantize_weights(networks["unet"](), config.quantization), "vae": networks["vae"]}
    if config.channels_last:
        changed = {name: lambda load=load: set_channels_last(load()) for name, load in changed.items()}
    return {**networks, **changed}


class Engine:
    """A context manager: ``with Engine.open(model, plan) as engine``. Frees the device on exit.

    ``calls`` counts network calls: ``unet``, of these ``unet_shallow``, ``vae_encode``, ``vae_decode``,
    ``image_encoder`` and ``pose_net_frames``.
    """

    def __init__(
        self, model: ModelFolder, plan: DevicePlan, networks: Networks, *, id_mode: IDMode = "distribution"
    ) -> None:
        self.model = model
        self.plan = plan
        self.networks = networks
        self.id_mode: IDMode = id_mode
        self.backbone = backbone_of(model)
        self.calls: Counter[str] = Counter()
        self._faces: FaceReader | None = None
        self._texture: tuple[np.ndarray, float] | None = None
        self._open = ExitStack()
        networks.provide("recogniser", lambda: recogniser(self.faces().recogniser_file))

    @classmethod
    def open(cls, model: ModelFolder, plan: DevicePlan, *, id_mode: IDMode = "distribution") -> Engine:
        """Open without reading: each network loads when it is first resident. ``id_mode``: the paper's Table 4."""
        networks = backbone_of(model).networks(model, plan, id_mode)
        return cls(model, plan, Networks(networks, plan), id_mode=id_mode)

    def __enter__(self) -> Engine:
        self._open.enter_context(float32_precision(tf32=self.plan.config.tf32))
        return self

    def __exit__(self, *raised: object) -> None:
        self._open.close()
        self.networks.close()

    @contextmanager
    def resident(self, *names: str) -> Iterator[None]:
        """Keep the named networks on the device within it. Raises ``OutOfMemory`` with the settings that help."""
        hint = "close other programs on the device, use --offload model, a smaller --size or a shorter --window"
        with memory_guard(f"loading {', '.join(names)}", hint), self.networks.resident(*names):
            yield

    def faces(self) -> FaceReader:
        """The model's face detector and recogniser, with the channel order of its card. They do not use torch."""
        if "face" not in self.model.files:
            raise ModelMissing(
                f"model {self.model.name!r} has no face detector",
                hint=f"{remedy(self.model, 'face')}, pass --face-embedding FILE, or use --allow-no-face",
            )
        if self._faces is None:
            self._faces = FaceReader(
                self.model.files["face"], self.model.face_channel_order, str(self.plan.device), arena=False
            )
        return self._faces

    def encode(
        self,
        image: np.ndarray,
        resized: np.ndarray,
        face: np.ndarray | PeopleFaces | None,
        poses: PoseFrames,
        sampling: SamplingConfig,
        hidden_faces: np.ndarray | None = None,
    ) -> Conditioning:
        """Encode a reference image, its faces and a motion for the UNet.

        ``image`` uint8[h,w,3] at its own size is for the image encoder, ``resized`` at the output's size (multiples of
        8) for the VAE, with noise keyed by the seed. ``face`` is a raw ArcFace embedding float32[512], several people's
        or None. If none of several people has a known face, there are no face tokens, as in training.
        ``hidden_faces`` float[k,4] (x0, y0, x1, y1 in pixels of ``resized``): noise replaces them in the latents.
        """
        height, width = resized.shape[:2]
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"size {width}x{height} is not a multiple of {STRIDE}")
        if isinstance(face, PeopleFaces):
            face.check_fits(len(poses), (width, height))
            face = face if face.known.any() else None
        noise = image_noise(sampling.seed, (1, 3, height, width))
        with torch.no_grad():
            with self.resident("image_encoder", "face_encoder"):
                self.calls["image_encoder"] += 1
                token = clip_token(self.networks["image_encoder"], image)
                tokens = None if face is None else face_tokens(lambda vector: self._encode_face(vector, token), face)
            hint = "use a smaller --size, or --offload model"
            with self.resident("vae"), memory_guard("encoding the reference image", hint):
                self.calls["vae_encode"] += 1
                reference = reference_latents(self.networks["vae"], resized, noise, sampling.noise_aug)
        if hidden_faces is not None:
            boxes = torch.from_numpy(hidden_faces)[None] / STRIDE
            noise = keyed_noise(sampling.seed, "hidden faces", [0], tuple(reference.shape[1:]))
            reference = degrade_faces(reference, boxes, torch.tensor([True]), noise)
        return Conditioning(
            image=token,
            face=tokens,
            reference=reference,
            time_ids=time_ids(sampling.conditioning_fps, sampling.motion_bucket, sampling.noise_aug, token),
            pose=self.pose_features(poses),
            regions=face.regions_on(token.device) if isinstance(face, PeopleFaces) else None,
        )

    def texture_error(self, resized: np.ndarray) -> float:
        """See ``conditioning.texture_error``; its two calls of the VAE are not counted, as they draw nothing.

        The last image's is remembered: an open engine often animates one reference several times.
        """
        if self._texture is None or not np.array_equal(self._texture[0], resized):
            hint = "use a smaller --size, or --offload model"
            with torch.no_grad(), self.resident("vae"), memory_guard("checking the reference image", hint):
                self._texture = (resized.copy(), texture_error(self.networks["vae"], resized))
        return self._texture[1]

    def pose_features(self, poses: PoseFrames) -> PoseFeatures:
        budget = self.plan.config.pose_budget_mb << 20
        return PoseFeatures(self.networks["pose_net"], poses, budget=budget, calls=self.calls)

    def _encode_face(self, face: np.ndarray, token: Tensor) -> Tensor:
        encoder = self.networks["face_encoder"]
        expected = (encoder.config.id_embeddings_dim,)
        if face.shape != expected:
            raise ModelDamaged(
                f"the face embedding has shape {face.shape}, the face encoder of {self.model.name} expects {expected}"
            )
        return encoder(torch.from_numpy(face).to(token)[None], token)

    def denoiser(
        self,
        conditioning: Conditioning,
        windows: WindowPlan,
        guidance: tuple[float, float],
        *,
        interval: tuple[float, float] | None = None,
        deep: DeepFeatureCache | None = None,
        calls: Sequence[DenoiserCall] = (),
        on_window: Callable[[], None] | None = None,
        prepared: bool = True,
        distribute: Distribute | None = None,
    ) -> Denoise:
        """(noisy latents [t,c,h,w], sigma) -> denoised latents over all ``windows``; the UNet must be resident.

        * ``interval`` of noise levels: nothing is guided outside, and this process computes alone there, which takes as
          long as a guided call that two processes share.
        * ``calls`` are the calls to come, in order. They select the placement if windows shift, and refreshes of
          ``deep``. The first call inside the interval, and the first after it, must be a refresh.
        * ``prepared`` False computes every cross-attention in every call, for tests.
        * ``distribute`` lets other processes compute some of the windows.
        """
        predict = self.predictor(conditioning, guidance, deep=deep, prepared=prepared)
        scalings = self.backbone.scalings
        distributed = distribute and distribute(self, conditioning, windows, guidance, predict, deep)

        def denoiser_at(index: int) -> Denoise:
            placement, unguided = windows.placement(index), (1.0, 1.0)
            if distributed is None:
                outputs = window_outputs(predict, window_branches(placement, guidance), scalings)
            else:
                outputs = distributed(index)
            denoise = blended_denoiser(outputs, placement, guidance=guidance, scalings=scalings, on_window=on_window)
            if interval is None or not is_guided(*guidance):
                return denoise
            plain = windowed_denoiser(predict, placement, guidance=unguided, scalings=scalings, on_window=on_window)
            return with_guidance_interval(interval, denoise, plain)

        denoise = denoiser_at(0)
        if windows.shifted:
            denoise = alternate(
                [denoiser_at(index) for index in range(windows.num_placements)], (call.placement for call in calls)
            )
        return denoise if deep is None else with_deep_cache(denoise, deep, (call.refresh for call in calls))

    def predictor(
        self,
        conditioning: Conditioning,
        guidance: tuple[float, float],
        *,
        deep: DeepFeatureCache | None = None,
        prepared: bool = True,
    ) -> Predict:
        """The UNet's output for one window and branch; the UNet must be resident. See ``denoiser``."""
        unet: AnimationUNet = self.networks["unet"]
        config = self.plan.config
        unet.ff_chunks = config.ff_chunks
        if unet.run is call_block:
            unet.run = self._block_runner()
        call_unet = GraphedCalls(unet, Recorder(self.plan.device)) if config.cuda_graphs else unet
        if deep is not None:
            check_cache_layers(unet, deep.layers)
        contexts = conditioning.contexts(guided=is_guided(*guidance))
        if prepared:
            with torch.no_grad(), self._attentions_on_device(unet):
                contexts = {conditional: unet.prepare(context) for conditional, context in contexts.items()}
        empty = torch.zeros_like(conditioning.reference)

        def predict(latents: Tensor, c_noise: float, window: Window, conditional: bool) -> Tensor:
            self.calls["unet"] += 1
            reference = conditioning.reference if conditional else empty
            sample = torch.cat([latents.to(reference), reference.expand(len(latents), -1, -1, -1)], dim=1)[None]
            pose = conditioning.pose.window(window.frames) if conditional else None
            context = contexts[conditional]
            if conditional:
                context = conditioning.with_regions(context, window.frames)
            inputs = (sample, c_noise, context, conditioning.time_ids, pose)
            if deep is None:
                return call_unet(*inputs)[0]
            branch = (window, conditional)
            if deep.refresh:
                output, deep.features[branch] = unet.forward_caching(*inputs, layers=deep.layers)
                return output[0]
            self.calls["unet_shallow"] += 1
            return unet.forward_cached(*inputs, layers=deep.layers, deep=deep.features[branch])[0]

        return predict

    def _block_runner(self) -> BlockRunner:
        config = self.plan.config
        run = CompiledBlocks() if config.compile == "blocks" else call_block
        return GroupOffload(self.plan.device, self.calls, run) if config.offload == "group" else run

    def _attentions_on_device(self, unet: AnimationUNet) -> AbstractContextManager[None]:
        """Keep the layers that ``AnimationUNet.prepare`` reads on the device."""
        if not isinstance(unet.run, GroupOffload):
            return nullcontext()
        attentions = unet.spatial_cross_attentions() | unet.temporal_cross_attentions()
        return unet.run.on_device(*attentions.values())

    @property
    def decoder(self) -> LatentDecoder:
        """The VAE's decoder; ``vae`` must be resident."""
        return self.backbone.decoder(self.networks["vae"], self.calls)


class EngineCache:
    """Keep the last engine open: the next request with the same model and device settings finds its networks loaded.

    A context manager, which closes the engine. Weights that were replaced since are loaded again.
    """

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._weights: frozenset[tuple[object, ...]] = frozenset()

    def open(self, model: ModelFolder, plan: DevicePlan, *, id_mode: IDMode = "distribution") -> Engine:
        """The open engine with its counts of calls and of peak memory at zero, or another one in its place."""
        engine, weights = self._engine, _file_states(model)
        same = engine is not None and (engine.model, engine.plan, engine.id_mode) == (model, plan, id_mode)
        if engine is None or not same or weights != self._weights:
            self.close()
            self._weights = weights
            self._engine = engine = Engine.open(model, plan, id_mode=id_mode).__enter__()
        engine.calls.clear()
        reset_peak_memory(plan.device)
        return engine

    def close(self) -> None:
        """Free the device."""
        if self._engine is not None:
            self._engine.__exit__(None, None, None)
        self._engine = None

    def __enter__(self) -> EngineCache:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def check_cache_layers(unet: DenoisingUNet, layers: int) -> None:
    """Raise ``ConfigError`` for ``layers`` of ``DeepFeatureCache`` that the UNet's decoder does not have."""
    if not 1 <= layers <= unet.num_up_layers:
        raise ConfigError("sampling.cache_layers", layers, f"1 to {unet.num_up_layers} with this model")


def _file_states(model: ModelFolder) -> frozenset[tuple[object, ...]]:
    """State of a model's files, which changes when one is replaced; plans may name missing files."""
    paths = (path for file in model.files.values() for path in ([*file.rglob("*")] if file.is_dir() else [file]))
    stats = ((path, path.stat()) for path in paths if path.is_file())
    return frozenset((path, stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in stats)
