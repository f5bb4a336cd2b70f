"""feeds.price_files and feeds.builtin: prices that are taken whole, or refused with file and row."""

from __future__ import annotations

from datetime import date, datetime, timezone
import os
from pathlib import Path

import pandas as pd
import pytest

from feeds import builtin
from feeds.price_files import read_prices
from trader.clock import Calendar
from trader.errors import BadBar, BadFile, ConfigError

HEADER = "Date,Open,High,Low,Close,Adj Close,Volume"
ROWS = [
    "2008-11-26,852.90,887.68,841.37,887.68,887.68,5793260000",
    "2008-11-28,886.89,896.25,881.21,896.24,896.24,2740860000",  # the day after Thanksgiving closes at 13:00
    "2008-12-01,888.61,888.61,815.69,816.21,816.21,6052010000",
]


def write(folder: Path, *rows: str, header: str = HEADER, name: str = "spx.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_csv_in_yahoos_columns_becomes_bars_known_at_their_true_close(tmp_path: Path) -> None:
    bars = read_prices(write(tmp_path, *ROWS), symbol="SPX")
    assert [bar.session for bar in bars] == [date(2008, 11, 26), date(2008, 11, 28), date(2008, 12, 1)]
    assert bars[1].known_at == datetime(2008, 11, 28, 18, 0, tzinfo=timezone.utc)
    assert (bars[2].symbol, bars[2].open, bars[2].close, bars[2].volume) == ("SPX", 888.61, 816.21, 6052010000.0)


def test_column_names_may_have_any_case_and_order_and_the_close_stands_for_a_missing_adjusted_one(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, "816.21,815.69,888.61,888.61,2008-12-01,x", header="close,LOW,High,open,DATE,Note")
    (bar,) = read_prices(path, symbol="SPX")
    assert (bar.open, bar.high, bar.low, bar.close, bar.adj_close) == (888.61, 888.61, 815.69, 816.21, 816.21)


def test_a_parquet_file_with_dates_in_its_index_reads_like_the_csv(tmp_path: Path) -> None:
    csv = write(tmp_path, *ROWS)
    table = pd.read_csv(csv, index_col="Date", parse_dates=True)
    table.to_parquet(tmp_path / "naive.parquet")
    table.tz_localize("America/New_York").to_parquet(tmp_path / "zoned.parquet")
    expected = read_prices(csv, symbol="SPX")
    assert read_prices(tmp_path / "naive.parquet", symbol="SPX") == expected
    assert read_prices(tmp_path / "zoned.parquet", symbol="SPX") == expected


def test_a_date_with_a_zone_is_the_day_it_was_in_new_york(tmp_path: Path) -> None:
    rows = [
        "2008-11-26 00:00:00-05:00,1,1,1,1,1,1",
        "2008-11-28T18:00:00Z,1,1,1,1,1,1",
        "2008-12-02 06:00:00+09:00,1,1,1,1,1,1",
    ]
    bars = read_prices(write(tmp_path, *rows), symbol="SPX")
    assert [bar.session for bar in bars] == [date(2008, 11, 26), date(2008, 11, 28), date(2008, 12, 1)]


@pytest.mark.parametrize("header", ["Date,Open,High,Low,Close", "Date,Open,High,Low,Close,Volume"])
def test_prices_without_any_volume_have_volume_zero(tmp_path: Path, header: str) -> None:
    row = "2008-12-01,1,1,1,1" + ("," if header.endswith("Volume") else "")
    assert read_prices(write(tmp_path, row, header=header), symbol="EURUSD")[0].volume == 0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("2008-12-02,816,850,817,,848,1", "row 4: close is not a number.*got nothing"),
        ("2008-12-02,816,850,817,null,848,1", "row 4: close is not a number"),
        ('2008-12-02,"1,816",850,817,848,848,1', "row 4: open is not a number.*got 1,816"),
        ("2008-12-02,816,850,817,848,848,", "row 4: volume is not a number"),
        ("2008-12-02,-816,850,817,848,848,1", r"row 4 \(2008-12-02\): open is not a positive number.*-816"),
        ("2008-12-02,inf,850,817,848,848,1", "row 4.*open is not a positive number"),
        ("2008-12-02,820,840,817,848,848,1", "row 4.*open and close must lie between low and high.*high 840"),
        ("2008-12-01,820,850,817,848,848,1", "row 4: the same session twice.*2008-12-01"),
        ("2008-11-26,820,850,817,848,848,1", "row 4: the same session twice"),
        ("2008-11-25,820,850,817,848,848,1", "row 4: sessions out of order.*2008-11-25 after 2008-12-01"),
        ("2008-12-25,820,850,817,848,848,1", r"row 4: not a session of the exchange \(XNYS\).*2008-12-25"),
        ("1887-12-02,820,850,817,848,848,1", "row 4: not a session"),
        ("2008-12-02T00:00:00Z,820,850,817,848,848,1", "row 4: the same session twice"),
        ("02/12/2008,820,850,817,848,848,1", "row 4: a date that cannot be read.*got 02/12/2008.*2008-09-15"),
        ("20081202,820,850,817,848,848,1", "row 4: a date that cannot be read"),
        ("2008-13-02,820,850,817,848,848,1", "row 4: a date that cannot be read"),
        ("", "row 4: a date that cannot be read"),
    ],
)
def test_a_bad_row_is_refused_with_file_and_row(tmp_path: Path, row: str, words: str) -> None:
    path = write(tmp_path, *ROWS, row, "2008-12-03,843,873,827,870,870,1")
    with pytest.raises(BadBar, match="spx.csv " + words) as caught:
        read_prices(path, symbol="SPX")
    assert "\n" not in str(caught.value)


