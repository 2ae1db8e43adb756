"""Find a model: resolve a catalogue name or a folder to a ``ModelFolder`` whose files are on this machine.

An entry is a folder with a ``model.toml`` (``schema.py``). Its files are beside that, or in ``cache_dir()`` once they
are downloaded (``download.py``) or imported (``register.py``). A folder given by path is a model folder, such as a
trained checkpoint, or the reference implementation's download (``layouts.py``). This module does not use the network
and imports nothing heavy: the shell calls ``names()`` at each TAB.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stableanimator_cli import backbone_facts
from stableanimator_cli.catalogue import hub, layouts, pipelines
from stableanimator_cli.catalogue.configs import read_config
from stableanimator_cli.catalogue.damage import broken_base, check_size, in_utf8, missing_need, no_entry
from stableanimator_cli.catalogue.home import BUILTIN, cache_dir, expanded
from stableanimator_cli.catalogue.missing_folder import missing_folder
from stableanimator_cli.catalogue.needed import Needed, needed
from stableanimator_cli.catalogue.schema import FILE_NAME, Component, Entry, read
from stableanimator_cli.catalogue.weight_files import WEIGHT_SUFFIXES, weight_names
from stableanimator_cli.errors import BadInput, ModelDamaged, ModelMissing, SaError

if TYPE_CHECKING:  # records imports numpy: see above
    from stableanimator_cli.records import ChannelOrder, ModelFolder

DEFAULT = "stableanimator"
DRAWN = "puppet"


def builtin_dir() -> Path:
    """The catalogue of the program: inside an installed package, or at the root of a checkout."""
    for folder in BUILTIN:
        # a stray folder named models beside site-packages is not a catalogue
        if next(folder.glob(f"*/{FILE_NAME}"), None) is not None:
            return folder
    package = BUILTIN[0].parent
    raise ModelDamaged(f"{package}: the catalogue folder 'models' is missing", hint="install the package again")


def model_cache_dir(name: str) -> Path:
    """The folder for files of the entry ``name``; not created here."""
    return cache_dir() / "models" / name


def names() -> list[str]:
    """All names that ``--model`` accepts: built-in entries and imported model folders."""
    found = (p for folder in (builtin_dir(), cache_dir() / "models") for p in folder.glob(f"*/{FILE_NAME}"))
    # hidden folders are being imported; a link may lead to a deleted checkpoint
    return sorted({p.parent.name for p in found if p.parent.name[0] != "." and os.path.isfile(p)})


def entry(name: str) -> Entry:
    """The catalogue entry ``name``; raises ``ModelMissing`` with the nearest name."""
    if name in names():
        for folder in (builtin_dir() / name, model_cache_dir(name)):
            if (folder / FILE_NAME).is_file():
                found = read(folder)
                if found.name != name:
                    raise ModelDamaged(f"{folder / FILE_NAME}: name: found {found.name!r}, expected {name!r}")
                return found
    raise no_entry(name, model_cache_dir(name), names())


def readable() -> tuple[list[Entry], list[SaError]]:
    """All entries that can be read, and the errors of the others."""
    entries, damaged = [], []
    for name in names():
        try:
            entries.append(entry(name))
        except SaError as error:
            damaged.append(error)
    return entries, damaged


def load_entry(name_or_folder: str | Path) -> Entry:
    """The entry of a catalogue name, or of a folder that holds a ``model.toml``."""
    if isinstance(name_or_folder, str) and name_or_folder in names():
        return entry(name_or_folder)
    folder = expanded(name_or_folder)
    if os.path.isdir(folder):
        return read(folder)
    if folder.name == str(name_or_folder):
        return entry(folder.name)
    raise missing_folder(folder, str(name_or_folder), names())


def search_paths(found: Entry) -> tuple[Path, ...]:
    """Folders of an entry's files, first match wins. A folder given by path is searched alone: a checkpoint with a
    catalogue name must not use the weights of that entry."""
    catalogued = found.folder.parent in (builtin_dir(), cache_dir() / "models")
    return (found.folder, model_cache_dir(found.name)) if catalogued else (found.folder,)


def locate(found: Entry, path: str) -> Path | None:
    """The file (or folder of files) at the relative ``path`` of an entry, None if it is missing.

    ``<root>/<name>/<path>`` is an archive that was unpacked one level too deep, as ``antelopev2.zip`` is.
    """
    for root in search_paths(found):
        for base in (root, root / found.name):
            target = base / path
            if found.file(path) is not None or Path(path).suffix in WEIGHT_SUFFIXES:
                for name in weight_names(target.name):
                    if os.path.isfile(target.with_name(name)):
                        return target.with_name(name)
                continue
            if os.path.isfile(target):
                return target
            inside = [base / f.path for f in found.under(path) if not f.optional]
            if all(map(os.path.isfile, inside)) if inside else next(target.glob("*"), None) is not None:
                return target
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Files of one role. ``has_weights``: it has a weight file (a scheduler has none). ``optional``: only a download
    with optional files brings it. ``names`` and ``searched``: file names and folders of the search."""

    file: Path | None = None
    config: Mapping[str, Any] | None = None
    digests: Mapping[Path, str] = field(default_factory=dict)
    has_weights: bool = False
    optional: bool = False
    names: str = ""
    searched: tuple[Path, ...] = ()
    owner: str = ""


