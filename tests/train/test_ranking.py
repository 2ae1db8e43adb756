"""Which checkpoint of a run is used, and which are deleted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stableanimator_cli.errors import BadInput
from stableanimator_cli.train import checkpoint, ranking, resume


def clip(csim: Any = None, error: Any = None, faces: Any = None, people: Any = None) -> dict[str, Any]:
    return {"clip": "a", "csim": csim, "keypoint_error": error, "faces": faces, "people": people}


GOOD = clip(csim=0.47, error=0.05, faces=1.0, people=1.0)
COLLAPSED = clip(csim=0.0, error=None, faces=0.0, people=0.0)


def rows(*clips: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"step": step, **ranking.summarize([one])} for step, one in enumerate(clips, start=1)]


def test_a_collapsed_checkpoint_loses_to_every_judged_one():
    poor = clip(csim=-0.9, error=0.9, faces=1.0, people=1.0)
    made = rows(GOOD, poor, COLLAPSED)
    assert ranking.best(made, [1, 2, 3]) == 1
    assert ranking.best(made, [2, 3]) == 2
    assert ranking.best(made, [3]) == 3  # better than none
    assert [row["absent"] for row in made] == [False, False, True]
    assert made[0]["score"] == pytest.approx(0.47 - 0.5)


@pytest.mark.parametrize(
    "absent",
    [
        clip(csim=0.0, faces=0.0),  # no pose detector
        clip(error=None, people=0.0),  # no face detector
        clip(csim=0.3, faces=1.0, error=None, people=0.0),
        clip(csim=0.0, faces=0.0, error=0.01, people=1.0),
    ],
)
def test_no_face_or_no_person_is_the_worst(absent):
    assert ranking.best(rows(clip(csim=-0.5, error=0.9, faces=0.1, people=0.1), absent), [1, 2]) == 1


def test_frames_without_a_person_are_no_frames_without_an_error():
    present, missing = (
        clip(csim=0.4, error=0.08, faces=1.0, people=1.0),
        clip(csim=0.4, error=0.02, faces=1, people=0.5),
    )
    assert ranking.best(rows(present, missing), [1, 2]) == 1
    two = {"step": 3, **ranking.summarize([missing, clip(csim=0.4, error=None, faces=1.0, people=0.0)])}
    assert two["score"] < rows(missing)[0]["score"]  # a clip without a person is not left out of the mean


def test_scores_of_earlier_versions_rank_the_same():
    old = [
        {"step": 1, "score": 0.47 - 0.5, "csim": 0.47, "keypoint_error": 0.05, "clips": []},
        {"step": 2, "score": 0.0, "csim": 0.0, "keypoint_error": None, "clips": []},
    ]
    assert ranking.best(old, [1, 2]) == 1


def written(run: Path, *steps: int) -> None:
    """Checkpoints with nothing in them but the names."""
    for step in steps:
        folder = run / "checkpoints" / f"step-{step}"
        (folder / "state").mkdir(parents=True)
        (folder / "model.toml").write_text('source = "trained by sa train"\n')
        (folder / "state" / "progress.json").write_text("{}")


def names(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").iterdir()}


def test_good_checkpoints_outlive_a_collapse(tmp_path):
    written(tmp_path, 1, 2, 3, 4)
    checkpoint.write_scores(tmp_path, rows(GOOD, COLLAPSED, COLLAPSED, COLLAPSED))
    checkpoint.prune(tmp_path, keep=2)
    assert names(tmp_path) == {"step-1", "step-3", "step-4"}
    assert (tmp_path / "model").resolve().name == "step-1"


def test_the_link_never_leads_to_a_deleted_checkpoint(tmp_path, monkeypatch):
    """A kill between the two would leave a model that does not open."""
    written(tmp_path, 1)
    checkpoint.prune(tmp_path, keep=1)
    written(tmp_path, 2)
    monkeypatch.setattr(checkpoint.os, "replace", killed_after(1, checkpoint.os.replace))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.prune(tmp_path, keep=1)
    assert (tmp_path / "model" / "model.toml").is_file()


def killed_after(count, call):
    """``call``, interrupted right after that many calls."""
    done = []

    def interrupted(*args):
        call(*args)
        done.append(args)
        if len(done) == count:
            raise KeyboardInterrupt

    return interrupted


def test_what_could_not_be_scored_is_not_deleted(tmp_path):
    written(tmp_path, 1, 2, 3, 4)
    checkpoint.write_scores(tmp_path, rows(clip(), GOOD, GOOD, GOOD))
    checkpoint.prune(tmp_path, keep=1)
    assert names(tmp_path) == {"step-1", "step-4"}


def test_only_our_own_checkpoints_are_deleted(tmp_path):
    written(tmp_path, 1, 2, 3, 4)
    (tmp_path / "checkpoints" / "step-1" / "notes.txt").write_text("mine")
    (tmp_path / "checkpoints" / "step-2" / "model.toml").write_text('source = "by hand"\n')
    (tmp_path / "checkpoints" / ".step-mine.part").mkdir()
    checkpoint.remove_partial(tmp_path)
    checkpoint.prune(tmp_path, keep=1)
    assert names(tmp_path) == {"step-1", "step-2", "step-4", ".step-mine.part"}


def test_what_is_in_the_place_of_a_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoints" / "step-7").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-7" / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"step-7: it has the name of a checkpoint"):
        checkpoint.check_replaceable(tmp_path)
    with pytest.raises(BadInput, match="step-7"):
        checkpoint.save(tmp_path, {}, state(7), config={}, dataset="", network_configs={}, model_toml=lambda **_: "")
    assert (tmp_path / "checkpoints" / "step-7" / "mine.txt").read_text() == "mine"


def test_a_file_called_model_is_not_replaced(tmp_path):
    written(tmp_path, 1)
    (tmp_path / "model").write_text("mine")
    checkpoint.prune(tmp_path, keep=1)
    assert (tmp_path / "model").read_text() == "mine"
    with pytest.raises(BadInput, match="link to the best checkpoint"):
        checkpoint.check_replaceable(tmp_path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "curves.png", "model", "validation", "checkpoints"])
def test_a_new_run_does_not_take_a_folder_with_such_files(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(BadInput, match=f"{name}: it has the name of"):
        resume.check_new(tmp_path)


def state(step: int) -> checkpoint.State:
    position = checkpoint.TrainPosition(step=step)
    return checkpoint.State(position=position, weights={}, average={}, optimizer={}, scaler={})


def test_validation_counts_frames_without_a_person_and_a_face(tmp_path, monkeypatch):
    import numpy as np

    from stableanimator_cli.motion.geometry import resize_transform
    from stableanimator_cli.records import Face
    from stableanimator_cli.train import validation
    from stableanimator_cli.train.dataset import open_dataset
    from stableanimator_cli.train.validation_people import csim_of_faces
    from tests.train.clip_folders import write_clip

    (one,) = open_dataset([write_clip(tmp_path / "clip", 4)], min_frames=2).clips
    assert one.folder is not None
    points = one.folder.motion().keypoints[:, 0]

    class Detector:  # sees a person in pictures that are not black
        def __init__(self, *_: Any) -> None: ...

        def detect(self, pictures: Any) -> Any:
            return [np.array([[0, 0, 64, 64, 1.0]] if pictures[0].any() else np.zeros((0, 5)))]

    class Estimator:
        def __init__(self, *_: Any) -> None: ...

        def estimate(self, pictures: Any, boxes: Any) -> Any:
            return [[points[int(pictures[0].max())]]]

    class Reader:
        def faces(self, picture: Any) -> Any:
            vector = np.ones(512, np.float32)
            face = Face(box=np.zeros(4), landmarks=np.zeros((5, 2)), score=1.0, embedding=vector)
            return (face,) if picture.any() else ()

    roles = {"face": "", "person_detector": "", "pose_detector": ""}
    engine: Any = SimpleNamespace(
        model=SimpleNamespace(files=roles), plan=SimpleNamespace(device="cpu"), faces=lambda: Reader()
    )
    monkeypatch.setattr(validation, "PersonDetector", Detector)
    monkeypatch.setattr(validation, "PoseEstimator", Estimator)
    seen, black = [np.full((64, 64, 3), n, np.uint8) for n in (1, 2)], [np.zeros((64, 64, 3), np.uint8)] * 2
    there: Any = resize_transform((64, 64), (64, 64), "stretch")
    vector = np.ones(512, np.float32)
    assert validation._keypoint_error(engine, one, [1, 2], seen, there) == (pytest.approx(0, abs=1e-6), 1.0)
    assert validation._keypoint_error(engine, one, [1, 2], black, there) == (None, 0.0)
    assert validation._keypoint_error(engine, one, [1, 2], [seen[0], black[0]], there)[1] == 0.5
    assert csim_of_faces(engine, seen, vector, None) == {"csim": pytest.approx(1), "faces": 1.0}
    assert csim_of_faces(engine, [seen[0], black[0]], vector, None) == {"csim": pytest.approx(0.5), "faces": 0.5}
    assert csim_of_faces(engine, black, vector, None) == {"csim": 0.0, "faces": 0.0}
