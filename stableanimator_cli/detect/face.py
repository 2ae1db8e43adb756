"""Face detection and recognition by insightface.

SCRFD detects boxes and five landmarks; ArcFace computes an embedding of 512 values from the aligned face. Both run in
insightface's own model classes. Alignment uses its template with scikit-image's current estimator: the function that
insightface calls is deprecated and warns for every face.

Sources: Guo et al., "Sample and Computation Redistribution for Efficient Face Detection" (SCRFD); Deng et al.,
"ArcFace: Additive Angular Margin Loss for Deep Face Recognition".
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
from insightface.app import FaceAnalysis
from insightface.utils.face_align import arcface_dst
from skimage.transform import SimilarityTransform

from stableanimator_cli.detect import onnx
from stableanimator_cli.detect.frames import check_image, pad_short_side
from stableanimator_cli.errors import BadInput, ConfigError, ModelDamaged, ModelMissing
from stableanimator_cli.files import require_file
from stableanimator_cli.host_memory import trim
from stableanimator_cli.readers import read_npy
from stableanimator_cli.records import ChannelOrder, Face

DETECTION_SIZE = (640, 640)
"""Width and height of the detector's input; images are scaled into it, up or down."""

THRESHOLD = 0.5
"""The minimum score of a face."""

WIDTH = 512
"""Values per face embedding."""


class FaceReader:
    """Detects and recognises faces with the models of one folder (``antelopev2``, ``buffalo_l`` or similar ones).

    ``channel_order`` is the colour order of the input of insightface, which expects BGR images and converts them to
    RGB: ``"bgr"`` is correct. The reference implementation swaps the channels once too often for face embeddings: until
    December 2024 in training, and still in inference. The released StableAnimator weights (November 2024) were most
    likely trained with embeddings of faces with red and blue exchanged; ``"rgb"`` reproduces that. The order is a
    property of the checkpoint (``ModelFolder.face_channel_order``), not of the image: ours are always RGB. Embeddings
    of the two orders must not be compared. Detection uses the same order, as in the reference implementation.

    Raises ``ModelMissing`` if the folder or its models are missing. Raises ``ModelDamaged`` if a file does not open, or
    there is no SCRFD with landmarks or no ArcFace with 512 values. Raises ``ConfigError`` for an unknown channel order,
    ``ValueError`` for an unknown device. One reader may be used from several threads. ``arena``: see
    ``onnx.session_options``.
    """

    def __init__(
        self,
        folder: Path | str,
        channel_order: ChannelOrder = "bgr",
        device: str = "auto",
        *,
        threads: int | None = None,
        threshold: float = THRESHOLD,
        arena: bool = True,
    ) -> None:
        if channel_order not in get_args(ChannelOrder):
            raise ConfigError("face_channel_order", channel_order, "'bgr' or 'rgb'")
        self.folder = model_folder(folder)
        self.channel_order: ChannelOrder = channel_order
        self._device = device
        models = _open(self.folder, device, threads, threshold, arena)
        self._detector, self._recogniser = models["detection"], models["recognition"]

    def faces(self, image: np.ndarray) -> tuple[Face, ...]:
        """The faces of an image uint8 RGB [h,w,3], largest first.

        Boxes are clipped to the image. Embeddings are raw float32[512] of ArcFace. A face whose five landmarks coincide
        cannot be aligned and has ``embedding`` None.
        """
        return self._read(image, recognise=True)

    def boxes(self, image: np.ndarray) -> tuple[Face, ...]:
        """As ``faces``, without recognition: every ``embedding`` is None."""
        return self._read(image, recognise=False)

    def recognise(self, image: np.ndarray, landmarks: np.ndarray) -> np.ndarray | None:
        """Raw embedding float32[512] of the face in an image uint8 RGB [h,w,3] with five landmarks float[5,2]; None if
        these coincide."""
        pixels = image[..., ::-1] if self.channel_order == "bgr" else image
        return self._embed(np.ascontiguousarray(pixels), landmarks)

    @property
    def recogniser_file(self) -> Path:
        """The ONNX file of the recogniser, whose graph face optimisation executes in torch."""
        return Path(self._recogniser.model_file)

    def describe(self) -> str:
        """Devices of the networks in words, per network if they differ."""
        where = {
            "detector": onnx.describe(self._detector.session, self._device),
            "recogniser": onnx.describe(self._recogniser.session, self._device),
        }
        return onnx.together(where)

    def _read(self, image: np.ndarray, *, recognise: bool) -> tuple[Face, ...]:
        h, w = check_image(image).shape[:2]
        pixels = image[..., ::-1] if self.channel_order == "bgr" else image
        pixels = pad_short_side(np.ascontiguousarray(pixels), min(DETECTION_SIZE))
        rows, landmarks = self._detector.detect(pixels)
        found = []
        for row, points in zip(rows, landmarks, strict=True):
            box = np.clip(row[:4], 0, (w, h, w, h)).astype(np.float32)
            if box[2] <= box[0] or box[3] <= box[1]:
                continue  # outside the image: nothing of it can be shown or masked
            embedding = self._embed(pixels, points) if recognise else None
            points = np.array(points, dtype=np.float32)
            found.append(Face(box=box, landmarks=points, score=float(row[4]), embedding=embedding))
        return tuple(sorted(found, key=lambda face: face.area, reverse=True))

    def _embed(self, pixels: np.ndarray, landmarks: np.ndarray) -> np.ndarray | None:
        side = self._recogniser.input_size[0]
        aligned = align(pixels, landmarks, side)
        if aligned is None:
            return None
        # One face per run: to the last bit, a vector must not depend on the other faces in the image.
        return np.array(self._recogniser.get_feat(aligned), dtype=np.float32).reshape(-1)


