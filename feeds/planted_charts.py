"""A second planted market, whose rule needs two kinds of input at once: to measure whether a model really joins them.

The rule. Most sessions have a mark in the chart: a long shadow above the bar says up, one below it says down. The mark
that is ``age`` sessions old, the leftmost of a chart of 20, is the PATTERN of the day. It counts by the news: on days
with headlines about one industry, COUNTS, the next return follows the pattern, on all other days it goes against it;
both are equally likely, so that pattern and topic say something together and nothing alone (exclusive or).

Each mark is the pattern on one day only. A pattern that lasted would come out: yesterday's return and yesterday's topic
tell yesterday's pattern. So the numbers of the last sessions, up to ``age`` of them, know nothing of it; no feature of
theirs does, products included. Prices are white, sentiment scores and the number of headlines know nothing.

On days with the topic the volume is higher. This trace tells the topic of a day whose headlines are missing, often
though not always; a chart with bars of volume shows it too, so that such a chart is two kinds of input in one.

Letters:
    S sessions   K topics   N headlines of one session   M headlines of all sessions together
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
import math

import numpy as np
from numpy.typing import NDArray

from feeds.planted import MINUTE_US, MINUTES, NOISE, refuse_outside
from feeds.planted_words import DETAIL_FRAMES, NAMES, NOISE_PHRASES, NOISE_SUBJECTS, TOPICS, UP, detail, noise
from trader.clock import Calendar
from trader.events import Bar, NewsBatch

SYMBOL, SET = "planted_charts", "planted_charts-1"  # change the number whenever the default dials give other headlines
MARKET_TEXT = "A made-up market that follows or defies its chart, by the news of the day."
COUNTS = TOPICS[0]  # the industry whose news makes the pattern count
OTHER, TOPIC = 1, 2  # kinds of headlines in Truth, beside NOISE: of another industry, of COUNTS
VOLUME_NOISE = 0.2  # standard deviation of a session's log volume, the trace apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Dials:
    """The rule's ingredients; ConfigError where one cannot be had."""

    sessions: int = 3_300  # S, of XNYS
    first: date = date(1990, 1, 2)  # the first of them
    seed: int = 0
    marked: float = 0.83  # share of sessions with a mark
    age: int = 19  # sessions from the mark to the day whose pattern it is
    shadow_bps: float = 150.0  # length of a mark's shadow, ± 30 %, basis points; other shadows have a mean of 20
    topics: int = 6  # K, COUNTS among them
    topical: int = 6  # headlines a session about one industry: COUNTS, or on the other days any other
    noise: int = 6  # other headlines in a session
    missing: float = 0.0  # share of sessions whose headlines are all missing
    trace: float = 2.7  # how much higher log volume is on days with the topic, in standard deviations of its noise
    step_bps: float = 60.0  # what the pattern moves the market, basis points
    random_bps: float = 55.0  # standard deviation of the random part of a session's return, basis points

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[float, float]] = {
            "sessions": (1, math.inf),
            "marked": (0, 1),
            "age": (5, 59),  # beyond the last 5 sessions, and within the longest chart
            "shadow_bps": (0, 1_000),
            "topics": (2, len(TOPICS)),
            "topical": (1, 100),
            "noise": (0, 1_000),
            "missing": (0, 1),
            "trace": (0, 10),
            "step_bps": (0, 1_000),
            "random_bps": (1, 1_000),
        }
        refuse_outside(self, bounds, SYMBOL)


@dataclass(frozen=True, slots=True)
class Truth:
    """What nobody who sees charts and headlines is told.

    mark: (S,) −1, 0 or +1, the session's own.   pattern: (S,) the mark that counts at its decision; 0 for none.
    topic: (S,) bool, whether the session's news is about COUNTS, missing or not.   missing: (S,) bool, no headlines.
    kind: (M,) NOISE, OTHER or TOPIC.   offset: (S+1,) where each session's headlines begin.
    """

    mark: NDArray[np.int8]
    pattern: NDArray[np.int8]
    topic: NDArray[np.bool_]
    missing: NDArray[np.bool_]
    kind: NDArray[np.int8]
    offset: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Written:
    """S bars of one symbol, the headlines that are not missing, oldest first, and the truth about them."""

    bars: list[Bar]
    news: NewsBatch
    truth: Truth


def write(dials: Dials) -> Written:
    """Draw a market by these dials; same dials, same bytes. TimeError where the exchange's calendar is too short.

    ``missing`` takes headlines away and changes nothing else: bars and the other headlines stay as they were.
    """
    calendar = Calendar()
    rule, prices, words, gaps = (np.random.default_rng([dials.seed, 11, part]) for part in range(4))
    start = calendar.index(dials.first)
    sessions = [calendar.session(start + at) for at in range(dials.sessions)]
    side = rule.choice(np.array([-1, 1], np.int8), dials.sessions)
    mark = (side * (rule.random(dials.sessions) < dials.marked)).astype(np.int8)  # (S,)
    pattern = np.concatenate([np.zeros(dials.age, np.int8), mark])[: dials.sessions]  # (S,)
    topic = rule.random(dials.sessions) < 0.5  # (S,)
    missing = gaps.random(dials.sessions) < dials.missing  # (S,)
    bars = _bars(dials, sessions, calendar, mark, pattern, topic, prices)
    news, kind = _headlines(dials, sessions, calendar, topic, missing, words)
    offset = np.concatenate([[0], np.cumsum(~missing)]) * (dials.topical + dials.noise)
    return Written(bars, news, Truth(mark, pattern, topic, missing, kind, offset))


