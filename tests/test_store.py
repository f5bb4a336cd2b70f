"""The market store: nothing from the future, nothing lost, nothing twice, nothing by halves."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
import os
from pathlib import Path
import signal
import sqlite3
import subprocess
import sys
from threading import Thread
from zlib import crc32

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from trader.clock import SimulatedClock
from trader.errors import BadBar, BadFile, BadNews, ConfigError, NoData, StoreError, TimeError
from trader.events import Bar, NewsBatch, NewsItem, NewsRows, Rejected
from trader.store import Added, FileSource, MarketStore, Quarantined, Span

ROOT = Path(__file__).resolve().parents[1]
DAY = date(2010, 3, 1)
NOON = datetime(2010, 3, 1, 12, tzinfo=timezone.utc)
CLOSE = datetime(2010, 3, 1, 21, tzinfo=timezone.utc)
EVER = datetime(2030, 1, 1, tzinfo=timezone.utc)
PAST = datetime(1990, 1, 1, tzinfo=timezone.utc)
MICROSECOND = timedelta(microseconds=1)
FILE = FileSource(name="news.csv", sha256="ab" * 32, size=10)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "market.db"


@pytest.fixture
def store(path: Path) -> Iterator[MarketStore]:
    with MarketStore.open(path, clock=SimulatedClock(EVER), wait_seconds=5) as store:
        yield store


def a_bar(close: float = 10.0, session: date = DAY, known_at: datetime = CLOSE, symbol: str = "SPX") -> Bar:
    return Bar(
        symbol=symbol, session=session, open=10.0, high=99.0, low=1.0, close=close, adj_close=close, volume=5.0,
        known_at=known_at,
    )  # fmt: skip


def an_item(
    headline: str = "Shares rise", at: datetime = NOON, known_at: datetime | None = None, **more: object
) -> NewsItem:
    return NewsItem(headline=headline, published_at=at, known_at=known_at or at, **more)  # type: ignore[arg-type]


def rows(*items: NewsItem, first: int = 1, rejected: tuple[Rejected, ...] = ()) -> NewsRows:
    return NewsRows(news=NewsBatch.of(items), row=np.arange(first, first + len(items)), rejected=rejected)


def headlines(store: MarketStore, at: datetime = EVER, name: str = "wire") -> list[str]:
    return list(store.as_of(at).news(name, PAST, EVER).headline)


def everything(path: Path) -> list[str]:
    with sqlite3.connect(path) as db:
        return list(db.iterdump())


# What as_of shows


def test_a_bar_is_not_visible_before_it_is_known(store: MarketStore) -> None:
    store.add_bars([a_bar()], source="test")
    assert store.as_of(CLOSE).bar("SPX", DAY) == a_bar()
    assert store.as_of(CLOSE - MICROSECOND).bar("SPX", DAY) is None
    assert store.as_of(CLOSE - MICROSECOND).bars("SPX", DAY, DAY) == []


def test_a_revision_is_seen_only_from_when_it_is_known_and_the_first_version_stays(store: MarketStore) -> None:
    later = CLOSE + timedelta(days=3)
    store.add_bars([a_bar(10.0)], source="test")
    assert store.add_bars([a_bar(11.0, known_at=later)], source="test") == Added(revised=1)
    assert store.as_of(later - MICROSECOND).bar("SPX", DAY) == a_bar(10.0)
    assert store.as_of(later).bar("SPX", DAY) == a_bar(11.0, known_at=later)
    assert store.as_of(EVER).bars("SPX", DAY, DAY) == [a_bar(11.0, known_at=later)]


def test_bars_come_one_a_session_oldest_first_between_both_ends(store: MarketStore) -> None:
    days = [DAY + timedelta(days=d) for d in (0, 1, 3)]
    store.add_bars([a_bar(session=d) for d in reversed(days)] + [a_bar(symbol="NDX")], source="test")
    assert [bar.session for bar in store.as_of(EVER).bars("SPX", days[0], days[1])] == days[:2]
    assert [bar.session for bar in store.as_of(EVER).bars("SPX", days[1], days[2])] == days[1:]


def test_news_is_not_visible_before_it_is_known(store: MarketStore) -> None:
    store.add_news("wire", [rows(an_item(known_at=CLOSE))], source=FILE)
    assert headlines(store, CLOSE) == ["Shares rise"]
    assert headlines(store, CLOSE - MICROSECOND) == []
    assert store.as_of(CLOSE - MICROSECOND).news_count("wire", PAST, EVER) == 0


def test_the_span_of_news_leaves_out_its_first_instant_and_holds_its_last(store: MarketStore) -> None:
    store.add_news("wire", [rows(an_item("first", NOON), an_item("last", CLOSE))], source=FILE)
    view = store.as_of(EVER)
    assert list(view.news("wire", NOON, CLOSE).headline) == ["last"]
    assert list(view.news("wire", NOON - MICROSECOND, CLOSE - MICROSECOND).headline) == ["first"]
    assert view.news_count("wire", NOON, CLOSE) == 1
    assert len(view.news("wire", CLOSE, NOON)) == 0


def test_a_headline_comes_back_as_it_was_stored(store: MarketStore) -> None:
    item = an_item(
        "Übernahme: 你好 📈\x00",
        NOON + MICROSECOND,
        CLOSE,
        symbols=("AAPL", "MSFT"),
        sentiment=(0.1, 0.2, 0.7),
        item_id="L1",
    )
    plain = an_item("no scores", CLOSE)
    store.add_news("wire", [rows(item, plain)], source=FILE)
    stored = store.as_of(EVER).news("wire", PAST, EVER)
    assert stored.sentiment.dtype == np.float32
    np.testing.assert_array_equal(stored.sentiment, NewsBatch.of([item, plain]).sentiment)
    first, second = stored.items()
    assert replace(first, sentiment=None) == replace(item, sentiment=None)
    assert second == plain


def test_no_news_is_an_empty_batch_with_the_right_shapes(store: MarketStore) -> None:
    store.add_news("wire", [], source=FILE)
    empty = store.as_of(EVER).news("wire", PAST, EVER)
    assert (len(empty), empty.sentiment.shape, empty.known_at.dtype) == (0, (0, 3), np.int64)


def test_naive_instants_are_refused(store: MarketStore) -> None:
    store.add_news("wire", [], source=FILE)
    naive = NOON.replace(tzinfo=None)
    with pytest.raises(TimeError, match="without a zone"):
        store.as_of(naive)
    with pytest.raises(TimeError, match="without a zone"):
        store.as_of(NOON).news("wire", naive, NOON)


def test_an_unknown_news_set_is_an_error_that_names_the_known_ones(store: MarketStore) -> None:
    with pytest.raises(NoData, match="got reuter, expected none is stored yet"):
        store.as_of(NOON).news_count("reuter", PAST, NOON)
    store.add_news("reuters", [], source=FILE)
    with pytest.raises(NoData, match="got reuter, expected reuters"):
        store.as_of(NOON).news("reuter", PAST, NOON)


def test_the_order_of_news_does_not_depend_on_the_order_of_import(tmp_path: Path) -> None:
    items = [an_item(text, NOON, item_id=i) for text in ("b", "a", "c") for i in ("2", "1")] + [
        an_item("z", PAST, NOON)
    ]
    orders = [items, items[::-1], items[3:] + items[:3]]
    seen = []
    for number, order in enumerate(orders):
        with MarketStore.open(tmp_path / f"{number}.db") as store:
            store.add_news("wire", [rows(*order[:2])], source=FileSource(name="one"))
            store.add_news("wire", [rows(*order[2:5]), rows(*order[5:])], source=FileSource(name="two"))
            seen.append(list(store.as_of(EVER).news("wire", PAST, EVER).items()))
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == 7


# Nothing twice


def test_the_same_bars_again_add_nothing(store: MarketStore, path: Path) -> None:
    assert store.add_bars([a_bar(), a_bar(session=date(2010, 3, 2))], source="test") == Added(new=2)
    before = everything(path)
    again = [a_bar(known_at=CLOSE + MICROSECOND), a_bar(session=date(2010, 3, 2))]
    assert store.add_bars(again, source="test") == Added(known_already=2)
    assert everything(path) == before


def test_a_first_file_imported_again_after_its_correction_adds_nothing(store: MarketStore) -> None:
    store.add_bars([a_bar(10.0)], source="test")
    store.add_bars([a_bar(11.0, known_at=EVER)], source="correction")
    assert store.add_bars([a_bar(10.0)], source="test") == Added(known_already=1)


def test_a_revision_known_no_later_than_the_bar_is_refused_with_its_whole_batch(store: MarketStore, path: Path) -> None:
    store.add_bars([a_bar(10.0)], source="test")
    before = everything(path)
    with pytest.raises(BadBar, match=r"SPX 2010-03-01: other values for a stored bar.*close 11.0.*import a correction"):
        store.add_bars([a_bar(session=date(2010, 2, 26)), a_bar(11.0)], source="test")
    assert everything(path) == before


def test_a_correction_that_states_no_time_counts_from_when_it_was_noticed(store: MarketStore) -> None:
    store.add_bars([a_bar(10)], source="a")
    noticed = CLOSE + timedelta(days=400)
    corrected = [a_bar(11), a_bar(12, session=DAY + timedelta(days=1), known_at=CLOSE + timedelta(days=1))]
    assert store.add_bars(corrected, source="b", noticed_at=noticed) == Added(new=1, revised=1)
    seen = [store.as_of(at).bar("SPX", DAY) for at in (CLOSE, noticed - MICROSECOND, noticed)]
    assert [(bar.close, bar.known_at) for bar in seen if bar] == [(10, CLOSE), (10, CLOSE), (11, noticed)]
    assert store.as_of(CLOSE + timedelta(days=1)).bars("SPX", DAY, EVER.date())[-1].close == 12, "new ones as they say"
    for bar in (a_bar(10), a_bar(11)):  # either file once more
        assert store.add_bars([bar], source="a", noticed_at=noticed + timedelta(days=1)) == Added(known_already=1)


def test_two_different_bars_of_one_session_are_refused_and_a_repeated_one_is_counted(store: MarketStore) -> None:
    with pytest.raises(BadBar, match="SPX 2010-03-01: twice the same session"):
        store.add_bars([a_bar(10.0), a_bar(11.0)], source="test")
    assert store.add_bars([a_bar(), a_bar()], source="test") == Added(new=1, duplicates=1)


def test_numpy_prices_are_stored_as_numbers(store: MarketStore) -> None:
    store.add_bars([a_bar(np.float32(10.5))], source="test")  # type: ignore[arg-type]
    stored = store.as_of(EVER).bar("SPX", DAY)
    assert stored is not None
    assert type(stored.close) is float
    assert stored.close == 10.5


def test_a_second_import_of_the_same_file_adds_nothing_at_all(store: MarketStore, path: Path) -> None:
    def file() -> Iterator[NewsRows]:
        yield rows(an_item("a"), an_item("a"), rejected=(Rejected(row=3, reason="no date", text="x"),))
        yield rows(an_item("b"), an_item("a"), first=4)

    assert store.add_news("wire", file(), source=FILE) == Added(new=2, rejected=1, duplicates=2)
    before = everything(path)
    assert store.add_news("wire", file(), source=FILE) == Added(known_already=4, rejected=1)
    assert everything(path) == before


def test_repeated_rows_and_refused_rows_lie_in_quarantine_with_file_row_and_reason(store: MarketStore) -> None:
    refused = Rejected(row=9, reason="no date", text="?" * 600)
    store.add_news("wire", [rows(an_item("a"), an_item("b"), an_item("a"), rejected=(refused,))], source=FILE)
    assert store.quarantine("wire") == [
        Quarantined(file="news.csv", row=3, reason="duplicate of an earlier row", text="a"),
        Quarantined(file="news.csv", row=9, reason="no date", text="?" * 500),
    ]
    assert store.quarantine("wire", limit=1)[0].row == 3
    assert store.quarantine_counts("wire") == {"duplicate of an earlier row": 1, "no date": 1}


def test_rows_that_differ_in_time_id_text_symbols_or_set_are_all_kept(store: MarketStore) -> None:
    items = (an_item(), an_item(at=CLOSE), an_item(item_id="1"), an_item("Shares fall"), an_item(symbols=("AAPL",)))
    assert store.add_news("wire", [rows(*items)], source=FILE).new == 5
    assert store.add_news("other", [rows(*items)], source=FILE).new == 5
    assert store.add_news("wire", [rows(an_item(known_at=CLOSE))], source=FILE) == Added(known_already=1)


def test_many_headlines_made_of_one_row_of_a_file_are_all_kept(store: MarketStore) -> None:
    news = NewsBatch.of([an_item("Top1"), an_item("Top2"), an_item("Top1")])
    piece = NewsRows(news=news, row=np.array([1, 1, 1]))
    assert store.add_news("wire", [piece], source=FILE) == Added(new=2, duplicates=1)


def test_different_headlines_with_one_checksum_are_both_kept_and_each_known_again(store: MarketStore) -> None:
    one, two = _texts_of_one_checksum()
    items = (an_item(one), an_item(two), an_item(two), an_item(one))
    assert store.add_news("wire", [rows(*items)], source=FILE) == Added(new=2, duplicates=2)
    assert headlines(store) == sorted([one, two])
    assert store.add_news("wire", [rows(*items)], source=FILE) == Added(known_already=4)


def _texts_of_one_checksum() -> tuple[str, str]:
    seen: dict[int, str] = {}
    for number in range(1_000_000):  # about 80,000 are enough for two to meet
        text = f"headline {number * 2654435761 % 2**32:x}"
        twin = seen.setdefault(crc32(f"\x1f{text}\x1f".encode()), text)
        if twin != text:
            return twin, text
    raise AssertionError("no two texts with one CRC-32")


def test_a_headline_that_is_not_unicode_goes_to_quarantine_and_the_others_stay(store: MarketStore) -> None:
    pieces = [rows(an_item("good"), an_item("bad \ud83d"), rejected=(Rejected(row=3, reason="r", text="\udcff"),))]
    assert store.add_news("wire", pieces, source=FILE) == Added(new=1, rejected=2)
    assert [(q.row, q.text) for q in store.quarantine("wire")] == [(2, "bad ?"), (3, "?")]


# What is there


def test_names_and_symbols_tell_counts_and_spans(store: MarketStore) -> None:
    store.add_bars([a_bar(), a_bar(session=date(2010, 3, 3)), a_bar(symbol="NDX")], source="test")
    store.add_bars([a_bar(11.0, known_at=EVER)], source="test")
    store.add_news("wire", [rows(an_item("a", NOON), an_item("b", NOON, CLOSE))], source=FILE)
    store.add_news("empty", [], source=FILE)
    assert store.symbols() == {"NDX": Span(1, DAY, DAY), "SPX": Span(2, DAY, date(2010, 3, 3))}
    assert store.names() == {"empty": Span(0, None, None), "wire": Span(2, NOON, CLOSE)}


def test_one_file_read_in_two_ways_does_not_go_into_one_set(store: MarketStore, path: Path) -> None:
    later = replace(FILE, options="delay 30", name="copy.csv")
    store.add_news("wire", [rows(rejected=(Rejected(row=1, reason="no time"),))], source=replace(FILE, options="zone?"))
    store.add_news("wire", [rows(an_item("a"))], source=FILE)  # the reading before brought nothing
    before = everything(path)
    with pytest.raises(ConfigError) as caught:
        store.add_news("wire", [rows(an_item("a", NOON, NOON + timedelta(minutes=30)))], source=later)
    expected = "copy.csv in wire: the file is in this set already, read in another way; choose another --name"
    assert str(caught.value) == expected
    assert everything(path) == before
    assert store.add_news("other", [rows(an_item("a"))], source=later) == Added(new=1)
    live = FileSource(name="live", options="one")
    assert store.add_news("feed", [rows(an_item("a"))], source=live) == Added(new=1)
    assert store.add_news("feed", [rows(an_item("b"))], source=replace(live, options="two")) == Added(new=1)


def test_a_file_is_known_by_content_and_options_and_a_live_feed_by_name(store: MarketStore, tmp_path: Path) -> None:
    store.add_news("wire", [rows(an_item("a"))], source=FILE)
    store.add_news("wire", [rows(an_item("b"))], source=FileSource(name="https://feed"))
    assert store.has_file("wire", replace(FILE, name="renamed.csv"))
    assert not store.has_file("wire", replace(FILE, options="zone=UTC"))
    assert not store.has_file("other", FILE)
    assert store.has_file("wire", FileSource(name="https://feed"))
    assert not store.has_file("wire", FileSource(name="https://other"))
    (tmp_path / "n.csv").write_text("x")
    assert FileSource.of(tmp_path / "n.csv").size == 1
    with pytest.raises(BadFile, match="No such file"):
        FileSource.of(tmp_path / "none.csv")


def test_an_import_is_recorded_with_its_time_its_counts_and_its_headlines(store: MarketStore, path: Path) -> None:
    store.add_bars([a_bar()], source="prices")
    store.add_news("wire", [rows(an_item("a"), an_item("b"))], source=FILE)
    with sqlite3.connect(path) as db:
        found = db.execute("SELECT source, imported_at, first_news, last_news, new FROM imports ORDER BY id").fetchall()
    at = int(EVER.timestamp() * 1e6)
    assert found == [("prices", at, None, None, 1), ("news.csv", at, 1, 2, 2)]


# Nothing by halves


@pytest.mark.parametrize("table", ["bars", "news", "imports", "quarantine", "news_sets"])
def test_the_database_itself_refuses_to_change_or_delete(store: MarketStore, path: Path, table: str) -> None:
    store.add_bars([a_bar()], source="test")
    store.add_news("wire", [rows(an_item(), rejected=(Rejected(row=2, reason="r"),))], source=FILE)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA recursive_triggers = ON")
        for sql in (f"DELETE FROM {table}", f"UPDATE {table} SET rowid = rowid + 1",
                    f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}"):  # fmt: skip
            with pytest.raises(sqlite3.IntegrityError, match=r"append-only|known later"):
                db.execute(sql)


def test_a_source_that_fails_midway_leaves_nothing(store: MarketStore, path: Path) -> None:
    store.add_news("old", [rows(an_item())], source=FILE)
    before = everything(path)

    def failing() -> Iterator[NewsRows]:
        yield rows(an_item("a"), rejected=(Rejected(row=2, reason="r"),))
        raise BadNews("the rest is unreadable")

    with pytest.raises(BadNews, match="unreadable"):
        store.add_news("wire", failing(), source=FILE)
    assert everything(path) == before
    assert store.add_news("wire", [rows(an_item("a"))], source=FILE) == Added(new=1)


CHILD = """
import sys
import numpy as np
from pathlib import Path
from trader.events import NewsBatch, NewsRows
from trader.store import FileSource, MarketStore