def open_model(name_or_folder: str | Path, require: Sequence[str] = (), useful: Sequence[str] = ()) -> ModelFolder:
    """Resolve a model and the models it needs.

    ``name_or_folder`` is a catalogue name, a folder with a ``model.toml``, or a download of the reference
    implementation. ``require`` lists indispensable roles; ``files`` has the others if they are on this machine. If one
    is missing, the error offers ``useful`` ones with it. Own components come before those of ``needs``. Raises
    ``ModelMissing`` (names the missing files, the searched folders and the remedies), ``ModelDamaged`` (a size that is
    not the recorded one, a git-lfs pointer, an unreadable config), ``BadInput`` (a file, or a path not in UTF-8).
    """
    from stableanimator_cli.records import ModelFolder

    found, layout = _find(name_or_folder)
    parts: dict[str, _Part] = {}
    order: ChannelOrder | None = layout.face_channel_order if layout is not None else None
    backbone: str | None = None
    defaults: dict[str, Any] = {}
    texture: dict[str, float | None] = {}
    for owner in with_needs(found):
        own = layout is None or owner.name != found.name
        for role, component in owner.components.items():
            if own:
                part = _part(owner, role, component)
            else:
                part = _Part(has_weights=component.file is not None, names=component.file or "", owner=owner.name)
            if layout is not None:
                part = _overlay(part, layout, owner, role, component)
            first = parts.get(role)
            if first is None or (first.file is None and not first.has_weights):
                parts[role] = part if first is None else replace(part, config=first.config or part.config)
        order, backbone = order or owner.face_channel_order, backbone or owner.backbone
        texture.setdefault(owner.name, owner.max_texture_error)
        defaults = {**owner.defaults, **defaults}
    missing = [role for role in require if role not in parts or parts[role].file is None]
    if missing:
        raise _missing(str(name_or_folder), found, layout, parts, missing, useful)
    return ModelFolder(
        name=found.name,
        path=layout.folder if layout is not None else found.folder,
        files=in_utf8({role: part.file for role, part in parts.items() if part.file is not None}),
        configs={role: part.config for role, part in parts.items() if part.config is not None},
        defaults=defaults,
        licence=found.licence,
        face_channel_order=order or "bgr",
        digests={path: digest for part in parts.values() for path, digest in part.digests.items()},
        warnings=() if layout is None else layout.warnings(order),
        backbone=backbone or backbone_facts.DEFAULT,
        max_texture_error=texture.get(parts["vae"].owner) if "vae" in parts else None,  # it is a figure of that VAE
    )


def open_animator(name: str | Path) -> ModelFolder:
    """``open_model`` with all networks that the model's backbone needs."""
    return open_model(name, open_model(name).networks)


