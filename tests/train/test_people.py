"""Training with several people: their vectors, regions and faces in a batch, and which references are drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stableanimator_cli.config.train import TrainConfig
from stableanimator_cli.engine.conditioning import PeopleFaces, degrade_faces
from stableanimator_cli.engine.training import step_inputs
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.records import Face
from stableanimator_cli.train import validation
from stableanimator_cli.train.dataset import Dataset, load_annotations, open_dataset
from stableanimator_cli.train.loader import Loader, LoaderSettings
from stableanimator_cli.train.people import SamplePeople, same_arrangement, stack_people
from stableanimator_cli.train.sampling import choose_frames, keyed_rng
from stableanimator_cli.train.validation_people import csim_of_faces, faces_of
from tests.engine.training_samples import opened
from tests.train.clip_folders import write_clip, write_pair

SIZE = (64, 64)
FRAMES = 9


@pytest.fixture
def mixed(tmp_path: Path) -> Dataset:
    write_pair(tmp_path / "a-pair", FRAMES)
    write_clip(tmp_path / "b-alone", FRAMES)
    return open_dataset([tmp_path], min_frames=2)


def load(dataset: Dataset, batch: int, **settings: object) -> Loader:
    chosen = LoaderSettings(sizes=(SIZE,), frames=2, stride=2, **settings)  # type: ignore[arg-type]
    return Loader(dataset, chosen, seed=0, batch=batch)


def test_each_person_has_their_vector_region_and_face(mixed: Dataset) -> None:
    batch = load(mixed, 2, people=2).batch(0)
    assert batch.regions is not None
    assert batch.face.shape == (2, 2, 512)
    assert batch.regions.shape == (2, 2, 3, 8, 8)
    assert batch.reference_box.shape == (2, 2, 4)
    pair = batch.clips.index("a-pair")
    larger, smaller = batch.face[pair, :, 0].tolist()
    assert larger - smaller == 100  # the right person comes first, both from the reference's frame
    assert batch.has_face[pair].tolist() == [True, True]
    assert torch.allclose(batch.regions.sum(dim=2), torch.ones(2, 2, 8, 8), atol=1e-6)
    columns = batch.regions[pair, 0].sum(dim=1)  # [people, width]
    assert columns[0, 4:].sum() > 5 * columns[0, :3].sum()
    assert columns[1, :4].sum() > 5 * columns[1, 5:].sum()
    assert batch.reference_box[pair, 0, 0] > batch.reference_box[pair, 1, 2]


def test_one_person_in_a_batch_with_others_has_the_whole_frame(mixed: Dataset) -> None:
    batch = load(mixed, 2, people=3).batch(0)
    assert batch.regions is not None
    alone = batch.clips.index("b-alone")
    assert batch.has_face[alone].tolist() == [True, False]
    assert bool((batch.regions[alone, :, 0] == 1).all())
    assert bool((batch.regions[alone, :, 1:] == 0).all())
    assert bool(batch.reference_box[alone, 1].isnan().all())


def test_one_person_is_the_default_and_gives_no_regions(mixed: Dataset) -> None:
    default, one = load(mixed, 2).batch(0), load(mixed, 2, people=1).batch(0)
    assert default.regions is None
    assert default.face.shape == (2, 512)
    assert torch.equal(default.face, one.face)
    several = load(mixed, 2, people=2).batch(0)
    assert torch.equal(several.frames, default.frames)
    assert torch.equal(several.face[:, 0], default.face)
    assert torch.equal(several.reference_box[:, 0], default.reference_box)


def test_a_batch_of_one_person_each_is_that_of_a_training_of_one(tmp_path: Path) -> None:
    write_clip(tmp_path / "alone", FRAMES)
    dataset = open_dataset([tmp_path], min_frames=2)
    one, many = load(dataset, 2).batch(3), load(dataset, 2, people=4).batch(3)
    assert many.regions is None
    for name in ("face", "has_face", "reference_box", "frames", "mask", "poses"):
        assert torch.equal(getattr(one, name), getattr(many, name)), name


def test_somebody_without_a_known_face_has_none(tmp_path: Path) -> None:
    write_pair(tmp_path / "pair", FRAMES, known=(0,))
    batch = load(open_dataset([tmp_path], min_frames=2), 1, people=2).batch(0)
    assert batch.regions is not None
    assert batch.has_face.tolist() == [[False, True]]
    assert bool((batch.face[0, 0] == 0).all())
    assert float(batch.regions[0, :, 0].sum()) > 1  # but a place


def test_a_part_of_a_batch_holds_its_regions(mixed: Dataset) -> None:
    batch = load(mixed, 2, people=2).batch(0)
    part = batch.part(1, 2)
    assert part.regions is not None
    assert batch.regions is not None
    assert torch.equal(part.regions, batch.regions[1:2])


def test_fewer_people_are_padded_before_nobody() -> None:
    vector, box = np.ones(512, np.float32), np.zeros(4, np.float32)
    regions = np.full((1, 3, 1, 1), 1 / 3, np.float32)
    two = SamplePeople([vector, vector], [box, box], regions)
    three = SamplePeople([vector] * 3, [box] * 3, np.full((1, 4, 1, 1), 0.25, np.float32))
    fields = stack_people([two, three], frames=1, cells=(1, 1))
    stacked = fields["regions"]
    assert stacked is not None
    np.testing.assert_allclose(stacked[0, 0, :, 0, 0], [1 / 3, 1 / 3, 0, 1 / 3])
    np.testing.assert_allclose(stacked[1, 0, :, 0, 0], 0.25)


def test_references_show_the_same_people_in_the_same_order() -> None:
    nan = np.nan
    centres = np.float32([[10, 50], [12, 48], [50, 10], [11, nan], [9, 60], [nan, 50]])
    assert same_arrangement(centres, np.array([0, 1])).tolist() == [True, True, False, False, True, False]
    assert same_arrangement(centres, np.array([3])).tolist() == [True, True, True, True, True, False]
    for index in range(20):
        frames, reference = choose_frames(
            keyed_rng(0, "t", index), 6, 1, stride=1, source="unchosen",
            suitable=lambda chosen: same_arrangement(centres, chosen),
        )  # fmt: skip
        first = int(frames[0])
        if first in (0, 1, 4):
            assert reference in {0, 1, 4} - {first}
        assert reference != first


def test_without_a_suitable_reference_another_one_is_drawn() -> None:
    _, reference = choose_frames(
        keyed_rng(0, "t", 0), 4, 2, stride=1, source="unchosen", suitable=lambda _: np.zeros(4, bool)
    )
    assert 0 <= reference < 4


def test_all_faces_of_a_chosen_reference_are_degraded() -> None:
    reference = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[[0.0, 0, 2, 2], [5, 5, 8, 8]], [[0, 0, 2, 2], [torch.nan] * 4]])
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    changed = degrade_faces(reference, boxes, torch.tensor([True, False]), noise) != reference
    assert bool(changed[0, :, :2, :2].all())
    assert bool(changed[0, :, 5:, 5:].all())
    assert not bool(changed[0, :, 2:5].any())
    assert not bool(changed[1].any())


def test_several_people_need_faces(tmp_path: Path) -> None:
    config = TrainConfig(dataset=(tmp_path,), output=tmp_path / "run")
    several = replace(config.data, people=2)
    with pytest.raises(ConfigError, match="--people"):
        replace(config, data=several, ablation=replace(config.ablation, face="off"))
    assert replace(config, data=several).data.people == 2


def test_a_step_of_several_people_trains_and_one_person_with_a_region_is_one_without(
    mixed: Dataset, tiny_model: Path
) -> None:
    """A batch of one-person samples with regions of ones has the loss of the same batch without regions."""
    parts = opened(tiny_model, train="all", dropout_prob=0.0)
    batch = load(mixed, 2, people=2).batch(0)
    inputs = step_inputs(parts, batch, 0, 2)
    assert inputs.regions is not None
    assert inputs.has_face.tolist() == [1, 1]
    losses = parts.model(inputs)
    assert bool(losses.isfinite().all())
    losses.mean().backward()
    gradient = next(p.grad for n, p in parts.model.named_parameters() if "id_to_v" in n)
    assert gradient is not None
    assert bool(gradient.abs().sum() > 0)

    plain = step_inputs(parts, load(mixed, 2).batch(0), 0, 2)
    ones = torch.zeros(2, 2, 3, 8, 8)
    ones[:, :, 0] = 1
    face = torch.stack([plain.face, torch.zeros_like(plain.face)], dim=1)
    whole = replace(plain, face=face, regions=ones)
    with torch.no_grad():
        torch.testing.assert_close(parts.model(whole), parts.model(plain), rtol=1e-5, atol=1e-6)
        swapped = replace(inputs, face=inputs.face.flip(1))
        assert not torch.equal(parts.model(swapped), parts.model(inputs))


def test_validation_gives_each_person_their_face_as_animate_does(
    mixed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request of each clip, whose frames are not rendered here."""
    faces, plain = {}, TrainConfig(dataset=(tmp_path,), output=tmp_path / "run")
    config = replace(plain, data=replace(plain.data, people=2), validation=replace(plain.validation, frames=3))
    facts = SimpleNamespace(schedules=("karras",))
    engine: Any = SimpleNamespace(model=SimpleNamespace(files={}, facts=facts))

    def rendered(engine: Any, request: Any, timings: Any) -> list[np.ndarray]:
        faces[len(faces)] = request.face
        return [np.zeros((64, 64, 3), np.uint8)] * request.frames

    monkeypatch.setattr(validation, "render", rendered)
    stage: Any = SimpleNamespace(sizes=(SIZE,))
    rows = [validation._validate_clip(config, stage, engine, clip, 1) for clip in mixed.clips]
    assert [row["csim"] for row in rows] == [None, None]  # no recogniser here
    pair, alone = faces[0], faces[1]
    assert isinstance(pair, PeopleFaces)
    assert pair.vectors[:, 0].tolist() == [101, 1]  # the larger, right one first; both from the reference, frame 0
    assert pair.regions.shape == (3, 3, 8, 8)
    assert pair.regions[:, 0, :, 4:].mean() > 5 * pair.regions[:, 0, :, :3].mean()
    np.testing.assert_array_equal(alone, np.full(512, 1, np.float32))
    faces.clear()
    validation._validate_clip(plain, stage, engine, mixed.clips[0], 1)
    assert isinstance(faces[0], np.ndarray)  # trained with one person, as before


