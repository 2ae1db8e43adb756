"""Folders of the reference implementation train identity: their faces are found once, and a data set without any is
refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stableanimator_cli.errors import NoFace
from stableanimator_cli.media import read_image, write_image
from stableanimator_cli.progress import NullReporter
from stableanimator_cli.train import run
from stableanimator_cli.train.loop import Loop
from tests.train.clip_folders import write_upstream


def upstream(path: Path, *, face: bool) -> Path:
    """A clip in which the tests' detector finds a face, or none, in every frame."""
    write_upstream(path, 6)
    for file in (path / "images").iterdir() if face else ():
        picture = np.array(read_image(file))
        picture[8:40, 16:48] = (255, 0, 0)
        write_image(file, picture)
    return path


def flags(data: Path, model: Path, out: Path, **more: Any) -> dict[str, Any]:
    given = {
        "dataset": [data], "model": str(model), "output": out, "steps": 1, "frames": 2, "batch": 2, "warmup": 0,
        "rate": 1e-3, "train": "adapters", "workers": 0, "device": "cpu", "stride": 1, "checkpointing": "off",
    }  # fmt: skip
    return given | more


class Heard(NullReporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def norms(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Gradient norms of the first step, of the Face Encoder and of the ID adapters."""
    found: dict[str, float] = {}
    update = Loop._update

    def watched(self: Loop, optimizer: Any, trained: Any, *rest: Any) -> float:
        for part in ("face_encoder.", ".id_to_"):
            grads = [p.grad for name, p in trained.items() if part in name]
            assert grads
            found[part] = float(torch.stack([torch.zeros(()) if g is None else g.norm() for g in grads]).norm())
        return update(self, optimizer, trained, *rest)

    monkeypatch.setattr(Loop, "_update", watched)
    return found


@pytest.mark.parametrize("cache", ["off", "latents,embeddings"])
def test_identity_is_trained_on_folders_of_the_reference_implementation(seeing_model, tmp_path, norms, cache):
    for name in ("00001", "00002"):
        upstream(tmp_path / "data/rec" / name, face=True)
    heard = Heard()
    report = run.run(flags=flags(tmp_path / "data", seeing_model, tmp_path / "run", cache=cache), reporter=heard)
    assert norms["face_encoder."] > 0
    assert norms[".id_to_"] > 0
    assert heard.warnings == []
    assert report.to_json()["data"]["faceless"] == []
    faces = tmp_path / "data/rec/00001/faces.npz"
    before = faces.stat().st_mtime_ns
    run.run(flags=flags(tmp_path / "data", seeing_model, tmp_path / "again", cache=cache))
    assert faces.stat().st_mtime_ns == before  # found once


def test_few_faces_are_a_warning(seeing_model, tmp_path, norms):
    for number in range(3):
        upstream(tmp_path / "data/rec" / f"0000{number}", face=number == 0)
    heard = Heard()
    run.run(flags=flags(tmp_path / "data", seeing_model, tmp_path / "run"), reporter=heard)
    assert heard.warnings == ["2 of 3 clips have no recognisable face: they do not train identity"]


def test_no_face_at_all_is_an_error_unless_faces_are_off(seeing_model, tiny_model, tmp_path):
    upstream(tmp_path / "data/rec/00001", face=False)
    with pytest.raises(NoFace, match="none of the 1 clips has a recognisable face") as caught:
        run.run(flags=flags(tmp_path / "data", seeing_model, tmp_path / "run"))
    assert "--face off" in str(caught.value.hint)
    assert caught.value.exit_code == 4
    upstream(tmp_path / "other/rec/00001", face=True)
    with pytest.raises(NoFace, match="model 'tiny' has no face detector"):
        run.run(flags=flags(tmp_path / "other", tiny_model, tmp_path / "blind"))
    run.run(flags=flags(tmp_path / "data", seeing_model, tmp_path / "off", face="off", train="pose+face"))
