"""People keep their identity through crossings, absences and shuffled detections; and one of them can be chosen."""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction

import numpy as np
import pytest

from stableanimator_cli.errors import NoPerson
from stableanimator_cli.motion.keypoints import bounding_box
from stableanimator_cli.motion.track import (
    Largest,
    Numbers,
    Tracker,
    assign,
    largest,
    match_faces,
    parse_selector,
    select,
    track,
)
from stableanimator_cli.puppets.scene import sample_scene
from tests.motion.moving import mapped, side_by_side, with_points
from tests.waving import waving

FRAMES = 40


def walker(start: float, speed: float, scale: float = 0.6, y: float = 100.0) -> np.ndarray:
    """float32[t,134,3]: somebody who waves and walks."""
    points = mapped(waving(FRAMES).keypoints[:, 0], scale, (0, y))
    points[..., 0] += (start + speed * np.arange(FRAMES))[:, None]
    return points.astype(np.float32)


def shuffled(*people: np.ndarray, seed: int = 0, hidden: dict[int, range] | None = None):
    """(detections of each frame in a random order, who each of them is)."""
    rng = np.random.default_rng(seed)
    frames, who = [], []
    for t in range(FRAMES):
        there = [p for p in range(len(people)) if t not in (hidden or {}).get(p, ())]
        order = rng.permutation(there) if there else np.zeros(0, int)
        frames.append(np.stack([people[p][t] for p in order]) if len(order) else np.zeros((0, 134, 3), np.float32))
        who.append(order)
    return frames, who


def identities(tracks, who) -> list[set[int]]:
    """Who was taken for each of the tracks."""
    return [{int(who[t][n]) for t, n in enumerate(row) if n >= 0} for row in tracks.source.T]


CROSSING = walker(-60, 8), walker(260, -8, 0.62, 95)


def test_two_who_cross_stay_themselves():
    frames, who = shuffled(*CROSSING)
    tracks = track(frames)
    assert sorted(map(sorted, identities(tracks, who))) == [[0], [1]]
    assert tracks.present.all()
    for p, (one,) in enumerate(identities(tracks, who)):
        np.testing.assert_array_equal(tracks.keypoints[:, p], CROSSING[one])


