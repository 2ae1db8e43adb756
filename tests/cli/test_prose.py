"""Help texts in plain technical English: programs print, report and resume (``docs/design.md``, prose)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from stableanimator_cli.cli.app import VERBS, load_verb

WORDS = re.compile(r"\b(told|tells?|talk|kept|goes on|gone on|go on|anew|begun|broken off|nobody|whoever)\b", re.I)


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


def test_private_words_are_noticed() -> None:
    assert WORDS.search("A run that was cut goes on where it stopped.")
