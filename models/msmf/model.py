"""MSMF: chart, numbers and text of a market together, for the next movement and the next return.

``models.msmf.network`` holds the network; ``Msmf`` here lays out Days for it, trains it, and forecasts. Read after
``models.msmf.config``, whose letters are used here too.

Source: Qin, "MSMF: Multi-Scale Multi-Modal Fusion for Enhanced Stock Market Prediction"; equation numbers are its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import MARKET_FEATURES, Days, FitReport, Prediction, Standardiser, Weights
from models.charts import charts
from models.finin import padded, together
from models.fitting import Recipe, descend, held, log_loss, reproducible, runs
from models.msmf.config import MsmfConfig
from models.msmf.encoders import Headlines
from models.msmf.network import Network, Said, Samples, carried_forward
from models.panel import Part
from trader.errors import ModelError

__all__ = ["Msmf", "MsmfConfig"]

BARS = [MARKET_FEATURES.index(name) for name in ("open", "high", "low", "close")]
BATCH = 64  # decisions that are forecast together, filled with dummies; a multiple of 8, see models.finin
COMPLETION_STREAM = 0x5EED  # beside the seed: the stream of the completion's own samples
FEWEST = 16  # decisions that lack nothing, for the completion to learn from them alone


class Texts(NamedTuple):
    """The texts of U days, encoded: attended and mean (U, H); weights: a row a day of its headlines' shares."""

    attended: Tensor
    means: Tensor
    weights: list[NDArray[np.float32]]


