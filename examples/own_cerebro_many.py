"""Rank several symbols in a Cerebro script of your own: one SignalData feed each, and TopK.

    python -m examples.own_cerebro_many                 two indices, and a made-up forecast: last month's return
    python -m examples.own_cerebro_many my_signals.csv  your own: columns session, symbol (sp500, nasdaq), signal, p_up
                                                        and, if you have it, expected_return

Run it in the project's folder. Each feed needs its name; a frame may lack days. The broker here is backtrader's own:
it waits until every feed has begun, and knows neither borrow nor limits (``trader.universe_broker`` does).
"""

from __future__ import annotations

import sys

from arch.data import nasdaq, sp500
import pandas as pd

from strategies.base import FractionalSizes, bt
from strategies.signal_data import SignalData
from strategies.top_k import TopK

PRICES = {"nasdaq": nasdaq.load().loc["2018"], "sp500": sp500.load().loc["2018"]}


def momentum(prices: pd.DataFrame) -> pd.DataFrame:
    """Return a forecast for the want of a better one: the next day's share of the last 21 days' return."""
    expected = (prices["Close"] / prices["Close"].shift(21) - 1) / 21
    side = (expected > 0).astype(int) - (expected < 0).astype(int)
    return pd.DataFrame({"signal": side, "p_up": 0.5 + 0.01 * side, "expected_return": expected}).dropna()


def main(source: str | None = None) -> None:
    """Trade the symbols' signals and print what the account is worth at each month's end."""
    if source is None:
        signals = {symbol: momentum(prices) for symbol, prices in PRICES.items()}
    else:
        table = pd.read_csv(source, index_col="session", parse_dates=True)
        signals = {str(symbol): rows for symbol, rows in table.groupby("symbol")}

    cerebro = bt.Cerebro(preload=False, runonce=False, stdstats=False)
    for symbol, rows in signals.items():
        cerebro.adddata(SignalData(dataname=PRICES[symbol].join(rows, how="inner")), name=symbol)
    cerebro.addstrategy(TopK, k=1, hold_band=0.05)  # long the better, short the worse
    cerebro.addanalyzer(bt.analyzers.TimeReturn, timeframe=bt.TimeFrame.Months, _name="months")
    cerebro.broker.setcash(100_000)
    cerebro.broker.addcommissioninfo(FractionalSizes(commission=0.0001))
    months = cerebro.run()[0].analyzers.months.get_analysis()

    for month, change in months.items():
        print(f"{month:%Y-%m} {change:+8.2%}")
    print(f"{len(signals)} symbols, final value {cerebro.broker.getvalue():,.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
