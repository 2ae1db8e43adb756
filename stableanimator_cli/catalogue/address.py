"""Addresses of files: which are allowed, and how they are printed without secrets."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

_SCHEMES = ("https", "http")
_LONGEST = 4096
_PLAIN = re.compile(r"[!-~]+")  # printable ASCII without a blank: what a request line may hold
_HOST = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_SECRETS = re.compile(r"(?<=://)[^/?#\s]*@|(?<=[?#])[^\s'\"]+")
_WITHOUT_SCHEME = re.compile(r"[^/\s]*:[^/\s]*@")


def problem(address: str) -> str | None:
    """Why ``address`` is refused, as a clause without its secrets; None if it is allowed."""
    if len(address) > _LONGEST:
        return f"it has {len(address)} characters"
    if not _PLAIN.fullmatch(address):
        return "it holds blanks, control characters or letters outside ASCII; write those as %XX"
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as reason:  # brackets without an IPv6 address, a port that is no number
        return "its port is not a number" if "ort" in str(reason) else "it is malformed"
    if parts.scheme not in _SCHEMES:
        return "it is not an http(s) address"
    if parts.username is not None or parts.password is not None:
        return "it holds a user name or a password"
    if not parts.hostname or not (_HOST.fullmatch(parts.hostname) or _is_ip(parts.hostname)):
        return "it names no host"
    if port == 0 or parts.netloc.endswith(":"):
        return "its port is not a number"
    return None


def refused_redirect(before: str, after: str) -> str | None:
    """Why a redirect from ``before`` to ``after`` is refused; None if it is allowed."""
    found = problem(after)
    if found is not None:
        return found
    target = urlsplit(after)
    if urlsplit(before).scheme == "https" and target.scheme == "http" and not is_loopback(target):
        return "it leads from https to http"
    return None


def redacted(text: str) -> str:
    """``text`` with the user name, password, query and fragment of every address in it replaced by ``...``."""
    hidden = _SECRETS.sub(lambda found: "...@" if found[0].endswith("@") else "...", text)
    return _WITHOUT_SCHEME.sub("...@", hidden) if "://" not in hidden and "@" in hidden else hidden


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(address: SplitResult) -> bool:
    """Whether an address names this machine."""
    host = address.hostname or ""
    return host == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)
