"""The hub that catalogue addresses name, its mirror, its cache on this machine, and the user's token.

``HF_ENDPOINT``, ``HF_HOME``, ``HF_HUB_CACHE`` and ``HF_TOKEN`` mean what they mean to ``huggingface_hub``. A token that
its login command stored in a file is not read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from stableanimator_cli.catalogue.address import is_loopback, problem, redacted
from stableanimator_cli.catalogue.home import expanded
from stableanimator_cli.errors import ConfigError

HUB = "https://huggingface.co"
_NAME = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)", re.ASCII)
_FILE = re.compile(rf"{re.escape(HUB)}/((?:spaces/|datasets/)?)([^/?#]+)/([^/?#]+)/resolve/[^/?#]+/([^?#]+)")


def endpoint() -> str:
    """Address of the hub: ``HF_ENDPOINT``, else ``HUB``. Raises ``ConfigError`` if it is no http(s) address."""
    value = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    reason = problem(value) if value else None
    if reason is not None:
        hint = f"set it to the address of a mirror, or unset it for {HUB}"
        raise ConfigError("HF_ENDPOINT", redacted(value), f"an http(s) address ({reason})", hint=hint)
    return value or HUB


def mirrored(url: str) -> str:
    """``url`` at ``endpoint()`` if it names a file of the hub, else unchanged."""
    return endpoint() + url.removeprefix(HUB) if url.startswith(f"{HUB}/") else url


def authorization_for(url: str) -> str | None:
    """Value of the Authorization header for ``url``: the token, for the hub's own host over an encrypted connection (or
    on this machine), else None."""
    token, address = os.environ.get("HF_TOKEN", "").strip(), urlsplit(url)
    safe = address.scheme == "https" or is_loopback(address)
    return f"Bearer {token}" if token and safe and origin(url) == origin(endpoint()) else None


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port of an address."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def cached(url: str, size: int | None) -> Iterator[Path]:
    """Files of any revision in the hub's cache that may be the file at ``url``: the same path and, if known, size.

    The caller compares digests.
    """
    found = _FILE.fullmatch(url)
    path = Path(unquote(found[4])) if found else Path("/")
    if found is None or path.is_absolute() or ".." in path.parts:
        return
    kind = found[1].rstrip("/") or "models"
    snapshots = _cache_dir() / f"{kind}--{found[2]}--{found[3]}" / "snapshots"
    try:
        revisions = sorted(snapshots.iterdir())
    except OSError:
        return
    for revision in revisions:
        file = revision / path
        if os.path.isfile(file) and size in (None, file.stat().st_size):
            yield file


def is_model_name(text: str) -> bool:
    """Whether ``text`` can be the name of a model of the hub, as OWNER/NAME."""
    return _NAME.fullmatch(text) is not None


def snapshot(name: str) -> Path | None:
    """The folder of a model of the hub, OWNER/NAME, in the hub's cache: its main revision, else the only one."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    folder = _cache_dir() / f"models--{found[1]}--{found[2]}"
    revisions = [path for path in folder.glob("snapshots/*") if path.is_dir()]
    try:
        main = (folder / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        main = ""
    return next((path for path in revisions if path.name == main or len(revisions) == 1), None)


def _cache_dir() -> Path:
    """``HF_HUB_CACHE``, else ``hub`` in ``HF_HOME``, else in the user's cache folder."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return expanded(os.environ[name])
    cache = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return expanded(os.environ.get("HF_HOME") or cache) / "hub"
