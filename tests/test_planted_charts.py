"""The second planted market: its rule needs chart and news together, and its best accuracy is the one computed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import date
import hashlib
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
import pytest

from benchmarks.planted_charts import (
    ALONE,
    RECENT,
    TEST,
    TOGETHER,
    TRAIN,
    VALIDATION,
    WARM_UP,
    Market,
    boosting,
    convnet,
    drawn,
    logistic,
    standard_error,
)
from feeds.planted import NOISE
from feeds.planted_charts import (
    COUNTS,
    OTHER,
    SET,
    SYMBOL,
    TOPIC,
    VOLUME_NOISE,
    Dials,
    Written,
    best_accuracy,
    features,
    topic_told_by_volume,
    write,
)
from feeds.planted_words import UP
from trader import parts
from trader.clock import Calendar, WallClock
from trader.errors import ConfigError, TimeError
from trader.store import MarketStore

DIALS = Dials(sessions=WARM_UP + TRAIN + VALIDATION + TEST + 1)
FEW_WORDS = {"topical": 1, "noise": 0}  # the rule alone: fewer headlines to write
LONG = Dials(sessions=9_000, missing=0.4, **FEW_WORDS)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def market() -> Market:
    return drawn(DIALS)


@pytest.fixture(scope="module")
def long() -> Written:
    return write(LONG)


def moves(written: Written) -> NDArray[np.float64]:
    """Log returns from each close to the next, (S − 1,)."""
    return np.diff(np.log([bar.close for bar in written.bars]))


def by_volume(dials: Dials, written: Written) -> NDArray[np.float64]:
    """What the volume alone says of the topic, −1 or +1 (S,)."""
    return np.where(np.log([bar.volume for bar in written.bars]) > math.log(1e6), 1.0, -1.0)


def hit_rate(signal: NDArray[np.float64], moved: NDArray[np.float64]) -> float:
    """Share of the moves whose direction the signal tells; a signal of 0 throws a coin."""
    return float(np.where(signal == 0, 0.5, np.sign(signal) == np.sign(moved)).mean())


def three_errors(count: int) -> float:
    """Three standard errors of a hit rate over so many moves."""
    return 1.5 / math.sqrt(count)


def digest(written: Written) -> str:
    news, truth = written.news, written.truth
    arrays = (news.known_at, news.sentiment, truth.mark, truth.topic, truth.missing, truth.kind, truth.offset)
    text = [repr(written.bars).encode(), "\n".join([*news.headline, *news.item_id]).encode()]
    return hashlib.sha256(b"\0".join([*text, *(array.tobytes() for array in arrays)])).hexdigest()


# The rule, and the best that can be had of it


def test_pattern_and_topic_together_tell_the_next_direction_as_often_as_is_computed(long: Written) -> None:
    product, moved = features(long.truth)[LONG.age : -1, 2], moves(long)[LONG.age :]
    assert hit_rate(product, moved) == pytest.approx(best_accuracy(LONG, 0), abs=three_errors(len(moved)))
    assert best_accuracy(Dials()) == pytest.approx(0.80, abs=0.005)


def test_pattern_alone_topic_alone_and_the_last_moves_tell_nothing(long: Written) -> None:
    (pattern, topic, _), moved = features(long.truth)[:-1].T, moves(long)
    assert hit_rate(pattern, moved) == pytest.approx(0.5, abs=three_errors(len(moved)))
    assert hit_rate(topic, moved) == pytest.approx(0.5, abs=three_errors(len(moved)))
    for lag in range(1, 21):
        assert hit_rate(moved[:-lag], moved[lag:]) == pytest.approx(0.5, abs=three_errors(len(moved)))


def test_moves_and_topics_of_the_last_sessions_do_not_give_the_pattern_away(long: Written) -> None:
    """Yesterday's move times yesterday's topic tells yesterday's pattern: which must not be today's."""
    (pattern, topic, _), moved = features(long.truth)[:-1].T, moves(long)
    assert hit_rate(moved * topic, pattern * 1.0 + (pattern == 0) * moved) > 0.7, "or there is nothing to give away"
    for lag in range(1, LONG.age):
        told = (moved * topic)[:-lag] * topic[lag:]
        assert hit_rate(told, moved[lag:]) == pytest.approx(0.5, abs=three_errors(len(moved)))
    for lag in range(LONG.age):  # nor do their marks, with the topic of the day
        mark = np.concatenate([np.zeros(lag), long.truth.mark])[: len(moved)]
        assert hit_rate(mark * topic, moved) == pytest.approx(0.5, abs=three_errors(len(moved)))


@pytest.mark.parametrize("missing", [0.0, 0.4, 1.0])
def test_a_reader_who_falls_back_on_volume_reaches_what_is_computed(missing: float, long: Written) -> None:
    chosen = np.random.default_rng(5).random(LONG.sessions) < missing
    pattern, topic, _ = features(long.truth).T
    told = pattern * np.where(chosen, by_volume(LONG, long), topic)
    moved = moves(long)[LONG.age :]
    reached = hit_rate(told[LONG.age : -1], moved)
    assert reached == pytest.approx(best_accuracy(LONG, missing), abs=three_errors(len(moved)))


@pytest.mark.parametrize(
    "changed",
    [
        Dials(),
        Dials(marked=0.3, step_bps=20),
        Dials(marked=1, trace=1, random_bps=80),
        Dials(trace=0, missing=0.4),
        Dials(step_bps=0),
    ],
)
@pytest.mark.parametrize("missing", [0.0, 0.4, 1.0])
def test_the_best_accuracy_agrees_with_a_simulation(changed: Dials, missing: float) -> None:
    """Of the rule alone, drawn 200,000 times without bars and headlines."""
    rng, draws = np.random.default_rng(1), 200_000
    pattern = rng.choice([-1, 1], draws) * (rng.random(draws) < changed.marked)
    topic = rng.choice([-1, 1], draws)
    volume = rng.normal(0, VOLUME_NOISE, draws) + VOLUME_NOISE * changed.trace * topic / 2
    moved = changed.step_bps * pattern * topic + rng.normal(0, changed.random_bps, draws)
    told = pattern * np.where(rng.random(draws) < missing, np.sign(volume), topic)
    assert hit_rate(told, moved) == pytest.approx(best_accuracy(changed, missing), abs=0.005)


def test_the_best_accuracy_is_that_of_the_dials_share_of_missing_days() -> None:
    assert best_accuracy(LONG) == best_accuracy(LONG, 0.4)
    assert best_accuracy(LONG, 0) > best_accuracy(LONG) > best_accuracy(LONG, 1) > 0.74
    assert best_accuracy(Dials(trace=0), 1) == best_accuracy(Dials(marked=0)) == best_accuracy(Dials(step_bps=0)) == 0.5


def test_volume_tells_the_topic_nine_days_in_ten_also_as_the_window_gives_it(market: Market, long: Written) -> None:
    right = float((by_volume(LONG, long) == np.where(long.truth.topic, 1, -1)).mean())
    assert right == pytest.approx(topic_told_by_volume(LONG), abs=three_errors(LONG.sessions))
    topic, feature = market.written.truth.topic[WARM_UP:], market.volume[WARM_UP:, 0]
    assert ((feature > 0) == topic).mean() == pytest.approx(0.9, abs=0.02)


def test_a_regression_on_the_rules_own_features_gets_95_percent_of_the_best_gain(long: Written) -> None:
    from sklearn.linear_model import LogisticRegression

    numbers, up = features(long.truth)[:-1], moves(long) > 0
    fitted = LogisticRegression(C=0.1).fit(numbers[20:2_020], up[20:2_020])
    # Scored by the rule: what its forecast gets in the mean over the random part of the return.
    right = 0.5 + 0.5 * math.erf(LONG.step_bps / LONG.random_bps / math.sqrt(2))
    guess, product = np.where(fitted.predict(numbers[2_020:]), 1, -1), numbers[2_020:, 2]
    reached = np.where(product == 0, 0.5, np.where(guess == product, right, 1 - right)).mean()
    best = 0.5 + (right - 0.5) * np.abs(product).mean()
    assert (reached - 0.5) / (best - 0.5) > 0.95


# What is seen of it


def test_a_mark_is_a_long_shadow_and_moves_neither_its_own_close_nor_the_next(market: Market) -> None:
    mark = market.written.truth.mark
    above, below, _, moved = market.shapes[:, -4:].T
    assert np.median(above[mark > 0]) > 5 * np.median(above[mark <= 0])
    assert np.median(below[mark < 0]) > 5 * np.median(below[mark >= 0])
    assert np.abs(mark).mean() == pytest.approx(DIALS.marked, abs=0.02)
    for lag in (0, 1):
        assert abs(np.corrcoef(mark[: len(mark) - lag], moved[lag:])[0, 1]) < 3.5 / math.sqrt(len(mark))


@pytest.mark.parametrize("age", [5, 19, 59])
def test_the_pattern_is_the_mark_of_its_age(age: int) -> None:
    truth = write(Dials(sessions=300, age=age, **FEW_WORDS)).truth  # type: ignore[arg-type]
    assert np.array_equal(truth.pattern[age:], truth.mark[:-age])
    assert not truth.pattern[:age].any() and truth.pattern.any()


def test_the_words_name_the_topic_on_its_days_and_nothing_else_does(market: Market) -> None:
    truth, said = market.written.truth, market.written.news.headline
    names = np.array([COUNTS in text.lower() for text in said])
    assert np.array_equal(names, truth.kind == TOPIC)
    assert np.array_equal(market.told[:, 0] > 0, truth.topic)
    per_day = {tuple(sorted(Counter(row).items())) for row in truth.kind.reshape(len(truth.topic), -1).tolist()}
    assert per_day == {((NOISE, DIALS.noise), (kind, DIALS.topical)) for kind in (OTHER, TOPIC)}
    assert truth.topic.mean() == pytest.approx(0.5, abs=three_errors(len(truth.topic)))
    assert len(set(said)) > 1_000 and len({text for text, one in zip(said, names, strict=True) if one}) > 100


def test_what_is_said_of_an_industry_and_its_sentiment_know_nothing(market: Market) -> None:
    written, truth = market.written, market.written.truth
    good = np.array([any(phrase in text for phrase in UP) for text in written.news.headline])[truth.kind == TOPIC]
    assert good.mean() == pytest.approx(0.5, abs=three_errors(len(good)))
    tone = (written.news.sentiment[:, 2] - written.news.sentiment[:, 0]).reshape(DIALS.sessions, -1).sum(axis=1)
    allowed = 3.5 / math.sqrt(len(tone))
    for other in (truth.topic, truth.pattern, np.append(moves(written), 0)):
        assert abs(np.corrcoef(tone, other)[0, 1]) < allowed


def test_headlines_belong_to_their_sessions_oldest_first(market: Market) -> None:
    calendar, written = Calendar(), market.written
    assert (np.diff(written.news.known_at) >= 0).all()
    of_session = calendar.index_at(written.news.known_at) - calendar.index(DIALS.first)
    assert np.array_equal(np.bincount(of_session), np.diff(written.truth.offset))
    assert len(set(written.news.item_id)) == len(written.news)


# Each kind of input alone, and two together


@pytest.mark.parametrize("name", ["numbers", "shapes", "words"])
def test_one_kind_of_input_alone_stays_a_coin(name: str, market: Market) -> None:
    x = ALONE[name](market)
    for reached in (logistic(x, market.up), boosting(x, market.up)):
        assert reached == pytest.approx(0.5, abs=2 * standard_error(1))


def test_the_numbers_are_those_of_the_last_five_sessions(market: Market) -> None:
    assert market.numbers.shape == (DIALS.sessions, RECENT * 6)
    assert np.array_equal(market.numbers[100].reshape(RECENT, 6), market.days.market[96:101])


def test_two_kinds_together_are_far_from_a_coin(market: Market) -> None:
    for name, missing in (("shapes × topic told", 0.0), ("shapes × volume", 1.0)):
        x, best = TOGETHER[name](market), best_accuracy(DIALS, missing)
        assert logistic(x, market.up) - 0.5 > 0.7 * (best - 0.5)
        assert boosting(x, market.up) - 0.5 > 0.7 * (best - 0.5)


@pytest.mark.slow
def test_a_small_convnet_needs_the_words_beside_the_chart(market: Market) -> None:
    """Minutes: three trainings on 2,000 charts."""
    nothing = np.zeros((DIALS.sessions, 1))
    assert convnet(market.pixels, nothing, market.up) == pytest.approx(0.5, abs=2 * standard_error(1))
    best = best_accuracy(DIALS) - 0.5
    assert convnet(market.pixels, market.told, market.up) - 0.5 > 0.85 * best
    assert convnet(market.pixels, market.words, market.up) - 0.5 > 0.6 * best


# Missing headlines, bytes, names and borders


def test_missing_takes_headlines_away_and_changes_nothing_else() -> None:
    whole, parted = (write(Dials(sessions=400, missing=share)) for share in (0.0, 0.4))
    missing = parted.truth.missing
    assert missing.mean() == pytest.approx(0.4, abs=0.08) and not whole.truth.missing.any()
    assert whole.bars == parted.bars and np.array_equal(whole.truth.topic, parted.truth.topic)
    assert not np.diff(parted.truth.offset)[missing].any()
    kept = np.flatnonzero(np.repeat(~missing, np.diff(whole.truth.offset)))
    assert [whole.news.headline[row] for row in kept] == parted.news.headline
    assert [whole.news.item_id[row] for row in kept] == parted.news.item_id
    assert np.array_equal(whole.news.sentiment[kept], parted.news.sentiment)
    assert np.array_equal(whole.truth.kind[kept], parted.truth.kind)


def test_missing_is_drawn_apart_from_the_rule(long: Written) -> None:
    truth = long.truth
    for other in (truth.topic, truth.pattern, np.append(moves(long), 0), truth.missing[::-1]):
        assert abs(np.corrcoef(truth.missing, other)[0, 1]) < 3.5 / math.sqrt(len(truth.missing))


def test_a_market_without_any_headline_can_be_drawn() -> None:
    silent = drawn(Dials(sessions=50, missing=1.0))
    assert len(silent.written.news) == 0 and not silent.told.any()
    assert np.diff(silent.days.news_offset).sum() == 0


def test_the_same_dials_give_the_same_bytes_and_another_seed_others() -> None:
    small = Dials(sessions=60, missing=0.4)
    assert digest(write(small)) == digest(write(small))
    assert digest(write(small)) != digest(write(replace(small, seed=1)))


def test_other_words_need_another_name_of_the_set() -> None:
    words = "\n".join(write(Dials(sessions=50)).news.headline)
    assert (SET, hashlib.sha256(words.encode()).hexdigest()[:16]) == ("planted_charts-1", "f51bd654106f0540")


@pytest.mark.parametrize(
    ("dial", "value"),
    [
        ("sessions", 0),
        ("marked", 1.1),
        ("age", 4),
        ("age", 60),
        ("shadow_bps", -1.0),
        ("topics", 1),
        ("topics", 99),
        ("topical", 0),
        ("noise", 1_001),
        ("missing", math.nan),
        ("trace", -0.1),
        ("step_bps", 1_001.0),
        ("random_bps", 0.0),
    ],
)
def test_a_dial_that_cannot_be_had_is_refused_by_name(dial: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"planted_charts: {dial} cannot be had"):
        Dials(**{dial: value})  # type: ignore[arg-type]


def test_more_sessions_than_the_calendar_holds_are_refused() -> None:
    with pytest.raises(TimeError, match="outside the calendar"):
        write(Dials(sessions=20_000))


def test_the_market_is_stocked_by_its_name_once(tmp_path: Path) -> None:
    with MarketStore.open(tmp_path / "market.db") as store:
        assert parts.stock(store, SYMBOL, SYMBOL) == SET
        assert parts.stock(store, SYMBOL, SYMBOL) == SET
        bars = store.as_of(WallClock().now()).bars(SYMBOL, Dials().first, date(2010, 1, 1))
        assert len(bars) == Dials().sessions and list(store.symbols()) == [SYMBOL] and list(store.names()) == [SET]
    assert "chart" in parts.market_text(SYMBOL) and "chart" not in parts.market_text("planted")
