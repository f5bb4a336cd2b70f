"""FININ: weigh each of a day's headlines by the market it falls into, and say whether tomorrow closes higher.

Source: Wang, Cohen, Ma, "Modeling News Interactions and Influence for Financial Market Prediction",
Findings of EMNLP 2024, arXiv 2410.10614; equation numbers below are theirs.

Read top to bottom: the configuration, the network (data fusion encoder → influence quantifier → prediction head),
then ``Finin``, which feeds it with Days. A day is encoded once, whatever the number of windows it lies in.

Letters, beside those of models.base (S F M N D B t H):
    A attention heads   K width of one head's query, key and value   E width of an encoded day: 2H, or H without news

What the paper leaves open, and what is done here:
    activations          GELU, with dropout, between the linear layers of every MLP; none after the last
    heads and widths     heads need not divide the width: each head has the whole width K (projections to A·K)
    news–news attention  r^(f) = LayerNorm(r^(e) + attention), as in Vaswani et al.; no feed-forward after it
    market–news          no residual: the market state goes to the head by itself; the A·K values are mapped to H
    weights shown        the mean over heads, which still sums to 1
    scales               market features standardised on the training days and cut at ±5 (a crash is rare, not 20 σ);
                         embeddings scaled by one factor, which brings the market's description to unit mean square
    a day without news   a learned vector in the place of r_d^(f)
    training             at most ``train_headlines`` of a day, drawn anew each epoch; forecasts read all of them
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

from models.base import Days, FitReport, Prediction, Standardiser, Weights
from models.fitting import Recipe, descend, held, log_loss, reproducible, runs
from trader.errors import ConfigError, ModelError

# Bits come from shapes: what a forecast runs through is shaped by the day's own number of headlines and by nothing
# else. Headlines are padded to a multiple of PAD, days of one padded length go in batches of one size, windows
# HEAD_BATCH at a time, and what is missing to a full batch is filled with dummies. Measured: in a matrix product of
# 2, 3, 5, 6, 7, 9 … rows the last rows are rounded otherwise than the first, in multiples of 4 all alike.
PAD, PAD_TOKENS, HEAD_BATCH = 16, 1024, 64

HEADS = ("mlp", "cnn", "lstm")


@dataclass(frozen=True, slots=True, kw_only=True)
class FininConfig:
    """What is chosen before training; ConfigError where a value cannot be used.

    The paper selects layers, hidden, heads and qkv on validation; it states no optimiser: those defaults are ours,
    set for the few hundred samples of a fold, whose signal is near zero.
    """

    lookback: int = 5  # t, sessions; the paper: 1, 3, 5, 10, 20
    hidden: int = 32  # H; the paper: 16, 32, 64
    layers: int = 2  # linear layers of each MLP; the paper: 2, 3, 4
    heads: int = 3  # A; the paper: 1, 3, 6
    qkv: int = 32  # K, of each head; the paper: 32, 64, 128
    head: str = "mlp"  # pred of eq. 7: mlp (the paper's choice), cnn, lstm
    news: bool = True  # False: the paper's −NTP −NNP, market alone
    text: bool = True  # False: −MTP −NTP, numbers alone
    quantifier: bool = True  # False: −MIQ, the day's headlines are averaged
    dropout: float = 0.2  # share of units; ours
    learning_rate: float = 1e-3  # AdamW's; ours
    weight_decay: float = 0.1  # AdamW's, on matrices; ours
    clip: float = 1.0  # largest gradient norm; ours
    epochs: int = 30  # at most; ours
    patience: int = 6  # epochs without a lower validation log loss; ours
    batch_days: int = 32  # decisions in a training step, consecutive; ours
    train_headlines: int = 256  # most headlines of a day in one training step, 0 for all; ours
    device: str = "cpu"  # or "cuda"

    def __post_init__(self) -> None:
        # Seen on other widths: bits that depend on a day's place in its batch.
        if self.hidden < 16 or self.hidden % 8:
            raise ConfigError("hidden is no width", where="finin", got=self.hidden, expected="16, 24, 32 or more by 8")
        if self.qkv < 8 or self.qkv % 8:
            raise ConfigError("qkv is no width", where="finin", got=self.qkv, expected="8, 16, 24 or more by 8")
        for name in ("lookback", "layers", "heads", "epochs", "patience", "batch_days"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is too small", where="finin", got=getattr(self, name), expected="at least 1")
        if self.head not in HEADS:
            raise ConfigError("no such prediction head", where="finin", got=self.head, expected=", ".join(HEADS))
        if not 0 <= self.dropout < 1:
            raise ConfigError("dropout is not a share", where="finin", got=self.dropout, expected="0 ≤ dropout < 1")


class Block(NamedTuple):
    """B days side by side, of N headlines at most; their headlines in one column of M, dummies being zero."""

    market: Tensor  # (B, F) standardised
    market_text: Tensor  # (1, D) frozen embedding of the market's description
    text: Tensor  # (M, D) frozen embeddings
    sentiment: Tensor  # (M, 3) negative, neutral, positive
    place: Tensor  # (M,) int64, where each of them lies in (B·N,)
    mask: Tensor  # (B, N) bool, True where there is a headline


def mlp(config: FininConfig, width: int, out: int) -> nn.Sequential:
    """Build ``layers`` linear layers, width → H → … → out."""
    layers: list[nn.Module] = []
    for _ in range(config.layers - 1):
        layers += [nn.Linear(width, config.hidden), nn.GELU(), nn.Dropout(config.dropout)]
        width = config.hidden
    return nn.Sequential(*layers, nn.Linear(width, out))


class Turn(nn.Module):
    """(B, t, E) → (B, E, t), as a convolution wants it."""

    def forward(self, x: Tensor) -> Tensor:
        """Swap days and width."""
        return x.transpose(1, 2)


class LastState(nn.Module):
    """An LSTM over the days, oldest first: (B, t, E) → its last state (B, H)."""

    def __init__(self, width: int, H: int) -> None:
        super().__init__()
        self.recur = nn.LSTM(width, H, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Run through all days."""
        states: Tensor = self.recur(x)[0]  # (B, t, H)
        return states[:, -1]  # (B, H)


