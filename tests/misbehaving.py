"""A real HTTP server on loopback that does as a test tells it, and counts the bytes that it could send."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import ssl
import threading
from typing import Any

Answer = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request; an Answer writes to it. The server's Date is what the test says, or none."""

    server: Misbehaving

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        try:
            self.server.answers[self.path](self)
        except OSError:
            self.server.hung_up += 1  # the reader has gone, as it should at its limits

    def give(self, body: bytes, status: int = 200, **headers: str) -> None:
        """Send a whole answer; a header X_Y is X-Y. Content-Length may be stated otherwise, or "none"."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        length = named.pop("Content-Length", str(len(body)))
        self.send_response_only(status)
        for name, value in (named if length == "none" else {"Content-Length": length, **named}).items():
            self.send_header(name, value)
        self.end_headers()
        self.push(body)

    def push(self, part: bytes) -> None:
        """Send bytes as they are, and count them."""
        self.wfile.write(part)
        self.server.sent += len(part)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Misbehaving(ThreadingHTTPServer):
    """answers: path → what to do.  asked: (path, headers) of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.sent = self.hung_up = 0
        self.closing = threading.Event()
        self.scheme = "http"

    def at(self, path: str) -> str:
        """Return the full address of a path."""
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}{path}"

    def does(self, answer: Answer, path: str = "/feed") -> str:
        """Let a path be answered so, and return its address."""
        self.answers[path] = answer
        return self.at(path)

    def gives(self, body: bytes, status: int = 200, path: str = "/feed", **headers: str) -> str:
        """Let a path be answered with this, and return its address."""
        return self.does(lambda request: request.give(body, status, **headers), path)

    def handle_error(self, *_: Any) -> None:
        """Keep a client that hangs up in a TLS handshake off the terminal."""


@contextmanager
def serving(certificate: str = "") -> Iterator[Misbehaving]:
    """Run a server until the block ends; certificate: a file with key and certificate, for https."""
    with Misbehaving() as server:
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            server.scheme = "https"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
