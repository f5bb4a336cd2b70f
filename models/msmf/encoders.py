"""Multi-grained encoders (eq. 2): F_m = fine(X_m) ⊕ coarse(X_m), for numbers, chart and text.

Source: Qin, "MSMF: Multi-Scale Multi-Modal Fusion for Enhanced Stock Market Prediction". The paper gives eq. 2 and
"coarse-to-fine cascading"; the shapes of the encoders are decided here. Letters as in ``models.msmf.config``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WEEK = 5  # sessions of a coarse step


class NumericEncoder(nn.Module):
    """Eq. 2 for v_n: sessions by themselves (fine) and weeks (coarse).

    The fine branch convolves over three sessions; its steps, averaged by weeks, feed the coarse branch, whose steps go
    back into the fine one over the same lateral link: the cascade runs both ways.
    """

    def __init__(self, features: int, t: int, H: int, dropout: float) -> None:
        super().__init__()
        self.week = min(WEEK, t)
        self.first = nn.Conv1d(features, H, kernel_size=min(3, t), padding="same")
        self.second = nn.Conv1d(H, H, kernel_size=min(3, t), padding="same")
        self.weekly = nn.Conv1d(H, H, kernel_size=1)
        self.lateral = nn.Linear(H, H)
        self.fine, self.coarse = nn.Linear(t * H, H), nn.Linear(-(-t // self.week) * H, H)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised numbers (B, t, F), oldest first → fine (B, H), coarse (B, H)."""
        B, t, _ = x.shape
        days = F.gelu(self.first(x.transpose(1, 2)))  # (B, H, t)
        short = -t % self.week  # the oldest week may be short of days: it is filled with its first one
        weeks = F.pad(days, (short, 0), mode="replicate") if short else days  # (B, H, weeks · week)
        weeks = weeks.view(B, days.shape[1], -1, self.week).mean(3)  # (B, H, weeks)
        weeks = F.gelu(self.weekly(self.lateral(weeks.transpose(1, 2)).transpose(1, 2)))  # (B, H, weeks)
        back = self.lateral(weeks.transpose(1, 2)).transpose(1, 2)  # (B, H, weeks)
        back = back.repeat_interleave(self.week, dim=2)[:, :, short:]  # (B, H, t)
        days = F.gelu(self.second(days + back))  # (B, H, t)
        return self.fine(self.drop(days.flatten(1))), self.coarse(self.drop(weeks.flatten(1)))


class ImageEncoder(nn.Module):
    """Eq. 2 for v_i: small receptive fields over the pixels (fine), and the same chart at a session a column (coarse).

    Fine: two convolutions of 5 × 3 pixels that keep the columns and quarter the rows twice, as Jiang, Kelly & Xiu's.
    Coarse: the chart averaged over three columns and four rows, then two convolutions that see half of it at once.
    """

    def __init__(self, height: int, width: int, H: int, dropout: float, channels: int = 8) -> None:
        super().__init__()
        self.fine_1 = nn.Conv2d(1, channels, (5, 3), stride=(2, 3), padding=(2, 0))
        self.fine_2 = nn.Conv2d(channels, 2 * channels, (5, 3), stride=(2, 1), padding=(2, 1))
        self.coarse_1 = nn.Conv2d(1, channels, (5, 5), stride=(2, 1), padding=2)
        self.coarse_2 = nn.Conv2d(channels, 2 * channels, (5, 5), stride=(2, 2), padding=2)
        with torch.no_grad():
            fine, coarse = self._maps(torch.zeros(1, 1, height, width))
        self.fine, self.coarse = nn.Linear(fine.shape[1], H), nn.Linear(coarse.shape[1], H)
        self.drop = nn.Dropout(dropout)

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = F.max_pool2d(F.gelu(self.fine_1(x)), (2, 1))  # (B, c, height / 4, width / 3)
        fine = F.max_pool2d(F.gelu(self.fine_2(fine)), (2, 1))  # (B, 2c, height / 16, width / 3)
        small = F.avg_pool2d(x, (4, 3))  # (B, 1, height / 4, width / 3)
        coarse = F.gelu(self.coarse_2(F.gelu(self.coarse_1(small))))  # (B, 2c, height / 16, width / 6)
        return fine.flatten(1), coarse.flatten(1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Charts (B, 1, height, width), 0 … 1 → fine (B, H), coarse (B, H)."""
        fine, coarse = self._maps(x)
        return self.fine(self.drop(fine)), self.coarse(self.drop(coarse))


class Headlines(NamedTuple):
    """The headlines of U days, N at most: embeddings (U, N, D), sentiment (U, N, 3), mask (U, N) true where one is."""

    text: Tensor
    sentiment: Tensor
    mask: Tensor


class TextEncoder(nn.Module):
    """Eq. 2 for v_t: the decision day's single headlines (fine), and the days of the window as wholes (coarse).

    Fine: attention over the headlines by a learned query a head. Coarse: the mean of each day's headlines, convolved
    over the window's days that have any.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, D: int, t: int, H: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.register_buffer("mean", torch.zeros(D))  # subtracted from every embedding
        self.register_buffer("factor", torch.ones(D))  # and what it is then multiplied by
        self.e_t, self.e_s = nn.Linear(D, H), nn.Linear(3, H)
        self.r = nn.Linear(H, H)
        self.query = nn.Parameter(torch.zeros(heads, H // heads))  # all headlines alike at the start
        self.key = nn.Linear(H, H)
        self.fine = nn.Linear(H, H)
        self.days = nn.Conv1d(H + 1, H, kernel_size=min(3, t), padding="same")
        self.coarse = nn.Linear(H, H)
        self.drop = nn.Dropout(dropout)

    def day(self, x: Headlines) -> tuple[Tensor, Tensor, Tensor]:
        """Read U days → attended (U, H), mean (U, H), weights (U, N), the mean over heads; zeros on a silent day."""
        U, N, _ = x.text.shape
        weight = self.e_t.weight * self.factor  # (H, D); mean and factor go into the weights, smaller than all texts
        r = F.linear(x.text, weight, self.e_t.bias - weight @ self.mean) + self.e_s(x.sentiment)  # (U, N, H)
        r = r + self.r(self.drop(F.gelu(r)))  # (U, N, H)
        some = x.mask.any(1, keepdim=True)  # (U, 1)
        mask = x.mask | ~some  # (U, N): a silent day weighs its padding, so that no softmax is 0/0
        keys = self.key(r).view(U, N, self.heads, -1)  # (U, N, heads, H/heads)
        scores = (keys * self.query).sum(3) / math.sqrt(keys.shape[3])  # (U, N, heads)
        weights = scores.masked_fill(~mask[:, :, None], -math.inf).softmax(1)  # (U, N, heads)
        values = r.view(U, N, self.heads, -1)  # (U, N, heads, H/heads)
        attended = (weights[..., None] * values).sum(1).flatten(1)  # (U, H)
        mean = (r * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)  # (U, H)
        return attended * some, mean * some, weights.mean(2)

    def forward(self, attended: Tensor, means: Tensor, some: Tensor) -> tuple[Tensor, Tensor]:
        """The decision day (B, H), the window's days (B, t, H), which have news (B, t) → fine, coarse (B, H) each."""
        seen = some[:, :, None].to(means.dtype)  # (B, t, 1)
        days = torch.cat([means * seen, seen], 2).transpose(1, 2)  # (B, H + 1, t)
        days = F.gelu(self.days(days)).mean(2)  # (B, H)
        return self.fine(self.drop(F.gelu(attended))), self.coarse(self.drop(days))
