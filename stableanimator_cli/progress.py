"""Messages and progress of a stage. The command line's reporter is its console; programs pass none."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol


class Progress(Protocol):
    """Progress of long work, as a context manager."""

    def update(self, n: int = 1, **fields: Any) -> None: ...

    def __enter__(self) -> Progress: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Reporter(Protocol):
    """Receives messages: ``info``, ``warning`` (the user should act), and ``progress`` of long work.

    ``initial`` is what an earlier run did: it counts as done, and not in the rate.
    """

    def info(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...

    def progress(self, total: int | None, desc: str, unit: str = "frame", *, initial: int = 0) -> Progress: ...


class NullProgress:
    """Shows nothing."""

    def update(self, n: int = 1, **fields: Any) -> None:
        pass

    def __enter__(self) -> NullProgress:
        return self

    def __exit__(self, *raised: object) -> None:
        pass


class NullReporter:
    """Discard all messages."""

    def info(self, text: str) -> None:
        pass

    def warning(self, text: str) -> None:
        pass

    def progress(self, total: int | None, desc: str, unit: str = "frame", *, initial: int = 0) -> Progress:
        return NullProgress()


class WarningLog:
    """Forward to another reporter and collect the warnings for the record of a run."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.info, self.progress = reporter.info, reporter.progress
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)
        self._reporter.warning(text)
