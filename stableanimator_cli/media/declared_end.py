"""Ends that headers of AVI, ASF (WMV) and GIF declare: FFmpeg reads a truncated one as if it were whole.

MPEG-TS and MPEG-PS declare none, so that a truncated one cannot be recognised.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")  # ASF specification, 10.1: the GUIDs as stored
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA_START = 50  # bytes of a data object before its packets
_RIFF_OPEN = (0, 0xFFFFFFFF)  # sizes that writers leave until they know better
_RIFF_SLACK = 8  # some writers count the chunk's own header
_GIF_PICTURE, _GIF_EXTENSION = 0x2C, 0x21  # GIF89a, 20 and 23 to 26


def early_end(path: Path, container: str) -> str | None:
    """The problem of a file that ends before the end it declares, else None. ``container`` is FFmpeg's name of it."""
    if container not in ("gif", *_ENDS):
        return None
    with path.open("rb") as file:
        if container == "gif":
            return "the end of the data within a frame" if _ends_within_gif_frame(file) else None
        end = _ENDS[container](file)
        size = file.seek(0, 2)
    return f"the end of the data after {size} of {end} bytes" if end is not None and size < end else None


def _ends_within_gif_frame(file: BinaryIO) -> bool:
    """A missing trailer alone loses nothing, and some writers leave it out."""
    head = file.read(13)
    file.seek(_palette(head[10]) if len(head) == 13 else 0, 1)
    while (block := file.read(1)) and block[0] in (_GIF_PICTURE, _GIF_EXTENSION):
        descriptor = file.read(9 if block[0] == _GIF_PICTURE else 1)
        if len(descriptor) == 9:
            file.seek(_palette(descriptor[8]) + 1, 1)
        if not _skipped(file):
            return block[0] == _GIF_PICTURE
    return False


def _palette(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _skipped(file: BinaryIO) -> bool:
    """Skip the sub-blocks of a GIF block, False if the file ends before their terminator."""
    while size := file.read(1):
        if size[0] == 0:
            return True
        file.seek(size[0], 1)
    return False


def _end_of_asf(file: BinaryIO) -> int | None:
    start = file.read(24)
    if len(start) < 24 or start[:16] != _ASF_HEADER:
        return None
    header = int.from_bytes(start[16:], "little")
    file.seek(min(header, 2**62))
    data = file.read(24)
    size = int.from_bytes(data[16:], "little")
    # A live recording leaves the size of a data object without packets, or all ones.
    return header + size if data[:16] == _ASF_DATA and _ASF_DATA_START < size < 2**62 else None


def _end_of_avi(file: BinaryIO) -> int | None:
    """The end of the last RIFF chunk: AVI, then AVIX as often as OpenDML needs beyond 1 GiB."""
    end = None
    while len(start := file.read(12)) == 12 and start[:4] == b"RIFF":
        size = struct.unpack_from("<I", start, 4)[0]
        if size in _RIFF_OPEN:
            return None
        end = file.tell() - 4 + size
        file.seek(end + size % 2)
    return None if end is None else end - _RIFF_SLACK


_ENDS: Mapping[str, Callable[[BinaryIO], int | None]] = {"asf": _end_of_asf, "avi": _end_of_avi}
