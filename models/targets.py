"""Other questions put to the same models: what they are asked is a matter of how the Days are laid, not of the model.

``same_day`` lays Days so that an unchanged Model, asked for "the next return", is asked how the day itself went.
It measures whether a model reads: closing reports describe the move. It is no trading signal: at the close it is late.
Letters as in models.base.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.base import Days


def same_day(days: Days) -> Days:
    """Return the same S days with each day's own bar masked and the day's own return in the place of the next one.

    Day i keeps its position and its news. Its ``market`` is that of day i−1, so that its own bar leaves no trace in
    the inputs of any day up to i; its ``next_return`` is close(i)/close(i−1) − 1, and ``label`` follows from it.
    The last day's return is known here, though its next one is not: nothing is lost at the end.
    Day 0 has no day before it in ``days``: its market is zeros and its return NaN, so that no model learns from it;
    a decision that reads day 0 (positions 0 … t−1 for lookback t) is best left out, as warm_up does in any case.
    To forecast without labels, hide ``next_return`` AFTER this: a return that was NaN before would only move by one.
    """
    market, own_return = np.zeros_like(days.market), np.full_like(days.next_return, np.nan)
    market[1:], own_return[1:] = days.market[:-1], days.next_return[:-1]
    return replace(days, market=market, next_return=own_return)
