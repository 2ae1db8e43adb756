"""Download one file from an http(s) address to a partial file that a later run resumes (RFC 9110, section 14).

Only temporary failures are retried: a broken connection, a busy or failing server. Redirects lead to http(s) only, and
from https never to http. At most the recorded size is read, or ``LONGEST`` if no size is recorded.

``huggingface_hub`` 2.4 is not used for files of the hub. It builds each file under a random name and starts a new run
at byte 0, and a killed process leaves that name behind. It follows every redirect, and does not compare a sha256.
"""

from __future__ import annotations

import http.client
import ssl
import string
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urljoin, urlsplit

from stableanimator_cli.catalogue.address import problem, redacted, refused_redirect
from stableanimator_cli.catalogue.hub import authorization_for, mirrored, origin
from stableanimator_cli.catalogue.schema import Archive, Entry, WeightFile
from stableanimator_cli.catalogue.store import check_disk_space, copy_stream, differs, validator, writing
from stableanimator_cli.errors import ModelDamaged, ModelMissing

Progress = Callable[[str, int, int | None], None]
"""``progress(file, bytes done, total bytes or None)``; called often, also while a digest is computed."""

ATTEMPTS = 5
TIMEOUT = 60.0
PAUSE = 0.5
LONGEST = 64 << 30
"""Bytes of a file whose size is not recorded."""
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


class _Refused(Exception):
    """A permanent failure, as a clause."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    def http_error_302(self, req, fp, code, msg, headers):
        location = headers.get("location") or headers.get("uri")
        if location is not None:
            try:
                target = quote(urljoin(req.full_url, location), encoding="iso-8859-1", safe=string.punctuation)
                found = refused_redirect(req.full_url, target)
            except ValueError:
                target, found = location, "it is malformed"
            if found is not None:
                fp.close()
                raise _Refused(f"the server redirects to {redacted(target)[:200]}, which is not followed: {found}")
        fp.read = lambda *_: b""  # the library would read the body of a redirect whole, however long it is
        return super().http_error_302(req, fp, code, msg, headers)

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        """Pass the token on within one host, where a renamed repository leads, and to no other host."""
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        authorization = req.unredirected_hdrs.get("Authorization")
        if request is not None and authorization and origin(newurl) == origin(req.full_url):
            request.add_unredirected_header("Authorization", authorization)
        return request

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def download(entry: Entry, row: WeightFile | Archive, url: str, part: Path, progress: Progress | None) -> None:
    """Download ``url`` (a file of the hub: from its mirror) to ``part``, from its end if it exists.

    The caller compares it with the record.
    Raises ``ModelMissing`` (no such address, no network, terms to accept, no room) and ``ModelDamaged`` (longer than
    recorded). After ``ModelMissing`` the partial file stays if the next run can resume it.
    """
    url = mirrored(url)
    found = problem(url)
    if found is not None:
        raise _unusable(entry, row, f"the address {redacted(url)} is not fetched: {found}")
    failures, arrived = 0, False
    while True:
        before = _size(part)
        try:
            _stream(url, part, row, progress, f"{entry.name}/{row.path}")
            return
        except _Refused as error:
            raise _unusable(entry, row, str(error)) from None
        except urllib.error.HTTPError as error:
            with error:
                if error.code not in _BUSY:
                    raise _refused(entry, url, error.code) from None
                cause: Exception = error
        except (OSError, http.client.HTTPException) as error:
            cause = error
        grown = _size(part) > before
        arrived, failures = arrived or grown, 0 if grown else failures + 1
        if failures >= ATTEMPTS or not _may_pass(cause, arrived):
            raise _unreachable(entry, url, row.path, cause) from None
        time.sleep(PAUSE * 2**failures)


def _may_pass(cause: Exception, arrived: bool) -> bool:
    """Whether a retry may succeed: after a broken connection, not if there never was one."""
    if isinstance(cause, urllib.error.HTTPError):
        return True
    if isinstance(cause, urllib.error.URLError):
        return arrived and not isinstance(cause.reason, ssl.SSLCertVerificationError)
    if isinstance(cause, http.client.HTTPException):  # besides these two, a response that is no HTTP
        return isinstance(cause, http.client.IncompleteRead | http.client.RemoteDisconnected)
    return not isinstance(cause, ssl.SSLCertVerificationError)


def _opener() -> urllib.request.OpenerDirector:
    """Without the handlers of ftp, files and data that ``urlopen`` has."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _stream(url: str, part: Path, row: WeightFile | Archive, progress: Progress | None, label: str) -> None:
    """One connection: append to ``part``, or start over if the server cannot resume.

    Raises ``ConnectionError`` if the connection ended before the announced length.
    """
    have, known = _size(part), _known_etag(validator(part))
    if have and have == row.bytes:
        return  # only the checks are missing
    if have and ((row.sha256 is None and known is None) or (row.bytes is not None and have > row.bytes)):
        have = 0  # nothing would show whether the rest fits
    answer = _answer(_request(url, have, known), have, part)
    if answer is None:
        return  # the partial file is complete
    with answer:
        begin = have if answer.status == 206 and _range_start(answer) == have else 0
        if answer.status == 206 and begin != have:
            part.unlink(missing_ok=True)
            raise ConnectionError("the server sent another part than requested")
        if answer.headers.get("Content-Encoding", "identity").lower() not in ("identity", ""):
            raise _Refused("the server sends it compressed, which was not requested")
        length = answer.length  # None where the server announces none, or none that is a number
        total = begin + length if length is not None else row.bytes
        limit = row.bytes or LONGEST
        if total is not None and total > limit:
            raise _too_long(label, row, f"{total} bytes", part)
        check_disk_space(part.parent, (total or 0) - begin, label)
        stream = _open_part(part, begin, answer.headers.get("ETag") or "")
        try:
            done = begin

            def report(size: int) -> None:
                nonlocal done
                done += size
                if progress is not None:
                    progress(label, done, total)

            if begin + copy_stream(answer, stream, limit - begin, report) > limit:
                raise _too_long(label, row, f"more than {limit} bytes", part)
        finally:
            with writing(part):
                stream.close()
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")


