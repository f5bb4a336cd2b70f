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
                         embeddings brought to unit mean square, so that any language model starts alike
    a day without news   a learned vector in the place of r_d^(f)
    training             at most ``train_headlines`` of a day, drawn anew each epoch; forecasts read all of them
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Days, FitReport, Prediction, Standardiser, Weights
from models.fitting import Recipe, descend, log_loss, reproducible
from trader.errors import ConfigError, ModelError

# Bits come from shapes: what a forecast runs through is shaped by the day's own number of headlines and by nothing
# else. Headlines are padded to a multiple of PAD, days of one padded length go in batches of one size, windows
# HEAD_BATCH at a time, and what is missing to a full batch is filled with dummies. Measured: in a matrix product of
# 2, 3, 5, 6, 7, 9 … rows the last rows are rounded otherwise than the first, in multiples of 4 all alike.
PAD, PAD_TOKENS, HEAD_BATCH = 16, 1024, 64
HELD_BYTES = 64 << 20  # embeddings of a training span up to this size are read once and kept for all epochs


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
    epochs: int = 40  # at most; ours
    patience: int = 6  # epochs without a lower validation log loss; ours
    batch_days: int = 32  # decisions in a training step, consecutive; ours
    train_headlines: int = 256  # most headlines of a day in one training step, 0 for all; ours
    device: str = "cpu"  # or "cuda"

    def __post_init__(self) -> None:
        for name in ("lookback", "hidden", "layers", "heads", "qkv", "epochs", "patience", "batch_days"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is too small", where="finin", got=getattr(self, name), expected="at least 1")
        if self.head not in HEADS:
            raise ConfigError("no such prediction head", where="finin", got=self.head, expected=", ".join(HEADS))
        if not 0 <= self.dropout < 1:
            raise ConfigError("dropout is not a share", where="finin", got=self.dropout, expected="0 ≤ dropout < 1")


class Block(NamedTuple):
    """B days side by side; mask is True where there is a headline, and padding is zero."""

    market: Tensor  # (B, F) standardised
    text: Tensor  # (B, N, D) frozen embeddings
    sentiment: Tensor  # (B, N, 3) negative, neutral, positive
    mask: Tensor  # (B, N) bool
    market_text: Tensor  # (1, D) frozen embedding of the market's description


def mlp(config: FininConfig, width: int, out: int) -> nn.Sequential:
    """Build ``layers`` linear layers, width → H → … → out."""
    widths = [width] + [config.hidden] * (config.layers - 1)
    hidden = [
        layer
        for a, b in zip(widths, widths[1:], strict=False)
        for layer in (nn.Linear(a, b), nn.GELU(), nn.Dropout(config.dropout))
    ]
    return nn.Sequential(*hidden, nn.Linear(widths[-1], out))


class MlpHead(nn.Module):
    """The paper's final choice: all encoded days side by side."""

    def __init__(self, config: FininConfig, width: int) -> None:
        super().__init__()
        self.layers = mlp(config, config.lookback * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, t, E) → (B,) logits."""
        return self.layers(x.flatten(1)).squeeze(1)  # (B, t·E) → (B,)


class CnnHead(nn.Module):
    """One convolution over the days, three wide."""

    def __init__(self, config: FininConfig, width: int) -> None:
        super().__init__()
        self.convolve = nn.Conv1d(width, config.hidden, kernel_size=min(3, config.lookback), padding="same")
        self.drop = nn.Dropout(config.dropout)
        self.out = nn.Linear(config.lookback * config.hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, t, E) → (B,) logits."""
        x = F.gelu(self.convolve(x.transpose(1, 2)))  # (B, H, t)
        return self.out(self.drop(x.flatten(1))).squeeze(1)  # (B,)


class LstmHead(nn.Module):
    """The last state of an LSTM over the days, oldest first."""

    def __init__(self, config: FininConfig, width: int) -> None:
        super().__init__()
        self.recur = nn.LSTM(width, config.hidden, batch_first=True)
        self.drop = nn.Dropout(config.dropout)
        self.out = nn.Linear(config.hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, t, E) → (B,) logits."""
        states, _ = self.recur(x)  # (B, t, H)
        return self.out(self.drop(states[:, -1])).squeeze(1)  # (B,)


HEADS: dict[str, type[nn.Module]] = {"mlp": MlpHead, "cnn": CnnHead, "lstm": LstmHead}


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
        return self.norm(r + self.drop(y))  # (B, N, H)


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
        self.head = HEADS[config.head](config, 2 * H if config.news else H)

    def fuse(self, f: nn.Module, text: Tensor, number: Tensor) -> Tensor:
        """Join embeddings (…, D) and encoded numbers (…, H) by f1 or f2 → (…, H)."""
        if not self.config.text:
            return f(number)
        text = F.linear(text, self.scale * self.e_t.weight, self.e_t.bias)  # (…, H)  eqs. 1, 2: one e_t for both
        return f(torch.cat([text.expand_as(number), number], -1))  # (…, 2H) → (…, H)

    def encode(self, x: Block) -> tuple[Tensor, Tensor]:
        """Encode B days → (B, E), and the weights of their headlines (B, N)."""
        m = self.fuse(self.f1, x.market_text, self.e1(x.market))  # (B, H)  eqs. 1, 3, 4
        if not self.config.news:
            return m, torch.zeros_like(x.mask, dtype=m.dtype)
        r = self.fuse(self.f2, x.text, self.e2(x.sentiment))  # (B, N, H)  eqs. 2, 3, 5
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
        return self.head(windows)


class Finin:
    """FININ as a Model (models.base): fit, predict, weights, load.

    ModelError where it is asked to predict untrained, where a decision lacks its lookback days or its label, and
    where an output is not a number.
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
        for at in (train, validation):
            self._check(days, at)
            if np.isnan(days.label[at.start : at.stop]).any():
                raise ModelError("a decision has no label yet", where=f"days {at.start}–{at.stop - 1}")
        first, stop = min(train.start, validation.start) - c.lookback + 1, max(train.stop, validation.stop)
        span = _held(days.between(first, stop))
        train, validation = (range(at.start - first, at.stop - first) for at in (train, validation))
        label = span.label
        self._scaler = Standardiser.of(span.market[train.start : train.stop])
        with reproducible(seed, c.device):
            network = self._network = Network(c, span.texts.width, span.market.shape[1]).to(c.device)
            if c.text:
                norm = float(np.linalg.norm(span.texts.rows(np.array([span.market_text]))))
                network.scale.fill_(math.sqrt(span.texts.width) / norm if norm > 0 else 1.0)

            def batches(rng: np.random.Generator) -> Iterator[tuple[Block, Tensor]]:
                for at in _runs(train, c.batch_days, rng):
                    index = np.arange(at.start - c.lookback + 1, at.stop)
                    chosen = [_some(span.news(day), c.train_headlines, rng) for day in index]
                    pad = max(1, max(len(rows) for rows in chosen))
                    yield (
                        self._block(span, index, chosen, len(index), pad),
                        torch.from_numpy(label[at.start : at.stop]).to(c.device),
                    )

            def loss(batch: tuple[Block, Tensor]) -> Tensor:
                encoded, _ = network.encode(batch[0])  # (P + t − 1, E) for P decisions
                windows = encoded.unfold(0, c.lookback, 1).transpose(1, 2)  # (P, E, t) → (P, t, E)
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
        if network.config.text and days.texts.width != network.e_t.in_features:
            raise ModelError(
                "the language model is another one", got=days.texts.width, expected=f"width {network.e_t.in_features}"
            )
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
        scaler, e_t = weights.get("market.mean", np.empty(0)), weights.get("network.e_t.weight", np.empty((0, 0)))
        with reproducible(0):  # the initial weights are drawn, then overwritten
            network = Network(self.config, e_t.shape[-1], len(scaler))
        state = network.state_dict()
        expected = {f"network.{name}": tuple(t.shape) for name, t in state.items()}
        expected |= {"market.mean": scaler.shape, "market.std": scaler.shape}
        got = {name: array.shape for name, array in weights.items()}
        if got != expected or any(array.dtype != np.float32 for array in weights.values()):
            wrong = sorted(name for name in expected | got if expected.get(name) != got.get(name))
            raise ValueError(f"weights do not fit {self.config}: {', '.join(wrong[:5]) or 'not float32'}")
        for name, tensor in state.items():
            tensor.copy_(torch.from_numpy(np.array(weights[f"network.{name}"])))
        self._network = network.to(self.config.device).eval()
        self._scaler = Standardiser(*(np.array(weights[f"market.{name}"], np.float32) for name in ("mean", "std")))

    def _trained(self) -> tuple[Network, Standardiser]:
        if self._network is None or self._scaler is None:
            raise ModelError("FININ has not been trained", do="call fit or load first")
        return self._network, self._scaler

    def _check(self, days: Days, at: Sequence[int]) -> None:
        if not len(at) or min(at) < self.lookback - 1 or max(at) >= len(days):
            raise ModelError(
                "a decision lacks its days" if len(at) else "no decisions",
                got=f"{min(at)}–{max(at)}" if len(at) else 0,
                expected=f"days {self.lookback - 1}–{len(days) - 1} (lookback {self.lookback})",
            )

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
        network, _ = self._trained()
        rows = [np.arange(s.start, s.stop) if self.config.news else np.arange(0) for s in map(days.news, index)]
        pads = np.array([max(1, -(-len(r) // PAD)) * PAD for r in rows])
        encoded: Tensor = torch.empty(0)
        weights = [np.empty(0, np.float32)] * len(index)
        for pad in np.unique(pads).tolist():
            alike, B = np.flatnonzero(pads == pad), max(1, PAD_TOKENS // pad // 8 * 8)
            for part in (alike[low : low + B] for low in range(0, len(alike), B)):
                e, w = network.encode(self._block(days, index[part], [rows[i] for i in part], B, pad))
                encoded = encoded if len(encoded) else e.new_empty(len(index), e.shape[1])
                encoded[torch.from_numpy(part)] = e[: len(part)]
                for i, row in zip(part, w.cpu().numpy(), strict=False):
                    weights[i] = row[: len(rows[i])].copy()
        return encoded, weights

    def _block(self, days: Days, index: NDArray[np.int64], rows: Sequence[NDArray[np.int64]], B: int, N: int) -> Block:
        """Lay the days ``index`` with these headlines into (B, N); what is left over is a dummy."""
        _, scaler = self._trained()
        D, counts = days.texts.width, np.array([len(r) for r in rows])
        # Memory from torch, filled through numpy: it is aligned alike each time, and BLAS may round by alignment.
        market, sentiment = torch.zeros(B, days.market.shape[1]), torch.zeros(B, N, 3)
        text, mask = torch.zeros(B, N, D if self.config.text else 0), torch.zeros(B, N, dtype=torch.bool)
        market_text = torch.zeros(1, D)
        market.numpy()[: len(index)] = scaler(days.market[index]).clip(-5, 5)
        market_text.numpy()[:] = days.texts.rows(np.array([days.market_text]))
        flat = np.concatenate(rows) if len(rows) else np.arange(0)
        if self.config.news and len(flat):
            place = mask.numpy()
            place[: len(index)] = np.arange(N) < counts[:, None]
            sentiment.numpy()[place] = days.news_sentiment[flat]
            if self.config.text:
                text.numpy()[place] = days.texts.rows(days.news_text[flat])
        return Block(*(t.to(self.config.device) for t in (market, text, sentiment, mask, market_text)))


def _runs(train: range, length: int, rng: np.random.Generator) -> list[range]:
    """Cut the training decisions into runs of ``length`` that begin at a random offset, in random order."""
    begin = train.start - int(rng.integers(length))
    runs = [range(max(s, train.start), min(s + length, train.stop)) for s in range(begin, train.stop, length)]
    return [runs[i] for i in rng.permutation(len(runs)) if len(runs[i])]


def _some(news: slice, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the day's rows, or ``most`` of them drawn without repetition, in order."""
    rows = np.arange(news.start, news.stop)
    return np.sort(rng.choice(rows, most, replace=False)) if 0 < most < len(rows) else rows


class _Rows(NamedTuple):
    """Embeddings in memory: the Texts of a training span."""

    array: NDArray[np.float32]

    @property
    def width(self) -> int:
        return self.array.shape[1]

    def rows(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.array[index]


def _held(days: Days) -> Days:
    """Return the same days with their embeddings in memory, or the days as they are where that is over HELD_BYTES."""
    used, place = np.unique(np.append(days.news_text, days.market_text), return_inverse=True)
    if len(used) * days.texts.width * 4 > HELD_BYTES:
        return days
    return replace(days, texts=_Rows(days.texts.rows(used)), news_text=place[:-1], market_text=int(place[-1]))
