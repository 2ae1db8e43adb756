"""The engine: one model on one device. Opens networks, encodes, denoises and decodes; every verb works through it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import tee
from types import TracebackType

import numpy as np
import torch
from torch import Tensor, nn

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
    with_guidance_interval,
)
from stableanimator_cli.diffusion.sampler import Denoise
from stableanimator_cli.diffusion.windows import Window, WindowPlan
from stableanimator_cli.engine.conditioning import (
    Conditioning,
    PoseFeatures,
    PoseFrames,
    clip_token,
    reference_latents,
    time_ids,
)
from stableanimator_cli.engine.cuda_graphs import GraphedCalls, Recorder
from stableanimator_cli.engine.decoder import Decoder
from stableanimator_cli.engine.denoiser_calls import DenoiserCall
from stableanimator_cli.engine.device import DevicePlan, Networks, float32_precision, memory_guard
from stableanimator_cli.engine.group_offload import GroupOffload
from stableanimator_cli.engine.weights import loaders, recogniser
from stableanimator_cli.errors import ConfigError, ModelDamaged, ModelMissing
from stableanimator_cli.nets.compiled import CompiledBlocks
from stableanimator_cli.nets.id_adapter import IDMode
from stableanimator_cli.nets.memory_format import set_channels_last
from stableanimator_cli.nets.quantized import quantize_weights
from stableanimator_cli.nets.unet import AnimationUNet, BlockRunner, Context, call_block
from stableanimator_cli.records import STRIDE, ModelFolder

Loader = Callable[[], nn.Module]

# Distributes the window branches of each placement over processes: ``parallel.WorkerGroup.distribute``
Distribute = Callable[
    ["Engine", Conditioning, WindowPlan, tuple[float, float], Predict, DeepFeatureCache | None],
    Callable[[int], WindowOutputs],
]


def apply_plan(networks: Mapping[str, Loader], plan: DevicePlan) -> dict[str, Loader]:
    """The same loaders, whose networks lie in memory as the plan wants them to."""
    unet, vae = networks["unet"], networks["vae"]
    changed = {"unet": lambda: quantize_weights(unet(), plan.weights)}
    if plan.channels_last:
        changed = {
            "unet": lambda: set_channels_last(quantize_weights(unet(), plan.weights)),
            "vae": lambda: set_channels_last(vae()),
        }
    return {**networks, **changed}


class Engine:
    """A context manager: ``with Engine.open(model, plan) as engine``. Frees the device on leaving.

    ``calls`` counts what was run (``unet`` and of its calls ``unet_shallow``, ``vae_encode``, ``vae_decode``,
    ``image_encoder``, ``pose_net_frames``), for tests to compare with a plan.
    """

    def __init__(
        self, model: ModelFolder, plan: DevicePlan, networks: Networks, *, id_mode: IDMode = "distribution"
    ) -> None:
        self.model = model
        self.plan = plan
        self.networks = networks
        self.id_mode: IDMode = id_mode
        self.calls: Counter[str] = Counter()
        self._faces: FaceReader | None = None
        self._open = ExitStack()
        networks.provide("recogniser", lambda: recogniser(self.faces().recogniser_file))

    @classmethod
    def open(cls, model: ModelFolder, plan: DevicePlan, *, id_mode: IDMode = "distribution") -> Engine:
        """Nothing is read yet: each network loads when it is first resident. ``id_mode`` is Table 4's switch."""
        networks = apply_plan(loaders(model, plan.dtype, id_mode), plan)
        return cls(model, plan, Networks(networks, plan), id_mode=id_mode)

    def __enter__(self) -> Engine:
        self._open.enter_context(float32_precision(tf32=self.plan.tf32))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()
        self.networks.close()

    @contextmanager
    def resident(self, *names: str) -> Iterator[None]:
        """Within it the named networks are on the device; out of memory there says what to set."""
        hint = "close other programs on the device, use --offload model, a smaller --size or a shorter --window"
        with memory_guard(f"loading {', '.join(names)}", hint), self.networks.resident(*names):
            yield

    def faces(self) -> FaceReader:
        """The model's face detector and recogniser, fed in the channel order that its card names. No torch needed."""
        if "face" not in self.model.files:
            raise ModelMissing(
                f"model {self.model.name!r} has no face detector",
                hint="`sa models pull antelopev2`, give its vector with --face-embedding FILE, or say --allow-no-face",
            )
        if self._faces is None:
            self._faces = FaceReader(self.model.files["face"], self.model.face_channel_order, str(self.plan.device))
        return self._faces

    def encode(
        self,
        picture: np.ndarray,
        fitted: np.ndarray,
        face: np.ndarray | None,
        poses: PoseFrames,
        *,
        noise: Tensor,
        noise_aug: float,
        motion_bucket: float,
        conditioning_fps: int,
    ) -> Conditioning:
        """``picture`` uint8[h,w,3] for the image encoder at its own size, ``fitted`` the same at the output's size
        (multiples of 8), ``face`` float32[512] raw ArcFace or None, ``noise`` [1,3,h,w] for the fitted picture."""
        height, width = fitted.shape[:2]
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"size {width}x{height} is not a multiple of {STRIDE}")
        with torch.no_grad():
            with self.resident("image_encoder", "face_encoder"):
                self.calls["image_encoder"] += 1
                token = clip_token(self.networks["image_encoder"], picture)
                tokens = None if face is None else self._face_tokens(face, token)
            hint = "use a smaller --size, or --offload model"
            with self.resident("vae"), memory_guard("encoding the reference picture", hint):
                self.calls["vae_encode"] += 1
                reference = reference_latents(self.networks["vae"], fitted, noise, noise_aug)
        return Conditioning(
            image=token,
            face=tokens,
            reference=reference,
            time_ids=time_ids(conditioning_fps, motion_bucket, noise_aug, token),
            pose=PoseFeatures(self.networks["pose_net"], poses, budget=self.plan.pose_budget, calls=self.calls),
        )

    def _face_tokens(self, face: np.ndarray, token: Tensor) -> Tensor:
        encoder = self.networks["face_encoder"]
        if face.shape != (encoder.config.id_embeddings_dim,):
            raise ModelDamaged(
                f"the face vector has shape {face.shape}, the face encoder of {self.model.name} wants "
                f"({encoder.config.id_embeddings_dim},)"
            )
        return encoder(torch.from_numpy(face).to(token)[None], token)

    def denoiser(
        self,
        conditioning: Conditioning,
        plan: WindowPlan,
        guidance: tuple[float, float],
        *,
        interval: tuple[float, float] | None = None,
        deep: DeepFeatureCache | None = None,
        evaluations: Iterable[DenoiserCall] = (),
        done: Callable[[], None] | None = None,
        prepared: bool = True,
        distribute: Distribute | None = None,
    ) -> Denoise:
        """(noisy latents [t,c,h,w], sigma) -> denoised latents over all windows of ``plan``; the UNet must be resident.

        Outside ``interval`` of noise levels nothing is guided. This process computes alone there, which takes as long
        as a guided call that two processes share. ``evaluations`` are the calls to come, in order: they select the
        placement if a plan's windows shift. ``deep`` caches deep features for calls that are not ``whole``; the first
        call inside the interval, and the first after it, must be whole. ``prepared`` False computes every
        cross-attention in every call, for tests to compare with. ``distribute`` lets other processes compute some of
        the windows.
        """
        predict = self.predictor(conditioning, guidance, deep=deep, prepared=prepared)
        shared = None if distribute is None else distribute(self, conditioning, plan, guidance, predict, deep)

        def placed(turn: int) -> Denoise:
            windows, alone = plan.placement(turn), (1.0, 1.0)
            answers = window_outputs(predict, window_branches(windows, guidance)) if shared is None else shared(turn)
            denoise = blended_denoiser(answers, windows, guidance=guidance, on_window=done)
            if interval is None or not is_guided(*guidance):
                return denoise
            plain = blended_denoiser(
                window_outputs(predict, window_branches(windows, alone)), windows, guidance=alone, on_window=done
            )
            return with_guidance_interval(interval, denoise, plain)

        for_turns, for_deep = tee(evaluations)
        denoise = placed(0)
        if plan.shifted:
            denoise = alternate([placed(turn) for turn in range(plan.num_placements)], (one.turn for one in for_turns))
        return denoise if deep is None else with_deep_cache(denoise, deep, (one.whole for one in for_deep))

    def predictor(
        self,
        conditioning: Conditioning,
        guidance: tuple[float, float],
        *,
        deep: DeepFeatureCache | None = None,
        prepared: bool = True,
    ) -> Predict:
        """The UNet's answer for one window and branch; the UNet must be resident. See ``denoiser``."""
        unet: AnimationUNet = self.networks["unet"]
        unet.ff_chunks = self.plan.pieces
        if unet.run is call_block:
            unet.run = self._run()
        ask = GraphedCalls(unet, Recorder(self.plan.device)) if self.plan.graphs else unet
        if deep is not None and deep.layers > unet.num_up_layers:
            raise ConfigError("sampling.cache_layers", deep.layers, f"1 to {unet.num_up_layers} with this model")
        given = Context(conditioning.image, conditioning.face)
        none = Context(
            torch.zeros_like(conditioning.image),
            None if conditioning.face is None else torch.zeros_like(conditioning.face),
        )
        with torch.no_grad(), self._prepared_here(unet):
            contexts = {True: given, False: none}
            if prepared:
                contexts = {key: unet.prepare(value) for key, value in contexts.items() if key or is_guided(*guidance)}
        empty = torch.zeros_like(conditioning.reference)

        def predict(latents: Tensor, c_noise: float, window: Window, conditional: bool) -> Tensor:
            self.calls["unet"] += 1
            picture = conditioning.reference if conditional else empty
            picture = picture.expand(len(latents), -1, -1, -1)
            sample = torch.cat([latents.to(picture), picture], dim=1)[None]
            pose = conditioning.pose.window(window.frames) if conditional else None
            given = (sample, c_noise, contexts[conditional], conditioning.time_ids, pose)
            if deep is None:
                return ask(*given)[0]
            pair = (window, conditional)
            if deep.refresh:
                answer, deep.features[pair] = unet.forward_caching(*given, layers=deep.layers)
                return answer[0]
            self.calls["unet_shallow"] += 1
            return unet.forward_cached(*given, layers=deep.layers, deep=deep.features[pair])[0]

        return predict

    def _run(self) -> BlockRunner:
        """How the plan wants the UNet's blocks to be called."""
        run = CompiledBlocks() if self.plan.compiled else call_block
        return GroupOffload(self.plan.device, self.calls, run) if self.plan.groups else run

    def _prepared_here(self, unet: AnimationUNet) -> AbstractContextManager[None]:
        """Within it the layers that ``AnimationUNet.prepare`` reads are on the device."""
        if not isinstance(unet.run, GroupOffload):
            return nullcontext()
        attentions = unet.spatial_cross_attentions() | unet.temporal_cross_attentions()
        return unet.run.here(*attentions.values())

    @property
    def decoder(self) -> Decoder:
        """The VAE's decoder; ``vae`` must be resident."""
        return Decoder(self.networks["vae"], self.calls)
