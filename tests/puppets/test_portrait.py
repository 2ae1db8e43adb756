"""The portrait framing: large faces of bolder features that mostly face the viewer."""

import numpy as np
import pytest

from stableanimator_cli.puppets.sample import exaggerate_features, global_index, sample_identity
from stableanimator_cli.puppets.scene import sample_scene

SIZE = (256, 256)


def frames(framing, count=60):
    return [sample_scene("train", 3000 + n, framing=framing, size=SIZE, clip=1).frame(9.0 * n) for n in range(count)]


def test_faces_are_wide_and_mostly_seen():
    boxes = np.stack([frame.face_boxes[0] for frame in frames("portrait")])
    seen = np.isfinite(boxes).all(axis=1)
    width = (boxes[:, 2] - boxes[:, 0])[seen]
    assert seen.mean() >= 0.95
    assert np.median(width) >= 90
    assert (width >= 75).mean() >= 0.95


def test_people_are_the_same_with_larger_features():
    for n in range(200):
        who = sample_identity(global_index("train", n))
        bold = exaggerate_features(who)
        assert bold.number == who.number
        assert (bold.hair, bold.glasses, bold.beard, bold.iris) == (who.hair, who.glasses, who.beard, who.iris)
        assert bold.eye_width >= who.eye_width
        assert bold.brow_thickness > who.brow_thickness
        assert bold.mouth_width > who.mouth_width
        assert bold.eye_spacing > bold.eye_width, "eyes do not touch"
        assert bold.eye_spacing + bold.eye_width < who.face_width, "eyes stay within the face"


@pytest.mark.parametrize("size", [(64, 64), (256, 256), (96, 160)])
def test_a_portrait_is_the_same_scene_at_every_size(size):
    scene = sample_scene("val", 5, framing="portrait", size=SIZE)
    scale = np.array(size) / SIZE
    if size[0] == size[1]:
        small, large = scene.frame(4, size).keypoints[0, :18, :2], scene.frame(4).keypoints[0, :18, :2]
        np.testing.assert_allclose((small + 0.5) / scale, large + 0.5, atol=1e-3)
    else:
        assert scene.frame(4, size).image.shape == (size[1], size[0], 3)