def _request(url: str, have: int, etag: str | None) -> urllib.request.Request:
    """The request for all of a file, or for what follows its first ``have`` bytes, whose ETag is ``etag``."""
    request = urllib.request.Request(url, headers={"User-Agent": "stableanimator-cli", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if etag is not None:
            # a file that was replaced meanwhile is sent in full, not as a rest that does not fit
            request.add_header("If-Range", etag)
    authorization = authorization_for(url)
    if authorization is not None:
        request.add_unredirected_header("Authorization", authorization)
    return request


def _answer(request: urllib.request.Request, have: int, part: Path) -> http.client.HTTPResponse | None:
    """The server's answer, None if ``part`` is the whole file."""
    try:
        return _opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        error.close()
        if (error.headers.get("Content-Range") or "").endswith(f"/{have}"):
            return None
        part.unlink()
        raise ConnectionError("the server cannot resume the partial file") from None
    except ValueError as error:  # of an address that passed our checks, or of a token with a line break
        raise _Refused(f"the request cannot be sent: {redacted(str(error))}") from None


def _open_part(part: Path, begin: int, etag: str) -> BinaryIO:
    """Open ``part`` to append to its first ``begin`` bytes, 0 for a new one, and store the ETag of its file."""
    with writing(part):
        if not begin:
            validator(part).unlink(missing_ok=True)
        if etag and not etag.startswith("W/"):  # a weak one does not promise equal bytes (RFC 9110 §13.1.5)
            validator(part).write_text(etag, encoding="utf-8")
        return part.open("ab" if begin else "wb")


def _too_long(label: str, row: WeightFile | Archive, found: str, part: Path) -> ModelDamaged:
    part.unlink(missing_ok=True)
    validator(part).unlink(missing_ok=True)
    if row.bytes is None:
        return ModelDamaged(
            f"{label}: found {found}, too long for a file whose size is not recorded; deleted",
            hint="record its size as `bytes` in model.toml, or download it yourself and run `sa models import FOLDER`",
        )
    return differs(label, found, f"{row.bytes} bytes")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _known_etag(path: Path) -> str | None:
    """The stored ETag, None if a header may not hold it."""
    try:
        etag = path.read_bytes()[: 1 << 16].decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return etag if etag and etag.isprintable() else None


def _range_start(answer: http.client.HTTPResponse) -> int | None:
    words = (answer.headers.get("Content-Range") or "").removeprefix("bytes ").split("-")
    return int(words[0]) if words[0].isascii() and words[0].isdigit() and len(words[0]) < 20 else None


def _unusable(entry: Entry, row: WeightFile | Archive, why: str) -> ModelMissing:
    return ModelMissing(
        f"{entry.name}: {row.path}: {why}",
        hint=f"get the file from {entry.source or 'its authors'}, then run `sa models import FOLDER`",
    )


def _refused(entry: Entry, url: str, status: int) -> ModelMissing:
    source = entry.source or "its publisher's page"
    if status in (401, 403):
        hint = f"accept the publisher's terms at {source}, then set HF_TOKEN; or download it yourself and import it"
    else:
        hint = f"the address may have moved: look at {source}, then `sa models import FOLDER`"
    many = " (too many redirects)" if 300 <= status < 400 else ""
    return ModelMissing(f"{entry.name}: {redacted(url)}: the server answered {status}{many}", hint=hint)


def _unreachable(entry: Entry, url: str, path: str, cause: Exception) -> ModelMissing:
    reason = cause.reason if isinstance(cause, urllib.error.URLError) else cause
    words = redacted(" ".join(str(reason).split()) or type(reason).__name__)[:200]
    return ModelMissing(
        f"{entry.name}: cannot fetch {path} from {urlsplit(url).netloc}: {words}",
        hint="run the same command to resume when the network is back, or download the file elsewhere and run "
        "`sa models import FOLDER`",
    )
