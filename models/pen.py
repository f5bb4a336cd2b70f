"""PEN: let the texts of each day move a state beside the prices, and say which text did.

Source: Li et al., "PEN: Prediction-Explanation Network to Forecast Stock Price Movement with Better Explainability",
AAAI 2023, and the frame it stands in, Xu, Cohen, "Stock Movement Prediction from Tweets and Historical Prices", ACL
2018 (StockNet); as a baseline of FININ (arXiv 2410.10614). Read top to bottom: the configuration, the cell, the
network, then ``Pen``, which feeds it with Days.

Where we differ: texts are not read word by word but come through the frozen language model and one linear layer e_t;
at most 20 a day, evenly spaced over the day's order, so that they depend on that day alone; prices are standardised
on the training days; a movement is one logit in the place of two classes; forecasts take the mean of the prior.
What the paper leaves open, or we could not read: how P is made to concentrate (here its entropy is charged), the
widths, and the optimiser.

Letters, beside those of models.base (D B t H):
    J texts read of a day   Z width of a latent movement   U days encoded at once
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import MARKET_FEATURES, Days, FitReport, Prediction, Standardiser, Weights
from models.fitting import Recipe, descend, held, log_loss, reproducible, runs
from models.sequences import arrays, load
from models.tone import labels
from trader.errors import ConfigError, ModelError

PRICES = [MARKET_FEATURES.index(name) for name in ("high", "low", "close")]  # their changes over the previous close
J = 20  # a multiple of 4, as are the sizes of batches: other products round their last rows otherwise
ENCODE_BATCH, FORECAST_BATCH = 16, 64  # days and decisions of every forecast, filled with dummies


@dataclass(frozen=True, slots=True, kw_only=True)
class PenConfig:
    """What is chosen before training; ConfigError where a value cannot be used."""

    lookback: int = 5  # t, sessions
    hidden: int = 32  # H, of texts, states and outputs
    latent: int = 16  # Z
    alpha: float = 0.5  # weight of the auxiliary days' objectives; the papers'
    kl: float = 1.0  # λ, weight of the divergence between posterior and prior, once it has risen
    anneal: int = 50  # training steps until λ has risen from 0
    concentration: float = 0.01  # charge on a nat of P's entropy; ours
    dropout: float = 0.2  # share of units
    learning_rate: float = 3e-3  # AdamW's; at 1e-3 the plateau before the texts are found outlasts the patience
    weight_decay: float = 0.1  # AdamW's, on matrices
    clip: float = 1.0  # largest gradient norm
    epochs: int = 30  # at most
    patience: int = 10  # epochs without a lower validation log loss
    batch_days: int = 32  # decisions in a training step, consecutive
    device: str = "cpu"  # or "cuda"

    def __post_init__(self) -> None:
        for name in ("hidden", "latent"):  # narrower products were seen to round by a row's place in its batch
            if (width := getattr(self, name)) < 16 or width % 8:
                raise ConfigError(f"{name} is no width", where="pen", got=width, expected="16, 24, 32 or more by 8")
        for name in ("lookback", "anneal", "epochs", "patience", "batch_days"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is too small", where="pen", got=getattr(self, name), expected="at least 1")
        for name in ("alpha", "kl", "concentration"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is negative", where="pen", got=getattr(self, name), expected="0 or more")
        if not 0 <= self.dropout < 1:
            raise ConfigError("dropout is not a share", where="pen", got=self.dropout, expected="0 ≤ dropout < 1")


class Block(NamedTuple):
    """Days as the network reads them: prices (U, 3), texts (U, J, D), mask (U, J), true where there is a text."""

    prices: Tensor
    texts: Tensor
    mask: Tensor


class Cell(nn.Module):
    """Shared representation learning: one day's texts and prices move a text-led state v and a price-led state h.

    a_j = tanh(S_j W_sa + h W_ha + b)        P = softmax_j(a_j · v_a)        text = Σ_j P_j S_j
    f, o = σ(text W + h W + b)               v' = f ⊙ v + o ⊙ tanh(text W_t + h W_ht + b)
    k = σ(x W_k + h W_hk + v' W_vk + b)      how much price against text
    h' = (1 − k) ⊙ tanh(h W_hv + v' W_v + b) + k ⊙ tanh(x W_s + h W_hs + b)

    All that is multiplied into one thing is one matrix: seven W of h with their b, three of the text, two of v', x.
    """

    def __init__(self, H: int) -> None:
        super().__init__()
        self.of_h = nn.Linear(H, 7 * H)  # a, f, o, t, k, v, s
        self.of_text = nn.Linear(H, 3 * H, bias=False)  # f, o, t
        self.of_v = nn.Linear(H, 2 * H, bias=False)  # k, v
        self.of_x = nn.Linear(len(PRICES), 2 * H, bias=False)  # k, s
        self.of_S = nn.Linear(H, H, bias=False)  # W_sa
        self.v_a = nn.Parameter(torch.randn(H) / math.sqrt(H))

    def forward(self, S: Tensor, mask: Tensor, x: Tensor, h: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Texts (B, J, H), mask (B, J), prices (B, 3), states (B, H) twice → h' (B, H), v' (B, H), P (B, J).

        P is 0 where there is no text; without any text the text is 0.
        """
        h_a, h_f, h_o, h_t, h_k, h_v, h_s = self.of_h(h).chunk(7, dim=1)  # (B, H) each
        x_k, x_s = self.of_x(x).chunk(2, dim=1)  # (B, H) each
        a = torch.tanh(self.of_S(S) + h_a[:, None])  # (B, J, H)
        score = (a * self.v_a).sum(2).masked_fill(~mask, -1e9)  # (B, J); −∞ would make NaN of a day without texts
        P = score.softmax(1) * mask  # (B, J)
        text_f, text_o, text_t = self.of_text((P[:, :, None] * S).sum(1)).chunk(3, dim=1)  # (B, H) each
        f, o = torch.sigmoid(text_f + h_f), torch.sigmoid(text_o + h_o)  # (B, H) each
        v = f * v + o * torch.tanh(text_t + h_t)  # (B, H)
        v_k, v_v = self.of_v(v).chunk(2, dim=1)  # (B, H) each
        k = torch.sigmoid(x_k + h_k + v_k)  # (B, H)
        h = (1 - k) * torch.tanh(h_v + v_v) + k * torch.tanh(x_s + h_s)  # (B, H)
        return h, v, P


