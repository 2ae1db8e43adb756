"""Replace and remove clip folders, but only those that ``sa`` wrote, and in them only its own files.

A clip folder is ours if its ``clip.json`` is the record of a clip, or its motion carries our mark. In addition, every
entry must have a name that ``sa preprocess`` or ``sa train --cache`` writes. Any other folder raises an error that
names the entry.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from stableanimator_cli import clip_folder
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import carries_mark, sha256_of

_SOURCE = re.compile(rf"{clip_folder.SOURCE}(\.\w+)?")
_FILES = re.compile(
    r"clip\.json|motion\.npz|faces\.npz|sheet\.jpg|embeddings\.safetensors|latents-\d+x\d+\.safetensors|\..+\.\d+\.part"
)
_FOLDERS = ("images", "poses", "faces")  # the reference implementation's layout
_FRAME = re.compile(r"frame_\d+\.png|\.frame_\d+\.png\.\d+\.part")
_AWAY = "move it away, or choose another -o"


def check_clip_replaceable(folder: Path) -> None:
    """Raise ``BadInput`` that names a foreign entry, unless ``folder`` is missing, empty or a clip folder of ours."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        kind = "a link" if folder.is_symlink() else "not a folder"
        raise BadInput.because(folder, f"a clip folder cannot replace it: it is {kind}", hint=_AWAY)
    if not any(folder.iterdir()):
        return
    try:
        digest = str(clip_folder.open_folder(folder).record["source"]["sha256"])
        written = True
    except (BadInput, KeyError, TypeError):
        digest = ""
        motion = folder / clip_folder.MOTION  # its mark is enough if clip.json is damaged
        written = motion.is_file() and carries_mark(motion)
    foreign = next((path for path, ours in _entries(folder, digest) if not ours), None)
    if foreign is not None:
        problem = f"it is in the way of the clip folder {folder} and was not written by sa"
        raise BadInput.because(foreign, problem, hint=_AWAY)
    if not written:
        problem = f"it has no {clip_folder.RECORD} of a clip, so it is not replaced by the clip folder of that name"
        raise BadInput.because(folder, problem, hint=_AWAY)


def replace_clip(temp: Path, folder: Path) -> None:
    """Rename the finished clip ``temp`` to ``folder``. An existing clip is renamed first: if the run is killed in
    between, the clip is unfinished. Raises as ``check_clip_replaceable``, and ``OSError``."""
    check_clip_replaceable(folder)
    if not folder.exists():
        os.replace(temp, folder)
        return
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    os.replace(folder, old)
    try:
        os.replace(temp, folder)
    except OSError:
        with suppress(OSError):
            os.replace(old, folder)
        raise
    _remove(old)


def remove_clip(folder: Path) -> None:
    """Remove a clip folder of ours, if there is one. Raises as ``check_clip_replaceable``."""
    check_clip_replaceable(folder)
    if folder.is_dir():
        _remove(folder)


def remove_leftovers(folders: Iterable[Path]) -> None:
    """Remove temporary folders of killed runs for the clips ``folders``. Call it with the output locked. A temporary
    folder with foreign files stays."""
    clips_in: dict[Path, set[str]] = {}
    for folder in folders:
        clips_in.setdefault(folder.parent, set()).add(folder.name)
    for parent, names in clips_in.items():
        for left in sorted(parent.glob(".*.*")):
            named = re.fullmatch(r"\.(.+)\.\d+\.(part|old)", left.name)
            known = named is not None and named[1] in names and left.is_dir() and not left.is_symlink()
            if known and all(ours for _, ours in _entries(left)):
                _remove(left)


def _entries(folder: Path, digest: str | None = None) -> Iterator[tuple[Path, bool]]:
    """Every entry of a clip folder, files before their folder, and whether ``sa`` wrote it. With ``digest`` a copied
    source must still have that sha256."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            yield path, bool(_SOURCE.fullmatch(path.name))
        elif not path.is_dir():
            ours = _SOURCE.fullmatch(path.name) and (digest is None or sha256_of(path) == digest)
            yield path, path.is_file() and bool(_FILES.fullmatch(path.name) or ours)
        elif path.name == clip_folder.SOURCE or path.name in _FOLDERS:
            known = digest is None or path.name != clip_folder.SOURCE or sha256_of(path) == digest
            for inside in sorted(path.iterdir()):
                plain = inside.is_file() and not inside.is_symlink()
                if path.name == clip_folder.SOURCE:
                    yield inside, plain and known and not inside.name.startswith(".")
                else:
                    yield inside, plain and bool(_FRAME.fullmatch(inside.name))
            yield path, True
        else:
            yield path, False


def _remove(folder: Path) -> None:
    """Remove our files in a folder, and the folder if it is empty then."""
    with suppress(OSError):
        for path, ours in list(_entries(folder)):
            if ours:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        folder.rmdir()
