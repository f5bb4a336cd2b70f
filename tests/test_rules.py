"""Rules that learn nothing: what they read of a day, and which side they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from models.base import Days, Model
from models.fitting import InMemory
from models.panel import Part
from models.rules import AlwaysBuy, MeanReturn, ToneSign, ToneSignConfig
from trader.errors import ConfigError, ModelError

GOOD, BAD, UNKNOWN = (0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)


def days_of(*headlines: Sequence[tuple[float, float, float]]) -> Days:
    """Return one day for each list of scored headlines; tomorrow rises after even days."""
    counts = [len(day) for day in headlines]
    S, M = len(counts), sum(counts)
    return Days(
        market=np.zeros((S, 6), np.float32),
        next_return=np.where(np.arange(S) % 2, -0.01, 0.01),
        news_offset=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        news_text=np.zeros(M, np.int64),
        news_sentiment=np.array([one for day in headlines for one in day], np.float32).reshape(M, 3),
        market_text=0,
        texts=InMemory(np.zeros((1, 8), np.float32)),
    )


def sides(days: Days, lookback: int, on_zero: str = "buy") -> list[float]:
    rule = ToneSign(ToneSignConfig(lookback=lookback, on_zero=on_zero))
    return [float(p) for p in rule.predict(days, range(lookback - 1, len(days))).p_up]


def test_always_buy_buys_on_every_day() -> None:
    days = days_of(*[[BAD]] * 6)
    assert AlwaysBuy().predict(days, range(6)).p_up.tolist() == [1.0] * 6
    report = AlwaysBuy().fit(days, range(2), range(2, 6), seed=0)
    assert report.validation_accuracy == 0.5 and report.epochs == 0


def test_a_day_goes_the_way_of_its_headlines_and_their_number_does_not_count_between_days() -> None:
    days = days_of([GOOD], [BAD], [GOOD, GOOD, BAD], [UNKNOWN, BAD, UNKNOWN])
    assert sides(days, 1) == [1.0, 0.0, 1.0, 0.0]
    # Two days in turn: 1 − 1, −1 + 1/3, 1/3 − 1/3. One good headline of one weighs as much as three bad of three.
    assert sides(days, 2) == [1.0, 0.0, 1.0]
    assert sides(days, 2, "out") == [0.5, 0.0, 0.5]
    assert sides(days_of([GOOD], [BAD, BAD, BAD]), 2, "out") == [0.5]


def test_days_without_news_and_answers_of_unknown_keep_the_markets_side_or_stay_out() -> None:
    days = days_of([], [UNKNOWN, UNKNOWN], [GOOD, BAD])
    assert sides(days, 1) == [1.0, 1.0, 1.0]
    assert sides(days, 1, "out") == [0.5, 0.5, 0.5]


def test_averages_that_cancel_are_a_tie_whatever_floating_point_makes_of_them() -> None:
    third, tenth = [GOOD, UNKNOWN, UNKNOWN], [GOOD] + [UNKNOWN] * 9
    days = days_of(tenth, tenth, tenth, [BAD] * 3 + [UNKNOWN] * 7, third, third, [BAD, BAD, UNKNOWN])
    assert 0.1 + 0.1 + 0.1 - 0.3 != 0
    assert sides(days, 4, "out")[0] == 0.5
    assert sides(days, 3, "out")[-1] == 0.5


def test_a_headline_scores_by_which_of_good_and_bad_is_likelier_not_by_how_much() -> None:
    days = days_of([(0.1, 0.0, 0.9), (0.34, 0.33, 0.33), (0.34, 0.33, 0.33)])
    assert sides(days, 1) == [0.0]


def test_a_decision_reads_its_lookback_days_alone_and_no_label() -> None:
    rng = np.random.default_rng(0)
    kinds = [GOOD, BAD, UNKNOWN]
    days = days_of(*[[kinds[k] for k in rng.integers(3, size=rng.integers(3))] for _ in range(60)])
    blind = replace(days, next_return=np.full(60, np.nan))
    rule = ToneSign(ToneSignConfig(lookback=5, on_zero="out"))
    together = rule.predict(blind, range(4, 60)).p_up
    assert set(together) == {0.0, 0.5, 1.0}
    for day in (4, 17, 59):
        assert rule.predict(blind.between(day - 4, day + 1), [4]).p_up[0] == together[day - 4]
    assert rule.predict(blind, [59, 4, 17]).p_up.tolist() == together[[55, 0, 13]].tolist()


def test_it_beats_a_coin_where_tomorrow_follows_the_headlines() -> None:
    rng = np.random.default_rng(1)
    up = rng.random(200) < 0.5
    days = days_of(*[[GOOD if rng.random() < (0.7 if u else 0.3) else BAD for _ in range(9)] for u in up])
    days = replace(days, next_return=np.where(up, 0.01, -0.01))
    rule = ToneSign(ToneSignConfig(lookback=1))
    assert rule.fit(days, range(100), range(100, 200), seed=0).validation_accuracy > 0.8


@pytest.mark.parametrize("rule", [AlwaysBuy(3), ToneSign(ToneSignConfig(lookback=3))])
def test_what_cannot_be_decided_is_refused_in_words(rule: Model) -> None:
    days = days_of(*[[GOOD]] * 6)
    with pytest.raises(ModelError, match=r"lacks its 3 days .*days 2–5"):
        rule.predict(days, [1])
    with pytest.raises(ModelError, match="lacks its 3 days"):
        rule.predict(days, [6])
    with pytest.raises(ModelError, match="no decisions"):
        rule.predict(days, [])
    with pytest.raises(ModelError, match="no label yet"):
        rule.fit(replace(days, next_return=np.full(6, np.nan)), range(2, 4), range(4, 6), seed=0)
    assert rule.weights() == {}
    rule.load({})
    with pytest.raises(ValueError, match="a rule has none"):
        rule.load({"slope": np.zeros(1)})


def test_settings_and_scores_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ConfigError, match="no such choice"):
        ToneSignConfig(on_zero="sell")
    with pytest.raises(ConfigError, match="lookback is too small"):
        ToneSignConfig(lookback=0)
    with pytest.raises(ConfigError, match="lookback is too small"):
        AlwaysBuy(0)
    with pytest.raises(ModelError, match=r"day 1: a headline's sentiment is not a number"):
        sides(days_of([GOOD], [(np.nan, 0.0, 1.0)]), 1)


def test_the_training_mean_is_that_of_the_training_days_alone_and_says_the_same_every_day() -> None:
    days = days_of(*[[GOOD]] * 12)
    days.next_return[:6] = [0.03, 0.01, -0.01, 0.01, 0.02, 0.0]
    model = MeanReturn(lookback=2)
    report = model.fit(days, range(1, 6), range(6, 10), seed=0)
    said = model.predict(replace(days, next_return=np.full(12, np.nan)), range(6, 12))
    assert said.expected_return is not None and said.expected_return.tolist() == pytest.approx([0.006] * 6)
    assert said.p_up.tolist() == pytest.approx([4 / 7] * 6)  # three of five rose, and one more of each kind
    assert report.validation_accuracy == 0.5
    days.next_return[6:] = 0.5  # what comes later changes nothing
    again = MeanReturn(lookback=2)
    again.fit(days, range(1, 6), range(6, 10), seed=1)
    assert np.array_equal(again.weights()["means"], model.weights()["means"])


def test_the_training_mean_of_many_symbols_is_that_of_all_their_training_decisions() -> None:
    few, many = days_of(*[[GOOD]] * 4), days_of(*[[GOOD]] * 10)
    few.next_return[:], many.next_return[:] = 0.04, -0.01
    model = MeanReturn()
    model.fit_panel([Part(few, range(2), range(2, 4)), Part(many, range(6), range(6, 8))], seed=0)
    assert model.weights()["means"].tolist() == pytest.approx([3 / 10, (2 * 0.04 - 6 * 0.01) / 8])


def test_the_training_mean_is_kept_and_read_again_and_says_nothing_before_it_is_taken() -> None:
    days, model = days_of(*[[GOOD]] * 8), MeanReturn()
    with pytest.raises(ModelError, match="have not been taken"):
        model.predict(days, [3])
    with pytest.raises(ModelError, match="have not been taken"):
        model.weights()
    model.fit(days, range(4), range(4, 6), seed=0)
    again = MeanReturn()
    again.load(model.weights())
    assert np.array_equal(again.predict(days, [6, 7]).p_up, model.predict(days, [6, 7]).p_up)
    with pytest.raises(ValueError, match="expected two means"):
        again.load({"means": np.zeros(3)})
    with pytest.raises(ConfigError, match="lookback is too small"):
        MeanReturn(lookback=0)
    with pytest.raises(ModelError, match="lacks its 2 days"):
        late = MeanReturn(lookback=2)
        late.load(model.weights())
        late.predict(days, [0])
