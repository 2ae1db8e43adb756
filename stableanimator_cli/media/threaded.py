"""Encoding of a video in a thread, while its next frames are generated."""

from __future__ import annotations

import contextlib
import queue
import threading
from types import TracebackType

import numpy as np

from stableanimator_cli.media.animation import AnimationWriter
from stableanimator_cli.media.encode import VideoWriter
from stableanimator_cli.media.frames_folder import FramesWriter

AHEAD = 8  # queued frames at most; x264 buffers some tens itself


class WriterBehind:
    """``VideoWriter`` in its own thread: the same frames in the same order give the same bytes.

    Conversion and encoding release the interpreter lock, so they run in parallel with the VAE decoder on a GPU or on a
    CPU with a free core. Only decoding and encoding overlap: all windows finish with the last denoising step. ``write``
    blocks while ``ahead`` frames are queued, so memory does not grow with the video.

    Errors of the thread (a full disk, an invalid frame) are raised here, by a later ``write`` or at the end of the
    block, as ``VideoWriter`` raises them. If the block ends with an error or Ctrl-C, queued frames are dropped and the
    file does not appear. A written frame must not be changed.
    """

    def __init__(self, writer: VideoWriter | AnimationWriter | FramesWriter, ahead: int = AHEAD) -> None:
        self._writer = writer
        self._line: queue.Queue[np.ndarray | None] = queue.Queue(ahead)
        self._thread = threading.Thread(target=self._work, name=f"encode {writer.path.name}", daemon=True)
        self._dropping = False
        self._failed: BaseException | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> WriterBehind:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._writer)
            self._thread.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._stack:
            self._end(dropping=error is not None)
            if error is not None:
                raise error
            self._raise()

    def write(self, frame: np.ndarray) -> None:
        """Queue one frame, RGB uint8[h,w,3]."""
        self._raise()
        self._line.put(frame)

    def _raise(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _end(self, *, dropping: bool) -> None:
        """Wait for the thread, also after Ctrl-C: a file must not be closed while it is written."""
        self._dropping = dropping
        try:
            self._line.put(None)
            self._thread.join()
        except BaseException:
            self._dropping = True
            self._line.put(None)
            self._thread.join()
            raise

    def _work(self) -> None:
        """Frames in order until None. After a failure they are dropped, so that ``write`` does not block."""
        while (frame := self._line.get()) is not None:
            if self._dropping or self._failed is not None:
                continue
            try:
                self._writer.write(frame)
            except BaseException as error:  # raised in the thread that calls write
                self._failed = error
