"""A motion from a video: people and faces detected in batches of frames, tracked, gaps interpolated.

Decoding runs ahead of detection in its own thread, and faces are detected in parallel with people; ONNX Runtime and
FFmpeg release the interpreter lock. Pixels are dropped after each batch, so memory does not grow with the length of
the video. The result does not depend on timing.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

import numpy as np

from stableanimator_cli.clip_folder import FaceTable
from stableanimator_cli.detect import THRESHOLD, onnx
from stableanimator_cli.detect.read_ahead import Times, read_ahead
from stableanimator_cli.detect.roles import BATCH, require_detectors
from stableanimator_cli.errors import NoPerson
from stableanimator_cli.motion.keypoints import bounding_box, face_box
from stableanimator_cli.motion.motion_file import check_times
from stableanimator_cli.motion.repair import GAP, Repairs, repair
from stableanimator_cli.motion.track import Largest, PersonSelector, Tracker, Tracks, assign, match_faces, select
from stableanimator_cli.progress import NullReporter, Reporter
from stableanimator_cli.records import ChannelOrder, Clip, Face, ModelFolder, Motion

if TYPE_CHECKING:
    from stableanimator_cli.detect.face import FaceReader
    from stableanimator_cli.detect.pose import PersonDetector, PoseEstimator


_MIN_FRAMES = 3  # frames: a person detected in fewer is a false positive, unless the clip is that short
_APART = 0.33  # of a face's width: the minimum distance of the eyes of a frontal face


class Watcher(Protocol):
    """Gets each batch once: frames uint8 RGB [h,w,3] and the people's boxes float32[p,5] of each."""

    def add_batch(self, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Detectors:
    """The opened networks of a model. ``faces`` is None if not requested or if the model has none."""

    model: ModelFolder
    people: PersonDetector
    points: PoseEstimator
    faces: FaceReader | None

    @classmethod
    def open(
        cls,
        model: ModelFolder,
        device: str = "auto",
        *,
        threshold: float = THRESHOLD,
        threads: int | None = None,
        faces: bool = True,
        arena: bool = True,
    ) -> Detectors:
        """``threshold`` is the minimum score of a person; ``arena``: see ``onnx.session_options``. Raises
        ``ModelMissing`` without person or pose detector."""
        from stableanimator_cli.detect.face import FaceReader  # these import the libraries of the detectors
        from stableanimator_cli.detect.pose import PersonDetector, PoseEstimator

        require_detectors(model)
        reader = None
        if faces and "face" in model.files:
            reader = FaceReader(model.files["face"], model.face_channel_order, device, threads=threads, arena=arena)
        return cls(
            model=model,
            people=PersonDetector(
                model.files["person_detector"], device, threads=threads, threshold=threshold, arena=arena
            ),
            points=PoseEstimator(model.files["pose_detector"], device, threads=threads, arena=arena),
            faces=reader,
        )

    def describe(self) -> str:
        """Devices of the networks in words."""
        where = {"people": self.people.describe(), "points": self.points.describe()}
        if self.faces is not None:
            where["faces"] = self.faces.describe()
        return onnx.together(where)

    @property
    def channel_order(self) -> ChannelOrder:
        return "bgr" if self.faces is None else self.faces.channel_order


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureOptions:
    """``person``: see ``motion.track.select``. ``every``: people are detected in every k-th frame and their boxes
    interpolated between. ``gap`` and ``smooth``: see ``motion.repair.repair``.

    ``frames``: the half-open range that is used. The largest people are those of these frames, and detection ends after
    them, as soon as no later frame can change the number of a person detected by then.
    """

    person: PersonSelector = "largest"
    every: int = 1
    gap: int = GAP
    smooth: float = 0.0
    frames: tuple[int, int | None] = (0, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """The motion of the selected people and the faces of a clip.

    ``found`` int64[t]: people detected per frame before selection. ``discarded_detections``: detections of no person
    who was detected in at least three frames.
    """

    motion: Motion
    faces: FaceTable
    repairs: Repairs
    found: np.ndarray
    discarded_detections: int


def extract_motion(
    clip: Clip,
    detectors: Detectors,
    options: CaptureOptions | None = None,
    *,
    reporter: Reporter | None = None,
    watchers: Sequence[Watcher] = (),
) -> Capture:
    """Detect all people in ``clip``, select those of ``options``, repair their motion.

    The motion has all frames that were read: those of ``clip``, unless ``options.frames`` end before.
    Raises ``NoPerson`` with the file if no frame shows a person, ``BadInput`` with file and frame for damaged video.
    """
    options, reporter = options or CaptureOptions(), reporter or NullReporter()
    seen, stop, batch = _Detections(), options.frames[1], batch_of(options.every)
    total = clip.count if stop is None or clip.count is None else min(-(-stop // batch) * batch, clip.count)
    with (
        ThreadPoolExecutor(1) as beside,
        reporter.progress(total, f"detect {clip.path.name}", "frame") as bar,
        closing(read_ahead(clip, batch)) as batches,
    ):
        for frames, times in batches:
            faces = beside.submit(_faces, detectors.faces, frames)
            boxes = _boxes(detectors.people, frames, options.every)
            points = detectors.points.estimate(frames, boxes)
            seen.add(times, boxes, points, faces.result())
            for watcher in watchers:
                watcher.add_batch(frames, boxes)
            bar.update(len(frames))
            if stop is not None and len(seen.times) >= stop and seen.tracker.settled(minimum=_MIN_FRAMES):
                break
    return seen.capture(clip, options, detectors.channel_order)


def pose_of(image: np.ndarray, detectors: Detectors) -> np.ndarray | None:
    """Keypoints float32[134,3] of the largest person in an image uint8 RGB [h,w,3]; None without a person."""
    (boxes,) = detectors.people.detect([image])
    if not len(boxes):
        return None
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return detectors.points.estimate([image], [boxes[areas.argmax()][None]])[0][0]


def batch_of(every: int) -> int:
    """Batch size if people are detected in every ``every``-th frame: the multiple of it nearest to ``BATCH``."""
    return every * max(1, round(BATCH / every))


class _Detections:
    """Detections of all frames so far, without pixels."""

    def __init__(self) -> None:
        self.times: list[Fraction | None] = []
        self.boxes: list[np.ndarray] = []
        self.faces: list[tuple[Face, ...]] = []
        self.face_indices: list[np.ndarray] = []
        self.tracker = Tracker()

    def add(
        self, times: Times, boxes: list[np.ndarray], points: list[np.ndarray], faces: list[tuple[Face, ...]]
    ) -> None:
        self.times += times
        self.boxes += boxes
        self.faces += faces
        for people, rows, seen in zip(points, boxes, faces, strict=True):
            self.face_indices.append(_face_indices(people, seen))
            self.tracker.add(people, rows, _appearance(seen, self.face_indices[-1]))

    def capture(self, clip: Clip, options: CaptureOptions, order: ChannelOrder) -> Capture:
        check_times(clip.path, self._clock() or ())
        counts = np.array([len(rows) for rows in self.boxes], np.int64)
        if not counts.any():
            frames = f"any of {len(counts)} frames" if len(counts) > 1 else "it"
            raise NoPerson(
                f"{clip.path}: no person found in {frames}",
                hint="use a video that shows the whole person, or lower --detect-threshold",
            )
        face_indices = self.face_indices
        tracks = self.tracker.tracks(minimum=min(_MIN_FRAMES, len(counts)))
        if not tracks.present.any():
            tracks = self.tracker.tracks()
        discarded = int(counts.sum() - tracks.present.sum())
        if options.person == "largest" or isinstance(options.person, Largest):
            count = options.person.count if isinstance(options.person, Largest) else 1
            tracks = _largest(tracks, count, options.frames)
        motion, repairs = repair(
            _selected(
                tracks.motion(clip.size, self._clock(), self._face_boxes(tracks, face_indices)), options.person, clip
            ),
            gap=options.gap,
            smooth=options.smooth,
        )
        return Capture(
            motion=motion,
            faces=self._table(tracks, face_indices, motion, order),
            repairs=repairs,
            found=counts,
            discarded_detections=discarded,
        )

    def _clock(self) -> tuple[Fraction, ...] | None:
        known = [time for time in self.times if time is not None]
        return tuple(known) if len(known) == len(self.times) else None

    def _face_boxes(self, tracks: Tracks, face_indices: list[np.ndarray]) -> np.ndarray:
        """Box float32[t,p,4] of each person's detected face.

        In a clip without any detected face it is the box of the 68 face points, for models without a face detector.
        """
        if not any(self.faces):
            return np.where(tracks.present[..., None], face_box(tracks.keypoints), np.float32(np.nan))
        boxes = np.full((*tracks.present.shape, 4), np.nan, np.float32)
        for t, p in np.argwhere(tracks.present):
            face = face_indices[t][tracks.source[t, p]]
            if face >= 0:
                boxes[t, p] = self.faces[t][face].box
        return boxes

    def _table(self, tracks: Tracks, face_indices: list[np.ndarray], motion: Motion, order: ChannelOrder) -> FaceTable:
        index_of = {int(number): p for p, number in enumerate(motion.track)}
        rows = []
        for t, faces in enumerate(self.faces):
            person_of = {
                int(face_indices[t][tracks.source[t, p]]): index_of.get(int(tracks.track[p]), -1)
                for p in np.flatnonzero(tracks.present[t])
            }
            rows += [(t, person_of.get(index, -1), face) for index, face in enumerate(faces)]
        return FaceTable.of(rows, order)


def _largest(tracks: Tracks, count: int, frames: tuple[int, int | None]) -> Tracks:
    """The ``count`` largest people in these frames (``motion.track.largest_people``), or in all frames if these show no
    person. It is computed person by person, since the arrays of a crowd in a long video are large."""
    rows = slice(*frames) if tracks.present[slice(*frames)].any() else slice(None)
    areas = []
    for person in range(tracks.present.shape[1]):
        box = bounding_box(tracks.keypoints[rows, person]).astype(np.float64)
        sides, present = np.nan_to_num(box[:, 2:] - box[:, :2]).prod(axis=-1), tracks.present[rows, person]
        areas.append(float(sides[present].sum()) if present.any() else -1.0)
    count = min(count, sum(area >= 0 for area in areas))
    largest = sorted(np.argsort(-np.array(areas), kind="stable")[:count].tolist())
    return Tracks(
        keypoints=tracks.keypoints[:, largest],
        boxes=tracks.boxes[:, largest],
        present=tracks.present[:, largest],
        track=tracks.track[largest],
        source=tracks.source[:, largest],
    )


def _selected(motion: Motion, person: PersonSelector, clip: Clip) -> Motion:
    try:
        return select(motion, person)
    except NoPerson as error:
        raise NoPerson(f"{clip.path}: {error.message}", hint=error.hint) from None


def _face_indices(points: np.ndarray, faces: tuple[Face, ...]) -> np.ndarray:
    """Index int64[p] of the face of each person of a frame, -1 for none."""
    return match_faces(points, np.array([face.box for face in faces], np.float32).reshape(-1, 4))


def _appearance(faces: tuple[Face, ...], owner: np.ndarray) -> np.ndarray:
    """Face embedding float32[p,512] of each person, NaN without a frontal face."""
    embeddings = np.full((len(owner), 512), np.nan, np.float32)
    for person, face in enumerate(owner):
        vector = faces[face].embedding if face >= 0 else None
        if vector is not None and is_frontal(faces[face]):
            embeddings[person] = vector
    return embeddings


def is_frontal(face: Face) -> bool:
    """Whether both eyes are visible with the nose between them.

    The embedding of a profile is more similar to other profiles than to the same face from the front. It would split
    the track of a person who turns.
    """
    (left, right, nose), width = face.landmarks[:3, 0], face.box[2] - face.box[0]
    return bool(right - left > _APART * width and 0.2 < (nose - left) / (right - left) < 0.8)


def _faces(reader: FaceReader | None, frames: Sequence[np.ndarray]) -> list[tuple[Face, ...]]:
    return [() if reader is None else reader.faces(frame) for frame in frames]


def _boxes(people: PersonDetector, frames: Sequence[np.ndarray], every: int) -> list[np.ndarray]:
    """Boxes float32[p,5] of each frame: detected in every ``every``-th and the last, interpolated between."""
    keyframes = sorted({*range(0, len(frames), every), len(frames) - 1})
    found = people.detect([frames[index] for index in keyframes])
    boxes = [found[0]]
    for (start, before), (stop, after) in zip(
        zip(keyframes, found, strict=True), zip(keyframes[1:], found[1:], strict=True), strict=False
    ):
        boxes += [_between(before, after, (index - start) / (stop - start)) for index in range(start + 1, stop)]
        boxes.append(after)
    return boxes


def _between(before: np.ndarray, after: np.ndarray, share: float) -> np.ndarray:
    """Boxes interpolated from one frame's to another's by ``share``. A person in one frame only does not move, and is
    present in the half of the frames nearer to it."""
    pairs = [(a, b) for a, b in assign(_overlaps(before, after)) if _overlaps(before[[a]], after[[b]])[0, 0] > 0]
    alone = before if share < 0.5 else after
    taken = {pair[0 if share < 0.5 else 1] for pair in pairs}
    rows = [(1 - share) * before[a] + share * after[b] for a, b in pairs]
    rows += [row for index, row in enumerate(alone) if index not in taken]
    return np.array(rows, np.float32).reshape(-1, 5)


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union float64[n,m] of boxes [n,4+] and [m,4+]."""
    a, b = a[:, None, :4].astype(np.float64), b[None, :, :4].astype(np.float64)
    sides = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(min=0)
    shared = sides.prod(axis=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clip(min=0).prod(axis=-1) for boxes in (a, b)]
    return shared / np.maximum(areas[0] + areas[1] - shared, 1e-9)
