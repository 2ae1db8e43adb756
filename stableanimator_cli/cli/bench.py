"""``sa bench``: cost and speed of the networks, side by side and against this machine's roofline."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stableanimator_cli.cli import console, options
from stableanimator_cli.cli.command import options_from
from stableanimator_cli.config.bench import BenchConfig
from stableanimator_cli.errors import ConfigError

if TYPE_CHECKING:
    from stableanimator_cli.bench.results import BenchReport

_PATHS = {"networks", "video", "against", "bench", "data"}  # reports show their names only
_UNREPORTED = {"output", "page", "json", "quiet", "progress", "baseline", "python", "restart", "plan", "work", "plot"}
OutputOpt = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="OUT.json", help="Also write the results as JSON. card: docs/cards/."),
]
PageOpt = Annotated[
    Path | None,
    typer.Option(
        "--page", metavar="PAGE.md", help="Also write the tables into a Markdown page, each between its markers."
    ),
]


@options_from(BenchConfig)
def bench(
    flags: dict[str, Any],
    context: typer.Context,
    output: OutputOpt = None,
    page: PageOpt = None,
    restart: options.RestartOpt = False,
    plan: options.PlanOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    progress: options.ProgressOpt = "bar",
) -> None:
    """\b
    sa bench cost --size 512x512
    sa bench roofline unet hjb --networks puppet --pairs 3 --page docs/performance.md
    sa bench card

    Measure cost, speed and memory, and print tables. FLOPs, bytes alive and calls are counted, with the same result on
    every machine. Seconds are measured in one process in which variants alternate: compare their ratios, or the
    roofline of the same run. gate exits with code 8 if a counter differs from its recorded value. card runs all
    measurements on an NVIDIA card in ten minutes; an interrupted run resumes.
    """
    reporter = console.configure(json=json, quiet=quiet, progress=progress)
    from stableanimator_cli.config.schema import resolve
    from stableanimator_cli.devices import check_device_exists

    config = resolve(BenchConfig, flags)
    check_device_exists(config.device)  # a mistake is reported before torch is imported
    if config.names == ("card",):
        _card(config, _command(context), reporter, output, page, restart=restart, plan=plan)
        return
    for flag, given in (("--restart", restart), ("--plan", plan)):
        if given:
            raise ConfigError(
                flag, None, "sa bench card", hint=f"leave {flag} out: only card has rows to resume or list"
            )
    from stableanimator_cli.bench import results, run

    given = (config.video, config.against, config.baseline, config.data)
    results.check_outputs(output, page, [path for path in given if path is not None])
    report = run.run(flags=flags, command=_command(context), reporter=reporter)
    _print(reporter, report)
    if output is not None:
        report.write(output)
    if page is not None:
        report.write_page(page)
    run.check(report, flags["baseline"])
    if json:
        reporter.result(report.to_json(), "")


def _print(reporter: console.Console, report: BenchReport) -> None:
    for table in report.all_tables():
        if table.rows:
            reporter.table(table.title, table.columns, table.cells(), data=True)
        reporter.info(f"{table.title}: {table.note}" if table.note else "")


def _card(
    config: BenchConfig, command: str, reporter: console.Console, output: Path | None, page: Path | None, *,
    restart: bool, plan: bool,
) -> None:  # fmt: skip
    from stableanimator_cli.bench.card import CardRun, run_card

    card = CardRun.of(config, output, page)
    if plan:
        table = card.table()
        reporter.table(table.title, table.columns, table.cells(), data=True)
        reporter.info(table.note)
        if reporter.json:
            reporter.result(table.to_json(), "")
        return
    report = run_card(card, command, reporter, restart=restart)
    _print(reporter, report)
    reporter.info(f"written to {card.output} and {card.page}")
    if reporter.json:
        reporter.result(report.to_json() | {"output": str(card.output), "page": str(card.page)}, "")


def _command(context: typer.Context) -> str:
    """The command line without output options and without the folders of inputs."""
    given = {name: value for name, value in context.params.items() if name not in _UNREPORTED and value}
    words = ["sa", "bench", *given.pop("name", ())]
    for parameter in context.command.params:
        name = parameter.name or ""
        value = given.get(name)
        if value is True:
            words.append(parameter.opts[0])
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is not None:
                words += [parameter.opts[0], Path(one).name if name in _PATHS else str(one)]
    return shlex.join(words)
