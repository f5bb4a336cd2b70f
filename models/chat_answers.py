"""A chat model's answers on disk, and the money that they cost: paid once, read again for ever.

``models.chat_scores`` books answers here. Those of one model, to any prompt and about any asset, are lines of one
file, each on the disk before anybody sees it:

    {"key", "prompt", "asset", "headline", "answer", "served", "input_tokens", "output_tokens", "cost"}
    {"charge", "why"}     what a request that brought no answer may have cost

The answer is kept as it came and understood when it is read. A process that is killed loses what it was waiting for:
at most ``parallel`` answers, which the model's owner may still bill.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
import math
import os
from pathlib import Path
import re
from threading import Condition
from typing import Any

from models.chat import Reply
from trader.errors import StoreError

NO, UNKNOWN, YES, UNREADABLE = range(4)  # the first three in the order of models.sentiment.TONES
_NAMED = {"NO": NO, "UNKNOWN": UNKNOWN, "YES": YES, None: UNREADABLE}

_THINKING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_OPENING = re.compile(  # marks and numbers, perhaps "Answer:", then the word
    r"[\W\d_]*(?:(?:(?:my|the|final)\s+)*answer(?:\s+is)?[\W_]+)?(yes|no|unknown)(?![^\W_])", re.IGNORECASE
)
_SHOUTED = re.compile(r"(?<![^\W_])(?:YES|NO|UNKNOWN)(?![^\W_])")


def verdict(answer: str) -> str | None:
    """Read YES, NO or UNKNOWN off an answer; None where it is none of them, or several.

    The word opens the answer, or is the only one of the three in capitals on its first line. "No" before further
    words opens many a sentence that means UNKNOWN, so there it counts in capitals alone.

    >>> [verdict(text) for text in ("YES.", "yes — because", "Answer: NO", "No effect is likely", "It depends")]
    ['YES', 'YES', 'NO', None, None]
    """
    text = _THINKING.sub("", answer)
    first_line = next((line for line in text.splitlines() if line.strip()), "")
    shouted = set(_SHOUTED.findall(first_line))
    if len(shouted) > 1:
        return None
    opening = _OPENING.match(text)
    if opening and not (opening[1] in ("no", "No") and re.match(r"[ \t]+\w", text[opening.end() :])):
        return opening[1].upper()
    return shouted.pop() if shouted else None


class CeilingReached(Exception):
    """The next request could cost more than is left. most: what it could cost."""

    def __init__(self, most: float) -> None:
        super().__init__("the cost ceiling is reached")
        self.most = most


class Stopped(Exception):
    """Another request has failed for good."""


class Answers:
    """One file of answers, and the purse that pays for them (a ``models.chat.Purse``); for many threads.

    One process may write at a time, which is the caller's care. Whole lines count; what a killed writer left behind
    the last one is cut by the next write.
    verdicts: key → NO, UNKNOWN, YES or UNREADABLE.   spent: the sum of all costs and charges.
    """

    def __init__(self, path: Path, max_cost: float) -> None:
        """Take a path that need not be there yet, and the most that its lines may cost in all."""
        self.path, self.stopped = path, False
        self._max_cost, self._change = max_cost, Condition()
        self._forget()

    def _forget(self) -> None:
        self.verdicts: dict[str, int] = {}
        self.spent, self._reserved, self._under_way = 0.0, 0.0, 0
        self._end, self._lines = 0, 0  # bytes and whole lines read

    @property
    def mean_cost(self) -> float:
        """What an answer has cost so far; 0 before the first."""
        return self.spent / len(self.verdicts) if self.verdicts else 0.0

    def make(self) -> None:
        """Make the file, durably; raise StoreError where that cannot be done."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            descriptor = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._unwritable(error) from error

    def refresh(self) -> None:
        """Read the lines added since the last look; raise StoreError for a line that cannot be read."""
        try:
            if not self.path.exists() or self.path.stat().st_size < self._end:  # new, or removed by its owner
                self._forget()
            if not self.path.exists():
                return
            with self.path.open("rb") as file:
                file.seek(self._end)
                for line in file:
                    if line.endswith(b"\n"):
                        self._take(line)
        except OSError as error:
            do = "check its rights"
            raise StoreError("the answers cannot be read", where=self.path, got=error.strerror, do=do) from error

    def _take(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            cost = float(entry["cost"] if "key" in entry else entry["charge"])
            if not (math.isfinite(cost) and cost >= 0):
                raise ValueError("a cost is a number from 0")
            if "key" in entry:
                self.verdicts[entry["key"]] = _NAMED[verdict(entry["answer"])]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            where = f"{self.path} line {self._lines + 1}"
            raise StoreError("not an answer of a chat model", where=where, got=error, do="remove the line") from error
        self.spent += cost
        self._end += len(line)
        self._lines += 1

    def _append(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        try:
            with self.path.open("r+b") as file:
                file.truncate(self._end)
                file.seek(self._end)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error
        self._take(line)

    def _unwritable(self, error: OSError) -> StoreError:
        do = "free some space or choose another --home"
        return StoreError("the answers cannot be written", where=self.path, got=error.strerror or error, do=do)

    def reserve(self, most: float) -> None:
        """Set money aside for a request, waiting for those under way where that may make room.

        Raises CeilingReached where it does not, Stopped after ``stop``.
        """
        with self._change:
            self._change.wait_for(lambda: self.stopped or not self._under_way or self._fits(most))
            if self.stopped:
                raise Stopped
            if not self._fits(most):
                raise CeilingReached(most)
            self._under_way += 1
            self._reserved += most

    def _fits(self, most: float) -> bool:
        return self.spent + self._reserved + most <= self._max_cost

    def charge(self, most: float, paid: float, why: str) -> None:
        """Give back a reservation, less what a request without an answer may have cost."""
        self._settle(most, {"charge": paid, "why": why} if paid else None)

    def book(self, most: float, about: Mapping[str, str], reply: Reply) -> None:
        """Keep an answer, pay for it and give back the rest of its reservation."""
        paid = {
            "answer": reply.text,
            "served": reply.served,
            "input_tokens": reply.input_tokens,
            "output_tokens": reply.output_tokens,
            "cost": reply.cost,
        }
        self._settle(most, {**about, **paid})

    def _settle(self, most: float, entry: Mapping[str, Any] | None) -> None:
        with self._change:
            try:
                if entry is not None:
                    self._append(entry)
            finally:
                self._under_way -= 1
                self._reserved = self._reserved - most if self._under_way else 0.0  # no dust of rounding
                self._change.notify_all()

    def stop(self) -> None:
        """Let no further request begin."""
        with self._change:
            self.stopped = True
            self._change.notify_all()

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than until ``stop``."""
        with self._change:
            self._change.wait_for(lambda: self.stopped, timeout=seconds)
