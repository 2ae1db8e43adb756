"""Register weights that are already on this machine under ``home()``, so that a catalogue name opens them.

Three kinds of folder are taken: a model folder (a trained checkpoint: becomes a name of its own), a download of the
reference implementation (``catalogue_layouts``), and loose files that bear the name, and where it is recorded the size,
of a listed file. Files are linked; ``copy`` copies them. Pickles are written as safetensors, once, by the ``convert``
that the caller brings: this room reads no weights.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stableanimator_cli import catalogue, catalogue_layouts
from stableanimator_cli.catalogue_schema import FILE_NAME, Entry, read
from stableanimator_cli.errors import BadInput, ModelMissing

Convert = Callable[[Path, Path], None]
"""Writes the weights of the first file, a pickle, to the second as safetensors."""

_WEIGHTS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".onnx")
_PICKLES = (".pth", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """One file that a name opens from now on. ``how``: ``linked``, ``copied``, ``converted`` or ``already there``."""

    name: str
    role: str
    source: Path
    target: Path
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What ``import_folder`` took, the weight files of the folder that it left, and remarks worth a look."""

    taken: tuple[Imported, ...]
    left: tuple[Path, ...]
    remarks: tuple[str, ...] = ()


@dataclass
class _Job:
    """The work on one folder: what goes where, and what was done."""

    copy: bool
    convert: Convert | None
    taken: list[Imported] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def take(self, name: str, role: str, source: Path, path: str) -> None:
        """Register ``source`` as the file ``path`` of the entry ``name``."""
        catalogue.check_size(source, None, name)
        target = catalogue.store(name) / path
        if self.convert is not None and source.suffix in _PICKLES:
            target = target.with_suffix(".safetensors")
            how = self.converted(source, target, self.convert)
        else:
            how = self.put(source, target)
        self.taken.append(Imported(name=name, role=role, source=source, target=target, how=how))

    def put(self, source: Path, target: Path) -> str:
        source = source.resolve()
        if target.exists() and target.resolve() == source:
            return "already there"
        if target.exists() and not target.is_symlink():
            if target.stat().st_size == source.stat().st_size:
                return "already there"
            raise BadInput(
                target,
                f"a file of {target.stat().st_size} bytes",
                f"none, or the {source.stat().st_size} bytes of {source}",
                hint="delete it first if the new one shall take its place",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        part.unlink(missing_ok=True)
        if self.copy:
            shutil.copyfile(source, part)
        else:
            try:
                part.symlink_to(source)
            except OSError as error:
                raise BadInput(
                    target.parent, f"a file system without links ({error})", "links", hint="use --copy"
                ) from None
        os.replace(part, target)
        return "copied" if self.copy else "linked"

    def converted(self, source: Path, target: Path, convert: Convert) -> str:
        told = source.stat()
        if target.is_file() and not target.is_symlink():
            if target.stat().st_mtime_ns == told.st_mtime_ns:
                return "already there"
            raise BadInput(
                target,
                "weights from another file",
                f"none, or those converted from {source}",
                hint="delete it first if the new ones shall take its place",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.stem}.part.safetensors")
        try:
            convert(source, part)
            os.utime(part, ns=(told.st_atime_ns, told.st_mtime_ns))  # tells later which file it was made from
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        return "converted"


def import_folder(folder: str | Path, *, copy: bool = False, convert: Convert | None = None) -> ImportReport:
    """Register what ``folder`` holds. Its own files are never changed. ``convert(source, target)`` writes a pickle's
    weights as safetensors; ``None`` leaves pickles as they are.

    Raises ``ModelMissing`` where nothing in it is known, ``BadInput`` where it is no folder, a name is taken, or a file
    would have to be overwritten.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise BadInput(folder, "no folder", "a folder with weights")
    job = _Job(copy=copy, convert=convert)
    if (folder / FILE_NAME).is_file():
        _model_folder(job, read(folder))
    else:
        layout = catalogue_layouts.recognise(folder)
        if layout is not None:
            _layout(job, layout)
        _loose(job, folder)
    if not job.taken:
        raise ModelMissing(
            f"{folder}: found no {FILE_NAME}, none of {catalogue_layouts.SIGNS}, and no file of a catalogue entry",
            hint="`sa models show NAME` lists the files of an entry",
        )
    sources = {t.source.resolve() for t in job.taken}
    left = tuple(p for p in sorted(_weights(folder)) if p.resolve() not in sources)
    return ImportReport(taken=tuple(job.taken), left=left, remarks=tuple(job.remarks))


def _model_folder(job: _Job, found: Entry) -> None:
    """A folder with a model.toml becomes the name that it bears; every file of it is registered."""
    if (catalogue.shipped() / found.name / FILE_NAME).is_file():
        raise BadInput(
            found.folder / FILE_NAME,
            f"name = {found.name!r}",
            "a name that the catalogue does not have yet",
            hint="give the model another name there, or use the folder by its path",
        )
    told_from_here = [n for n in found.needs if n not in catalogue.names() and not Path(n).expanduser().is_absolute()]
    if told_from_here:
        raise BadInput(
            found.folder / FILE_NAME,
            f"needs = {told_from_here[0]!r}",
            "catalogue names or absolute folders, because the model is opened from elsewhere",
            hint="import that model first and name it here, or use this folder by its path",
        )
    files = sorted(p for p in found.folder.rglob("*") if p.is_file() and not p.name.endswith(".part"))
    # the description comes last: the name must not exist before its files do
    for path in sorted(files, key=lambda p: p == found.folder / FILE_NAME):
        relative = path.relative_to(found.folder).as_posix()
        role = next((r for r, c in found.components.items() if relative in (c.file, c.config)), "")
        if path.stat().st_size == 0 or path.suffix not in _WEIGHTS:
            how = job.put(path, catalogue.store(found.name) / relative)
            target = catalogue.store(found.name) / relative
            job.taken.append(Imported(name=found.name, role=role, source=path, target=target, how=how))
        else:
            job.take(found.name, role, path, relative)


def _layout(job: _Job, layout: catalogue_layouts.Layout) -> None:
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
            ours = catalogue.read_config(catalogue.entry(name).folder / listed.config)
            theirs = catalogue.read_config(found.config)
            other = [k for k, v in ours.items() if k in theirs and theirs[k] != v]
            if other:
                told = ", ".join(f"{k} = {theirs[k]!r} (not {ours[k]!r})" for k in other)
                job.remarks.append(
                    f"{found.config}: {told}; the name {name!r} uses the catalogue's values: "
                    "open the folder by its path to use its own"
                )


def _loose(job: _Job, folder: Path) -> None:
    """Files that were fetched by hand: the listed name at the top, or at the listed place, with the listed size."""
    taken = {t.source.resolve() for t in job.taken}
    for name in catalogue.names():
        found = catalogue.entry(name)
        for row in found.files:
            for place in (folder / row.path, folder / Path(row.path).name):
                alike = place.is_file() and place.stat().st_size == (row.bytes or place.stat().st_size)
                if alike and place.resolve() not in taken:
                    role = next((r for r, c in found.components.items() if c.file == row.path), "")
                    job.take(name, role, place, row.path)
                    taken.add(place.resolve())


def _weights(folder: Path) -> Iterator[Path]:
    return (p for p in folder.rglob("*") if p.suffix in _WEIGHTS and p.is_file())
