"""A video that is encoded while its next frames are made: a thread that writes them, behind a line of a few frames."""

from __future__ import annotations

import contextlib
import queue
import threading
from types import TracebackType

import numpy as np

from stableanimator_cli.media.encode import VideoWriter

AHEAD = 8  # frames that wait at most; x264 holds some tens itself


class WriterBehind:
    """``VideoWriter`` in a thread of its own: the same frames in the same order to the same bytes.

    Converting and encoding release the interpreter, so they run beside whatever makes the next frames: a decoder on a
    card, or one on a CPU that has a core to spare. Of an animation that is decoding and encoding alone: all windows of
    a sampling end with its last step, so there is no finished part to decode while it denoises. Who makes frames faster
    than they are encoded waits once ``ahead`` of them stand in line; memory does not grow with the video.

    What goes wrong in the thread (a full disk, a frame that is none) is raised here, by a later ``write`` or at the end
    of the block, as the error that ``VideoWriter`` gives for its frame. Left by an error or Ctrl-C the frames in line
    are dropped and the file does not appear. A frame that was written must not be changed afterwards.
    """

    def __init__(self, writer: VideoWriter, ahead: int = AHEAD) -> None:
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
        """Put one frame, RGB uint8[h,w,3], in line."""
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
            except BaseException as error:  # carried to the thread that makes the frames
                self._failed = error
