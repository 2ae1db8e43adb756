"""Remove temporary files of killed trainings."""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path

from stableanimator_cli.files import may_be_running

_RUN = r"config\.toml|metrics\.jsonl|curves\.png|scores\.jsonl|model|base|step-\d+-.+\.mp4"
_CLIP = r"faces\.npz|embeddings\.safetensors|latents-\d+x\d+\.safetensors"


def remove_from_run(run: Path) -> None:
    for folder in (run, run / "validation"):
        _remove(folder, _RUN)


def remove_from_clip(clip: Path) -> None:
    _remove(clip, _CLIP)


def _remove(folder: Path, names: str) -> None:
    """Remove files ``.NAME.PID.part`` with a name that matches ``names``, unless process PID may be running."""
    pattern = re.compile(rf"\.(?:{names})\.(\d+)\.part(?:\.mp4)?")
    with suppress(OSError):
        for path in folder.iterdir():
            match = pattern.fullmatch(path.name)
            if match is None or may_be_running(int(match[1])):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