def prediction_head(config: FininConfig, width: int) -> nn.Sequential:
    """Build pred of eq. 7, windows (B, t, E = width) → logits (B, 1); the paper's final choice is the MLP."""
    t, H, drop = config.lookback, config.hidden, nn.Dropout(config.dropout)
    if config.head == "cnn":
        convolve = nn.Conv1d(width, H, kernel_size=min(3, t), padding="same")
        return nn.Sequential(Turn(), convolve, nn.GELU(), nn.Flatten(), drop, nn.Linear(t * H, 1))
    if config.head == "lstm":
        return nn.Sequential(LastState(width, H), drop, nn.Linear(H, 1))
    return nn.Sequential(nn.Flatten(), mlp(config, t * width, 1))


class NewsAttention(nn.Module):
    """Each headline looks at all headlines of its day: r^(e) → r^(f) (section 4.2, first layer)."""

    def __init__(self, config: FininConfig) -> None:
        super().__init__()
        self.heads, width = config.heads, config.heads * config.qkv
        self.qkv = nn.Linear(config.hidden, 3 * width)
        self.out = nn.Linear(width, config.hidden)
        self.drop = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.hidden)

    def forward(self, r: Tensor, mask: Tensor) -> Tensor:
        """(B, N, H) headlines, (B, N) which of them may be looked at → (B, N, H)."""
        B, N, _ = r.shape
        q, k, v = self.qkv(r).view(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (B, A, N, K)
        # No dropout inside: with it the fused kernel, whose memory is linear in N, is not taken.
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])  # (B, A, N, K)
        y = self.out(y.transpose(1, 2).reshape(B, N, -1))  # (B, N, H)
        refined: Tensor = self.norm(r + self.drop(y))  # (B, N, H)
        return refined


