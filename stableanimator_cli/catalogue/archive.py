"""Extract one file of an untrusted zip.

A member is found by its file name and written under the catalogue's name, so paths of the archive are not used. Folders
and links are skipped. At most the recorded size is unpacked; without one, at most ``RATIO`` times the packed size and
``LONGEST`` bytes.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from stableanimator_cli.catalogue.schema import WeightFile
from stableanimator_cli.catalogue.store import check_disk_space, copy_stream, differs, writing
from stableanimator_cli.errors import ModelDamaged

RATIO = 100
"""Weights hardly compress; zeros do a thousandfold."""
LONGEST = 64 << 30
_SMALL = 1 << 20  # bytes that are always unpacked
# zipfile has no error of its own for half of what can be wrong with an archive
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, LookupError, RuntimeError, MemoryError,
)  # fmt: skip


def unpack(packed: Path, member: WeightFile, target: Path, label: str) -> None:
    """Write the file of ``packed`` that has the name of ``member`` to ``target``, a temporary path.

    Raises ``ModelDamaged`` if ``packed`` is no zip, lacks the file, or exceeds the limits; the caller removes
    ``target``.
    """
    name, shown = PurePosixPath(member.path).name, packed.name.removesuffix(".part")
    try:
        with zipfile.ZipFile(packed) as archive:
            found = _member(archive, name)
            if found is None:
                raise ModelDamaged(f"{label}: {shown} does not hold {name}", hint="see its CARD.md")
            if found.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without bounds
                raise zipfile.BadZipFile(f"{name} is packed by method {found.compress_type}")
            limit = _limit(found, member, packed)
            if found.file_size > limit:
                raise _too_long(label, member, found.file_size)
            check_disk_space(target.parent, found.file_size, label)
            with archive.open(found) as source, writing(target), target.open("wb") as stream:
                if copy_stream(source, stream, limit) > limit:
                    raise _too_long(label, member, limit + 1)
    except _DAMAGE as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ModelDamaged(f"{label}: {shown}: not a zip that can be unpacked: {why}", hint="try again") from None


def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo | None:
    """The file of that name in the highest folder."""
    found = [
        info
        for info in archive.infolist()
        if PurePosixPath(info.filename).name == name
        and not info.is_dir()
        and not stat.S_ISLNK(info.external_attr >> 16)
    ]
    return min(found, key=lambda info: len(info.filename), default=None)


def _limit(found: zipfile.ZipInfo, member: WeightFile, packed: Path) -> int:
    if member.bytes is not None:
        return member.bytes
    size = min(found.compress_size, os.path.getsize(packed))
    return min(max(_SMALL, RATIO * size), LONGEST)


def _too_long(label: str, member: WeightFile, size: int) -> ModelDamaged:
    if member.bytes is not None:
        return differs(label, f"{size} bytes", f"{member.bytes} bytes")
    return ModelDamaged(
        f"{label}: it would become {size} bytes, far more than the archive holds of it; not unpacked",
        hint="record its size as `bytes` in model.toml if the file is meant to be that long",
    )
