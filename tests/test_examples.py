"""The examples run as a reader would run them."""

from __future__ import annotations

from pathlib import Path
import subprocess
import sys

from arch.data import nasdaq, sp500

ROOT = Path(__file__).parents[1]
FORECASTS = (("nasdaq", 1, 0.6), ("sp500", -1, 0.4))


def example(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_own_cerebro_trades_the_signals_of_its_csv() -> None:
    done = example("examples.own_cerebro")
    assert done.returncode == 0, done.stderr
    *months, last = done.stdout.splitlines()
    assert len(months) == 12 and months[0].startswith("2018-01")
    assert last.startswith("251 signals, final value ") and not done.stderr


def test_own_cerebro_trades_signals_of_one_s_own(tmp_path: Path) -> None:
    source = tmp_path / "mine.csv"
    source.write_text("session,signal,p_up\n2018-01-02,1,0.6\n2018-01-03,1,0.6\n2018-01-04,1,0.6\n")
    done = example("examples.own_cerebro", str(source))
    assert done.returncode == 0, done.stderr
    prices = sp500.load()
    units, price = 100_000 / prices.Close["2018-01-02"], prices.Open["2018-01-03"]  # sized on one, filled at the other
    worth = 100_000 + units * (prices.Close["2018-01-04"] - price) - units * price * 0.0001
    assert done.stdout.splitlines()[-1] == f"3 signals, final value {worth:,.2f}"


def test_own_cerebro_many_ranks_two_indices() -> None:
    done = example("examples.own_cerebro_many")
    assert done.returncode == 0, done.stderr
    *months, last = done.stdout.splitlines()
    assert len(months) == 11 and months[0].startswith("2018-02")  # the forecast needs the first 21 days
    assert last.startswith("2 symbols, final value ") and not done.stderr


def test_own_cerebro_many_ranks_by_signals_of_one_s_own(tmp_path: Path) -> None:
    source = tmp_path / "mine.csv"
    days = ("2018-01-02", "2018-01-03")
    rows = [f"{day},{symbol},{side},{p_up}" for day in days for symbol, side, p_up in FORECASTS]
    source.write_text("\n".join(["session,symbol,signal,p_up", *rows]))
    done = example("examples.own_cerebro_many", str(source))
    assert done.returncode == 0, done.stderr
    worth = 100_000.0
    for prices, side in ((nasdaq.load(), 1), (sp500.load(), -1)):
        units, price = 50_000 / prices.Close[days[0]], prices.Open[days[1]]
        worth += side * units * (prices.Close[days[1]] - price) - units * price * 0.0001
    found = float(done.stdout.split()[-1].replace(",", ""))
    assert abs(found - worth) < 0.01
