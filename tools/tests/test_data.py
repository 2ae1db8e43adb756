"""Training data of the small networks: correct positions, reproducible, drawn once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from stableanimator_cli.puppets.scene import sample_scene
from tools.figure_networks import data as d
from tools.figure_networks.augment import degrade


def _count(shard: int, base: int) -> d.Arrays:
    return {"n": np.array([base + shard, base - shard])}


def test_a_cache_draws_only_missing_shards_and_loads_in_order(tmp_path: Path) -> None:
    recipe = d.Recipe(name="numbers", shards=3, draw=partial(_count, base=10))
    lines: list[str] = []
    recipe.prepare(tmp_path, 1, lines.append)
    assert lines == ["numbers: drawn 3 of 3 shards"]
    assert_array_equal(recipe.load(tmp_path)["n"], [10, 10, 11, 9, 12, 8])
    recipe.path(tmp_path, 1).unlink()
    modified = recipe.path(tmp_path, 2).stat().st_mtime_ns
    recipe.prepare(tmp_path, 1, lines.append)
    assert recipe.path(tmp_path, 2).stat().st_mtime_ns == modified
    recipe.prepare(tmp_path, 1, lambda text: pytest.fail(f"nothing is missing, but: {text}"))
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [f"numbers-0000{n}.npz" for n in range(3)]


def test_frames_are_reproducible_and_contain_their_people() -> None:
    first, again = (d.draw_frames(3, split="val", scenes=2, times=2) for _ in range(2))
    for key, array in first.items():
        assert_array_equal(array, again[key])
    for image, (width, height), keypoints in zip(first["image"], first["size"], first["keypoints"], strict=True):
        assert (image[height:] == 114).all()
        assert (image[:, width:] == 114).all()
        for points in keypoints[~np.isnan(keypoints[:, 0, 0])]:
            seen = points[points[:, 2] > 0, :2]
            assert ((seen >= 0) & (seen <= (width - 1, height - 1))).all()


def test_a_persons_box_contains_all_visible_points_and_the_hair() -> None:
    frame = sample_scene("val", 5, framing="whole", size=(96, 128)).reference()
    points = frame.keypoints[0]
    x0, y0, x1, y1 = d.person_box(points, (96, 128))
    seen = points[points[:, 2] > 0, :2]
    assert ((seen >= (x0, y0)) & (seen <= (x1, y1))).all()
    assert y0 < frame.face_boxes[0, 1]
    assert 0 <= x0 < x1 <= 95
    head = d.head_size(points)
    assert 1.1 < head / (frame.face_boxes[0, 3] - frame.face_boxes[0, 1]) < 1.9


def test_a_face_lands_on_the_template() -> None:
    angle, scale, shift = 0.3, 1.7, np.array([20.0, -4.0])
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = d.similarity(d.TEMPLATE @ rotation.T + shift, d.TEMPLATE)
    assert_allclose((d.TEMPLATE @ rotation.T + shift) @ matrix[:, :2].T + matrix[:, 2], d.TEMPLATE, atol=1e-9)

    frame = sample_scene("val", 8, size=(160, 160)).reference()
    face = d.aligned(frame.image, frame.landmarks[0])
    assert face.shape == (112, 112, 3)
    matrix = d.similarity(frame.landmarks[0].astype(float), d.TEMPLATE)
    placed = frame.landmarks[0] @ matrix[:, :2].T + matrix[:, 2]
    assert np.linalg.norm(placed - d.TEMPLATE, axis=1).max() < 14  # drawn faces are not shaped like the template's


def test_faces_of_one_person_come_from_several_clips() -> None:
    data = d.draw_faces(0, first=40, split="val", people=2, clips=2, times=2)
    assert data["image"].shape[1:] == (128, 128, 3)
    assert set(data["person"]) == {40, 41}
    assert set(data["clip"]) == {0, 1}


def test_clips_have_the_labels_of_their_scenes() -> None:
    data = d.draw_clips(0, split="val", scenes=2)
    assert data["video"].shape == (2, 8, 128, 128, 3)
    behaviour, hair, top = data["label"][0]
    scene = sample_scene("val", 0, behaviour=d.LABELS["behaviour"][behaviour], clip=11)
    assert scene.people[0].identity.hair == d.LABELS["hair"][hair]
    assert scene.people[0].clothes.top == d.LABELS["top"][top]


def test_degraded_images_are_still_images() -> None:
    image = sample_scene("val", 1, size=(64, 64)).reference().image
    changed = 0
    for seed in range(20):
        out = degrade(image, np.random.default_rng(seed))
        assert out.shape == image.shape
        assert out.dtype == np.float32
        assert out.min() >= 0
        assert out.max() <= 255
        assert np.abs(out - image).mean() < 45
        changed += not np.array_equal(out, image)
    assert 5 < changed < 20
