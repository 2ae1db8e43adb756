"""The other side of ``sa bench compare``: runs networks of a clone of the reference implementation on request.

``python compare_reference.py FOLDER WORK``: the clone, and the folder of ``job.json``, weights and inputs. Each line
of standard input names a workload; the reply is a line of JSON. Only torch, safetensors and the clone's own imports are
needed, so the clone's interpreter may run this file. It imports nothing of this package, but loads the file that counts
bytes. Without a file of weights a network gets random ones.
"""

from __future__ import annotations

import copy
import functools
import importlib
import json
import math
import os
import sys
import types
from collections.abc import Callable
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

FACE_TOKENS = 4
WINDOW, OVERLAP, CHUNK, GUIDANCE, NOISE_AUG, SEED, LR = 16, 4, 4, 3.0, 0.02, 0, 0.1
TRAINING_SIGMA = 2.0  # every level is the same work
FACE_STEPS = 25  # of which the first is refined
NETWORKS = ("unet", "pose_net", "face_encoder", "vae", "image_encoder")
_MODULES = "animation.modules"
_PIPELINES = "animation.pipelines"
_SCHEDULER = {  # of Stable Video Diffusion
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction", "interpolation_type": "linear", "use_karras_sigmas": True, "sigma_min": 0.002,
    "sigma_max": 700.0, "timestep_spacing": "leading", "timestep_type": "continuous", "steps_offset": 1,
}  # fmt: skip


