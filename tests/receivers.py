"""Receivers of notifications on loopback, real ones, that do what the test tells them: a webhook and a mail server."""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
from pathlib import Path
import shutil
import socketserver
import ssl
import subprocess
from threading import Condition, Event, Lock, Thread
from typing import Any

import pytest


def make_certificate(folder: Path) -> str:
    """Make a certificate for 127.0.0.1 with its key in one file, alone in FILE.crt; return FILE."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    path = folder / "both.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=loopback"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", f"{path}.crt"]
    subprocess.run([*words, *names], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return str(path)


class Post(BaseHTTPRequestHandler):
    """One request to the webhook."""

    server: WebhookServer
    body: bytes

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.arrived:
            attempt = sum(1 for other in self.server.posts if other.key == self.key)
            self.server.posts.append(self)
            self.server.arrived.notify_all()
        with suppress(OSError):  # the sender may have left
            self.server.behave(self, attempt)

    do_GET = do_POST  # what a redirect that is followed makes of it

    @property
    def key(self) -> str:
        return str(self.headers["Idempotency-Key"])

    @property
    def said(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""


Behave = Callable[[Post, int], None]


def takes(post: Post, attempt: int) -> None:
    post.reply(200)


def hangs(post: Post, attempt: int) -> None:
    post.server.released.wait(30)


def drips(post: Post, attempt: int) -> None:
    post.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not post.server.released.wait(0.05):
        post.wfile.write(b"X-Slow: 1\r\n")


class WebhookServer(ThreadingHTTPServer):
    """Records what it is sent and answers as ``behave`` says."""

    daemon_threads = True

    def __init__(self, port: int = 0, certificate: str = "") -> None:
        super().__init__(("127.0.0.1", port), Post)
        self.scheme = "https" if certificate else "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.arrived, self.released = Condition(), Event()
        self.posts: list[Post] = []
        self.behave: Behave = takes

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}/hook"

    def keys(self) -> list[str]:
        return [post.key for post in self.posts]

    def wait_for(self, count: int) -> bool:
        with self.arrived:
            return self.arrived.wait_for(lambda: len(self.posts) >= count, 20)

    def handle_error(self, *args: Any) -> None:
        """Say nothing of senders that left."""


class MailSession(socketserver.StreamRequestHandler):
    """One SMTP conversation."""

    server: MailServer

    def handle(self) -> None:
        with suppress(OSError, ValueError):
            if self.server.implicit_tls:
                self._encrypt()
            self.say(self.server.answers.get("CONNECT", "220 ready"))
            while line := self.rfile.readline().decode().strip():
                if not self.obey(line):
                    return

    def obey(self, line: str) -> bool:
        verb, _, rest = line.partition(" ")
        verb = verb.upper()
        with self.server.lock:
            self.server.heard.append(f"{verb} {rest}".strip())
        answer = self.server.answers.get(f"{verb} {rest}", self.server.answers.get(verb))
        if answer == "hang":
            self.server.reached.set()
            self.server.released.wait(30)
            return False
        if verb == "DATA" and answer is None:
            return self.data()
        if verb == "EHLO":
            features = ["loopback", *self.server.features]
            lines = [f"250-{one}" for one in features[:-1]] + [f"250 {features[-1]}"]
            self.say("\r\n".join(lines) if answer is None else answer)
        elif verb == "AUTH" and answer is None:
            self.server.logins.append(base64.b64decode(rest.partition(" ")[2]).decode())
            self.say("235 in")
        else:
            self.say(answer or ("221 bye" if verb == "QUIT" else "220 go" if verb == "STARTTLS" else "250 ok"))
        if verb == "STARTTLS" and answer is None:
            self._encrypt()
        return verb != "QUIT"

    def data(self) -> bool:
        self.say("354 go on")
        content = bytearray()
        while (line := self.rfile.readline()) not in (b".\r\n", b""):
            content += line
            if self.server.drops > 0:
                with self.server.lock:
                    self.server.drops -= 1
                return False  # in the middle of it
        with self.server.lock:
            self.server.mails.append(bytes(content))
        self.say(self.server.answers.get("END", "250 taken"))
        return True

    def say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())
        self.wfile.flush()

    def _encrypt(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server.certificate)
        self.request = context.wrap_socket(self.connection, server_side=True)
        self.connection = self.request
        self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb")


class MailServer(socketserver.ThreadingTCPServer):
    """Takes mail, but for the answers that the test puts in their place ("hang" gives none).

    answers: by verb, or by the whole line; CONNECT and END stand for the greeting and the end of DATA.
    drops: how many mails break off in the middle.   certificate: a file with key and certificate, for TLS.
    """

    allow_reuse_address = daemon_threads = True

    def __init__(self, certificate: str = "", *, implicit_tls: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), MailSession)
        self.certificate, self.implicit_tls = certificate, implicit_tls
        self.answers: dict[str, str] = {}
        self.features: list[str] = []
        self.drops = 0
        self.lock, self.reached, self.released = Lock(), Event(), Event()
        self.heard: list[str] = []
        self.logins: list[str] = []
        self.mails: list[bytes] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, *args: Any) -> None:
        """Say nothing of clients that left."""


def serve(server: socketserver.BaseServer) -> None:
    Thread(target=server.serve_forever, args=(0.01,), name="receiver", daemon=True).start()


def end(server: WebhookServer | MailServer) -> None:
    server.released.set()
    server.shutdown()
    server.server_close()
