"""Draw people on a backdrop, with ground truth: position and visibility of every keypoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stableanimator_cli.puppets import canvas as c
from stableanimator_cli.puppets.body import Person, PersonGeometry, draw_person
from stableanimator_cli.puppets.face import MIN_VISIBILITY
from stableanimator_cli.puppets.head import HALF_HEIGHT
from stableanimator_cli.puppets.moves import SIDES

NUM_KEYPOINTS = 134
_FEET, _FACE = slice(18, 24), slice(24, 92)
_HAND = {"left": slice(92, 113), "right": slice(113, 134)}
_EARS_SEEN = -0.15
_MIN_FACE_FRACTION = 0.25  # of the 51 inner points that must be visible for a face


@dataclass(frozen=True, slots=True, kw_only=True)
class PuppetFrame:
    """A drawn image with its ground truth.

    * ``image`` uint8[h,w,3] RGB.
    * ``keypoints`` float32[p,134,3] in pixels: body 0-17 (OpenPose order), feet 18-23 (left big toe, small toe, heel,
      then right), face 24-91 (iBUG order), left hand 92-112, right hand 113-133. The score is 1 for a visible point, 0
      for one that is turned away, covered or outside; its position is exact all the same.
    * ``face_boxes`` float32[p,4] (x0, y0, x1, y1) within the image and ``landmarks`` float32[p,5,2] (left and right eye
      in the image, nose tip, mouth corners): NaN if no face is visible.
    * ``identities`` int64[p]: numbers of the people. ``depth`` int64[p]: order from the viewer, 0 nearest.
    """

    image: npt.NDArray[np.uint8]
    keypoints: npt.NDArray[np.float32]
    face_boxes: npt.NDArray[np.float32]
    landmarks: npt.NDArray[np.float32]
    identities: npt.NDArray[np.int64]
    depth: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Place of a person: base of the neck in output pixels, pixels per head height, rank from the viewer."""

    neck: tuple[float, float]
    unit: float
    rank: int


def _allowed_labels() -> npt.NDArray[np.bool_]:
    """Body parts that may be on top of a visible point, bool[134, PARTS]."""
    allowed = np.zeros((NUM_KEYPOINTS, c.PARTS), bool)
    allowed[_FACE, [[c.HEAD], [c.HAIR]]] = True
    allowed[[0, 14, 15]] = allowed[24]
    allowed[[16, 17]] = allowed[24]
    allowed[[16, 17], c.HAIR_BACK] = True
    allowed[[1, 2, 5, 8, 11], 1:] = True  # inside the body: only other people cover them
    for side, first_arm, first_leg in (("right", 2, 8), ("left", 5, 11)):
        upper, lower, hand = c.ARM[side]
        allowed[first_arm + 1, [upper, lower, hand]] = True
        allowed[first_arm + 2, [lower, hand]] = True
        allowed[_HAND[side], hand] = True
        allowed[_HAND[side].start, lower] = True
        leg, foot = c.LEG[side]
        allowed[first_leg + 1, [leg, c.SKIRT]] = True
        allowed[first_leg + 2, [leg, foot]] = True
    allowed[18:21, c.LEG["left"][1]] = True
    allowed[21:24, c.LEG["right"][1]] = True
    return allowed


_ALLOWED = _allowed_labels()
_NEIGHBOURS = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], float)


