"""feeds.yahoo against a real HTTP server on loopback: real yfinance, real status codes, no internet."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import math
import threading
from urllib.parse import urlsplit, urlunsplit

import pytest
import requests
from requests.adapters import HTTPAdapter

from feeds.base import Fetched
from feeds.yahoo import fetch_bars, fetch_news, live_bars, newest_bars
from trader.clock import Calendar, SimulatedClock
from trader.errors import BadBar, SourceError, TimeError
from trader.events import NewsItem

FIRST, LAST = date(2024, 7, 1), date(2024, 7, 12)  # the 3rd closes at 13:00, the 4th is a holiday
AFTER = datetime(2024, 8, 1, tzinfo=timezone.utc)
SESSIONS = Calendar().sessions(FIRST, LAST)


def chart(symbol: str, sessions: list[date], closes: list[float | None]) -> dict[str, object]:
    """Return a daily chart as Yahoo sends it: each session stamped with its open, 09:30 in New York."""
    stamps = [int(datetime(day.year, day.month, day.day, 13, 30, tzinfo=timezone.utc).timestamp()) for day in sessions]
    quote = {
        "open": closes,
        "close": closes,
        "high": [None if close is None else close + 1 for close in closes],
        "low": [None if close is None else close - 1 for close in closes],
        "volume": [None if close is None else 1000 for close in closes],
    }
    meta = {
        "currency": "USD",
        "symbol": symbol,
        "instrumentType": "EQUITY",
        "exchangeTimezoneName": "America/New_York",
        "gmtoffset": -14400,
        "timezone": "EDT",
        "dataGranularity": "1d",
        "priceHint": 2,
        "validRanges": ["1d", "max"],
    }
    adjusted = [None if close is None else close / 2 for close in closes]
    result = {"meta": meta, "timestamp": stamps, "indicators": {"quote": [quote], "adjclose": [{"adjclose": adjusted}]}}
    return {"chart": {"result": [result], "error": None}}


PRICES: list[float | None] = [100.0 + row for row in range(len(SESSIONS))]
ANSWERS: dict[str, tuple[int, object]] = {
    "GOOD": (200, chart("GOOD", SESSIONS, PRICES)),
    "YOUNG": (200, chart("YOUNG", SESSIONS[4:], PRICES[4:])),
    "HOLE": (200, chart("HOLE", SESSIONS[:3] + SESSIONS[4:], PRICES[:3] + PRICES[4:])),
    "BLANK": (200, chart("BLANK", SESSIONS, [*PRICES[:3], None, *PRICES[4:]])),
    "EMPTY": (200, chart("EMPTY", [], [])),
    "LIMIT": (429, "Too Many Requests"),
    "BROKEN": (500, "Internal Server Error"),
    "BLOCKED": (200, "<html><body>Please verify that you are human</body></html>"),
    "DOWN": (200, "<html>Will be right back...</html>"),
    "SERVER": (500, {"chart": {"result": None, "error": {"code": "Internal Server Error", "description": "Oops"}}}),
    "GONE": (404, {"chart": {"result": None, "error": {"code": "Not Found", "description": "No data found"}}}),
}


class Yahoo(BaseHTTPRequestHandler):
    """Answers for a symbol as ANSWERS says, and hands out a crumb."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if "/chart/" in path:
            status, answer = ANSWERS[path.rsplit("/", 1)[1]]
        elif "/finance/quote" in path:  # where yfinance looks next for a symbol without a chart
            status, answer = ANSWERS["SERVER" if "SERVER" in self.path else "GONE"]
        else:
            status, answer = 200, "a-crumb"
        self._send(status, answer)

    def _send(self, status: int, answer: object) -> None:
        body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if isinstance(answer, str) else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Answer for the symbol that the body names, as HEADLINES says: news."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, answer = HEADLINES[asked["serviceConfig"]["s"][0]]
        self._send(status, answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class ToLoopback(HTTPAdapter):
    """Sends whatever is meant for Yahoo to a port of this machine."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port

    def send(self, request: requests.PreparedRequest, *args: object, **kwargs: object) -> requests.Response:
        parts = urlsplit(str(request.url))
        assert str(parts.hostname).endswith("yahoo.com")
        request.url = urlunsplit(("http", f"127.0.0.1:{self.port}", parts.path, parts.query, ""))
        return super().send(request, *args, **kwargs)  # type: ignore[arg-type]


def session_to(port: int) -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    session.mount("https://", ToLoopback(port))
    session.mount("http://", ToLoopback(port))
    return session


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    import yfinance

    yfinance.set_tz_cache_location(str(tmp_path_factory.mktemp("yfinance")))


@pytest.fixture(scope="module")
def yahoo() -> Iterator[requests.Session]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Yahoo)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield session_to(server.server_address[1])
    server.shutdown()
    server.server_close()
    thread.join()


def test_bars_come_unadjusted_with_the_adjusted_close_beside_and_known_at_the_true_close(
    yahoo: requests.Session,
) -> None:
    bars = fetch_bars("GOOD", FIRST, LAST, now=AFTER, session=yahoo)
    assert [bar.session for bar in bars] == SESSIONS
    assert bars[0].close == 100.0
    assert math.isclose(bars[0].adj_close, 50.0)
    early = bars[SESSIONS.index(date(2024, 7, 3))]
    assert early.known_at == datetime(2024, 7, 3, 17, 0, tzinfo=timezone.utc)


def test_an_unfinished_session_is_left_out_until_its_close(yahoo: requests.Session) -> None:
    before = datetime(2024, 7, 12, 19, 59, 59, tzinfo=timezone.utc)
    at_close = datetime(2024, 7, 12, 20, 0, tzinfo=timezone.utc)
    assert fetch_bars("GOOD", FIRST, LAST, now=before, session=yahoo)[-1].session == date(2024, 7, 11)
    assert fetch_bars("GOOD", FIRST, LAST, now=at_close, session=yahoo)[-1].session == date(2024, 7, 12)


def test_nothing_is_asked_before_the_first_session_has_closed() -> None:
    assert fetch_bars("GOOD", FIRST, LAST, now=datetime(2024, 7, 1, tzinfo=timezone.utc)) == []


def test_a_younger_listing_starts_later(yahoo: requests.Session) -> None:
    assert [bar.session for bar in fetch_bars("YOUNG", FIRST, LAST, now=AFTER, session=yahoo)] == SESSIONS[4:]


@pytest.mark.parametrize(
    ("symbol", "words"),
    [
        ("LIMIT", "too many requests"),
        ("BROKEN", "a page instead of prices.*a server error or a block"),
        ("SERVER", r"server failed \(500\)|has no prices"),
        ("BLOCKED", "a page instead of prices"),
        ("DOWN", "Yahoo"),
        ("GONE", "has no prices"),
        ("EMPTY", "has no prices|nothing"),
        ("HOLE", "lacks 1 sessions in its middle.*2024-07-05"),
    ],
)
def test_each_failure_of_yahoo_is_one_source_error(yahoo: requests.Session, symbol: str, words: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        fetch_bars(symbol, FIRST, LAST, now=AFTER, session=yahoo)
    assert symbol in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_failure_after_a_success_is_not_hidden_by_the_cache(yahoo: requests.Session) -> None:
    import yfinance

    ANSWERS["FLAKY"] = (200, chart("FLAKY", SESSIONS, PRICES))
    assert fetch_bars("FLAKY", FIRST, LAST, now=AFTER, session=yahoo)
    ANSWERS["FLAKY"] = (429, "Too Many Requests")
    with pytest.raises(SourceError, match="too many requests"):
        fetch_bars("FLAKY", FIRST, LAST, now=AFTER, session=yahoo)
    assert yfinance.config.debug.hide_exceptions, "the setting of the process must be put back"


def test_an_empty_row_is_refused_not_skipped(yahoo: requests.Session) -> None:
    with pytest.raises(BadBar, match=r"Yahoo BLANK row 4.*open is not a number"):
        fetch_bars("BLANK", FIRST, LAST, now=AFTER, session=yahoo)


def test_no_connection_is_a_source_error() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Yahoo) as closed:
        port = closed.server_address[1]
    with pytest.raises(SourceError, match=r"cannot be reached.*check the network"):
        fetch_bars("OFFLINE", FIRST, LAST, now=AFTER, session=session_to(port))


def test_a_naive_now_is_refused() -> None:
    with pytest.raises(TimeError, match="without a zone"):
        fetch_bars("GOOD", FIRST, LAST, now=datetime(2024, 8, 1))  # noqa: DTZ001


# Live: bars and headlines as they come


def test_a_live_bar_is_known_when_we_received_it_and_not_at_its_close(yahoo: requests.Session) -> None:
    bars = live_bars("GOOD", FIRST, LAST, clock=SimulatedClock(AFTER), session=yahoo)
    assert [bar.session for bar in bars] == SESSIONS
    assert {bar.known_at for bar in bars} == {AFTER}


def test_the_newest_bars_are_those_of_the_last_sessions_that_have_closed(yahoo: requests.Session) -> None:
    for now, last in (
        (datetime(2024, 7, 12, 19, 59, 59, tzinfo=timezone.utc), date(2024, 7, 11)),
        (datetime(2024, 7, 12, 20, 0, tzinfo=timezone.utc), date(2024, 7, 12)),
        (datetime(2024, 7, 14, 12, 0, tzinfo=timezone.utc), date(2024, 7, 12)),  # a Sunday
    ):
        bars = newest_bars("GOOD", 4, clock=SimulatedClock(now), session=yahoo).bars
        assert [bar.session for bar in bars] == [day for day in SESSIONS if day <= last][-4:]
        assert {bar.known_at for bar in bars} == {now}


def test_a_hole_in_the_past_does_not_keep_the_newest_bar_away(yahoo: requests.Session) -> None:
    bars = live_bars("HOLE", FIRST, LAST, clock=SimulatedClock(AFTER), session=yahoo)
    assert [bar.session for bar in bars] == SESSIONS[:3] + SESSIONS[4:]


def nested(title: object = "Shares rise", at: object = "2024-07-31T12:00:00Z", **more: object) -> dict[str, object]:
    link = {"url": f"https://x/{title}"}
    return {"id": f"id of {title}", "content": {"title": title, "pubDate": at, "canonicalUrl": link, **more}}


def flat(title: str, at: object) -> dict[str, object]:
    return {"uuid": f"id of {title}", "title": title, "link": "https://x", "providerPublishTime": at}


def stream(*articles: object) -> dict[str, object]:
    return {"data": {"tickerStream": {"stream": list(articles)}}}


NOON = datetime(2024, 7, 31, 12, 0, tzinfo=timezone.utc)
HEADLINES: dict[str, tuple[int, object]] = {
    "NESTED": (200, stream(nested("Shares <b>rise</b> &amp; fall"), nested("An ad", ad=[]) | {"ad": [1]})),
    "FLAT": (200, stream(flat("Old shape", NOON.timestamp()))),
    "FUTURE": (200, stream(nested(at="2024-08-01T09:00:00Z"), nested("Local", at="2024-07-31T08:00:00-04:00"))),
    "UNDATED": (
        200,
        stream(nested(at=None), nested("Odd", at="soon"), nested("Truth", at=True), nested("Far", at=1e30)),
    ),
    "DAMAGED": (200, stream({}, {"content": None}, {"content": {"title": 7}}, nested("Half \ud800 pair"))),
    "NOTHING": (200, stream()),
    "OTHER": (200, {"error": "no such thing"}),
    "NULL": (200, {"data": None}),
    "LIST": (200, [1, 2]),
    "BLOCKED": (200, "<html><body>Please verify that you are human</body></html>"),
    "DOWN": (200, "<html>Will be right back...</html>"),
    "LIMIT": (429, "Too Many Requests"),
    "BROKEN": (500, "Internal Server Error"),
}


def headlines(symbol: str, yahoo: requests.Session) -> Fetched:
    return fetch_news(symbol, clock=SimulatedClock(AFTER), session=yahoo)


def items_of(fetched: Fetched) -> list[NewsItem]:
    assert fetched.news is not None and fetched.news.live
    return list(fetched.news.news.items())


def test_headlines_of_both_shapes_are_known_when_we_received_them(yahoo: requests.Session) -> None:
    for symbol, title in (("NESTED", "Shares rise & fall"), ("FLAT", "Old shape")):
        (only,) = items_of(headlines(symbol, yahoo))
        assert (only.headline, only.symbols, only.published_at, only.known_at) == (title, (symbol,), NOON, AFTER)
        assert only.item_id.startswith("id of ")


def test_a_headline_from_the_future_is_dated_to_its_receipt_and_counted(yahoo: requests.Session) -> None:
    fetched = headlines("FUTURE", yahoo)
    assert [one.published_at for one in items_of(fetched)] == [AFTER, NOON]
    assert fetched.skewed == 1


def test_a_headline_without_a_readable_time_is_dated_to_its_receipt(yahoo: requests.Session) -> None:
    assert [one.published_at for one in items_of(headlines("UNDATED", yahoo))] == [AFTER] * 4


def test_damaged_articles_are_refused_one_by_one(yahoo: requests.Session) -> None:
    fetched = headlines("DAMAGED", yahoo)
    assert [one.headline for one in items_of(fetched)] == ["Half ? pair"]
    assert fetched.news is not None
    assert [one.reason for one in fetched.news.rejected] == ["an entry without a title"] * 3


@pytest.mark.parametrize(
    ("symbol", "words"),
    [
        ("NOTHING", "no news"),
        ("OTHER", "no news"),
        ("NULL", "cannot be used"),
        ("LIST", "cannot be used"),
        ("BLOCKED", "a page instead of news"),
        ("DOWN", "Yahoo is down"),
        ("LIMIT", "too many requests"),
        ("BROKEN", "a page instead of news.*a server error or a block"),
    ],
)
def test_each_failure_of_yahoos_news_is_one_source_error(yahoo: requests.Session, symbol: str, words: str) -> None:
    import yfinance

    with pytest.raises(SourceError, match=words) as caught:
        headlines(symbol, yahoo)
    assert symbol in str(caught.value) and "\n" not in str(caught.value)
    assert yfinance.config.debug.hide_exceptions, "the setting of the process must be put back"


def test_no_connection_for_news_is_a_source_error() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Yahoo) as closed:
        port = closed.server_address[1]
    with pytest.raises(SourceError, match=r"cannot be reached.*check the network"):
        headlines("OFFLINE", session_to(port))
