"""A planted market: headlines and prices by a known rule, to measure whether a model reads what headlines say together.

The rule. Each session every topic has its details, headlines whose wording says up or down. They mean nothing, unless
a breaking headline of the same topic stands beside them: then the topic moves the market their way, by one step, in
the session that follows after the topic's delay. The breaking headline by itself does not say which way. All else is
noise: other headlines, sentiment scores that do not know the direction, and a random part of each day's return.
Directions and breaks are drawn afresh each session, so prices are white: momentum knows nothing.

Letters:
    S sessions   K topics   M headlines of all sessions together
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
import math

import numpy as np
from numpy.typing import NDArray

from feeds.planted_words import (
    DETAIL_FRAMES,
    EVENTS,
    MARKERS,
    NAMES,
    NOISE_PHRASES,
    NOISE_SUBJECTS,
    TOPICS,
    UP,
    breaking,
    detail,
    noise,
)
from trader.clock import Calendar
from trader.errors import ConfigError
from trader.events import Bar, NewsBatch

SYMBOL, SET = "planted", "planted-1"  # change the number whenever a headline of the default dials changes
MARKET_TEXT = "A made-up market whose prices follow the news of a few industries."
NOISE, BREAKING, DETAIL = 0, 1, 2  # kinds of headlines in Truth
MINUTE_US, MINUTES = 60_000_000, 360  # headlines appear in the last hours before the session's close


def refuse_outside(dials: object, bounds: Mapping[str, tuple[float, float]], where: str) -> None:
    """Raise ConfigError where a dial, an attribute of ``dials``, lies outside its (lowest, highest) bounds."""
    for name, (low, high) in bounds.items():
        if not low <= getattr(dials, name) <= high:  # so that NaN is refused too
            expected = f"{low} to {high}" if high < math.inf else f"at least {low}"
            raise ConfigError(f"{name} cannot be had", where=where, got=getattr(dials, name), expected=expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dials:
    """The rule's ingredients; ConfigError where one cannot be had."""

    sessions: int = 3_300  # S, of XNYS
    first: date = date(1990, 1, 2)  # the first of them
    seed: int = 0
    topics: int = 6  # K, at most as many as there are words for
    broken: int = 2  # topics that break in a session, of K
    details: int = 3  # headlines of each topic in a session, all saying the same direction
    noise: int = 20  # other headlines in a session
    delays: tuple[int, ...] = (0, 2)  # sessions until a topic is priced; the topics take them in turn
    toned: float = 1.0  # share of details whose sentiment score says something, the others' being neutral
    misleading: float = 0.5  # share of those whose score says the opposite; ½ knows nothing, 1 always misleads
    step_bps: float = 60.0  # what one broken topic moves the market, basis points
    random_bps: float = 55.0  # standard deviation of the random part of a session's return, basis points

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[float, float]] = {
            "sessions": (1, math.inf),
            "topics": (1, len(TOPICS)),
            "broken": (0, self.topics),
            "details": (1, 100),
            "noise": (0, 1_000),
            "toned": (0, 1),
            "misleading": (0, 1),
            "step_bps": (0, 1_000),
            "random_bps": (1, 1_000),  # at 0 a sum of no steps would be a return of exactly nothing
        }
        refuse_outside(self, bounds, "planted")
        if not self.delays or not all(0 <= delay <= 10 for delay in self.delays):
            expected = "one or more of 0 to 10 sessions"
            raise ConfigError("delays cannot be had", where="planted", got=self.delays, expected=expected)

    def delay(self) -> NDArray[np.int64]:
        """Return the delay of each topic (K,)."""
        return np.resize(np.array(self.delays, dtype=np.int64), self.topics)


@dataclass(frozen=True, slots=True)
class Truth:
    """What nobody who reads the headlines is told.

    kind: (M,) NOISE, BREAKING or DETAIL.   topic: (M,) its number, −1 for noise.
    matters: (M,) bool, breaking headlines and the details beside them.   offset: (S+1,) where each session's begin.
    broken: (S, K) bool.   direction: (S, K) −1 or +1.
    """

    kind: NDArray[np.int8]
    topic: NDArray[np.int64]
    matters: NDArray[np.bool_]
    offset: NDArray[np.int64]
    broken: NDArray[np.bool_]
    direction: NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Written:
    """S bars of one symbol, the headlines, oldest first, and the truth about them."""

    bars: list[Bar]
    news: NewsBatch
    truth: Truth


