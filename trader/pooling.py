"""Pool markets: lay other markets' training days before a fold's own, so that a model learns from all of them.

    │ market A: lookback, training days │ market B: training days │ own: training days, purge, validation, purge, use │
    └──────────────────────── train: one range ─────────────────────────┘

A model is trained on ONE range of consecutive decisions, so the joins lie inside it: the first t − 1 training decisions
of each market but the first read, beside days of their own, the last days of the market before. (Likewise what a model
makes of neighbouring days, such as a return over several sessions.) All of these days and labels lie inside the
training span: of another market only days within the sessions of the own training span are taken, and of the last one
only the close, as a label. Validation and test decisions lie behind the purge or, where there is none, read as always
their own market's days.

Days know one description of a market: all markets' days are read under that of the own one, which is what the model is
for. ``trader.experiment_plan`` names the cells by all of this, and by this module.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from models.base import Days
from models.joined import joined
from trader.experiment_inputs import Inputs
from trader.window import TextIndex, Window


@dataclass(frozen=True, slots=True)
class Part:
    """Another market's days first … stop−1, whose last label is the close of position ``stop``.

    digests: of everything that shapes them, labels included.
    """

    window: Window
    first: int
    stop: int
    digests: Sequence[str]

    def __len__(self) -> int:
        return self.stop - self.first


def parts(others: Sequence[Inputs], own: Inputs, train: range, lookback: int) -> list[Part]:
    """Return what other markets add to the training span ``train`` of a market, by the markets' names.

    lookback: days that a decision reads. The first part begins with so many days less one that are only read, where its
    market has them. A market without days in the span adds nothing.
    """
    first_session, last_session = own.window.sessions[train.start], own.window.sessions[train.stop - 1]
    found: list[Part] = []
    for other in sorted(others, key=lambda inputs: inputs.market):
        sessions = other.window.sessions
        first = max(other.start, bisect_left(sessions, first_session))
        stop = bisect_right(sessions, last_session) - 1  # whose close is the last label
        if first < stop:
            first = max(0, first - (0 if found else lookback - 1))
            # As with the own days: the first ones shape the first day's features.
            found.append(Part(other.window, first, stop, other.digests[max(0, first - Window.warm_up - 1) : stop + 1]))
    return found


def pooled(added: Sequence[Part], own: Days) -> Days:
    """Return the days of all parts and then the own ones, under the own market's description."""
    texts = cast(TextIndex, own.texts)
    laid = []
    for part in added:
        days = part.window.learnable(part.first, part.stop)
        # Each market may have been read through a cache of its own, whose rows are numbered otherwise.
        said = [text for day in part.window.headlines[part.first : part.stop] for text in day]
        laid.append(replace(days, news_text=texts.index(said), texts=own.texts))
    return joined([*laid, own])
