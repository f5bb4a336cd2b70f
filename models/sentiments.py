"""Sentiments: a day's sentiment scores in sixteen indicators beside its prices, read by an MLP and by an LSTM.

Source: Wang, Xu, Zheng 2018; Mohan et al. 2019; Jing, Wu, Wang 2021, as the FININ paper (arXiv 2410.10614) sums them
up: sentiment aggregated a day, prices, a network over the lookback, the better of two on validation. Whoever scores
the headlines (a lexicon, FinBERT) is not known here: with FinBERT's scores this is the row "FinBERT" of its tables.
The numbers of a day are models.tone.prices_and_indicators; a day's text is never read.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.sequences import BestOf, Mlp, Recurrent, SequenceConfig
from models.tone import prices_and_indicators


@dataclass(frozen=True, slots=True, kw_only=True)
class SentimentsConfig(SequenceConfig):
    """What is chosen before training; see SequenceConfig."""


class Sentiments(BestOf):
    """An MLP or an LSTM on prices and indicators, the better on validation."""

    def __init__(self, config: SentimentsConfig | None = None) -> None:
        c = config or SentimentsConfig()
        candidates = {
            "mlp": lambda C: Mlp(c.lookback, C, c.hidden, layers=2, dropout=c.dropout),
            "lstm": lambda C: Recurrent("lstm", C, c.hidden, c.dropout),
        }
        super().__init__(c, prices_and_indicators, candidates)
