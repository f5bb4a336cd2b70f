"""Every error that a user can cause or meet, in one tree; ``trader.cli`` alone catches it.

    TraderError
    ├── ConfigError      a key, value or command-line word that cannot be used
    ├── TimeError        a naive instant, a day outside the calendar, disorder
    ├── BadBar           a price row that is not a bar (NaN, negative, high below low, twice the same session)
    ├── BadNews          a headline that cannot be used
    ├── BadFile          a file that is missing, unreadable or lacks a column
    ├── NoData           the store does not hold what was asked for
    ├── StoreError       the market store or the ledger cannot be read or written
    ├── SourceError      a foreign source (Yahoo, the hub) failed
    ├── ReplayError      an account whose recorded rows are not what its signals and bars give
    ├── ModelError       weights that are missing, damaged or not the ones expected
    │   └── DeviceLost   the GPU is not there, or its memory is full
    ├── DeliveryError    a notification that a channel did not take
    └── OrderError       an order that the broker had to refuse

An error takes facts and writes one sentence: what, where, what was got, what was expected, what to do.
"""

from __future__ import annotations


class TraderError(Exception):
    """Say in one line what went wrong and what to do.

    what: the failure, without a full stop ("the close is not a number").
    where: file, row, symbol or session it was found at.
    got, expected: shown with ``repr`` unless they are strings.
    do: the next step for the reader, as an imperative.

    >>> print(TraderError("the close is not a number", where="spx.csv row 7", got="n/a", do="remove the row"))
    spx.csv row 7: the close is not a number (got n/a); remove the row
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        got: object = None,
        expected: object = None,
        do: str | None = None,
    ) -> None:
        self.what, self.where, self.got, self.expected, self.do = what, where, got, expected, do
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        facts = [
            f"{name} {value}" for name, value in (("got", self.got), ("expected", self.expected)) if value is not None
        ]
        place = f"{self.where}: " if self.where is not None else ""
        middle = f" ({', '.join(facts)})" if facts else ""
        advice = f"; {self.do}" if self.do else ""
        return " ".join(f"{place}{self.what}{middle}{advice}".split())


def in_a_line(error: BaseException) -> str:
    """Return any error as one line; one that is not ours by its kind, too.

    >>> in_a_line(ValueError("two\\nlines")), in_a_line(TraderError("one of ours"))
    ('ValueError: two lines', 'one of ours')
    """
    kind = "" if isinstance(error, TraderError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())


class ConfigError(TraderError):
    """A key, value or command-line word that cannot be used."""


class TimeError(TraderError):
    """A naive instant, a day outside the calendar, or events out of order."""


class BadBar(TraderError):
    """A price row that is not a bar."""


class BadNews(TraderError):
    """A headline that cannot be used."""


class BadFile(TraderError):
    """A file that is missing, unreadable or lacks a column."""


class NoData(TraderError):
    """The store does not hold what was asked for."""


class StoreError(TraderError):
    """The market store or the ledger cannot be read or written."""


class ReplayError(TraderError):
    """An account whose recorded rows are not what its signals and bars give."""


class SourceError(TraderError):
    """A foreign source failed: network, blocked, empty answer.

    retry_after_seconds: how long the source asked us to stay away, set by whoever heard it; 0 where it did not ask.
    """

    retry_after_seconds: float = 0.0


class ModelError(TraderError):
    """Model weights that are missing, damaged or not the ones expected."""


class DeviceLost(ModelError):
    """The device that a model is to work on is not there, or has no memory left."""


class DeliveryError(TraderError):
    """A notification that a channel did not take."""


class OrderError(TraderError):
    """An order that the broker had to refuse."""
