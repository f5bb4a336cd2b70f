"""Measure on the planted market (feeds.planted) whether FININ reads, and what each of its switches is worth.

    python -m benchmarks.planted                         everything but the long curve, 5 seeds
    python -m benchmarks.planted --parts reach,switches --seeds 2
    python -m benchmarks.planted --parts curve           250 to 8,000 training sessions
    python -m benchmarks.planted --parts switches --rows complete,gate      only rows whose name holds one of these

The parts: ``reach`` (what can be reached, and what FININ and its ablations do), ``switches`` (each of the settings
below put back to the plain one), ``lookbacks``, ``curve``. Each fit is one process of one thread; a row is the mean
over seeds on the same test sessions, its share that of the best reachable gain over a coin.

The last columns rank the headlines of a test session against its noise, as areas under the ROC curve, mean over
sessions: the breaking ones, the details beside them, and both together, by
    weight      the weights of eq. 6 themselves
    influence   half the weight and half what flows on through the news–news attention, 0.5 w + 0.5 w @ pairs: one step
                of attention rollout (Abnar and Zuidema 2020)
A detail reaches the decision through the breaking headline that looked at it: influence, and hardly a weight.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
import os
from pathlib import Path
import tempfile
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feeds import planted, planted_charts
from feeds.planted import BREAKING, DETAIL, NOISE, Dials, Truth, Written
from models.base import Days
from models.embeddings import EmbeddingCache
from models.finin import Finin, FininConfig
from models.processes import as_completed
from models.text import TextEncoder
from trader.clock import Calendar
from trader.errors import BadNews
from trader.events import BarClosed, NewsArrived, NewsBatch
from trader.methods import AS_PRINTED
from trader.window import TextIndex, Window

TRAIN, VALIDATION, TEST, WARM_UP = 2_000, 200, 1_050, Window.warm_up
RANKED = 100  # test sessions whose headlines are ranked
CURVE = (250, 500, 1_000, 2_000, 4_000, 8_000)

READER = FininConfig(lookback=3)  # the defaults, over as many sessions as the longest delay needs
ABLATIONS: dict[str, dict[str, Any]] = {
    "complete": {},
    "as printed, all switches off": dict(AS_PRINTED),
    "headlines averaged (−MIQ)": {"quantifier": False},
    "averaged, hidden layer in the head": {"quantifier": False, "head_layers": 2},
    "no text (−MTP −NTP)": {"text": False},
    "no news (−NTP −NNP)": {"news": False},
}
SWITCHES: dict[str, dict[str, Any]] = {
    "complete": {},
    "text_scale = one": {"text_scale": "one"},
    "text_scale = layer_norm": {"text_scale": "layer_norm"},
    "text_scale = standardised": {"text_scale": "standardised"},
    "norm = post": {"norm": "post"},
    "norm = none": {"norm": "none"},
    "skip = false": {"skip": False},
    "alike_start = false": {"alike_start": False},
    "sharpness = 1": {"sharpness": 1.0},
    "uniform_start = false": {"uniform_start": False},
    "gate = false": {"gate": False},
    "gate = false, feed_forward = true": {"gate": False, "feed_forward": True},
    "day_norm = true": {"day_norm": True},
    "heads = 1": {"heads": 1},
    "head_layers = 2": {"head_layers": 2},
    "return_weight = 0": {"return_weight": 0.0},
    "horizon_weight = 0.5": {"horizon_weight": 0.5, "horizon": 3},
    "volatility_weight = 0.5": {"volatility_weight": 0.5},
    "dropout = 0": {"dropout": 0.0},
    "headline_dropout = 0.1": {"headline_dropout": 0.1},
    "learning_rate = 0.003": {"learning_rate": 3e-3},
    "no warm-up, no decay": {"warm_up": 0.0, "schedule": "constant"},
    "average = 0.99": {"average": 0.99},
    "text_weight_decay = 1": {"text_weight_decay": 1.0},
    "pretrain_epochs = 3": {"pretrain_epochs": 3},
}


@dataclass(frozen=True)
class Market:
    """A planted market as a model sees it, and the truth about it."""

    dials: Dials
    days: Days
    truth: Truth


@dataclass(frozen=True)
class Job:
    """One fit. ``train``: its sessions, the last before validation and test."""

    name: str
    config: FininConfig
    seed: int
    train: int = TRAIN


@dataclass(frozen=True)
class Fitted:
    """What one fit got on the test sessions."""

    accuracy: float
    seconds: float
    areas: dict[str, float] = field(default_factory=dict)


class Stated:
    """A scorer that is never asked: every headline of this market states its sentiment."""

    def scores(self, texts: Sequence[str], progress: object = None) -> NDArray[np.float32]:
        raise BadNews("headlines without sentiment", where="the planted market", got=len(texts), expected="none")


def days_of(
    written: Written | planted_charts.Written, texts: TextIndex, market_text: str = planted.MARKET_TEXT
) -> Days:
    """Lay the market as a run lays it: each session's headlines, then its bar, through trader.window."""
    window = Window(Calendar(), texts, Stated(), market_text=market_text)
    news, offset = written.news, written.truth.offset.tolist()
    for bar, low, high in zip(written.bars, offset, offset[1:], strict=False):
        part = NewsBatch(
            published_at=news.published_at[low:high],
            known_at=news.known_at[low:high],
            headline=news.headline[low:high],
            symbols=news.symbols[low:high],
            sentiment=news.sentiment[low:high],
            item_id=news.item_id[low:high],
        )
        window.update(NewsArrived(session=bar.session, at=bar.known_at, news=part))
        window.update(BarClosed(session=bar.session, at=bar.known_at, bar=bar))
    window.resolve()
    return window.days(0, len(written.bars))


