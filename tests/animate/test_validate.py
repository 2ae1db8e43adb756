"""A checkpoint is run as it was trained, or the user says that it is to be otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stableanimator_cli.animate.run import uses_face
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.people import PeopleConfig
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.records import ModelFolder


def model(folder: Path, training: str) -> ModelFolder:
    (folder / "model.toml").write_text(f'name = "trained"\n[training]\n{training}')
    return ModelFolder(
        name="trained", path=folder, files={}, configs={}, defaults={}, licence="", face_channel_order="bgr"
    )


def asked(**given: Any) -> AnimateConfig:
    return AnimateConfig(reference=Path("a.png"), motion=Path("b.mp4"), output=Path("c.mp4"), **given)


def test_another_adapter_than_the_trained_one_is_refused_unless_forced(tmp_path: Path) -> None:
    trained = model(tmp_path, 'id_adapter = "addition"\nface = "on"\n')
    assert uses_face(asked(id_adapter="addition"), trained)
    assert uses_face(asked(id_adapter="norm", force_ablation=True), trained)
    with pytest.raises(ConfigError, match="expected addition, which trained was trained with") as caught:
        uses_face(asked(id_adapter="norm"), trained)
    assert "--force-ablation" in str(caught.value.hint)


def test_a_model_trained_without_a_face_gets_none(tmp_path: Path) -> None:
    trained = model(tmp_path, 'face = "off"\n')
    assert not uses_face(asked(), trained)
    assert uses_face(asked(force_ablation=True), trained)
    for people, flag in ((PeopleConfig(pair=((0, 1),)), "--pair"), (PeopleConfig(face_of=("0=b.png",)), "--face-of")):
        with pytest.raises(ConfigError, match=f"{flag}: found .*, expected a model with faces, and trained was"):
            uses_face(asked(people=people), trained)
        assert uses_face(asked(people=people, force_ablation=True), trained)
    assert not uses_face(asked(people=PeopleConfig(pair=())), trained)


def test_a_model_that_says_nothing_of_its_training_is_free(tmp_path: Path) -> None:
    assert uses_face(asked(id_adapter="norm"), model(tmp_path, ""))
    assert uses_face(asked(id_adapter="norm"), model(tmp_path, 'id_adapter = "norm"\n'))
