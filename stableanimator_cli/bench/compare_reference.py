"""The other side of ``sa bench compare``: runs networks of a clone of the reference implementation on request.

``python compare_reference.py FOLDER WORK``: the clone, and the folder of ``job.json``, weights and inputs. Each line
of standard input names a workload; the reply is a line of JSON. Only torch, safetensors and the clone's own imports are
needed, so the clone's interpreter may run this file. It imports nothing of this package.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FACE_TOKENS = 4
_MODULES = "animation.modules"


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


_workloads: dict[str, Callable[[], Any]] = {}
_synchronize: list[Callable[[], None]] = []


def run_workload(work: Path, name: str) -> dict[str, Any]:
    """Run a workload. ``keep NAME`` also writes its output; ``peak NAME`` returns the GPU's peak memory."""
    import torch
    from safetensors.torch import save_file

    verb, _, which = name.partition(" ")
    which = which if verb in ("keep", "peak") else name
    if verb == "peak":
        torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        answer = _workloads[which]()
    _synchronize[0]()
    if verb == "keep":
        save_file({"answer": answer.float().cpu().contiguous()}, work / "answer.safetensors")
    return {"peak": torch.cuda.max_memory_allocated()} if verb == "peak" else {}


def load_networks(work: Path) -> dict[str, Any]:
    """Import the clone, load the weights, and return the versions of its libraries."""
    import torch
    from safetensors.torch import load_file

    job = json.loads((work / "job.json").read_text())
    device, dtype = torch.device(job["device"]), getattr(torch, job["dtype"])
    torch.set_num_threads(job["threads"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    attention = provide_xformers()
    networks = {name: build_network(name, job["configs"]) for name in ("unet", "pose_net", "face_encoder")}
    for name, network in networks.items():
        network.load_state_dict(load_file(work / f"{name}.safetensors"), strict=True)
        network.to(device, dtype).eval().requires_grad_(False)
    given = {name: x.to(device, dtype) for name, x in load_file(work / "inputs.safetensors").items()}
    _synchronize.append(lambda: torch.cuda.synchronize(device) if device.type == "cuda" else None)
    _workloads.update(make_workloads(networks, given))
    return {"torch": torch.__version__, "diffusers": importlib.import_module("diffusers").__version__} | {
        "attention": attention
    }


def provide_xformers() -> str:
    """Make ``import xformers`` work, which the clone insists on; where it is not, torch's own attention answers."""
    if find_spec("xformers") is not None:
        return f"xformers {importlib.import_module('xformers').__version__}"
    import torch.nn.functional as functional

    def attend(query: Any, key: Any, value: Any, attn_bias: Any = None, scale: float | None = None, **_: Any) -> Any:
        if query.dim() == 3:  # heads folded into the batch: torch's fused kernel wants a dimension of them
            mask = None if attn_bias is None else attn_bias.unsqueeze(1)
            folded = (x.unsqueeze(1) for x in (query, key, value))
            return functional.scaled_dot_product_attention(*folded, attn_mask=mask, scale=scale).squeeze(1)
        swapped = (x.transpose(1, 2) for x in (query, key, value))  # [b,n,h,d], as xformers has it
        return functional.scaled_dot_product_attention(*swapped, attn_mask=attn_bias, scale=scale).transpose(1, 2)

    answers = importlib.import_module("diffusers.utils.import_utils")  # which looks for it first, and must not find it
    stand_in, ops = (types.ModuleType(name) for name in ("xformers", "xformers.ops"))
    for module in (stand_in, ops):
        module.__spec__ = ModuleSpec(module.__name__, None)  # other libraries look for it too
    ops.memory_efficient_attention = attend  # type: ignore[attr-defined]
    stand_in.ops, stand_in.__version__ = ops, "0"  # type: ignore[attr-defined]
    sys.modules.update({"xformers": stand_in, "xformers.ops": ops})
    answers._xformers_available, answers._xformers_version = True, "0"  # type: ignore[attr-defined]
    return "torch's scaled_dot_product_attention instead of xformers, which is not installed"


def build_network(name: str, configs: dict[str, Any]) -> Any:
    """One of the clone's networks."""
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


def make_workloads(networks: dict[str, Any], given: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Workloads by name, as in the reference implementation's loop."""
    import torch

    unet, pose_net, face_encoder = (networks[name] for name in ("unet", "pose_net", "face_encoder"))
    tokens = torch.cat([given["image"], given["face"]], dim=1)
    nothing, noise = torch.zeros_like(tokens), given["noise"].float()[0]

    def ask(seen: Any, pose: Any) -> Any:
        return unet(
            given["sample"],
            noise,
            encoder_hidden_states=seen,
            added_time_ids=given["ids"],
            pose_latents=pose,
            return_dict=False,
        )[0]

    def step() -> Any:
        return torch.cat([ask(nothing, None), ask(tokens, pose_net(given["skeletons"]))])

    return {
        "Face Encoder": lambda: face_encoder(given["vector"], given["image"]),
        "PoseNet": lambda: pose_net(given["skeletons"]),
        "UNet with face and pose": lambda: ask(tokens, given["pose"]),
        "UNet, unconditional": lambda: ask(nothing, None),
        "a guided step of one window": step,
    }


if __name__ == "__main__":
    main()
