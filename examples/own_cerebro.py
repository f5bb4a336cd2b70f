"""Plug the project's signals into a Cerebro script of your own.

    python -m examples.own_cerebro                          the signals in examples/signals.csv
    python -m examples.own_cerebro my_signals.csv           your own: columns session, signal (-1, 0, 1) and p_up
    python -m examples.own_cerebro var/ledger.db latest     those of a backtest that you have run

Run it in the project's folder. The broker here is backtrader's own: it knows neither borrow nor interest nor opens
that are no prices. The script's last line is the account's final value.
"""

from __future__ import annotations

from pathlib import Path
import sys

from arch.data import sp500
import pandas as pd

from strategies.base import FractionalSizes, bt
from strategies.long_short import LongShort
from strategies.signal_data import SignalData
from trader.ledger import signals_frame


def main(source: str = str(Path(__file__).with_name("signals.csv")), run: str = "latest") -> None:
    """Trade the signals and print what the account is worth at each month's end."""
    from_csv = source.endswith(".csv")
    signals = pd.read_csv(source, index_col="session", parse_dates=True) if from_csv else signals_frame(source, run)

    cerebro = bt.Cerebro(preload=False, runonce=False, stdstats=False)
    cerebro.adddata(SignalData(dataname=sp500.load().join(signals, how="inner")))
    cerebro.addstrategy(LongShort)  # or any bt.Strategy of yours that reads self.data.signal[0]
    cerebro.addanalyzer(bt.analyzers.TimeReturn, timeframe=bt.TimeFrame.Months, _name="months")
    cerebro.broker.setcash(100_000)
    cerebro.broker.addcommissioninfo(FractionalSizes(commission=0.0001))
    months = cerebro.run()[0].analyzers.months.get_analysis()

    for month, change in months.items():
        print(f"{month:%Y-%m} {change:+8.2%}")
    print(f"{len(signals)} signals, final value {cerebro.broker.getvalue():,.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