class MarketAttention(nn.Module):
    """The market state, as the only query, weighs the day's headlines (eq. 6)."""

    def __init__(self, config: FininConfig) -> None:
        super().__init__()
        self.heads, width = config.heads, config.heads * config.qkv
        self.q = nn.Linear(config.hidden, width)
        self.kv = nn.Linear(config.hidden, 2 * width)
        self.out = nn.Linear(width, config.hidden)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, m: Tensor, r: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H) market, (B, N, H) headlines, (B, N) mask → (B, H) r_d^(f), (B, N) weights, mean over heads."""
        B, N, _ = r.shape
        q = self.q(m).view(B, self.heads, 1, -1)  # (B, A, 1, K)
        k, v = self.kv(r).view(B, N, 2, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (B, A, N, K)
        scores = q @ k.transpose(2, 3) / math.sqrt(k.shape[-1])  # (B, A, 1, N)  eq. 6
        scores = scores.masked_fill(~mask[:, None, None, :], -math.inf)  # news only: the market is no key of its own
        weights = scores.softmax(-1)  # (B, A, 1, N)
        y = self.out((weights @ v).view(B, -1))  # (B, A, 1, K) → (B, A·K) → (B, H)
        return self.drop(y), weights.squeeze(2).mean(1)  # (B, H), (B, N)


class Network(nn.Module):
    """The whole of figure 2. D: width of the language model; features: F.   The language model is not part of it."""

    scale: Tensor

    def __init__(self, config: FininConfig, D: int, features: int) -> None:
        super().__init__()
        self.config, H = config, config.hidden
        fused = 2 * H if config.text else H
        self.e1, self.f1 = mlp(config, features, H), mlp(config, fused, H)
        if config.text:
            self.e_t = nn.Linear(D, H)
            self.register_buffer("scale", torch.ones(()))  # brings one embedding to unit mean square
        if config.news:
            self.e2, self.f2 = mlp(config, 3, H), mlp(config, fused, H)
            self.no_news = nn.Parameter(torch.zeros(H))
            if config.quantifier:
                self.news_news, self.market_news = NewsAttention(config), MarketAttention(config)
        self.head = prediction_head(config, 2 * H if config.news else H)

    def fuse(self, f: nn.Module, text: Tensor, number: Tensor) -> Tensor:
        """Join embeddings (…, D) and encoded numbers (…, H) by f1 or f2 → (…, H)."""
        if self.config.text:
            text = F.linear(text, self.scale * self.e_t.weight, self.e_t.bias)  # (…, H)  eqs. 1, 2: one e_t for both
            number = torch.cat([text.expand_as(number), number], -1)  # (…, 2H)
        fused: Tensor = f(number)  # (…, H)
        return fused

    def encode(self, x: Block) -> tuple[Tensor, Tensor]:
        """Encode B days → (B, E), and the weights of their headlines (B, N)."""
        m = self.fuse(self.f1, x.market_text, self.e1(x.market))  # (B, H)  eqs. 1, 3, 4
        if not self.config.news:
            return m, torch.zeros_like(x.mask, dtype=m.dtype)
        r = self.fuse(self.f2, x.text, self.e2(x.sentiment))  # (M, H)  eqs. 2, 3, 5
        r = r.new_zeros(x.mask.numel(), r.shape[1]).index_copy(0, x.place, r).view(*x.mask.shape, -1)  # (B, N, H)
        some = x.mask.any(1, keepdim=True)  # (B, 1)
        mask = x.mask | ~some  # a day without news weighs its padding, so that no softmax is 0/0; replaced below
        if self.config.quantifier:
            r = self.news_news(r, mask)  # (B, N, H)
            news, weights = self.market_news(m, r, mask)  # (B, H), (B, N)  eq. 6
        else:
            weights = mask / mask.sum(1, keepdim=True)  # (B, N)
            news = (weights[:, None] @ r).squeeze(1)  # (B, 1, N) @ (B, N, H) → (B, H)
        news = torch.where(some, news, self.no_news)  # (B, H)
        return torch.cat([m, news], -1), weights  # (B, 2H), (B, N)

    def forward(self, windows: Tensor) -> Tensor:
        """Windows of encoded days (B, t, E), oldest day first → (B,) logits of P(up), eq. 7."""
        logits: Tensor = self.head(windows)  # (B, 1)
        return logits.squeeze(1)  # (B,)


class Finin:
    """FININ as a Model (models.base): fit, predict, weights, load.

    ModelError where it is untrained, where a decision lacks its days or its label, where a number is none.
    """

    def __init__(self, config: FininConfig | None = None) -> None:
        self.config = config or FininConfig()
        self.lookback = self.config.lookback
        self._network: Network | None = None
        self._scaler: Standardiser | None = None

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        """Learn from decisions on ``train``, stop on the log loss of ``validation``; see models.base.Model.

        A batch is a run of ``batch_days`` consecutive decisions with the lookback − 1 days before them; where the
        runs begin is drawn for each epoch, and so is their order.
        """
        c = self.config
        self._check(days, train, labelled=True)
        self._check(days, validation, labelled=True)
        first, stop = min(train.start, validation.start) - c.lookback + 1, max(train.stop, validation.stop)
        span = held(days.between(first, stop))
        train, validation = (range(at.start - first, at.stop - first) for at in (train, validation))
        self._scaler = Standardiser.of(span.market[train.start : train.stop])
        with reproducible(seed, c.device):
            network = Network(c, span.texts.width, span.market.shape[1]).to(c.device)
            if c.text:
                norm = float(np.linalg.norm(span.texts.rows(np.array([span.market_text]))))
                network.scale.fill_(math.sqrt(span.texts.width) / norm if norm > 0 else 1.0)
            self._network = network
            return self._descend(network, span, train, validation, seed)

    def _descend(self, network: Network, span: Days, train: range, validation: range, seed: int) -> FitReport:
        c, label = self.config, span.label

        def batches(rng: np.random.Generator) -> Iterator[tuple[Block, Tensor]]:
            for at in runs(train, c.batch_days, rng):
                index = np.arange(at.start - c.lookback + 1, at.stop)
                rows = self._headlines(span, index, rng)
                N = max(1, max(map(len, rows)))
                block = self._block(span, index, rows, len(index), N, dummies=False)
                yield block, torch.from_numpy(label[at.start : at.stop]).to(c.device)

        def loss(batch: tuple[Block, Tensor]) -> Tensor:
            encoded, _ = network.encode(batch[0])  # (B + t − 1, E) for B decisions
            windows = encoded.unfold(0, c.lookback, 1).transpose(1, 2)  # (B, E, t) → (B, t, E)
            return F.binary_cross_entropy_with_logits(network(windows), batch[1])

        def validate() -> tuple[float, float]:
            p_up, _ = self._forecast(span, np.arange(validation.start, validation.stop))
            return log_loss(p_up, label[validation.start : validation.stop])

        recipe = Recipe(c.learning_rate, c.weight_decay, c.clip, c.epochs, c.patience)
        return descend(network, recipe, seed, batches, loss, validate)

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        """Forecast decisions on the days ``at``, with a weight for each headline of the day; see models.base.Model."""
        self._check(days, at)
        network, _ = self._trained()
        if self.config.text and (D := days.texts.width) != (own := network.e_t.in_features):
            raise ModelError("these texts are another language model's", got=f"width {D}", expected=f"width {own}")
        with reproducible(device=self.config.device), torch.no_grad():
            p_up, weights = self._forecast(days, np.asarray(at, dtype=np.int64))
        if not np.isfinite(p_up).all():
            day = int(np.asarray(at)[~np.isfinite(p_up)][0])
            raise ModelError("a forecast is not a number", where=f"day {day}", do="look for NaN in its lookback days")
        return Prediction(p_up, news_weights=weights if self.config.news else None)

    def weights(self) -> Weights:
        """Return network and scaler as arrays; ModelError before training."""
        network, scaler = self._trained()
        arrays: Weights = {f"network.{name}": t.cpu().numpy().copy() for name, t in network.state_dict().items()}
        return arrays | {"market.mean": scaler.mean.copy(), "market.std": scaler.std.copy()}

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Take what ``weights()`` returned; ValueError where names, shapes or dtypes differ from this configuration."""
        mean, e_t = weights.get("market.mean", np.empty(0)), weights.get("network.e_t.weight", np.empty((0, 1)))
        with reproducible(0):  # initial weights are drawn, to be overwritten
            network = Network(self.config, e_t.shape[-1] if e_t.ndim else 1, mean.size or 1)
        state = network.state_dict()
        expected = {f"network.{name}": tuple(t.shape) for name, t in state.items()}
        expected |= {"market.mean": (mean.size,), "market.std": (mean.size,)}
        got = {name: array.shape for name, array in weights.items()}
        if got != expected or any(array.dtype != np.float32 for array in weights.values()):
            wrong = sorted(name for name in expected | got if expected.get(name) != got.get(name)) or ["not float32"]
            raise ValueError(f"weights do not fit {self.config}: {', '.join(wrong[:5])}")
        for name, tensor in state.items():
            tensor.copy_(torch.from_numpy(np.array(weights[f"network.{name}"])))
        self._network = network.to(self.config.device).eval()
        self._scaler = Standardiser(*(np.array(weights[f"market.{name}"], np.float32) for name in ("mean", "std")))

    def _trained(self) -> tuple[Network, Standardiser]:
        if self._network is None or self._scaler is None:
            raise ModelError("FININ has not been trained", do="call fit or load first")
        return self._network, self._scaler

    def _check(self, days: Days, at: Sequence[int], labelled: bool = False) -> None:
        if not len(at):
            raise ModelError("no decisions to learn from or to forecast")
        where, first, last = f"days {min(at)}–{max(at)}", self.lookback - 1, len(days) - 1
        if min(at) < first or max(at) > last:
            raise ModelError(f"a decision lacks its {self.lookback} days", got=where, expected=f"days {first}–{last}")
        if labelled and np.isnan(days.label[list(at)]).any():
            raise ModelError("a decision has no label yet", where=where, do="leave out days whose next close is open")

    def _forecast(self, days: Days, at: NDArray[np.int64]) -> tuple[NDArray[np.float64], list[NDArray[np.float32]]]:
        """(B,) P(up) and B rows of weights, through shapes that no other day can change."""
        network, _ = self._trained()
        needed = (at[:, None] + np.arange(1 - self.lookback, 1)).astype(np.int64)  # (B, t)
        index, position = np.unique(needed, return_inverse=True)
        encoded, weights = self._encode(days, index)
        windows, logits = position.reshape(needed.shape), np.empty(len(at))
        for low in range(0, len(at), HEAD_BATCH):
            part = windows[low : low + HEAD_BATCH]
            full = np.resize(part, (HEAD_BATCH, self.lookback))  # repeats the part's own rows as dummies
            logits[low : low + len(part)] = network(encoded[torch.from_numpy(full)]).cpu().numpy()[: len(part)]
        return 1 / (1 + np.exp(-logits)), [weights[row] for row in windows[:, -1]]

    def _encode(self, days: Days, index: NDArray[np.int64]) -> tuple[Tensor, list[NDArray[np.float32]]]:
        """Encode each of the days once → (len(index), E) and a row of weights a day."""
        (network, _), c = self._trained(), self.config
        rows = self._headlines(days, index)
        encoded = torch.empty(len(index), c.hidden * (2 if c.news else 1), device=c.device)  # (len(index), E)
        pads = np.array([max(1, -(-len(r) // PAD)) * PAD for r in rows])
        weights = [np.empty(0, np.float32)] * len(index)
        for pad in np.unique(pads).tolist():
            alike, B = np.flatnonzero(pads == pad), max(1, PAD_TOKENS // pad // 8 * 8)
            for part in (alike[low : low + B] for low in range(0, len(alike), B)):
                e, w = network.encode(self._block(days, index[part], [rows[i] for i in part], B, pad, dummies=True))
                encoded[torch.from_numpy(part)] = e[: len(part)]
                for i, row in zip(part, w.cpu().numpy(), strict=False):
                    weights[i] = row[: len(rows[i])].copy()
        return encoded, weights

    def _headlines(
        self, days: Days, index: NDArray[np.int64], rng: np.random.Generator | None = None
    ) -> list[NDArray[np.int64]]:
        """List each day's rows, oldest first; with a generator (in training) at most ``train_headlines``, drawn."""
        rows = [np.arange(s.start, s.stop if self.config.news else s.start) for s in map(days.news, index)]
        if rng is None or not (most := self.config.train_headlines):
            return rows
        return [np.sort(rng.choice(r, most, replace=False)) if len(r) > most else r for r in rows]

    def _block(
        self, days: Days, index: NDArray[np.int64], rows: Sequence[NDArray[np.int64]], B: int, N: int, dummies: bool
    ) -> Block:
        """Lay the days ``index``, with these rows of headlines, into B days of N; ``dummies`` fills M up to B·N."""
        _, scaler = self._trained()
        mask = torch.zeros(B, N, dtype=torch.bool)
        mask.numpy()[: len(index)] = np.arange(N) < np.array([len(r) for r in rows])[:, None]
        flat, filled = np.concatenate(rows), np.flatnonzero(mask.numpy())
        place, at = (np.arange(B * N), filled) if dummies else (filled, np.arange(len(flat)))
        # Memory from torch, filled through numpy: it is aligned alike each time, and BLAS may round by alignment.
        D = days.texts.width if self.config.text else 0
        market, market_text = torch.zeros(B, days.market.shape[1]), torch.zeros(1, D)
        text, sentiment = torch.zeros(len(place), D), torch.zeros(len(place), 3)
        market.numpy()[: len(index)] = scaler(days.market[index]).clip(-5, 5)
        if self.config.text:
            market_text.numpy()[:] = days.texts.rows(np.array([days.market_text]))
            text.numpy()[at] = days.texts.rows(days.news_text[flat])
        sentiment.numpy()[at] = days.news_sentiment[flat]
        tensors = (market, market_text, text, sentiment, torch.from_numpy(place), mask)
        return Block(*(tensor.to(self.config.device) for tensor in tensors))
