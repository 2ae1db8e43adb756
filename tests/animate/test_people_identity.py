"""Identity of several people: measured at each one's place, gated by the worst, kept over an interruption."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from stableanimator_cli.animate.checkpoint import BestSample, Checkpoint, SamplingState, _pack, _unpack
from stableanimator_cli.animate.identity_gate import FaceSimilarity, GateResult, PeopleIdentityMeter
from stableanimator_cli.animate.people import PersonFace
from stableanimator_cli.diffusion.windows import plan_windows
from stableanimator_cli.puppets.scene import sample_scene
from stableanimator_cli.records import Face, Motion

NONE = float("nan")
PLAN = plan_windows(4, length=2, overlap=0)  # three windows of one frame each, beside the anchor


def people(*rows: tuple[float, float]) -> FaceSimilarity:
    return FaceSimilarity.of_people(np.array(rows), [4, 7])


def vector(axis: int) -> np.ndarray:
    return np.eye(512, dtype=np.float32)[axis]


def face(box: np.ndarray, axis: int) -> Face:
    return Face(
        box=np.asarray(box, np.float32), landmarks=np.zeros((5, 2), np.float32), score=1, embedding=vector(axis)
    )  # fmt: skip


def test_the_mean_is_over_the_people_who_show_a_face():
    found = people((1.0, 0.5), (NONE, 0.25), (NONE, NONE), (0.5, 0.75))
    np.testing.assert_allclose(found.similarity, [0.75, 0.25, NONE, 0.625])
    data = found.to_json()
    assert data["mean"] == pytest.approx((0.75 + 0.25 + 0.625) / 3, abs=1e-4)
    assert data["people"] == [
        {"person": 4, "mean": 0.75, "frames_with_face": 2, "similarity": [1.0, None, None, 0.5]},
        {"person": 7, "mean": 0.5, "frames_with_face": 3, "similarity": [0.5, 0.25, None, 0.75]},
    ]


def test_one_face_is_recorded_as_before():
    data = FaceSimilarity(similarity=np.array([0.5, NONE])).to_json()
    assert data == {"mean": 0.5, "frames_with_face": 1, "similarity": [0.5, None]}


def test_every_person_has_to_pass():
    good, swapped = people(*[(0.9, 0.9)] * 3), people((0.9, 0.9), (0.9, 0.9), (0.96, 0.3))
    assert good.failing(PLAN, 0.6, True) == []
    assert FaceSimilarity(similarity=swapped.similarity).failing(PLAN, 0.6, True) == []  # their mean would pass
    assert swapped.failing(PLAN, 0.6, True) == [2]
    error = GateResult(identity=swapped, failed=(2,)).error(Path("o.mp4"), 0.6, 3)
    assert "0.810 on average (0.920 of person 4, 0.700 of person 7) and below 0.6 in 1 of 3" in error.message


def test_a_person_who_loses_the_face_in_a_retry_fails_and_one_who_never_had_it_does_not():
    before = people((0.2, NONE), (0.9, 0.9), (0.9, 0.9))
    assert before.failing(PLAN, 0.6, True) == [0]
    never = people((0.9, NONE), (0.9, 0.9), (0.9, 0.9))
    assert never.failing(PLAN, 0.6, True, {0}, before) == []
    lost = people((NONE, NONE), (0.9, 0.9), (0.9, 0.9))
    assert lost.failing(PLAN, 0.6, True, {0}, before) == [0]


def test_a_person_who_is_never_seen_is_reported():
    gate = GateResult(identity=people(*[(0.9, NONE)] * 4))
    assert gate.warning(0.6) == "--min-csim 0.6 could not be measured of person 7, who shows no face"
    assert GateResult(identity=people(*[(0.9, 0.9)] * 4)).warning(0.6) is None


def test_faces_count_where_their_person_is():
    motion = sample_scene("test", 0, people=2, framing="portrait", size=(128, 128), frames=3).motion()
    boxes = motion.face_boxes

    class Reader:
        """The faces 1 and 0 at the places of the people 0 and 1, and a bystander between them."""

        def __init__(self) -> None:
            self.frame = 0

        def faces(self, image: np.ndarray) -> tuple[Face, ...]:
            found = {
                0: (face(boxes[0, 1], 1), face(boxes[0, 0], 0), face(np.array([0, 0, 8, 8]), 5)),
                1: (face(boxes[1, 0], 1), face(boxes[1, 1], 0)),  # exchanged
                2: (face(boxes[2, 1], 1),),
            }[self.frame]
            self.frame += 1
            return found

    chosen = [
        PersonFace(
            index=index, number=10 + index, face=face(np.array([0, 0, 9, 9]), index),
            image=np.zeros((9, 9, 3), np.uint8), path=Path("a.png"), face_number=index,
        )
        for index in (1, 0)
    ]  # fmt: skip
    meter = PeopleIdentityMeter(Reader(), chosen, motion)  # type: ignore[arg-type]
    means = [meter.add(np.zeros((128, 128, 3), np.uint8)) for _ in range(3)]
    np.testing.assert_allclose(means, [1, 0, 1])
    found = meter.result()
    assert [one.person for one in found.people] == [11, 10]
    np.testing.assert_allclose(found.people[0].similarity, [1, 0, 1])
    np.testing.assert_allclose(found.people[1].similarity, [1, 0, NONE])


def test_an_absent_person_has_no_face():
    motion = sample_scene("test", 0, people=2, framing="portrait", size=(128, 128), frames=1).motion()
    present = motion.present.copy()
    present[0, 1] = False
    hidden = Motion(
        keypoints=np.where(present[..., None, None], motion.keypoints, np.nan), present=present, track=motion.track,
        face_boxes=motion.face_boxes, size=motion.size,
    )  # fmt: skip

    class Reader:
        def faces(self, image: np.ndarray) -> tuple[Face, ...]:
            return tuple(face(box, axis) for axis, box in enumerate(motion.face_boxes[0]))

    chosen = PersonFace(
        index=1, number=1, face=face(np.array([0, 0, 9, 9]), 1), image=np.zeros((9, 9, 3), np.uint8),
        path=Path("a.png"), face_number=1,
    )  # fmt: skip
    assert np.isnan(PeopleIdentityMeter(Reader(), [chosen], hidden).add(np.zeros((128, 128, 3), np.uint8)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "identity", [people((0.5, NONE), (0.25, 0.75)), FaceSimilarity(similarity=np.array([0.5, NONE]))]
)
def test_an_interrupted_run_keeps_the_identity_of_each(identity):
    state = SamplingState(latents=torch.zeros(2, 4, 8, 8), step=1)
    best = BestSample(state=state, identity=identity, failed=(0,))
    tensors, fields = _pack(Checkpoint(state=state, attempts=((0,),), best=best, calls=Counter()))
    restored = _unpack(tensors, fields).best
    assert restored is not None
    assert restored.identity.to_json() == identity.to_json()
