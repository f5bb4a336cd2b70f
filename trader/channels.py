"""What a channel of notifications is: settings, an attempt's connection that can be cut, and how an attempt fails.

``trader.webhook`` and ``trader.mail`` are the channels; ``trader.notify`` lets them send.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
import difflib
from ipaddress import ip_address
import math
import os
import re
import socket
from threading import Lock, Timer
from time import perf_counter
from typing import Any, Protocol

from trader.errors import ConfigError
from trader.outbox import KINDS, Notification

_SECRET = 6  # characters: a shorter path segment of a secret URL is a word of its own ("hooks")


class Channel(Protocol):
    """Where notifications go. events: the kinds that it wants.   give_up_days: age at which it tries no longer."""

    name: str
    events: tuple[str, ...]
    give_up_days: float
    place: str  # for people: where it leads, without secrets

    def send(self, notification: Notification, lines: Lines) -> str:
        """Deliver one notification; return "" or what to remark of it. Raises Failure where it may not be there."""
        ...


class Failure(Exception):
    """An attempt of which we don't know that it was delivered.

    what: fit for a ledger and a log, without secrets.   lasting: nothing will change soon, as far as one can tell,
    and it may be this notification's own fault.   wait: seconds that the receiver asks for.
    """

    def __init__(self, what: str, *, lasting: bool = False, wait: float = 0.0) -> None:
        super().__init__(what)
        self.what, self.lasting, self.wait = what, lasting, wait


class Lines:
    """The connections of one sender; ``cut`` ends the one in use and lets no other begin."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._line: Line | None = None
        self.is_cut = False

    @contextmanager
    def open(self, seconds: float) -> Iterator[Line]:
        """Yield a line for one attempt, which ends after so many seconds whatever the other side does."""
        with self._lock:
            if self.is_cut:
                raise Failure("closed before it was sent")
            line = self._line = Line(seconds)
        try:
            yield line
        finally:
            self._line = None
            line.end()

    def cut(self) -> None:
        """End the attempt under way, from another thread, and refuse all that follow."""
        with self._lock:
            self.is_cut, line = True, self._line
        if line is not None:
            line.cut()


class Line:
    """One connection with a time limit for the whole of an attempt: a socket's own limit is for one read only.

    It holds a second handle to the connection, so that it can be cut whoever has wrapped the first in TLS. What
    cannot be cut is the look-up of the host's name.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self._ends = seconds, perf_counter() + seconds
        self._lock = Lock()
        self._handle: socket.socket | None = None
        self._cut = False
        self._timer = Timer(seconds, self.cut)
        self._timer.daemon = True
        self._timer.start()

    @property
    def is_over(self) -> bool:
        """Whether the time is over, or the line was cut."""
        return self._cut or perf_counter() >= self._ends

    def dial(self, address: tuple[str, int], *_: Any, **__: Any) -> socket.socket:
        """Connect to the first of the host's addresses that answers; takes the words of socket.create_connection."""
        failure: OSError = OSError(f"no address for {address[0]}")
        for family, kind, protocol, _name, place in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            connection = socket.socket(family, kind, protocol)
            try:
                self._hold(connection)
                connection.settimeout(max(self._ends - perf_counter(), 0.001))
                connection.connect(place)
                return connection
            except OSError as error:
                connection.close()
                failure = error
        raise failure

    def cut(self) -> None:
        """End the connection, from any thread: who waits for it meets an error or an end."""
        with self._lock:
            self._cut = True
            if self._handle is not None:
                with suppress(OSError):  # the other side was quicker
                    self._handle.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Let go of the connection and of the time limit."""
        self._timer.cancel()
        self._timer.join()
        with self._lock:
            if self._handle is not None:
                self._handle.close()
                self._handle = None

    def _hold(self, connection: socket.socket) -> None:
        with self._lock:
            if self._cut:
                raise TimeoutError("cut")
            if self._handle is not None:
                self._handle.close()
            self._handle = connection.dup()


class Secrets:
    """What must never be shown, and how a foreign text is made fit to be shown."""

    def __init__(self, *values: str) -> None:
        self._values = sorted({value for value in values if len(value) >= _SECRET}, key=len, reverse=True)

    def __repr__(self) -> str:
        return "Secrets(…)"

    def clean(self, text: str) -> str:
        """Return a text without the secrets, control characters, or great length."""
        for value in self._values:
            text = text.replace(value, "***")
        return "".join(letter if letter.isprintable() else " " for letter in text)[:200]


def from_environment(variable: str, where: str) -> str:
    """Return what an environment variable holds, "" where none is named; raise ConfigError where it is not set."""
    if not variable:
        return ""
    value = os.environ.get(variable, "").strip()
    if not value:
        raise ConfigError("not set", where=f"{where}: environment variable {variable}", do=f"set {variable}")
    return value


def check_variable(variable: str, where: str) -> None:
    """Refuse what is no variable's name, unseen: somebody may have written the secret itself there."""
    if not re.fullmatch(r"([A-Z_][A-Z0-9_]*)?", variable):
        do = "put the secret into that variable, never into the config"
        raise ConfigError("not the name of an environment variable", where=where, do=do)


def check_shared(events: Sequence[str], numbers: Mapping[str, float]) -> None:
    """Check what every channel has: kinds that exist, and numbers (seconds, days) that are positive."""
    for kind in events:
        if kind not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, 1, cutoff=0.5)
            do = f"did you mean {near[0]}?" if near else f"known are {', '.join(KINDS)}"
            raise ConfigError(f"unknown event {kind}", where="notify events", do=do)
    for name, value in numbers.items():
        if not (math.isfinite(value) and value >= 0.01):
            raise ConfigError("out of range", where=f"notify {name}", got=value, expected="at least 0.01")


def is_loopback(host: str | None) -> bool:
    """Tell whether a host is this machine, by its name alone."""
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False
