"""People follow from their numbers, and no split shares one with another."""

from __future__ import annotations

import numpy as np
import pytest

from stableanimator_cli.errors import ConfigError
from stableanimator_cli.puppets import sample_scene
from stableanimator_cli.puppets.hair import STYLES
from stableanimator_cli.puppets.sample import (
    HAIR_STYLES,
    SPLITS,
    Identity,
    derive_rng,
    derive_seed,
    global_index,
    sample_clothes,
    sample_identity,
)


def test_a_seed_is_the_same_on_every_machine():
    assert derive_seed("identity", 7) == 6995799242696326506


def test_an_identity_follows_from_its_number():
    assert sample_identity(12) == sample_identity(12)
    assert sample_identity(12) != sample_identity(13)


def test_numbers_of_splits_are_disjoint():
    numbers = {split: {global_index(split, index) for index in range(500)} for split in SPLITS}
    assert sum(map(len, numbers.values())) == len(set.union(*numbers.values())) == 1500


def test_scenes_of_splits_share_neither_people_nor_movements():
    scenes = {split: [sample_scene(split, index, people=3) for index in range(40)] for split in SPLITS}
    people = [{p.identity.number for s in scenes[split] for p in s.people} for split in SPLITS]
    seeds = [{s.seed for s in scenes[split]} for split in SPLITS]
    for sets, each in ((people, 120), (seeds, 40)):
        assert [len(s) for s in sets] == [each] * 3
        assert len(set.union(*sets)) == 3 * each


def test_another_clip_is_the_same_person_in_other_clothes_moving_otherwise():
    one, two = sample_scene("train", 5), sample_scene("train", 5, clip=1)
    assert one.people[0].identity == two.people[0].identity
    assert one.people[0].clothes != two.people[0].clothes
    assert one.people[0].build != two.people[0].build
    assert one.seed != two.seed


def test_every_hair_style_is_drawn_and_sampled():
    assert set(HAIR_STYLES) == set(STYLES)
    assert {sample_identity(n).hair for n in range(300)} == set(HAIR_STYLES)


def test_hair_stands_out_from_skin():
    def apart(who: Identity) -> int:
        return int(np.abs(np.subtract(who.skin, who.hair_colour)).max())

    assert min(apart(sample_identity(n)) for n in range(300)) >= 40


def test_eyes_fit_between_fringe_and_mouth():
    for n in range(300):
        who = sample_identity(n)
        top = who.eye_height * 0.5 - who.eye_width * who.eye_aspect
        bottom = who.eye_height * 0.5 + who.eye_width * who.eye_aspect
        assert top > -0.25
        assert bottom < who.mouth_height * 0.5
        assert who.eye_spacing > who.eye_width  # or the eyes would meet


def test_clothes_stand_out_from_skin():
    skin = (205, 145, 105)
    near = [np.linalg.norm(np.subtract(sample_clothes(derive_rng("c", n), skin).colour, skin)) for n in range(100)]
    assert np.median(near) > 90
    assert min(near) > 45


@pytest.mark.parametrize(
    ("wrong", "option"),
    [
        ({"split": "dev"}, "--split"),
        ({"index": -1}, "--index"),
        ({"people": 4}, "--people"),
        ({"framing": "close"}, "--framing"),
        ({"size": (8, 8)}, "--size"),
        ({"frames": 0}, "--frames"),
        ({"fps": 0}, "--fps"),
        ({"behaviour": "fly"}, "--behaviour"),
    ],
)
def test_wrong_values_name_their_option(wrong, option):
    with pytest.raises(ConfigError, match=option):
        sample_scene(**({"split": "train", "index": 0} | wrong))