def align(pixels: np.ndarray, landmarks: np.ndarray, side: int = 112) -> np.ndarray | None:
    """The face rotated and scaled onto ArcFace's template: uint8 [side,side,3], None if the landmarks float[5,2]
    coincide. Least squares over rotation, scale and shift (Umeyama 1991); black outside the image.
    """
    fit = onto_template(landmarks, side)
    return None if fit is None else cv2.warpAffine(pixels, fit[:2], (side, side), borderValue=0.0)


def onto_template(landmarks: np.ndarray, side: int = 112) -> np.ndarray | None:
    """The 3x3 matrix from pixels to ArcFace's template (Deng et al., 2019) of ``side`` pixels; None if the landmarks
    float[5,2] coincide."""
    unit, margin = (side / 112, 0.0) if side % 112 == 0 else (side / 128, 8.0)
    template = (arcface_dst + np.array([margin, 0.0], dtype=np.float32)) * unit
    if not np.isfinite(landmarks).all() or np.ptp(landmarks, axis=0).max() < 1e-3:
        return None
    fit = SimilarityTransform.from_estimate(landmarks, template)
    return np.asarray(fit.params) if fit else None


def model_folder(folder: Path | str) -> Path:
    """The absolute folder that holds the ONNX files.

    It may be the only folder with ONNX files in ``folder``: ``antelopev2.zip`` unpacks to ``antelopev2/antelopev2``.
    Raises ``ModelMissing`` if there is no folder or no ONNX file.
    """
    folder = Path(folder).expanduser().resolve()
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise ModelMissing(
            f"{folder}: found {found}, expected a folder of face models",
            hint="`sa models pull antelopev2` fetches them",
        )
    if any(folder.glob("*.onnx")):
        return folder
    nested = sorted({file.parent for file in folder.glob("*/*.onnx")})
    if len(nested) == 1:
        return nested[0]
    found = f"{len(nested)} folders with ONNX files" if nested else "no ONNX file"
    raise ModelMissing(
        f"{folder}: found {found}, expected one SCRFD and one ArcFace .onnx",
        hint="`sa models pull antelopev2` fetches both, or name the folder that holds them",
    )


def load_embedding(path: Path | str) -> np.ndarray:
    """An identity vector float32[512] from a NumPy file of shape (512,) or (1, 512).

    Raises ``BadInput`` if the file is missing, is not NumPy's, holds objects (they would be code), or holds an array
    that no recogniser returns: another shape, no floats, NaN or infinity, all zeros.
    """
    path, expected = Path(path), f"one float vector of {WIDTH} numbers (.npy)"
    hint = "write it with: numpy.save(path, embedding.astype('float32'))"
    array = read_npy(require_file(path, expected), expected, limit=2**16, hint=hint)
    if array.shape not in ((WIDTH,), (1, WIDTH)):
        raise BadInput(path, f"shape {array.shape}", expected, hint=hint)
    if not np.issubdtype(array.dtype, np.floating):
        raise BadInput(path, f"numbers of type {array.dtype}", expected, hint=hint)
    with np.errstate(over="ignore"):
        vector = array.reshape(WIDTH).astype(np.float32)
    if not np.isfinite(vector).all():
        count = int((~np.isfinite(vector)).sum())
        raise BadInput(path, f"{count} of {WIDTH} numbers that are not finite", expected, hint=hint)
    if not np.any(vector):
        raise BadInput(path, "zeros only, the mark of a face that was not found", expected, hint="use another image")
    return vector


def _open(folder: Path, device: str, threads: int | None, threshold: float, arena: bool) -> dict[str, Any]:
    for file in sorted(folder.glob("*.onnx")):
        onnx.check_file(file)
    options, providers = onnx.settings(device, threads, arena=arena)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            analysis = FaceAnalysis(
                name=str(folder),
                allowed_modules=["detection", "recognition"],
                providers=providers,
                sess_options=options,
                static_shape_sessions=False,  # a second copy of the detector for one size saves nothing
            )
            # A negative ctx_id would move the sessions to the CPU whatever providers they were given.
            analysis.prepare(ctx_id=0, det_thresh=threshold, det_size=DETECTION_SIZE)
    except AssertionError as error:  # insightface asserts that a detector is among the files
        raise _incomplete(folder, "an SCRFD face detector (9 outputs)") from error
    except Exception as error:  # ONNX Runtime's error classes share no base but Exception
        raise onnx.not_opened(folder, error) from error
    trim()
    models = analysis.models
    if not models["detection"].use_kps:
        raise _incomplete(folder, "an SCRFD with five landmarks (9 outputs; the one found has fewer)")
    if "recognition" not in models:
        raise _incomplete(folder, "an ArcFace recogniser (input 3 x 112 x 112)")
    shape = models["recognition"].output_shape
    if shape[-1] != WIDTH:
        raise _incomplete(folder, f"an ArcFace recogniser of {WIDTH} numbers (the one found gives {shape[-1]})")
    for role in ("detection", "recognition"):
        onnx.note_fallback(models[role].session, device, Path(models[role].model_file).name)
    return models


def _incomplete(folder: Path, what: str) -> ModelDamaged:
    files = ", ".join(sorted(file.name for file in folder.glob("*.onnx")))
    return ModelDamaged(
        f"{folder}: found {files}, expected {what} among them",
        hint="`sa models pull antelopev2` fetches the whole folder",
    )
