"""Charts, to the pixel: hand-made ones as pictures, random ones against a drawing by loops, and what may not matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
import math

import numpy as np
from numpy.typing import NDArray
import pytest

from models.base import MARKET_FEATURES
from models.charts import ChartConfig, charts
from tests import builders
from trader.errors import ConfigError, ModelError
from trader.events import Bar, BarClosed
from trader.window import Window

Market = NDArray[np.float32]
DAYS = builders.sessions(200)
EVERY = [
    ChartConfig(sessions, moving_average=average, volume=volume)
    for sessions in (5, 20, 60)
    for average in (True, False)
    for volume in (True, False)
]
LOW, ADJUSTED = MARKET_FEATURES.index("low"), MARKET_FEATURES.index("adjusted")
PRICES_AND_VOLUME = ChartConfig(5, moving_average=False)
PRICES_AND_AVERAGE = ChartConfig(5, volume=False)


def market_of(bars: Sequence[Bar], *, levels: bool = False) -> Market:
    """Return the window's own features (S, F)."""
    window = Window(
        builders.CALENDAR, builders.TinyTexts(), builders.TinyScorer(), market_text="a toy market", levels=levels
    )
    for bar in bars:
        window.update(BarClosed(session=bar.session, at=bar.known_at, bar=bar))
    return window.days(0, len(bars)).market


def market_from(prices: Sequence[Sequence[float]], volume: Sequence[float] | None = None) -> Market:
    """Return features of sessions (open, high, low, close), the first after a close of 100."""
    table = np.array(prices, dtype=np.float64)
    before = np.append(100.0, table[:-1, 3])
    logs = np.log(table / before[:, None])
    over_mean = np.log(volume) if volume is not None else np.zeros(len(table))
    return np.column_stack([logs, logs[:, 3], over_mean]).astype(np.float32)


def picture(image: NDArray[np.uint8]) -> list[str]:
    assert set(np.unique(image)) <= {0, 255}
    return ["".join("#" if pixel else "." for pixel in row) for row in image]


def drawn(text: str) -> list[str]:
    return text.split()


# To the pixel

FIVE = [(100, 104, 100, 102), (103, 110, 103, 108), (108, 124, 106, 120), (118, 118, 108, 110), (110, 114, 104, 112)]


def test_a_session_is_a_tick_a_bar_and_a_tick_above_its_volume() -> None:
    market = market_from(FIVE, volume=[100, 200, 300, 600, 450])
    assert picture(charts(market, [4], PRICES_AND_VOLUME)[0]) == drawn("""
        .......#.......
        .......#.......
        .......#.......
        .......#.......
        .......##......
        .......#.......
        .......#.##....
        .......#..#....
        .......#..#....
        .......#..#....
        .......#..#..#.
        .......#..#..#.
        .......#..#..##
        .......#..#..#.
        ....#..#..####.
        ....#..#..#..#.
        ....####..#..#.
        ....#..#.....#.
        ....#..#.....#.
        ....#........#.
        .#..#........#.
        .#.##..........
        .##............
        .#.............
        ##.............
        ...............
        ..........#....
        ..........#..#.
        ..........#..#.
        .......#..#..#.
        ....#..#..#..#.
        .#..#..#..#..#.
        """)


def test_the_moving_average_is_a_line_without_holes_through_the_middles() -> None:
    four = [(100, 100, 100, 100)] * 4
    five = [(100, 101, 100, 100), (102, 131, 102, 130), (130, 130, 120, 130), (128, 128, 100, 100)]
    market = market_from([*four, *five, (104, 115, 104, 115)])  # averages 100, 106, 112, 112, 115
    assert picture(charts(market, [8], PRICES_AND_AVERAGE)[0]) == drawn("""
        ....#..........
        ....#####......
        ....#..#.......
        ....#..#.##....
        ....#..#..#....
        ....#..#..#....
        ....#..#..#....
        ....#..#..#....
        ....#..#..#....
        ....#..#..#....
        ....#..#..#....
        ....#..#..#....
        ....#.....#....
        ....#.....#....
        ....#.....#....
        ....#.....#....
        ....#.....#..##
        ....#.....#.##.
        ....#.....##.#.
        ....#..####..#.
        ....#..#..#..#.
        ....#.#...#..#.
        ....#.#...#..#.
        ....##....#..#.
        ....##....#..#.
        ....#.....#..#.
        ....#.....#..#.
        ...##.....#.##.
        ...##.....#....
        ..###.....#....
        .##.......#....
        ###.......##...
        """)


