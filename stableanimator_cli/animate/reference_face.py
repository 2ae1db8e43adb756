"""Whose face it is, and keeping it: the reference's vector, and the optimisation that a run was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from stableanimator_cli.animate.driving import Driving
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.detect.face import load_embedding
from stableanimator_cli.diffusion.face_optimization import FaceOptimization, FaceOptimizationSettings, RefineLogEntry
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.face_optimization import SMALLEST, Reference, face_optimization, pixel_boxes
from stableanimator_cli.errors import ModelMissing, NoFace
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import Face, ModelFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceFace:
    """``vector`` float32[512] for the Face Encoder, None where a run may do without; ``faces`` of the reference
    picture, largest first, as far as a detector was there to find them."""

    vector: np.ndarray | None
    faces: tuple[Face, ...] = ()


def check_reference_face(config: AnimateConfig, engine: Engine, reporter: Reporter) -> ReferenceFace:
    """For a plan: a vector that was given is checked, no detector is run, and its absence is said."""
    if config.face_embedding is not None:
        return ReferenceFace(vector=load_embedding(config.face_embedding))
    if "face" not in engine.model.files and not config.allow_no_face:
        reporter.warning(
            f"model {engine.model.name!r} has no face detector here: the run will ask for --face-embedding FILE, "
            "`sa models pull antelopev2`, or --allow-no-face"
        )
    return ReferenceFace(vector=None)


def detect_reference_face(
    config: AnimateConfig, engine: Engine, picture: np.ndarray, reporter: Reporter
) -> ReferenceFace:
    """The vector of the largest face: given, or found in the whole picture; None only where that was allowed."""
    if config.face_embedding is not None:
        vector = load_embedding(config.face_embedding)
        # only optimisation needs the face's box in the picture
        looks = "face" in engine.model.files and mode_of(config, engine.model) != "off"
        faces = engine.faces().boxes(picture) if looks else ()
        if faces:
            reporter.info(
                f"faces are optimised towards the one in {config.reference.name}, not towards --face-embedding"
            )
        return ReferenceFace(vector=vector, faces=faces)
    try:
        faces = engine.faces().faces(picture)
    except ModelMissing:
        if not config.allow_no_face or config.refine.min_csim is not None:
            raise
        reporter.warning(f"model {engine.model.name!r} has no face detector here: animating without a face, as allowed")
        return ReferenceFace(vector=None)
    known = [face for face in faces if face.embedding is not None]
    if known:
        if len(known) > 1:
            reporter.info(f"{config.reference.name}: {len(known)} faces, the largest is kept")
        return ReferenceFace(vector=known[0].embedding, faces=tuple(known))
    if config.allow_no_face and config.refine.min_csim is None:
        reporter.warning(f"{config.reference.name}: no face found: animating without one, as allowed")
        return ReferenceFace(vector=None)
    gated = config.refine.min_csim is not None
    raise NoFace(
        f"{config.reference}: no face found" + (", which --min-csim compares with" if gated else ""),
        hint="use a picture where the face is larger and seen from the front, or "
        + ("leave --min-csim out" if gated else "--allow-no-face"),
    )


def mode_of(config: AnimateConfig, model: ModelFolder) -> Literal["off", "full", "crop"]:
    """What ``--refine-face`` comes to with this model, once there is a face. Raises ``ModelMissing`` where what was
    asked for by name has no recogniser."""
    settings = config.refine
    first, last = settings.steps_of(config.sampling.steps)
    if settings.face == "off" or settings.iterations == 0 or first >= last:
        return "off"
    if "face" in model.files:
        return "crop" if settings.face == "auto" else settings.face
    if settings.face == "auto":
        return "off"
    raise ModelMissing(
        f"model {model.name!r} has no face recogniser here, which --refine-face {settings.face} needs",
        hint="`sa models pull antelopev2`, or --refine-face off",
    )


def build_face_optimization(
    config: AnimateConfig,
    engine: Engine,
    picture: np.ndarray,
    subject: ReferenceFace,
    driving: Driving,
    reporter: Reporter,
) -> FaceOptimization | None:
    """The hook that a run was asked for, None where there is nothing to do. ``auto`` does without what is missing,
    ``full`` and ``crop`` insist on it."""
    settings, mode = config.refine, mode_of(config, engine.model)
    if mode == "off":
        missing = settings.face == "auto" and settings.iterations > 0 and "face" not in engine.model.files
        if missing and subject.vector is not None:  # without a vector the missing detector is reported already
            reporter.warning(
                f"no face is optimised: model {engine.model.name!r} has no face recogniser here; "
                "`sa models pull antelopev2`, or --refine-face off"
            )
        return None
    if not subject.faces:
        if settings.face != "auto":
            raise NoFace(
                f"{config.reference}: no face found, which --refine-face {settings.face} needs",
                hint="use a picture where the face is larger, or --refine-face off",
            )
        if subject.vector is not None:  # without a vector the missing face is reported already
            reporter.warning(f"no face is optimised: no face found in {config.reference.name}, only --face-embedding")
        return None
    width, height = driving.skeletons.size
    boxes = driving.faces
    references = [Reference(picture=picture, box=face.box) for face in subject.faces]
    if boxes is not None and not np.isfinite(boxes).all(axis=-1).any():
        reporter.info(f"{config.motion.name}: no frame has points of a face; faces are looked for in the estimates")
        boxes = None
    if boxes is None and len(references) > 1:
        reporter.info(f"{config.motion.name} does not say where faces are: only the largest of each frame is optimised")
    if boxes is not None:
        people = boxes.shape[1]
        references, boxes = _paired(references, boxes)
        if people > len(references):
            reporter.info(
                f"{config.motion.name}: faces of {len(references)} of {people} people are optimised, "
                f"as many as {config.reference.name} shows"
            )
        usable = np.array([[box is not None for box in pixel_boxes(each, (width, height))] for each in boxes])  # [t,p]
        unseen = len(boxes) - int(usable.any(axis=-1).sum())
        if unseen == len(boxes):
            reporter.warning(
                f"{config.motion.name}: no face box lies in the picture with {SMALLEST} pixels a side or more, "
                "so no face is optimised"
            )
            return None
        if unseen:
            reporter.info(
                f"{config.motion.name}: {unseen} of {len(boxes)} frames show no face of {SMALLEST} pixels or more "
                "and are not optimised"
            )
    if config.windows.anchor == "reference" and boxes is not None:
        boxes = np.concatenate([np.full_like(boxes[:1], np.nan), boxes])  # the anchor is not part of the output
    return face_optimization(
        engine,
        FaceOptimizationSettings(
            mode=mode,
            steps=settings.steps_of(config.sampling.steps),
            iterations=settings.iterations,
            lr=settings.lr,
            lr_schedule=settings.schedule,
            anchor=settings.anchor,
            chunk=config.decode.chunk,
            mask_dilation=settings.mask_dilation,
        ),
        references=references if boxes is not None else references[:1],
        boxes=boxes,
        size=(width, height),
        whole_frame=settings.region == "frame",
        margin=settings.crop_margin,
        anchored=config.windows.anchor == "reference",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FacesRefined:
    """What face optimisation did: ``frames`` of ``total`` frames in ``steps`` of ``requested`` denoising steps."""

    frames: int
    total: int
    steps: int
    requested: int

    @classmethod
    def of(cls, refine: FaceOptimization | None, log: Sequence[RefineLogEntry], total: int) -> FacesRefined | None:
        """From the log of the sampling that became the video; None if no face was to be optimised."""
        if refine is None:
            return None
        first, last = refine.settings.steps
        return cls(
            frames=max((entry.frames for entry in log), default=0), total=total, steps=len(log), requested=last - first
        )

    def report(self, reporter: Reporter) -> None:
        if self.steps:
            reporter.info(
                f"faces optimised in {self.frames} of {self.total} frames, "
                f"in {self.steps} of {self.requested} denoising steps"
            )
        else:
            reporter.warning(
                f"no face was optimised: the detector saw none in the estimates of {self.requested} denoising steps; "
                "try a larger --size, or give the motion as key points (.npz), which say where faces are"
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _paired(references: list[Reference], boxes: np.ndarray) -> tuple[list[Reference], np.ndarray]:
    """As many of the largest faces as both sides have, matched from left to right. boxes float[t,p,4]."""
    count = min(len(references), boxes.shape[1])
    references, boxes = references[:count], boxes[:, :count]
    seen = np.isfinite(boxes).all(axis=-1)
    centres = np.where(seen, boxes[..., ::2].sum(axis=-1), 0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    return sorted(references, key=lambda face: face.box[0] + face.box[2]), boxes[:, np.argsort(centres, kind="stable")]
