"""Serve the page on the loopback address, and nowhere else."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from stableanimator_cli.app.request import Run
from stableanimator_cli.app.session import Session
from stableanimator_cli.catalogue import DRAWN
from stableanimator_cli.errors import ConfigError

HOST = "127.0.0.1"
PORT, PORTS = 7860, 20  # the first port that is tried, and how many


def open_socket(port: int | None) -> socket.socket:
    """Bind ``port``, or the first free one from ``PORT`` on; 0 for any. Raises ``ConfigError`` if it is taken."""
    tried = range(PORT, PORT + PORTS) if port is None else (port,)
    for number in tried:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, number))
            sock.listen()  # now: two sockets that only are bound may have the same port
        except OSError:
            sock.close()
            continue
        return sock
    found = str(port) if port is not None else f"{PORT}:{PORT + PORTS}"
    raise ConfigError("--port", found, "a free port that this user may open", hint="leave --port out, or name another")


def serve(
    output: Path, *, model: str | None = None, port: int | None = None, ready: Callable[[str], None]
) -> Run | None:
    """Serve until Ctrl-C. ``ready`` receives the address once the page answers.

    Returns the run that Ctrl-C interrupted and that can be resumed. Raises ``ModelMissing``, and ``ConfigError`` for a
    port that is taken and an output that is no folder.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError("--output", str(output), "a folder for the runs", hint="choose another -o")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with open_socket(port) as sock:
        session = Session(output, model)
        os.environ["GRADIO_TEMP_DIR"] = str(session.temporary)
        try:
            _serve(sock, session, ready)
        finally:
            job = session.close()
    unfinished = job is not None and job.state != "done" and job.run is not None and job.run.folder.is_dir()
    return job.run if job is not None and unfinished else None


def _serve(sock: socket.socket, session: Session, ready: Callable[[str], None]) -> None:
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from stableanimator_cli.app.examples import draw_examples
    from stableanimator_cli.app.page import CSS, build_page

    port, fonts = sock.getsockname()[1], ["ui-sans-serif", "system-ui", "sans-serif"]  # none is fetched
    examples = draw_examples(session.temporary) if DRAWN in session.models else []
    # names other than these are of a page elsewhere that leads its visitors' browsers here
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    page = build_page(session, examples)
    page.has_launched = True  # else Gradio takes any path of this machine for an uploaded file
    app = gr.mount_gradio_app(
        FastAPI(middleware=[hosts], openapi_url=None), page, "/", server_name=HOST, server_port=port, ssr_mode=False,
        run_history=False, footer_links=[], css=CSS,
        theme=gr.themes.Soft(font=fonts, font_mono=["ui-monospace", "monospace"]),
    )  # fmt: skip

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready(f"http://{HOST}:{port}/")

    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        Server(config).run(sockets=[sock])