def default_model(require: Sequence[str] = (), useful: Sequence[str] = ()) -> str:
    """The model of a run without ``--model``: ``SA_MODEL``, else ``stableanimator`` if its files exist."""
    named = os.environ.get("SA_MODEL")
    if named:
        return named
    try:
        open_model(DEFAULT, require, useful)
    except ModelMissing as error:
        message = f"no --model given, and {error.message}"
        raise ModelMissing(message, hint=error.hint, downloads=error.downloads, optional=error.optional) from None
    return DEFAULT


def plan_model(name_or_folder: str | Path | None) -> ModelFolder:
    """``open_animator`` for a plan: files that a download of the catalogue would write need not exist.

    ``files`` has their future paths, and ``downloads`` the names. None: the default model.
    """
    name = name_or_folder or os.environ.get("SA_MODEL") or DEFAULT
    try:
        return open_animator(name)
    except ModelMissing as error:
        if not error.downloads:
            raise
        downloads = error.downloads
    model, found = open_model(name), _find(name)[0]
    files = dict(model.files)
    for owner in with_needs(found):
        for role, component in owner.components.items():
            if component.file is not None:
                files.setdefault(role, model_cache_dir(owner.name) / component.file)
    return replace(model, files=files, downloads=downloads)


def _find(name_or_folder: str | Path) -> tuple[Entry, layouts.Layout | None]:
    """The entry of a name or folder, and the layout if it is a reference download."""
    if isinstance(name_or_folder, str) and name_or_folder in names():
        return entry(name_or_folder), None
    folder = expanded(name_or_folder)
    if folder.name == FILE_NAME and os.path.isfile(folder):
        folder = folder.parent
    if os.path.isfile(folder):
        raise BadInput(folder, "a file", "a model folder or a catalogue name", hint="name the folder that holds it")
    if not os.path.isdir(folder):
        if folder.name == str(name_or_folder):
            return entry(folder.name), None
        named = of_hub(str(name_or_folder))
        if isinstance(named, Entry):
            return named, None
        if named is None:
            raise missing_folder(folder, str(name_or_folder), names())
        folder = named
    if (folder / FILE_NAME).is_file():
        return read(folder), None
    pipelines.refuse_other(folder, names())
    layout = pipelines.detect_pipeline(folder) or layouts.detect_layout(folder)
    if layout is None:
        inner = folder / "model"  # of the folder of a training run
        hint = (
            f"name the model folder in it: {inner}"
            if (inner / FILE_NAME).is_file()
            else "name a model folder, the reference implementation's 'checkpoints' folder or its parent, or one of: "
            + ", ".join(names())
        )
        raise ModelMissing(f"{folder}: found no {FILE_NAME} and none of {layouts.SIGNS}", hint=hint)
    return entry(layout.primary), layout


def of_hub(name: str) -> Entry | Path | None:
    """A model of the hub, OWNER/NAME: the entry with that source, or the folder in the hub's cache if the entry's own
    files are not complete. None if neither exists."""
    if not hub.is_model_name(name):
        return None
    found = next((one for one in readable()[0] if one.source == f"{hub.HUB}/{name}"), None)
    complete = found is not None and all(locate(found, row.path) for row in found.files if not row.optional)
    return found if complete else hub.snapshot(name) or found


def with_needs(found: Entry) -> Iterator[Entry]:
    """The entry and its needs, nearest first. A need is a catalogue name, or a folder relative to the entry."""
    queue, seen = [found], {found.folder.resolve()}
    while queue:
        owner = queue.pop(0)
        yield owner
        for need in owner.needs:
            folder = owner.folder / expanded(need)
            if need not in names() and not os.path.isfile(folder / FILE_NAME):
                raise missing_need(owner, need, names())
            other = entry(need) if need in names() else read(folder)
            if other.folder.resolve() not in seen:
                seen.add(other.folder.resolve())
                queue.append(other)


def download_of(models: Sequence[str], *, optional: bool = False) -> Needed:
    """The download of ``sa models pull MODELS``, ``optional`` with ``--all``: missing files, their size, licences."""
    owners = (owner for name in models for owner in with_needs(entry(name)))
    return needed(models, owners, locate, optional=optional)