def _row(position: float) -> int:
    return math.floor(position + 0.5001)  # the rounding of float32 must not decide what lies midway


def by_loops(bars: Sequence[Bar], volume: Sequence[float], how: ChartConfig) -> list[str]:
    """Draw the chart that ends with the last bar pixel by pixel, from the prices themselves."""
    n, factor = how.sessions, [bar.adj_close / bar.close for bar in bars]
    shown = [
        [getattr(bar, name) * by for name in ("open", "high", "low", "close")]
        for bar, by in zip(bars[-n:], factor[-n:], strict=True)
    ]
    adjusted = [bar.adj_close for bar in bars]
    average = [sum(adjusted[len(bars) - n + k + 1 - n : len(bars) - n + k + 1]) / n for k in range(n)]
    prices = [price for four in shown for price in four] + (average if how.moving_average else [])
    low, high = min(prices), max(prices)

    def row(price: float) -> int:
        return how.price_rows - 1 - _row((price - low) / (high - low) * (how.price_rows - 1))

    lit: set[tuple[int, int]] = set()
    for k, (opened, highest, lowest, closed) in enumerate(shown):
        lit |= {(row(opened), 3 * k), (row(closed), 3 * k + 2)}
        lit |= {(at, 3 * k + 1) for at in range(row(highest), row(lowest) + 1)}
        if how.volume:
            lit |= {(how.height - 1 - up, 3 * k + 1) for up in range(_row(volume[k] / max(volume) * how.volume_rows))}
    if how.moving_average:
        line = [row(average[0])]
        for here, there in pairwise(average):
            line += [row(here + (there - here) * third / 3) for third in (1, 2, 3)]
        lit.add((line[0], 1))
        for column, (before, at) in enumerate(pairwise(line), start=2):
            step = 1 if at >= before else -1
            lit |= {(between, column) for between in range(before + step, at, step)} | {(at, column)}
    return ["".join("#" if (row, column) in lit else "." for column in range(how.width)) for row in range(how.height)]


@pytest.mark.parametrize("how", EVERY, ids=str)
def test_a_random_market_looks_as_a_drawing_by_loops_says(how: ChartConfig) -> None:
    for seed in range(5):
        bars = _paying(builders.bars(DAYS, seed))
        market = market_of(bars)
        for at in (how.reads + 3, 150, len(bars) - 1):
            volume = [math.exp(feature) for feature in market[at - how.sessions + 1 : at + 1, 5]]
            assert picture(charts(market, [at], how)[0]) == by_loops(bars[: at + 1], volume, how)


# What may not matter


def _paying(bars: list[Bar]) -> list[Bar]:
    """Return bars with a dividend of 2 % on day 60 and another on day 140."""
    return [
        replace(bar, adj_close=bar.close * (0.96 if at < 60 else 0.98 if at < 140 else 1.0))
        for at, bar in enumerate(bars)
    ]


@pytest.mark.parametrize("how", EVERY, ids=str)
def test_the_currency_does_not_matter(how: ChartConfig) -> None:
    names = ("open", "high", "low", "close", "adj_close")
    for seed in range(5):
        bars = builders.bars(DAYS, seed)
        at = np.arange(how.reads, len(bars))
        made = charts(market_of(bars), at, how)
        for factor in (1 / 1000, 3.7, 1e6):
            other = [replace(bar, **{name: factor * getattr(bar, name) for name in names}) for bar in bars]
            assert np.array_equal(charts(market_of(other), at, how), made)


def test_the_size_of_the_volume_does_not_matter_but_its_shape_does() -> None:
    market = market_from(FIVE, volume=[100, 200, 300, 600, 450])
    larger, other = market.copy(), market.copy()
    larger[:, 5] += 3.0
    other[2, 5] += 0.5
    made, same, changed = (charts(one, [4], PRICES_AND_VOLUME) for one in (market, larger, other))
    assert np.array_equal(same, made) and not np.array_equal(changed, made)


