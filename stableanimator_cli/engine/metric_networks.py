"""Feature networks of metrics as functions of numpy arrays, opened from their catalogue entries.

They compute in float32 without TF32, whatever the plan's dtype, so that a metric does not depend on how the model under
test runs. Files with a known digest are compared with it. An absent network is ``Missing``, a damaged one an error.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, ViTConfig, ViTModel

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue import download
from stableanimator_cli.catalogue.schema import Entry
from stableanimator_cli.detect import onnx
from stableanimator_cli.engine.device import DevicePlan, memory_guard
from stableanimator_cli.engine.programs import load_program
from stableanimator_cli.engine.weights import fill, is_zip, load, network_config, read_tensors
from stableanimator_cli.errors import ModelDamaged, ModelMissing
from stableanimator_cli.metrics.perceptual import unit_distance
from stableanimator_cli.metrics.result import Missing
from stableanimator_cli.nets.i3d import I3D, rename_weights
from stableanimator_cli.nets.perceptual import Kind, LinearHeads, Lpips, Trunk, trunk_tensors
from stableanimator_cli.nets.resnet3d import ResNet3D, extract_weights
from stableanimator_cli.nets.vjepa import VJepaConfig, VJepaEncoder, VJepaPooler, encoder_tensors, pooler_tensors
from stableanimator_cli.records import ModelFolder

_NAMED_DIGEST = re.compile(r"-([0-9a-f]{8})\.pth$")  # torchvision names end with the first digits of the sha256
_PUPPET_LAYERS = ("layer1", "layer2", "layer3")
_CLIP_UNUSED = ("text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids")
_VIT_NAMES = {
    "encoder.layer.": "layers.",
    ".attention.attention.query.": ".attention.q_proj.",
    ".attention.attention.key.": ".attention.k_proj.",
    ".attention.attention.value.": ".attention.v_proj.",
    ".attention.output.dense.": ".attention.o_proj.",
    ".intermediate.dense.": ".mlp.fc1.",
    ".output.dense.": ".mlp.fc2.",
}
"""Names of the published ViT -> those of the library's module since its version 5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """A network as a function. ``about`` has its name, and per file the sha256 and what that was compared with
    (``recorded digest``, ``digest in the name`` or ``nothing``)."""

    name: str
    run: Callable[..., np.ndarray]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        return self.run(*arrays)


@dataclass(frozen=True, slots=True)
class _Source:
    """A network's catalogue entry and the roles of its files; ``open`` returns the function that they compute."""

    entry: str
    roles: tuple[str, ...]
    open: Callable[..., Callable[..., np.ndarray]]  # takes the plan and the model folder
    command: str
    program: bool = False  # its file is code: `open` also takes the expected sha256


def features(
    name: str, plan: DevicePlan, *, metric: str | None = None, model: str | Path | None = None
) -> Features | Missing:
    """Open the network ``name`` (a ``MetricSpec.network``, one of ``NETWORKS``) on the plan's device.

    ``lpips_alex``, ``lpips_vgg``, ``puppet_frame``: two batches float32[n,3,h,w] -> float[n].
    ``clip_image``, ``dino``: images float32[n,3,224,224] -> float[n,d].
    ``i3d``, ``resnet3d``, ``vjepa``, ``puppet_clip``: clips float32[b,t,3,h,w] -> float[b,d].
    ``i3d_torchscript``: clips uint8[b,t,h,w,3] -> float[b,400].
    ``metric`` names a ``Missing``. ``model`` replaces the catalogue entry (a name, or a folder with a ``model.toml`` of
    the same roles). Raises ``ModelDamaged`` for a wrong file and ``ValueError`` for an unknown name.
    """
    if name not in NETWORKS:
        raise ValueError(f"no metric network is named {name!r}: {', '.join(NETWORKS)}")
    source = NETWORKS[name]
    try:
        folder = catalogue.open_model(model if model is not None else source.entry, source.roles)
    except ModelMissing as error:
        return Missing(metric=metric or name, reason=error.message, command=source.command)
    entries = list(catalogue.with_needs(catalogue.load_entry(model if model is not None else source.entry)))
    paths = {role: folder.files[role] for role in source.roles}
    files = {path.name: _digest(entries, role, path, program=source.program) for role, path in paths.items()}
    recorded = {"sha256": files[paths[source.roles[0]].name]["sha256"]} if source.program else {}
    return Features(name=name, run=source.open(plan, folder, **recorded), about={"network": name, "files": files})


