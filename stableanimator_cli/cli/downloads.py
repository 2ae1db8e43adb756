"""Downloads with bars, and the offer of one: on a terminal, a command continues with what it lacked."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from stableanimator_cli.cli import console
from stableanimator_cli.errors import ModelMissing

if TYPE_CHECKING:
    from stableanimator_cli.catalogue.download import Progress
    from stableanimator_cli.catalogue.schema import Entry

T = TypeVar("T")


def with_download(work: Callable[[], T], out: console.Console, *, yes: bool) -> T:
    """Run ``work``; if a model is missing, offer its download and run ``work`` again.

    Nothing is offered without a terminal (standard input and error), with ``--json``, ``--quiet`` or ``--progress
    json``, or among several processes: the error is raised. ``yes`` answers the question.
    """
    try:
        return work()
    except ModelMissing as error:
        if not error.downloads or not _can_ask(out) or not _agreed(error, out, yes=yes):
            raise
        names, optional = error.downloads, error.optional
    for name in names:
        download_model(name, out, optional=optional)
    return work()


def _can_ask(out: console.Console) -> bool:
    from stableanimator_cli import distributed

    terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
    return terminal and not out.json and not out.quiet and out.kind != "json" and distributed.world_size() == 1


def _agreed(error: ModelMissing, out: console.Console, *, yes: bool) -> bool:
    """Print what is missing and what its download takes, and ask."""
    from stableanimator_cli import catalogue

    fetch = catalogue.download_of(error.downloads, optional=error.optional)
    out.info(error.message)
    out.info(fetch.terms)
    question = f"Download {fetch.size}, and continue?"
    if yes:
        out.info(f"{question} yes")
        return True
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def download_model(name: str, out: console.Console, *, optional: bool = False) -> dict[str, list[Path]]:
    """Download the missing files of a model and of its needs. Returns ``fetched`` files and ``linked`` ones, which the
    hub's cache had."""
    from stableanimator_cli import catalogue
    from stableanimator_cli.catalogue import download

    for entry in catalogue.with_needs(catalogue.entry(name)):
        if entry.licence in ("unknown", "research-only") and any(_lacking(entry, optional)):
            out.warning(f"{entry.name}: licence {entry.licence}. {entry.licence_note}".strip())
    with download_bars(out) as bars:
        paths = download.pull(name, bars, optional=optional)
    linked = [path for path in paths if path.is_symlink()]
    fetched = [path for path in paths if path not in linked]
    if linked:
        out.info(f"{name}: {len(linked)} file(s) of the hub's cache on this machine are used")
    if fetched or not linked:
        done = f"{len(fetched)} file(s) downloaded" if fetched else "all files are installed already"
        out.info(f"{name}: {done}")
    return {"fetched": fetched, "linked": linked}


@contextlib.contextmanager
def download_bars(out: console.Console) -> Iterator[Progress]:
    """One bar per file, from the (file, done, total) that the catalogue reports."""
    with contextlib.ExitStack() as stack:
        bar: console.Progress | None = None
        shown, before = "", 0

        def show(file: str, done: int, total: int | None) -> None:
            nonlocal bar, shown, before
            if bar is None or file != shown or done < before:
                stack.close()
                bar, shown, before = stack.enter_context(out.progress(total, file, "B")), file, 0
            bar.update(done - before)
            before = done

        yield show


def _lacking(entry: Entry, optional: bool) -> Iterator[bool]:
    from stableanimator_cli import catalogue

    return (catalogue.locate(entry, f.path) is None for f in entry.files if optional or not f.optional)