def write(dials: Dials) -> Written:
    """Draw a market by these dials; same dials, same bytes. TimeError where the exchange's calendar is too short."""
    calendar, rng = Calendar(), np.random.default_rng([dials.seed, 7])
    start = calendar.index(dials.first)
    sessions = [calendar.session(start + at) for at in range(dials.sessions)]
    broken = rng.random((dials.sessions, dials.topics)).argsort(axis=1) < dials.broken  # (S, K)
    direction = rng.choice(np.array([-1, 1], np.int8), (dials.sessions, dials.topics))  # (S, K)
    bars = _bars(dials, sessions, calendar, broken * direction, rng)
    news, truth = _headlines(dials, sessions, calendar, broken, direction, rng)
    return Written(bars, news, truth)


def priced(dials: Dials, truth: Truth) -> NDArray[np.int64]:
    """Return for each session (S,) the steps by which the topics move the NEXT close, before the random part."""
    return _sum_of_steps(dials, truth.broken * truth.direction)


def features(dials: Dials, truth: Truth, lookback: int | None = None) -> NDArray[np.float64]:
    """Return the rule's own features (S, lookback·K): for each session of the lookback, newest first, −1, 0 or +1.

    A topic's feature is the direction of its details where it broke, and 0 where it did not. What lies before the first
    session is 0. lookback: sessions, as many as the longest delay needs unless stated.
    """
    steps = (truth.broken * truth.direction).astype(np.float64)  # (S, K)
    count = max(dials.delays) + 1 if lookback is None else lookback
    lags = [
        np.concatenate([np.zeros((min(lag, len(steps)), dials.topics)), steps])[: len(steps)] for lag in range(count)
    ]
    return np.concatenate(lags, axis=1)