@pytest.mark.parametrize("gap", [3, 6, 9])
def test_one_is_hidden_behind_the_other_while_they_cross(gap):
    middle = 20
    frames, who = shuffled(*CROSSING, hidden={1: range(middle - gap // 2, middle - gap // 2 + gap)})
    tracks = track(frames)
    assert sorted(map(sorted, identities(tracks, who))) == [[0], [1]]
    hidden = identities(tracks, who).index({1})
    assert (~tracks.present[:, hidden]).sum() == gap
    assert not tracks.keypoints[~tracks.present].any()
    assert np.isnan(tracks.boxes[~tracks.present]).all()


def test_somebody_leaves_and_comes_back_within_the_gap():
    frames, who = shuffled(walker(0, 0), walker(300, 0), hidden={1: range(10, 25)})
    assert sorted(map(sorted, identities(track(frames), who))) == [[0], [1]]
    later = track(frames, max_gap=10)
    assert sorted(map(sorted, identities(later, who))) == [[0], [1], [1]]


def test_a_comer_elsewhere_is_known_by_looks_alone():
    looks = np.eye(3, 8)
    people = walker(0, 0), walker(300, 0)
    moved = people[1].copy()
    moved[25:, :, 0] -= 900
    frames, who = shuffled(people[0], moved, hidden={1: range(5, 25)})
    given = [looks[order] for order in who]
    assert len(track(frames).track) == 3
    known = track(frames, appearance=given)
    assert sorted(map(sorted, identities(known, who))) == [[0], [1]]
    far = track(frames, appearance=given, max_gap=4)
    assert sorted(map(sorted, identities(far, who))) == [[0], [1]]
    # Somebody else at the same place is somebody else.
    stranger = [looks[[p if p == 0 or t < 25 else 2 for p in order]] for t, order in enumerate(who)]
    assert len(track(shuffled(*people, hidden={1: range(5, 25)})[0], appearance=stranger).track) == 3
    unknown = [np.where(order[:, None] == 1, np.nan, looks[order]) for order in who]
    assert len(track(frames, appearance=unknown).track) == 3


def test_puppets_of_a_scene_are_told_apart():
    truth = sample_scene("train", 7, people=3, framing="whole", size=(192, 96), frames=24).motion()
    rng = np.random.default_rng(1)
    orders = [rng.permutation(np.flatnonzero(there)) for there in truth.present]
    tracks = track([truth.keypoints[t, order] for t, order in enumerate(orders)])
    assert sorted(map(sorted, identities(tracks, orders))) == [[0], [1], [2]]


def test_numbers_follow_appearance_and_do_not_depend_on_chance():
    frames, who = shuffled(walker(0, 0), walker(300, 0), hidden={0: range(0, 3)})
    tracks = track(frames)
    assert identities(tracks, who) == [{1}, {0}]
    assert tracks.track.tolist() == [0, 1]
    again = track(frames)
    for name in ("keypoints", "boxes", "present", "source"):
        np.testing.assert_array_equal(getattr(tracks, name), getattr(again, name))


def test_who_appear_together_are_numbered_from_left_to_right():
    """As the faces of a reference are; whoever comes later follows, wherever that is."""
    people = walker(300, 0), walker(0, 2), walker(150, 0), walker(600, 0)
    later = walker(-300, 0)
    for seed in range(4):
        frames, who = shuffled(*people, later, seed=seed, hidden={4: range(0, 7)})
        assert identities(track(frames), who) == [{1}, {2}, {0}, {3}, {4}]


def test_later_frames_change_no_numbers_once_they_are_settled():
    """The second is seen once or twice at first: as long as that may be a false detection, the third has no number."""
    frames, who = shuffled(walker(0, 0), walker(300, 0), walker(600, 0), hidden={1: range(2, 30), 2: range(0, 3)})
    tracker, seen = Tracker(), []
    for people in frames:
        tracker.add(people)
        seen.append(tracker.settled(minimum=3))
    assert seen == [t < 5 or t >= 30 for t in range(FRAMES)]
    assert identities(tracker.tracks(minimum=3), who) == [{0}, {1}, {2}]


def test_boxes_are_used_and_returned():
    frames, _ = shuffled(walker(0, 0))
    boxes = [np.array([[1.0, 2, 300, 400, 0.9]], np.float32)] * FRAMES
    tracks = track(frames, boxes)
    np.testing.assert_array_equal(tracks.boxes[:, 0], [[1, 2, 300, 400]] * FRAMES)
    np.testing.assert_array_equal(track(frames).boxes[:, 0], bounding_box(walker(0, 0)))


def test_flashes_are_dropped_when_asked():
    ghost = walker(600, 0)
    frames, _ = shuffled(walker(0, 0), ghost, hidden={1: [t for t in range(FRAMES) if t not in (7, 8)]})
    assert len(track(frames).track) == 2
    assert track(frames, minimum=3).track.tolist() == [0]


@pytest.mark.parametrize("frames", [0, 3])
def test_nobody_is_an_answer(frames):
    tracks = track([np.zeros((0, 134, 3), np.float32)] * frames)
    assert tracks.keypoints.shape == (frames, 0, 134, 3)
    motion = tracks.motion((64, 64))
    assert len(motion) == frames
    with pytest.raises(NoPerson, match="no person in any frame"):
        select(motion, "largest")


def test_as_a_motion():
    frames, _ = shuffled(*CROSSING, hidden={0: range(3, 6)})
    times = tuple(Fraction(t, 25) for t in range(FRAMES))
    motion = track(frames).motion((512, 512), times)
    assert motion.times == times
    assert motion.present.sum() == 2 * FRAMES - 3
    assert (np.isfinite(motion.face_boxes).all(axis=-1) == motion.present).all()


def test_lists_that_disagree_are_refused():
    frames, _ = shuffled(walker(0, 0))
    with pytest.raises(ValueError, match="boxes of other frames or people"):
        track(frames, [np.zeros((2, 4))] * FRAMES)
    with pytest.raises(ValueError, match="appearance of other"):
        track(frames, appearance=[np.zeros((1, 4))] * 3)
    with pytest.raises(ValueError, match="max_gap"):
        Tracker(max_gap=-1)


def test_assignment_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(60):
        rows, columns = rng.integers(1, 6, 2)
        likeness = np.round(rng.random((rows, columns)), 1)  # ties too
        pairs = assign(likeness)
        assert len({r for r, _ in pairs}) == len({c for _, c in pairs}) == len(pairs) == min(rows, columns)
        low = likeness if rows <= columns else likeness.T
        best = max(
            sum(low[i, c] for i, c in enumerate(order))
            for order in itertools.permutations(range(low.shape[1]), len(low))
        )
        assert sum(likeness[pair] for pair in pairs) == pytest.approx(best)
    assert assign(np.zeros((0, 3))) == []


def test_faces_find_their_people():
    pair = np.stack([walker(0, 0)[0], walker(200, 0)[0]])
    first, second = (pair[p, 24:92, :2] for p in (0, 1))
    boxes = np.array([[*points.min(axis=0) - 8, *points.max(axis=0) + 8] for points in (second, first)])
    assert match_faces(pair, boxes).tolist() == [1, 0]
    assert match_faces(pair, boxes[:1]).tolist() == [-1, 0]
    assert match_faces(pair, boxes[:0]).tolist() == [-1, -1]
    assert match_faces(pair[:0], boxes).shape == (0,)
    assert match_faces(pair * [1, 1, 0], boxes).tolist() == [-1, -1]


@pytest.fixture
def three():
    """Persons 4, 5 and 9: small at the left, large in the middle, one who is never there."""
    small = with_points(waving(6), mapped(waving(6).keypoints, 0.3, (0, 300)))
    motion = side_by_side(small, waving(6), small)
    present = motion.present.copy()
    present[:, 2] = False
    present[3:, 1] = False
    return dataclasses.replace(motion, present=present, track=np.array([4, 5, 9]))


def test_choosing_people(three):
    assert largest(three) == 1
    assert select(three).track.tolist() == [5]
    assert select(three, 4).track.tolist() == [4]
    assert select(three, "all").track.tolist() == [4, 5]
    box = tuple(bounding_box(three.keypoints[0, 0]).tolist())
    assert select(three, box).track.tolist() == [4]
    assert select(three, (150.0, 60.0, 420.0, 480.0)).track.tolist() == [5]
    chosen = select(three, 5)
    np.testing.assert_array_equal(chosen.keypoints[:, 0], three.keypoints[:, 1])
    assert chosen.present[:, 0].tolist() == [True] * 3 + [False] * 3
    assert (chosen.times, chosen.size) == (three.times, three.size)


def test_choosing_somebody_who_is_not_there(three):
    with pytest.raises(NoPerson, match="person 9: found no person with that number, expected one of 4, 5"):
        select(three, 9)
    with pytest.raises(NoPerson, match="no person in the box 500,0,512,20") as caught:
        select(three, (500.0, 0.0, 512.0, 20.0))
    assert "512x512" in str(caught.value.hint)


def test_what_users_write():
    assert [parse_selector(text) for text in ("largest", "all", "3")] == ["largest", "all", 3]
    assert parse_selector("10, 20,30.5,40") == (10.0, 20.0, 30.5, 40.0)
    for text in ("", "-1", "two", "1,2,3", "30,0,10,20", "0,0,nan,5", "1,2,3,4,5", "1.5"):
        with pytest.raises(ValueError, match=r"person .*: expected largest, all, a person's number"):
            parse_selector(text)


def test_several_people_are_chosen_by_size_or_in_order(three):
    assert select(three, Largest(1)).track.tolist() == [5]
    assert select(three, Largest(2)).track.tolist() == [4, 5]
    assert select(three, Largest(3)).track.tolist() == [4, 5]  # the third is never there
    assert select(three, Numbers((5, 4))).track.tolist() == [5, 4]
    with pytest.raises(NoPerson, match=r"person 9: found no person with that number, expected one of 4, 5"):
        select(three, Numbers((4, 9)))