@pytest.mark.parametrize("how", EVERY, ids=str)
def test_a_split_and_a_dividend_are_no_crash(how: ChartConfig) -> None:
    bars, at = builders.bars(DAYS), [150]
    whole = charts(market_of(bars), at, how)
    halves = [
        replace(bar, open=bar.open / 2, high=bar.high / 2, low=bar.low / 2, close=bar.close / 2) if day >= 148 else bar
        for day, bar in enumerate(bars)
    ]  # the adjusted close says that nothing was lost
    assert np.array_equal(charts(market_of(halves), at, how), whole)
    crash = [replace(bar, adj_close=bar.close) for bar in halves]
    assert not np.array_equal(charts(market_of(crash), at, how), whole)


@pytest.mark.parametrize("how", EVERY, ids=str)
def test_a_chart_depends_on_the_sessions_it_reads_alone(how: ChartConfig) -> None:
    market, rng = market_of(builders.bars(DAYS)), np.random.default_rng(0)
    for at in (how.reads - 1, 140, len(market) - 1):
        made, first = charts(market, [at], how)[0], at - how.reads + 1
        assert np.array_equal(charts(market[first : at + 1].copy(), [how.reads - 1], how)[0], made)
        other = rng.normal(0, 0.3, market.shape).astype(np.float32)
        other[first : at + 1] = market[first : at + 1]
        assert np.array_equal(charts(other, [at], how)[0], made)
        other[:first] = other[at + 1 :] = np.nan
        assert np.array_equal(charts(other, [at], how)[0], made), "what is not read need not even be a number"


@pytest.mark.parametrize("how", EVERY, ids=str)
def test_every_session_that_is_read_counts(how: ChartConfig) -> None:
    market, at = market_of(builders.bars(DAYS)), 150
    made = charts(market, [at], how)
    for day in range(at - how.reads + 2, at + 1):  # what parts the oldest close from the others is the second's return
        other = market.copy()
        other[day, ADJUSTED] += 0.5
        assert not np.array_equal(charts(other, [at], how), made)
    other = market.copy()
    other[at - how.sessions + 1, LOW] -= 0.5
    assert not np.array_equal(charts(other, [at], how), made)


@pytest.mark.parametrize("how", EVERY, ids=str)
def test_neighbours_in_the_batch_and_their_number_change_no_pixel(how: ChartConfig) -> None:
    market, rng = market_of(builders.bars(builders.sessions(400))), np.random.default_rng(0)
    all_days = np.arange(how.reads - 1, len(market))
    made = charts(market, all_days, how)
    assert made.shape == (len(all_days), how.height, how.width) and made.dtype == np.uint8
    for count in (1, 3, 63, 64, 65, 300):
        at = rng.choice(all_days, count)
        assert np.array_equal(charts(market, at, how), made[at - how.reads + 1])


# Edges


def test_a_price_that_never_moves_is_a_line_in_the_middle() -> None:
    still = market_from([(100, 100, 100, 100)] * 9)
    image = charts(still, [8], PRICES_AND_AVERAGE)[0]
    assert [row for row, line in enumerate(picture(image)) if "#" in line] == [15]
    assert picture(image)[15] == "#" * 15


def test_no_volume_and_a_volume_that_never_changes_are_not_drawn() -> None:
    for silent in (0.0, 500.0):
        bars = [replace(bar, volume=silent) for bar in builders.bars(DAYS)]
        assert not charts(market_of(bars), [150], ChartConfig(20))[0, -12:].any()


def test_a_session_without_volume_among_others_has_no_bar() -> None:
    bars = [replace(bar, volume=0.0) if at == 148 else bar for at, bar in enumerate(builders.bars(DAYS))]
    part = charts(market_of(bars), [150], ChartConfig(5))[0, -6:]
    assert part.any(axis=0).tolist() == [False, True, False] * 2 + [False] * 3 + [False, True, False] * 2


