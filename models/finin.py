"""FININ: weigh each of a day's headlines by the market it falls into, and say whether tomorrow closes higher.

``models.finin_network`` holds its configuration and its network, and says what the paper leaves open; ``Finin`` here
feeds the network with Days, trains it and forecasts. Letters as there.

Source: Wang, Cohen, Ma, "Modeling News Interactions and Influence for Financial Market Prediction",
Findings of EMNLP 2024, arXiv 2410.10614; equation numbers below are theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import math

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Attention, Days, FitReport, Prediction, Standardiser, Weights
from models.finin_network import Block, FininConfig, Network
from models.fitting import Recipe, descend, held, log_loss, reproducible, runs
from trader.errors import ModelError

__all__ = ["Finin", "FininConfig", "Network"]

# Bits come from shapes: what a forecast runs through is shaped by the day's own number of headlines and by nothing
# else. Headlines are padded to a multiple of PAD, days of one padded length go in batches of one size, windows
# HEAD_BATCH at a time, and what is missing to a full batch is filled with dummies. Measured: in a matrix product of
# 2, 3, 5, 6, 7, 9 … rows the last rows are rounded otherwise than the first, in multiples of 4 all alike.
PAD, PAD_TOKENS, HEAD_BATCH = 16, 1024, 64

NORM_DAYS = 128  # training days at most that day_norm is measured on


def padded(headlines: int) -> int:
    """Return the length that a day of so many headlines is padded to."""
    return max(1, -(-headlines // PAD)) * PAD


def together(pad: int) -> int:
    """Return how many days of one padded length are forecast together."""
    return max(1, PAD_TOKENS // pad // 8 * 8)


def text_scaling(how: str, days: Days, train: range) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Measure mean and factor (D,) that bring embeddings to unit mean square; see FininConfig.text_scale.

    "one" asks the market's description alone; the others the headlines of the training days, each text once.
    """
    D = days.texts.width
    mean, factor = np.zeros(D), np.ones(D)
    texts = np.unique(days.news_text[days.news_offset[train.start] : days.news_offset[train.stop]])
    if how == "one" or (how != "layer_norm" and not len(texts)):
        norm = float(np.linalg.norm(days.texts.rows(np.array([days.market_text]))))
        factor *= math.sqrt(D) / norm if norm > 0 else 1.0
    elif how != "layer_norm":
        rows = days.texts.rows(texts)  # (texts, D)
        mean, variance = rows.mean(axis=0, dtype=np.float64), rows.var(axis=0, dtype=np.float64)
        variance = variance if how == "standardised" else np.full(D, variance.mean())
        factor = np.where(variance > 1e-12, 1 / np.sqrt(np.maximum(variance, 1e-12)), 1.0)
    return mean.astype(np.float32), factor.astype(np.float32)


def targets(config: FininConfig, next_return: NDArray[np.float64], train: range) -> list[NDArray[np.float64]]:
    """Make the auxiliary targets (S,) in the order of the outputs, standardised on ``train``, NaN outside it.

    A return over several sessions is NaN too where it would read a label that lies behind ``train``.
    """
    inside = np.full(len(next_return), np.nan)
    inside[train.start : train.stop] = next_return[train.start : train.stop]
    sums = np.full(len(next_return), np.nan)
    if len(train) >= config.horizon:
        over = np.lib.stride_tricks.sliding_window_view(inside[train.start : train.stop], config.horizon).sum(axis=1)
        sums[train.start : train.start + len(over)] = over
    raw = {"return": inside, "horizon": sums, "volatility": np.abs(inside)}
    return [_standard(raw[name]) for name in config.auxiliary]


