"""How a stage speaks while it works, without knowing who listens: the command line passes its console. And who speaks:
of several processes that torchrun started, the first."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Protocol


class Progress(Protocol):
    """How far something long is; a context manager."""

    def update(self, n: int = 1, **fields: Any) -> None: ...

    def __enter__(self) -> Progress: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Talk(Protocol):
    """``note`` says something by the way, ``warn`` what the user should act on, ``progress`` shows long work."""

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def progress(self, total: int | None, desc: str, unit: str = "frame") -> Progress: ...


class _NoProgress:
    def update(self, n: int = 1, **fields: Any) -> None:
        pass

    def __enter__(self) -> _NoProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Silent:
    """Says nothing: for callers that are programs."""

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    def progress(self, total: int | None, desc: str, unit: str = "frame") -> Progress:
        return _NoProgress()


class WarningLog:
    """Pass everything on to another ``Talk`` and keep its warnings, for the record of a run."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self._talk.note(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self._talk.warn(text)

    def progress(self, total: int | None, desc: str, unit: str = "frame") -> Progress:
        return self._talk.progress(total, desc, unit)


def rank_here() -> int:
    """This process's rank among those that torchrun started; 0 where it started none."""
    return int(os.environ["RANK"]) if world_here() > 1 else 0


def world_here() -> int:
    """How many processes torchrun started; 1 where this one is alone."""
    named = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    return int(os.environ["WORLD_SIZE"]) if named else 1
