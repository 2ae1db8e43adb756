"""Backbones are exchangeable: nothing outside of ``engine/backbones`` compares their names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

from stableanimator_cli.backbone_facts import BACKBONES, DEFAULT, Trained
from stableanimator_cli.catalogue import entry
from stableanimator_cli.catalogue.pipelines import KINDS

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ROOT / "stableanimator_cli" / "engine" / "backbones"
FILES = sorted(
    path
    for folder in ("stableanimator_cli", "tools", "integrations")
    for path in (ROOT / folder).rglob("*.py")
    if ROOMS not in path.parents and path.name != "backbone_facts.py" and "tests" not in path.parts[len(ROOT.parts) :]
)


def decisions(source: str) -> Iterator[int]:
    """Lines that compare with, match or look up a backbone's name, and those that ask for a backbone's class."""
    rooms = {name.replace("-", "_") for name in BACKBONES}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare | ast.MatchValue):
            words = {word.value for word in ast.walk(node) if isinstance(word, ast.Constant)}
            if words & set(BACKBONES):
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and (node.module or "").endswith("engine.backbones"):
            yield from (node.lineno for alias in node.names if alias.name in rooms)
        elif isinstance(node, ast.ImportFrom) and ".engine.backbones." in f".{node.module}.":
            yield node.lineno


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_decides_by_the_name_of_a_backbone(file: Path) -> None:
    assert list(decisions(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        f"if model.backbone == {DEFAULT!r}: pass",
        f"x = 1 if name in ({DEFAULT!r}, 'other') else 2",
        f"match name:\n    case {DEFAULT!r}: pass",
        f"from stableanimator_cli.engine.backbones import {DEFAULT}",
        f"from stableanimator_cli.engine.backbones.{DEFAULT} import BACKBONE",
    ],
)
def test_such_decisions_are_seen(source: str) -> None:
    assert len(list(decisions(source))) == 1


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_has_a_room_with_all_methods(name: str) -> None:
    backbone = import_module(f"stableanimator_cli.engine.backbones.{name.replace('-', '_')}").BACKBONE
    protocol = import_module("stableanimator_cli.engine.backbones").Backbone
    methods = {word for word in vars(protocol) if not word.startswith("_")}
    assert len(methods) >= 8
    assert {word for word in methods if not callable(getattr(backbone, word, None))} == set()


def test_every_trainable_backbone_is_a_choice_of_sa_train() -> None:
    assert set(get_args(Trained)) == {name for name, facts in BACKBONES.items() if facts.trainable}


def test_pipelines_are_opened_with_all_parts_of_their_backbone() -> None:
    for kind in KINDS.values():
        assert set(kind.parts) == set(BACKBONES[entry(kind.entry).backbone or DEFAULT].networks)
