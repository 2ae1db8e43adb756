"""Register weights of this machine under ``cache_dir()``, so that a catalogue name opens them.

Four kinds of folder are accepted: a model folder (a trained checkpoint: it becomes a new name), a download of the
reference implementation (``layouts.py``), a pipeline in diffusers' layout (``pipelines.py``), and loose files with the
name, and the recorded size, of a listed file. This module chooses the targets; ``place.py`` links, copies and converts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue import layouts, pipelines
from stableanimator_cli.catalogue.damage import check_size
from stableanimator_cli.catalogue.place import PICKLES, WEIGHTS, Convert, Import, place_files, place_folder
from stableanimator_cli.catalogue.schema import FILE_NAME, Entry, read
from stableanimator_cli.errors import BadInput, ModelMissing


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """Registered files, weight files of the folder that were left, and remarks."""

    taken: tuple[Import, ...]
    left: tuple[Path, ...]
    remarks: tuple[str, ...] = ()


@dataclass
class _Job:
    """The files of one folder to register."""

    folder: Path
    copy: bool
    convert: Convert | None
    planned: list[Import] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def take(self, name: str, role: str, source: Path, path: str, *, weights: bool = True) -> None:
        """Plan to register ``source`` as the file ``path`` of the entry ``name``."""
        converted = weights and self.convert is not None and source.suffix in PICKLES
        if weights:
            check_size(source, None)
        if self.copy or converted:
            self.check_link(source)
        if converted:
            path = Path(path).with_suffix(".safetensors").as_posix()
        self.planned.append(Import(name=name, role=role, source=source, path=path, converted=converted))

    def check_link(self, source: Path) -> None:
        """Refuse to copy the target of a link that leads out of the folder."""
        real, folder = source.resolve(), self.folder.resolve()
        allowed = [folder, (self.folder.parent / "models" / layouts.FACE).absolute()]
        for above in folder.parents:  # the hub's cache: its snapshots are links to its blobs
            if above.name == "snapshots" and above.parent.name.startswith("models--"):
                allowed.append(above.parent / "blobs")
        if not any(real.is_relative_to(root) for root in allowed):
            raise BadInput.because(
                source,
                f"it is or is behind a link that leads out of {self.folder}, to {real}",
                hint="import the folder that the link leads to, or import without --copy and --convert to link to it",
            )


def import_folder(folder: str | Path, *, copy: bool = False, convert: Convert | None = None) -> ImportReport:
    """Register the weights in ``folder``, which is not changed. ``convert(source, target)`` writes a pickle's weights
    as safetensors; None leaves pickles as they are.

    Raises ``ModelMissing`` if nothing in it is known or SA_HOME cannot be written. Raises ``BadInput`` if it is no
    folder, a name is taken, a file would be overwritten, or a link leads out of the folder.
    """
    folder = catalogue.expanded(folder)
    if not os.path.isdir(folder):
        found = "a file" if os.path.isfile(folder) else "no folder"
        raise BadInput(folder, found, "a folder with weights", hint="name the folder that holds the weights")
    if folder.resolve().is_relative_to((catalogue.cache_dir() / "models").resolve()):
        raise BadInput.because(
            folder, "it is in the folder of imported models", hint="`sa models list` shows the names that open it"
        )
    job = _Job(folder=folder, copy=copy, convert=convert)
    if (folder / FILE_NAME).is_file():
        taken = _model_folder(job, read(folder))
    else:
        pipelines.refuse_other(folder, catalogue.names())
        pipeline = pipelines.entry_of(folder)
        layout = layouts.detect_layout(folder) if pipeline is None else None  # its vae is not Stable Video Diffusion's
        if layout is not None:
            _layout(job, layout)
        _loose(job, pipeline)
        taken = place_files(job.planned, copy=copy, convert=convert)
    if not taken:
        raise ModelMissing(
            f"{folder}: found no {FILE_NAME}, none of {layouts.SIGNS}, and no file of a catalogue entry",
            hint="`sa models show NAME` lists the files of an entry",
        )
    sources = {t.source.resolve() for t in taken}
    left = tuple(p for p in sorted(_weights(folder)) if p.resolve() not in sources)
    return ImportReport(taken=tuple(taken), left=left, remarks=tuple(job.remarks))


def _model_folder(job: _Job, found: Entry) -> list[Import]:
    """Register every visible file of a folder with a model.toml under the model's name."""
    if (catalogue.builtin_dir() / found.name / FILE_NAME).is_file():
        raise BadInput(
            found.folder / FILE_NAME,
            f"name = {found.name!r}",
            "a name that the catalogue does not have yet",
            hint="give the model another name there, or use the folder by its path",
        )
    if (catalogue.cache_dir() / "models").resolve().is_relative_to(found.folder.resolve()):
        raise BadInput.because(
            found.folder, "it holds the folder of imported models", hint="set SA_HOME to a folder outside of it"
        )
    relative_needs = [n for n in found.needs if n not in catalogue.names() and not catalogue.expanded(n).is_absolute()]
    if relative_needs:
        raise BadInput(
            found.folder / FILE_NAME,
            f"needs = {relative_needs[0]!r}",
            "catalogue names or absolute folders, because the model is opened from elsewhere",
            hint="import that model first and name it here, or use this folder by its path",
        )
    for path in sorted(found.folder.rglob("*")):
        relative = path.relative_to(found.folder)
        if path.is_symlink() and not path.exists():
            job.remarks.append(f"{path}: a link that leads nowhere was left out")
        if not path.is_file() or path.name.endswith(".part") or any(part.startswith(".") for part in relative.parts):
            continue
        role = next((r for r, c in found.components.items() if relative.as_posix() in (c.file, c.config)), "")
        weights = path.suffix in WEIGHTS and path.stat().st_size > 0
        if job.convert is not None and path.suffix in PICKLES and not _is_listed(found, relative.as_posix()):
            job.check_link(path)
            weights = False  # not a network's: the optimiser's state beside a checkpoint is no state dict of tensors
        job.take(found.name, role, path, relative.as_posix(), weights=weights)
    return place_folder(found.name, job.planned, copy=job.copy, convert=job.convert)


