"""The driving motion in any accepted form, as frames at the output's size and rate: skeletons, or the video itself.

Skeleton videos and folders of skeleton images are used as they are. Keypoints (``poses.npz``, OpenPose JSON, a clip
folder of ``sa preprocess``) are drawn. In a plain video people are detected first.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from stableanimator_cli.animate.driving_faces import FaceCrops
from stableanimator_cli.animate.driving_frames import STYLE, Audio, Driving, DrivingFrames
from stableanimator_cli.animate.driving_pixels import open_pixels, shows_skeletons
from stableanimator_cli.animate.driving_video import depends_on_numbers, detect_motion, open_detectors
from stableanimator_cli.animate.inputs import is_openpose
from stableanimator_cli.animate.people import check_people_of_images, chosen_people
from stableanimator_cli.backbone_facts import BackboneFacts
from stableanimator_cli.clip_folder import MOTION, is_clip, open_folder
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.detect.capture import Detectors
from stableanimator_cli.errors import BadInput
from stableanimator_cli.media import frame_range, has_unreadable_audio, open_clip, take
from stableanimator_cli.media.numbering import warn_of_missing_numbers
from stableanimator_cli.motion.frame_rate import mean_rate
from stableanimator_cli.motion.motion_file import load_motion
from stableanimator_cli.motion.openpose import load_openpose
from stableanimator_cli.motion.skeleton import is_tagged
from stableanimator_cli.motion.track import PersonSelector
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import Clip, Motion

_SMALLEST = 32  # pixels per side, below which a skeleton is not distinguishable from noise
ChoosePeople = Callable[[Detectors], tuple[PersonSelector, Detectors]]


def open_driving(
    config: AnimateConfig,
    reporter: Reporter,
    *,
    detectors: Callable[[], Detectors] | None = None,
    reference: np.ndarray | None = None,
    count_only: bool = False,
    facts: BackboneFacts | None = None,
    people: ChoosePeople = lambda detectors: ("largest", detectors),
) -> Driving:
    """Read MOTION of ``config`` at the output's size and rate: ``config.fps``, else the source's, else 30.

    In a plain video people are detected, with ``detectors`` opened when needed; ``people`` selects some, and the
    detectors for that. The misalignment with the person of ``reference`` uint8[h,w,3] is reported. ``count_only``
    counts a plain video's frames, detects and draws nothing; ``detectors`` then only has to raise what opening them
    would.
    ``facts`` of the model's backbone: the style of skeletons and further driving videos.
    Raises ``BadInput`` with file and frame, ``ModelMissing`` for a plain video without detectors, ``NoPerson`` if it
    shows no person, or not the one of ``--person``, ``ConfigError`` if people are named and only images are known.
    """
    facts = facts or BackboneFacts()
    warn_of_missing_numbers(config.motion, reporter)
    driving = _Source(config, reporter, detectors, reference, count_only, facts, people).open()
    if config.audio == "keep" and not count_only and driving.audio is None and has_unreadable_audio(config.motion):
        reporter.warning(f"{config.motion.name}: its sound cannot be decoded: the video will have no sound")
    if "face" in facts.streams and "face" not in driving.streams:
        if not count_only:
            reporter.info(f"{config.motion.name} has no pixels of a face: it drives the body and no expression")
        driving = replace(driving, streams={"face": FaceCrops(range(len(driving.skeletons)))})
    return driving


@dataclass(frozen=True, slots=True)
class _Source:
    """MOTION and how to read it, as ``open_driving`` has them; one method for each form that it can have."""

    config: AnimateConfig
    reporter: Reporter
    detectors: Callable[[], Detectors] | None
    reference: np.ndarray | None
    count_only: bool
    facts: BackboneFacts
    people: ChoosePeople

    def open(self) -> Driving:
        path = self.config.motion
        if self.facts.skeleton is None:
            selected, first, _ = self._selected(open_pixels(self.config, self.reporter))
            return self._frames.counted(selected) if self.count_only else self._frames.of_clip(selected, first, None)
        if is_clip(path):
            return self._clip_folder()
        if path.suffix.lower() == ".npz" and path.is_file():
            return self._keypoints(load_motion(path))
        if is_openpose(path):
            return self._openpose()
        clip = open_clip(path)
        if min(clip.size) < _SMALLEST:
            hint = "draw the skeletons larger, or give the motion as keypoints (.npz or OpenPose JSON)"
            expected = f"skeletons of {_SMALLEST} pixels per side or more"
            raise BadInput(path, "{}x{} pixels".format(*clip.size), expected, hint=hint)
        if shows_skeletons(clip, self.config.motion_kind, self.reporter):
            return self._skeleton_video(clip)
        return self._plain_video(clip)

    @property
    def _frames(self) -> DrivingFrames:
        return DrivingFrames(self.config, self.reporter, self.facts, draws=not self.count_only)

    @property
    def _range(self) -> tuple[int | None, int | None]:
        return self.config.frames or (None, None)

    @property
    def _detects_all(self) -> bool:
        """Whether a plain video is detected in full: people who appear before the range count in its numbers."""
        return self.config.frames is not None and depends_on_numbers(self.config.people)

    def _selected(self, clip: Clip) -> tuple[Clip, int, int | None]:
        """The chosen frames of a clip, the index of the first one and that after the last, None if unknown."""
        return take(clip, *self._range), *frame_range(clip, *self._range)

    def _chosen(self, motion: Motion, path: Path) -> Motion:
        return chosen_people(motion, self.config.people, path, self._range)

    def _clip_folder(self) -> Driving:
        folder = self.config.motion
        motion = self._chosen(load_motion(folder / MOTION), folder / MOTION)
        driving = self._frames.of_motion(motion, folder / MOTION, *self._range, fps=_recorded_rate(folder))
        if self.count_only:
            return driving
        if "face" in self.facts.streams:
            driving = self._frames.with_face_crops(driving, open_folder(folder).pictures(), motion)
        return replace(driving, audio=_folder_audio(folder, motion, *self._range, self.reporter))

    def _keypoints(self, motion: Motion) -> Driving:
        path = self.config.motion
        return self._frames.of_motion(self._chosen(motion, path), path, *self._range)

    def _openpose(self) -> Driving:
        loaded = load_openpose(self.config.motion)
        if loaded.size_from == "extent":
            width, height = loaded.motion.size
            self.reporter.warning(
                f"{self.config.motion.name} does not name the size of its frames: {width}x{height} is estimated from "
                "the points; add canvas_width and canvas_height"
            )
        return self._keypoints(loaded.motion)

    def _skeleton_video(self, clip: Clip) -> Driving:
        selected, first, stop = self._selected(clip)
        beside = _motion_beside(clip)
        if self.facts.skeleton != STYLE and beside is not None:  # drawn again, in the style of the backbone
            audio = _audio_of(clip.path, beside, first, stop) if clip.audio else None
            beside = self._chosen(beside, clip.path.with_suffix(".npz"))
            return replace(self._frames.of_motion(beside, clip.path, first, stop), audio=audio)
        if self.facts.skeleton != STYLE:
            self.reporter.info(
                f"{clip.path.name}: skeletons are used as they are; keypoints (.npz, OpenPose JSON) are drawn as in "
                "the training of the model"
            )
        check_people_of_images(self.config.people, clip.path, beside)
        return self._frames.of_clip(selected, first, beside)

    def _plain_video(self, clip: Clip) -> Driving:
        selected, first, stop = self._selected(clip)
        if self.count_only:
            if self.detectors is not None:
                open_detectors(clip, self.detectors)
            return self._frames.counted(selected)
        if self._detects_all:
            source, chosen, offset = clip, (first, stop), 0
        else:
            source, chosen, offset = selected, (0, None), first
        motion = self._detected(source, chosen, first)
        frames = self._frames
        if self.config.fps is None and motion.times is None:
            frames = replace(frames, config=replace(self.config, fps=clip.fps))
        driving = frames.of_motion(motion, clip.path, *chosen, fps=clip.fps)
        if "face" in self.facts.streams:
            driving = frames.with_face_crops(driving, source, motion)
        shown = tuple(offset + index for index in driving.motion_frames)
        audio = None
        if clip.audio and motion.times is not None:
            times = motion.times[slice(*chosen)]
            audio = (clip.path, times[0], times[-1] + 1 / (clip.fps or mean_rate(motion.times)))
        return replace(driving, motion_frames=shown, detected_size=clip.size, audio=audio)

    def _detected(self, source: Clip, frames: tuple[int, int | None], first: int) -> Motion:
        """Detect the motion of the chosen people in ``frames`` of ``source``, MOTION or its part from ``first`` on."""
        person, detectors = self.people(open_detectors(source, self.detectors))
        if self._detects_all and first:
            self.reporter.info(
                f"{source.path.name}: people are detected from frame 0, not {first}, so that they have the numbers of "
                "the full video"
            )
        motion = detect_motion(source, person, detectors, self.reference, self.reporter, frames)
        if first and not self._detects_all and len(motion.track) > 1:
            self.reporter.info(
                f"{source.path.name}: people are numbered as they appear from frame {first} on; --person, --pair and "
                "--face-of use the numbers of the full video"
            )
        return motion


def _recorded_rate(folder: Path) -> Fraction | None:
    """The rate of a clip folder's video, None if its record does not have it."""
    with suppress(BadInput):
        if (rate := open_folder(folder).record.get("fps")) is not None:
            return Fraction(rate)
    return None


def _folder_audio(
    folder: Path, motion: Motion, start: int | None, stop: int | None, reporter: Reporter
) -> Audio | None:
    """The sound of a clip folder's video over the frames ``start:stop`` of its motion."""
    try:
        clip = open_folder(folder)
        return _audio_of(clip.source, motion, start, stop) if clip.record.get("audio") else None
    except BadInput as error:
        reporter.warning(f"{error.message}: the video will have no sound")
        return None


def _audio_of(source: Path, motion: Motion, start: int | None, stop: int | None) -> Audio | None:
    """The sound of ``source`` over the frames ``start:stop`` of its motion, if that has a clock."""
    if motion.times is None:
        return None
    times = motion.times[start:stop]
    return source, times[0], times[-1] + 1 / mean_rate(motion.times)


def _motion_beside(clip: Clip) -> Motion | None:
    """The motion beside our own skeleton video; None if that is another video's."""
    beside = clip.path.with_suffix(".npz")
    if not is_tagged(clip.tag) or not beside.is_file():
        return None
    motion = load_motion(beside)
    if len(motion) != clip.count or motion.size != clip.size:
        return None
    return motion
