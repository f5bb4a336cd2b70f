"""The rolling window: what a model sees of each session, and what it cannot see."""

from __future__ import annotations

from dataclasses import replace
import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from tests import builders
from tests.builders import CALENDAR
from trader.errors import NoData, TimeError
from trader.events import Bar, BarClosed, NewsArrived, NewsBatch, to_us
from trader.window import Window

DAYS = builders.sessions(40)
BARS = builders.bars(DAYS)


def a_window(**how: object) -> Window:
    return Window(CALENDAR, builders.TinyTexts(), builders.TinyScorer(), market_text="a toy market", **how)  # type: ignore[arg-type]


def news_of(session: object, *texts: str) -> NewsArrived:
    close = CALENDAR.cutoff(session)  # type: ignore[arg-type]
    return NewsArrived(session=session, at=close, news=builders.batch([to_us(close)] * len(texts), texts))  # type: ignore[arg-type]


def closed(bar: Bar) -> BarClosed:
    return BarClosed(session=bar.session, at=bar.known_at, bar=bar)


def filled(bars: list[Bar] = BARS, **how: object) -> Window:
    """Return a window with one headline a session."""
    window = a_window(**how)
    for at, bar in enumerate(bars):
        window.update(news_of(bar.session, f"oil rise on day {at}"))
        window.update(closed(bar))
    return window


def test_prices_are_logs_over_the_previous_close() -> None:
    market = filled().days(0, len(BARS)).market
    before, bar = BARS[29].close, BARS[30]
    expected = [math.log(price / before) for price in (bar.open, bar.high, bar.low, bar.close)]
    assert market[30, :4] == pytest.approx(expected, rel=1e-6)


def test_the_adjusted_return_comes_from_adjusted_closes_alone() -> None:
    halved = [replace(bar, adj_close=bar.close * (0.5 if at < 30 else 1)) for at, bar in enumerate(BARS)]
    market = filled(halved).days(0, len(BARS)).market
    assert market[30, 4] == pytest.approx(math.log(BARS[30].close / (BARS[29].close / 2)), rel=1e-6)
    assert market[30, 3] == pytest.approx(math.log(BARS[30].close / BARS[29].close), rel=1e-6)


def test_volume_is_its_log_minus_the_mean_of_twenty_sessions_with_the_present() -> None:
    market = filled().days(0, len(BARS)).market
    logs = [math.log1p(bar.volume) for bar in BARS]
    assert market[30, 5] == pytest.approx(logs[30] - np.mean(logs[11:31]), rel=1e-5)
    assert market[5, 5] == pytest.approx(logs[5] - np.mean(logs[:6]), rel=1e-5), "fewer where there are fewer"


def test_without_volume_the_feature_is_zero() -> None:
    silent = [replace(bar, volume=0.0) for bar in BARS]
    assert (filled(silent).days(0, len(BARS)).market[:, 5] == 0).all()


def test_the_first_bar_has_no_predecessor_and_so_no_features() -> None:
    assert not filled().days(0, 1).market.any()


def test_levels_are_the_raw_prices_and_volume() -> None:
    bar = BARS[7]
    levels = (bar.open, bar.high, bar.low, bar.close, bar.adj_close, bar.volume)
    assert filled(levels=True).days(7, 8).market[0] == pytest.approx(levels, rel=1e-6)


def test_later_bars_change_no_row_that_is_there() -> None:
    short, long = filled(BARS[:25]).days(0, 25), filled().days(0, 25)
    assert np.array_equal(short.market, long.market)
    assert np.array_equal(short.next_return[:-1], long.next_return[:-1])


def test_the_last_day_has_no_label_even_where_the_window_knows_it() -> None:
    days = filled().days(3, 20)
    assert math.isnan(days.next_return[-1]) and math.isnan(days.label[-1])
    expected = [BARS[at + 1].close / BARS[at].close - 1 for at in range(3, 19)]
    assert days.next_return[:-1] == pytest.approx(expected)


def test_learnable_days_have_every_label_and_nothing_of_the_day_after() -> None:
    window = filled()
    days = window.learnable(3, 20)
    assert len(days) == 17
    assert days.next_return[-1] == pytest.approx(BARS[20].close / BARS[19].close - 1)
    assert len(days.news_text) == 17
    assert len(days.news_offset) == 18
    with pytest.raises(NoData, match="does not hold"):
        window.learnable(3, len(BARS))  # the label of the last session is not known


def test_news_of_a_session_without_a_bar_is_read_with_the_next_one() -> None:
    window = a_window()
    window.update(news_of(DAYS[0], "oil rise"))
    window.update(closed(BARS[0]))
    window.update(news_of(DAYS[1], "banks fall"))  # no bar
    window.update(news_of(DAYS[2], "rates stall"))
    window.update(closed(BARS[2]))
    assert window.sessions == [DAYS[0], DAYS[2]]
    assert window.headlines == [["oil rise"], ["banks fall", "rates stall"]]
    days = window.days(0, 2)
    assert days.news_offset.tolist() == [0, 1, 3]
    assert days.market[1, 3] == pytest.approx(math.log(BARS[2].close / BARS[0].close), rel=1e-5)


