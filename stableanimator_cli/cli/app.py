"""``sa app``: a page in the browser around ``sa animate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stableanimator_cli.cli import console, options
from stableanimator_cli.cli.command import complete_model
from stableanimator_cli.errors import BadUsage

OutputOpt = Annotated[
    Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder of the runs: one numbered folder per run.")
]
ModelOpt = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME|FOLDER", autocompletion=complete_model,
        help="Model that the page offers first. Default: $SA_MODEL, else stableanimator, else any installed model.",
    ),
]  # fmt: skip
PortOpt = Annotated[
    int | None,
    typer.Option(
        "--port", metavar="PORT", min=0, max=65_535,
        help="Port on the loopback address, 127.0.0.1; 0: any free port. Default: the first free one from 7860.",
    ),
]  # fmt: skip
OpenOpt = Annotated[bool, typer.Option("--open", help="Open the page in the default browser. Default: off.")]


def app(
    output: OutputOpt = Path("animations"),
    model: ModelOpt = None,
    port: PortOpt = None,
    browser: OpenOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
) -> None:
    """\b
    sa app --open
    sa app -o videos --model puppet --port 8000

    Serve a page that animates a picture with a motion. Only this machine can reach it; it loads nothing from other
    addresses. Ctrl-C ends it. Prints its address.
    """
    reporter = console.configure(json=json, quiet=quiet)
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise BadUsage("sa app needs Gradio, which is not installed", hint="pip install 'stableanimator-cli[app]'")
    from stableanimator_cli.app.server import serve

    def ready(address: str) -> None:
        reporter.result({"address": address, "output": str(output)}, address)
        reporter.info("open this address in a browser; Ctrl-C ends the page")
        if browser:
            import threading
            import webbrowser

            # some browsers end only with their window; the page must answer meanwhile
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    interrupted = serve(output, model=model, port=port, ready=ready)
    if interrupted is not None:
        reporter.warning(f"{interrupted.video}: interrupted; this resumes it: {interrupted.command}")
