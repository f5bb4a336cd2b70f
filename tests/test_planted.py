"""The planted market: its rule is what it says, nothing else helps, and its best accuracy is the one computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
import hashlib
import math
from pathlib import Path
import re

import numpy as np
from numpy.typing import NDArray
import pytest

from benchmarks.planted import ABLATIONS, READER, TEST, TRAIN, VALIDATION, WARM_UP, Fitted, Job, Market, days_of, fit
from benchmarks.planted import market as embedded
from feeds.planted import BREAKING, DETAIL, NOISE, SET, Dials, Written, best_accuracy, features, priced, write
from feeds.planted_words import DOWN, EVENTS, UP
from models.fitting import held
from tests.builders import TinyTexts
from trader.clock import Calendar
from trader.errors import ConfigError, TimeError
from trader.events import NewsBatch

DIALS = Dials(sessions=3_000)


@pytest.fixture(scope="module")
def market() -> Written:
    return write(DIALS)


def moves(market: Written) -> NDArray[np.float64]:
    """Log returns from each close to the next, (S − 1,)."""
    return np.diff(np.log([bar.close for bar in market.bars]))


def hit_rate(signal: NDArray[np.float64], moves: NDArray[np.float64]) -> float:
    """Share of the moves whose direction the signal tells; a signal of 0 throws a coin."""
    return float(np.where(signal == 0, 0.5, np.sign(signal) == np.sign(moves)).mean())


def details_said(dials: Dials, market: Written) -> NDArray[np.float64]:
    """Sum of what all topics' details say, broken or not, each at its delay (S,)."""
    everything = replace(market.truth, broken=np.ones_like(market.truth.broken))
    return priced(dials, everything).astype(np.float64)


