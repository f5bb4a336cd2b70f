"""NAF: what news does to a market, told from how often good and bad news appears and how much that is out of the usual.

Source: Huynh, Smith, "Stock Price Reaction to News: The Joint Effect of Tone and Attention on Momentum", Journal of
Behavioral Finance 18(3), 2017: tone and attention drive momentum JOINTLY, so a number of items counts by its excess
over the usual number and by its tone. As a baseline of FININ (arXiv 2410.10614) a classifier over the last t days.
Where we differ: they explain the returns of single firms' portfolios over months; here it is one market's next day.
The numbers of a day are models.tone.frequencies and the day's own return; a day's text is never read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.base import MARKET_FEATURES, Days
from models.sequences import BestOf, Mlp, SequenceConfig
from models.tone import Array, frequencies

CLOSE = MARKET_FEATURES.index("close")


@dataclass(frozen=True, slots=True, kw_only=True)
class NafConfig(SequenceConfig):
    """What is chosen before training; see SequenceConfig."""

    trailing: int = 60  # sessions whose mean number of items is the usual one
    hidden: int = 16
    learning_rate: float = 3e-3


class Naf(BestOf):
    """Logistic regression or a small MLP on frequencies and lagged returns, the better on validation."""

    def __init__(self, config: NafConfig | None = None) -> None:
        c = config or NafConfig()
        candidates = {
            "logistic": lambda C: Mlp(c.lookback, C, c.hidden, layers=1),
            "mlp": lambda C: Mlp(c.lookback, C, c.hidden, layers=2, dropout=c.dropout),
        }
        super().__init__(c, frequencies_and_returns, candidates)


def frequencies_and_returns(days: Days, span: range, trailing: int) -> Array:
    """Describe each day of ``span`` by its frequencies (8), then its log return → (len(span), 9)."""
    returns = days.market[span.start : span.stop, CLOSE, None]  # (len(span), 1)
    return np.concatenate([frequencies(days, span, trailing), returns], axis=1)
