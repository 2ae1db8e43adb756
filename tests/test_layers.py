"""Who may import whom (``docs/design.md`` §3), read from the syntax tree: nothing is imported to find out."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "stableanimator_cli"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))

GROUND = {
    "errors",
    "backbone_facts",
    "records",
    "config",
    "progress",
    "distributed",
    "files",
    "readers",
    "readers_fields",
    "devices",
    "distributions",
    "host_memory",
    "cards",
    "html_pages",
    "callable_package",
    "version",
}
STORES = {"catalogue", "media", "motion"}
FOLDER = GROUND | STORES | {"clip_folder"}
ROOMS = {"detect", "nets", "diffusion", "metrics", "puppets"}
VERBS = {"preprocess", "animate", "train", "evaluate"}
ENGINE = {"engine", "engine.memory", "engine.training"}

MAY_IMPORT = {
    **dict.fromkeys(GROUND, GROUND),
    "version": GROUND | {"api", "diffusers_pipeline"},  # the names that programs import, at their first use
    **{room: GROUND | {room} for room in STORES},
    "clip_folder": GROUND | STORES,
    **{room: FOLDER | {room} for room in ROOMS},
    "engine": FOLDER | ROOMS | {"engine"},
    "engine.training": FOLDER | ROOMS | {"engine", "engine.training"},
    "engine.memory": FOLDER | ROOMS | ENGINE,
    **{verb: FOLDER | ROOMS | ENGINE | {verb} for verb in VERBS},
    "bench": FOLDER | ROOMS | ENGINE | VERBS | {"api", "bench"},
    "api": FOLDER | ROOMS | ENGINE | VERBS | {"api"},
    "diffusers_pipeline": FOLDER | ROOMS | ENGINE | VERBS,
    "doctor": GROUND | {"catalogue", "doctor"},
    "app": FOLDER | ROOMS | ENGINE | VERBS | {"api", "app"},
    "cli": FOLDER | ROOMS | ENGINE | VERBS | {"app", "bench", "doctor", "cli"},
    "main": GROUND | {"cli"},
}

# Where a distribution may be imported at all: rooms, or files by their pattern.
ONLY_IN = {
    "torch": {"nets", "diffusion", "metrics", "animate", "train", "evaluate", "bench", "diffusers_pipeline"} | ENGINE,
    "diffusers": {"nets", "train", "bench", "diffusers_pipeline"} | ENGINE,
    "transformers": {"nets", "train", "bench", "diffusers_pipeline"} | ENGINE,
    "accelerate": {"train", "bench"} | ENGINE,
    "onnxruntime": {"detect/onnx.py"},
    "onnx": {"nets", "detect"},
    "insightface": {"detect"},
    "rtmlib": {"detect"},
    "av": {"media"},
    "rich": {"cli/console.py"},
    "tqdm": {"cli/console.py"},
    "typer": {"cli"},
    "jinja2": {"html_pages.py"},
    "matplotlib": {"bench/frontier_plot.py", "evaluate/figures.py", "evaluate/plots.py", "evaluate/strips.py"},
    **{name: {"app"} for name in ("gradio", "fastapi", "starlette", "uvicorn")},
    "click": set(),  # Typer carries its own
    "torchvision": set(),  # docs/log.md: breaks transformers by being there
}
LIGHT = {"catalogue", "cli", "main"}  # what the shell's completion imports: standard library and Typer at the top
HEAVY = {"numpy", "cv2", "PIL", "skimage", "scipy", "safetensors", "einops"} | set(ONLY_IN) - {"typer"}


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    top: bool  # runs when the file is imported: not inside a function, not for type checkers only


def room_of(module: str) -> str:
    """``stableanimator_cli.media.encode`` -> ``media``; the two packages inside the engine are rooms of their own."""
    parts = module.split(".")[1:]
    if not parts:
        return "version"
    if parts[0] == "__main__":
        return "main"
    inner = ".".join(parts[:2])
    return inner if inner in ENGINE else parts[0]


def imports(path: PurePosixPath, source: str) -> Iterator[Import]:
    """All imports of the file at ``path``, relative ones by their full name."""

    def walk(node: ast.AST, top: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                module = child.module or ""
                if child.level:
                    module = ".".join((PACKAGE, *path.parts)[: -child.level] + ((module,) if module else ()))
                if module == PACKAGE:  # from stableanimator_cli import media: the names are the modules
                    for alias in child.names:
                        name = PACKAGE if alias.name.startswith("__") else f"{PACKAGE}.{alias.name}"
                        yield Import(name, child.lineno, top)
                else:
                    yield Import(module, child.lineno, top)
            lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from walk(child, top and not lazy and not typing_only)

    yield from walk(ast.parse(source), True)


def violations(path: PurePosixPath, source: str) -> list[str]:
    """What the file at ``path`` (relative to the package) must not import."""
    own = (
        room_of(".".join((PACKAGE, *path.with_suffix("").parts))) if path != PurePosixPath("__init__.py") else "version"
    )
    found = []
    for item in imports(path, source):
        root = item.module.split(".")[0]
        where = f"{path}:{item.line}"
        if root == PACKAGE:
            target = room_of(item.module)
            if target not in MAY_IMPORT[own]:
                found.append(f"{where}: {own} must not import {target}")
            if own == "cli" and item.top and target not in {"cli", "config", "errors", "version", "progress"}:
                found.append(f"{where}: {target} belongs inside the verb's body")
            if own == "cli" and path.name not in ("verbs.py",) and _is_other_verb(path, item.module):
                found.append(f"{where}: verbs are blind to one another")
            continue
        if root in {"tools", "tests"}:
            found.append(f"{where}: {root} is not part of the package")
        allowed = ONLY_IN.get(root)
        if allowed is not None and own not in allowed and not any(path.match(pattern) for pattern in allowed):
            found.append(f"{where}: {root} has no place in {own}")
        if own in LIGHT and item.top and root in HEAVY:
            found.append(f"{where}: {root} at the top makes the shell wait")
        if own in GROUND and item.top and root in HEAVY - {"numpy"}:
            found.append(f"{where}: the ground is standard library and numpy")
    return found


def _is_other_verb(path: PurePosixPath, module: str) -> bool:
    shared = {"app", "command", "options", "console", "downloads", path.stem}
    parts = module.split(".")
    return parts[:2] == [PACKAGE, "cli"] and len(parts) > 2 and parts[2] not in shared


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT / PACKAGE)))
def test_a_file_keeps_to_its_layer(file: Path) -> None:
    inside = PurePosixPath(file.relative_to(ROOT / PACKAGE).as_posix())
    assert violations(inside, file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT / PACKAGE)))
def test_a_file_is_one_room(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400
    assert "util" not in file.stem


@pytest.mark.parametrize(
    ("path", "source", "what"),
    [
        ("animate/run.py", "from stableanimator_cli.train import run", "animate must not import train"),
        ("cli/animate.py", "from stableanimator_cli.animate import run", "inside the verb's body"),
        ("cli/animate.py", "def f():\n    from stableanimator_cli.cli.models import app", "blind to one another"),
        ("detect/pose.py", "import torch", "torch has no place in detect"),
        ("detect/face.py", "import onnxruntime as ort", "onnxruntime has no place in detect"),
        ("detect/face.py", "from stableanimator_cli.nets import arcface", "detect must not import nets"),
        ("motion/geometry.py", "from stableanimator_cli import media", "motion must not import media"),
        ("motion/geometry.py", "from .. import media", "motion must not import media"),
        ("motion/geometry.py", "from ..nets.unet import UNet", "motion must not import nets"),
        ("motion/geometry.py", "def f():\n    import av", "av has no place in motion"),
        ("engine/render.py", "import stableanimator_cli.animate.run", "engine must not import animate"),
        ("errors.py", "from stableanimator_cli.catalogue import names", "errors must not import catalogue"),
        ("catalogue/schema.py", "import numpy as np", "makes the shell wait"),
        ("config/schema.py", "import cv2", "standard library and numpy"),
        ("cli/options.py", "import click", "click has no place in cli"),
        (
            "engine/render.py",
            "from stableanimator_cli.engine.memory import fit",
            "engine must not import engine.memory",
        ),
        ("bench/run.py", "from tools import publish", "tools is not part of the package"),
        ("clip_folder.py", "from stableanimator_cli.detect import face", "clip_folder must not import detect"),
    ],
)
def test_the_rules_catch_what_they_forbid(path: str, source: str, what: str) -> None:
    assert what in " ".join(violations(PurePosixPath(path), source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cli/animate.py", "def f():\n    from stableanimator_cli.animate import run"),
        ("catalogue/schema.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy"),
        ("media/encode.py", "import av\nfrom stableanimator_cli.media.image import read"),
        ("engine/memory/train.py", "from stableanimator_cli.engine.training import model"),
        ("cli/verbs.py", "from stableanimator_cli.cli import models"),
    ],
)
def test_the_rules_let_pass_what_they_allow(path: str, source: str) -> None:
    assert violations(PurePosixPath(path), source) == []


def import_graph() -> dict[str, set[str]]:
    """Modules of the package and the modules that each imports anywhere, annotations aside."""
    names = {_module_name(file): file for file in FILES}
    graph: dict[str, set[str]] = {}
    for name, file in names.items():
        graph[name] = set()
        for node in _runtime_nodes(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= (inner & names.keys()) or {node.module or ""}
        graph[name] = graph[name] & names.keys() - {name}
    return graph


def _module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _runtime_nodes(child)


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports, or an empty list."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for target in sorted(graph[name]):
                if found := visit(target, [*path, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in graph if (found := visit(name, []))), [])


def test_no_module_imports_itself_through_others() -> None:
    assert find_cycle(import_graph()) == []
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


# What would run code that another program wrote, and what of it is allowed: names of errors, and plain data.
CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
OBJECTS = (
    "send_object_list", "recv_object_list", "broadcast_object_list", "scatter_object_list", "all_gather_object",
    "gather_object", "broadcast_object",
)  # fmt: skip


def unpickling(source: str) -> list[str]:
    """Where a file could unpickle: imports of picklers, object collectives, ``torch.load`` and NumPy with objects."""
    found = []
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            found += [f"{line}: import {alias.name}" for alias in node.names if alias.name.split(".")[0] in CODE]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in CODE:
            found += [f"{line}: {alias.name}" for alias in node.names if alias.name != "UnpicklingError"]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{line}: {alias.name}" for alias in node.names if alias.name in OBJECTS]
        elif isinstance(node, ast.Attribute) and node.attr in OBJECTS:
            found.append(f"{line}: {node.attr}")
        elif isinstance(node, ast.Call):
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if ast.unparse(node.func) == "torch.load" and given.get("weights_only") != "True":
                found.append(f"{line}: torch.load without weights_only=True")
            if given.get("allow_pickle", "False") != "False":
                found.append(f"{line}: allow_pickle")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT / PACKAGE)))
def test_nothing_is_unpickled(file: Path) -> None:
    assert unpickling(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, pickle as p",
        "def f():\n    from pickle import loads",
        "from torch.distributed import all_gather_object",
        "dist.broadcast_object_list([x])",
        "accelerate.utils.gather_object(x)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_what_unpickles_is_seen(source: str) -> None:
    assert len(unpickling(source)) == 1


def test_data_and_names_of_errors_pass() -> None:
    source = "from pickle import UnpicklingError\ntorch.load(p, weights_only=True)\nnp.load(p, allow_pickle=False)"
    assert unpickling(source) == []