def main() -> None:
    folder, work = Path(sys.argv[1]), Path(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w")  # output of the clone must not mix with replies
    os.dup2(2, 1)
    sys.path[0] = str(folder)
    reply(replies, **run_guarded(load_networks, work))
    for line in sys.stdin:
        reply(replies, **run_guarded(run_workload, work, line.strip()))


def reply(replies: Any, **found: Any) -> None:
    replies.write(json.dumps(found) + "\n")
    replies.flush()


def run_guarded(run: Callable[..., dict[str, Any]], *given: object) -> dict[str, Any]:
    """Result of ``run``, or its error."""
    try:
        return run(*given)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


Workloads = dict[str, Callable[[], Any]]
_workloads: Workloads = {}
_synchronize: list[Callable[[], None]] = []


def run_workload(work: Path, name: str) -> dict[str, Any]:
    """Run a workload. ``keep NAME`` also writes its output; ``peak NAME`` returns the GPU's peak memory, and ``alive
    NAME`` the counted bytes of live tensors."""
    import torch
    from safetensors.torch import save_file

    verb, _, which = name.partition(" ")
    which = which if verb in ("keep", "peak", "alive") else name
    if verb == "peak":
        torch.cuda.reset_peak_memory_stats()
    counter = peak_counter() if verb == "alive" else nullcontext()
    with torch.no_grad(), counter:
        answer = _workloads[which]()
    _synchronize[0]()
    if verb == "alive":
        return {"alive": counter.peak}  # type: ignore[union-attr]
    if verb == "keep":
        save_file({"answer": answer.float().cpu().contiguous()}, work / "answer.safetensors")
    return {"peak": torch.cuda.max_memory_allocated()} if verb == "peak" else {}


def peak_counter() -> Any:
    """The package's counter of live bytes, loaded from its file."""
    file = Path(__file__).resolve().parent.parent / "engine" / "memory" / "peak_mode.py"
    spec = spec_from_file_location("peak_mode", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PeakMemoryMode()


def load_networks(work: Path) -> dict[str, Any]:
    """Import the clone, load the weights, and return the versions of its libraries."""
    import torch
    from safetensors.torch import load_file

    job = json.loads((work / "job.json").read_text())
    device, dtype = torch.device(job["device"]), getattr(torch, job["dtype"])
    torch.set_num_threads(job["threads"])
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # a device without a number is refused
    else:
        torch.cuda.device = lambda which: nullcontext()  # type: ignore[assignment,misc]  # their loop enters one
    attention = provide_xformers()
    networks = {}
    for name in (*NETWORKS, "recogniser"):
        networks[name] = build_network(name, job["configs"])
        fill_network(networks[name], work / f"{name}.safetensors", device, dtype)
    given = {
        name: x.to(device, dtype) if x.is_floating_point() else x
        for name, x in load_file(work / "inputs.safetensors").items()
    }
    _synchronize.append(lambda: torch.cuda.synchronize(device) if device.type == "cuda" else None)
    _workloads.update(make_workloads(networks, given))
    _workloads.update(make_pipelines(networks, given, job, device))
    _workloads["training step"] = make_training(networks, given, getattr(torch, job["training_dtype"]), device)
    return {"torch": torch.__version__, "diffusers": importlib.import_module("diffusers").__version__} | {
        "attention": attention
    }


def fill_network(network: Any, file: Path, device: Any, dtype: Any) -> None:
    """Load the weights of ``file``, or draw random ones of unit gain on the device."""
    import torch
    from safetensors.torch import load_file

    if file.exists():
        network.load_state_dict(load_file(file), strict=True)
    network.to(device, dtype).eval().requires_grad_(False)
    if not file.exists():
        for tensor in network.parameters():
            if tensor.ndim > 1:
                torch.nn.init.normal_(tensor, std=float(tensor[0].numel()) ** -0.5)


def provide_xformers() -> str:
    """Make ``import xformers`` work, which the clone insists on; where it is not, torch's own attention answers."""
    if find_spec("xformers") is not None:
        return f"xformers {importlib.import_module('xformers').__version__}"
    answers = importlib.import_module("diffusers.utils.import_utils")  # which looks for it first, and must not find it
    stand_in, ops = (types.ModuleType(name) for name in ("xformers", "xformers.ops"))
    for module in (stand_in, ops):
        module.__spec__ = ModuleSpec(module.__name__, None)  # other libraries look for it too
    ops.memory_efficient_attention = attend  # type: ignore[attr-defined]
    stand_in.ops, stand_in.__version__ = ops, "0"  # type: ignore[attr-defined]
    sys.modules.update({"xformers": stand_in, "xformers.ops": ops})
    answers._xformers_available, answers._xformers_version = True, "0"  # type: ignore[attr-defined]
    return "torch's scaled_dot_product_attention instead of xformers, which is not installed"


def attend(query: Any, key: Any, value: Any, attn_bias: Any = None, scale: float | None = None, **_: Any) -> Any:
    """``xformers.ops.memory_efficient_attention`` by torch's fused kernel, which wants four dimensions."""
    from torch.nn import functional

    if query.dim() == 3:  # heads folded into the batch
        mask = None if attn_bias is None else attn_bias.unsqueeze(1)
        folded = (x.unsqueeze(1) for x in (query, key, value))
        return functional.scaled_dot_product_attention(*folded, attn_mask=mask, scale=scale).squeeze(1)
    swapped = (x.transpose(1, 2) for x in (query, key, value))  # [b,n,h,d], as xformers has it
    return functional.scaled_dot_product_attention(*swapped, attn_mask=attn_bias, scale=scale).transpose(1, 2)


def build_network(name: str, configs: dict[str, Any]) -> Any:
    """One of the clone's networks, or those that it takes from diffusers and transformers."""
    if name == "vae":
        return importlib.import_module("diffusers").AutoencoderKLTemporalDecoder(**configs["vae"])
    if name == "image_encoder":
        transformers = importlib.import_module("transformers")
        config = transformers.CLIPVisionConfig(**configs["image_encoder"])
        return transformers.CLIPVisionModelWithProjection(config)
    if name == "recogniser":
        return make_recogniser()
    if name == "pose_net":
        return import_from_clone("pose_net", "PoseNet")(**configs["pose_net"])
    if name == "face_encoder":
        return import_from_clone("id_encoder", "FusionFaceId")(**configs["face_encoder"])
    unet = import_from_clone("unet", "UNetSpatioTemporalConditionModel")(**configs["unet"])
    unet.set_attn_processor({at: attention_processor(at, unet.config) for at in unet.attn_processors})
    return unet


def attention_processor(at: str, config: Any) -> Any:
    """Attention processor of the reference implementation: its own two in the spatial layers."""
    if "temporal_transformer_blocks" in at:
        name = "AttnProcessor2_0" if sys.modules["xformers"].__version__ == "0" else "XFormersAttnProcessor"
        return getattr(importlib.import_module("diffusers.models.attention_processor"), name)()
    where, _, rest = at.partition(".")
    channels = config.block_out_channels
    level = int(rest.split(".")[0]) if where != "mid_block" else 0
    width = {"mid_block": channels[-1], "down_blocks": channels[level], "up_blocks": channels[-1 - level]}[where]
    if at.endswith("attn1.processor"):
        kind = import_from_clone("attention_processor", "AnimationAttnProcessor")
        return kind(hidden_size=width, cross_attention_dim=None, rank=128)
    kind = import_from_clone("attention_processor_normalized", "AnimationIDAttnNormalizedProcessor")
    return kind(hidden_size=width, cross_attention_dim=config.cross_attention_dim, rank=128)


def import_from_clone(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"{_MODULES}.{module}"), name)


def make_workloads(networks: dict[str, Any], given: dict[str, Any]) -> Workloads:
    """Workloads by name, as in the reference implementation's loop."""
    import torch

    unet, pose_net, face_encoder = (networks[name] for name in ("unet", "pose_net", "face_encoder"))
    tokens = torch.cat([given["image"], given["face"]], dim=1)
    nothing, noise = torch.zeros_like(tokens), given["noise"].float()[0]

    def call_unet(tokens_given: Any, pose: Any) -> Any:
        return unet(
            given["sample"],
            noise,
            encoder_hidden_states=tokens_given,
            added_time_ids=given["ids"],
            pose_latents=pose,
            return_dict=False,
        )[0]

    def step() -> Any:
        return torch.cat([call_unet(nothing, None), call_unet(tokens, pose_net(given["skeletons"]))])

    return {
        "Face Encoder": lambda: face_encoder(given["vector"], given["image"]),
        "PoseNet": lambda: pose_net(given["skeletons"]),
        "UNet with face and pose": lambda: call_unet(tokens, given["pose"]),
        "UNet, unconditional": lambda: call_unet(nothing, None),
        "a guided step of one window": step,
    }


def make_recogniser() -> Any:
    """A stand-in for the face recogniser on both sides, [b,3,112,112] -> [b,512], without a file to download. The
    released one is a hundredth of the work of face optimisation."""
    from torch import nn

    return nn.Sequential(nn.Conv2d(3, 64, 16, 16), nn.SiLU(), nn.Flatten(), nn.Linear(64 * 49, 512))


def make_pipelines(networks: dict[str, Any], given: dict[str, Any], job: dict[str, Any], device: Any) -> Workloads:
    """Whole renderings, decoding and a step of face optimisation, as their scripts run them."""
    import torch
    from PIL import Image

    diffusers, transformers = importlib.import_module("diffusers"), importlib.import_module("transformers")
    frames, (height, width) = len(given["poses"]), given["picture"].shape[:2]
    picture = Image.fromarray(given["picture"].numpy())
    poses = [Image.fromarray(pose) for pose in given["poses"].numpy()]
    kind = importlib.import_module(f"{_PIPELINES}.inference_pipeline_animation").InferenceAnimationPipeline
    pipeline = kind(
        **{name: networks[name] for name in NETWORKS},
        scheduler=diffusers.EulerDiscreteScheduler(**_SCHEDULER),
        feature_extractor=transformers.CLIPImageProcessor(),
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)

    def render() -> Any:
        return pipeline(
            image=picture, image_pose=poses, height=height, width=width, num_frames=frames,
            tile_size=min(WINDOW, frames), tile_overlap=min(OVERLAP, frames - 1), decode_chunk_size=CHUNK,
            motion_bucket_id=127.0, fps=7, min_guidance_scale=GUIDANCE, max_guidance_scale=GUIDANCE,
            noise_aug_strength=NOISE_AUG, num_inference_steps=job["steps"], output_type="pt",
            generator=torch.Generator().manual_seed(SEED),
            validation_image_id_ante_embedding=given["vector"][0].float().cpu().numpy(),
        ).frames[0]  # fmt: skip

    face_vae: list[Any] = []

    def refine() -> Any:
        if not face_vae:  # their face optimisation is in float32, and checkpointed
            half = next(networks["vae"].parameters()).dtype != torch.float32
            face_vae.append(copy.deepcopy(networks["vae"]).float() if half else networks["vae"])
            face_vae[0].enable_gradient_checkpointing()
        module = importlib.import_module(f"{_PIPELINES}.euler_discrete_pro")
        scheduler = module.EulerDiscreteSchedulerPro(**_SCHEDULER)
        scheduler.set_timesteps(FACE_STEPS, device=device)
        scheduler.face_embedding_extractor = networks["recogniser"].float()
        sigma = scheduler.sigmas[0].to(device)
        denoised = given["latents"].float()[None]
        x0, y0, x1, y1 = job["box"]
        with torch.enable_grad():
            return scheduler.step(
                -denoised * (sigma**2 + 1).sqrt() / sigma, scheduler.timesteps[0], torch.zeros_like(denoised),
                refine_face=True, learning_rate=LR, num_optimization_iter=job["iterations"], vae=face_vae[0],
                refine_reference_face_embeddings=given["identity"].float(), decode_chunk_size=CHUNK, device=device,
                image_processor=pipeline.image_processor, output_type="pt",
                target_face_mask_list=[[y0, y1, x0, x1]] * frames,
            ).pred_original_sample[0]  # fmt: skip

    return {
        "rendering": render,
        "decoding": lambda: pipeline.decode_latents(given["latents"][None], frames, CHUNK)[0].transpose(0, 1),
        "face optimisation": refine,
    }


def checkpoint_blocks(network: Any) -> None:
    """What diffusers' ``enable_gradient_checkpointing`` does; that of later versions refuses the clone's networks."""
    from torch.utils.checkpoint import checkpoint

    for module in network.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)


