"""The measures of two people: whose face is where, what a swap changes, and clips of several people to train on."""

import argparse
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stableanimator_cli import catalogue
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.puppets.scene import sample_scene
from stableanimator_cli.train.dataset import load_annotations, open_dataset
from tools.bench.puppet_model import OutputDetectors
from tools.puppet_training import clips, people
from tools.puppet_training.heldout import LIST_OF_PEOPLE, open_scene, read_list


@pytest.fixture(scope="module")
def detectors():
    with Engine.open(catalogue.open_model("puppet"), DevicePlan.of(DeviceConfig(device="cpu"))) as engine:
        yield OutputDetectors(engine)


@pytest.fixture(scope="module")
def pair(detectors):
    return people.open_pair(open_scene(read_list(LIST_OF_PEOPLE)[0]), detectors)


def test_true_frames_show_each_person_at_their_place(pair, detectors):
    found = people.similarities([frame.image for frame in pair.target], pair, detectors)
    assert found.shape == (2, 2)
    assert np.diag(found).min() > 0.8
    assert (np.diag(found) > np.diag(found[:, ::-1]) + 0.3).all()


def test_without_faces_there_is_no_similarity(pair, detectors):
    empty = [np.zeros_like(frame.image) for frame in pair.target]
    assert np.isnan(people.similarities(empty, pair, detectors)).all()
    row = people.score_pair({"own": empty, "swapped": empty, "hidden": empty, "seed": empty}, pair, detectors)
    assert row["own"] == [None, None]
    assert (row["elsewhere_swap"], row["near_swap"]) == (0, 0)


def test_changes_are_told_apart_by_place(pair):
    frames = [frame.image for frame in pair.target]
    boxes = pair.target[0].face_boxes
    x, y = boxes[0, :2].astype(int) + 5
    changed = [image.copy() for image in frames]
    changed[0][y : y + 10, x : x + 10] ^= 64
    near, elsewhere = people.differences(frames, changed, pair)
    assert near > 0
    assert elsewhere == 0
    changed = [image.copy() for image in frames]
    changed[0][-5:, :5] ^= 64
    near, elsewhere = people.differences(frames, changed, pair)
    assert near == 0
    assert elsewhere > 0


def row(**changed):
    values = {
        "own": [0.9, 0.8], "other": [0.1, 0.2], "swapped_own": [0.2, 0.1], "swapped_other": [0.8, 0.7],
        "truth": [0.9, 0.9], "hidden_own": [0.2, 0.1], "hidden_other": [0.8, 0.7],
        "drawn_own": [0.2, 0.2], "drawn_other": [0.9, 0.9], "face": 17.0, "sharpness": 0.8,
        "hidden_face": 11.0, "near_swap": 9.0, "near_hidden": 9.0, "near_seed": 3.0,
        "elsewhere_swap": 1.0, "elsewhere_hidden": 1.0, "elsewhere_seed": 2.0,
    }  # fmt: skip
    return values | changed


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({}, set()),
        ({"elsewhere_swap": 3.0}, {"change elsewhere"}),
        ({"elsewhere_hidden": 3.0}, {"change elsewhere, hidden"}),
        ({"swapped_other": [0.1, 0.05]}, {"exchanged: increase to the other", "exchanged: people nearer"}),
        ({"hidden_other": [0.8, 0.05]}, {"hidden: nearer, of those drawn nearer"}),
        ({"hidden_other": [0.8, 0.05], "drawn_other": [0.9, 0.1]}, set()),
        ({"own": [0.9, None]}, {"people nearer to their own reference"}),
        ({"own": [0.9, 0.1]}, {"people nearer to their own reference", "judge, own reference"}),
    ],
)
def test_requirements_of_the_swap(changed, missed):
    failed = [figure.name for figure in people.summarise([row(**changed)]) if not figure.holds]
    assert {name for name in missed if any(one.startswith(name) for one in failed)} == missed
    assert len(failed) == len(missed)


def test_a_share_of_the_clips_shows_several_people():
    assert clips.count_several(800, 0.2) == {1: 800, 2: 133, 3: 67}
    assert clips.count_several(100, 0.0) == {1: 100, 2: 0, 3: 0}
    parser = argparse.ArgumentParser()
    for several, exchanged in ((1.0, 0.0), (0.0, 1.1), (0.0, float("nan"))):
        with pytest.raises(SystemExit):
            clips.check_shares(parser, argparse.Namespace(share_several=several, share_exchanged=exchanged))


def test_clips_of_several_people_have_everybody_s_face(tmp_path):
    folders = clips.write_all(tmp_path, "models/puppet", people=2, frames=1, fps=Fraction(2), share=0.6)
    assert [folder.name for folder in folders] == ["clips-000", "clips-two-000", "clips-three-000"]
    for folder, count in zip(folders, (1, 2, 3), strict=True):
        for clip in open_dataset([folder], min_frames=2, people=3).clips:
            annotations = load_annotations(clip, 3)
            assert len(annotations.people) == count
            known = [annotations.embedding(0, person) for person in range(count)]
            assert all(vector is not None for vector in known)
            assert len({vector.tobytes() for vector in known}) == count


def test_exchanged_faces_stay_under_their_hair():
    pair = sample_scene("train", 5, people=2, framing="portrait")
    one, two = (person.identity for person in pair.people)
    left, right = (person.identity for person in clips.exchanged_faces(pair).people)
    assert (left.hair, left.hair_colour, left.hair_phase) == (one.hair, one.hair_colour, one.hair_phase)
    assert (left.skin, left.iris, left.glasses, left.mouth_width) == (two.skin, two.iris, two.glasses, two.mouth_width)
    assert (right.hair, right.skin) == (two.hair, one.skin)
    assert pair.people[0].identity == one, "the scene itself must not change"

    alone = sample_scene("train", 6, framing="portrait")
    other = clips.exchanged_faces(alone)
    assert other.people[0].identity.hair == alone.people[0].identity.hair
    assert other.people[0].identity.eye_spacing != alone.people[0].identity.eye_spacing
    assert clips.exchanged_faces(alone).people == other.people


def test_exchanged_references_change_what_the_encoders_see_and_nothing_else(tmp_path):
    """Embeddings and frames are the person's own; only the reference's latents and tokens show another face."""
    known = {}
    for name, share in (("plain", 0.0), ("exchanged", 1.0)):
        (folder,) = clips.write_all(
            tmp_path / name, "models/puppet", people=1, frames=1, fps=Fraction(2), exchanged=share
        )
        (clip,) = open_dataset([folder], min_frames=2).clips
        arrays = {path.name: load_file(path) for path in clip.path.glob("*.safetensors")}
        moments = next(value["moments"] for key, value in arrays.items() if key.startswith("latents"))
        known[name] = moments, arrays["embeddings.safetensors"]["tokens"], load_annotations(clip, 1).embedding(0)
    (moments, tokens, face), (moments_other, tokens_other, face_other) = known["plain"], known["exchanged"]
    assert (face == face_other).all()
    assert not torch.equal(moments[0], moments_other[0])
    assert not torch.equal(tokens[0], tokens_other[0])
    assert torch.equal(moments[1], moments_other[1])
    assert torch.equal(tokens[1], tokens_other[1])
