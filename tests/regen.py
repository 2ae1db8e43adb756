"""Make the files that are generated and committed: ``python -m tests.regen completions``.

The completion scripts are Typer's own for ``sa``; they ask the program at every TAB, so they only change with Typer.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPLETIONS = {"bash": "sa.bash", "zsh": "_sa", "fish": "sa.fish"}


def completion(shell: str) -> str:
    """The completion script of ``sa`` for ``bash``, ``zsh`` or ``fish``."""
    from typer.completion import get_completion_script

    return get_completion_script(prog_name="sa", complete_var="_SA_COMPLETE", shell=shell).strip() + "\n"


def write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def main(asked: list[str]) -> int:
    if asked != ["completions"]:
        print("usage: python -m tests.regen completions", file=sys.stderr)
        return 2
    for shell, name in COMPLETIONS.items():
        write(ROOT / "completions" / name, completion(shell))
        print(ROOT / "completions" / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