def _digest(entries: Sequence[Entry], role: str, path: Path, *, program: bool) -> dict[str, str]:
    """sha256 of a network's file, and what it was compared with. Raises ``ModelDamaged`` if they differ.

    A program is not read here: ``load_program`` compares the bytes that it runs.
    """
    entry = next(entry for entry in entries if role in entry.components and entry.components[role].file)
    listed = entry.components[role].file or ""
    row = entry.file(listed)
    expected, compared = None, "nothing"
    if path.name == Path(listed).name:
        named = _NAMED_DIGEST.search(path.name)
        if row is not None and row.sha256 is not None:
            expected, compared = row.sha256, "recorded digest"
        elif named is not None:
            expected, compared = named[1], "digest in the name"
    if program and (expected is None or compared != "recorded digest"):
        raise ModelDamaged(
            f"{path}: is a program, and no digest of it is recorded: not opened",
            hint=f"`sa models pull {entry.name} --all` fetches one whose digest is known",
        )
    if program and expected is not None:
        return {"sha256": expected, "compared_with": compared}
    actual = download.digest(path)
    if expected is not None and not actual.startswith(expected):
        raise ModelDamaged(
            f"{path}: found sha256 {actual}, expected {expected}{'' if len(expected) == 64 else '...'}",
            hint=f"{_pull_again(entry.name)}; numbers from another file would not be comparable",
        )
    return {"sha256": actual, "compared_with": compared}


def _lpips(kind: Kind, plan: DevicePlan, folder: ModelFolder) -> Callable[..., np.ndarray]:
    trunk_file, linear_file = (folder.files[f"lpips_{kind}_{part}"] for part in ("trunk", "linear"))
    trunk = fill(lambda: Trunk(kind), trunk_tensors(read_tensors(trunk_file)), torch.float32, trunk_file)
    linears = load(lambda: LinearHeads(kind), linear_file, torch.float32)
    assert isinstance(trunk, Trunk)
    assert isinstance(linears, LinearHeads)
    return _function(Lpips(trunk, linears), plan)


def _i3d(plan: DevicePlan, folder: ModelFolder) -> Callable[..., np.ndarray]:
    path = folder.files["i3d"]
    return _function(fill(I3D, rename_weights(read_tensors(path)), torch.float32, path), plan, _channels_first)


def _resnet3d(plan: DevicePlan, folder: ModelFolder) -> Callable[..., np.ndarray]:
    path = folder.files["resnet3d"]
    weights = extract_weights(_checkpoint(path, "state_dict", "resnet3d"))
    return _function(fill(ResNet3D, weights, torch.float32, path), plan, _channels_first)


def _clip_image(plan: DevicePlan, folder: ModelFolder) -> Callable[..., np.ndarray]:
    path, config = folder.files["clip_image"], network_config(folder, "clip_image")
    tensors = {n: tensor for n, tensor in read_tensors(path).items() if not n.startswith(_CLIP_UNUSED)}
    network = fill(lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**config)), tensors, torch.float32, path)
    return _function(network, plan, select=lambda result: result.image_embeds)


def _dino(plan: DevicePlan, folder: ModelFolder) -> Callable[..., np.ndarray]:
    path, config = folder.files["dino"], network_config(folder, "dino")
    tensors = {_vit_name(name): tensor for name, tensor in read_tensors(path).items()}
    network = fill(lambda: ViTModel(ViTConfig(**config), add_pooling_layer=False), tensors, torch.float32, path)
    return _function(network, plan, select=lambda result: result.last_hidden_state[:, 0])


def _vit_name(name: str) -> str:
    for published, own in _VIT_NAMES.items():
        name = name.replace(published, own)
    return name


def _vjepa(plan: DevicePlan, folder: ModelFolder) -> Callable[..., np.ndarray]:
    encoder_file, probe_file = folder.files["vjepa_encoder"], folder.files["vjepa_probe"]
    config = network_config(folder, "vjepa_encoder")
    encoder, pooler = (
        fill(lambda build=build: build(VJepaConfig(**config)), tensors, torch.float32, path)
        for build, tensors, path in (
            (VJepaEncoder, encoder_tensors(_checkpoint(encoder_file, "target_encoder", _VJEPA)), encoder_file),
            (VJepaPooler, pooler_tensors(_checkpoint(probe_file, "classifier", _VJEPA)), probe_file),
        )
    )
    return _function(nn.Sequential(encoder, pooler), plan, _channels_first)


def _torchscript(plan: DevicePlan, folder: ModelFolder, *, sha256: str) -> Callable[..., np.ndarray]:
    program = load_program(folder.files["i3d_torchscript"], sha256, plan.device, hint=_pull_again("i3d --all"))
    resized = partial(program, rescale=True, resize=True, return_features=True)
    return _function(resized, plan, lambda x: x.permute(0, 4, 1, 2, 3).float())