def market(dials: Dials, cache: Path, workers: int) -> Market:
    """Write a market and embed its headlines with MiniLM."""
    from models.fitting import held

    written = planted.write(dials)
    days = days_of(written, EmbeddingCache.open(cache, TextEncoder.open("minilm"), workers=workers))
    return Market(dials, held(days), written.truth)


def spans(days: Days, train: int) -> tuple[range, range, range]:
    """Return training, validation and test decisions; the test is the last TEST of them whatever ``train`` is."""
    stop = len(days) - 1  # the last session has no next close
    test, validation = range(stop - TEST, stop), range(stop - TEST - VALIDATION, stop - TEST)
    if validation.start - train < WARM_UP:
        raise SystemExit(f"{len(days)} sessions are too few to train on {train}")
    return range(validation.start - train, validation.start), validation, test


def fit(job: Job, on: Market) -> Fitted:
    """Train once and read the test sessions."""
    train, validation, test = spans(on.days, job.train)
    model, started = Finin(job.config), time.perf_counter()
    model.fit(on.days, train, validation, job.seed)
    seconds = time.perf_counter() - started
    up = on.days.label[test.start : test.stop] > 0.5
    accuracy = float(((model.predict(on.days, test).p_up > 0.5) == up).mean())
    reads = job.config.news and job.config.quantifier
    return Fitted(accuracy, seconds, areas(model, on, test[:RANKED]) if reads else {})


def areas(model: Finin, on: Market, test: Sequence[int]) -> dict[str, float]:
    """Rank breaking headlines, and the details beside them, against the noise of their session, mean over sessions."""
    found: dict[str, list[float]] = {}
    for day in test:
        seen, here = model.attention(on.days, day), on.days.news(day)
        kind, matters = on.truth.kind[here], on.truth.matters[here]
        groups = {"breaking": kind == BREAKING, "details": (kind == DETAIL) & matters, "both": matters}
        rolled = 0.5 * seen.weights + 0.5 * seen.weights @ seen.pairs
        shares: dict[str, NDArray[Any]] = {"weight": seen.weights, "influence": rolled}
        for (share, values), (group, rows) in product(shares.items(), groups.items()):
            if rows.any() and (kind == NOISE).any():
                found.setdefault(f"{share} {group}", []).append(area(values[rows], values[kind == NOISE]))
    return {name: float(np.mean(values)) for name, values in found.items()}


