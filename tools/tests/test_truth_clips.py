"""Clip folders of puppets hold the ground truth, and open like any clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stableanimator_cli import catalogue, clip_folder
from stableanimator_cli.detect.face import FaceReader
from stableanimator_cli.errors import BadInput
from stableanimator_cli.motion.motion_file import load_motion
from stableanimator_cli.puppets.dataset import PuppetPlan, write_puppets
from tools import truth_clips


@pytest.fixture(scope="module")
def puppets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("truth") / "puppets"
    write_puppets(PuppetPlan(folder=folder, videos=2, frames=3, size=(128, 128)))
    return folder


def test_a_puppets_clip_holds_the_ground_truth(puppets: Path, tmp_path: Path) -> None:
    truth_clips.main([str(puppets), str(tmp_path / "clips")])
    folders = [clip_folder.open_folder(path) for path in clip_folder.find_folders(tmp_path / "clips")]
    assert [folder.name for folder in folders] == ["00000", "00001"]
    for folder in folders:
        drawn = load_motion(puppets / "truth" / f"{folder.name}.npz")
        np.testing.assert_array_equal(folder.motion().keypoints, drawn.keypoints)
        assert sum(1 for _ in folder.pictures().frames()) == folder.frames == 3
        faces = folder.faces()
        seen = np.isfinite(drawn.face_boxes).all(axis=2).sum()
        assert len(faces) == seen
        assert np.isfinite(faces.embeddings).all()


def test_embeddings_are_those_of_the_reader(puppets: Path, tmp_path: Path) -> None:
    model = catalogue.open_model("puppet", require=("face",))
    reader = FaceReader(model.files["face"], model.face_channel_order, "cpu")
    assert truth_clips.write_clips(puppets, tmp_path, reader) == 2
    folder = clip_folder.open_folder(tmp_path / "00000")
    faces, image = folder.faces(), next(iter(folder.pictures().frames()))[1]
    row = faces.at(0)[0]
    detected = reader.faces(image)[0]
    cosine = np.dot(detected.embedding, faces.embeddings[row]) / (
        np.linalg.norm(detected.embedding) * np.linalg.norm(faces.embeddings[row])
    )
    assert cosine > 0.8  # drawn landmarks against detected ones


def test_clips_of_other_puppets_are_refused_and_stay(puppets: Path, tmp_path: Path) -> None:
    """Videos of all folders have the same names: their clips were taken for finished ones."""
    truth_clips.main([str(puppets), str(tmp_path / "clips")])
    record = (tmp_path / "clips" / "00000" / clip_folder.RECORD).read_bytes()
    truth_clips.main([str(puppets), str(tmp_path / "clips")])
    write_puppets(PuppetPlan(folder=tmp_path / "others", videos=1, frames=3, size=(128, 128), seed=5))
    with pytest.raises(BadInput, match=r"00000: it is not the clip of .*others/videos/00000\.mp4"):
        truth_clips.main([str(tmp_path / "others"), str(tmp_path / "clips")])
    assert (tmp_path / "clips" / "00000" / clip_folder.RECORD).read_bytes() == record


def test_a_folder_without_truth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no truth"):
        truth_clips.main([str(tmp_path), str(tmp_path / "out")])
