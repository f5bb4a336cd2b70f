"""feeds.wire: facts of real days, known when they say, never later ones in earlier words."""

from __future__ import annotations

from datetime import date, timedelta
import hashlib
import re

import numpy as np
import pandas as pd
import pytest

from feeds import builtin
from feeds.wire import SET, headlines
from feeds.wire_facts import CRUDE_DELAY, WireSeries, crude_facts, facts, index_facts
from trader.clock import Calendar
from trader.events import NewsBatch, from_us

CALENDAR = Calendar()


@pytest.fixture(scope="module")
def series() -> WireSeries:
    return builtin.series()


@pytest.fixture(scope="module")
def wire(series: WireSeries) -> NewsBatch:
    return headlines(series)


@pytest.fixture(scope="module")
def numbers(series: WireSeries) -> pd.DataFrame:
    return facts(series)


@pytest.fixture(scope="module")
def texts(wire: NewsBatch) -> dict[str, str]:
    return dict(zip(wire.item_id, wire.headline, strict=True))


def until(series: WireSeries, last: date, rng: np.random.Generator | None = None) -> WireSeries:
    """Keep what was known at the close of ``last``; drop the rest, or, given a generator, make it random."""
    before = CALENDAR.session(CALENDAR.index(last) - CRUDE_DELAY + 1)  # crude of this day and later was not out yet
    month = pd.Timestamp(last).to_period("M")
    third = CALENDAR.sessions(month.start_time.date(), month.start_time.date() + timedelta(days=20))[2]
    yields_known = (month - (0 if last >= third else 1)).start_time

    def split(table, known):  # type: ignore[no-untyped-def]
        if rng is None:
            return table[known]
        noise = np.exp(rng.normal(0, 0.1, size=table.shape))
        return table.where(np.broadcast_to(known.reshape(-1, *[1] * (table.ndim - 1)), table.shape), table * noise)

    by_session = series.sp500.index <= pd.Timestamp(last)
    return WireSeries(
        sp500=split(series.sp500, by_session),
        nasdaq=split(series.nasdaq, by_session),
        crude=split(series.crude, series.crude.index < pd.Timestamp(before)),
        yields=split(series.yields, series.yields.index < yields_known),
        core_cpi=split(series.core_cpi, series.core_cpi.index + pd.Timedelta(days=60) <= pd.Timestamp(last)),
    )


def cuts(count: int) -> list[date]:
    sessions = CALENDAR.sessions(date(1999, 1, 5), date(2018, 12, 28))
    chosen = np.random.default_rng(7).choice(len(sessions), size=count, replace=False)
    # The third session of a month and the one before it, the day of a core CPI figure and the one before it.
    return [sessions[at] for at in sorted(chosen)] + [date(2008, 10, d) for d in (2, 3, 30, 31)]


@pytest.mark.parametrize(("last", "rest"), [(last, "random") for last in cuts(3)] + [(cuts(1)[0], "dropped")], ids=str)
def test_the_wire_of_series_cut_at_any_session_is_the_first_part_of_the_whole(
    series: WireSeries, numbers: pd.DataFrame, wire: NewsBatch, last: date, rest: str
) -> None:
    rng = np.random.default_rng(CALENDAR.index(last)) if rest == "random" else None
    known = until(series, last, rng)
    pd.testing.assert_frame_equal(facts(known)[: str(last)], numbers[: str(last)], check_exact=True, check_freq=False)
    batch, close = headlines(known), CALENDAR.closes_us([last])[0]
    ours, theirs = batch.known_at <= close, wire.known_at <= close
    for name in ("headline", "item_id", "known_at"):
        assert list(np.asarray(getattr(batch, name))[ours]) == list(np.asarray(getattr(wire, name))[theirs])
    if rng is not None:  # and the noise does reach what comes after
        assert set(np.asarray(batch.headline)[~ours][:200]) != set(np.asarray(wire.headline)[~theirs][:200])


def test_every_headline_is_known_exactly_at_its_sessions_close(wire: NewsBatch) -> None:
    sessions = [date.fromisoformat(item.split(":")[1]) for item in wire.item_id]
    assert (wire.known_at == CALENDAR.closes_us(sessions)).all()
    assert (wire.published_at == wire.known_at).all()
    assert (np.diff(wire.known_at) >= 0).all()
    assert CALENDAR.session_at(from_us(wire.known_at[-1])) == sessions[-1] == date(2018, 12, 31)


def test_ids_are_unique_and_a_second_run_writes_the_same_wire(series: WireSeries, wire: NewsBatch) -> None:
    assert len(set(wire.item_id)) == len(wire)
    again = headlines(series)
    assert (again.headline, again.item_id) == (wire.headline, wire.item_id)


def test_the_figures_of_two_days_are_right(texts: dict[str, str]) -> None:
    # 2008-09-29: S&P 500 1213.27 → 1106.42, Nasdaq 2183.34 → 1983.73; crude 104.05 → 122.61 on 09-22, five sessions
    # before. 2017-06-01: S&P 500 2411.80 → 2430.06, Nasdaq 6198.52 → 6246.83.
    assert "8.8%" in texts["wire:2008-09-29:sp500-move"]
    assert "9.1%" in texts["wire:2008-09-29:nasdaq-move"]
    assert re.search("plunges|tumbles", texts["wire:2008-09-29:sp500-move"])
    assert "29%" in texts["wire:2008-09-29:sp500-drawdown"]  # from 1565.15 on 2007-10-09
    assert "17.8%" in texts["wire:2008-09-29:crude"]
    assert "0.8%" in texts["wire:2017-06-01:sp500-move"]
    assert re.search("year.* high|highest close in a year", texts["wire:2017-06-01:sp500-extreme"])
    assert "0.3%" in texts["wire:2017-06-01:crude"]