def area(above: NDArray[Any], below: NDArray[Any]) -> float:
    """Area under the ROC curve: how often one of ``above`` is larger than one of ``below``, ties counting half."""
    difference = above[:, None] - below[None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def logistic(on: Market, train: int) -> float:
    """Accuracy of a logistic regression on the rule's own features, shrinkage chosen on validation."""
    from sklearn.linear_model import LogisticRegression

    numbers, label = planted.features(on.dials, on.truth), on.days.label
    known, unseen, test = ((numbers[at.start : at.stop], label[at.start : at.stop]) for at in spans(on.days, train))
    fitted = [LogisticRegression(C=c, max_iter=1_000).fit(*known) for c in (0.001, 0.01, 0.1, 1.0, 10.0)]
    best = max(
        fitted, key=lambda one: float(one.predict_log_proba(unseen[0])[range(VALIDATION), unseen[1].astype(int)].mean())
    )
    return float(best.score(*test))


def told(name: str, fits: Sequence[Fitted], best: float) -> str:
    """Write one row of the table."""
    reached = np.array([one.accuracy for one in fits])
    row = f"{name:<36}{reached.mean():7.3f} ±{reached.std():5.3f}{(reached.mean() - 0.5) / (best - 0.5):8.0%}"
    row += f"{np.mean([one.seconds for one in fits]):7.0f} s"
    return row + "".join(f"{np.mean([one.areas[column] for one in fits]):8.3f}" for column in fits[0].areas)


def named(rows: Iterable[str], texts: Sequence[str]) -> list[str]:
    """Return the rows whose name holds one of the texts; all where there are none."""
    return [row for row in rows if not texts or any(text in row for text in texts)]


def jobs_of(part: str, seeds: int, only: Sequence[str] = ()) -> list[Job]:
    """List a part's fits; ``only``: of rows whose name holds one of these."""
    chosen: list[tuple[str, FininConfig, int]] = []
    if part in ("reach", "switches"):
        rows = ABLATIONS if part == "reach" else SWITCHES
        chosen = [(name, replace(READER, **changes), TRAIN) for name, changes in rows.items()]
    elif part == "lookbacks":
        chosen = [(f"lookback {t}", replace(READER, lookback=t), TRAIN) for t in (1, 2, 3, 5, 10)]
    else:
        chosen = [(f"{train:,} sessions", READER, train) for train in CURVE]
    wanted = named([name for name, _, _ in chosen], only)
    return [
        Job(name, config, seed, train)
        for name, config, train in chosen
        if name in wanted
        for seed in range(1, seeds + 1)
    ]


def measure(part: str, on: Market, seeds: int, workers: int, only: Sequence[str] = ()) -> Iterator[str]:
    """Fit a part's jobs and yield each row when its last seed is done."""
    jobs = jobs_of(part, seeds, only)
    best, done = planted.best_accuracy(on.dials), dict[str, list[Fitted]]()
    for job, fitted in as_completed(fit, jobs, lambda _: on, workers):
        done.setdefault(job.name, []).append(fitted)
        if len(done[job.name]) == seeds:
            yield told(job.name, done[job.name], best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="reach,switches,lookbacks", help="of reach, switches, lookbacks, curve")
    parser.add_argument("--rows", default="", metavar="TEXT,…", help="only rows whose name holds one of these")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--noise", type=int, default=Dials().noise, help="other headlines in a session")
    parser.add_argument("--cache", help="keep the embeddings here (default: a new folder, deleted afterwards)")
    options = parser.parse_args()
    only, parts = [text for text in options.rows.split(",") if text], options.parts.split(",")
    if not any(jobs_of(part, 1, only) for part in parts):
        parser.error(f"no row of {options.parts} has one of these in its name: {options.rows}")
    print("the complete model:", asdict(READER))
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(options.cache or temporary)
        for part in (part for part in parts if jobs_of(part, 1, only)):
            train = max(CURVE) if part == "curve" else TRAIN
            dials = Dials(sessions=train + VALIDATION + TEST + WARM_UP + 1, noise=options.noise)
            on = market(dials, cache, options.workers)
            print(f"\n{part}: {dials}")
            print(f"{'':<36}accuracy ± over seeds, share of the best gain, training; areas of breaking, details, both:")
            print(f"{'':<36}by weight, by influence")
            for lookback in range(1, max(dials.delays) + 2):
                print(f"best reachable, lookback {lookback:<11}{planted.best_accuracy(dials, lookback):7.3f}")
            print(f"{'logistic on the rule’s features':<36}{logistic(on, train):7.3f}")
            for row in measure(part, on, options.seeds, options.workers, only):
                print(row, flush=True)


if __name__ == "__main__":
    main()
