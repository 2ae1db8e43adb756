"""CLIP-I and DINO: the published preprocessing, cosines of planted embeddings, and streams in any batches."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stableanimator_cli.metrics.result import METRICS
from stableanimator_cli.metrics.similarity import IMAGE_STYLES, ReferenceSimilarity

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def frame(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def colours(images: np.ndarray) -> np.ndarray:
    """An embedding whose cosines are known: the mean of each channel in 0..1 before CLIP's normalisation."""
    return images.mean(axis=(2, 3), dtype=np.float64) * np.array(CLIP[1]) + np.array(CLIP[0])


def plain(*rgb: int) -> np.ndarray:
    return np.full((40, 30, 3), rgb, np.uint8)


@pytest.mark.parametrize(
    ("shape", "clip_size", "dino_size"),
    [  # sizes as (width, height): torchvision cuts the longer side down to a whole number
        ((1024, 576), (224, 398), (256, 455)),
        ((300, 451), (336, 224), (384, 256)),
        ((64, 64), (224, 224), (256, 256)),
    ],
)
def test_preprocessing_is_the_published_one(shape, clip_size, dino_size):
    image = frame(*shape)
    for metric, size, (mean, std) in (("clip_i", clip_size, CLIP), ("dino", dino_size, IMAGENET)):
        resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        top, left = (int(np.rint((side - 224) / 2)) for side in resized.shape[:2])
        expected = (resized[top : top + 224, left : left + 224] / 255 - np.array(mean)) / np.array(std)
        actual = IMAGE_STYLES[metric].prepare(image)
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected.transpose(2, 0, 1), atol=1e-5)


def test_a_planted_mixture_has_its_cosine_and_identical_pictures_have_one():
    similarity = ReferenceSimilarity("clip_i", colours, batch=2)
    similarity.begin(plain(200, 0, 0))
    for image in (plain(200, 0, 0), plain(0, 100, 0), plain(60, 80, 0)):
        similarity.add(image)
    assert similarity.finish() == pytest.approx([1, 0, 0.6], abs=1e-5)
    for metric in IMAGE_STYLES:
        similarity = ReferenceSimilarity(metric, lambda batch: batch[:, :, ::16, ::16].reshape(len(batch), -1))
        similarity.begin(frame(70, 50))
        similarity.add(frame(70, 50))
        similarity.add(frame(70, 50, seed=1))
        same, other = similarity.finish()  # type: ignore[misc]
        assert same == pytest.approx(1, abs=1e-12)
        assert other < 0.9


def test_batches_and_earlier_videos_change_nothing():
    images = [frame(30, 40, seed) for seed in range(5)]
    curves = []
    for batch in (1, 2, 8):
        similarity = ReferenceSimilarity("clip_i", colours, batch=batch)
        similarity.begin(plain(9, 9, 9))
        similarity.add(plain(1, 200, 3))  # a video that is dropped
        similarity.begin(images[0])
        for image in images:
            similarity.add(image)
        curves.append(similarity.finish())
    np.testing.assert_allclose(curves[1:], [curves[0]] * 2, atol=1e-12)
    assert curves[0].shape == (5,)


def test_nothing_is_computed_without_a_reference():
    def never(batch: np.ndarray) -> np.ndarray:
        raise AssertionError("no reference, no embedding")

    similarity = ReferenceSimilarity("dino", never)
    similarity.begin(None)
    similarity.add(plain(1, 2, 3))
    assert similarity.finish() is None


def test_both_are_metrics_that_are_better_if_higher():
    for name, network in (("clip_i", "clip_image"), ("dino", "dino")):
        assert (METRICS[name].better, METRICS[name].range, METRICS[name].network) == ("higher", "-1..1", network)
        assert "DreamBooth" in METRICS[name].source