def _keypoints(drawn: PersonGeometry) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The 134 keypoints in canvas units, float[134,2], and whether each faces the viewer."""
    joints, face = drawn.joints, drawn.face
    xy = np.empty((NUM_KEYPOINTS, 2))
    xy[_FACE] = face.points
    xy[0] = face.points[30]
    xy[2:5], xy[5:8] = joints.arm["right"][:, :2], joints.arm["left"][:, :2]
    xy[1] = 0.5 * (xy[2] + xy[5])
    xy[8:11], xy[11:14] = joints.leg["right"][:, :2], joints.leg["left"][:, :2]
    xy[14], xy[15] = face.points[36:42].mean(axis=0), face.points[42:48].mean(axis=0)
    xy[16:18] = face.ears
    xy[18:21], xy[21:24] = joints.foot["left"][:, :2], joints.foot["right"][:, :2]
    for side in SIDES:
        xy[_HAND[side]] = joints.hand[side][:, :2]
    turned = np.ones(NUM_KEYPOINTS, bool)
    turned[_FACE] = face.visibility > MIN_VISIBILITY
    turned[0], turned[14], turned[15] = (
        face.visibility[30] > MIN_VISIBILITY,
        face.visibility[36:42].mean() > MIN_VISIBILITY,
        face.visibility[42:48].mean() > MIN_VISIBILITY,
    )
    turned[16:18] = face.ears_visibility > _EARS_SEEN
    return xy, turned


def draw_people(
    backdrop: np.ndarray, size: tuple[int, int], factor: int, people: Sequence[Person], poses: Sequence[np.ndarray],
    placements: Sequence[Placement], detail: float = 1.0,
) -> PuppetFrame:  # fmt: skip
    """Draw people onto ``backdrop`` uint8[h*factor, w*factor, 3], which is overwritten. ``detail``: see ``Canvas``."""
    canvas = c.Canvas(size, backdrop, factor, detail)
    count = len(people)
    drawn: list[PersonGeometry | None] = [None] * count
    for n in sorted(range(count), key=lambda k: -placements[k].rank):
        canvas.set_transform(placements[n].unit, placements[n].neck, n)
        drawn[n] = draw_person(canvas, people[n], poses[n])

    width, height = size
    keypoints = np.zeros((count, NUM_KEYPOINTS, 3), np.float32)
    boxes = np.full((count, 4), np.nan, np.float32)
    landmarks = np.full((count, 5, 2), np.nan, np.float32)
    pixel = min(size) / c.LABEL_MAP_SIDE  # of the label map
    for n, seen in enumerate(drawn):
        if seen is None:
            continue
        canvas.set_transform(placements[n].unit, placements[n].neck, n)
        xy, turned = _keypoints(seen)
        pixels = canvas.to_pixels(xy)
        # The outline of a limb or jaw often runs through its point: neighbours on the label map count too.
        owners = canvas.labels_at((pixels[:, None] + _NEIGHBOURS * pixel).reshape(-1, 2)).reshape(NUM_KEYPOINTS, 5)
        part = owners - n * c.PARTS
        own = (part > 0) & (part < c.PARTS) & (owners >= 0)
        on_top = np.any(own & _ALLOWED[np.arange(NUM_KEYPOINTS)[:, None], np.where(own, part, 0)], axis=1)
        if seen.view.facing < 0:  # hair hides an ear from behind only
            on_top[16:18] &= (part[16:18] == c.HEAD).any(axis=1)
        inside = ((pixels >= 0) & (pixels <= (width - 1, height - 1))).all(axis=1)
        visible = turned & on_top & inside
        keypoints[n, :, :2], keypoints[n, :, 2] = pixels, visible
        if visible[_FACE][17:].mean() >= _MIN_FACE_FRACTION:
            boxes[n] = _face_box(canvas, seen, pixels[_FACE], size)
            landmarks[n] = pixels[[14, 15, 0, _FACE.start + 48, _FACE.start + 54]]
    return PuppetFrame(
        image=canvas.finish(),
        keypoints=keypoints,
        face_boxes=boxes,
        landmarks=landmarks,
        identities=np.array([person.identity.number for person in people], np.int64),
        depth=np.array([placement.rank for placement in placements], np.int64),
    )


def _face_box(canvas: c.Canvas, seen: PersonGeometry, face: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """From the middle of the forehead to the chin and from cheek to cheek, clipped to the image."""
    view = seen.view
    brow = view.head.identity.face_width * 0.6
    forehead = np.array([[-brow, -0.44], [0, -0.48], [brow, -0.44]]) * (1, HALF_HEIGHT)
    around = np.concatenate([face, canvas.to_pixels(view.project(view.head.on_front(forehead))[:, :2])])
    limit = np.array(size, float) - 1
    return np.concatenate([np.clip(around.min(axis=0), 0, limit), np.clip(around.max(axis=0), 0, limit)])