def digest(market: Written) -> str:
    news = market.news
    parts = [repr(market.bars).encode(), "\n".join([*news.headline, *news.item_id]).encode()]
    parts += [array.tobytes() for array in (news.known_at, news.sentiment, market.truth.kind, market.truth.broken)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def test_the_rule_tells_the_next_direction_as_often_as_is_computed(market: Written) -> None:
    reached = hit_rate(priced(DIALS, market.truth)[:-1].astype(np.float64), moves(market))
    assert reached == pytest.approx(best_accuracy(DIALS), abs=3 * 0.5 / math.sqrt(DIALS.sessions))
    assert best_accuracy(DIALS) == pytest.approx(0.80, abs=0.005)


@pytest.mark.parametrize(
    "changed",
    [
        Dials(topics=12, broken=3, delays=(0, 1), random_bps=80),
        Dials(topics=5, broken=5, delays=(3,), step_bps=20),
        Dials(topics=7, broken=1, delays=(0, 0, 10), random_bps=30),
        Dials(broken=0),
    ],
)
@pytest.mark.parametrize("lookback", [1, 2, None])
def test_the_best_accuracy_agrees_with_a_simulation(changed: Dials, lookback: int | None) -> None:
    """Of the rule alone, drawn 200,000 times without headlines, and read with the lookback given."""
    rng, draws = np.random.default_rng(1), 200_000
    delay = changed.delay()
    known, hidden = np.zeros(draws), np.zeros(draws)
    for value in np.unique(delay):
        broken = rng.random((draws, changed.topics)).argsort(axis=1) < changed.broken
        steps = (broken * rng.choice([-1, 1], broken.shape))[:, delay == value].sum(axis=1)
        seen = lookback is None or value < lookback
        known, hidden = known + steps * seen, hidden + steps * (not seen)
    moved = (known + hidden) * changed.step_bps + rng.normal(0, changed.random_bps, draws)
    guess = np.where(known == 0, rng.choice([-1, 1], draws), np.sign(known))
    assert (guess == np.sign(moved)).mean() == pytest.approx(best_accuracy(changed, lookback), abs=0.005)


def test_without_their_breaking_headline_the_details_say_nothing(market: Written) -> None:
    quiet = replace(market.truth, broken=~market.truth.broken)  # the topics that did not break, as if they had
    assert hit_rate(priced(DIALS, quiet)[:-1].astype(np.float64), moves(market)) == pytest.approx(0.5, abs=0.03)
    mute = Dials(sessions=2_000, broken=0)
    silent = write(mute)
    assert not (silent.truth.kind == BREAKING).any()
    assert hit_rate(details_said(mute, silent)[:-1], moves(silent)) == pytest.approx(0.5, abs=0.04)
    assert best_accuracy(mute) == 0.5


def test_counting_all_details_without_asking_which_broke_gets_part_of_the_way(market: Written) -> None:
    averaged = hit_rate(details_said(DIALS, market)[:-1], moves(market))
    assert 0.6 < averaged < best_accuracy(DIALS) - 0.08


def test_momentum_has_no_power(market: Written) -> None:
    moved = moves(market)
    for lag in range(1, 12):
        assert abs(np.corrcoef(moved[lag:], moved[:-lag])[0, 1]) < 3.5 / math.sqrt(len(moved))
        assert hit_rate(moved[:-lag], moved[lag:]) == pytest.approx(0.5, abs=0.03)


def tone_of_details(dials: Dials, market: Written) -> NDArray[np.float64]:
    """Positive minus negative of the headlines that matter, summed over each session (S,); delays must be 0."""
    truth = market.truth
    tone = (market.news.sentiment[:, 2] - market.news.sentiment[:, 0]) * (truth.matters & (truth.kind == DETAIL))
    return np.add.reduceat(tone, truth.offset[:-1]).astype(np.float64)


@pytest.mark.parametrize(("misleading", "low", "high"), [(0.5, 0.45, 0.55), (1.0, 0.0, 0.35), (0.0, 0.65, 1.0)])
def test_sentiment_knows_as_much_as_its_dial_says(misleading: float, low: float, high: float) -> None:
    dials = Dials(sessions=1_500, delays=(0,), misleading=misleading)
    made = write(dials)
    assert low < hit_rate(tone_of_details(dials, made)[:-1], moves(made)) < high
    mute = write(replace(dials, toned=0.0))
    assert not tone_of_details(dials, mute).any()


@pytest.mark.parametrize("delay", [0, 1, 5, 10])
def test_a_topic_is_priced_after_its_delay_and_at_no_other_time(delay: int) -> None:
    dials = Dials(sessions=2_000, delays=(delay,))
    made = write(dials)
    news = (made.truth.broken * made.truth.direction).sum(axis=1)  # (S,)
    for lag in (0, 1, 4, 5, 6, 9, 10, 11):
        moved = moves(made)[lag:]
        found = np.corrcoef(news[: len(moved)], moved)[0, 1]
        assert found > 0.6 if lag == delay else abs(found) < 0.1


def test_wording_carries_the_direction_of_the_topic(market: Written) -> None:
    truth, said = market.truth, market.news.headline
    session = np.repeat(np.arange(DIALS.sessions), np.diff(truth.offset))
    for row in np.flatnonzero(truth.kind == DETAIL)[:2_000].tolist():
        up = truth.direction[session[row], truth.topic[row]] > 0
        assert any(phrase in said[row] for phrase in (UP if up else DOWN))
        assert not any(phrase in said[row] for phrase in (DOWN if up else UP))
    events = {said[row].lower() for row in np.flatnonzero(truth.kind == BREAKING).tolist()}
    assert all(any(event.split("{")[0] in text for event in EVENTS) for text in events)
    assert not any(phrase in text for phrase in UP + DOWN for text in events)
    assert not set(np.array(said)[truth.kind == NOISE]) & set(np.array(said)[truth.kind != NOISE])
    assert len(set(said)) > 1_000


def test_headlines_belong_to_their_sessions_oldest_first_and_are_counted_as_dialled(market: Written) -> None:
    calendar, news = Calendar(), market.news
    assert (np.diff(news.known_at) >= 0).all()
    of_session = calendar.index_at(news.known_at)
    first = calendar.index(DIALS.first)
    assert np.array_equal(np.bincount(of_session - first), np.diff(market.truth.offset))
    assert set(np.diff(market.truth.offset)) == {DIALS.broken + DIALS.topics * DIALS.details + DIALS.noise}
    assert (market.truth.broken.sum(axis=1) == DIALS.broken).all()
    assert [bar.session for bar in market.bars] == [calendar.session(first + at) for at in range(DIALS.sessions)]
    assert all(bar.known_at == calendar.cutoff(bar.session) for bar in market.bars[:50])
    assert len(set(news.item_id)) == len(news) and isinstance(news, NewsBatch)


def test_the_truth_marks_breaking_headlines_and_the_details_beside_them(market: Written) -> None:
    truth = market.truth
    session = np.repeat(np.arange(DIALS.sessions), np.diff(truth.offset))
    own = truth.broken[session, truth.topic] & (truth.topic >= 0)
    assert np.array_equal(truth.matters, own)
    assert truth.matters[truth.kind == BREAKING].all() and not truth.matters[truth.kind == NOISE].any()


def test_features_reach_back_as_far_as_the_longest_delay_newest_first(market: Written) -> None:
    numbers = features(DIALS, market.truth)
    steps = market.truth.broken * market.truth.direction
    assert numbers.shape == (DIALS.sessions, 3 * DIALS.topics)
    assert np.array_equal(numbers[10, : DIALS.topics], steps[10])
    assert np.array_equal(numbers[10, 2 * DIALS.topics :], steps[8])
    assert not numbers[0, DIALS.topics :].any()
    assert features(DIALS, market.truth, 5).shape[1] == 5 * DIALS.topics


def test_a_regression_on_the_rules_own_features_gets_95_percent_of_the_best_gain() -> None:
    from sklearn.linear_model import LogisticRegression

    dials = Dials(sessions=8_000)
    made = write(replace(dials, noise=0, details=1))  # the rule alone: fewer headlines to write
    numbers, up = features(dials, made.truth)[:-1], moves(made) > 0
    fitted = LogisticRegression(C=0.1).fit(numbers[20:2_020], up[20:2_020])
    # Scored by the rule: what its forecast gets in the mean over the random part of the return.
    total = priced(dials, made.truth)[2_020:-1] * dials.step_bps / dials.random_bps
    p_up = np.array([0.5 + 0.5 * math.erf(x / math.sqrt(2)) for x in total])
    reached = np.where(fitted.predict(numbers[2_020:]), p_up, 1 - p_up).mean()
    assert (reached - 0.5) / (np.maximum(p_up, 1 - p_up).mean() - 0.5) > 0.95


def test_the_same_dials_give_the_same_bytes_and_another_seed_others() -> None:
    small = Dials(sessions=60)
    assert digest(write(small)) == digest(write(small))
    assert digest(write(small)) != digest(write(replace(small, seed=1)))


def test_other_words_need_another_name_of_the_set() -> None:
    words = "\n".join(write(Dials(sessions=50)).news.headline)
    assert (SET, hashlib.sha256(words.encode()).hexdigest()[:16]) == ("planted-1", "471f17883e7cf4a7")


@pytest.mark.parametrize(
    ("dial", "value"),
    [
        ("sessions", 0),
        ("topics", 99),
        ("broken", 7),
        ("broken", -1),
        ("details", 0),
        ("noise", 1_001),
        ("misleading", 1.5),
        ("toned", math.nan),
        ("step_bps", -1.0),
        ("random_bps", 0.0),
        ("delays", ()),
        ("delays", (11,)),
    ],
)
def test_a_dial_that_cannot_be_had_is_refused_by_name(dial: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"planted: {dial} cannot be had"):
        Dials(**{dial: value})  # type: ignore[arg-type]


def test_more_sessions_than_the_calendar_holds_are_refused() -> None:
    with pytest.raises(TimeError, match="outside the calendar"):
        write(Dials(sessions=20_000))


class WordTexts(TinyTexts):
    """Embeddings of a text as the mean of its words' own: what headlines share, their embeddings share."""

    width = 48

    def rows(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        words = [re.findall(r"\w+", self._texts[row].lower()) for row in index]
        drawn = [
            sum(np.random.default_rng(list(word.encode())).normal(size=self.width) for word in text) for text in words
        ]
        return np.array([row / np.linalg.norm(row) for row in drawn], dtype=np.float32)


def test_finin_reads_a_small_planted_market_and_averaging_its_headlines_does_not_suffice() -> None:
    easy = {"topics": 3, "broken": 1, "details": 2, "noise": 4, "delays": (0,), "random_bps": 20.0}
    dials = Dials(sessions=600 + VALIDATION + TEST + WARM_UP + 1, seed=1, **easy)  # type: ignore[arg-type]
    written = write(dials)
    on = Market(dials, held(days_of(written, WordTexts())), written.truth)

    def accuracy(**changes: object) -> float:
        config = replace(READER, lookback=1, learning_rate=3e-3, dropout=0.0, epochs=10, patience=10, **changes)  # type: ignore[arg-type]
        return fit(Job("", config, 1, train=600), on).accuracy

    assert accuracy() > 0.95
    assert 0.55 < accuracy(quantifier=False) < 0.85
    assert accuracy(news=False) == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
def test_finin_reaches_the_planted_rule_and_its_ablations_do_not(tmp_path: Path) -> None:
    """Minutes: 14 trainings on 2,000 sessions of MiniLM embeddings."""
    on = embedded(Dials(sessions=TRAIN + VALIDATION + TEST + WARM_UP + 1), tmp_path, workers=1)
    best = best_accuracy(on.dials)

    def fits(seeds: Sequence[int], **changes: object) -> list[Fitted]:
        return [fit(Job("", replace(READER, **changes), seed), on) for seed in seeds]  # type: ignore[arg-type]

    def gain(of: Sequence[Fitted]) -> float:
        """Share of the best reachable gain over a coin."""
        return (float(np.mean([one.accuracy for one in of])) - 0.5) / (best - 0.5)

    complete = fits(range(1, 6))
    assert gain(complete) >= 0.8
    assert np.mean([one.areas["weight breaking"] for one in complete]) >= 0.95
    assert np.mean([one.areas["influence both"] for one in complete]) >= 0.95
    assert gain(fits([1, 2], **ABLATIONS["averaged, hidden layer in the head"])) < 0.6
    assert abs(gain(fits([1, 2], text=False))) < 0.15
    assert abs(gain(fits([1, 2], news=False))) < 0.15
    short, middle = (gain(fits([1], lookback=lookback)) for lookback in (1, 2))
    assert max(short, middle) < gain(complete) - 0.15