def test_the_csim_of_each_person_is_of_the_face_at_that_person(tmp_path: Path) -> None:
    """Frame 0 has both faces, frame 1 that of the second person only, in the other's place it is nobody's."""
    write_pair(tmp_path / "pair", 3)
    (clip,) = open_dataset([tmp_path], min_frames=2).clips
    annotations = load_annotations(clip, 2)
    face = faces_of(annotations, [1, 2], SIZE, "stretch")
    assert isinstance(face, PeopleFaces)
    vectors = np.eye(2, 512, dtype=np.float32)
    face = PeopleFaces(vectors=vectors, regions=face.regions)
    points = annotations.points([1, 2], SIZE, "stretch")  # type: ignore[union-attr]
    boxes = [np.concatenate([p[24:92, :2].min(axis=0) - 1, p[24:92, :2].max(axis=0) + 1]) for p in points[0]]

    def one(person: int, box: np.ndarray) -> Face:
        return Face(box=box, landmarks=np.zeros((5, 2)), score=1.0, embedding=vectors[person])

    shown = {0: (one(1, boxes[1]), one(0, boxes[0])), 1: (one(1, boxes[1]),), 2: (one(0, boxes[1]), one(1, boxes[0]))}
    reader = SimpleNamespace(faces=lambda image: shown[int(image.max())])
    engine: Any = SimpleNamespace(model=SimpleNamespace(files={"face": ""}), faces=lambda: reader)

    def scores(*levels: int) -> dict[str, Any]:
        images = [np.full((64, 64, 3), level, np.uint8) for level in levels]
        return csim_of_faces(engine, images, face, points)

    assert scores(0, 0) == {"csim": 1.0, "faces": 1.0, "csim_by_person": [1.0, 1.0]}
    assert scores(0, 1) == {"csim": 0.75, "faces": 0.75, "csim_by_person": [0.5, 1.0]}
    assert scores(2, 2) == {"csim": 0.0, "faces": 1.0, "csim_by_person": [0.0, 0.0]}
    unknown = np.stack([vectors[0], np.full(512, np.nan, np.float32)])
    face = PeopleFaces(vectors=unknown, regions=face.regions)
    assert scores(0, 0) == {"csim": 1.0, "faces": 1.0, "csim_by_person": [1.0, None]}