def _standard(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    known = numbers[~np.isnan(numbers)]
    return (numbers - known.mean()) / (known.std() or 1.0) if len(known) else numbers


def _loss(said: Tensor, asked: Tensor, weights: Tensor) -> Tensor:
    """Log loss of the direction plus, weighted, Huber's of each auxiliary target; what is NaN is not asked.

    said, asked: (B, O).   weights: (O − 1,).
    """
    loss = F.binary_cross_entropy_with_logits(said[:, 0], asked[:, 0])
    if len(weights):
        known = ~asked[:, 1:].isnan()  # (B, O − 1)
        errors = F.huber_loss(said[:, 1:], asked[:, 1:].nan_to_num(), reduction="none") * known  # (B, O − 1)
        loss = loss + (errors.sum(0) / known.sum(0).clamp(min=1)) @ weights
    return loss


class Pretraining(nn.Module):
    """The news side alone under a head of its own: blocks of B days → direction and size of their own return (B, 2)."""

    def __init__(self, network: Network, head: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, x: Block) -> Tensor:
        """Weigh the headlines by a market that does not learn here."""
        with torch.no_grad():
            m = self.network.market(x)  # (B, H)
        news, _ = self.network.news(m, x)  # (B, H)
        said: Tensor = self.head(news)  # (B, 2)
        return said


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
            network = self._network = Network(c, span.texts.width, span.market.shape[1]).to(c.device)
            if c.text:
                mean, factor = text_scaling(c.text_scale, span, train)
                network.text_mean.copy_(torch.from_numpy(mean))
                network.text_factor.copy_(torch.from_numpy(factor))
            if c.return_weight:
                returns = span.next_return[train.start : train.stop]
                network.return_moments.copy_(torch.tensor([returns.mean(), returns.std() or 1.0]))
            if c.day_norm and c.news:
                chosen = np.unique(np.linspace(train.start, train.stop - 1, NORM_DAYS).astype(np.int64))
                network.eval().start_day_norm(self._training_block(span, chosen, np.random.default_rng(seed)))
            if c.pretrain_epochs and c.news:
                self._pretrain(network, span, train, seed)
            return self._descend(network, span, train, validation, seed)

    def _descend(self, network: Network, span: Days, train: range, validation: range, seed: int) -> FitReport:
        c, label = self.config, span.label
        asked = np.column_stack([label, *targets(c, span.next_return, train)]).astype(np.float32)  # (S, O)
        weights = torch.tensor(list(c.auxiliary.values()), device=c.device)  # (O − 1,)

        def batches(rng: np.random.Generator) -> Iterator[tuple[Block, Tensor]]:
            for at in runs(train, c.batch_days, rng):
                index = np.arange(at.start - c.lookback + 1, at.stop)
                yield self._training_block(span, index, rng), torch.tensor(asked[at.start : at.stop], device=c.device)

        def loss(batch: tuple[Block, Tensor]) -> Tensor:
            encoded, _ = network.encode(batch[0])  # (B + t − 1, E) for B decisions
            windows = encoded.unfold(0, c.lookback, 1).transpose(1, 2)  # (B, E, t) → (B, t, E)
            return _loss(network(windows), batch[1], weights)  # (B, O), (B, O)

        def validate() -> tuple[float, float]:
            p_up = self._forecast(span, np.arange(validation.start, validation.stop)).p_up
            return log_loss(p_up, label[validation.start : validation.stop])

        return descend(network, self._recipe(c.epochs), seed, batches, loss, validate, -(-len(train) // c.batch_days))

    def _recipe(self, epochs: int) -> Recipe:
        c = self.config
        decays = {"e_t.": c.text_weight_decay, "network.e_t.": c.text_weight_decay}  # by itself, and in pretraining
        return Recipe(
            c.learning_rate, c.weight_decay, c.clip, epochs, c.patience, c.warm_up, c.schedule, decays, c.average
        )

    def _pretrain(self, network: Network, span: Days, train: range, seed: int) -> None:
        """Let the news side learn how the SAME day closed; the head that says so is thrown away.

        Of the training days but the first, whose own return belongs to the day before it. The day's own bar is masked:
        the market state that weighs the headlines is that of the day before, and it does not learn here.
        """
        c, own_return = self.config, span.next_return
        part = Pretraining(network, nn.Linear(c.hidden, 2).to(c.device))
        returns = own_return[train.start : train.stop - 1]
        standard = (own_return - returns.mean()) / (returns.std() or 1.0)  # (S,)
        one = torch.ones(1, device=c.device)

        def batches(rng: np.random.Generator) -> Iterator[tuple[Block, Tensor]]:
            for at in runs(range(train.start + 1, train.stop), c.batch_days, rng):
                index = np.arange(at.start, at.stop)
                before = np.column_stack([own_return[index - 1] > 0, standard[index - 1]]).astype(np.float32)  # (B, 2)
                yield self._training_block(span, index, rng, delay=1), torch.tensor(before, device=c.device)

        def loss(batch: tuple[Block, Tensor]) -> Tensor:
            return _loss(part(batch[0]), batch[1], one)

        descend(part, self._recipe(c.pretrain_epochs), seed, batches, loss, None, -(-len(train) // c.batch_days))

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        """Forecast decisions on the days ``at``, with a weight for each headline of the day; see models.base.Model."""
        self._check(days, at)
        self._check_texts(days)
        with reproducible(device=self.config.device), torch.no_grad():
            prediction = self._forecast(days, np.asarray(at, dtype=np.int64))
        if not np.isfinite(prediction.p_up).all():
            day = int(np.asarray(at)[~np.isfinite(prediction.p_up)][0])
            raise ModelError("a forecast is not a number", where=f"day {day}", do="look for NaN in its lookback days")
        return prediction

    def attention(self, days: Days, day: int) -> Attention:
        """Return who looked at whom on one of the days: the weights of its forecast (eq. 6), and the pairs before them.

        Without the quantifier all headlines are looked at alike. ModelError where it reads no news, or is untrained.
        """
        network, _ = self._trained()
        if not self.config.news:
            raise ModelError("this FININ reads no news", do="train one with news = true")
        if not 0 <= day < len(days):
            raise ModelError("no such day", got=day, expected=f"0–{len(days) - 1}")
        self._check_texts(days)
        index = np.array([day])
        rows = self._headlines(days, index)
        pad, N = padded(len(rows[0])), len(rows[0])
        with reproducible(device=self.config.device), torch.no_grad():
            block = self._block(days, index, rows, together(pad), pad, dummies=True)
            _, weights = network.encode(block)  # (B, pad): the first of B days, as in a forecast
            pairs = network.pairs(block)  # (B, pad, pad)
        return Attention(weights[0, :N].cpu().numpy().copy(), pairs[0, :N, :N].cpu().numpy().copy())

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

    def _check_texts(self, days: Days) -> None:
        network, _ = self._trained()
        if self.config.text and (D := days.texts.width) != (own := network.e_t.in_features):
            raise ModelError("these texts are another language model's", got=f"width {D}", expected=f"width {own}")

    def _forecast(self, days: Days, at: NDArray[np.int64]) -> Prediction:
        """Forecast B decisions, through shapes that no other day can change."""
        network, _ = self._trained()
        needed = (at[:, None] + np.arange(1 - self.lookback, 1)).astype(np.int64)  # (B, t)
        index, position = np.unique(needed, return_inverse=True)
        encoded, weights = self._encode(days, index)
        windows, said = position.reshape(needed.shape), np.empty((len(at), 1 + len(self.config.auxiliary)))
        for low in range(0, len(at), HEAD_BATCH):
            part = windows[low : low + HEAD_BATCH]
            full = np.resize(part, (HEAD_BATCH, self.lookback))  # repeats the part's own rows as dummies
            said[low : low + len(part)] = network(encoded[torch.from_numpy(full)]).cpu().numpy()[: len(part)]  # (B, O)
        expected_return = None
        if self.config.return_weight:
            mean, std = network.return_moments.tolist()
            expected_return = said[:, 1] * std + mean  # (B,)
        p_up = 1 / (1 + np.exp(-said[:, 0]))  # (B,)
        of_headlines = [weights[row] for row in windows[:, -1]]
        return Prediction(p_up, expected_return, of_headlines if self.config.news else None)

    def _encode(self, days: Days, index: NDArray[np.int64]) -> tuple[Tensor, list[NDArray[np.float32]]]:
        """Encode each of the days once → (len(index), E) and a row of weights a day."""
        (network, _), c = self._trained(), self.config
        rows = self._headlines(days, index)
        encoded = torch.empty(len(index), c.hidden * (2 if c.news else 1), device=c.device)  # (len(index), E)
        pads = np.array([padded(len(r)) for r in rows])
        weights = [np.empty(0, np.float32)] * len(index)
        for pad in np.unique(pads).tolist():
            alike, B = np.flatnonzero(pads == pad), together(pad)
            for part in (alike[low : low + B] for low in range(0, len(alike), B)):
                e, w = network.encode(self._block(days, index[part], [rows[i] for i in part], B, pad, dummies=True))
                encoded[torch.from_numpy(part)] = e[: len(part)]
                for i, row in zip(part, w.cpu().numpy(), strict=False):
                    weights[i] = row[: len(rows[i])].copy()
        return encoded, weights

    def _headlines(
        self, days: Days, index: NDArray[np.int64], rng: np.random.Generator | None = None
    ) -> list[NDArray[np.int64]]:
        """List each day's rows, oldest first; with a generator (in training) as many as training reads, drawn."""
        c = self.config
        rows = [np.arange(s.start, s.stop if c.news else s.start) for s in map(days.news, index)]
        if rng is None:
            return rows
        if most := c.train_headlines:
            rows = [np.sort(rng.choice(r, most, replace=False)) if len(r) > most else r for r in rows]
        if c.headline_dropout:
            rows = [r[rng.random(len(r)) >= c.headline_dropout] for r in rows]
        return rows

    def _training_block(self, days: Days, index: NDArray[np.int64], rng: np.random.Generator, delay: int = 0) -> Block:
        """Lay days side by side as training reads them; ``delay``: their bars are those of so many days before."""
        rows = self._headlines(days, index, rng)
        N = max(1, max(map(len, rows)))
        return self._block(days, index, rows, len(index), N, dummies=False, delay=delay)

    def _block(
        self,
        days: Days,
        index: NDArray[np.int64],
        rows: Sequence[NDArray[np.int64]],
        B: int,
        N: int,
        dummies: bool,
        delay: int = 0,
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
        text, numbers = torch.zeros(len(place), D), torch.zeros(len(place), self.config.numbers)
        market.numpy()[: len(index)] = scaler(days.market[index - delay]).clip(-5, 5)
        if self.config.text:
            market_text.numpy()[:] = days.texts.rows(np.array([days.market_text]))
            text.numpy()[at] = days.texts.rows(days.news_text[flat])
        numbers.numpy()[at, :3] = days.news_sentiment[flat]
        if self.config.recency:
            news = [days.news(day) for day in index]
            late = [(r - s.start + 1) / (s.stop - s.start) for r, s in zip(rows, news, strict=True)]
            numbers.numpy()[at, 3:] = np.concatenate(late)[:, None] ** (1, 8)  # the second tells the last eighth apart
        tensors = (market, market_text, text, numbers, torch.from_numpy(place), mask)
        return Block(*(tensor.to(self.config.device) for tensor in tensors))
