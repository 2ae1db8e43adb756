"""Memory of the ONNX networks that a rendering opens: the face's, and those that detect a motion.

They run without ONNX Runtime's arena, so activations are freed after each run; weights stay while a network is open.
Files that are not downloaded yet count as the released ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stableanimator_cli.catalogue.damage import fetch_again
from stableanimator_cli.detect.onnx_memory import OnnxMemory, onnx_memory
from stableanimator_cli.detect.roles import BATCH, CROP, DETECTOR_BATCH, DETECTOR_SIDE, POSE_BATCH, ROLES
from stableanimator_cli.errors import ModelDamaged
from stableanimator_cli.records import ModelFolder

_SHAPES: Mapping[str, tuple[int, ...]] = {
    "face_detector": (1, 3, 640, 640),
    "recogniser": (1, 3, 112, 112),
    "person_detector": (DETECTOR_BATCH, 3, DETECTOR_SIDE, DETECTOR_SIDE),
    "pose_detector": (POSE_BATCH, 3, *reversed(CROP)),
}
_RELEASED: Mapping[str, tuple[int, int]] = {
    "face_detector": (16_923_827, 75 << 20),
    "recogniser": (260_665_334, 10 << 20),
    "person_detector": (216_746_733, 640 << 20),
    "pose_detector": (134_399_116, 350 << 20),
}
"""Bytes of the files of antelopev2 and dwpose, and activations of networks with about their shapes."""
_BATCHES = 3  # of decoded frames at once, see ``detect.capture``


def face_networks(model: ModelFolder) -> OnnxMemory | None:
    """Face detector and recogniser, which stay open during the run; None if the model has none."""
    if "face" not in model.files:
        return None
    networks = _face_files(model) or [_released("face_detector"), _released("recogniser")]
    return _together(networks)


def recogniser_file(model: ModelFolder) -> Path | None:
    """The recogniser's file, by insightface's rule: the input is 112x112. None before it is downloaded."""
    side = _SHAPES["recogniser"][2:]
    files = [file for file in _files(model) if _counted(file, _SHAPES["face_detector"]).shape[2:] == side]
    return files[0] if files else None


def recogniser_bytes(model: ModelFolder) -> int:
    """Weights of the copy of the recogniser that face optimisation runs in torch."""
    file = recogniser_file(model)
    return (_released("recogniser") if file is None else _counted(file, _SHAPES["recogniser"])).weights


def motion_detection(model: ModelFolder, size: tuple[int, int]) -> int:
    """Bytes while a motion is detected in a plain video of ``size`` (width, height); freed before the rendering."""
    networks = []
    for role in ROLES:
        if role in model.files:
            file = model.files[role]
            networks.append(_counted(file, _SHAPES[role]) if file.is_file() else _released(role))
    if not networks:
        return 0
    together = _together(networks)
    return together.weights + together.activations + _BATCHES * BATCH * 3 * size[0] * size[1]


def _files(model: ModelFolder) -> list[Path]:
    return sorted(model.files["face"].glob("**/*.onnx"))


def _face_files(model: ModelFolder) -> list[OnnxMemory]:
    return [_counted(file, _SHAPES["face_detector"]) for file in _files(model)]


def _counted(file: Path, shape: tuple[int, ...]) -> OnnxMemory:
    try:
        return onnx_memory(file, shape)
    except ValueError as error:
        raise ModelDamaged(f"{file}: does not open as an ONNX model ({error})", hint=fetch_again(file)) from error


def _released(role: str) -> OnnxMemory:
    return OnnxMemory(*_RELEASED[role], _SHAPES[role])


def _together(networks: list[OnnxMemory]) -> OnnxMemory:
    """Networks that are open at once and run one after the other."""
    weights = sum(network.weights for network in networks)
    return OnnxMemory(weights, max(network.activations for network in networks), ())
