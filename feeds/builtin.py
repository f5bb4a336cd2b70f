"""The prices that need no network: two indices for 1999–2018, and what the market wire is written from.

All of it ships inside the PyPI package ``arch`` (licence NCSA). Both are price indices: dividends are not in
them. In the S&P 500 the open equals the close before it on 95–98 % of the days to 2005.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING
import warnings

from feeds.price_files import bars_of
from trader.errors import ConfigError
from trader.events import Bar

if TYPE_CHECKING:
    import pandas as pd

    from feeds.wire_facts import WireSeries

BUILT_IN = {
    "sp500": "S&P 500 price index, 1999-2018, from the package arch",
    "nasdaq": "NASDAQ Composite price index, 1999-2018, from the package arch",
}

# What the model is told of the market, the same on every day: no constituents, no dates, nothing of the future.
MARKET_TEXT = {
    "sp500": "The S&P 500 is a stock market index of 500 large companies listed in the United States, "
    "weighted by market value.",
    "nasdaq": "The NASDAQ Composite is a stock market index of nearly all stocks listed on the Nasdaq exchange, "
    "weighted by market value and led by technology companies.",
}


def market_text(market: str) -> str:
    """Return the one static sentence that describes a market; a generic one for an imported symbol.

    >>> market_text("SPY")
    'SPY is a security traded in the United States stock market.'
    """
    return MARKET_TEXT.get(market, f"{market} is a security traded in the United States stock market.")


def market_name(market: str) -> str:
    """Return how a sentence names a market, such as "the S&P 500 index"; an imported symbol by itself.

    >>> market_name("sp500"), market_name("SPY")
    ('the S&P 500 index', 'SPY')
    """
    return {"sp500": "the S&P 500 index", "nasdaq": "the NASDAQ Composite index"}.get(market, market)


def bars(market: str) -> list[Bar]:
    """Return the daily bars of "sp500" or "nasdaq", 5,031 sessions, oldest first, each known at its true close.

    Raises ConfigError for any other name.
    """
    if market not in BUILT_IN:
        raise ConfigError(
            "not a built-in market", got=market, expected=" or ".join(BUILT_IN), do="import its prices first"
        )
    return bars_of(_load(market), symbol=market, source=f"built-in {market}")


def series() -> WireSeries:
    """Return everything the market wire is written from, each series under its own stamps."""
    from feeds.wire_facts import WireSeries

    return WireSeries(
        sp500=_load("sp500"),
        nasdaq=_load("nasdaq"),
        crude=_load("wti")["DCOILWTICO"].dropna(),
        yields=_load("default"),
        core_cpi=_load("core_cpi")["CPILFESL"],
    )


@lru_cache(maxsize=8)
def _load(name: str) -> pd.DataFrame:
    """Load one of arch's data sets; nobody may write into the table, it is shared."""
    from importlib import import_module

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # arch 8 on pandas 3 warns of its own code
        table: pd.DataFrame = import_module(f"arch.data.{name}").load()
    return table