def test_the_row_between_prices_and_volume_stays_empty() -> None:
    for how in EVERY:
        if how.volume:
            made = charts(market_of(builders.bars(DAYS)), np.arange(130, 200), how)
            assert not made[:, how.price_rows].any()
            assert made[:, 0].any(axis=1).all() and made[:, how.price_rows - 1].any(axis=1).all(), "both ends are used"
            assert made[:, how.price_rows + 1].any(axis=1).all(), "the largest volume fills its part"


@pytest.mark.parametrize(("sessions", "size"), [(5, (32, 15)), (20, (64, 60)), (60, (96, 180))])
def test_sizes_are_the_papers(sessions: int, size: tuple[int, int]) -> None:
    for volume in (True, False):
        how = ChartConfig(sessions, volume=volume)
        assert charts(market_of(builders.bars(DAYS)), [150], how)[0].shape == (how.height, how.width) == size


def test_no_decisions_are_no_charts() -> None:
    assert charts(np.zeros((3, len(MARKET_FEATURES)), np.float32), [], ChartConfig(20)).shape == (0, 64, 60)


# What is refused


@pytest.mark.parametrize("sessions", [0, 10, -5, 20.0, True, "20"])
def test_other_numbers_of_sessions_are_refused(sessions: object) -> None:
    with pytest.raises(ConfigError, match=r"chart: no chart of so many sessions .* expected 5, 20, 60"):
        ChartConfig(sessions)  # type: ignore[arg-type]


@pytest.mark.parametrize(("at", "got"), [([37], "37"), ([100, 200], "200"), ([-1], "-1")])
def test_too_few_sessions_are_refused(at: list[int], got: str) -> None:
    market = market_of(builders.bars(DAYS))
    with pytest.raises(
        ModelError, match=rf"a chart lacks its sessions \(got \[{got}\], expected days 38–199 \(a .* 39"
    ):
        charts(market, at, ChartConfig(20))
    assert charts(market, [38, 199], ChartConfig(20)).shape[0] == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("feature", range(len(MARKET_FEATURES)))
def test_what_is_not_a_number_is_refused_with_its_day(bad: float, feature: int) -> None:
    market = market_of(builders.bars(DAYS))
    market[143, feature] = bad
    with pytest.raises(ModelError, match="day 143: a market feature is not a number"):
        charts(market, [100, 147, 199], ChartConfig(5))
    charts(market, [142, 152], ChartConfig(5))  # neither reads it


@pytest.mark.parametrize(
    ("start", "volume"), [(0.8, 0.0), (3.0, 0.0), (100.0, 0.0), (4000.0, 1e6), (3.0, 1e6), (0.05, 1e6)]
)
def test_raw_levels_are_refused_at_any_price(start: float, volume: float) -> None:
    bars = [replace(bar, volume=volume) for bar in builders.bars(DAYS, start=start)]
    for how in EVERY:
        with pytest.raises(ModelError, match=r"drawn from returns \(got raw price levels\); set .* = \"returns\""):
            charts(market_of(bars, levels=True), [150], how)


def test_a_wild_market_is_not_taken_for_levels() -> None:
    wild = builders.bars(DAYS)
    tenfold = [
        replace(bar, close=bar.close * 2**at, high=bar.high * 2**at, open=bar.open * 2**at, low=bar.low * 2 ** (at - 1))
        for at, bar in enumerate(wild)
    ]
    made = charts(market_of([replace(bar, adj_close=bar.close) for bar in tenfold]), [150], ChartConfig(60))
    assert made.any()


def test_a_path_beyond_all_bounds_stays_within_the_numbers() -> None:
    market = np.tile(np.array([[0, 40, -1, 40, 40, 0], [0, 1, -40, -40, -40, 0]], np.float32), (30, 1))
    rising = np.tile(np.array([[0, 40, -1, 40, 40, 0]], np.float32), (60, 1))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        for made in (market, rising, -rising[:, [0, 2, 1, 3, 4, 5]]):
            assert charts(made, [39, 59], ChartConfig(20))[:, :51].any(axis=(1, 2)).all()


def test_other_numbers_than_the_market_features_are_refused() -> None:
    with pytest.raises(
        ModelError, match=r"not the market features \(got \(50, 9\), expected \(sessions, 6\): open, high"
    ):
        charts(np.zeros((50, 9), np.float32), [49], ChartConfig(5))
