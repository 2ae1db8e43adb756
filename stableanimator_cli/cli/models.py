"""``sa models``: list, download, verify and register models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stableanimator_cli.cli import console, options
from stableanimator_cli.cli.command import complete_model
from stableanimator_cli.cli.downloads import download_bars, download_model

if TYPE_CHECKING:
    from stableanimator_cli.catalogue.download import Check
    from stableanimator_cli.catalogue.schema import Entry

app = typer.Typer(
    name="models",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="List, download, verify and register models.",
    short_help="List, download, verify and register models.",
)

NamesArg = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="Names that `sa models list` shows.", autocompletion=complete_model),
]
ModelArg = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A catalogue name or a model folder.", autocompletion=complete_model),
]
SomeArg = Annotated[
    str | None,
    typer.Argument(
        metavar="[NAME]",
        help="A catalogue name or a model folder. Default: all installed models.",
        autocompletion=complete_model,
    ),
]
FolderArg = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER",
        help="The reference implementation's checkpoints, a trained model, or any folder with weights.",
    ),
]
AllOpt = Annotated[
    bool, typer.Option("--all", help="Download optional files too; `sa models show NAME` lists them. Default: off.")
]
CopyOpt = Annotated[bool, typer.Option("--copy", help="Copy the files instead of linking to them. Default: off.")]
ConvertOpt = Annotated[
    bool, typer.Option("--convert", help="Write .pth and .bin files as safetensors, once. Default: off.")
]


@app.command("list", short_help="List the catalogue and installed files.")
def list_(json: options.JsonOpt = False) -> None:
    """\b
    sa models list
    sa models list --json

    List the catalogue: task and licence of each model, and whether its files are installed.
    Entries that cannot be read are reported on stderr.
    """
    console.configure(json=json)
    from stableanimator_cli import catalogue

    entries, damaged = catalogue.readable()
    rows = [(e.name, e.task, _presence(e), _size(e), e.licence, e.summary) for e in entries]
    out = console.get()
    out.table("", ("name", "task", "here", "size", "licence", "what"), rows, data=True)
    for error in damaged:
        out.warning(error.message)
    if json:
        out.result({"models": [_facts(e) for e in entries], "damaged": [e.message for e in damaged]}, "")
    else:
        out.info(
            f"downloaded and imported files are in {catalogue.cache_dir() / 'models'}; set SA_HOME for another folder"
        )


@app.command(short_help="Show licence, files and settings of a model.")
def show(name: ModelArg, json: options.JsonOpt = False) -> None:
    """\b
    sa models show stableanimator
    sa models show runs/mine/checkpoints/step-3000

    Show an entry: licence and its terms, files with sizes and digests, recommended settings.
    """
    console.configure(json=json)
    from stableanimator_cli import catalogue

    entry = catalogue.load_entry(name)
    out = console.get()
    if json:
        out.result(_facts(entry), "")
        return
    order = entry.face_channel_order
    lines = [
        f"{entry.name}: {entry.summary}",
        f"licence   {entry.licence}" + (f": {entry.licence_note}" if entry.licence_note else ""),
        f"source    {entry.source or 'unknown'}",
        f"folder    {entry.folder}",
    ]
    if entry.needs:
        lines.append(f"needs     {', '.join(f'{n} ({_licence(entry, n)})' for n in entry.needs)}")
    if order is not None:
        lines.append(f"faces     channel order {order}")
    if entry.defaults:
        lines.append("settings  " + ", ".join(f"{k} {v}" for k, v in entry.defaults.items()))
    if entry.components:
        lines.append("roles     " + ", ".join(entry.components))
    out.result({}, "\n".join(lines))
    rows = [
        (
            row.path + (" (optional)" if row.optional else ""),
            _bytes(row.bytes),
            row.sha256 or "unknown",
            str(catalogue.locate(entry, row.path) or "not here"),
        )
        for row in entry.files
    ]
    if rows:
        out.table("", ("file", "size", "sha256", "place"), rows, data=True)


@app.command(short_help="Download models and their dependencies.")
def pull(
    name: NamesArg,
    all_: AllOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    progress: options.ProgressOpt = "bar",
) -> None:
    """\b
    sa models pull stableanimator
    sa models pull dwpose antelopev2
    sa models pull svd-xt --all

    Download models and their dependencies. Interrupted downloads are resumed; sizes and digests are checked.
    """
    out = console.configure(json=json, quiet=quiet, progress=progress)
    from stableanimator_cli import catalogue

    done = []
    for one in dict.fromkeys(name):
        fetched = download_model(one, out, optional=all_)
        folders = catalogue.search_paths(catalogue.entry(one))
        # a model that is complete in the program's own catalogue has no folder in the cache
        done.append({"model": one, "folder": next((f for f in folders[::-1] if f.is_dir()), folders[-1]), **fetched})
    data = done[0] if len(done) == 1 else {"models": done}
    out.result(data, "\n".join(str(row["folder"]) for row in done))


@app.command(short_help="Verify files against recorded digests.")
def verify(
    name: SomeArg = None,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    progress: options.ProgressOpt = "bar",
) -> None:
    """\b
    sa models verify
    sa models verify stableanimator --json

    Compare installed files with their recorded sizes and digests. Exits with code 5 if one differs.
    """
    out = console.configure(json=json, quiet=quiet, progress=progress)
    from stableanimator_cli import catalogue
    from stableanimator_cli.catalogue import download
    from stableanimator_cli.errors import ModelDamaged, ModelMissing

    checks: dict[str, list[Check]] = {}
    entries: dict[str, Entry] = {}
    with download_bars(out) as bars:
        requested, damaged = (
            catalogue.readable() if name is None else (catalogue.with_needs(catalogue.load_entry(name)), [])
        )
        for entry in requested:
            found = download.verify(entry, bars)
            if name is not None or any(c.file is not None for c in found):
                checks[entry.name], entries[entry.name] = found, entry
    for error in damaged:
        out.warning(error.message)
    rows = [(model, c.path, _verdict(c), c.sha256 or "-") for model, found in checks.items() for c in found]
    if rows:
        out.table("", ("model", "file", "state", "sha256"), rows, data=True)
    else:
        out.info("no files to verify: none is installed, or the model lists none")
    bad = [(model, c) for model, found in checks.items() for c in found if not c.holds]
    if json and not bad and not damaged:
        out.result({"models": {m: [_row(c) for c in found] for m, found in checks.items()}}, "")
    if bad:
        model, first = bad[0]
        problems = "; ".join(f"{m}/{c.path}: {_verdict(c)}" for m, c in bad)
        kind = ModelMissing if all(c.status == "missing" for _, c in bad) and not damaged else ModelDamaged
        raise kind(problems, hint=_mend(entries[model], first))
    if damaged:
        more = f" ({len(damaged) - 1} more cannot be read either)" if len(damaged) > 1 else ""
        raise ModelDamaged(f"{damaged[0].message}{more}", hint=damaged[0].hint)


@app.command("import", short_help="Register existing weights.")
def import_(
    folder: FolderArg,
    copy: CopyOpt = False,
    convert: ConvertOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
) -> None:
    """\b
    sa models import ~/StableAnimator/checkpoints
    sa models import ~/Downloads --convert

    Register existing weights. FOLDER is not changed; files are linked unless --copy is given.
    Ends with what sa animate, train and evaluate still lack for the released weights, and the command that
    downloads it.
    """
    out = console.configure(json=json, quiet=quiet)
    from stableanimator_cli.catalogue import download, register

    converter = None
    if convert:
        from stableanimator_cli.engine.weights import convert_to_safetensors as converter  # imports torch

    report = register.import_folder(folder, copy=copy, convert=converter)
    for remark in report.remarks:
        out.warning(remark)
    if report.left:
        out.info(f"left {len(report.left)} file(s): " + ", ".join(map(str, report.left)))
    rows = [(t.name, t.role or "-", t.how, t.source, t.target) for t in report.taken]
    out.table("", ("model", "role", "how", "from", "to"), rows, data=True)
    missing = download.needed_by_verb()
    for verb, fetch in missing.items():
        lacks = f"lacks {fetch.size}: {fetch.command}"
        out.info(f"sa {verb} with the released weights: {lacks if fetch.files else 'has all files'}")
    if json:
        taken = [
            {"model": t.name, "role": t.role, "how": t.how, "source": t.source, "target": t.target}
            for t in report.taken
        ]
        lacking = {verb: fetch.to_json() for verb, fetch in missing.items() if fetch.files}
        out.result({"taken": taken, "left": report.left, "remarks": report.remarks, "missing": lacking}, "")


def _presence(entry: Entry) -> str:
    from stableanimator_cli import catalogue

    listed = [f for f in entry.files if not f.optional] or list(entry.files)
    here = sum(catalogue.locate(entry, f.path) is not None for f in listed)
    return "yes" if here == len(listed) else f"{here} of {len(listed)}" if here else "no"


def _licence(entry: Entry, need: str) -> str:
    from stableanimator_cli import catalogue

    others = {e.name: e for e in catalogue.with_needs(entry)}
    return others[need].licence if need in others else "see there"


def _facts(entry: Entry) -> dict[str, Any]:
    from stableanimator_cli.catalogue.address import redacted

    names = ("name", "summary", "task", "licence", "licence_note", "source", "needs", "face_channel_order", "defaults")
    facts = {name: getattr(entry, name) for name in names}
    rows = [
        {name: getattr(file, name) for name in ("path", "bytes", "sha256", "optional")}
        | {"url": redacted(file.url) if file.url else file.archive}
        for file in entry.files
    ]
    return facts | {
        "roles": list(entry.components), "here": _presence(entry), "bytes": entry.bytes, "files": rows,
    }  # fmt: skip


def _row(check: Check) -> dict[str, Any]:
    return {
        "path": check.path,
        "state": check.status,
        "place": check.file,
        "bytes": check.bytes,
        "sha256": check.sha256,
        "expected": check.expected,
    }


def _verdict(check: Check) -> str:
    if check.status == "missing" and check.optional:
        return "not installed (optional)"
    if check.status == "other form":
        return f"other form ({check.file.name if check.file else ''})"
    return check.status


def _size(entry: Entry) -> str:
    """The size of an entry's files, or what is known of it."""
    known = entry.known_bytes([row for row in entry.files if not row.optional])
    return _bytes(entry.bytes) if entry.bytes is not None or not known else f">= {_bytes(known)}"


def _bytes(size: int | None) -> str:
    if size is None:
        return "unknown"
    units: Sequence[str] = ("B", "kB", "MB", "GB")
    value, unit = float(size), 0
    while value >= 1000 and unit < len(units) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {units[unit]}" if unit == 0 else f"{value:.2f} {units[unit]}"


def _mend(entry: Entry, check: Check) -> str:
    """The hint for a missing or wrong file of an entry or a model folder."""
    from stableanimator_cli import catalogue
    from stableanimator_cli.catalogue.damage import fetch_again

    if check.file is not None:
        return fetch_again(check.file)
    folder, *downloaded = catalogue.search_paths(entry)
    if downloaded:
        return f"`sa models pull {entry.name}` downloads missing files" if entry.has_addresses else entry.by_hand
    return fetch_again(folder / check.path)