def features(truth: Truth) -> NDArray[np.float64]:
    """Return the rule's own features (S, 3): pattern −1, 0, +1; topic −1, +1, missing or not; their product.

    The product is the direction in which the pattern moves the NEXT close, 0 for none.
    """
    pattern, topic = truth.pattern.astype(np.float64), np.where(truth.topic, 1.0, -1.0)
    return np.stack([pattern, topic, pattern * topic], axis=1)


def topic_told_by_volume(dials: Dials) -> float:
    """Return the share of sessions whose topic the best reader of their volume alone tells."""
    return _normal(dials.trace / 2)


def best_accuracy(dials: Dials, missing: float | None = None) -> float:
    """Return the share of next directions that the best reader of chart, volume and headlines gets right.

    missing: share of sessions without headlines, that of the dials unless stated; at 0 nothing is missing, at 1 the
    topic is known by its trace in the volume alone. Computed from the rule, not simulated: without a pattern no one
    does better than a coin; with one, the sign of pattern × topic is right with probability Φ(step / random), and a
    topic that is told with the probability p is worth 2p − 1 of that gain. The first ``age`` sessions, which have no
    pattern yet, are not counted.
    """
    share = dials.missing if missing is None else missing
    told = (1 - share) + share * (2 * topic_told_by_volume(dials) - 1)
    return 0.5 + dials.marked * told * (_normal(dials.step_bps / dials.random_bps) - 0.5)


def _normal(x: float) -> float:
    """Probability that a standard normal number is at most x."""
    return 0.5 + 0.5 * math.erf(x / math.sqrt(2))


def _bars(
    dials: Dials,
    sessions: list[date],
    calendar: Calendar,
    mark: NDArray[np.int8],
    pattern: NDArray[np.int8],
    topic: NDArray[np.bool_],
    rng: np.random.Generator,
) -> list[Bar]:
    """Make prices of patterns and topics (S,), with the marks for shadows and the topic's trace in the volume."""
    moves = rng.normal(0, dials.random_bps, len(sessions))  # (S,) basis points
    moves[1:] += dials.step_bps * (pattern * np.where(topic, 1, -1))[:-1]  # a session's news moves the next close
    closes = 100 * np.exp((moves - moves.mean()).cumsum() / 1e4)  # without a drift, so that it stays in sight
    opened, shadows = rng.normal(0, 10, len(sessions)), rng.exponential(20, (2, len(sessions)))  # basis points
    shadows += dials.shadow_bps * rng.uniform(0.7, 1.3, len(sessions)) * np.stack([mark > 0, mark < 0])
    noise_of_volume = rng.normal(0, 1, len(sessions)) + dials.trace * (topic - 0.5)
    volume = np.round(1e6 * np.exp(VOLUME_NOISE * noise_of_volume))
    bars, before = [], 100.0
    for at, session in enumerate(sessions):
        opening, close = before * math.exp(opened[at] / 1e4), float(closes[at])
        bars.append(
            Bar(
                symbol=SYMBOL,
                session=session,
                open=opening,
                high=max(opening, close) * math.exp(shadows[0, at] / 1e4),
                low=min(opening, close) * math.exp(-shadows[1, at] / 1e4),
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
    topic: NDArray[np.bool_],
    missing: NDArray[np.bool_],
    rng: np.random.Generator,
) -> tuple[NewsBatch, NDArray[np.int8]]:
    """Write N headlines a session in a random order, at random minutes before its close; their kinds (M,).

    What they say of an industry, up or down, and their sentiment are drawn at random.
    """
    shape = (S := len(sessions), dials.topical + dials.noise)  # (S, N)
    industry = np.full(shape, -1)  # none
    industry[:, : dials.topical] = np.where(topic, 0, rng.integers(1, dials.topics, S))[:, None]
    industry = rng.permuted(industry, axis=1)
    draws = rng.integers(0, 1 << 30, (*shape, 4))  # (S, N, 4), of which wording
    minutes = -np.sort(-rng.integers(0, MINUTES, shape), axis=1)  # before the close, oldest first
    at = calendar.closes_us(sessions)[:, None] - minutes * MINUTE_US  # (S, N)
    tone = rng.uniform(0.2, 0.9, shape) * rng.choice([-1, 0, 1], shape)  # (S, N)
    kept = np.flatnonzero(~missing).tolist()
    sentiment = np.stack([np.maximum(-tone, 0), 1 - np.abs(tone), np.maximum(tone, 0)], axis=2)  # (S, N, 3)
    news = NewsBatch(
        published_at=at[kept].ravel(),
        known_at=at[kept].ravel(),
        headline=[
            _text(number, draw)
            for day in kept
            for number, draw in zip(industry[day].tolist(), draws[day].tolist(), strict=True)
        ],
        symbols=[""] * (len(kept) * shape[1]),
        sentiment=sentiment[kept].reshape(-1, 3).astype(np.float32),
        item_id=[f"{SYMBOL}:{sessions[day]}:{row}" for day in kept for row in range(shape[1])],
    )
    kind = np.where(industry < 0, NOISE, np.where(industry > 0, OTHER, TOPIC))  # (S, N)
    return news, kind[kept].ravel().astype(np.int8)


def _text(industry: int, draw: list[int]) -> str:
    """Write one headline about an industry (TOPICS by number), or about something else (−1), its wording as drawn."""
    first, second, third, up = draw
    if industry < 0:
        return noise(first % len(NOISE_SUBJECTS), second % len(NOISE_PHRASES))
    name = NAMES[first % len(NAMES)].format(topic=TOPICS[industry])
    return detail(name, up % 2 == 0, second % len(UP), third % len(DETAIL_FRAMES))
