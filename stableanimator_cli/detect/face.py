"""Faces of a picture: where they are and whom they show, by insightface.

SCRFD finds boxes and five landmarks, ArcFace turns the aligned face into 512 numbers. Both run through insightface's
own model classes; alignment uses its template with scikit-image's current estimator, because the call that insightface
itself makes is on its way out of scikit-image and warns at every face.

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
from stableanimator_cli.detect.frames import checked, pad_short_side
from stableanimator_cli.errors import BadInput, ConfigError, ModelDamaged, ModelMissing
from stableanimator_cli.files import require_file
from stableanimator_cli.readers import read_npy
from stableanimator_cli.records import ChannelOrder, Face

DETECTION_SIZE = (640, 640)
"""Width and height that the detector sees; pictures are scaled into it, up or down."""

THRESHOLD = 0.5
"""The smallest score of a face."""

WIDTH = 512
"""Numbers in an identity vector."""


class FaceReader:
    """Finds and recognises faces with the models of one folder (``antelopev2``, ``buffalo_l`` or one of their shape).

    ``channel_order`` says in which order the networks are to see the colours. insightface takes BGR pictures and turns
    them to RGB for its networks, so ``"bgr"`` gives it correctly ordered pixels. The reference implementation swapped
    the channels once too often when it made identity vectors, until December 2024 in training and to this day in
    inference: the released StableAnimator weights (November 2024) have therefore most likely learned vectors of
    faces with red and blue exchanged, and ``"rgb"`` repeats that on purpose. It is a property of the checkpoint
    (``ModelFolder.face_channel_order``), not of the picture: ours are RGB always. Vectors of the two orders must not
    be compared with one another. Detection follows the same order, as it did there.

    Raises ``ModelMissing`` where the folder or the models in it are absent, ``ModelDamaged`` where a file does not
    open or the folder holds no SCRFD with landmarks or no ArcFace of 512 numbers, ``ConfigError`` for an unknown
    channel order, ``ValueError`` for an unknown device. One reader may be used from several threads.
    """

    def __init__(
        self,
        folder: Path | str,
        channel_order: ChannelOrder = "bgr",
        device: str = "auto",
        *,
        threads: int | None = None,
        threshold: float = THRESHOLD,
    ) -> None:
        if channel_order not in get_args(ChannelOrder):
            raise ConfigError("face_channel_order", channel_order, "'bgr' or 'rgb'")
        self.folder = model_folder(folder)
        self.channel_order: ChannelOrder = channel_order
        self._device = device
        models = _open(self.folder, device, threads, threshold)
        self._detector, self._recogniser = models["detection"], models["recognition"]

    def faces(self, image: np.ndarray) -> tuple[Face, ...]:
        """The faces of a picture uint8 RGB [h,w,3], largest first; empty where there is none.

        Boxes are clipped to the picture. Embeddings are raw float32[512], as ArcFace gives them; a face whose five
        landmarks fall into one point cannot be aligned and has ``embedding`` None.
        """
        return self._read(image, recognise=True)

    def boxes(self, image: np.ndarray) -> tuple[Face, ...]:
        """As ``faces``, without recognition: every ``embedding`` is None."""
        return self._read(image, recognise=False)

    def recognise(self, image: np.ndarray, landmarks: np.ndarray) -> np.ndarray | None:
        """Raw float32[512] of the face in a picture uint8 RGB [h,w,3] whose five landmarks float[5,2] are known; None
        where they fall into one point."""
        pixels = image[..., ::-1] if self.channel_order == "bgr" else image
        return self._embed(np.ascontiguousarray(pixels), landmarks)

    @property
    def recogniser_file(self) -> Path:
        """The ONNX file of the recogniser among those in the folder: face optimisation runs its graph itself."""
        return Path(self._recogniser.model_file)

    def describe(self) -> str:
        """Where the networks run, in words: each of the two that does not run where the other does."""
        where = {
            "detector": onnx.describe(self._detector.session, self._device),
            "recogniser": onnx.describe(self._recogniser.session, self._device),
        }
        return onnx.together(where)

    def _read(self, image: np.ndarray, *, recognise: bool) -> tuple[Face, ...]:
        h, w = checked(image).shape[:2]
        pixels = image[..., ::-1] if self.channel_order == "bgr" else image
        pixels = pad_short_side(np.ascontiguousarray(pixels), min(DETECTION_SIZE))
        rows, landmarks = self._detector.detect(pixels)
        found = []
        for row, points in zip(rows, landmarks, strict=True):
            box = np.clip(row[:4], 0, (w, h, w, h)).astype(np.float32)
            if box[2] <= box[0] or box[3] <= box[1]:
                continue  # wholly beside the picture: nothing of it can be shown or masked
            embedding = self._embed(pixels, points) if recognise else None
            points = np.array(points, dtype=np.float32)
            found.append(Face(box=box, landmarks=points, score=float(row[4]), embedding=embedding))
        return tuple(sorted(found, key=lambda face: face.area, reverse=True))

    def _embed(self, pixels: np.ndarray, landmarks: np.ndarray) -> np.ndarray | None:
        side = self._recogniser.input_size[0]
        aligned = align(pixels, landmarks, side)
        if aligned is None:
            return None
        # One face a run: a vector does not depend on who else is in the picture, to the last bit.
        return np.array(self._recogniser.get_feat(aligned), dtype=np.float32).reshape(-1)


def align(pixels: np.ndarray, landmarks: np.ndarray, side: int = 112) -> np.ndarray | None:
    """The face turned and scaled onto ArcFace's template: uint8 [side,side,3], or None where the landmarks float[5,2]
    span nothing. Least squares over rotation, scale and shift (Umeyama 1991); outside the picture it is black.
    """
    fit = onto_template(landmarks, side)
    return None if fit is None else cv2.warpAffine(pixels, fit[:2], (side, side), borderValue=0.0)


def onto_template(landmarks: np.ndarray, side: int = 112) -> np.ndarray | None:
    """Pixels -> ArcFace's template (Deng et al., 2019) of ``side`` pixels, a 3x3 matrix; None where the landmarks
    float[5,2] span nothing."""
    unit, margin = (side / 112, 0.0) if side % 112 == 0 else (side / 128, 8.0)
    template = (arcface_dst + np.array([margin, 0.0], dtype=np.float32)) * unit
    if not np.isfinite(landmarks).all() or np.ptp(landmarks, axis=0).max() < 1e-3:
        return None
    fit = SimilarityTransform.from_estimate(landmarks, template)
    return np.asarray(fit.params) if fit else None


def model_folder(folder: Path | str) -> Path:
    """The absolute folder that holds the ONNX files.

    Goes one level down where the folder holds none itself but exactly one folder in it does: ``antelopev2.zip``
    unpacks to ``antelopev2/antelopev2``. Raises ``ModelMissing`` where there is no folder or no ONNX file.
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

    Raises ``BadInput`` where the file is not there, is not NumPy's, holds objects (they would be code), or holds what
    no recogniser gives: another shape, no floats, NaN or infinity, all zeros.
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
        raise BadInput(path, "zeros only, the mark of a face that was not found", expected, hint="use another picture")
    return vector


