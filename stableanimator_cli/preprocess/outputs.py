"""Checks, before any work, of all that a run of ``sa preprocess`` will write."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from stableanimator_cli.config.preprocess import PreprocessConfig
from stableanimator_cli.errors import BadInput, ConfigError, command
from stableanimator_cli.files import carries_mark, check_apart, check_replaceable, remove_temporary_files
from stableanimator_cli.media.decode import VIDEO_SUFFIXES
from stableanimator_cli.preprocess import reference_layout
from stableanimator_cli.preprocess.clip import FAILED, PreprocessJob, failure_path, is_failure
from stableanimator_cli.preprocess.clip_entries import check_clip_replaceable
from stableanimator_cli.preprocess.inputs import Source
from stableanimator_cli.preprocess.report import INDEX, PAGE, REPORT

_FILES = (".npz", ".npy", ".json", *VIDEO_SUFFIXES)
REPORTS = (INDEX, REPORT, PAGE, *reference_layout.LISTS.values())


def poses_files(config: PreprocessConfig) -> list[Path]:
    """The files of ``--poses``: the skeleton video, its motion, and the preview if requested."""
    video = config.poses
    if video is None:
        return []
    preview = [video.with_name(f"{video.stem}.preview.png")] if config.preview else []
    return [video, video.with_suffix(".npz"), *preview]


def remove_unfinished(files: Iterable[Path]) -> None:
    """Remove temporary files, and folders of frames, of killed runs for ``files``. Call it with them locked."""
    for file in files:
        remove_temporary_files(file.parent, rf"{re.escape(file.name)}(?:\.old)?", folders=True)


def check_folder_name(output: Path) -> None:
    """Raise for ``-o`` of clips that is a file, or would be a new folder with the name of a motion or a video."""
    if output.exists() and not output.is_dir():
        raise BadInput(output, "a file", "a folder for the clips", hint="choose another -o")
    if output.suffix.lower() in _FILES and not output.exists():
        video = output.with_suffix(".mp4")
        hint = (
            f"`{command('--poses', video)}` writes a skeleton video, and its keypoints to {video.with_suffix('.npz')}"
        )
        raise ConfigError("--output", str(output), "a folder for the clips of videos", hint=hint)


def check_files(files: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raise ``BadInput`` if one of the ``files`` to write is an input, is inside one, or may not be replaced."""
    for file in files:
        check_apart(file, inputs)
    check_replaceable(*files)


def check_folder(job: PreprocessJob, sources: Sequence[Source]) -> None:
    """Raise ``BadInput`` if a foreign file or folder is in the way of a report or of a clip of ``sources``.

    Nothing is in the way of a finished clip, as it is not replaced.
    """
    out = job.out
    check_reports(out, job.config.layout)
    if (out / FAILED).exists() and not (out / FAILED).is_dir():
        raise BadInput.because(out / FAILED, "it is in the way of a folder of that name", hint="choose another -o")
    for source in sources:
        failure = failure_path(out, source)
        if failure.exists() and not is_failure(failure):
            check_replaceable(failure)
        try:
            for folder in job.folders(source):
                check_clip_replaceable(folder)
        except BadInput:
            if job.finished(source) is None:
                raise


def check_reports(out: Path, layout: str) -> None:
    """Raise ``BadInput`` if a foreign file in ``out`` has the name of a report.

    If ``report.json`` is ours, so are the other reports, marked or not.
    """
    check_replaceable(out / REPORT)
    if not ((out / REPORT).is_file() and carries_mark(out / REPORT)):
        check_replaceable(out / INDEX, out / PAGE)
        if layout == "upstream":
            check_replaceable(*(out / name for name in reference_layout.LISTS.values()))


def inputs_of(config: PreprocessConfig, sources: Sequence[Source] = ()) -> list[Path]:
    """All paths that a run reads: inputs, paths in lists, and the reference image."""
    reference = [] if config.reference is None else [config.reference]
    return [*config.inputs, *(source.path for source in sources), *reference]
