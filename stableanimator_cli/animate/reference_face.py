"""The reference's face: its embedding, and the face optimisation towards it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stableanimator_cli.animate.driving_frames import Driving
from stableanimator_cli.animate.people import PersonFace
from stableanimator_cli.catalogue.remedy import remedy
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.parse import parse_size
from stableanimator_cli.config.refine import ONE_FRAME
from stableanimator_cli.detect.face import load_embedding
from stableanimator_cli.diffusion.face_optimization import (
    Box,
    FaceOptimization,
    FaceOptimizationSettings,
    RefineLogEntry,
    union_box,
)
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.face_optimization import SMALLEST, FaceBox, face_optimization, pixel_boxes
from stableanimator_cli.engine.memory.render import MemoryEstimator
from stableanimator_cli.errors import BadInput, ConfigError, ModelMissing, NoFace
from stableanimator_cli.motion.geometry import ResizeTransform, resize_transform
from stableanimator_cli.motion.left_to_right import face_boxes
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import Face, ModelFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceFace:
    """``vector`` float32[512] for the Face Encoder, None if the run continues without; ``faces`` detected in the
    reference image, largest first. ``people``: who has a face of one's own; then ``vector`` is the first one's."""

    vector: np.ndarray | None
    faces: tuple[Face, ...] = ()
    people: tuple[PersonFace, ...] = ()


def check_reference_face(config: AnimateConfig, engine: Engine, reporter: Reporter) -> ReferenceFace:
    """For a plan: check a given embedding; run no detector. Raises what the run would if the detector is missing."""
    if config.face_embedding is not None:
        return ReferenceFace(vector=load_embedding(config.face_embedding))
    if "face" not in engine.model.files:
        if not _may_lack_face(config, engine.model):
            engine.faces()  # raises
        reporter.warning(
            f"model {engine.model.name!r} has no face detector: animating without a face{_allowed(config)}"
        )
    return ReferenceFace(vector=None)


def detect_reference_face(
    config: AnimateConfig, engine: Engine, image: np.ndarray, reporter: Reporter
) -> ReferenceFace:
    """The embedding of the largest face, given or detected in the full image; None only with ``--allow-no-face``, or
    if faces come from ``--face-of``."""
    if config.face_embedding is not None:
        vector = load_embedding(config.face_embedding)
        # without either of the two the face's box in the image is not needed
        optimised = "face" in engine.model.files and mode_of(config, engine.model) != "off"
        faces = engine.faces().boxes(image) if optimised or config.hide_reference_face == "all" else ()
        if config.hides_optimised_face and config.refine.face == "auto":
            reporter.info(f"no face is optimised: that would be towards the hidden one of {config.reference.name}")
        if faces and optimised:
            reporter.info(
                f"faces are optimised towards the one in {config.reference.name}, not towards --face-embedding"
            )
        return ReferenceFace(vector=vector, faces=faces)
    try:
        faces = engine.faces().faces(image)
    except ModelMissing:
        if not _may_lack_face(config, engine.model):
            raise
        reporter.warning(
            f"model {engine.model.name!r} has no face detector: animating without a face{_allowed(config)}"
        )
        return ReferenceFace(vector=None)
    known = [face for face in faces if face.embedding is not None]
    if known:
        return ReferenceFace(vector=known[0].embedding, faces=tuple(known))
    if config.people.face_of:
        return ReferenceFace(vector=None)
    if _may_lack_face(config, engine.model):
        reporter.warning(f"{config.reference.name}: no face found: animating without one{_allowed(config)}")
        return ReferenceFace(vector=None)
    gated = config.refine.min_csim is not None
    remedy = "leave --min-csim out" if gated else "--allow-no-face"
    raise NoFace(
        f"{config.reference}: no face found" + (", which --min-csim compares with" if gated else ""),
        hint=f"use an image where the face is larger and seen from the front, or {remedy}",
    )


def require_faces_to_hide(config: AnimateConfig, face: ReferenceFace) -> None:
    """Raise ``NoFace`` if all faces of the reference are to be hidden and it has none."""
    if config.hide_reference_face == "all" and not face.faces:
        raise NoFace(f"{config.reference}: no face found to hide", hint="leave --hide-reference-face out")


def boxes_of(faces: Sequence[Face], transform: ResizeTransform) -> np.ndarray | None:
    """Boxes float[k,4] of faces of the reference after ``transform``; None without any."""
    if not faces:
        return None
    corners = np.stack([one.box for one in faces]).reshape(-1, 2, 2)
    return transform.apply_points(corners).reshape(-1, 4)


def _may_lack_face(config: AnimateConfig, model: ModelFolder) -> bool:
    """Whether a run continues without a face: if allowed, or if no network of the backbone receives it."""
    return config.refine.min_csim is None and (config.allow_no_face or not model.facts.embeds_face)


def _allowed(config: AnimateConfig) -> str:
    return ", as allowed" if config.allow_no_face else ""


def check_texture(config: AnimateConfig, engine: Engine, image: np.ndarray, reporter: Reporter) -> float | None:
    """Raise ``BadInput`` for a reference unlike the images of the model's training, unless ``--force``.

    ``image`` uint8[h,w,3] is measured at the model's own size, where the limit was: smaller images have finer detail.
    Returns the texture error, None if the model does not record that of its training.
    """
    limit = engine.model.max_texture_error
    if limit is None:
        return None
    size = parse_size(engine.model.defaults.get("size", config.size))
    transform = resize_transform((image.shape[1], image.shape[0]), size, "crop")
    error = engine.texture_error(transform.apply_image(image, resample="lanczos"))
    if error > limit:
        problem = (
            f"unlike the images that model {engine.model.name!r} was trained on "
            f"(texture error {error:.2f}, theirs are at most {limit:g})"
        )
        if not config.force:
            hint = "use a model for such images (`sa models list`), or --force"
            raise BadInput.because(config.reference, f"it is {problem}", hint=hint)
        reporter.warning(f"{config.reference.name} is {problem}")
    return error


def mode_of(config: AnimateConfig, model: ModelFolder) -> Literal["off", "full", "crop"]:
    """Resolve ``--refine-face`` for this model, if a face is found. Raises ``ModelMissing`` if ``full`` or ``crop`` was
    requested and the model has no recogniser."""
    settings = config.refine
    first, last = settings.steps_of(config.sampling.steps)
    if settings.face == "off" or settings.iterations == 0 or first >= last or config.hides_optimised_face:
        return "off"
    if "face" in model.files:
        return "crop" if settings.face == "auto" else settings.face
    if settings.face == "auto":
        return "off"
    raise ModelMissing(
        f"model {model.name!r} has no face recogniser, which --refine-face {settings.face} needs",
        hint=f"{remedy(model, 'face')}, or --refine-face off",
    )


def refined_steps(config: AnimateConfig, model: ModelFolder) -> int:
    """Denoising steps with face optimisation, if a face is found."""
    first, last = config.refine.steps_of(config.sampling.steps)
    return 0 if mode_of(config, model) == "off" else last - first


def largest_face_box(config: AnimateConfig, driving: Driving) -> Box | None:
    """The largest box that face optimisation decodes at once: around a person's faces in a chunk of frames.

    None if no box is known before the run.
    """
    if driving.faces is None:
        return None
    size = driving.skeletons.size
    unions = []
    for person in driving.faces.transpose(1, 0, 2):
        boxes = pixel_boxes(person, size)
        for start in range(0, len(boxes), config.decode.chunk):
            known = [box for box in boxes[start : start + config.decode.chunk] if box is not None]
            unions += [union_box(known)] if known else []
    if unions and config.refine.region == "frame":
        return (0, 0, size[0] - 1, size[1] - 1)
    return max(unions, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]), default=None)


def build_face_optimization(
    config: AnimateConfig,
    engine: Engine,
    image: np.ndarray,
    reference: ReferenceFace,
    driving: Driving,
    reporter: Reporter,
    estimator: MemoryEstimator,
) -> FaceOptimization | None:
    """Build the requested face optimisation; None if there is nothing to optimise. If something is missing, ``auto``
    continues without, ``full`` and ``crop`` raise. ``estimator`` decides on checkpoints."""
    settings, mode = config.refine, mode_of(config, engine.model)
    if mode == "off":
        missing = settings.face == "auto" and settings.iterations > 0 and "face" not in engine.model.files
        if missing and reference.vector is not None:  # without a vector the missing detector is reported already
            reporter.warning(
                f"no face is optimised: model {engine.model.name!r} has no face recogniser; "
                f"{remedy(engine.model, 'face')}, or --refine-face off"
            )
        return None
    if not reference.faces and not reference.people:
        _report_no_face(config, reference, reporter)
        return None
    placed = _faces_and_boxes(config, image, reference, driving, reporter)
    if placed is None:
        return None
    references, boxes = placed
    if boxes is not None:
        if settings.region == "frame" and len(references) > 1:
            expected = f"box with the faces of {len(references)} people"
            raise ConfigError("--refine-region", "frame", expected, hint=ONE_FRAME)
        if not _shows_faces(boxes, driving.skeletons.size, config.motion.name, reporter):
            return None
        if config.windows.anchor == "reference":
            boxes = np.concatenate([np.full_like(boxes[:1], np.nan), boxes])  # the anchor is not part of the output
    return face_optimization(
        engine,
        FaceOptimizationSettings(
            mode=mode,
            steps=settings.steps_of(config.sampling.steps),
            iterations=settings.iterations,
            target=settings.target,
            lr=settings.lr,
            lr_schedule=settings.schedule,
            anchor=settings.anchor,
            chunk=config.decode.chunk,
            mask_dilation=settings.mask_dilation,
        ),
        references=references if boxes is not None else references[:1],
        boxes=boxes,
        size=driving.skeletons.size,
        full_frame=settings.region == "frame",
        margin=settings.crop_margin,
        has_anchor=config.windows.anchor == "reference",
        checkpointed=estimator.checkpointed(config),
    )


def _report_no_face(config: AnimateConfig, reference: ReferenceFace, reporter: Reporter) -> None:
    """Raise ``NoFace`` if face optimisation was requested, else warn unless a missing vector was reported before."""
    if config.refine.face != "auto":
        raise NoFace(
            f"{config.reference}: no face found, which --refine-face {config.refine.face} needs",
            hint="use an image where the face is larger, or --refine-face off",
        )
    if reference.vector is not None:
        reporter.warning(f"no face is optimised: no face found in {config.reference.name}, only --face-embedding")


def _faces_and_boxes(
    config: AnimateConfig, image: np.ndarray, reference: ReferenceFace, driving: Driving, reporter: Reporter
) -> tuple[list[FaceBox], np.ndarray | None] | None:
    """The reference's faces and the boxes float[t,p,4] of the same people in the motion.

    Boxes are None if they have to be detected in the denoised estimates; all is None if no face can be optimised.
    """
    motion, boxes = config.motion.name, driving.faces
    shared = config.people.pair == () or config.face_embedding is not None  # one face for everybody: the largest
    references = [FaceBox(image=image, box=face.box) for face in (reference.faces[:1] if shared else reference.faces)]
    if reference.people and driving.people is not None:
        references = [FaceBox(image=one.image, box=one.face.box) for one in reference.people]
        boxes = face_boxes(driving.people)[:, [one.index for one in reference.people]]
    if boxes is not None and not np.isfinite(boxes).all(axis=-1).any():
        if reference.people and driving.people is not None and len(driving.people.track) > 1:
            reporter.warning(f"{motion}: no frame has points of a face, so no face is optimised")
            return None
        reporter.info(f"{motion}: no frame has points of a face; faces are detected in the denoised estimates")
        boxes = None
    if boxes is None:
        if len(references) > 1:
            reporter.info(f"{motion} does not contain face positions: only the largest of each frame is optimised")
        return references, None
    people = boxes.shape[1]
    if not reference.people:
        references, boxes = _paired(references, boxes)
    if people > len(references):
        reporter.info(
            f"{motion}: faces of {len(references)} of {people} people are optimised, "
            + ("the largest" if shared else f"as many as {config.reference.name} shows")
        )
    return references, boxes


def _shows_faces(boxes: np.ndarray, size: tuple[int, int], motion: str, reporter: Reporter) -> bool:
    """Whether a frame shows a face that is large enough; reports how many frames show none."""
    usable = np.array([[box is not None for box in pixel_boxes(row, size)] for row in boxes])  # [t,p]
    without_face = len(boxes) - int(usable.any(axis=-1).sum())
    if without_face == len(boxes):
        reporter.warning(
            f"{motion}: no face box is in the frame with {SMALLEST} pixels per side or more, so no face is optimised"
        )
    elif without_face:
        reporter.info(
            f"{motion}: {without_face} of {len(boxes)} frames show no face of {SMALLEST} pixels or more and are not "
            "optimised"
        )
    return without_face < len(boxes)


@dataclass(frozen=True, slots=True, kw_only=True)
class FacesRefined:
    """Result of face optimisation: ``frames`` of ``total`` frames in ``steps`` of ``requested`` denoising steps."""

    frames: int
    total: int
    steps: int
    requested: int

    @classmethod
    def of(
        cls, refine: FaceOptimization | None, log: Sequence[RefineLogEntry], total: int, segments: int = 1
    ) -> FacesRefined | None:
        """From the log of the sampling that is written; None without face optimisation. Each of ``segments`` that are
        sampled one after the other begins with step 0 again."""
        if refine is None:
            return None
        first, last = refine.settings.steps
        starts = [index for index, entry in enumerate(log) if index == 0 or entry.step <= log[index - 1].step]
        passes = [log[start:stop] for start, stop in zip(starts, [*starts[1:], len(log)], strict=False)]
        return cls(
            frames=sum(max(entry.frames for entry in one) for one in passes),
            total=total,
            steps=len(log),
            requested=(last - first) * segments,
        )

    def report(self, reporter: Reporter, *, takes_keypoints: bool = True) -> None:
        """``takes_keypoints``: whether the motion may be keypoints, which contain face positions."""
        if self.steps:
            reporter.info(
                f"faces optimised in {self.frames} of {self.total} frames, "
                f"in {self.steps} of {self.requested} denoising steps"
            )
        else:
            keypoints = ", or give the motion as keypoints (.npz), which contain face positions"
            reporter.warning(
                f"no face was optimised: the detector found none in the estimates of {self.requested} denoising steps; "
                f"try a larger --size{keypoints if takes_keypoints else ''}"
            )


def _paired(references: list[FaceBox], boxes: np.ndarray) -> tuple[list[FaceBox], np.ndarray]:
    """Match the largest faces of both sides from left to right, as many as both have. boxes float[t,p,4]."""
    count = min(len(references), boxes.shape[1])
    references, boxes = references[:count], boxes[:, :count]
    seen = np.isfinite(boxes).all(axis=-1)
    centres = np.where(seen, boxes[..., ::2].sum(axis=-1), 0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    return sorted(references, key=lambda face: face.box[0] + face.box[2]), boxes[:, np.argsort(centres, kind="stable")]
