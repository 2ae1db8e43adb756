"""Help texts and errors in plain technical English: programs print, report and resume (``docs/design.md``, prose)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stableanimator_cli import errors
from stableanimator_cli.cli.verbs import VERBS, load_verb
from tests.conftest import ROOT

WORDS = re.compile(
    r"\b(told|tells?|says?|talk|kept|goes on|gone on|go on|anew|begun|broken off|nobody|whoever)\b", re.I
)


def help_texts(command: Any, name: str) -> Iterator[tuple[str, str]]:
    yield name, command.help or ""
    yield name, command.short_help or ""
    for option in command.params:
        yield f"{name} {option.opts[-1]}", getattr(option, "help", None) or ""
    for inner in getattr(command, "commands", {}).values():
        yield from help_texts(inner, f"{name} {inner.name}")


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_no_private_words(verb: str) -> None:
    texts = [*help_texts(load_verb(verb), verb), (verb, VERBS[verb].summary)]
    assert len(texts) > 3
    assert [(where, text) for where, text in texts if WORDS.search(text)] == []


ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
MESSAGES = {"fail", "require", "error", "info", "warning", "_broken", "_note", "_ok"}
FILES = sorted((ROOT / "stableanimator_cli").rglob("*.py"))


def messages(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of string constants passed to error classes, to their factories and to reporters."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.value if isinstance(node.func, ast.Attribute) and node.func.attr == "because" else node.func
        if isinstance(name, ast.Attribute):
            name = ast.Name(name.attr)
        if not isinstance(name, ast.Name) or name.id not in ERRORS | MESSAGES:
            continue
        for given in [*node.args, *(keyword.value for keyword in node.keywords)]:
            for part in ast.walk(given):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.lineno, part.value


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT / "stableanimator_cli")))
def test_errors_and_messages_have_no_private_words(file: Path) -> None:
    found = messages(file.read_text(encoding="utf-8"))
    assert [(line, text) for line, text in found if WORDS.search(text)] == []


def test_messages_are_found() -> None:
    source = 'raise BadInput.because(p, f"{p} was kept", hint="h")\nerrors.NoFace("a" + b)\nreporter.info("c")\nd("e")'
    assert [text for _, text in messages(source)] == [" was kept", "h", "a", "c"]


def test_private_words_are_noticed() -> None:
    assert WORDS.search("A run that was cut goes on where it stopped.")


PRIVATE = re.compile(r"\b(told|talk|kept|goes on|gone on|anew|begun|nobody)\b", re.I)
QUOTED = {
    "docs/formats.md": {"nobody"},  # a code of `sa preprocess --lint`
    "stableanimator_cli/preprocess/quality.py": {"nobody"},
    "stableanimator_cli/app/examples.py": {"talk"},  # the name of a movement
    "stableanimator_cli/puppets/moves.py": {"talk"},
    "stableanimator_cli/clip_folder.py": {"kept"},  # keys of JSON
    "stableanimator_cli/preprocess/clip.py": {"kept"},
    "stableanimator_cli/preprocess/report.py": {"kept"},
    "stableanimator_cli/puppets/dataset.py": {"kept"},
}
"""Words that are data of files which exist. The log is left out: it quotes what was."""


def test_code_and_pages_have_no_private_words() -> None:
    texts = [path for suffix in ("*.py", "*.j2") for path in (ROOT / "stableanimator_cli").rglob(suffix)]
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    found = {}
    for path in (*texts, *(page for page in pages if page.name != "log.md")):
        words = {word.lower() for word in PRIVATE.findall(path.read_text(encoding="utf-8"))}
        if words:
            found[path.relative_to(ROOT).as_posix()] = words
    assert found == QUOTED
