"""Remove temporary files of killed trainings."""

from __future__ import annotations

from pathlib import Path

from stableanimator_cli.files import remove_temporary_files

_RUN = r"config\.toml|metrics\.jsonl|curves\.png|scores\.jsonl|model|base|step-\d+-.+\.mp4"
_CLIP = r"faces\.npz|embeddings\.safetensors|latents-\d+x\d+\.safetensors"


def remove_from_run(run: Path) -> None:
    for folder in (run, run / "validation"):
        remove_temporary_files(folder, _RUN, folders=True)


def remove_from_checkpoint(folder: Path) -> None:
    remove_temporary_files(folder, r"model\.toml")


def remove_from_clip(clip: Path) -> None:
    remove_temporary_files(clip, _CLIP, folders=True)
