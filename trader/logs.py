"""Structured logs of a service: one line an event, JSON for machines and aligned text for a terminal.

Whoever has something to say calls ``Log.event``; nothing reads back. A line goes out by the file descriptor, past
Python's buffers, so that what failed is known: a closed pipe, a full disk or a reader that has fallen asleep loses
lines, which are counted and told in the next line that goes through, and never raises or holds up the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timezone
import json
import math
import os
from pathlib import Path
import select
import stat
import sys
from threading import Lock
from typing import Any, Literal

from trader.clock import Clock
from trader.errors import StoreError
from trader.events import require_aware

Form = Literal["json", "text"]
Level = Literal["debug", "info", "warning", "error"]

PATIENCE = 1.0  # seconds that a reader may take to make room; none once it has let a line fall
_PIECE = 4096  # bytes: a pipe that has room for any takes so many without blocking (PIPE_BUF)
_FIRST = ("at", "level", "event", "account", "session")
_OWN = {"at", "level", "event", "dropped_lines", "unreadable_facts"}


class Log:
    """Where a service says what happens; safe to share between threads.

    descriptor: a file descriptor open for writing, None to keep silent.   form: what the lines look like.
    strict: raise StoreError for a fact that JSON has no form for, as tests want it; else the line names the fact.
    """

    def __init__(self, clock: Clock, descriptor: int | None, form: Form = "json", *, strict: bool = False) -> None:
        self._clock, self._form, self._strict = clock, form, strict
        self._outlet = _Outlet(descriptor)
        self._bound: dict[str, Any] = {}

    @classmethod
    def to_stderr(cls, clock: Clock, form: Form | None = None, *, strict: bool = False) -> Log:
        """Write to stderr: without a form, text where that is a terminal and JSON elsewhere."""
        stream = sys.stderr
        if stream is None:  # closed before we began: descriptor 2 may be anything by now
            return cls(clock, None, form or "json", strict=strict)
        descriptor = stream.fileno()
        return cls(clock, descriptor, form or ("text" if os.isatty(descriptor) else "json"), strict=strict)

    @classmethod
    def to_file(cls, clock: Clock, path: Path, form: Form | None = None, *, strict: bool = False) -> Log:
        """Append to a file, JSON without a form; raise StoreError where it cannot be opened."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            do = "choose another file"
            raise StoreError("the log cannot be written", where=path, got=error.strerror, do=do) from error
        log = cls(clock, descriptor, form or "json", strict=strict)
        log._outlet.owned = True
        return log

    @property
    def dropped(self) -> int:
        """Lines that were lost and not yet told of."""
        return self._outlet.dropped

    def bound(self, **facts: Any) -> Log:
        """Return a log to the same place whose every line carries these facts too (account, session)."""
        other = Log(self._clock, None, self._form, strict=self._strict)
        other._outlet, other._bound = self._outlet, {**self._bound, **facts}
        return other

    def event(self, name: str, /, *, level: Level = "info", **facts: Any) -> None:
        """Write one line: when, how grave, what, then the facts in the order in which they are given.

        A fact is text, a number, a flag, None, a date or an aware instant, or lists and mappings of these.
        """
        said, unreadable = self._readable({**self._bound, **facts})
        at = require_aware(self._clock.now()).astimezone(timezone.utc).isoformat(timespec="microseconds")
        line: dict[str, Any] = {"at": at, "level": level, "event": name}
        line |= {key: said.pop(key) for key in _FIRST if key in said}
        line |= said
        if unreadable:
            line["unreadable_facts"] = unreadable
        self._outlet.write(line, _as_text if self._form == "text" else json.dumps)

    def close(self) -> None:
        """Close the file, if this log opened one; what is said later is lost and counted."""
        self._outlet.close()

    def _readable(self, facts: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        said: dict[str, Any] = {}
        unreadable = []
        for key, value in facts.items():
            try:
                if key in _OWN:
                    raise TypeError(f"{key} is a word of the log's own")
                said[key] = _plain(value)
            except (TypeError, ValueError, RecursionError) as error:
                if self._strict:
                    expected = "text, a number, a flag, None, a time, or lists and mappings of these"
                    what = "a fact that a log line cannot hold"
                    raise StoreError(what, where=key, got=type(value).__name__, expected=expected) from error
                unreadable.append(f"{key} ({type(value).__name__})")
        return said, unreadable


class _Outlet:
    """The descriptor that several logs share, and the lines that it lost."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor, self._lock = descriptor, Lock()
        self._torn = False  # whether the last line that failed had begun
        self.dropped, self.owned = 0, False
        # Of a file, poll says nothing of use; what else there is can be asked whether it has room.
        self._waits = descriptor is not None and not _is_file(descriptor)

    def write(self, line: dict[str, Any], form: Any) -> None:
        with self._lock:
            if self.dropped:
                line["dropped_lines"] = self.dropped
            rest = (b"\n" if self._torn else b"") + form(line).encode("utf-8", "backslashreplace") + b"\n"
            whole = len(rest)
            try:
                while rest:
                    rest = rest[self._take(rest[:_PIECE]) :]
            except OSError:  # counted, and told as soon as there is somebody to tell
                self.dropped += 1
                self._torn = self._torn or len(rest) < whole
                return
            self.dropped, self._torn = 0, False

    def _take(self, piece: bytes) -> int:
        if self._descriptor is None:
            raise OSError("nowhere to write")
        if self._waits:
            room = select.poll()
            room.register(self._descriptor, select.POLLOUT)
            if not room.poll(0 if self.dropped else PATIENCE * 1000):
                raise TimeoutError("nobody reads")
        return os.write(self._descriptor, piece)

    def close(self) -> None:
        with self._lock:
            if self.owned and self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor = None


def _is_file(descriptor: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:  # closed: writing will say so, and be counted
        return False


def _plain(value: Any) -> Any:
    """Return a value in JSON's own types; raise TypeError where there is none."""
    if value is None or type(value) in (str, int, bool):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else str(value)  # JSON has no word for it
    if isinstance(value, date):  # an instant is one too
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, str):
        return str(value)
    if hasattr(value, "dtype") and getattr(value, "shape", None) == ():
        return _plain(value.item())  # a number of numpy's
    raise TypeError(type(value).__name__)


def _as_text(line: Mapping[str, Any]) -> str:
    """Return a line for people: time to the second, level, event, account and session in columns, then the rest."""
    head = f"{line['at'][:19].replace('T', ' ')}Z  {line['level']:<7}  {_one_line(line['event']):<18}"
    who = " ".join(_one_line(line[key]) for key in ("account", "session") if line.get(key) is not None)
    rest = " ".join(f"{_one_line(key)}={_shown(value)}" for key, value in line.items() if key not in _FIRST)
    return f"{head}  {who:<18}  {rest}".rstrip()


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f'"{_one_line(text)}"' if isinstance(value, str) and (" " in text or not text) else _one_line(text)


def _one_line(value: object) -> str:
    # Line ends of every alphabet, and what a terminal would obey.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))