def _part(owner: Entry, role: str, component: Component) -> _Part:
    config = None
    if component.config is not None:
        candidates = (root / component.config for root in search_paths(owner))
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise ModelDamaged(
                f"{owner.folder / FILE_NAME}: [components.{role}]: its config {component.config!r} is missing"
            )
        config = read_config(path)
    if component.file is None:
        return _Part(config=config, owner=owner.name)
    file, digests = locate(owner, component.file), dict[Path, str]()
    if file is not None:
        rows = [f for f in (owner.file(component.file),) if f is not None] or list(owner.under(component.file))
        for row in rows:
            path = file / Path(row.path).relative_to(component.file) if file.is_dir() else file
            if path.is_file() and path.name == Path(row.path).name:
                check_size(path, row.bytes)
                if row.sha256 is not None:
                    digests[path] = row.sha256
        check_size(file, None)  # and the files that no row lists
    names = [f.path for f in owner.under(component.file) if not f.optional] or [component.file]
    searched = search_paths(owner)
    if len(searched) > 1:  # of the catalogue: its two folders are named once, for all entries
        names, searched = [f"{owner.name}/{n}" for n in names], tuple(r.parent for r in searched)
    return _Part(
        file=file,
        config=config,
        digests=digests,
        has_weights=True,
        optional=(listed := owner.file(component.file)) is not None and listed.optional,
        names=", ".join(names),
        searched=searched,
        owner=owner.name,
    )


def _overlay(part: _Part, layout: layouts.Layout, owner: Entry, role: str, component: Component) -> _Part:
    """Prefer the files of a downloaded folder to the catalogue's, whose config fills a gap."""
    found = layout.parts.get((owner.name, role))
    if found is None:
        return replace(part, searched=(*layout.searched.get((owner.name, role), ()), *part.searched))
    if found.file is not None:
        check_size(found.file, None)
    config = part.config
    if found.config is not None:
        config = read_config(found.config)
    elif config is None and component.config is not None:
        config = read_config(owner.folder / component.config)
    return _Part(file=found.file, config=config, has_weights=part.has_weights, owner=owner.name)


def _missing(
    name: str,
    found: Entry,
    layout: layouts.Layout | None,
    parts: Mapping[str, _Part],
    roles: Sequence[str],
    useful: Sequence[str],
) -> ModelMissing:
    if layout is not None and not layout.fits_svd:
        return layout.incomplete(roles)
    catalogued = layout is not None or len(search_paths(found)) > 1
    absent = [role for role in roles if role not in parts]
    if catalogued and absent and (len(absent) == len(roles) or found.task != "animate"):  # no download would help
        return ModelMissing(
            f"model {name!r} is for other work ({found.task}): it has no {', '.join(absent)}",
            hint="`sa models list` shows the task of each model",
        )
    lacking, searched = [], dict[Path, None]()
    for role in roles:
        part = parts.get(role)
        named = "not one of its components" if part is None else part.names or "without a file in model.toml"
        lacking.append(f"{role} ({named})")
        searched.update(dict.fromkeys(part.searched if part is not None else ()))
    owners = tuple(dict.fromkeys(parts[r].owner for r in (*roles, *useful) if r in parts and parts[r].file is None))
    if found.name in owners or not owners:  # its download includes those of its needs
        owners = (found.name,) if catalogued else tuple(owner for owner in owners if owner != found.name)
    downloads = tuple(owner for owner in owners if owner in names() and entry(owner).has_addresses)
    optional = any(parts[role].optional for role in roles if role in parts)
    hint: str | tuple[str, ...] = f"copy it to that folder, or name its path in {found.folder / FILE_NAME}"
    hint = broken_base(found.folder) or hint
    if catalogued:
        hint = entry(owners[0]).by_hand if owners[0] in names() else found.by_hand
    if downloads:
        fetch = download_of(downloads, optional=optional)
        hint = (
            f"download {fetch.size}: {fetch.command}; {fetch.terms}",
            f"or register files that you have: `sa models import FOLDER`; or use the small built-in model for drawn "
            f"characters: `--model {DRAWN}`",
        )
    return ModelMissing(
        f"model {name!r} lacks {', '.join(lacking)}; looked in {', '.join(map(str, searched)) or found.folder}",
        hint=hint,
        downloads=downloads,
        optional=optional,
    )
