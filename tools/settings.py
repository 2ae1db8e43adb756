"""The settings of a folder that several commands fill: all of them must have the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import atomic_write, translate_os_errors
from stableanimator_cli.readers import read_json

_HINT = "use the same settings, or choose another folder"


def check_settings(path: Path, settings: Mapping[str, object], *, started: bool) -> None:
    """Compare ``settings`` with those in ``path``, or record them if no work has ``started`` with these.

    Raises ``BadInput`` that names the different ones.
    """
    current = json.loads(json.dumps(settings))
    if started and path.is_file():
        recorded = read_json(path, "the settings of earlier commands", hint=_HINT)
        known = recorded if isinstance(recorded, dict) else {}
        changed = [key for key in current if known.get(key) != current[key]]
        if changed:
            problem = f"it was started with different {' and '.join(changed)}"
            raise BadInput.because(path, problem, hint=_HINT)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with translate_os_errors(path), atomic_write(path) as temp:
        temp.write_text(json.dumps(current, indent=1) + "\n", encoding="utf-8")