def test_headlines_without_scores_get_them_and_stated_ones_stay() -> None:
    window = a_window()
    stated = builders.batch([to_us(CALENDAR.cutoff(DAYS[0]))] * 2, ["oil rise", "banks fall"])
    stated.sentiment[1] = (0.2, 0.3, 0.5)
    window.update(NewsArrived(session=DAYS[0], at=CALENDAR.cutoff(DAYS[0]), news=stated))
    window.update(closed(BARS[0]))
    assert window.days(0, 1).news_sentiment == pytest.approx(np.array([[0, 0.2, 0.8], [0.2, 0.3, 0.5]]))


def test_disorder_is_refused() -> None:
    window = filled(BARS[:5])
    with pytest.raises(TimeError, match="bars out of order"):
        window.update(closed(BARS[4]))
    with pytest.raises(TimeError, match="news out of order"):
        window.update(news_of(DAYS[3], "old"))
    assert len(window) == 5


def test_sessions_that_are_not_held_are_refused() -> None:
    window = filled(BARS[:5])
    for first, stop in ((-1, 3), (2, 2), (0, 6)):
        with pytest.raises(NoData, match="does not hold"):
            window.days(first, stop)
    with pytest.raises(NoData, match="no bar of this session"):
        window.position(DAYS[7])
    assert window.position(DAYS[3]) == 3


def _kept(texts: list[str], cap: int, **how: object) -> list[str]:
    window = a_window(headlines_a_day=cap, **how)
    window.update(news_of(DAYS[0], *texts))
    window.update(closed(BARS[0]))
    return window.headlines[0]


HEADLINES = st.lists(st.text("abcdef ", min_size=1).filter(str.strip), min_size=1, max_size=12, unique=True)


@settings(max_examples=40, deadline=None)
@given(texts=HEADLINES, cap=st.integers(1, 8), data=st.data())
def test_the_cap_chooses_by_text_whatever_the_order(texts: list[str], cap: int, data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(texts))
    kept = _kept(texts, cap)
    assert len(kept) == min(cap, len(texts))
    assert kept == [text for text in texts if text in kept], "their order stays"
    assert set(_kept(shuffled, cap)) == set(kept)


def test_preferred_words_come_first_in_any_case_and_the_hash_decides_among_them() -> None:
    texts = ["Oil rises", "Wall Street ends down", "Chips fall", "US STOCKS-S&P slips", "Jobs report due"]
    words = ("wall st", "US stocks")
    first = {"Wall Street ends down", "US STOCKS-S&P slips"}
    assert set(_kept(texts, 1, prefer=words)) < first
    assert set(_kept(texts, 2, prefer=words)) == first
    assert first < set(_kept(texts, 3, prefer=words))


def test_scores_of_the_source_are_left_out_where_another_scorer_is_asked_for() -> None:
    news = news_of(DAYS[0], "oil rise")
    news.news.sentiment[:] = (0.2, 0.3, 0.5)
    for rescore, expected in ((False, (0.2, 0.3, 0.5)), (True, builders.TinyScorer().scores(["oil rise"])[0])):
        window = a_window(rescore=rescore)
        window.update(news)
        window.update(closed(BARS[0]))
        assert window.days(0, 1).news_sentiment[0].tolist() == pytest.approx(list(expected))


@settings(max_examples=40, deadline=None)
@given(texts=HEADLINES, cap=st.integers(1, 8))
def test_a_headline_that_was_kept_stays_when_another_goes(texts: list[str], cap: int) -> None:
    kept = _kept(texts, cap)
    fewer = [text for text in texts if text != texts[0]]
    assert set(kept) - {texts[0]} <= set(_kept(fewer, cap)) if fewer else True


def test_no_cap_keeps_every_headline() -> None:
    texts = [f"headline {at}" for at in range(50)]
    assert _kept(texts, 0) == texts


def test_the_fingerprint_changes_with_any_bit_and_with_nothing_else() -> None:
    whole = filled().fingerprint(0, len(BARS))
    assert whole == filled().fingerprint(0, len(BARS))
    for name in ("open", "high", "adj_close", "volume"):
        nudged = [*BARS[:9], replace(BARS[9], **{name: np.nextafter(getattr(BARS[9], name), math.inf)}), *BARS[10:]]
        assert filled(nudged).fingerprint(0, len(BARS)) != whole, name
    assert filled().fingerprint(0, len(BARS) - 1) != whole


@pytest.mark.parametrize("change", ["text", "split", "sentiment"])
def test_the_fingerprint_hears_headlines_and_scores(change: str) -> None:
    def print_of(texts: list[str], scores: tuple[float, float, float]) -> str:
        window = a_window()
        news = builders.batch([to_us(CALENDAR.cutoff(DAYS[0]))] * len(texts), texts)
        news.sentiment[:] = scores
        window.update(NewsArrived(session=DAYS[0], at=CALENDAR.cutoff(DAYS[0]), news=NewsBatch.of(list(news.items()))))
        window.update(closed(BARS[0]))
        return window.fingerprint(0, 1)

    plain = print_of(["a", "b"], (0.25, 0.25, 0.5))
    texts = {"text": ["a", "c"], "split": ["a\nb"], "sentiment": ["a", "b"]}[change]
    assert print_of(texts, (0.25, 0.5, 0.25) if change == "sentiment" else (0.25, 0.25, 0.5)) != plain
