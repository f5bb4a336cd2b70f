"""The tone of days: what each number is, what a quiet day says, and that no number looks further than it may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
import pytest

from models.base import Days
from models.naf import Naf, NafConfig, frequencies_and_returns
from models.sentiments import Sentiments, SentimentsConfig
from models.tone import Windows, frequencies, indicators, labels, prices_and_indicators, tone, trailing_mean
from tests.spoken import random_days, spoken
from trader.errors import ModelError

GOOD, BAD, FLAT = [0.0, 0.4, 0.6], [0.2, 0.8, 0.0], [0.0, 1.0, 0.0]  # tones 0.6, −0.2, 0
NEGATIVE, NEUTRAL, POSITIVE, BALANCE, SHARE, SPREAD, ITEMS, LOG = range(8)


def close(got: NDArray[np.float64], expected: Sequence[float]) -> None:
    np.testing.assert_allclose(got, expected, atol=1e-7)


def test_a_day_is_counted_by_the_sign_of_its_items_tones() -> None:
    said = tone(spoken([GOOD, GOOD, BAD, FLAT], [], [BAD]), range(3))
    close(said.items, [4, 0, 1])
    close(said.positive, [2, 0, 0])
    close(said.negative, [1, 0, 1])
    close(said.scores[0], [0.05, 0.65, 0.3])
    close(said.mean, [0.25, 0, -0.2])
    close(said.spread, [float(np.std([0.6, 0.6, -0.2, 0])), 0, 0])


def test_indicators_are_eight_numbers_and_their_changes_against_the_trailing_mean() -> None:
    made = indicators(spoken([BAD], [GOOD, GOOD, BAD, FLAT]), range(1, 2), trailing=2)
    assert made.shape == (1, 16)
    now = np.array([0.05, 0.65, 0.3, 1 / 3, 0.5, np.array([0.6, 0.6, -0.2, 0]).std(), 4, np.log(5)])
    before = np.array([0.2, 0.8, 0.0, -1.0, 0.0, 0.0, 1, np.log(2)])
    close(made[0, :8], now.tolist())
    close(made[0, 8:], ((now - before) / 2).tolist())


def test_a_day_without_news_has_its_trailing_mean_and_no_change_but_a_number_of_none() -> None:
    quiet = indicators(spoken([GOOD], [BAD], []), range(2, 3), trailing=3)[0]
    close(quiet[[NEGATIVE, POSITIVE, SHARE]], [0.1, 0.3, 0.5])  # the means of the two days that said something
    close(quiet[[8 + NEGATIVE, 8 + NEUTRAL, 8 + POSITIVE, 8 + BALANCE, 8 + SHARE, 8 + SPREAD]], [0] * 6)
    close(quiet[[ITEMS, LOG, 8 + ITEMS]], [0, 0, -2 / 3])
    close(indicators(spoken([], [], []), range(2, 3), trailing=3)[0], [0] * 16)


def test_items_that_say_neither_leave_the_balance_at_zero() -> None:
    assert indicators(spoken([FLAT, FLAT]), range(1), trailing=1)[0, BALANCE] == 0


def test_frequencies_are_numbers_abnormal_numbers_and_their_products_with_the_mean_tone() -> None:
    made = frequencies(spoken([GOOD], [GOOD, BAD, BAD], [GOOD, GOOD, GOOD, BAD]), range(2, 3), trailing=3)[0]
    mean = (3 * 0.6 - 0.2) / 4
    abnormal = 3 / (5 / 3)
    close(made[:4], [3, abnormal, 3 * mean, abnormal * mean])
    close(made[4:], [1, 1, mean, mean])


def test_where_there_never_was_news_its_frequency_is_the_usual_one() -> None:
    close(frequencies(spoken([], [], []), range(2, 3), trailing=3)[0], [0, 1, 0, 0] * 2)
    close(frequencies(spoken([], [], [GOOD]), range(2, 3), trailing=3)[0], [1, 3, 0.6, 1.8, 0, 1, 0, 0.6])


@pytest.mark.parametrize("measure", [indicators, frequencies, prices_and_indicators, frequencies_and_returns])
def test_a_days_numbers_need_its_trailing_days_alone_bit_for_bit(measure: object) -> None:
    assert callable(measure)
    days, trailing = random_days(), 7
    together = measure(days, range(trailing - 1, 200), trailing)
    assert len(together) == 200 - trailing + 1 and np.isfinite(together).all()
    for day in range(trailing - 1, 200, 3):
        alone = measure(days.between(day - trailing + 1, day + 1), range(trailing - 1, trailing), trailing)
        assert np.array_equal(alone[0], together[day - trailing + 1])


def test_a_trailing_mean_of_no_rows_that_count_is_zero() -> None:
    some = np.array([True, False, False])
    assert trailing_mean(np.array([[2.0], [5.0], [7.0]]), 2, some).tolist() == [[2.0], [0.0]]


def test_a_score_that_is_no_number_is_refused_by_day() -> None:
    with pytest.raises(ModelError, match=r"day 1: a headline's sentiment is not a number"):
        tone(spoken([GOOD], [BAD, [np.nan] * 3]), range(2))


def test_a_bar_that_is_no_number_is_refused_by_day_and_matters_only_inside_the_window() -> None:
    days = random_days(40)
    days.market[20] = np.nan
    windows = Windows.of(frequencies_and_returns, 3, 10, days, range(25, 40))  # trailing means reach back over day 20
    with pytest.raises(ModelError, match=r"day 20: a market number is not a number"):
        windows(days, [22])
    assert np.isfinite(windows(days, [23])).all()


def test_windows_are_laid_oldest_day_first_in_units_of_training() -> None:
    days, train = random_days(60), range(11, 51)
    windows = Windows.of(prices_and_indicators, 3, 10, days, train)
    assert windows.lookback == 12
    numbers = prices_and_indicators(days, range(11, 51), 10)
    standard = (numbers - numbers.mean(axis=0)) / np.where(numbers.std(axis=0) > 1e-6, numbers.std(axis=0), 1)
    laid = windows(days, [40, 20])
    assert laid.shape == (2, 3, 22) and laid.dtype == np.float32
    np.testing.assert_allclose(laid[0], standard[27:30].clip(-5, 5), atol=1e-4)
    np.testing.assert_allclose(laid[1], standard[7:10].clip(-5, 5), atol=1e-4)


def test_a_crash_is_cut_at_five_standard_deviations() -> None:
    days = random_days(60)
    windows = Windows.of(frequencies_and_returns, 1, 10, days, range(10, 50))
    days.market[55] = 1e6
    assert windows(days, [55]).max() == 5


def test_decisions_without_their_days_are_refused_and_the_trailing_ones_are_named() -> None:
    days = random_days(60)
    with pytest.raises(ModelError, match=r"lacks its 12 days, 3 and 9 for trailing means \(got days 10–49, expected"):
        Windows.of(frequencies, 3, 10, days, range(10, 50))
    windows = Windows.of(frequencies, 3, 10, days, range(11, 50))
    for at in ([10], [60]):
        with pytest.raises(ModelError, match="expected days 11–59"):
            windows(days, at)
    with pytest.raises(ModelError, match="no decisions"):
        windows(days, [])


def test_days_with_other_market_features_than_those_of_training_are_refused() -> None:
    days = random_days(60)
    windows = Windows.of(prices_and_indicators, 3, 10, days, range(11, 50))
    with pytest.raises(ModelError, match=r"other numbers \(got 19, expected 22\)"):
        windows(replace(days, market=days.market[:, :3]), [30])


def test_the_scale_of_windows_survives_as_arrays_and_others_are_refused() -> None:
    days = random_days(60)
    windows = Windows.of(frequencies, 3, 10, days, range(11, 50))
    kept = windows.arrays()
    again = Windows.from_arrays(frequencies, 3, 10, kept)
    assert np.array_equal(again(days, [30]), windows(days, [30]))
    for wrong in (
        {},
        kept | {"numbers.std": np.ones(3, np.float32)},
        {n: a.astype(np.float64) for n, a in kept.items()},
    ):
        with pytest.raises(ValueError, match="weights do not fit"):
            Windows.from_arrays(frequencies, 3, 10, wrong)


def test_labels_that_are_not_known_yet_are_refused() -> None:
    days = random_days(10)
    assert labels(days, range(2, 5)).tolist() == [0, 1, 0]
    days.next_return[4] = np.nan
    with pytest.raises(ModelError, match="days 2–4: a decision has no label yet"):
        labels(days, range(2, 5))


def ruled(up: NDArray[np.bool_], days: Days) -> Days:
    """Return the days with tomorrow up where ``up`` says so."""
    return replace(days, next_return=np.where(up, 0.01, -0.01))


def test_naf_hears_a_number_out_of_the_usual_where_the_mean_tone_is_silent() -> None:
    rng = np.random.default_rng(0)
    level = np.repeat(rng.integers(4, 20, 20), 25)  # the usual number wanders
    many = rng.random(500) < 0.5
    pairs = np.where(many, level * 3 // 2, level // 2)
    days = ruled(many, spoken(*([[0.5, 0.0, 0.5 + 1e-3], [0.5 + 1e-3, 0.0, 0.5]] * n for n in pairs)))
    model = Naf(NafConfig(lookback=1, trailing=20, epochs=25))
    model.fit(days, range(20, 320), range(323, 373), seed=1)
    right = (model.predict(days, range(376, 500)).p_up > 0.5) == many[376:]
    assert right.mean() > 0.8


def test_sentiments_reads_prices_beside_the_tone() -> None:
    rng = np.random.default_rng(1)
    days = random_days(500, seed=1)
    days.market[:] = rng.normal(0, 0.01, (500, 6))
    days = ruled(days.market[:, 5] > 0, days)
    model = Sentiments(SentimentsConfig(lookback=1, trailing=5, learning_rate=3e-3, epochs=20))
    model.fit(days, range(20, 320), range(323, 373), seed=1)
    right = (model.predict(days, range(376, 500)).p_up > 0.5) == (days.label[376:] > 0.5)
    assert right.mean() > 0.8
