"""Make the files that are generated and committed: ``python -m tests.regen completions`` or ``training``.

``training`` records three training steps (``golden_training``): run it only if what they compute was meant to change.
The completion scripts are Typer's own for ``sa``; they ask the program at every TAB, so they only change with Typer.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRAINING = ROOT / "tests" / "golden" / "training.json"
COMPLETIONS = {"bash": "sa.bash", "zsh": "_sa", "fish": "sa.fish"}


def completion(shell: str) -> str:
    """The completion script of ``sa`` for ``bash``, ``zsh`` or ``fish``."""
    from typer.completion import get_completion_script

    return get_completion_script(prog_name="sa", complete_var="_SA_COMPLETE", shell=shell).strip() + "\n"


def write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def training() -> Path:
    """Record three training steps; returns the recording."""
    from tests.golden_training import record, run_steps

    with tempfile.TemporaryDirectory() as folder:
        found = record(*run_steps(Path(folder)))
    write(TRAINING, json.dumps(found, indent=1) + "\n")
    return TRAINING


def main(asked: list[str]) -> int:
    if asked == ["training"]:
        print(training())
        return 0
    if asked != ["completions"]:
        print("usage: python -m tests.regen completions|training", file=sys.stderr)
        return 2
    for shell, name in COMPLETIONS.items():
        write(ROOT / "completions" / name, completion(shell))
        print(ROOT / "completions" / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
