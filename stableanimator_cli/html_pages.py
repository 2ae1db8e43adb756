"""HTML pages from the Jinja2 templates of a package (``PACKAGE/templates/NAME.html.j2``), with escaping on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stableanimator_cli.files import atomic_write, translate_os_errors


def render(package: str, name: str, **context: Any) -> Iterator[str]:
    """Yield the page in pieces: a template may loop over generators, so that a long page is never held in memory."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / package / "templates"),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template(f"{name}.html.j2").generate(**context)


def write_page(path: Path, package: str, name: str, *, marked: bool = True, **context: Any) -> None:
    """Write the page atomically. If ``marked``, it replaces only a file that carries the mark of ``sa``."""
    with (
        atomic_write(path, marked=marked) as temp,
        translate_os_errors(path),
        temp.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.writelines(render(package, name, **context))