def test_a_missing_file_an_empty_one_and_wrong_columns_are_bad_files(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    (tmp_path / "binary.csv").write_bytes(bytes(range(128, 256)))
    (tmp_path / "false.parquet").write_text("not parquet")
    cases = {
        tmp_path / "absent.csv": "absent.csv: no such file",
        tmp_path / "empty.csv": "empty.csv: an empty file",
        tmp_path / "binary.csv": "binary.csv: cannot be read",
        tmp_path / "false.parquet": "false.parquet: cannot be read",
        tmp_path: "cannot be read",
        write(tmp_path, name="header.csv"): "header.csv: no price rows",
        write(tmp_path, "2008-12-01,1", header="Day,Price", name="wrong.csv"): "no column date, open, high, low, close",
        write(tmp_path, "2008-12-01,1,1,1,1,1", header="Date,Open,High,Low,Close,close", name="two.csv"): "two columns",
    }
    for path, words in cases.items():
        with pytest.raises(BadFile, match=words) as caught:
            read_prices(path, symbol="SPX")
        assert "\n" not in str(caught.value)


def test_the_built_in_markets_are_whole_and_known_at_the_close() -> None:
    calendar = Calendar()
    expected = calendar.sessions(date(1999, 1, 1), date(2018, 12, 31))
    for market in builtin.BUILT_IN:
        bars = builtin.bars(market)
        assert [bar.session for bar in bars] == expected
        assert all(bar.known_at == calendar.cutoff(bar.session) and bar.symbol == market for bar in bars)
    assert builtin.bars("sp500")[-1].close == pytest.approx(2506.85)


def test_an_unknown_market_names_the_built_in_ones() -> None:
    with pytest.raises(ConfigError, match=r"got dax, expected sp500 or nasdaq.*import its prices"):
        builtin.bars("dax")


def test_each_market_has_one_static_sentence() -> None:
    assert set(builtin.MARKET_TEXT) == set(builtin.BUILT_IN)
    assert "XYZ" in builtin.market_text("XYZ")


@pytest.mark.skipif(not os.environ.get("TRADER_TEST_DATA"), reason="needs the real prices of TRADER_TEST_DATA")
@pytest.mark.parametrize("name", ["GSPC", "NDX", "SPY", "QQQ"])
def test_every_row_of_the_real_price_files_is_a_bar(name: str) -> None:
    path = Path(os.environ["TRADER_TEST_DATA"]) / "prices" / f"{name}.csv"
    bars = read_prices(path, symbol=name)
    assert [bar.session for bar in bars] == Calendar().sessions(date(2000, 1, 3), date(2013, 12, 31))
    if name == "GSPC":
        ours = {bar.session: bar.close for bar in builtin.bars("sp500")}
        assert all(bar.close == pytest.approx(ours[bar.session], rel=1e-5) for bar in bars)
