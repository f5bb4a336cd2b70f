"""One training of MSMF: its batches, what they cost, when the completion learns and when the image branch does.

Letters as in ``models.msmf.config``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import MARKET_FEATURES, FitReport
from models.charts import charts
from models.fitting import Recipe, descend, log_loss, runs
from models.msmf.network import Said, carried_forward
from models.msmf.reader import Reader, headlines
from models.panel import Part

BARS = [MARKET_FEATURES.index(name) for name in ("open", "high", "low", "close")]
COMPLETION_STREAM = 0x5EED  # beside the seed: the stream of the completion's own samples
FEWEST = 16  # decisions that lack nothing, for the completion to learn from them alone


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


class Lesson:
    """One training: what its batches are, what they cost, and when the completion learns."""

    def __init__(self, reader: Reader, parts: Sequence[Part], seed: int) -> None:
        self.reader, self.network, self.config = reader, reader.network, reader.config
        self.parts, self.seed = parts, seed
        self.images = [self._drawn(part) for part in parts]
        mean, std = self.network.return_moments.tolist()
        self.asked = [
            np.column_stack([part.days.label, (part.days.next_return - mean) / std]).astype(np.float32)
            for part in parts
        ]  # (S, 2) each
        bars = np.concatenate([p.days.market[p.train.start : p.train.stop, BARS] for p in parts if len(p.train)])
        self.bar_mean, self.bar_std = bars.mean(0), np.maximum(bars.std(0), 1e-6)  # (4,) each
        used = [(part.days, at) for part in parts for at in (part.train, part.validation) if len(at)]
        self.lacking = not all(reader.presence(days, np.asarray(at, np.int64)).all() for days, at in used)
        self.seen: list[tuple[Tensor, Tensor]] = []  # (B, C + E, H) and presence (B, C) of this epoch

    def run(self) -> FitReport:
        """Descend; see models.fitting."""
        c = self.config
        recipe = Recipe(c.learning_rate, c.weight_decay, c.clip, c.epochs, c.patience, c.warm_up, c.schedule)
        steps = sum(-(-len(part.train) // c.batch_days) for part in self.parts)
        steps = min(steps, self._most() or steps)
        self._read_charts()
        self._look_once()
        report = descend(self.network, recipe, self.seed, self._batches, self._loss, self._validate, steps)
        if not self.lacking:
            self._look_once(last=True)
        return report

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
        order = rng.permutation(len(cut)) if len(self.parts) > 1 else range(len(cut))
        for i in order[: self._most() or len(cut)]:
            yield (*cut[i], rng)

    def _most(self) -> int:
        """Return the most batches of an epoch, 0 where there is no bound."""
        return -(-self.config.epoch_days // self.config.batch_days)

    def _loss(self, batch: tuple[int, range, np.random.Generator]) -> Tensor:
        p, at, rng = batch
        x, present = self._encoded(p, at, rng)
        self.seen.append((x.detach(), present))
        said: Said = self.network(self.network.fill(x, present), present)
        label, returned = torch.from_numpy(self.asked[p][at.start : at.stop]).to(x.device).unbind(1)
        return self.network.loss(said.outputs, label, returned)

    def _encoded(self, p: int, at: range, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Encode consecutive decisions of one part as training reads them → (B, C + E, H), (B, C)."""
        reader, c, days = self.reader, self.config, self.parts[p].days
        back, index = reader.back, np.arange(at.start - reader.back, at.stop)
        news_days, windows = reader.windows(index)
        attended = means = torch.zeros(len(news_days), 1, device=c.device)
        if self.network.text is not None:
            rows = headlines(days, news_days, c.missing_text)
            if most := c.train_headlines:
                rows = [np.sort(rng.choice(r, most, replace=False)) if len(r) > most else r for r in rows]
            block = reader.block(days, rows, len(rows), max(1, max(map(len, rows))))
            attended, means, _ = self.network.text.day(block)  # (U, H) each
        samples = reader.samples(days, index, news_days, windows, self.images[p])
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
    def _look_once(self, last: bool = False) -> None:
        """Encode every training decision in evaluation mode, and let what goes by their statistics learn from them."""
        self.network.eval()
        rng = np.random.default_rng(self.seed)
        for p, at, _ in list(self._batches(rng)):
            self.seen.append(self._encoded(p, at, rng))
        self._refresh(last)

    @torch.no_grad()
    def _refresh(self, last: bool = False) -> None:
        """Let scales and completion learn from the features seen since the last time; they are detached.

        The completion learns from the decisions that lacked nothing. Where nearly all lack something (a market
        without any news) it learns from all, zeros in the place of what is missing: that is then what it fills in.
        Where nothing is missing it is not asked before the last time.
        """
        x, present = (torch.cat(tensors) for tensors in zip(*self.seen, strict=True))  # (decisions, C + E, H), (…, C)
        whole = present.all(1)  # (decisions,)
        rows = x[whole] if whole.sum() >= FEWEST else x  # (n, C + E, H)
        if not last and self.network.pairs is not None:
            self.network.pairs.measure(rows[:, : present.shape[1]].flatten(1))
        if last or self.lacking:
            self.network.completion.fit(rows.flatten(1), self.seed ^ COMPLETION_STREAM)
        self.seen = []

    def _validate(self) -> tuple[float, float]:
        if self.lacking:  # what is filled in a forecast carries no dropout, so must not what it was learned from
            self._look_once()
        else:
            self._refresh()
        said, label = [], []
        for part, images in zip(self.parts, self.images, strict=True):
            if len(part.validation):
                said.append(self.reader.forecast(part.days, np.asarray(part.validation, np.int64), images).p_up)
                label.append(part.days.label[part.validation.start : part.validation.stop])
        return log_loss(np.concatenate(said), np.concatenate(label))


def _runs(train: range, length: int, rng: np.random.Generator) -> list[range]:
    return runs(train, length, rng) if len(train) else []
