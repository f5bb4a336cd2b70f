"""One chart as a model sees it: from the market store through the window into an array, and that array as a PNG.

    market store → (as_of decide_at) → window → models.charts → image → trader.cli_chart, which writes it

No headline is read, so no language model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from models.charts import ChartConfig, charts, levels_refused
from trader.config import Config
from trader.errors import NoData
from trader.events import BarClosed
from trader.parts import Readers, stock_bars, window_of
from trader.scheduler import Scheduler
from trader.spans import newest_in_time, no_such_market
from trader.store import MarketStore
from trader.universe import refuse_universe
from trader.window import Window


@dataclass(frozen=True, slots=True)
class Chart:
    """An image (height, width) of 0 and 255, and the first and last session that it shows."""

    image: NDArray[np.uint8]
    first: date
    last: date


class Unread:
    """Stands where texts are read, for a window of bars alone: no text gets an embedding or a score."""

    width = 0

    def index(self, texts: Sequence[str], progress: object = None) -> NDArray[np.int64]:
        """Return row 0 for each text."""
        return np.zeros(len(texts), np.int64)

    def rows(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return embeddings (len(index), 0)."""
        return np.zeros((len(index), 0), np.float32)

    def keys_of(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return digests (len(index), 16) of zeros."""
        return np.zeros((len(index), 16), np.uint8)

    def scores(self, texts: Sequence[str], progress: object = None) -> NDArray[np.float32]:
        """Return (n, 3) NaN."""
        return np.full((len(texts), 3), np.nan, np.float32)


def chart_of(store: MarketStore, config: Config, session: date, how: ChartConfig) -> Chart:
    """Draw the chart of the config's market that ends with a session, as it was known when that was decided.

    A built-in market is put into the store where it is not there yet.
    Raises NoData where the store has no such market, no bar of the session in time or too few before it, TimeError
    for a day that is no session, ModelError where models are given raw price levels.
    """
    if config.inputs.market_features == "levels":
        raise levels_refused("[inputs] market_features")
    symbol = config.run.market
    refuse_universe(symbol, "a chart")
    stock_bars(store, symbol)
    with store.snapshot():
        window = _window(store, config, session, how.reads + Window.warm_up)
    at = window.position(session)
    days = window.days(at - how.reads + 1, at + 1)
    image = charts(days.market, [how.reads - 1], how)[0]
    return Chart(image, window.sessions[at - how.sessions + 1], session)


def _window(store: MarketStore, config: Config, session: date, most: int) -> Window:
    """Fill a window with the last ``most`` sessions up to this one, each with the bar known at its own decision."""
    symbol, symbols = config.run.market, store.symbols()
    if symbol not in symbols:
        raise no_such_market(symbol, symbols)
    window = window_of(config, Readers(texts=Unread(), texts_id="none", scorer=Unread()))
    first = symbols[symbol].first
    assert first is not None, "a symbol is listed for the bars it has"
    held = newest_in_time(store, window.calendar, symbol, first, session, most)
    if held[-1] != session:
        decided = f"{window.calendar.decide_at(session):%Y-%m-%d %H:%M} UTC"
        raise NoData(f"no bar of {symbol} known when the session was decided", where=session, expected=f"by {decided}")
    if len(held) < most:
        expected = f"at least {most}, the {Window.warm_up} of the mean volume included"
        raise NoData("too little history for the chart", where=f"{symbol} {session}", got=len(held), expected=expected)
    scheduler = Scheduler(store, window.calendar, symbol=symbol, news="", spec=config.walkforward)
    for day in window.calendar.sessions(held[0], session):
        if (late := scheduler.late_bar(day)) is not None and window.sessions:
            window.update(late)
        if (bar := scheduler.bar(day)) is not None:
            window.update(BarClosed(session=day, at=bar.known_at, bar=bar))
    return window


def png(image: NDArray[np.uint8], scale: int = 1) -> bytes:
    """Return a grey image (height, width) as a PNG file, each pixel as a square of ``scale`` × ``scale``.

    Source: PNG specification (ISO/IEC 15948): signature, then IHDR, IDAT, IEND; rows without a filter.
    """
    large = image.repeat(scale, axis=0).repeat(scale, axis=1)
    height, width = large.shape
    rows = np.pad(large, ((0, 0), (1, 0)))  # each row begins with the number of its filter: 0, none
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits, grey
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_part(kind, content) for kind, content in parts)


def _part(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