class Told(NamedTuple):
    """What the network says of B windows.

    target: logits (B,) of the last day.   days: logits (B, t) of each day by itself.   scores: (B, t − 1) shares of
    the auxiliary days, all but the last; they sum to 1.   kl: (B, t) divergence of posterior from prior, nats.
    P: (B, t, J) salience of the texts.
    """

    target: Tensor
    days: Tensor
    scores: Tensor
    kl: Tensor
    P: Tensor


class Network(nn.Module):
    """Texts and prices of t days → the cell over the days → a variational decoder → attention over auxiliary days."""

    scale: Tensor

    def __init__(self, config: PenConfig, D: int) -> None:
        super().__init__()
        H, Z = config.hidden, config.latent
        self.e_t = nn.Linear(D, H)
        self.register_buffer("scale", torch.ones(1))  # brings embeddings to unit mean square
        self.drop = nn.Dropout(config.dropout)
        self.cell = Cell(H)
        self.recur = nn.GRU(H, H, batch_first=True)
        self.prior = nn.Sequential(nn.Linear(H, H), nn.Tanh(), nn.Linear(H, 2 * Z))
        self.posterior = nn.Sequential(nn.Linear(H + 1, H), nn.Tanh(), nn.Linear(H, 2 * Z))
        self.g = nn.Linear(H + Z, H)
        self.day = nn.Linear(H, 1)
        self.W, self.w = nn.Linear(H, H, bias=False), nn.Parameter(torch.randn(H) / math.sqrt(H))
        self.W_ = nn.Linear(H, H, bias=False)  # W' of the temporal attention
        self.target = nn.Linear(2 * H, 1)

    def encode(self, block: Block) -> Tensor:
        """Texts of U days → S (U, J, H)."""
        S: Tensor = self.e_t(block.texts * self.scale)  # (U, J, D) → (U, J, H)
        return S

    def forward(self, S: Tensor, mask: Tensor, x: Tensor, y: Tensor | None = None) -> Told:
        """Texts (B, t, J, H), mask (B, t, J), prices (B, t, 3) → what is told of B windows.

        y: (B, t) movements 0 and 1: then z is drawn from the posterior. Without: z is the mean of the prior, kl is 0.
        """
        h, P = self._states(self.drop(S), mask, x)  # (B, t, H), (B, t, J)
        r = self.recur(self.drop(h))[0]  # (B, t, H)
        z, kl = self._latent(r, y)  # (B, t, Z), (B, t)
        g = torch.tanh(self.g(torch.cat([r, z], dim=2)))  # (B, t, H)
        scores = self._scores(g)  # (B, t − 1)
        context = (scores[:, :, None] * g[:, :-1]).sum(1)  # (B, H); zeros where t is 1
        target = self.target(self.drop(torch.cat([context, g[:, -1]], dim=1))).squeeze(1)  # (B,)
        return Told(target, self.day(self.drop(g)).squeeze(2), scores, kl, P)

    def _states(self, S: Tensor, mask: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run the cell over the days, from states of zeros → h' (B, t, H), P (B, t, J)."""
        h = v = S.new_zeros(S.shape[0], S.shape[3])  # (B, H)
        states, saliences = [], []
        for day in range(S.shape[1]):
            h, v, P = self.cell(S[:, day], mask[:, day], x[:, day], h, v)
            states.append(h)
            saliences.append(P)
        return torch.stack(states, dim=1), torch.stack(saliences, dim=1)

    def _latent(self, r: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """z (B, t, Z) of q(z | h, y), reparametrised, and KL(q ‖ p) (B, t); without y the mean of p(z | h) and 0."""
        m, s = self.prior(r).chunk(2, dim=2)  # mean and log standard deviation, (B, t, Z) each
        if y is None:
            return m, m.new_zeros(m.shape[:2])
        M, L = self.posterior(torch.cat([r, y[:, :, None]], dim=2)).chunk(2, dim=2)  # (B, t, Z) each
        z = M + L.exp() * torch.randn_like(M)  # (B, t, Z)
        kl = s - L + ((2 * L).exp() + (M - m).square()) / (2 * (2 * s).exp()) - 0.5  # (B, t, Z)
        return z, kl.sum(2)

    def _scores(self, g: Tensor) -> Tensor:
        """softmax over the auxiliary days of (w · tanh(W g_d)) (tanh(W' g_d) · g_T): (B, t, H) → (B, t − 1)."""
        aux, last = g[:, :-1], g[:, -1:]  # (B, t − 1, H), (B, 1, H)
        information = (torch.tanh(self.W(aux)) * self.w).sum(2)  # (B, t − 1)
        dependency = (torch.tanh(self.W_(aux)) * last).sum(2)  # (B, t − 1)
        return (information * dependency).softmax(1)


def objective(told: Told, y: Tensor, known: Tensor, kl: float, config: PenConfig) -> Tensor:
    """Return what is minimised, its mean over B windows, in nats.

    −[log p(y_T) − λ KL_T] − α Σ_d score_d [log p(y_d) − λ KL_d] + ρ · mean entropy of P over the days with texts.

    y: (B, t) movements.   known: (B, t) true where a movement is known; auxiliary days without one are left out.
    kl: λ of this step.
    """
    nll = F.binary_cross_entropy_with_logits(told.days, y, reduction="none") + kl * told.kl  # (B, t)
    target = F.binary_cross_entropy_with_logits(told.target, y[:, -1], reduction="none") + kl * told.kl[:, -1]  # (B,)
    auxiliary = (told.scores * nll[:, :-1] * known[:, :-1]).sum(1)  # (B,)
    entropy = -(told.P * told.P.clamp_min(1e-12).log()).sum(2)  # (B, t)
    some = told.P.sum(2) > 0  # (B, t)
    spread = entropy.sum() / some.sum().clamp_min(1)
    return (target + config.alpha * auxiliary).mean() + config.concentration * spread


class Pen:
    """PEN as a Model (models.base): fit, predict, weights, load.

    ModelError where it is untrained, where a decision lacks its days or its label, where a number is none.
    """

    def __init__(self, config: PenConfig | None = None) -> None:
        self.config = config or PenConfig()
        self.lookback = self.config.lookback
        self._network: Network | None = None
        self._scaler: Standardiser | None = None

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        """Learn from decisions on ``train``, stop on the log loss of ``validation``; see models.base.Model.

        The movements of a window's earlier days are known at its last day, and are auxiliary targets.
        """
        c = self.config
        for at in (train, validation):
            self._check(days, at)
            labels(days, at)  # refuses days whose next close is open
        first, stop = min(train.start, validation.start) - c.lookback + 1, max(train.stop, validation.stop)
        span = held(days.between(first, stop))
        train, validation = (range(at.start - first, at.stop - first) for at in (train, validation))
        self._scaler = Standardiser.of(span.market[train.start : train.stop, PRICES])
        with reproducible(seed, c.device):
            network = Network(c, span.texts.width).to(c.device)
            norm = float(np.linalg.norm(span.texts.rows(np.array([span.market_text]))))
            network.scale.fill_(math.sqrt(span.texts.width) / norm if norm > 0 else 1.0)
            self._network = network
            return self._descend(network, span, train, validation, seed)

    def _descend(self, network: Network, span: Days, train: range, validation: range, seed: int) -> FitReport:
        c, label, steps = self.config, span.label, 0

        def batches(rng: np.random.Generator) -> Iterator[tuple[Block, Tensor]]:
            for at in runs(train, c.batch_days, rng):
                index = np.arange(at.start - c.lookback + 1, at.stop)  # (U,), U = B + t − 1
                yield self._block(span, index, len(index)), torch.from_numpy(label[index]).to(c.device)

        def loss(batch: tuple[Block, Tensor]) -> Tensor:
            nonlocal steps
            block, y = batch
            window = torch.arange(len(y) - c.lookback + 1, device=c.device)[:, None]  # (B, 1)
            window = window + torch.arange(c.lookback, device=c.device)  # (B, t)
            known = ~y.isnan()  # (U,)
            y, S = y.nan_to_num(0.0), network.encode(block)  # (U,), (U, J, H)
            told = network(S[window], block.mask[window], block.prices[window], y[window])
            rise, steps = min(1.0, steps / c.anneal), steps + 1
            return objective(told, y[window], known[window], c.kl * rise, c)

        def validate() -> tuple[float, float]:
            p_up, _ = self._forecast(span, np.arange(validation.start, validation.stop))
            return log_loss(p_up, label[validation.start : validation.stop])

        recipe = Recipe(c.learning_rate, c.weight_decay, c.clip, c.epochs, c.patience)
        return descend(network, recipe, seed, batches, loss, validate)

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        """Forecast decisions on the days ``at``; a headline's weight is its salience, 0 where it was not read."""
        self._check(days, at)
        network, _ = self._trained()
        if (D := days.texts.width) != (own := network.e_t.in_features):
            raise ModelError("these texts are another language model's", got=f"width {D}", expected=f"width {own}")
        index = np.asarray(at, dtype=np.int64)
        with reproducible(device=self.config.device), torch.no_grad():
            p_up, salience = self._forecast(days, index)
        if not np.isfinite(p_up).all():
            day = int(index[~np.isfinite(p_up)][0])
            raise ModelError("a forecast is not a number", where=f"day {day}", do="look for NaN in its lookback days")
        weights = []
        for day, row in zip(index, salience, strict=True):
            whole = np.zeros(int(days.news_offset[day + 1] - days.news_offset[day]), np.float32)  # (N,)
            read = picked(len(whole))
            whole[read] = row[: len(read)]
            weights.append(whole)
        return Prediction(p_up, news_weights=weights)

    def weights(self) -> Weights:
        """Return network and scaler as arrays; ModelError before training."""
        network, scaler = self._trained()
        return arrays(network, "network") | {"numbers.mean": scaler.mean.copy(), "numbers.std": scaler.std.copy()}

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Take what ``weights()`` returned; ValueError where names, shapes or dtypes differ from this configuration."""
        e_t = weights.get("network.e_t.weight", np.empty((0, 1)))
        mean, std = (np.array(weights.get(f"numbers.{name}", np.empty(0))) for name in ("mean", "std"))
        strange = [name for name in weights if not name.startswith(("network.", "numbers."))]
        if strange or any(array.shape != (len(PRICES),) or array.dtype != np.float32 for array in (mean, std)):
            raise ValueError(f"weights do not fit: numbers {mean.shape} and {std.shape}, beside them {strange[:3]}")
        with reproducible(0):  # initial weights are drawn, to be overwritten
            network = Network(self.config, e_t.shape[-1] if e_t.ndim else 1)
        load(network, weights, "network")
        self._network, self._scaler = network.to(self.config.device), Standardiser(mean, std)

    def _trained(self) -> tuple[Network, Standardiser]:
        if self._network is None or self._scaler is None:
            raise ModelError("PEN has not been trained", do="call fit or load first")
        return self._network, self._scaler

    def _check(self, days: Days, at: Sequence[int]) -> None:
        if not len(at):
            raise ModelError("no decisions to learn from or to forecast")
        first, last = self.lookback - 1, len(days) - 1
        if min(at) < first or max(at) > last:
            got, expected = f"days {min(at)}–{max(at)}", f"days {first}–{last}"
            raise ModelError(f"a decision lacks its {self.lookback} days", got=got, expected=expected)

    def _forecast(self, days: Days, at: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """P(up) (B,) and the salience of the last day's texts (B, J), through shapes that no other day can change."""
        network, _ = self._trained()
        needed = at[:, None] + np.arange(1 - self.lookback, 1)  # (B, t)
        index, position = np.unique(needed, return_inverse=True)
        S, mask, prices = self._encoded(days, index)
        windows = position.reshape(needed.shape)  # (B, t)
        logits, salience = np.empty(len(at)), np.empty((len(at), J), np.float32)
        for low in range(0, len(at), FORECAST_BATCH):
            part = windows[low : low + FORECAST_BATCH]
            full = torch.from_numpy(np.resize(part, (FORECAST_BATCH, self.lookback)))  # repeats the part as dummies
            told = network(S[full], mask[full], prices[full])
            logits[low : low + len(part)] = told.target.cpu().numpy()[: len(part)]
            salience[low : low + len(part)] = told.P[:, -1].cpu().numpy()[: len(part)]
        return 0.5 * (1 + np.tanh(logits / 2)), salience  # a sigmoid that never overflows

    def _encoded(self, days: Days, index: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Encode each day once: S (U, J, H), mask (U, J), prices (U, 3) of the days ``index``."""
        network, _ = self._trained()
        parts = []
        for low in range(0, len(index), ENCODE_BATCH):
            part = index[low : low + ENCODE_BATCH]
            block = self._block(days, part, ENCODE_BATCH)
            kept = network.encode(block), block.mask, block.prices
            parts.append([tensor[: len(part)] for tensor in kept])
        S, mask, prices = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return S, mask, prices

    def _block(self, days: Days, index: NDArray[np.int64], U: int) -> Block:
        """Lay the days ``index`` into U days of J texts, padded with zeros."""
        _, scaler = self._trained()
        news = [days.news_offset[day] + picked(int(days.news_offset[day + 1] - days.news_offset[day])) for day in index]
        # Memory from torch, filled through numpy: it is aligned alike each time, and BLAS may round by alignment.
        mask = torch.zeros(U, J, dtype=torch.bool)
        mask.numpy()[: len(index)] = np.arange(J) < np.array([len(rows) for rows in news])[:, None]
        prices, texts = torch.zeros(U, len(PRICES)), torch.zeros(U, J, days.texts.width)
        prices.numpy()[: len(index)] = scaler(days.market[index][:, PRICES]).clip(-5, 5)  # a crash is rare, not 20 σ
        texts.numpy()[mask.numpy()] = days.texts.rows(days.news_text[np.concatenate(news)])
        return Block(*(tensor.to(self.config.device) for tensor in (prices, texts, mask)))


def picked(N: int) -> NDArray[np.int64]:
    """Choose which of a day's N texts are read: all, or J evenly spaced over the day's order.

    >>> picked(3).tolist(), picked(40).tolist()[:4], len(picked(1953))
    ([0, 1, 2], [0, 2, 4, 6], 20)
    """
    return np.arange(N) if N <= J else np.arange(J) * N // J