def best_accuracy(dials: Dials, lookback: int | None = None) -> float:
    """Return the share of next directions that the best reader of the last ``lookback`` sessions gets right.

    Computed from the rule, not simulated: the sum of the steps that are priced tomorrow has a known distribution, and
    no one does better than its sign. Topics whose delay is longer than the lookback reaches count as chance.
    """
    delay, seen, unseen = dials.delay(), np.ones(1), np.ones(1)
    for value in np.unique(delay).tolist():  # topics of different delays broke on different days: independent
        steps = _steps_of_one_day(dials, int((delay == value).sum()))
        if lookback is None or value < lookback:
            seen = np.convolve(seen, steps)
        else:
            unseen = np.convolve(unseen, steps)
    s, u = (np.arange(len(p)) - len(p) // 2 for p in (seen, unseen))  # sums of steps; s is known, u is not
    total = (s[:, None] + u) * dials.step_bps / dials.random_bps  # (seen, unseen), in standard deviations
    p_up = np.array([[0.5 + 0.5 * math.erf(x / math.sqrt(2)) for x in row] for row in total]) @ unseen  # (seen,)
    return float(seen @ np.maximum(p_up, 1 - p_up))


def _steps_of_one_day(dials: Dials, size: int) -> NDArray[np.float64]:
    """Probabilities (2·size + 1,) that those of ``size`` topics that break in a session sum to −size … size."""
    probability = np.zeros(2 * size + 1)
    for count in range(min(size, dials.broken) + 1):
        others = math.comb(dials.topics - size, dials.broken - count) if dials.broken - count >= 0 else 0
        share = math.comb(size, count) * others / math.comb(dials.topics, dials.broken)
        for up in range(count + 1):
            probability[size + 2 * up - count] += share * math.comb(count, up) / 2**count
    return probability


def _sum_of_steps(dials: Dials, steps: NDArray[np.int8] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum the steps (S, K) over the topics, each from as many sessions ago as its delay → (S,)."""
    total = np.zeros(len(steps), dtype=np.int64)
    for topic, delay in enumerate(dials.delay().tolist()):
        total[delay:] += steps[: len(steps) - delay, topic]
    return total


def _bars(
    dials: Dials, sessions: list[date], calendar: Calendar, steps: NDArray[np.int8], rng: np.random.Generator
) -> list[Bar]:
    """Make prices of the steps (S, K); opens, highs, lows and volumes know nothing of them."""
    moves = rng.normal(0, dials.random_bps, len(sessions))  # (S,) basis points
    moves[1:] += dials.step_bps * _sum_of_steps(dials, steps)[:-1]  # news of a session moves the next close
    closes = 100 * np.exp((moves - moves.mean()).cumsum() / 1e4)  # without a drift, so that it stays in sight
    opened, above, below = rng.normal(0, 10, len(sessions)), *rng.exponential(20, (2, len(sessions)))
    volume = np.round(1e6 * np.exp(rng.normal(0, 0.2, len(sessions))))
    bars, before = [], 100.0
    for at, session in enumerate(sessions):
        opening, close = before * math.exp(opened[at] / 1e4), float(closes[at])
        bars.append(
            Bar(
                symbol=SYMBOL,
                session=session,
                open=opening,
                high=max(opening, close) * math.exp(above[at] / 1e4),
                low=min(opening, close) * math.exp(-below[at] / 1e4),
                close=close,
                adj_close=close,
                volume=float(volume[at]),
                known_at=calendar.cutoff(session),
            )
        )
        before = close
    return bars


def _headlines(
    dials: Dials,
    sessions: list[date],
    calendar: Calendar,
    broken: NDArray[np.bool_],
    direction: NDArray[np.int8],
    rng: np.random.Generator,
) -> tuple[NewsBatch, Truth]:
    """Write each session's headlines in a random order, at random minutes before its close, and keep the truth."""
    per_day = dials.broken + dials.topics * dials.details + dials.noise
    kind = np.repeat([BREAKING, DETAIL, NOISE], [dials.broken, dials.topics * dials.details, dials.noise])
    close = calendar.closes_us(sessions)
    texts, at, tones, kinds, topics = list[str](), [], [], [], []
    for day in range(len(sessions)):
        topic = np.full(per_day, -1)
        topic[: dials.broken] = np.flatnonzero(broken[day])
        topic[dials.broken : per_day - dials.noise] = np.repeat(np.arange(dials.topics), dials.details)
        order, draw = rng.permutation(per_day), rng.integers(0, 1 << 30, (per_day, 3))  # (per_day,), (per_day, 3)
        minutes = np.sort(rng.integers(0, MINUTES, per_day))[::-1]
        tone = _tones(dials, kind, np.where(topic < 0, 0, direction[day, topic]), rng)  # (per_day,)
        for row in order.tolist():
            texts.append(_text(int(kind[row]), int(topic[row]), direction[day], draw[row].tolist()))
        at.append(close[day] - minutes * MINUTE_US)
        tones.append(tone[order])
        kinds.append(kind[order])
        topics.append(topic[order])
    return _batch(np.concatenate(at), texts, np.concatenate(tones), sessions, per_day), Truth(
        kind=np.concatenate(kinds).astype(np.int8),
        topic=(topic_of := np.concatenate(topics)),
        matters=(topic_of >= 0) & broken[np.repeat(np.arange(len(sessions)), per_day), topic_of],
        offset=np.arange(len(sessions) + 1) * per_day,
        broken=broken,
        direction=direction,
    )


def _text(kind: int, topic: int, direction: NDArray[np.int8], draw: list[int]) -> str:
    """Write one headline, its wording by three numbers drawn at random."""
    first, second, third = draw
    if kind == NOISE:
        return noise(first % len(NOISE_SUBJECTS), second % len(NOISE_PHRASES))
    name = NAMES[first % len(NAMES)].format(topic=TOPICS[topic])
    if kind == BREAKING:
        return breaking(name, second % len(MARKERS), third % len(EVENTS))
    return detail(name, bool(direction[topic] > 0), second % len(UP), third % len(DETAIL_FRAMES))


def _tones(
    dials: Dials, kind: NDArray[np.int64], direction: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw what each headline's sentiment says, −1 to 1: details by the dials, breaking ones 0, noise anything."""
    size = rng.uniform(0.2, 0.9, len(kind))
    lie = np.where(rng.random(len(kind)) < dials.misleading, -1, 1)
    said = direction * lie * (rng.random(len(kind)) < dials.toned)
    chance = rng.choice([-1, 0, 1], len(kind))
    return size * np.where(kind == DETAIL, said, np.where(kind == NOISE, chance, 0))


def _batch(
    at: NDArray[np.int64], texts: list[str], tone: NDArray[np.float64], sessions: list[date], per_day: int
) -> NewsBatch:
    sentiment = np.stack([np.maximum(-tone, 0), 1 - np.abs(tone), np.maximum(tone, 0)], axis=1)  # (M, 3)
    return NewsBatch(
        published_at=at,
        known_at=at,
        headline=texts,
        symbols=[""] * len(texts),
        sentiment=sentiment.astype(np.float32),
        item_id=[f"planted:{session}:{row}" for session in sessions for row in range(per_day)],
    )
