"""Skeleton pictures packed in memory: any frame at any time, in any order."""

from __future__ import annotations

import numpy as np
import pytest

from stableanimator_cli.animate.pose_frames import PoseFrames
from tests.media_samples import noise
from tests.tiny import skeletons

SIZE = (48, 32)


def same(held: PoseFrames, pictures: list[np.ndarray]) -> None:
    assert len(held) == len(pictures)
    for index, picture in enumerate(pictures):
        np.testing.assert_array_equal(held.frame(index), picture)


def test_every_picture_comes_back_as_it_went_in_whenever_asked():
    pictures = noise(4, SIZE)
    held = PoseFrames(SIZE, pictures)
    same(held, pictures)
    same(held, pictures)
    turned = PoseFrames((32, 48), [np.swapaxes(pictures[0], 0, 1)])  # views are taken as they look
    np.testing.assert_array_equal(turned.frame(0), np.swapaxes(pictures[0], 0, 1))


def test_reordered_pictures_are_the_same_ones_some_twice():
    pictures = noise(4, SIZE)
    held = PoseFrames(SIZE, pictures)
    same(held.reordered([2, 2, 0]), [pictures[2], pictures[2], pictures[0]])
    same(held.reordered([3, 1]).reordered([1, 0, 0]), [pictures[1], pictures[3], pictures[3]])
    same(held, pictures)


def test_an_anchor_goes_in_front_and_leaves_the_others_alone():
    anchor, *pictures = noise(5, SIZE)
    held = PoseFrames(SIZE, pictures).reordered([1, 0])
    same(held.with_anchor(anchor), [anchor, pictures[1], pictures[0]])
    same(held, [pictures[1], pictures[0]])


def test_skeletons_take_a_small_part_of_their_pixels():
    (picture,) = skeletons(1, (256, 256))
    held = PoseFrames((256, 256), [picture])
    assert sum(map(len, held._packed)) < picture.nbytes / 20


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"shape \(48, 32, 3\), expected \(32, 48, 3\)"):
        PoseFrames(SIZE, noise(1, (32, 48)))
