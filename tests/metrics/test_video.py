"""Clips never cross videos or gaps; features are streamed; distances say how they were made."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.linalg import sqrtm

from stableanimator_cli.errors import BadInput
from stableanimator_cli.metrics.frechet import Moments
from stableanimator_cli.metrics.result import METRICS
from stableanimator_cli.metrics.video import (
    STYLES,
    ClipFeatures,
    ClipStyle,
    ClipWindows,
    pooled,
    prepare_disco,
    prepare_none,
    prepare_puppet,
    prepare_resnet,
    set_distance,
)

NUMBERED = ClipStyle(metric="fvd_disco", length=4, stride=1, prepare=prepare_none, steps="as they are")


def numbered(value: int, side: int = 2) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def cut(frames: list[tuple[str, int]], length: int, stride: int) -> list[list[int]]:
    """The frame numbers of each clip; a frame carries its position in the list."""
    windows, clips = ClipWindows(length, stride), []
    for position, (video, index) in enumerate(frames):
        clip = windows.add(video, index, numbered(position))
        if clip is not None:
            clips.append([int(frame[0, 0, 0]) for frame in clip])
    return clips


def test_every_frame_with_enough_followers_starts_a_clip():
    assert cut([("a", n) for n in range(6)], 4, 1) == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]


def test_clips_side_by_side():
    assert cut([("a", n) for n in range(11)], 4, 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert cut([("a", n) for n in range(12)], 4, 6) == [[0, 1, 2, 3], [6, 7, 8, 9]]


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_no_clip_crosses_videos(stride):
    frames = [("a", n) for n in range(5)] + [("b", n) for n in range(5, 9)]  # numbers go on, the video does not
    assert cut(frames, 4, stride)[-1] == [5, 6, 7, 8]
    assert all(max(clip) < 5 or min(clip) >= 5 for clip in cut(frames, 4, stride))


@pytest.mark.parametrize("after", [6, 4, 0, 3])
def test_no_clip_crosses_a_gap(after):
    frames = [("a", n) for n in range(5)] + [("a", after + n) for n in range(4)]
    clips = cut(frames, 4, 1)
    assert clips == [[0, 1, 2, 3], [1, 2, 3, 4], [5, 6, 7, 8]]


def test_videos_that_take_turns_give_no_mixed_clips():
    frames = [(video, n) for n in range(8) for video in "ab"]
    assert cut(frames, 2, 1) == []


def test_a_clip_is_of_one_size():
    windows = ClipWindows(2, 1)
    assert windows.add("a", 0, numbered(0, 2)) is None
    assert windows.add("a", 1, numbered(1, 3)) is None
    assert windows.add("a", 2, numbered(2, 3)) is not None


def test_a_clip_is_not_changed_by_what_comes_later():
    windows = ClipWindows(2, 1)
    windows.add("a", 0, numbered(0))
    clip = windows.add("a", 1, numbered(1))
    assert clip is not None
    windows.add("a", 2, numbered(2))
    assert [int(frame[0, 0, 0]) for frame in clip] == [0, 1]


def test_frames_are_prepared_as_the_styles_say():
    frame = np.random.default_rng(0).integers(0, 256, (50, 37, 3), dtype=np.uint8)
    for prepare, side, back in (
        (prepare_disco, 224, lambda x: (x + 1) * 127.5),
        (prepare_resnet, 112, lambda x: x + np.array([114.7748, 107.7354, 99.4750])[:, None, None]),
    ):
        told = prepare(frame)
        assert told.shape == (3, side, side)
        assert told.dtype == np.float32
        plane = Image.fromarray(frame[..., 2].astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
        assert np.allclose(back(told)[2], np.asarray(plane), atol=1e-3)
        assert back(told).max() > 255.5  # neither rounded nor clipped
    assert prepare_none(frame) is frame


def test_puppets_are_halved_by_means_as_in_training():
    frame = np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    expected = frame.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1) / 127.5 - 1
    assert np.allclose(prepare_puppet(frame), expected, atol=1e-5)


def test_styles_are_metrics_with_their_parameters():
    assert list(STYLES) == ["fvd_disco", "fvd_stylegan_v", "fid_vid", "fvd_puppet", "jedi"]
    for name, style in STYLES.items():
        spec = METRICS[name]
        assert spec.network
        assert f"clips of {style.length} frames every {style.stride}" in spec.definition
    with pytest.raises(ValueError, match="clips of 0 frames"):
        replace(NUMBERED, length=0)


class Counting:
    """A network whose features are two numbers of the clip; remembers the batches that it was given."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        self.batches.append(len(clips))
        flat = clips.reshape(len(clips), -1).astype(np.float64)
        return np.stack([flat.mean(axis=1), flat.std(axis=1)], axis=1)