def _puppet_frame(plan: DevicePlan, folder: ModelFolder) -> Callable[..., np.ndarray]:
    maps = _video_net(plan, folder.files["video"], _PUPPET_LAYERS)

    def run(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        # frames as one clip: these layers see each frame separately
        first, second = (maps(batch.transpose(1, 0, 2, 3)[None]) for batch in (a, b))
        return unit_distance(first, second)

    return run


def _puppet_clip(plan: DevicePlan, folder: ModelFolder) -> Callable[..., np.ndarray]:
    video_net = _video_net(plan, folder.files["video"], ("features",))
    return lambda clips: video_net(clips.transpose(0, 2, 1, 3, 4))[0]


def _video_net(plan: DevicePlan, path: Path, outputs: tuple[str, ...]) -> Callable[[np.ndarray], list[np.ndarray]]:
    session = onnx.session(path, str(plan.device))
    names = [output.name for output in session.get_outputs()]
    missing = [name for name in outputs if name not in names]
    if missing:
        raise ModelDamaged(
            f"{path}: has no output {missing[0]!r}, found {', '.join(names)}",
            hint="it must be a clip classifier as this project's puppets have (stableanimator_cli/puppets)",
        )
    indices = [names.index(name) for name in outputs]

    def run(clips: np.ndarray) -> list[np.ndarray]:
        results = onnx.run(session, np.ascontiguousarray(clips, np.float32))
        return [results[index] for index in indices]

    return run


def _function(
    network: nn.Module | Callable[..., Tensor],
    plan: DevicePlan,
    rearrange: Callable[[Tensor], Tensor] | None = None,
    select: Callable[[Any], Tensor] | None = None,
) -> Callable[..., np.ndarray]:
    """A torch network as a function of arrays, in exact float32 on the plan's device. ``select`` takes a tensor from
    its result."""
    hint = "close other programs on the device, or use --device cpu: metrics are the same"
    if isinstance(network, nn.Module):
        with memory_guard("loading a metric's network", hint):
            network.eval().requires_grad_(False).to(plan.device)

    def run(*arrays: np.ndarray) -> np.ndarray:
        with ExitStack() as stack:
            stack.enter_context(memory_guard(f"computing features of {len(arrays[0])} item(s)", hint))
            stack.enter_context(torch.no_grad())
            stack.enter_context(
                torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False, fp32_precision="ieee")
            )
            inputs = [torch.from_numpy(np.ascontiguousarray(array)).to(plan.device) for array in arrays]
            result = network(*(inputs if rearrange is None else map(rearrange, inputs)))
            return (result if select is None else select(result)).float().cpu().numpy()

    return run


def _channels_first(clips: Tensor) -> Tensor:
    return clips.transpose(1, 2)


def _checkpoint(path: Path, key: str, model: str) -> Mapping[str, Tensor]:
    """The tensors under ``key`` of a training checkpoint; a file of tensors alone is taken as they are."""
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a damaged file, which is refused below
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch.load raises many kinds of errors for damaged files
        why = (str(error).splitlines() or ["it ends too early"])[0][:120]
        raise ModelDamaged(f"{path} cannot be read as a checkpoint ({why})", hint=_pull_again(model)) from error
    inner = found.get(key, found) if isinstance(found, Mapping) else None
    if not isinstance(inner, Mapping) or not all(isinstance(value, Tensor) for value in inner.values()):
        raise ModelDamaged(f"{path} holds no tensors under {key!r}", hint=_pull_again(model))
    return inner


def _pull_again(name: str) -> str:
    return f"delete it, and `sa models pull {name}` fetches it again"


_VJEPA = "vjepa-vith16"
NETWORKS: dict[str, _Source] = {
    "lpips_alex": _Source(
        "lpips", ("lpips_alex_trunk", "lpips_alex_linear"), partial(_lpips, "alex"), "sa models pull lpips"
    ),
    "lpips_vgg": _Source(
        "lpips", ("lpips_vgg_trunk", "lpips_vgg_linear"), partial(_lpips, "vgg"), "sa models pull lpips"
    ),
    "i3d": _Source("i3d", ("i3d",), _i3d, "sa models pull i3d"),
    "i3d_torchscript": _Source("i3d", ("i3d_torchscript",), _torchscript, "sa models pull i3d --all", program=True),
    "resnet3d": _Source("resnet3d", ("resnet3d",), _resnet3d, "sa models import FOLDER"),
    "clip_image": _Source(
        "clip-vit-base-patch32", ("clip_image",), _clip_image, "sa models pull clip-vit-base-patch32"
    ),
    "dino": _Source("dino-vits16", ("dino",), _dino, "sa models pull dino-vits16"),
    "vjepa": _Source(_VJEPA, ("vjepa_encoder", "vjepa_probe"), _vjepa, f"sa models pull {_VJEPA}"),
    "puppet_frame": _Source("puppet", ("video",), _puppet_frame, "sa models verify puppet"),
    "puppet_clip": _Source("puppet", ("video",), _puppet_clip, "sa models verify puppet"),
}
"""Networks by ``MetricSpec.network``."""