class Msmf:
    """MSMF as a Model (models.base) and a PooledModel (models.panel).

    ModelError where it is untrained, where a decision lacks its days or its label, where a number is none.
    """

    def __init__(self, config: MsmfConfig | None = None) -> None:
        self.config = config or MsmfConfig()
        self.lookback = self.config.reads
        self._network: Network | None = None
        self._scaler: Standardiser | None = None

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
        self._scaler = Standardiser.of(market)
        returns = np.concatenate([part.days.next_return[part.train.start : part.train.stop] for part in spans])
        with reproducible(seed, c.device):
            network = Network(c, spans[0].days.texts.width, market.shape[1]).to(c.device)
            self._network = network
            if network.text is not None:
                mean, factor = _text_scaling(spans)
                network.text.mean.copy_(torch.from_numpy(mean))
                network.text.factor.copy_(torch.from_numpy(factor))
            network.return_moments.copy_(torch.tensor([returns.mean(), returns.std() or 1.0]))
            return _Lesson(self, network, spans, seed).run()

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
        said = self._said(days, at)
        if not np.isfinite(said.p_up).all():
            day = int(np.asarray(at)[~np.isfinite(said.p_up)][0])
            raise ModelError("a forecast is not a number", where=f"day {day}", do="look for NaN in its lookback days")
        return said

    def _said(self, days: Days, at: Sequence[int]) -> Prediction:
        network, _ = self._trained()
        self._check(days, at)
        if network.text is not None and (D := days.texts.width) != (own := network.text.e_t.in_features):
            raise ModelError("these texts are another language model's", got=f"width {D}", expected=f"width {own}")
        with reproducible(device=self.config.device), torch.no_grad():
            return self._forecast(days, np.asarray(at, dtype=np.int64))

    def _forecast(self, days: Days, at: NDArray[np.int64], images: NDArray[np.uint8] | None = None) -> Prediction:
        """Forecast B decisions, through shapes that no other day can change."""
        network, _ = self._trained()
        x, present, weights = self._features(days, at, images)
        p_up, expected = [], []
        for low in range(0, len(at), BATCH):
            rows = torch.from_numpy(np.resize(np.arange(low, min(low + BATCH, len(at))), BATCH))  # repeats as dummies
            said: Said = network(network.fill(x[rows], present[rows]), present[rows])
            # Of the whole batch: a sigmoid of few numbers is rounded otherwise than one of many.
            p, r = network.told(said.outputs)  # (BATCH,) each
            p_up.append(p[: len(at) - low].cpu().numpy())
            expected.append(None if r is None else r[: len(at) - low].cpu().numpy())
        returns = None if expected[0] is None else np.concatenate([r for r in expected if r is not None])
        return Prediction(np.concatenate(p_up), returns, weights if network.text else None)

    def _features(
        self, days: Days, at: NDArray[np.int64], images: NDArray[np.uint8] | None = None
    ) -> tuple[Tensor, Tensor, list[NDArray[np.float32]]]:
        """Encode the decisions → features (B, C, H), present (B, C), and the weights of each one's headlines.

        Of forward filling the sessions before are encoded too, and what they carry forward is there in the result.
        """
        network, _ = self._trained()
        back = self.config.forward_days if self.config.completion == "forward" else 0
        needed = (at[:, None] + np.arange(-back, 1)).astype(np.int64)  # (B, back + 1)
        index, position = np.unique(needed, return_inverse=True)
        rows_of = torch.from_numpy(position.reshape(needed.shape).T.copy())  # (back + 1, B), oldest first
        news_days, windows = self._windows(index)
        texts = self._texts(days, news_days)
        made, there = [], []
        for low in range(0, len(index), BATCH):
            rows = np.resize(np.arange(low, min(low + BATCH, len(index))), BATCH)
            samples = self._samples(days, index[rows], news_days, windows[rows], images)
            made.append(network.features(samples, texts.attended, texts.means)[: len(index) - low])
            there.append(samples.present[: len(index) - low])
        x, present = torch.cat(made), torch.cat(there)
        x, present = carried_forward(x, present, rows_of)
        where = np.searchsorted(news_days, at)
        return x, present, [texts.weights[day] for day in where] if texts.weights else []

    # Laying out days

    def _windows(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the days (U,) whose texts the decisions (B,) read, and where each window's lie among them (B, t)."""
        needed = index[:, None] + np.arange(1 - self.config.lookback, 1)  # (B, t)
        days, position = np.unique(needed, return_inverse=True)
        return days, position.reshape(needed.shape)

    def _samples(
        self,
        days: Days,
        index: NDArray[np.int64],
        news_days: NDArray[np.int64],
        windows: NDArray[np.int64],
        images: NDArray[np.uint8] | None = None,
    ) -> Samples:
        """Lay out the decisions on the days ``index``; images: the chart of every day, where drawn before."""
        (network, scaler), c = self._trained(), self.config
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
        some = _news(days, news_days) & ~_removed(days, news_days, "text", c.missing_text)  # (U,)
        present = self._present(days, index, some[windows])
        parts = (numbers, image, torch.from_numpy(windows[:, -1].copy()), torch.from_numpy(windows.copy()))
        laid = Samples(*parts, torch.from_numpy(some[windows]), torch.from_numpy(present))
        return Samples(*(tensor.to(c.device) for tensor in laid))

    def _present(self, days: Days, index: NDArray[np.int64], news: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Say which features there are of the decisions → (B, C); news: (B, t) which days of the window have any."""
        c = self.config
        there = {
            ("numeric", "fine"): ~_removed(days, index, "numeric", c.missing_numeric),
            ("image", "fine"): ~_removed(days, index, "image", c.missing_image),
            ("text", "fine"): news[:, -1],
            ("text", "coarse"): news.any(1),
        }
        there |= {(name, "coarse"): there[name, "fine"] for name in ("numeric", "image")}
        return np.stack([there[feature] for feature in c.features], 1)

    def _texts(self, days: Days, index: NDArray[np.int64]) -> Texts:
        """Encode the texts of the days (U,), each through shapes that follow from its own number of headlines."""
        network, c = self._trained()[0], self.config
        if network.text is None:
            nothing = torch.zeros(len(index), 1, device=c.device)
            return Texts(nothing, nothing, [])
        rows = _headlines(days, index, c.missing_text)
        attended, means = (torch.empty(len(index), c.hidden, device=c.device) for _ in range(2))
        weights = [np.empty(0, np.float32)] * len(index)
        pads = np.array([padded(len(r)) for r in rows])
        for pad in np.unique(pads).tolist():
            alike, U = np.flatnonzero(pads == pad), together(pad)
            for part in (alike[low : low + U] for low in range(0, len(alike), U)):
                block = self._block(days, [rows[i] for i in part], U, pad)
                one, mean, shares = network.text.day(block)  # (U, H), (U, H), (U, pad)
                attended[torch.from_numpy(part)], means[torch.from_numpy(part)] = one[: len(part)], mean[: len(part)]
                for i, row in zip(part, shares.cpu().numpy(), strict=False):
                    weights[i] = row[: len(rows[i])].copy()
        if c.missing_text:  # what was taken away had no share
            whole = [int(days.news_offset[day + 1] - days.news_offset[day]) for day in index]
            weights = [w if len(w) == n else np.zeros(n, np.float32) for w, n in zip(weights, whole, strict=True)]
        return Texts(attended, means, weights)

    def _block(self, days: Days, rows: Sequence[NDArray[np.int64]], U: int, N: int) -> Headlines:
        """Lay these rows of headlines, one list a day, into U days of N."""
        mask = torch.zeros(U, N, dtype=torch.bool)
        mask.numpy()[: len(rows)] = np.arange(N) < np.array([len(r) for r in rows])[:, None]
        text, sentiment = torch.zeros(U, N, days.texts.width), torch.zeros(U, N, 3)
        flat = np.concatenate(rows)
        text.numpy()[mask.numpy()] = days.texts.rows(days.news_text[flat])
        sentiment.numpy()[mask.numpy()] = days.news_sentiment[flat]
        return Headlines(*(tensor.to(self.config.device) for tensor in (text, sentiment, mask)))

    # Weights on disk

    def weights(self) -> Weights:
        """Return network and scaler as arrays; ModelError before training."""
        network, scaler = self._trained()
        arrays: Weights = {f"network.{name}": t.cpu().numpy().copy() for name, t in network.state_dict().items()}
        return arrays | {"market.mean": scaler.mean.copy(), "market.std": scaler.std.copy()}

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Take what ``weights()`` returned; ValueError where names, shapes or dtypes differ from this configuration."""
        mean, e_t = weights.get("market.mean", np.empty(0)), weights.get("network.text.e_t.weight", np.empty((0, 1)))
        with reproducible(0):  # initial weights are drawn, to be overwritten
            network = Network(self.config, e_t.shape[-1] if e_t.ndim else 1, mean.size or 1)
        state = network.state_dict()
        expected = {f"network.{name}": tuple(t.shape) for name, t in state.items()}
        expected |= {"market.mean": (mean.size,), "market.std": (mean.size,)}
        got = {name: array.shape for name, array in weights.items()}
        if got != expected or any(array.dtype != np.float32 for array in weights.values()):
            wrong = sorted(name for name in expected | got if expected.get(name) != got.get(name)) or ["not float32"]
            raise ValueError(f"weights do not fit this MSMF: {', '.join(wrong[:5])}")
        for name, tensor in state.items():
            tensor.copy_(torch.from_numpy(np.array(weights[f"network.{name}"])))
        self._network = network.to(self.config.device).eval()
        self._scaler = Standardiser(*(np.array(weights[f"market.{name}"], np.float32) for name in ("mean", "std")))

    def _trained(self) -> tuple[Network, Standardiser]:
        if self._network is None or self._scaler is None:
            raise ModelError("MSMF has not been trained", do="call fit or load first")
        return self._network, self._scaler

    def _check(self, days: Days, at: Sequence[int], labelled: bool = False) -> None:
        if not len(at):
            raise ModelError("no decisions to learn from or to forecast")
        where, first, last = f"days {min(at)}–{max(at)}", self.lookback - 1, len(days) - 1
        if min(at) < first or max(at) > last:
            raise ModelError(f"a decision lacks its {self.lookback} days", got=where, expected=f"days {first}–{last}")
        if labelled and np.isnan(days.label[list(at)]).any():
            raise ModelError("a decision has no label yet", where=where, do="leave out days whose next close is open")


class Reading(nn.Module):
    """The image branch under heads of its own, one a scale: charts → open, high, low and close of the n sessions."""

    def __init__(self, image: nn.Module, H: int, n: int) -> None:
        super().__init__()
        self.image = image
        self.fine, self.coarse = nn.Linear(H, n * len(BARS)), nn.Linear(H, n * len(BARS))

    def loss(self, drawn: Tensor, bars: Tensor) -> Tensor:
        """Charts (B, height, width) uint8, standardised bars (B, n, 4) → mean square error of both scales."""
        fine, coarse = self.image(drawn[:, None].float() / 255)  # (B, H) each
        bars = bars.flatten(1)  # (B, n·4)
        return F.mse_loss(self.fine(fine), bars) + F.mse_loss(self.coarse(coarse), bars)


class _Lesson:
    """One training: what its batches are, what they cost, and when the completion learns."""

    def __init__(self, model: Msmf, network: Network, parts: Sequence[Part], seed: int) -> None:
        self.model, self.network, self.parts, self.seed, self.config = model, network, parts, seed, model.config
        self.images = [self._drawn(part) for part in parts]
        mean, std = network.return_moments.tolist()
        self.asked = [
            np.column_stack([part.days.label, (part.days.next_return - mean) / std]).astype(np.float32)
            for part in parts
        ]  # (S, 2) each
        bars = np.concatenate([p.days.market[p.train.start : p.train.stop, BARS] for p in parts if len(p.train)])
        self.bar_mean, self.bar_std = bars.mean(0), np.maximum(bars.std(0), 1e-6)  # (4,) each
        self.seen: list[tuple[Tensor, Tensor]] = []  # features (B, C, H) and presence (B, C) of this epoch's decisions

    def run(self) -> FitReport:
        """Descend; see models.fitting."""
        c = self.config
        recipe = Recipe(c.learning_rate, c.weight_decay, c.clip, c.epochs, c.patience, c.warm_up, c.schedule)
        steps = sum(-(-len(part.train) // c.batch_days) for part in self.parts)
        self._read_charts()
        self._first_completion()
        return descend(self.network, recipe, self.seed, self._batches, self._loss, self._validate, steps)

    def _drawn(self, part: Part) -> NDArray[np.uint8] | None:
        """Draw the chart of every day that has the sessions for one; the others stay empty and are never asked for."""
        if "image" not in self.config.modalities:
            return None
        first = self.config.chart.reads - 1
        drawn = charts(part.days.market, np.arange(first, len(part.days)), self.config.chart)
        return np.concatenate([np.zeros((first, *drawn.shape[1:]), np.uint8), drawn])

    def _image(self, p: int) -> NDArray[np.uint8]:
        images = self.images[p]
        assert images is not None, "asked for by the image branch alone"
        return images

    def _batches(self, rng: np.random.Generator) -> Iterator[tuple[int, range, np.random.Generator]]:
        self.seen = []
        cut = [(p, at) for p, part in enumerate(self.parts) for at in _runs(part.train, self.config.batch_days, rng)]
        for i in rng.permutation(len(cut)) if len(self.parts) > 1 else range(len(cut)):
            yield (*cut[i], rng)

    def _loss(self, batch: tuple[int, range, np.random.Generator]) -> Tensor:
        p, at, rng = batch
        x, present = self._encoded(p, at, rng)
        self.seen.append((x.detach(), present))
        said: Said = self.network(self.network.fill(x, present), present)
        label, returned = torch.from_numpy(self.asked[p][at.start : at.stop]).to(x.device).unbind(1)
        return self.network.loss(said.outputs, label, returned)

    def _encoded(self, p: int, at: range, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Encode consecutive decisions of one part as training reads them → (B, C, H), (B, C)."""
        model, c, days = self.model, self.config, self.parts[p].days
        back = c.forward_days if c.completion == "forward" else 0
        index = np.arange(at.start - back, at.stop)
        news_days, windows = model._windows(index)
        attended = means = torch.zeros(len(news_days), 1, device=c.device)
        if self.network.text is not None:
            rows = _headlines(days, news_days, c.missing_text)
            if most := c.train_headlines:
                rows = [np.sort(rng.choice(r, most, replace=False)) if len(r) > most else r for r in rows]
            block = model._block(days, rows, len(rows), max(1, max(map(len, rows))))
            attended, means, _ = self.network.text.day(block)  # (U, H) each
        samples = model._samples(days, index, news_days, windows, self.images[p])
        x, present = self.network.features(samples, attended, means), samples.present
        rows_of = torch.arange(back + 1)[:, None] + torch.arange(len(at))  # (back + 1, B), oldest first
        return carried_forward(x, present, rows_of)

    def _read_charts(self) -> None:
        """Let the image branch learn to say what it sees: the bars that its chart was drawn from; training days alone.

        What it says them through is thrown away. Without, a few hundred labels have to teach it what a bar is.
        """
        c, image = self.config, self.network.image
        if image is None or not c.pretrain_epochs:
            return
        part = Reading(image, c.hidden, c.chart_sessions).to(c.device)
        days = [(p, day) for p, part in enumerate(self.parts) for day in part.train]
        shown = np.arange(1 - c.chart_sessions, 1)

        def batches(rng: np.random.Generator) -> Iterator[list[tuple[int, int]]]:
            order = rng.permutation(len(days))
            for low in range(0, len(days), c.batch_days):
                yield [days[i] for i in order[low : low + c.batch_days]]

        def loss(batch: list[tuple[int, int]]) -> Tensor:
            drawn = np.stack([self._image(p)[day] for p, day in batch])  # (B, height, width)
            bars = np.stack([self.parts[p].days.market[day + shown][:, BARS] for p, day in batch])  # (B, n, 4)
            asked = torch.from_numpy((bars - self.bar_mean) / self.bar_std)
            return part.loss(torch.from_numpy(drawn).to(c.device), asked.to(c.device))

        recipe = Recipe(c.pretrain_rate, c.weight_decay, c.clip, c.pretrain_epochs, c.pretrain_epochs)
        descend(part, recipe, self.seed, batches, loss, None, -(-len(days) // c.batch_days))

    @torch.no_grad()
    def _first_completion(self) -> None:
        """Show the completion the features as the encoders make them before they have learned anything."""
        self.network.eval()
        rng = np.random.default_rng(self.seed)
        for p, at, _ in list(self._batches(rng)):
            self.seen.append(self._encoded(p, at, rng))
        self._complete()

    def _complete(self) -> None:
        """Let the completion learn from the decisions of this epoch that lacked nothing, on detached features.

        Where nearly all lack something (a market without any news) it learns from all, zeros in the place of what
        is missing: that is then what it fills in.
        """
        x, present = (torch.cat(tensors) for tensors in zip(*self.seen, strict=True))  # (decisions, C, H), (…, C)
        whole = present.all(1)  # (decisions,)
        rows = x[whole] if whole.sum() >= FEWEST else x
        self.network.completion.fit(rows.flatten(1), self.seed ^ COMPLETION_STREAM)
        self.seen = []

    def _validate(self) -> tuple[float, float]:
        self._complete()
        said, label = [], []
        for part, images in zip(self.parts, self.images, strict=True):
            if len(part.validation):
                said.append(self.model._forecast(part.days, np.asarray(part.validation, np.int64), images).p_up)
                label.append(part.days.label[part.validation.start : part.validation.stop])
        return log_loss(np.concatenate(said), np.concatenate(label))


def _runs(train: range, length: int, rng: np.random.Generator) -> list[range]:
    return runs(train, length, rng) if len(train) else []


def _news(days: Days, index: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say which of the days (U,) have headlines."""
    return np.asarray(days.news_offset[index + 1] > days.news_offset[index])


def _headlines(days: Days, index: NDArray[np.int64], missing: float) -> list[NDArray[np.int64]]:
    """List each day's rows, none where its text is taken away."""
    gone = _removed(days, index, "text", missing)
    slices = [days.news(int(day)) for day in index]
    return [np.arange(s.start, s.start if lost else s.stop) for s, lost in zip(slices, gone, strict=True)]


def _removed(days: Days, index: NDArray[np.int64], modality: str, share: float) -> NDArray[np.bool_]:
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