def make_training(networks: dict[str, Any], given: dict[str, Any], dtype: Any, device: Any) -> Callable[[], Any]:
    """One step of their training on cached latents, with a batch of one: noise of one level, loss, backward and AdamW.

    PoseNet, Face Encoder and the UNet's parameters named ``attentions`` learn, in float32 under autocast to ``dtype``;
    the UNet is checkpointed, gradients are not clipped. The learning rate is 0, so that each run has the same weights.
    Returns the loss. The first run leaves the networks that learn in float32.
    """
    import torch

    unet, pose_net, face_encoder = trained = tuple(networks[name] for name in ("unet", "pose_net", "face_encoder"))
    target, image = given["latents"].float()[None], given["image"].float()
    optimizers: list[Any] = []

    def prepare() -> Any:
        learning = []
        for network in trained:
            network.float()
            for name, parameter in network.named_parameters():
                if network is not unet or "attentions" in name:
                    learning.append(parameter.requires_grad_(True))
        checkpoint_blocks(unet)
        return torch.optim.AdamW(learning, lr=0.0)

    def denoise() -> Any:
        generator = torch.Generator().manual_seed(SEED)
        sigma = TRAINING_SIGMA
        noisy = target + sigma * torch.randn(target.shape, generator=generator).to(device)
        seen = torch.cat([noisy / (sigma**2 + 1) ** 0.5, target[:, :1].expand_as(target)], dim=2)
        tokens = torch.cat([image, face_encoder(given["vector"].float(), image)], dim=1)
        level = torch.tensor([0.25 * math.log(sigma)], device=device)
        predicted = unet(
            seen, level, encoder_hidden_states=tokens, added_time_ids=given["ids"].float(),
            pose_latents=pose_net(given["skeletons"].float()), return_dict=False,
        )[0]  # fmt: skip
        denoised = noisy / (sigma**2 + 1) - predicted.float() * sigma / (sigma**2 + 1) ** 0.5
        return (1 + sigma**2) / sigma**2 * (denoised - target).square().mean()

    def step() -> Any:
        if not optimizers:
            optimizers.append(prepare())
        for network in trained:
            network.train()
        with torch.enable_grad():
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = denoise()
            loss.backward()
        optimizers[0].step()
        optimizers[0].zero_grad(set_to_none=True)
        for network in trained:
            network.eval()
        return loss.detach()[None]

    return step


if __name__ == "__main__":
    main()
