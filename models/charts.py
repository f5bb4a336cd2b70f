"""Price charts as small black-and-white images, drawn from market features straight into an array.

    Days.market → charts → (B, height, width) of 0 and 255 → the image branch of a model, or ``trader chart`` as a PNG

Source: Jiang, Kelly and Xiu, "(Re-)Imag(in)ing Price Trends", The Journal of Finance 78 (2023): three columns a
session (a tick at the open, a bar from low to high, a tick at the close), a line through the moving average of the
closes, bars of volume in the lowest fifth, white on black; prices linear, and following the ADJUSTED return, so that
neither a split nor a dividend is a crash, each session's open, high and low in proportion to its close.

Where we differ: volume is relative to its own trailing mean (the feature of models.base; volume itself is not among
them), and a window whose price never moves has its line in the middle, where the paper has no image.

Letters, beside those of models.base (S F B):
    n sessions drawn   R sessions read, moving average included   P rows of the price part   V rows of volume
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from models.base import MARKET_FEATURES
from trader.errors import ConfigError, ModelError

HEIGHTS = {5: 32, 20: 64, 60: 96}  # sessions → rows of the image, as in the paper
COLUMNS = 3  # of a session: open, low to high, close
GAP = 1  # rows between prices and volume
WHITE = np.uint8(255)

AT_ONCE = 64  # charts drawn together, so that what is drawn upon stays in the processor's cache; no pixel depends on it
# Features are float32: rounding must decide neither a price that lies midway between two rows (it goes up), nor
# whether there was any move at all.
NUDGE = 1e-4  # rows
FLAT = 1e-6  # of the price
LARGEST = 50.0  # of a log return, or of a log volume over its mean: no market has it, raw prices and volumes do
OPEN, HIGH, LOW, CLOSE, ADJUSTED, VOLUME = range(len(MARKET_FEATURES))

Floats = NDArray[np.float64]
Rows = NDArray[np.int8]  # numbered from the bottom of their part; an image has less than 128


@dataclass(frozen=True, slots=True)
class ChartConfig:
    """What a chart shows; ConfigError for another number of sessions than the paper's.

    >>> ChartConfig(20).height, ChartConfig(20).width, ChartConfig(20).reads
    (64, 60, 39)
    """

    sessions: int = 20  # n: 5, 20 or 60
    _: KW_ONLY
    moving_average: bool = True  # of the last n closes
    volume: bool = True

    def __post_init__(self) -> None:
        if type(self.sessions) is not int or self.sessions not in HEIGHTS:
            expected = ", ".join(map(str, HEIGHTS))
            raise ConfigError("no chart of so many sessions", where="chart", got=self.sessions, expected=expected)

    @property
    def height(self) -> int:
        """Rows of the image."""
        return HEIGHTS[self.sessions]

    @property
    def width(self) -> int:
        """Columns of the image."""
        return COLUMNS * self.sessions

    @property
    def volume_rows(self) -> int:
        """V, the lowest rows of the image: a fifth of it, or none."""
        return self.height // 5 if self.volume else 0

    @property
    def price_rows(self) -> int:
        """P, the upper rows of the image."""
        return self.height - self.volume_rows - GAP if self.volume else self.height

    @property
    def reads(self) -> int:
        """R, the sessions that a chart depends on, its own last one included."""
        return 2 * self.sessions - 1 if self.moving_average else self.sessions


def charts(
    market: NDArray[np.float32], at: Sequence[int] | NDArray[np.int64], config: ChartConfig
) -> NDArray[np.uint8]:
    """Draw the charts of B decisions, each ending with its own session → (B, height, width), 0 or 255.

    market: (S, F), features of consecutive sessions as ``Days.market`` has them, oldest first.   at: (B,) positions.
    Row 0 is the top; columns run from the oldest session to ``at``. The lowest low and the highest high (moving
    average included) lie in the lowest and the highest row of the price part, the largest volume fills its own. A
    chart depends on market[at−reads+1 : at+1] alone, bit for bit. A volume that says nothing (0, or the same
    throughout) is not drawn.
    Raises ModelError where a session to be read is missing, not a number, or given as raw levels.
    """
    decisions = np.asarray(at, dtype=np.int64)
    _check(market, decisions, config)
    images = np.zeros((len(decisions), config.height, config.width), np.uint8)
    back = np.arange(1 - config.reads, 1)  # (R,)
    for first in range(0, len(decisions), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        days = market[decisions[some, None] + back].astype(np.float64)  # (B, R, F)
        _draw_prices(images[some, : config.price_rows], days, config)
        if config.volume:
            _draw_volume(images[some, -config.volume_rows :], days[:, -config.sessions :, VOLUME])
    return images


def levels_refused(where: str) -> ModelError:
    """Return the error of a chart that was to be drawn from raw prices."""
    do = 'set [inputs] market_features = "returns"'
    return ModelError("a chart is drawn from returns", where=where, got="raw price levels", do=do)


def _check(market: NDArray[np.float32], decisions: NDArray[np.int64], config: ChartConfig) -> None:
    """Raise ModelError unless every session that is read is there, a number and a return."""
    if market.ndim != 2 or market.shape[1] != len(MARKET_FEATURES):
        expected = f"(sessions, {len(MARKET_FEATURES)}): {', '.join(MARKET_FEATURES)}"
        raise ModelError("not the market features", where="chart", got=market.shape, expected=expected)
    if not len(decisions):
        return
    if decisions.min() < config.reads - 1 or decisions.max() >= len(market):
        bad = decisions[(decisions < config.reads - 1) | (decisions >= len(market))]
        expected = f"days {config.reads - 1}–{len(market) - 1} (a chart reads {config.reads} sessions)"
        raise ModelError("a chart lacks its sessions", where="chart", got=bad[:3].tolist(), expected=expected)
    read = np.zeros(len(market), bool)
    for back in range(config.reads):
        read[decisions - back] = True
    if not (fine := np.isfinite(market).all(axis=1) | ~read).all():
        raise ModelError("a market feature is not a number", where=f"day {int(np.argmin(fine))}")
    _refuse_levels(market, decisions, read, config)


def _refuse_levels(
    market: NDArray[np.float32], decisions: NDArray[np.int64], read: NDArray[np.bool_], config: ChartConfig
) -> None:
    """Tell raw levels by their size; small prices by this: never down to the close before, and far above it."""
    large = (np.abs(market) > LARGEST).any(axis=1) & read
    if large.any():
        raise levels_refused(f"day {int(np.argmax(large))}")
    windows = sliding_window_view(market[:, [LOW, CLOSE]], config.reads, axis=0)[decisions - config.reads + 1]
    low, close = windows[:, 0], windows[:, 1]  # (B, R)
    steep = (low > 0).all(axis=1) & (close.sum(axis=1, dtype=np.float64) > config.reads / 2)
    if steep.any():
        raise levels_refused(f"day {int(decisions[np.argmax(steep)])}")


def _draw_prices(part: NDArray[np.uint8], days: Floats, config: ChartConfig) -> None:
    """Draw bars and moving average of days (B, R, F) into part (B, P, width)."""
    n, up = config.sessions, _up(config.price_rows)  # (P, 1)
    close, bars = _prices(days, n)  # (B, R), (4, B, n)
    line = _moving_average(close, n) if config.moving_average else close[:, -n:]  # (B, n)
    bottom = np.minimum(bars.min(axis=(0, 2)), line.min(axis=1))[:, None]  # (B, 1)
    top = np.maximum(bars.max(axis=(0, 2)), line.max(axis=1))[:, None]  # (B, 1)
    flat = top - bottom <= FLAT * top
    scale = np.where(flat, 0.0, (config.price_rows - 1) / np.where(flat, 1.0, top - bottom))  # rows a unit of price
    offset = np.where(flat, config.price_rows // 2, 0)

    opened, high, low, closed = (_row((price - bottom) * scale + offset) for price in bars)  # (B, n) each
    lit = np.zeros(part.shape, bool)  # (B, P, width)
    lit[:, :, 0::COLUMNS] = up == opened[:, None]
    lit[:, :, 1::COLUMNS] = (up >= low[:, None]) & (up <= high[:, None])
    lit[:, :, 2::COLUMNS] = up == closed[:, None]
    if config.moving_average:
        lowest, highest = _joined((line - bottom) * scale + offset)  # (B, width − 2) each
        lit[:, :, 1:-1] |= (up >= lowest[:, None]) & (up <= highest[:, None])
    np.multiply(lit, WHITE, out=part)


def _prices(days: Floats, n: int) -> tuple[Floats, Floats]:
    """Return the closes (B, R), and open, high, low, close (4, B, n) of the last n; in units of the highest close.

    The path of the closes is that of the adjusted returns; open, high and low stand to their close as they did.
    """
    path = np.cumsum(days[:, :, ADJUSTED], axis=1)  # (B, R) log adjusted close; its first step shifts all alike
    path -= path.max(axis=1, keepdims=True)  # so that exp stays within its range
    own = days[:, -n:, [OPEN, HIGH, LOW, CLOSE]]  # (B, n, 4) over the close before
    bars = np.exp(path[:, -n:, None] + (own - own[:, :, 3:]))  # (B, n, 4)
    return np.exp(path), np.ascontiguousarray(bars.transpose(2, 0, 1))


def _moving_average(close: Floats, n: int) -> Floats:
    """Return the mean of the last n closes at each of the last n sessions: (B, 2n − 1) → (B, n)."""
    # Sums that run along the row: unlike those of mean() their order does not depend on how many rows there are.
    total = np.cumsum(np.pad(close, ((0, 0), (1, 0))), axis=1)  # (B, 2n)
    return np.asarray((total[:, n:] - total[:, :n]) / n)


def _joined(line: Floats) -> tuple[Rows, Rows]:
    """Join the rows (B, n) of a line, one in the middle of each session → lowest and highest row of each column.

    From the first middle to the last, (B, 3n − 2) each: one row a column, and where the line is steep also those
    between it and the column before.
    """
    share = np.arange(COLUMNS) / COLUMNS  # (3,) of the way to the next session
    between = line[:, :-1, None] + (line[:, 1:, None] - line[:, :-1, None]) * share  # (B, n − 1, 3)
    rows = _row(np.concatenate([between.reshape(len(line), -1), line[:, -1:]], axis=1))  # (B, 3n − 2)
    before = np.concatenate([rows[:, :1], rows[:, :-1]], axis=1)
    return np.minimum(rows, before + (before < rows)), np.maximum(rows, before - (before > rows))


def _draw_volume(part: NDArray[np.uint8], volume: Floats) -> None:
    """Draw log volumes (B, n) as bars from the bottom of part (B, V, width), in the middle column of each session."""
    tallest = part.shape[1]
    share = np.exp(volume - volume.max(axis=1, keepdims=True))  # (B, n) of the largest
    silent = (np.abs(volume) <= FLAT).all(axis=1, keepdims=True)  # (B, 1) nothing reported, or always the same
    height = _row(np.where(silent, 0.0, share * tallest))  # (B, n)
    np.multiply(_up(tallest) < height[:, None], WHITE, out=part[:, :, 1::COLUMNS])


def _up(rows: int) -> Rows:
    """Return the numbers (rows, 1) of the rows of a part, counted from its bottom."""
    return np.arange(rows, dtype=np.int8)[::-1, None]


def _row(position: Floats) -> Rows:
    """Return the nearest whole row; midway it is the upper one."""
    return np.floor(position + (0.5 + NUDGE)).astype(np.int8)
