"""News files: formats, columns, presets, times, dirt. Real files where TRADER_TEST_DATA says they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import date, datetime, timezone
import gzip
import json
import os
from pathlib import Path
import time
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feeds.news_files import detect, read_news
from feeds.news_text import clean_headlines, clean_symbols
from feeds.presets import PRESETS
from feeds.times import EITHER_ORDER, NO_DATE, OUTSIDE, UNREADABLE, TimeRule, read_times, to_utc
from trader.clock import Calendar
from trader.errors import BadFile, ConfigError, TimeError
from trader.events import NewsItem, Rejected, from_us, to_us

NEW_YORK = "America/New_York"


def data(name: str) -> Path:
    folder = os.environ.get("TRADER_TEST_DATA")
    if not folder:
        pytest.skip("TRADER_TEST_DATA is unset")
    return Path(folder) / name


def file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path, **how: Any) -> tuple[list[tuple[int, NewsItem]], list[Rejected]]:
    """All items with their row numbers, and all rejected rows."""
    items: list[tuple[int, NewsItem]] = []
    rejected: list[Rejected] = []
    for piece in read_news(path, **how):
        items += zip(piece.row.tolist(), piece.news.items(), strict=True)
        rejected += piece.rejected
    return items, rejected


def headlines(path: Path, **how: Any) -> dict[int, str]:
    return {row: item.headline for row, item in read(path, **how)[0]}


def end_of(text: object, rule: TimeRule | None = None, kind: pa.DataType | None = None) -> str:
    """What one stated time becomes, in UTC, or the reason why nothing."""
    ends, bad = read_times(pa.array([text], type=kind), rule or TimeRule(zone=NEW_YORK), "a file")
    return bad.get(0) or from_us(ends[0]).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


# Times


@pytest.mark.parametrize(
    ("stated", "end"),
    [
        ("2016-07-28", "2016-07-29 03:59:59.999"),
        ("20160728", "2016-07-29 03:59:59.999"),
        ("2016/7/28", "2016-07-29 03:59:59.999"),
        ("2016-07-28 16:00", "2016-07-28 20:00:59.999"),
        ("2016-07-28 16:00:00", "2016-07-28 20:00:00.999"),
        ("2016-07-28T16:00:00.250Z", "2016-07-28 16:00:00.250"),
        ("2020-06-05 06:30:54 UTC", "2020-06-05 06:30:54.999"),
        ("2020-06-05 10:30:05-04:00", "2020-06-05 14:30:05.999"),
        ("2020-06-05 00:00:00 UTC", "2020-06-05 23:59:59.999"),
        ("28-01-2016", "2016-01-29 04:59:59.999"),
        ("5/5/2017", "2017-05-06 03:59:59.999"),
        ("18-Jul-20", "2020-07-19 03:59:59.999"),
        ("Jul-18", "2018-08-01 03:59:59.999"),
        ("2018-12", "2019-01-01 04:59:59.999"),
        ("July 4th, 2015 at 5:30 p.m.", "2015-07-04 21:30:59.999"),
        (" 7:51  PM ET Fri, 17 July 2020", "2020-07-17 23:51:59.999"),
        ("12:15  AM ET Mon,  6 July 2020", "2020-07-06 04:15:59.999"),
        ("Wed Jan 01 03:59:03 +0000 2014", "2014-01-01 03:59:03.999"),
        ("Fri, 17 Jul 2020 19:51:00 GMT", "2020-07-17 19:51:00.999"),
        ("1577836805", "2020-01-01 00:00:05.999"),
        ("1577836805123", "2020-01-01 00:00:05.123"),
        ("", NO_DATE),
        ("NaN", NO_DATE),
        ("6/9/2017", EITHER_ORDER),
        ("soon", UNREADABLE),
        ("12:30", UNREADABLE),
        ("18 Jul", UNREADABLE),
        ("31 Feb 2020", UNREADABLE),
        ("2020-06-05 25:00", UNREADABLE),
        ("13:00 PM, 5 June 2020", UNREADABLE),
        ("0201-04-27", OUTSIDE),
        ("1989-12-31", "1990-01-01 04:59:59.999"),
        ("1989-12-30", OUTSIDE),
        ("2036-01-01", OUTSIDE),
    ],
)
def test_a_stated_time_is_taken_at_the_end_of_its_resolution(stated: str, end: str) -> None:
    assert end_of(stated) == end


@pytest.mark.parametrize(("day_first", "end"), [(True, "2017-09-07"), (False, "2017-06-10")])
def test_the_order_of_day_and_month_is_what_the_rule_says(day_first: bool, end: str) -> None:
    assert end_of("6/9/2017", TimeRule(zone=NEW_YORK, day_first=day_first)).startswith(end)


def test_an_order_that_the_rule_excludes_is_not_turned_round() -> None:
    assert end_of("6/13/2017", TimeRule(zone="UTC", day_first=True)) == UNREADABLE


def test_a_repeated_hour_is_the_later_one_and_a_skipped_hour_moves_forward() -> None:
    assert end_of("2020-11-01 01:30") == "2020-11-01 06:30:59.999"  # EST, not EDT
    assert end_of("2020-03-08 02:30") == "2020-03-08 07:30:59.999"  # 03:30 EDT
    assert end_of("2020-03-08 03:00") == "2020-03-08 07:00:59.999"
    assert end_of("2020-11-01 01:30 EDT") == "2020-11-01 05:30:59.999"  # stated, so exact


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([NEW_YORK, "Europe/London", "Asia/Kolkata", "Australia/Lord_Howe", "America/Sao_Paulo", "UTC"]),
    st.datetimes(datetime.fromisoformat("1990-01-02"), datetime.fromisoformat("2035-12-30")),
)
def test_wall_times_become_the_later_instant_that_zoneinfo_offers(zone: str, wall: datetime) -> None:
    local = to_us(wall.replace(tzinfo=timezone.utc))
    offered = [to_us(wall.replace(tzinfo=ZoneInfo(zone), fold=fold)) for fold in (0, 1)]
    assert int(to_utc(np.array([local]), zone)[0]) == max(offered)


def test_stamps_without_seconds_are_minutes_and_stamps_at_midnight_are_days() -> None:
    rule = TimeRule(zone=NEW_YORK, zero_seconds=True)
    for unit in ("s", "ms", "us", "ns"):
        kind = pa.timestamp(unit)
        assert end_of(datetime.fromisoformat("2020-06-05 10:00"), rule, kind) == "2020-06-05 14:00:59.999"
        assert end_of(datetime.fromisoformat("2020-06-05 10:00:05"), rule, kind) == "2020-06-05 14:00:05.999"
        assert end_of(datetime.fromisoformat("2020-06-05"), rule, kind) == "2020-06-06 03:59:59.999"
    assert end_of(date(2020, 6, 5), rule) == "2020-06-06 03:59:59.999"
    assert end_of(None, rule, pa.timestamp("us")) == NO_DATE


def test_a_zoned_stamp_has_its_midnight_in_its_own_zone_and_is_exact_in_a_repeated_hour() -> None:
    rule, kind = TimeRule(zero_seconds=True), pa.timestamp("us", NEW_YORK)
    assert end_of(datetime(2020, 6, 5, 4, 0, tzinfo=timezone.utc), rule, kind) == "2020-06-06 03:59:59.999"
    assert end_of(datetime(2020, 11, 1, 5, 30, tzinfo=timezone.utc), rule, kind) == "2020-11-01 05:30:59.999"


def test_rows_of_one_file_may_state_different_zones() -> None:
    texts = ["2020-06-05 10:00 EDT", "2020-06-05 10:00", "2020-06-05 10:00Z", "x"]
    ends, bad = read_times(pa.array(texts), TimeRule(zone="Europe/London"), "a file")
    assert [from_us(end).hour for end in ends[:3]] == [14, 9, 10] and list(bad) == [3]


def test_a_date_at_the_close_of_a_session_belongs_to_the_next() -> None:
    calendar = Calendar()
    for text, session in (("2016-07-28 15:59", 28), ("2016-07-28 16:00", 29), ("2016-07-28", 29)):
        ends, _ = read_times(pa.array([text]), TimeRule(zone=NEW_YORK), "a file")
        assert calendar.session_at(from_us(ends[0])) == date(2016, 7, session)


# Text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("S&P; cuts AT&T;, J&J;'s rating", "S&P cuts AT&T, J&J's rating"),
        ("Barnes &amp; Noble, M&amp;S;, R&amp;amp;D &#8217;07 &lt;XOM.N&gt;", "Barnes & Noble, M&S, R&D ’07 <XOM.N>"),
        ("R&D; at Q&A; &Int; &unknown", "R&D at Q&A &Int &unknown"),
        ("  two\r\n lines\tand\u00a0a\u200b space \x00", "two lines and a space"),
        ("keeps UPPER, “quotes”, 5% & £2; fine", "keeps UPPER, “quotes”, 5% & £2; fine"),
        (None, ""),
    ],
)
def test_a_headline_loses_only_what_transport_did_to_it(raw: str | None, clean: str) -> None:
    assert clean_headlines(pa.array([raw], type=pa.string()), printed_bytes=False).to_pylist() == [clean]


@pytest.mark.parametrize(
    ("raw", "tickers"),
    [
        ("AAPL", "AAPL"),
        ("$AAPL, MSFT;BRK.B", "AAPL MSFT BRK.B"),
        ("{'PTR.N', '0857.HK'}", "PTR.N 0857.HK"),
        ("['A', 'A', 'B']", "A B"),
        ("nan", ""),
        ("NAN", "NAN"),
        (None, ""),
    ],
)
def test_tickers_are_found_however_they_are_printed(raw: str | None, tickers: str) -> None:
    assert clean_symbols(pa.array([raw], type=pa.string())) == [tickers]


# Formats


ROWS = [
    {"published_at": "2020-01-02T10:00:00Z", "headline": "One, two", "tickers": "AAPL MSFT", "id": "7"},
    {"published_at": "2020-01-03T11:30:00Z", "headline": "Three", "tickers": "", "id": "8"},
]


def written(folder: Path, kind: str) -> Path:
    path = folder / f"news{kind}"
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
        return path
    comma = "\t" if "tsv" in kind else ","
    table = "\n".join(comma.join(f'"{cell}"' for cell in row) for row in (ROWS[0], *(row.values() for row in ROWS)))
    text = "\n".join(map(json.dumps, ROWS)) if "j" in kind else table
    path.write_bytes(gzip.compress(text.encode()) if kind.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".csv.gz", ".tsv.gz", ".jsonl.gz"])
def test_every_format_gives_the_same_items(tmp_path: Path, kind: str) -> None:
    items, rejected = read(written(tmp_path, kind))
    assert not rejected and [row for row, _ in items] == [1, 2]
    first = items[0][1]
    assert (first.headline, first.symbols, first.item_id, first.sentiment) == ("One, two", ("AAPL", "MSFT"), "7", None)
    # Zeros in Parquet may stand for what was not known, even where its times are texts.
    assert first.published_at == from_us(1577959259_999000 if kind == ".parquet" else 1577959200_999000)


def test_the_delay_comes_on_top_of_publication(tmp_path: Path) -> None:
    items, _ = read(written(tmp_path, ".csv"), delay_minutes=15)
    assert (items[0][1].known_at - items[0][1].published_at).total_seconds() == 900


def test_rows_do_not_depend_on_where_pieces_end(tmp_path: Path) -> None:
    text = "date,headline\n" + "".join(f'2020-01-{n % 40:02},"line {n}\nmore"\n{n}\n' for n in range(50))
    path = file(tmp_path, "a.csv", text)
    whole = read(path, zone="UTC")
    assert len(whole[1]) == 50 + 10 and whole[0][-1][0] == 99  # 50 short rows, and days 0 and 32 to 39
    for batch_rows in (1, 7, 64):
        assert read(path, zone="UTC", batch_rows=batch_rows) == whole


# Dirt


def test_a_dirty_csv_loses_only_the_rows_that_nobody_could_read(tmp_path: Path) -> None:
    dirty = (
        b"\xef\xbb\xbfdate,headline\r\n"
        b'2020-01-02,"two\r\nlines, one row"\r\n'
        b"2020-01-02,caf\xe9 \x93quoted\x94\r\n"
        b"2020-01-02,n\0ul\r\n"
        b"\r\n"
        b"2020-01-02,too,many\r\n"
        b"2020-01-02\r\n"
        b"2020-01-02,commas behind,,\r\n"
        b",\r\n"
    )
    items, rejected = read(file(tmp_path, "a.csv", dirty), zone="UTC")
    assert {row: item.headline for row, item in items} == {
        1: "two lines, one row",
        2: "café “quoted”",
        3: "nul",
        6: "commas behind",
    }
    assert [(one.row, one.reason, one.text) for one in rejected] == [
        (4, "too many fields", "2020-01-02,too,many"),
        (5, "too few fields", "2020-01-02"),
        (7, "an empty row", ","),
    ]


def test_a_stray_quote_costs_no_other_row(tmp_path: Path) -> None:
    text = (
        'date,headline\n2020-01-02,"stray\n2020-01-03,ok\n2020-01-04,"fine"\n2020-01-05,"never closed\n2020-01-06,last'
    )
    assert headlines(file(tmp_path, "a.csv", text), zone="UTC") == {
        1: '"stray',
        2: "ok",
        3: "fine",
        4: '"never closed',
        5: "last",
    }


def test_other_encodings_and_delimiters_are_recognised(tmp_path: Path) -> None:
    assert headlines(file(tmp_path, "a.csv", "date;headline\n2020-01-02;a, b\n"), zone="UTC") == {1: "a, b"}
    assert headlines(file(tmp_path, "b.csv", "date,headline\n2020-01-02,é\n".encode("utf-16")), zone="UTC") == {1: "é"}


def test_broken_json_lines_are_rejected_one_by_one(tmp_path: Path) -> None:
    text = '{"time": 1577959200, "title": "half \\ud83d a pair"}\n{broken\n\n[1]\n{"title": "undated"}\n'
    items, rejected = read(file(tmp_path, "a.jsonl", text))
    assert [(row, item.headline) for row, item in items] == [(1, "half � a pair")]
    assert [(one.row, one.reason) for one in rejected] == [
        (2, "not a JSON object"),
        (3, "not a JSON object"),
        (4, NO_DATE),
    ]


def test_scores_are_a_distribution_or_absent_or_the_row_is_rejected(tmp_path: Path) -> None:
    scores = [".1,.2,.7", ",,", ".5,.6,.7", "-.1,.4,.7", "x,.5,.5", ".5,,.5", "10,20,70", "inf,0,0"]
    text = "date,headline,neg,neu,pos\n" + "".join(f"2020-01-02,h,{one}\n" for one in scores)
    items, rejected = read(file(tmp_path, "a.csv", text), zone="UTC")
    assert [row for row, _ in items] == [1, 2] and items[1][1].sentiment is None
    assert items[0][1].sentiment == pytest.approx((0.1, 0.2, 0.7))
    assert [one.row for one in rejected] == [3, 4, 5, 6, 7, 8]
    assert {one.reason for one in rejected} == {"sentiment that is not three numbers ≥ 0 with sum 1"}


# Columns


def test_columns_given_by_the_user_come_before_the_usual_ones(tmp_path: Path) -> None:
    path = file(tmp_path, "a.csv", "Date,Time,Title,Text,Stock\n2020-01-02,10:00,short,long,A\n")
    items, _ = read(path, zone="UTC", columns={"published_at": "Date+Time", "headline": "Text"})
    assert items[0][1].headline == "long" and items[0][1].symbols == ("A",)
    assert items[0][1].published_at == from_us(to_us(datetime(2020, 1, 2, 10, 0, 59, 999000, tzinfo=timezone.utc)))


@pytest.mark.parametrize(
    ("columns", "error", "words"),
    [
        (
            None,
            BadFile,
            r"no column for published_at \(got columns when, what\); .*--columns published_at=when,headline=",
        ),
        ({"published_at": "when"}, BadFile, "no column for headline"),
        ({"published_at": "When"}, BadFile, "no column 'When' for published_at .got columns when, what"),
        ({"headlines": "what"}, ConfigError, "no such name in columns .got headlines.*did you mean headline"),
        ({"negative": "what"}, ConfigError, "sentiment needs all of"),
    ],
)
def test_wrong_columns_are_one_line_with_those_found(
    tmp_path: Path, columns: Mapping[str, str] | None, error: type[Exception], words: str
) -> None:
    path = file(tmp_path, "a.csv", "when,what\n2020-01-02,x\n")
    with pytest.raises(error, match=words):
        read_news(path, columns=columns)  # already here, before a row is read


def test_a_date_and_a_time_column_are_not_chosen_between_silently(tmp_path: Path) -> None:
    path = file(tmp_path, "a.csv", "date,time,headline\n2020-01-02,10:00,x\n")
    with pytest.raises(BadFile, match=r"--columns published_at=date\+time"):
        read_news(path)


def test_a_time_without_a_zone_is_refused_until_one_is_stated(tmp_path: Path) -> None:
    path = file(tmp_path, "a.csv", "date,headline\n2020-01-02 10:00,x\n")
    with pytest.raises(TimeError, match=r"a\.csv: a time without a zone \(got 2020-01-02 10:00\); .*--zone"):
        read(path)
    assert read(path, zone=NEW_YORK)[0][0][1].published_at.hour == 15
    with pytest.raises(TimeError, match=r"not a time zone .got New York.*did you mean America/New_York"):
        read_news(path, zone="New York")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.csv", None, "no such file"),
        ("a.txt", b"x", "not a kind of news file .got .txt, expected .csv"),
        ("a.csv", b"", "an empty file"),
        ("a.csv", b"\n\n", "an empty file"),
        ("a.parquet", b"PAR1 no", "cannot be read"),
        ("a.csv.gz", b"no gzip", "cannot be read"),
        ("a.csv.gz", gzip.compress(b"date,headline\n" * 9, mtime=0)[:-9], "cannot be read"),
        ("a.jsonl", b"[]\n", "no JSON object"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    path = tmp_path / name if content is None else file(tmp_path, name, content)
    with pytest.raises(BadFile, match=words) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_a_negative_delay_and_an_unknown_preset_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="a folder"):
        read_news(tmp_path)
    path = written(tmp_path, ".csv")
    with pytest.raises(ConfigError, match=r"before it is published .got a delay of -1"):
        read_news(path, delay_minutes=-1)
    with pytest.raises(ConfigError, match=r"no such preset .got fnspd, expected reuters.*did you mean fnspid"):
        read_news(path, preset="fnspd")
    with pytest.raises(ConfigError, match="batch_rows"):
        read_news(path, batch_rows=0)


# Presets, on small files in the published formats


TOPS = ",".join(f"Top{n}" for n in range(1, 26))
FNSPID = "Unnamed: 0,Date,Article_title,Stock_symbol,Url,Publisher,Author,Article,Lsa_summary"
MADE: dict[str, tuple[str, str, list[tuple[str, str, str]], list[str]]] = {
    "fnspid": (
        "a.csv",
        f'{FNSPID}\n0,2020-06-05 06:30:54 UTC,T1,A,u,,,"long\ntext",\n'
        "1,2020-06-05 00:00:00 UTC,T2,B,v,,,,\n2,,T3,B,w,,,,\n",
        [("T1", "A", "2020-06-05 06:30:54.999"), ("T2", "B", "2020-06-05 23:59:59.999")],
        [NO_DATE],
    ),
    "benzinga": (
        "a.csv",
        ",title,date,stock\n0.0,T1,2020-06-05 10:30:00-04:00,A\n1.0,T2,2020-06-04 00:00:00-04:00,A\n",
        [("T1", "A", "2020-06-05 14:30:59.999"), ("T2", "A", "2020-06-05 03:59:59.999")],
        [],
    ),
    "djia": (
        "a.csv",
        f"Date,Label,{TOPS}\n2008-08-08,0,\"b\"\"Georgia 'downs' \\xe2\\x82\\xac\"\"\",b'Open" + ",x" * 22 + ",\n",
        [("Georgia 'downs' €", "", "2008-08-09 03:59:59.999"), ("Open", "", "2008-08-09 03:59:59.999")]
        + [("x", "", "2008-08-09 03:59:59.999")] * 22,
        ["an empty headline"],
    ),
    "gold": (
        "a.tsv",
        "Dates\tURL\tNews\tPrice Direction Up\n6/9/2017\tu\tT1\t0\n0201-04-27\thttp://m/x-2015-04-27\tT2\t0\n"
        "0201-04-12\thttp://m/x-2013-04-11\tT3\t0\n0200-03-19\thttp://m/x\tT4\t0\n",
        [
            ("T1", "", "2017-09-07 03:59:59.999"),
            ("T2", "", "2015-04-28 03:59:59.999"),
            ("T3", "", "2013-04-13 03:59:59.999"),
        ],
        [OUTSIDE],
    ),
    "no-header": (
        "a.csv",
        "GOOG,Alphabet Inc,20160728,Why\nGOOGL,Alphabet Inc,20151220,\n",
        [("Why", "GOOG", "2016-07-29 03:59:59.999")],
        ["an empty headline"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("preset", MADE)
def test_a_published_format_is_known_by_its_columns(tmp_path: Path, preset: str) -> None:
    name, content, expected, reasons = MADE[preset]
    path = file(tmp_path, name, content)
    assert detect(path) == preset
    items, rejected = read(path)
    shown = [
        (item.headline, " ".join(item.symbols), item.published_at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3])
        for _, item in items
    ]
    assert (shown, [one.reason for one in rejected]) == (expected, reasons)


def test_a_file_with_more_columns_than_a_preset_keeps_them(tmp_path: Path) -> None:
    path = file(tmp_path, "a.csv", "title,date,stock,neg,neu,pos\nx,2020-01-02 10:00Z,A,.1,.2,.7\n")
    assert detect(path) is None
    assert read(path)[0][0][1].sentiment == pytest.approx((0.1, 0.2, 0.7))


def test_the_latest_of_several_times_counts(tmp_path: Path) -> None:
    header = "time,sourceTimestamp,firstCreated,sourceId,headline,assetCodes,assetName"
    rows = (
        "2007-01-01 04:29:32+00:00,2007-01-01 04:29:40+00:00,,a,x,{'A.N'},A\n"
        "2007-01-01 04:29:00+00:00,2007-01-01 04:28:00+00:00,soon,b,y,{'B.N'},B\n"
    )
    items, rejected = read(file(tmp_path, "a.csv", f"{header}\n{rows}"))
    assert items[0][1].published_at.second == 40 and items[0][1].item_id == "a/A"
    assert [(one.row, one.reason) for one in rejected] == [(2, UNREADABLE)]


def test_generic_presets_only_say_the_order_of_dates(tmp_path: Path) -> None:
    path = file(tmp_path, "a.csv", "date,headline\n6/9/2017,x\n")
    assert read(path, zone="UTC")[1][0].reason == EITHER_ORDER
    assert read(path, zone="UTC", preset="day-first")[0][0][1].published_at.month == 9
    assert read(path, zone="UTC", preset="month-first")[0][0][1].published_at.month == 6


def test_every_preset_is_described_where_users_look() -> None:
    docs = (Path(__file__).parent.parent / "docs" / "news.md").read_text()
    missing = [name for name, preset in PRESETS.items() if f"`{name}`" not in docs or not preset.about]
    assert not missing


# Real files: how many rows, how many items, how many rejected and why


REAL = [
    ("trna/news_sample.csv", "news-analytics", 100, {}),
    ("dirty/bloomberg_no_header.csv", "no-header", 37_285, {"an empty headline": 2}),
    ("dirty/cnbc_headlines_hgulati_raw.csv", "cnbc", 2_800, {"an empty row": 280}),
    ("dirty/guardian_headlines_hgulati_raw.csv", "guardian", 17_800, {}),
    # The year is lost ("0200-03-19") and the address has none.
    ("dirty/gold_mixed_dates.tsv", "gold", 10_566, {OUTSIDE: 4}),
    ("stocknet/tweets_preprocessed.csv.gz", "stocknet", 106_338, {}),
    ("reuters/headlines_2007.parquet", "reuters", 288_146, {}),
    ("reuters/headlines_2013.parquet", "reuters", 243_974, {}),
]


@pytest.mark.parametrize(("name", "preset", "count", "reasons"), REAL, ids=[name for name, *_ in REAL])
def test_real_files_are_read_to_the_last_row(name: str, preset: str, count: int, reasons: dict[str, int]) -> None:
    path = data(name)
    assert detect(path) == preset
    rows: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    refused: Counter[str] = Counter()
    for piece in read_news(path):
        rows.append(piece.row)
        refused.update(one.reason for one in piece.rejected)
    assert (sum(map(len, rows)), dict(refused)) == (count, reasons)
    assert int(np.concatenate(rows).max()) == count + sum(reasons.values())


def test_the_analytics_sample_carries_scores_tickers_and_unique_ids() -> None:
    items, _ = read(data("trna/news_sample.csv"))
    first = items[0][1]
    assert first.symbols == ("PTR.N", "0857.F", "0857.DE", "0857.HK")
    assert first.sentiment == pytest.approx((0.500739, 0.419327, 0.0799341))
    assert first.published_at == datetime(2007, 1, 1, 4, 29, 32, 999000, tzinfo=timezone.utc)
    assert len({item.item_id for _, item in items}) == 100


def test_reuters_headlines_are_known_at_the_end_of_their_minute_and_lose_the_damage() -> None:
    piece = next(read_news(data("reuters/headlines_2007.parquet")))
    assert set((piece.news.published_at % 60_000_000).tolist()) == {59_999_000}
    assert from_us(piece.news.published_at[0]).isoformat() == "2007-01-01T05:59:59.999000+00:00"
    assert piece.news.item_id[0] == "BKK14775120070101"
    assert any("S&P " in text for text in piece.news.headline)
    assert not any("S&P;" in text for text in piece.news.headline)


def test_a_quarter_of_a_million_headlines_a_second_pass_the_reader() -> None:
    path = data("reuters/headlines_2012.parquet")
    next(read_news(path))  # imports are not the rate
    started = time.process_time()  # the machine is shared: this process's own seconds
    count = sum(len(piece.news) for piece in read_news(path))
    assert count / (time.process_time() - started) > 250_000
