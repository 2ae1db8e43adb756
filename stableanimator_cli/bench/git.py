"""Version of a measured folder of code."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path


def commit_of(folder: Path, *ignored: str) -> str | None:
    """The commit of a checkout, with ``-dirty`` if tracked files outside of ``ignored`` differ; None without git."""
    if not (folder / ".git").exists():
        return None
    try:
        head = _git(folder, "rev-parse", "--short=12", "HEAD")
        others = [f":!{path}" for path in ignored]
        return head + ("-dirty" if _git(folder, "status", "--porcelain", "-uno", "--", ".", *others) else "")
    except (OSError, subprocess.SubprocessError):
        return None


def code_version(folder: Path) -> str:
    """The commit of a clone, or the digest of its Python files if it is no checkout."""
    digest = hashlib.sha256()
    commit = commit_of(folder)
    for path in [] if commit else sorted(folder.glob("**/*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return commit or f"files {digest.hexdigest()[:12]}"


def _git(folder: Path, *words: str) -> str:
    run = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20, check=True)
    return run.stdout.strip()
