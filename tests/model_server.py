"""A server of model files on the loopback, as bad as a test wants it."""

from __future__ import annotations

import contextlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Files by path, with knobs for what a bad network does; ``asked`` holds the Range of every request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str | None] = []
        self.cut_after: int | None = None  # bytes of the next answer
        self.cuts = 0
        self.ranges = True
        self.status: int | None = None
        self.etag: str | None = '"one"'
        self.headers: list[dict[str, str]] = []
        self.redirects: dict[str, str] = {}
        self.length = True  # whether answers announce how long they are
        self.more: dict[str, str] = {}  # headers of answers
        self.block: int | None = None  # bytes sent at once, with a pause after each block
        self.pause = 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.asked.append(asked)
        self.headers.append(dict(request.headers))
        if request.path in self.redirects:
            request.send_response(302)
            request.send_header("Location", self.redirects[request.path])
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        body = self.files.get(request.path)
        status = self.status or (200 if body is not None else 404)
        if status >= 400 or body is None:
            request.send_error(status)
            return
        start = 0
        condition = request.headers.get("If-Range")
        if asked and self.ranges and condition in (None, self.etag):
            start, status = int(asked.removeprefix("bytes=").rstrip("-")), 206
        if start >= len(body):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(body)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(status)
        if status == 206:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.etag:
            request.send_header("ETag", self.etag)
        if self.length:
            request.send_header("Content-Length", str(len(body) - start))
        for name, value in self.more.items():
            request.send_header(name, value)
        request.end_headers()
        rest = body[start:]
        if self.cuts:
            self.cuts -= 1
            rest = rest[: self.cut_after]
        with contextlib.suppress(ConnectionError):  # the other side was killed
            for begin in range(0, len(rest), self.block or len(rest) or 1):
                request.wfile.write(rest[begin : begin + (self.block or len(rest))])
                time.sleep(self.pause)

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()