def _is_listed(found: Entry, path: str) -> bool:
    """Whether a relative path is that of a component, of a file in its folder, or of a row of [[files]]."""
    files = [component.file for component in found.components.values() if component.file is not None]
    return found.file(path) is not None or any(path == file or path.startswith(f"{file}/") for file in files)


def _layout(job: _Job, layout: layouts.Layout) -> None:
    if not layout.fits_svd:
        raise BadInput.because(
            layout.folder, "its networks have other sizes than the released ones", hint=layouts.EXPORT_ALL
        )
    order = catalogue.entry(layout.primary).face_channel_order
    if layout.face_channel_order not in (None, order):
        raise BadInput(
            layout.folder,
            f"a training checkpoint whose faces are {layout.face_channel_order}",
            f"the released weights, whose faces are {order}",
            hint="open it by its path: `--model FOLDER`",
        )
    for (name, role), found in layout.parts.items():
        listed = catalogue.entry(name).components.get(role)
        if listed is None or listed.file is None:
            continue
        if found.file is not None and found.file.is_dir():
            for path in sorted(found.file.glob("*.onnx")):
                job.take(name, role, path, path.name)
        elif found.file is not None:
            # the listed name, in the form (precision, format) that was found: `weight_names` looks for all of them
            stem = Path(listed.file).stem.removesuffix(".fp16")
            half = ".fp16" if found.file.stem.endswith(".fp16") else ""
            path = Path(listed.file).with_name(f"{stem}{half}{found.file.suffix}")
            job.take(name, role, found.file, path.as_posix())
        if found.config is not None and listed.config is not None:
            listed_config = catalogue.read_config(catalogue.entry(name).folder / listed.config)
            found_config = catalogue.read_config(found.config)
            other = [k for k, v in listed_config.items() if k in found_config and found_config[k] != v]
            if other:
                values = ", ".join(f"{k} = {found_config[k]!r} (not {listed_config[k]!r})" for k in other)
                job.remarks.append(
                    f"{found.config}: {values}; the name {name!r} uses the catalogue's values: "
                    "open the folder by its path to use its own"
                )


def _loose(job: _Job, pipeline: str | None) -> None:
    """Files that were downloaded by hand: the listed name at the top or at the listed path, with the listed size.

    ``pipeline``: the entry of pipelines that the folder is a download of; only its files are registered. Files of other
    folders are not those of a pipeline, whose index and configs have the names of Stable Video Diffusion's.
    """
    taken = {planned.source.resolve() for planned in job.planned}
    entries, damaged = catalogue.readable()
    job.remarks += [error.message for error in damaged]
    apart = {kind.entry for kind in pipelines.KINDS.values()}
    loose = [found for found in entries if found.name not in apart]
    for found in loose if pipeline is None else [catalogue.entry(pipeline)]:
        for row in found.files:
            for path in (job.folder / row.path, job.folder / Path(row.path).name):
                alike = path.is_file() and path.stat().st_size == (row.bytes or path.stat().st_size)
                if alike and path.resolve() not in taken:
                    role = next((r for r, c in found.components.items() if c.file == row.path), "")
                    job.take(found.name, role, path, row.path)
                    taken.add(path.resolve())


def _weights(folder: Path) -> Iterator[Path]:
    return (p for p in folder.rglob("*") if p.suffix in WEIGHTS and p.is_file())
