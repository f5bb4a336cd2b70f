"""Lay out Days for the network of MSMF and run them through it, in shapes that no other day can change.

``models.msmf.lesson`` trains with it, ``models.msmf.model`` forecasts with it. Letters as in ``models.msmf.config``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor

from models.base import Days, Prediction, Standardiser
from models.charts import charts
from models.finin import padded, together
from models.msmf.config import MsmfConfig
from models.msmf.encoders import Headlines
from models.msmf.network import Network, Said, Samples, carried_forward

BATCH = 64  # decisions that are forecast together, filled with dummies; a multiple of 8, see models.finin


class Texts(NamedTuple):
    """The texts of U days, encoded: attended and mean (U, H); weights: a row a day of its headlines' shares."""

    attended: Tensor
    means: Tensor
    weights: list[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Reader:
    """A network, the scaler of its numbers, and what was chosen before it was trained."""

    config: MsmfConfig
    network: Network
    scaler: Standardiser

    def forecast(self, days: Days, at: NDArray[np.int64], images: NDArray[np.uint8] | None = None) -> Prediction:
        """Forecast B decisions, through shapes that no other day can change."""
        network = self.network
        x, present, weights = self.features(days, at, images)
        p_up, expected = [], []
        for low in range(0, len(at), BATCH):
            _, said = self.said(x, present, low)
            # Of the whole batch: a sigmoid of few numbers is rounded otherwise than one of many.
            p, r = network.told(said.outputs)  # (BATCH,) each
            p_up.append(p[: len(at) - low].cpu().numpy())
            expected.append(None if r is None else r[: len(at) - low].cpu().numpy())
        returns = None if expected[0] is None else np.concatenate([r for r in expected if r is not None])
        return Prediction(np.concatenate(p_up), returns, weights if network.text else None)

    def said(self, x: Tensor, present: Tensor, low: int) -> tuple[Tensor, Said]:
        """Run decisions of features (B, C + E, H), present (B, C), from ``low`` on: BATCH of them, repeats as dummies.

        Returns the features with what was missing filled (BATCH, C, H), and Said.
        """
        rows = torch.from_numpy(np.resize(np.arange(low, min(low + BATCH, len(x))), BATCH))
        filled = self.network.fill(x[rows], present[rows])
        said: Said = self.network(filled, present[rows])
        return filled, said

    @property
    def back(self) -> int:
        """Sessions before the decision's from which forward filling may carry; 0 for another completion."""
        return self.config.forward_days if self.config.completion == "forward" else 0

    def features(
        self, days: Days, at: NDArray[np.int64], images: NDArray[np.uint8] | None = None
    ) -> tuple[Tensor, Tensor, list[NDArray[np.float32]]]:
        """Encode the decisions → features (B, C + E, H), present (B, C), and the weights of each one's headlines.

        Of forward filling the sessions before are encoded too, and what they carry forward is there in the result.
        """
        network = self.network
        needed = (at[:, None] + np.arange(-self.back, 1)).astype(np.int64)  # (B, back + 1)
        index, position = np.unique(needed, return_inverse=True)
        rows_of = torch.from_numpy(position.reshape(needed.shape).T.copy())  # (back + 1, B), oldest first
        news_days, windows = self.windows(index)
        texts = self.texts(days, news_days)
        made, there = [], []
        for low in range(0, len(index), BATCH):
            rows = np.resize(np.arange(low, min(low + BATCH, len(index))), BATCH)
            samples = self.samples(days, index[rows], news_days, windows[rows], images)
            made.append(network.features(samples, texts.attended, texts.means)[: len(index) - low])
            there.append(samples.present[: len(index) - low])
        x, present = torch.cat(made), torch.cat(there)
        x, present = carried_forward(x, present, rows_of)
        where = np.searchsorted(news_days, at)
        return x, present, [texts.weights[day] for day in where] if texts.weights else []

    def windows(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the days (U,) whose texts the decisions (B,) read, and where each window's lie among them (B, t)."""
        needed = index[:, None] + np.arange(1 - self.config.lookback, 1)  # (B, t)
        days, position = np.unique(needed, return_inverse=True)
        return days, position.reshape(needed.shape)

    def samples(
        self,
        days: Days,
        index: NDArray[np.int64],
        news_days: NDArray[np.int64],
        windows: NDArray[np.int64],
        images: NDArray[np.uint8] | None = None,
    ) -> Samples:
        """Lay out the decisions on the days ``index``; images: the chart of every day, where drawn before."""
        network, scaler, c = self.network, self.scaler, self.config
        B = len(index)
        window = index[:, None] + np.arange(1 - c.lookback, 1)  # (B, t)
        # Memory from torch, filled through numpy: it is aligned alike each time, and BLAS may round by alignment.
        numbers = torch.zeros(B, c.lookback, days.market.shape[1])
        numbers.numpy()[:] = scaler(days.market[window]).clip(-5, 5)  # a crash is rare, not 20 σ
        image = torch.zeros(B, 1, 1, 1)
        if network.image is not None:
            drawn = charts(days.market, index, c.chart) if images is None else images[index]  # (B, height, width)
            image = torch.zeros(B, 1, *drawn.shape[1:])
            image.numpy()[:, 0] = drawn
            image /= 255
        some = self._some(days, news_days)  # (U,)
        present = self._present(days, index, some[windows])
        parts = (numbers, image, torch.from_numpy(windows[:, -1].copy()), torch.from_numpy(windows.copy()))
        laid = Samples(*parts, torch.from_numpy(some[windows]), torch.from_numpy(present))
        return Samples(*(tensor.to(c.device) for tensor in laid))

    def presence(self, days: Days, index: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say which features there are of the decisions → (B, C)."""
        news_days, windows = self.windows(index)
        return self._present(days, index, self._some(days, news_days)[windows])

    def _some(self, days: Days, index: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say which of the days (U,) have headlines that are not taken away."""
        there = days.news_offset[index + 1] > days.news_offset[index]
        return np.asarray(there & ~removed(days, index, "text", self.config.missing_text))

    def _present(self, days: Days, index: NDArray[np.int64], news: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Say which features there are of the decisions → (B, C); news: (B, t) which days of the window have any."""
        c = self.config
        there = {
            ("numeric", "fine"): ~removed(days, index, "numeric", c.missing_numeric),
            ("image", "fine"): ~removed(days, index, "image", c.missing_image),
            ("text", "fine"): news[:, -1],
            ("text", "coarse"): news.any(1),
        }
        there |= {(name, "coarse"): there[name, "fine"] for name in ("numeric", "image")}
        return np.stack([there[feature] for feature in c.features], 1)

    def texts(self, days: Days, index: NDArray[np.int64]) -> Texts:
        """Encode the texts of the days (U,), each through shapes that follow from its own number of headlines."""
        network, c = self.network, self.config
        if network.text is None:
            nothing = torch.zeros(len(index), 1, device=c.device)
            return Texts(nothing, nothing, [])
        rows = headlines(days, index, c.missing_text)
        attended, means = (torch.empty(len(index), c.hidden, device=c.device) for _ in range(2))
        weights = [np.empty(0, np.float32)] * len(index)
        pads = np.array([padded(len(r)) for r in rows])
        for pad in np.unique(pads).tolist():
            alike, U = np.flatnonzero(pads == pad), together(pad)
            for part in (alike[low : low + U] for low in range(0, len(alike), U)):
                block = self.block(days, [rows[i] for i in part], U, pad)
                one, mean, shares = network.text.day(block)  # (U, H), (U, H), (U, pad)
                attended[torch.from_numpy(part)], means[torch.from_numpy(part)] = one[: len(part)], mean[: len(part)]
                for i, row in zip(part, shares.cpu().numpy(), strict=False):
                    weights[i] = row[: len(rows[i])].copy()
        if c.missing_text:  # what was taken away had no share
            whole = [int(days.news_offset[day + 1] - days.news_offset[day]) for day in index]
            weights = [w if len(w) == n else np.zeros(n, np.float32) for w, n in zip(weights, whole, strict=True)]
        return Texts(attended, means, weights)

    def block(self, days: Days, rows: Sequence[NDArray[np.int64]], U: int, N: int) -> Headlines:
        """Lay these rows of headlines, one list a day, into U days of N."""
        mask = torch.zeros(U, N, dtype=torch.bool)
        mask.numpy()[: len(rows)] = np.arange(N) < np.array([len(r) for r in rows])[:, None]
        text, sentiment = torch.zeros(U, N, days.texts.width), torch.zeros(U, N, 3)
        flat = np.concatenate(rows)
        text.numpy()[mask.numpy()] = days.texts.rows(days.news_text[flat])
        sentiment.numpy()[mask.numpy()] = days.news_sentiment[flat]
        return Headlines(*(tensor.to(self.config.device) for tensor in (text, sentiment, mask)))


def headlines(days: Days, index: NDArray[np.int64], missing: float) -> list[NDArray[np.int64]]:
    """List each day's rows, none where its text is taken away."""
    gone = removed(days, index, "text", missing)
    slices = [days.news(int(day)) for day in index]
    return [np.arange(s.start, s.start if lost else s.stop) for s, lost in zip(slices, gone, strict=True)]


def removed(days: Days, index: NDArray[np.int64], modality: str, share: float) -> NDArray[np.bool_]:
    """Say of which days (n,) a modality is taken away: a draw by the day's own bar, so that no other day changes it."""
    if not share:
        return np.zeros(len(index), np.bool_)
    limit = int(share * 2**64)
    return np.array(
        [
            int.from_bytes(hashlib.blake2b(days.market[day].tobytes() + modality.encode(), digest_size=8).digest())
            < limit
            for day in index
        ]
    )
