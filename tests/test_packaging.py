"""The wheel holds the catalogue, and an installed copy finds it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


def run(*args: str, cwd: Path = ROOT, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_holds_the_package_and_the_catalogue_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    models = {path.parent.name for path in (ROOT / "models").glob("*/model.toml")}
    assert models
    for name in models:
        assert f"stableanimator_cli/models/{name}/model.toml" in names
    for page in (ROOT / "stableanimator_cli").glob("*/templates/*.html.j2"):
        assert page.relative_to(ROOT).as_posix() in names
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    assert {name.split("/")[0] for name in names} == {"stableanimator_cli", info}
    assert f"{info}/licenses/LICENSE" in names


def test_an_installed_copy_finds_its_catalogue(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    ask = (
        "import stableanimator_cli, pathlib; from stableanimator_cli import catalogue;"
        "print(pathlib.Path(stableanimator_cli.__file__).parents[1]); print(*catalogue.names())"
    )
    env = {"PYTHONPATH": str(target), "SA_HOME": str(tmp_path / "home"), "PYTHONSAFEPATH": "1"}
    where, names = run("-c", ask, cwd=tmp_path, **env).splitlines()
    assert Path(where) == target
    assert set(names.split()) == {path.parent.name for path in (ROOT / "models").glob("*/model.toml")}
    assert run("-m", "stableanimator_cli", "--version", cwd=tmp_path, **env).startswith("sa ")


def test_every_requirement_is_pinned_to_one_version_within_its_range() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert len(pins) == len(lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), str(requirement)
    opencv = {pins[canonicalize_name(name)] for name in ("opencv-python", "opencv-contrib-python")}
    assert len(opencv) == 1  # two builds of one cv2, or one breaks the other
    assert not {"torchvision", "opencv-python-headless", "opencv-contrib-python-headless"} & set(pins)


def test_torch_is_asked_for_as_new_as_what_is_called() -> None:
    """``torch.optim.Muon`` and ``fp32_precision`` came with 2.9."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (torch,) = (wanted for wanted in map(Requirement, project["dependencies"]) if wanted.name == "torch")
    assert not torch.specifier.contains("2.8.0")
    assert torch.specifier.contains("2.9.0")