def test_monthly_figures_come_as_late_as_they_are_published(texts: dict[str, str]) -> None:
    # September 2008: AAA 5.65, BAA 7.31; the third session of October is Friday the 3rd.
    assert "7.3% in September" in texts["wire:2008-10-03:yields-baa"]
    assert "wire:2008-10-02:yields-baa" not in texts
    # The core CPI stamped 2008-09-01 is known 60 days later, on Friday 2008-10-31, and called revised.
    assert re.search(r"2\.4% in September.*revised", texts["wire:2008-10-31:core-cpi"])
    # 2008-08-01 + 60 days is 2008-09-30; 2008-11-01 + 60 days is 2008-12-31.
    assert "in August" in texts["wire:2008-09-30:core-cpi"]
    assert "in November" in texts["wire:2008-12-31:core-cpi"]


def test_crude_is_known_five_sessions_after_its_date(series: WireSeries) -> None:
    known = crude_facts(series.crude)
    assert known.loc["2008-09-29", "crude"] == series.crude["2008-09-22"]
    # Good Friday, 2015-04-03, is no session: five sessions after Thursday the 2nd comes Friday the 10th.
    assert known.loc["2015-04-10", "crude"] == series.crude["2015-04-02"]


def test_an_open_that_copies_the_close_before_has_no_gap(
    series: WireSeries, numbers: pd.DataFrame, wire: NewsBatch
) -> None:
    copied = series.sp500["Open"] == series.sp500["Close"].shift(1)
    days = {f"wire:{stamp.date()}:sp500-gap" for stamp in series.sp500.index[copied]}
    assert len(days) > 1500
    assert not days & set(wire.item_id)
    assert (numbers["sp500_gap"][copied] == 0).all()


def test_the_headlines_say_no_nonsense(wire: NewsBatch) -> None:
    nonsense = re.compile(r"(?<![\d.])0(\.0)?(%| points)|(?<![\d.])1 points|\bnan|\binf\b|None|-\d|  |\ba eight|\{|\}")
    assert [text for text in set(wire.headline) if nonsense.search(text)] == []
    assert all(text == text.strip() and text[0].isupper() and len(text) < 110 for text in set(wire.headline))


def test_the_words_agree_with_the_numbers(numbers: pd.DataFrame, texts: dict[str, str]) -> None:
    ups = re.compile("edges up|inches up|rises|gains|climbs|jumps|surges|soars")
    for stamp, row in numbers.iterrows():
        for index in ("sp500", "nasdaq"):
            text = texts.get(f"wire:{stamp.date()}:{index}-move", "")  # type: ignore[attr-defined]
            size = f"{abs(100 * row[f'{index}_move']):.1f}%"
            if text and size != "0.0%":
                assert size in text
                assert bool(ups.search(text)) == (row[f"{index}_move"] > 0)


def test_the_wire_is_rich_but_has_few_distinct_texts(wire: NewsBatch) -> None:
    sessions = np.array([item.split(":")[1] for item in wire.item_id])
    days, counts = np.unique(sessions, return_counts=True)
    assert len(days) == 5031
    assert 10 <= counts[days >= "2000"].mean() <= 16
    assert counts[days >= "2000"].min() >= 5
    assert len(set(wire.headline)) <= 20_000


def test_facts_agree_with_a_plain_count(series: WireSeries) -> None:
    prices = series.sp500.iloc[:600]
    table, close = index_facts(prices), prices["Close"].to_list()
    for row in range(300, 600):
        lower = next((back for back in range(1, 251) if close[row - back] >= close[row]), 251) - 1
        assert table["high_of"].iloc[row] == lower
        run = 0
        while close[row - run] > close[row - run - 1]:
            run += 1
        assert max(table["streak"].iloc[row], 0) == run
        assert table["drawdown"].iloc[row] == close[row] / max(close[row - 249 : row + 1]) - 1
        assert table["ups_10"].iloc[row] == sum(close[row - k] > close[row - k - 1] for k in range(10))


def test_a_session_without_volume_has_no_volume_fact_and_no_headline(
    series: WireSeries, numbers: pd.DataFrame, wire: NewsBatch
) -> None:
    silent = series.nasdaq.index[series.nasdaq["Volume"] == 0]
    assert len(silent) == 2
    assert numbers.loc[silent, "nasdaq_volume"].isna().all()
    assert not {f"wire:{stamp.date()}:nasdaq-volume" for stamp in silent} & set(wire.item_id)


def test_the_wires_words_belong_to_its_version(wire: NewsBatch) -> None:
    # A store only grows: whoever changes a headline must give the set another name (feeds.wire.SET), then this hash.
    digest = hashlib.sha256("\n".join(wire.headline).encode() + wire.known_at.tobytes()).hexdigest()
    assert (SET, digest[:16]) == ("wire-1", "13a2ae5760538d30")