def _open(folder: Path, device: str, threads: int | None, threshold: float) -> dict[str, Any]:
    for file in sorted(folder.glob("*.onnx")):
        onnx.check_file(file)
    options, providers = onnx.settings(device, threads)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            analysis = FaceAnalysis(
                name=str(folder),
                allowed_modules=["detection", "recognition"],
                providers=providers,
                sess_options=options,
                static_shape_sessions=False,  # a second copy of the detector for one size is no gain
            )
            # A negative ctx_id would move the sessions to the CPU whatever providers they were given.
            analysis.prepare(ctx_id=0, det_thresh=threshold, det_size=DETECTION_SIZE)
    except AssertionError as error:  # insightface asserts that a detector is among the files
        raise _lacks(folder, "an SCRFD face detector (9 outputs)") from error
    except Exception as error:  # ONNX Runtime's error classes share no base but Exception
        raise onnx.damaged(folder, error) from error
    models = analysis.models
    if not models["detection"].use_kps:
        raise _lacks(folder, "an SCRFD with five landmarks (9 outputs; the one found has fewer)")
    if "recognition" not in models:
        raise _lacks(folder, "an ArcFace recogniser (input 3 x 112 x 112)")
    shape = models["recognition"].output_shape
    if shape[-1] != WIDTH:
        raise _lacks(folder, f"an ArcFace recogniser of {WIDTH} numbers (the one found gives {shape[-1]})")
    for role in ("detection", "recognition"):
        onnx.note_fallback(models[role].session, device, Path(models[role].model_file).name)
    return models


def _lacks(folder: Path, what: str) -> ModelDamaged:
    files = ", ".join(sorted(file.name for file in folder.glob("*.onnx")))
    return ModelDamaged(
        f"{folder}: found {files}, expected {what} among them",
        hint="`sa models pull antelopev2` fetches the whole folder",
    )
