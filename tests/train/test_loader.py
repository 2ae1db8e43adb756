"""Batches: what is in them, and that they are the same however they are asked for."""

from __future__ import annotations

from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stableanimator_cli.clip_folder import FaceTable
from stableanimator_cli.engine.training.batch import Batch
from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.motion.geometry import resize_transform
from stableanimator_cli.motion.masks import face_mask
from stableanimator_cli.motion.skeleton import draw_frame, draw_skeleton
from stableanimator_cli.records import Motion
from stableanimator_cli.train.annotations import MotionAnnotations
from stableanimator_cli.train.dataset import Dataset, open_dataset
from stableanimator_cli.train.latent_cache import build_cache
from stableanimator_cli.train.loader import Loader, LoaderSettings
from tests.train.clip_folders import Networks, level, write_clip, write_upstream
from tests.waving import waving

SQUARE = LoaderSettings(sizes=((64, 64),), frames=4, stride=2)
MIXED = replace(SQUARE, sizes=((64, 64), (48, 96)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four square clips and a tall one. Not to be written into but for caches."""
    root = tmp_path_factory.mktemp("clips")
    for index in range(4):
        write_clip(root / f"c{index}", 12 + index)
    write_clip(root / "tall", 12, size=(40, 80))
    return root


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return open_dataset([folder], min_frames=4)


def _same(one: Batch, other: Batch) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Batch)]
    return all(
        torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) if isinstance(a, torch.Tensor) else a == b for a, b in pairs
    )


def test_what_a_batch_holds(dataset: Dataset) -> None:
    batch = Loader(dataset, SQUARE, seed=5, batch=3).batch(7)
    assert batch.index.tolist() == [21, 22, 23]
    assert (len(batch), batch.size) == (3, (64, 64))
    assert batch.pixels is not None
    assert batch.reference_pixels is not None
    assert batch.clip_pixels is not None
    assert batch.moments is batch.reference_moments is batch.image_token is None
    shapes = {name: (value.dtype, tuple(value.shape)) for name, value in _tensors(batch).items()}
    assert shapes == {
        "index": (torch.int64, (3,)),
        "frames": (torch.int64, (3, 4)),
        "pixels": (torch.float32, (3, 4, 3, 64, 64)),
        "reference_pixels": (torch.float32, (3, 3, 64, 64)),
        "clip_pixels": (torch.float32, (3, 3, 224, 224)),
        "face": (torch.float32, (3, 512)),
        "has_face": (torch.bool, (3,)),
        "poses": (torch.uint8, (3, 4, 3, 64, 64)),
        "mask": (torch.float32, (3, 4, 1, 8, 8)),
        "reference_box": (torch.float32, (3, 4)),
    }
    assert batch.frames.diff(dim=1).unique().tolist() == [2]
    grey = (batch.pixels.mean(dim=(2, 3, 4)) + 1) * 127.5
    np.testing.assert_allclose(grey, np.vectorize(level)(batch.frames), atol=2)
    # The vector of frame n is n + 1, the grey of a picture tells its number: the face is the reference's.
    shown = ((batch.reference_pixels.mean(dim=(1, 2, 3)) + 1) * 127.5 - 20) / 5
    np.testing.assert_allclose(batch.face[:, 0] - 1, shown, atol=0.4)


def test_a_part_of_a_batch_is_its_samples(dataset: Dataset) -> None:
    batch = Loader(dataset, SQUARE, seed=5, batch=4).batch(0)
    part = batch.part(1, 3)
    assert (part.clips, part.index.tolist(), part.moments) == (batch.clips[1:3], [1, 2], None)
    assert torch.equal(part.poses, batch.poses[1:3])


def test_a_batch_follows_from_seed_and_step_alone(dataset: Dataset) -> None:
    one, other = (Loader(dataset, MIXED, seed=5, batch=2) for _ in range(2))
    batches = [one.batch(step) for step in range(5)]
    assert all(_same(other.batch(step), batches[step]) for step in (4, 0, 2, 3, 1))
    assert not _same(Loader(dataset, MIXED, seed=6, batch=2).batch(0), batches[0])
    assert {batch.size for batch in batches} == {(64, 64), (48, 96)}


def test_ranks_share_the_batch_that_one_would_make(dataset: Dataset) -> None:
    whole = Loader(dataset, MIXED, seed=1, batch=4).batch(3)
    for rank in range(2):
        share = Loader(dataset, MIXED, seed=1, batch=4, rank=rank, world=2).batch(3)
        assert _same(share, whole.part(2 * rank, 2 * rank + 2))
    with pytest.raises(ConfigError, match="--batch: found 4, expected a multiple of the 3 processes"):
        Loader(dataset, MIXED, seed=1, batch=4, world=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_threads_change_nothing(dataset: Dataset, workers: int) -> None:
    loader = Loader(dataset, MIXED, seed=2, batch=2, workers=workers)
    alone = Loader(dataset, MIXED, seed=2, batch=2)
    made = list(loader.stream(3, 8))
    assert len(made) == 5
    assert all(_same(batch, alone.batch(step)) for step, batch in enumerate(made, start=3))


def test_workers_give_what_there_is_and_the_error_in_its_place(tmp_path: Path) -> None:
    """The video of one clip goes away after the start: batches before it arrive, then file and hint as raised."""
    for name in ("a", "b", "c", "d"):
        write_clip(tmp_path / name, 12)
    found = open_dataset([tmp_path], min_frames=4)
    loader = Loader(found, SQUARE, seed=0, batch=1, workers=1)
    before = [loader.batch(step) for step in range(4)]
    lost = before[2].clips[0]
    (tmp_path / lost / "source.mp4").unlink()
    stream = loader.stream(0, 4)
    assert _same(next(stream), before[0])
    assert _same(next(stream), before[1])
    with pytest.raises(BadInput, match=rf"{lost}: found neither a source") as caught:
        next(stream)
    assert "bring the video back" in str(caught.value.hint)


def test_a_stream_may_be_left_early(dataset: Dataset) -> None:
    stream = Loader(dataset, SQUARE, seed=2, batch=2, workers=2).stream(0, 1000)
    assert next(stream).index.tolist() == [0, 1]
    stream.close()  # type: ignore[attr-defined]


def _motion_of(name: str) -> Motion:
    return waving(12, (40, 80), Fraction(8)) if name == "tall" else waving(12 + int(name[1:]), (64, 64), Fraction(8))


def test_skeletons_are_those_that_animate_draws(dataset: Dataset) -> None:
    batch = Loader(dataset, SQUARE, seed=3, batch=5).batch(0)
    assert "tall" in batch.clips
    for place, name in enumerate(batch.clips):
        motion = resize_transform(_motion_of(name).size, (64, 64), "stretch").transform_motion(_motion_of(name))
        for k, frame in enumerate(batch.frames[place].tolist()):
            assert np.array_equal(batch.poses[place, k].numpy().transpose(1, 2, 0), draw_frame(motion, frame))


def test_masks_are_those_of_the_reference_implementation(dataset: Dataset) -> None:
    """Pillow's resize to the size of the pictures, then the top-left pixel of every cell, as 0..1."""
    batch = Loader(dataset, replace(SQUARE, sizes=((128, 128),)), seed=3, batch=1).batch(1)
    motion = _motion_of(batch.clips[0])
    for k, frame in enumerate(batch.frames[0].tolist()):
        whole = Image.fromarray(face_mask(motion.face_boxes[frame], motion.size)).resize((128, 128))
        np.testing.assert_array_equal(batch.mask[0, k, 0], np.asarray(whole)[::8, ::8].astype(np.float32) / 255)
    assert 0 < batch.mask.mean() < 0.2


@pytest.mark.parametrize("mode", ["stretch", "crop", "pad"])
def test_pictures_points_masks_and_boxes_go_the_same_way(tmp_path: Path, mode: Any) -> None:
    """A square clip at 64x128: the face box in the reference is the mask's place, whatever the geometry."""
    write_clip(tmp_path / "a", 6)
    settings = replace(SQUARE, sizes=((64, 128),), resize=mode, frames=2, stride=1, reference="any")
    batch = Loader(open_dataset([tmp_path], min_frames=2), settings, seed=0, batch=1).batch(0)
    rows, columns = batch.mask[0, 0, 0].nonzero().T
    x0, y0, x1, y1 = batch.reference_box[0].tolist()
    assert abs(rows.min() - y0) < 1.5
    assert abs(rows.max() + 1 - y1) < 1.5
    assert abs(columns.min() - x0) < 1.5
    assert abs(columns.max() + 1 - x1) < 1.5
    head = batch.poses[0, 0].amax(dim=0).nonzero()
    assert abs(head[:, 0].min() / 8 - y0) < 2.5
    assert batch.pixels is not None
    assert (batch.pixels[0, 0, :, :24] == -1).all() == (mode == "pad")


def test_a_reference_without_a_face_lends_the_best_of_the_clip(tmp_path: Path) -> None:
    write_clip(tmp_path / "some", 12, faces=[3, 7])
    write_clip(tmp_path / "none", 12, faces=[])
    batch = Loader(open_dataset([tmp_path], min_frames=4), SQUARE, seed=0, batch=40).batch(0)
    for place, name in enumerate(batch.clips):
        assert bool(batch.has_face[place]) == (name == "some")
        assert float(batch.face[place].max()) in ((8.0, 4.0) if name == "some" else (0.0,))
    assert 8.0 in batch.face[:, 0]
    # No detector saw a face in "none": the face of the keypoints is masked instead.
    assert all(batch.mask[place].max() > 0 for place, name in enumerate(batch.clips) if name == "none")
    assert not batch.reference_box.isnan().any()


def test_frames_without_a_face_have_an_empty_mask(tmp_path: Path) -> None:
    write_clip(tmp_path / "some", 12, faces=[3])
    batch = Loader(open_dataset([tmp_path], min_frames=4), SQUARE, seed=0, batch=6).batch(0)
    lit = batch.mask.amax(dim=(2, 3, 4)) > 0
    assert torch.equal(lit, batch.frames == 3)
    assert 0 < lit.sum() < lit.numel()


def test_pictures_of_the_reference_implementation_give_the_same(tmp_path: Path) -> None:
    """The same person as clip folder and as pictures: pixels but for the codec, skeletons and masks to the bit."""
    write_clip(tmp_path / "ours/00001", 12)
    write_upstream(tmp_path / "theirs/00001", 12, faceless=range(4))
    batches = []
    for name in ("ours", "theirs"):
        loader = Loader(open_dataset([tmp_path / name], min_frames=4), SQUARE, seed=4, batch=6)
        batches.append((loader, loader.batch(0)))
    (_, ours), (loader, theirs) = batches
    assert torch.equal(ours.frames, theirs.frames)
    assert torch.equal(ours.poses, theirs.poses)
    seen = ours.frames > 3  # white all over is no face
    assert torch.equal(ours.mask[seen], theirs.mask[seen])
    assert (~seen).any()
    assert theirs.mask[~seen].sum() == 0
    assert ours.pixels is not None
    assert theirs.pixels is not None
    torch.testing.assert_close(ours.pixels, theirs.pixels, atol=0.03, rtol=0)
    assert not theirs.has_face.any()
    assert theirs.reference_box.isnan().all()
    assert loader.calls["frames_decoded"] <= 6 * 5  # only the frames needed are read


def test_with_caches_nothing_is_decoded(folder: Path, dataset: Dataset) -> None:
    plain = Loader(dataset, MIXED, seed=8, batch=2)
    build_cache(plain.buckets, Networks().encoders())
    for clip in dataset.clips:
        (clip.path / "source.mp4").rename(clip.path / "elsewhere.mp4")
    try:
        settings = replace(MIXED, vae="vae", image_encoder="clip")
        kept, bare = (Loader(dataset, replace(settings, memory=memory), seed=8, batch=2) for memory in (1 << 24, 0))
        batches = [kept.batch(step) for step in range(8)]
        assert kept.calls["frames_decoded"] == 0
        assert all(_same(bare.batch(step), batches[step]) for step in range(8))
        assert bare.calls["skeletons_drawn"] == 8 * 2 * 4 > kept.calls["skeletons_drawn"]
    finally:
        for clip in dataset.clips:
            (clip.path / "elsewhere.mp4").rename(clip.path / "source.mp4")
    for step, batch in enumerate(batches[:3]):
        other = plain.batch(step)
        assert (batch.pixels, batch.clip_pixels, other.moments) == (None, None, None)
        assert torch.equal(batch.poses, other.poses)
        assert batch.moments is not None
        assert batch.reference_moments is not None
        assert batch.image_token is not None
        assert other.pixels is not None
        assert other.reference_pixels is not None
        assert other.clip_pixels is not None
        networks = Networks()
        latents = networks.latents(other.pixels.flatten(0, 1)).unflatten(0, other.pixels.shape[:2])
        torch.testing.assert_close(batch.moments, latents, atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(
            batch.reference_moments, networks.latents(other.reference_pixels), atol=2e-3, rtol=1e-3
        )
        torch.testing.assert_close(batch.image_token, networks.tokens(other.clip_pixels)[:, None], atol=2e-3, rtol=1e-3)


def test_latents_alone_leave_one_frame_to_decode(dataset: Dataset) -> None:
    loader = Loader(dataset, MIXED, seed=8, batch=1)
    build_cache(loader.buckets, Networks().encoders())
    loader = Loader(dataset, replace(MIXED, vae="vae"), seed=8, batch=1)
    batch = loader.batch(0)
    assert batch.moments is not None
    assert batch.clip_pixels is not None
    assert (batch.pixels, batch.image_token) == (None, None)
    assert loader.calls["frames_decoded"] == 1


def test_a_missing_cache_is_named(tmp_path: Path) -> None:
    write_clip(tmp_path / "a", 12)
    found = open_dataset([tmp_path], min_frames=4)
    with pytest.raises(BadInput, match=r"latents-64x64.safetensors: found no file") as caught:
        Loader(found, replace(SQUARE, vae="v"), seed=0, batch=1).batch(0)
    assert "make it with --cache latents" in str(caught.value.hint)


def test_pictures_are_samples_of_one_frame(dataset: Dataset) -> None:
    settings = replace(SQUARE, frames=1, reference="any")
    batch = Loader(dataset, settings, seed=0, batch=3).batch(0)
    assert batch.poses.shape == (3, 1, 3, 64, 64)
    assert batch.frames.unique().numel() > 1


def test_everybody_in_a_frame_is_drawn() -> None:
    """Two people: the skeletons of both, as animate has them."""
    one = waving(2, (64, 64))
    points = np.concatenate([one.keypoints, one.keypoints * np.float32([0.5, 0.5, 1])], axis=1)
    boxes = np.concatenate([one.face_boxes, one.face_boxes / 2], axis=1)
    both = replace(
        one, keypoints=points, face_boxes=boxes, present=np.ones((2, 2), bool), track=np.array([0, 1], np.int64)
    )
    seen = MotionAnnotations(both, FaceTable.of([], "bgr"))
    assert np.array_equal(seen.skeleton(0, (64, 64), "stretch"), draw_skeleton(points[0], (64, 64)))
    np.testing.assert_array_equal(seen.face_box(0), boxes[0, 0])  # of the larger one


def _tensors(batch: Batch) -> dict[str, torch.Tensor]:
    found = {field.name: getattr(batch, field.name) for field in fields(Batch)}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