def pieces(count):
    for piece in range(count):
        n = 20_000
        at = np.arange(n) + piece * n
        texts = [f"headline {i} of a file that is being imported while something goes wrong" for i in at]
        yield NewsRows(row=at + 1, news=NewsBatch(published_at=at, known_at=at, headline=texts, symbols=[""] * n,
            item_id=[""] * n, sentiment=np.full((n, 3), np.nan, dtype=np.float32)))
        print(piece, flush=True)
"""


def _child(code: str, path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD + code, str(path)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_kill_in_the_middle_of_an_import_leaves_the_store_whole(store: MarketStore, path: Path) -> None:
    store.add_news("old", [rows(an_item())], source=FILE)
    before = everything(path)
    code = "MarketStore.open(Path(sys.argv[1])).add_news('new', pieces(10**6), source=FileSource(name='f'))"
    with _child(code, path) as child:
        assert child.stdout is not None
        while child.stdout.readline() != "6\n":  # 140,000 rows: some have spilled from memory into the log
            pass
        child.send_signal(signal.SIGKILL)
    assert (path.parent / "market.db-wal").stat().st_size > 1_000_000
    store.close()
    with MarketStore.open(path) as reopened:
        assert everything(path) == before
        assert list(reopened.names()) == ["old"]
        assert reopened.add_news("new", [rows(an_item("a"))], source=FILE) == Added(new=1)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


DISK_FULL = """
import resource
from trader.errors import StoreError
store = MarketStore.open(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
try:
    store.add_news('new', pieces(50), source=FileSource(name='f'))
except StoreError as error:
    print(error)
    sys.exit(2)
"""


def test_a_file_that_may_not_grow_is_one_error_and_the_old_rows_stay(store: MarketStore, path: Path) -> None:
    store.add_news("old", [rows(an_item())], source=FILE)
    before = everything(path)
    with _child(DISK_FULL, path) as child:
        out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (2, "")
    assert out.splitlines()[-1].startswith(f"{path}: the disk failed, nothing of this was kept; check its space")
    assert everything(path) == before
    assert headlines(store, name="old") == ["Shares rise"]


def test_a_full_disk_is_one_error_and_the_old_rows_stay(store: MarketStore, path: Path) -> None:
    store.add_news("old", [rows(an_item())], source=FILE)
    before = everything(path)
    store._db.execute("PRAGMA max_page_count = 60")
    many = [rows(*(an_item(f"{'long ' * 50}{n}") for n in range(2000)))]
    with pytest.raises(StoreError, match=r"market.db: the disk is full, nothing of this was kept; make room"):
        store.add_news("new", many, source=FILE)
    assert everything(path) == before
    store._db.execute("PRAGMA max_page_count = 1000000")
    assert store.add_news("new", many, source=FILE) == Added(new=2000)


def test_a_second_writer_waits_for_the_first(store: MarketStore, path: Path) -> None:
    def from_another_thread() -> None:
        with MarketStore.open(path, wait_seconds=20) as other:
            results.append(other.add_news("wire", [rows(an_item("b"))], source=FILE))

    def slow() -> Iterator[NewsRows]:
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        yield rows(an_item("a"))

    results: list[Added] = []
    thread = Thread(target=from_another_thread)
    assert store.add_news("wire", slow(), source=FILE) == Added(new=1)
    thread.join()
    assert results == [Added(new=1)]
    assert headlines(store) == ["a", "b"]


def test_within_a_snapshot_an_import_of_another_program_is_not_seen(store: MarketStore, path: Path) -> None:
    store.add_news("wire", [rows(an_item("a"))], source=FILE)
    with MarketStore.open(path) as other:
        with store.snapshot():
            other.add_news("wire", [rows(an_item("b"))], source=replace(FILE, sha256="cd" * 32))
            other.add_bars([a_bar()], source="other")
            with store.snapshot():
                assert (headlines(store), store.symbols()) == (["a"], {})
            assert headlines(store) == ["a"], "the end of an inner one ends nothing"
            with pytest.raises(StoreError, match="nothing can be written within a snapshot"):
                store.add_bars([a_bar()], source="own")
        assert (headlines(store), list(store.symbols())) == (["a", "b"], ["SPX"])
        with pytest.raises(KeyboardInterrupt), store.snapshot():
            raise KeyboardInterrupt
        store.add_bars([a_bar(symbol="NDX")], source="own")
        assert list(other.symbols()) == ["NDX", "SPX"]


def test_two_writers_of_many_small_transactions_lose_nothing(path: Path) -> None:
    def write(symbol: str) -> None:
        with MarketStore.open(path, wait_seconds=20) as own:
            for day in range(60):
                own.add_bars([a_bar(symbol=symbol, session=DAY + timedelta(days=day))], source=symbol)

    MarketStore.open(path).close()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, ["SPX", "NDX"]))  # raises what a writer raised
    with MarketStore.open(path) as store:
        assert [span.count for span in store.symbols().values()] == [60, 60]


def test_a_writer_that_waited_too_long_says_so_and_readers_go_on(store: MarketStore, path: Path) -> None:
    store.add_news("wire", [rows(an_item("a"))], source=FILE)

    def busy() -> Iterator[NewsRows]:
        yield rows(an_item("b"))
        with MarketStore.open(path, wait_seconds=0.05) as other:
            assert headlines(other) == ["a"]
            with pytest.raises(StoreError, match="another program is writing to it; wait"):
                other.add_bars([a_bar()], source="test")

    store.add_news("wire", busy(), source=FILE)
    assert headlines(store) == ["a", "b"]


def test_processes_that_make_the_store_at_once_all_succeed(path: Path) -> None:
    code = "MarketStore.open(Path(sys.argv[1])).add_news(f'n{sys.argv[0]}', pieces(1), source=FileSource(name='f'))"
    children = [_child(code, path) for _ in range(3)]
    assert [child.communicate(timeout=60)[1] for child in children] == ["", "", ""]


# Files that are no store


def test_what_is_not_a_database_is_one_error_and_stays_as_it_is(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.db"
    for content in (b"x", b"this is not a database at all\n" * 500):
        garbage.write_bytes(content)
        for read_only in (False, True):
            with pytest.raises(StoreError, match=r"garbage.db: not a SQLite database; name another file"):
                MarketStore.open(garbage, read_only=read_only)
        assert garbage.read_bytes() == content
    with pytest.raises(StoreError, match=r"cannot be opened as a database file.*check the path"):
        MarketStore.open(tmp_path)
    with pytest.raises(StoreError, match="cannot make the store's folder"):
        MarketStore.open(garbage / "sub" / "market.db")


def test_another_programs_database_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="not a market store"):
        MarketStore.open(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("version", "words"), [(99, "a newer version.*99.*update"), (0, "an older version.*got 0")])
def test_a_store_of_another_version_is_refused(path: Path, version: int, words: str) -> None:
    MarketStore.open(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(StoreError, match=words):
        MarketStore.open(path)


def test_a_damaged_store_is_one_error(store: MarketStore, path: Path) -> None:
    store.add_news("wire", [rows(*(an_item(f"{n} {'x' * 100}") for n in range(2000)))], source=FILE)
    store.close()
    content = path.read_bytes()
    path.write_bytes(content[:8192] + b"\xff" * (len(content) - 8192))
    with pytest.raises(StoreError, match=r"the database is damaged; restore it"), MarketStore.open(path) as damaged:
        headlines(damaged)


def test_read_only_reads_and_refuses_to_write(store: MarketStore, path: Path) -> None:
    with pytest.raises(StoreError, match="there is no market store; import prices or news first"):
        MarketStore.open(path.with_name("none.db"), read_only=True)
    store.add_bars([a_bar()], source="test")
    with MarketStore.open(path, read_only=True) as reader:
        assert reader.as_of(EVER).bar("SPX", DAY) == a_bar()
        with pytest.raises(StoreError, match="cannot be written"):
            reader.add_bars([a_bar(symbol="NDX")], source="test")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_one_error(path: Path) -> None:
    MarketStore.open(path).close()
    path.chmod(0)
    with pytest.raises(StoreError, match="check the path and its permissions"):
        MarketStore.open(path)


def test_a_closed_store_says_so(store: MarketStore) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.symbols()


# Against a list

INSTANTS = [NOON + timedelta(hours=h) for h in range(4)]
ITEMS = st.builds(
    lambda text, published, delay, item_id: an_item(text, published, published + delay, item_id=item_id),
    st.sampled_from(["a", "b", "ü"]),
    st.sampled_from(INSTANTS),
    st.sampled_from([timedelta(0), timedelta(hours=1)]),
    st.sampled_from(["", "1"]),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.lists(st.lists(ITEMS, max_size=8), max_size=3), span=st.tuples(*[st.sampled_from(INSTANTS)] * 3))
def test_news_equals_a_list_searched_by_hand(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[NewsItem]], span: tuple[datetime, datetime, datetime]
) -> None:
    after, until, instant = span
    kept: dict[tuple[object, ...], NewsItem] = {}
    with MarketStore.open(tmp_path_factory.mktemp("store") / "m.db") as store:
        store.add_news("wire", [], source=FILE)
        for number, file in enumerate(files):
            earlier = set(kept)
            for item in file:
                kept.setdefault((item.published_at, item.item_id, item.headline), item)
            known = sum((i.published_at, i.item_id, i.headline) in earlier for i in file)
            new = len(kept) - len(earlier)
            added = store.add_news("wire", [rows(*file)], source=FileSource(name=str(number)))
            assert added == Added(new=new, known_already=known, duplicates=len(file) - new - known)
        expected = sorted(
            (item for item in kept.values() if after < item.known_at <= min(until, instant)),
            key=lambda i: (i.known_at, i.published_at, i.item_id, i.headline),
        )
        view = store.as_of(instant)
        assert list(view.news("wire", after, until).items()) == expected
        assert view.news_count("wire", after, until) == len(expected)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("TRADER_TEST_DATA"), reason="TRADER_TEST_DATA is not set: no Reuters headlines")
def test_a_year_of_reuters_is_stored_whole(store: MarketStore) -> None:
    import pandas as pd

    frame = pd.read_parquet(Path(os.environ["TRADER_TEST_DATA"]) / "reuters" / "headlines_2013.parquet")
    at = frame["published_at"].astype("datetime64[us, UTC]").astype("int64").to_numpy()
    count = len(frame)
    news = NewsBatch(
        published_at=at, known_at=at, headline=frame["headline"].tolist(), symbols=[""] * count,
        item_id=frame["source_id"].tolist(), sentiment=np.full((count, 3), np.nan, dtype=np.float32),
    )  # fmt: skip
    assert store.add_news("r", [NewsRows(news=news, row=np.arange(1, count + 1))], source=FILE) == Added(new=count)
    assert store.as_of(EVER).news_count("r", PAST, EVER) == count == 243_974
