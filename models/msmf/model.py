"""MSMF: chart, numbers and text of a market together, for the next movement and the next return.

``models.msmf.network`` holds the network, ``models.msmf.reader`` lays out Days for it, ``models.msmf.lesson`` is its
training; ``Msmf`` here is what the others see. Letters as in ``models.msmf.config``.

Source: Qin, "MSMF: Multi-Scale Multi-Modal Fusion for Enhanced Stock Market Prediction"; equation numbers are its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
import torch

from models.base import Days, FitReport, Prediction, Standardiser, Weights
from models.fitting import held, reproducible
from models.fusions import Fusion
from models.msmf.config import MsmfConfig
from models.msmf.lesson import Lesson
from models.msmf.network import Network
from models.msmf.reader import Reader
from models.msmf.telling import fusion_of
from models.panel import Part
from models.sequences import arrays, load
from trader.errors import ModelError

__all__ = ["Msmf", "MsmfConfig"]


class Msmf:
    """MSMF as a Model (models.base) and a PooledModel (models.panel).

    ModelError where it is untrained, where a decision lacks its days or its label, where a number is none.
    """

    def __init__(self, config: MsmfConfig | None = None) -> None:
        self.config = config or MsmfConfig()
        self.lookback = self.config.reads
        self._reader: Reader | None = None

    # Learning

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        """Learn from decisions on ``train``, stop on the log loss of ``validation``; see models.base.Model."""
        return self.fit_panel([Part(days, train, validation)], seed)

    def fit_panel(self, parts: Sequence[Part], seed: int) -> FitReport:
        """Learn from several symbols at once; see models.panel.

        A batch is a run of ``batch_days`` consecutive decisions of one symbol; where the runs begin is drawn for each
        epoch, and so is their order.
        """
        c = self.config
        spans = [self._span(part) for part in parts if len(part.train) or len(part.validation)]
        if not (any(len(part.train) for part in spans) and any(len(part.validation) for part in spans)):
            raise ModelError("no decisions to learn from or to forecast")
        market = np.concatenate([part.days.market[part.train.start : part.train.stop] for part in spans])
        returns = np.concatenate([part.days.next_return[part.train.start : part.train.stop] for part in spans])
        with reproducible(seed, c.device):
            network = Network(c, spans[0].days.texts.width, market.shape[1]).to(c.device)
            if network.text is not None:
                mean, factor = _text_scaling(spans)
                network.text.mean.copy_(torch.from_numpy(mean))
                network.text.factor.copy_(torch.from_numpy(factor))
            network.return_moments.copy_(torch.tensor([returns.mean(), returns.std() or 1.0]))
            self._reader = Reader(c, network, Standardiser.of(market))
            return Lesson(self._reader, spans, seed).run()

    def _span(self, part: Part) -> Part:
        """Cut a part to the days that its decisions read, each embedding held in memory."""
        used = [at for at in (part.train, part.validation) if len(at)]
        for at in used:
            self._check(part.days, at, labelled=True)
        first = min(at.start for at in used) - self.lookback + 1
        days = held(part.days.between(first, max(at.stop for at in used)))
        train, validation = (
            range(at.start - first, at.stop - first) if len(at) else range(0) for at in (part.train, part.validation)
        )
        return Part(days, train, validation)

    # Forecasting

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        """Forecast decisions on the days ``at``, with a weight for each headline of the day; see models.base.Model."""
        reader = self._asked(days, at)
        with reproducible(device=self.config.device), torch.no_grad():
            said = reader.forecast(days, np.asarray(at, dtype=np.int64))
        if not np.isfinite(said.p_up).all():
            day = int(np.asarray(at)[~np.isfinite(said.p_up)][0])
            raise ModelError("a forecast is not a number", where=f"day {day}", do="look for NaN in its lookback days")
        return said

    def fusion(self, days: Days, day: int) -> Fusion:
        """Return how the decision on one of the days was fused: gates, blanks and fillings of its very forecast.

        ModelError as in ``predict``.
        """
        reader = self._asked(days, [day])
        with reproducible(device=self.config.device), torch.no_grad():
            return fusion_of(reader, days, day)

    def _asked(self, days: Days, at: Sequence[int]) -> Reader:
        """Return the reader, once it is sure that it can read these days."""
        reader = self._trained()
        own = reader.network.text
        self._check(days, at)
        if own is not None and (D := days.texts.width) != (width := own.e_t.in_features):
            raise ModelError("these texts are another language model's", got=f"width {D}", expected=f"width {width}")
        return reader

    # Weights on disk

    def weights(self) -> Weights:
        """Return network and scaler as arrays; ModelError before training."""
        reader = self._trained()
        scaler = {"numbers.mean": reader.scaler.mean.copy(), "numbers.std": reader.scaler.std.copy()}
        return arrays(reader.network, "network") | scaler

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Take what ``weights()`` returned; ValueError where names, shapes or dtypes differ from this configuration."""
        mean, std = (np.array(weights.get(f"numbers.{name}", np.empty(0))) for name in ("mean", "std"))
        strange = [name for name in weights if not name.startswith(("network.", "numbers."))]
        odd = mean.ndim != 1 or mean.shape != std.shape or not mean.size or not mean.dtype == std.dtype == np.float32
        if strange or odd or sum(name.startswith("numbers.") for name in weights) != 2:
            raise ValueError(f"weights do not fit: numbers {mean.shape} and {std.shape}, beside them {strange[:3]}")
        e_t = weights.get("network.text.e_t.weight", np.empty((0, 1)))
        with reproducible(0):  # initial weights are drawn, to be overwritten
            network = Network(self.config, e_t.shape[-1] if e_t.ndim else 1, mean.size)
        load(network, weights, "network")
        self._reader = Reader(self.config, network.to(self.config.device), Standardiser(mean, std))

    def _trained(self) -> Reader:
        if self._reader is None:
            raise ModelError("MSMF has not been trained", do="call fit or load first")
        return self._reader

    def _check(self, days: Days, at: Sequence[int], labelled: bool = False) -> None:
        if not len(at):
            raise ModelError("no decisions to learn from or to forecast")
        where, first, last = f"days {min(at)}–{max(at)}", self.lookback - 1, len(days) - 1
        if min(at) < first or max(at) > last:
            raise ModelError(f"a decision lacks its {self.lookback} days", got=where, expected=f"days {first}–{last}")
        if labelled and np.isnan(days.label[list(at)]).any():
            raise ModelError("a decision has no label yet", where=where, do="leave out days whose next close is open")


def _text_scaling(parts: Sequence[Part]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Measure mean and factor (D,) that centre the training headlines and bring them to unit mean square."""
    D = parts[0].days.texts.width
    total, square, count = np.zeros(D), np.zeros(D), 0
    for part in parts:
        days, train = part.days, part.train
        texts = np.unique(days.news_text[days.news_offset[train.start] : days.news_offset[train.stop]])
        if len(train) and len(texts):
            rows = days.texts.rows(texts).astype(np.float64)  # (texts, D)
            total, square, count = total + rows.sum(0), square + np.square(rows).sum(0), count + len(rows)
    if not count:
        return np.zeros(D, np.float32), np.ones(D, np.float32)
    mean = total / count
    variance = float((square / count - np.square(mean)).mean())
    return mean.astype(np.float32), np.full(D, 1 / np.sqrt(variance) if variance > 1e-12 else 1.0, np.float32)
