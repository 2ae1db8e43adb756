"""``sa doctor``: problems of this machine that would break a run, and the commands that mend them."""

from __future__ import annotations

import typer

from stableanimator_cli.cli import console, options


def doctor(json: options.JsonOpt = False, quiet: options.QuietOpt = False) -> None:
    """\b
    sa doctor
    sa doctor --json

    Check what a run needs: compatible packages, encoders, the GPU, complete models, free space on disks. Each finding
    has the command that mends it. Exits with code 8 if a check fails.
    """
    reporter = console.configure(json=json, quiet=quiet)
    from stableanimator_cli.doctor import examine

    diagnosis = examine()
    reporter.result(diagnosis.to_json(), diagnosis.summary())
    if diagnosis.exit_code:
        if not json:
            reporter.warning(diagnosis.message)
        raise typer.Exit(diagnosis.exit_code)
