"""``sa doctor``: what on this machine would break a run, and the commands that mend it."""

from __future__ import annotations

import typer

from stableanimator_cli.cli import console, options


def doctor(json: options.JsonOpt = False, quiet: options.QuietOpt = False) -> None:
    """\b
    sa doctor
    sa doctor --json

    Look for what would break a run: packages that do not go together, encoders, the graphics card, models that are cut,
    room on disks. Each finding has the command that mends it. Leaves with 8 where something is broken.
    """
    reporter = console.configure(json=json, quiet=quiet)
    from stableanimator_cli.doctor import examine

    diagnosis = examine()
    reporter.result(diagnosis.to_json(), diagnosis.summary())
    if diagnosis.exit_code:
        if not json:
            reporter.warning(diagnosis.message)
        raise typer.Exit(diagnosis.exit_code)
