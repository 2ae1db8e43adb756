"""Frames of a video in batches, decoded by a thread that runs ahead of what uses them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np

from stableanimator_cli.records import Clip

_AHEAD = 2
_PATIENCE = 1.0  # seconds between checks that the decoder is alive
T = TypeVar("T")
Times = Sequence[Fraction | None]


def read_ahead(clip: Clip, batch: int) -> Generator[tuple[list[np.ndarray], Times]]:
    """Frames and their times in batches, decoded by a thread that runs at most two batches ahead.

    An error of the decoder is raised here, after the batches before it. Closing the iterator stops the thread.
    """
    line: queue.Queue[tuple[list[np.ndarray], list[Fraction | None]] | BaseException | None] = queue.Queue(_AHEAD)
    stop = threading.Event()

    def put(item: tuple[list[np.ndarray], list[Fraction | None]] | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return line.put(item, timeout=0.1)
            except queue.Full:
                continue

    def decode() -> None:
        frames: list[np.ndarray] = []
        times: list[Fraction | None] = []
        items: Iterator[Any] = iter(())
        try:
            items = clip.frames()
            for time, frame in items:
                frames.append(frame)
                times.append(time)
                if len(frames) == batch:
                    put((frames, times))
                    frames, times = [], []
                if stop.is_set():
                    return
            if frames:
                put((frames, times))
            put(None)
        except BaseException as error:  # raised in the thread that reads the queue
            put(error)
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=decode, name="decode", daemon=True)
    with _running(thread, stop):
        while (item := _next(line, thread)) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item


def _next(line: queue.Queue[T], thread: threading.Thread) -> T:
    """The next item of a queue that ``thread`` fills. Raises ``RuntimeError`` if it ended without an end mark."""
    while True:
        try:
            return line.get(timeout=_PATIENCE)
        except queue.Empty:
            if not thread.is_alive() and line.empty():
                raise RuntimeError(f"the thread {thread.name!r} ended without an end mark") from None


@contextmanager
def _running(thread: threading.Thread, stop: threading.Event) -> Iterator[None]:
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