def stream(features: ClipFeatures, videos: dict[str, list[np.ndarray]]) -> ClipFeatures:
    for video, frames in videos.items():
        for index, frame in enumerate(frames):
            features.add(video, index, frame)
    features.finish()
    return features


def footage(seed: int, lengths: dict[str, int]) -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    return {name: list(rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)) for name, n in lengths.items()}


def test_features_come_in_batches_whatever_the_batch():
    videos = footage(0, {"a": 9, "b": 4, "c": 3})
    told = []
    for batch in (1, 3, 100):
        network = Counting()
        features = stream(ClipFeatures(NUMBERED, network, batch), videos)
        assert sum(network.batches) == 7
        assert max(network.batches) == min(batch, 7)
        assert {name: moments.count for name, moments in features.videos.items()} == {"a": 6, "b": 1, "c": 0}
        told.append(pooled(features.videos.values()).covariance)
    assert np.allclose(told[0], told[1], rtol=1e-12)
    assert np.allclose(told[0], told[2], rtol=1e-12)


def test_videos_of_two_sizes_do_not_share_a_batch():
    network = Counting()
    features = ClipFeatures(NUMBERED, network, 8)
    for video, side in (("a", 2), ("b", 3)):
        for index in range(4):
            features.add(video, index, numbered(index, side))
    features.finish()
    assert network.batches == [1, 1]


def test_parts_made_apart_are_the_whole():
    videos = footage(1, {"a": 9, "b": 7})
    whole = stream(ClipFeatures(NUMBERED, Counting()), videos)
    parts = [stream(ClipFeatures(NUMBERED, Counting()), {name: videos[name]}) for name in "ab"]
    parts[0].merge(parts[1])
    assert np.allclose(pooled(parts[0].videos.values()).covariance, pooled(whole.videos.values()).covariance)
    waiting = ClipFeatures(NUMBERED, Counting())
    for index in range(4):
        waiting.add("c", index, numbered(index))
    with pytest.raises(ValueError, match="finish both"):
        waiting.merge(parts[0])


def test_the_distance_is_the_formula_over_all_clips_and_says_how_it_was_made():
    ours, theirs = footage(2, {"a": 20, "b": 30, "short": 2}), footage(3, {"a": 25, "b": 25})
    sides = [stream(ClipFeatures(NUMBERED, Counting()), videos).videos for videos in (ours, theirs)]
    value = set_distance(NUMBERED, sides[0], sides[1], {"network": "counting"})
    rows = []
    for videos in (ours, theirs):
        clips = [np.stack(frames[n : n + 4]) for frames in videos.values() for n in range(len(frames) - 3)]
        rows.append(Counting()(np.stack(clips)))
    means, covariances = [r.mean(axis=0) for r in rows], [np.cov(r, rowvar=False) for r in rows]
    root = np.real(np.asarray(sqrtm(covariances[0] @ covariances[1])))
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert value.pooled == pytest.approx(float(expected), rel=1e-8)
    assert value.count == 44
    assert value.per_video == {}
    assert value.about == {
        "network": "counting",
        "clip_length": 4,
        "clip_stride": 1,
        "preprocessing": "as they are",
        "ddof": 1,
        "clips_predicted": 44,
        "clips_reference": 44,
        "dimensions": 2,
        "too_short": ["short"],
    }
    json.dumps(value.to_json(), allow_nan=False)
    same = set_distance(NUMBERED, sides[0], sides[0])
    assert same.pooled == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("length", [0, 3, 4])
def test_one_clip_or_none_is_an_error(length):
    one = stream(ClipFeatures(NUMBERED, Counting()), footage(4, {"a": length})).videos
    many = stream(ClipFeatures(NUMBERED, Counting()), footage(5, {"a": 9})).videos
    with pytest.raises(BadInput, match=f"predicted videos: found {max(0, length - 3)} clip"):
        set_distance(NUMBERED, one, many)
    with pytest.raises(BadInput, match="reference videos"):
        set_distance(NUMBERED, many, one)


def test_only_pictures_are_taken():
    features = ClipFeatures(NUMBERED, Counting())
    with pytest.raises(ValueError, match="uint8"):
        features.add("a", 0, np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="batches of 0"):
        ClipFeatures(NUMBERED, Counting(), 0)
    assert features.videos == {}


def test_memory_is_flat_in_the_length():
    features = ClipFeatures(NUMBERED, Counting(), 2)
    for index in range(400):
        features.add("a", index, numbered(index % 251))
    features.finish()
    kept = sum(array.size for array in features.videos["a"].to_arrays().values())
    assert features.videos["a"].count == 397
    assert kept <= 2 * 2 + 2 * 2 + 2 + 1
    assert Moments.from_arrays(features.videos["a"].to_arrays()).count == 397
