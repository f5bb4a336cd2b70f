"""Read headlines from RSS and Atom over HTTP, trusting the server with nothing: not its time, size, pace or format.

    address → download (bounded) → no DTD → feedparser → entries (titles, times) → Fetched

requests rather than httpx2: it is installed as yfinance's own, and lets us at the socket. Both time out each read
alone, so a server that sends a byte a second would hold us for ever; here a watch ends the whole exchange at its
deadline by shutting the connection, whatever it waits for (only the look-up of a name is the system's to end).
feedparser is given bytes in a stream, never an address or a string: it would open those itself.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from io import BytesIO
import re
import socket
import threading
from time import perf_counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from feeds.base import FeedState, Fetched
from feeds.entries import Entry, rows_of
from trader.clock import Clock
from trader.errors import SourceError

if TYPE_CHECKING:
    import requests

CONNECT_S = 10.0
MOST_REDIRECTS = 5
MOST_MARKS = 200_000  # of "<" and "&"; feedparser takes up to 60 µs for each (measured), and nobody can stop it
_CHUNK = 1 << 16
_SENT = {"User-Agent": "news-trader/0.1", "Accept": "application/atom+xml, application/rss+xml, application/xml, */*"}
_REDIRECTS = (301, 302, 303, 307, 308)
LATER = "nothing to do: it is asked again later"
# Atomic and possessive: a hostile prolog costs no more than its length. A DTD can stand nowhere else.
_DTD = re.compile(
    rb"\A(?>\xef\xbb\xbf|\xff\xfe|\xfe\xff)?(?>\s+|<\?.*?\?>|<!--.*?-->)*+<!DOCTYPE\b\s*(\w*)", re.DOTALL | re.I
)
_END = re.compile(rb"</\s*(?:\w+:)?(?:rss|feed|rdf)\s*>", re.I)
_ONLY_A_DAY = re.compile(r"\s*\d{4}-?\d\d-?\d\d\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one fetch may cost: bytes of the unpacked answer, and seconds from the first byte sent to the last read."""

    most_bytes: int = 5_000_000
    seconds: float = 20.0


@dataclass(frozen=True, slots=True)
class _Answer:
    """A finished exchange: its status, its headers, its body and the instant at which all of that was here."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    received: datetime


def fetch(
    url: str, *, clock: Clock, state: FeedState | None = None, limits: Limits | None = None, symbols: str = ""
) -> Fetched:
    """Ask a feed for its entries; with the ``state`` of the last answer only for a newer document.

    clock: read once the whole answer is here; that is the headlines' known_at.
    symbols: space-separated tickers that all its headlines are about, "" for the whole market.
    Redirects are followed to http and https alone, five at most, never from https to http.
    Raises SourceError in one line: unreachable, too slow, too large, cut off, a bad status (with the time that the
    server asked us to wait), a page or garbage instead of a feed, a DTD.
    """
    state, limits = state or FeedState(), limits or Limits()
    answer = _download(url, state, limits, clock)
    ahead = _server_ahead(answer)
    _refuse_status(answer, state)
    if answer.status == 304:
        return Fetched(state=state, not_modified=True, server_ahead_seconds=ahead)
    news, skewed = rows_of(_entries(answer, symbols), received=answer.received)
    kept = FeedState(etag=answer.headers.get("etag", ""), last_modified=answer.headers.get("last-modified", ""))
    return Fetched(news=news, state=kept, skewed=skewed, server_ahead_seconds=ahead)


def _download(url: str, state: FeedState, limits: Limits, clock: Clock) -> _Answer:
    import requests

    asked = {"If-None-Match": state.etag, "If-Modified-Since": state.last_modified}
    headers = {**_SENT, **{name: value for name, value in asked.items() if value}}
    with requests.Session() as session, _watched(session, limits.seconds) as watch, _translated(url, watch):
        for _ in range(MOST_REDIRECTS + 1):
            _refuse_address(url)
            wait = min(CONNECT_S, limits.seconds), limits.seconds
            with session.get(url, headers=headers, stream=True, allow_redirects=False, timeout=wait) as response:
                target = response.headers.get("location")
                if response.status_code not in _REDIRECTS or not target:
                    body = b"" if response.status_code >= 300 else _body(response, url, limits, watch)
                    return _Answer(url, response.status_code, response.headers, body, clock.now())
            url = _next_address(url, target)
    raise SourceError(
        f"more than {MOST_REDIRECTS} redirects", where=shown(url), do="put the final address into [feeds]"
    )


def _body(response: requests.Response, url: str, limits: Limits, watch: _Watch) -> bytes:
    parts, size = [], 0
    for part in response.iter_content(_CHUNK):
        parts.append(part)
        size += len(part)
        if size > limits.most_bytes:
            raise SourceError(
                "the feed is too large", where=shown(url), expected=f"at most {limits.most_bytes / 1e6:g} MB",
                do="check the address, or raise max_megabytes",
            )  # fmt: skip
    if watch.expired.is_set():  # shut by us, which without a stated length looks like an end
        raise TimeoutError
    return b"".join(parts)


def _refuse_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SourceError("not an address of the web", where=shown(url), expected="http://… or https://…")


def _next_address(url: str, target: str) -> str:
    following = urljoin(url, target)
    if urlsplit(url).scheme == "https" and urlsplit(following).scheme == "http":
        raise SourceError(
            "redirected from https to http, where anybody on the way could write the news",
            where=shown(url), got=shown(following), do="find the feed's https address",
        )  # fmt: skip
    return following


def shown(url: str) -> str:
    """Return an address without what may be secret in it: name, password and query."""
    scheme, _, rest = url.partition("?")[0].partition("#")[0].partition("://")  # of a damaged one too
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


class _Watch:
    """The connections of one exchange, and the thread that shuts them once its time is over."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.connections, self.sockets = seconds, list[Any](), list[socket.socket]()
        self.expired, self.done = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._guard, name="feed deadline", daemon=True)

    def note(self, connection: Any) -> Any:
        """Keep hold of a connection's socket: an answer that ends with the connection takes it away from there."""
        connect = connection.connect

        def connecting() -> None:
            connect()
            self.sockets.append(connection.sock)

        connection.connect = connecting
        self.connections.append(connection)  # whose socket, while it is still being connected, is a proxy's
        return connection

    def _guard(self) -> None:
        if self.done.wait(self.seconds):
            return
        self.expired.set()
        while True:  # again and again: one may be about to open
            for one in [*self.sockets, *(connection.sock for connection in list(self.connections))]:
                with suppress(OSError, TypeError):  # it has gone by itself, or is not there yet (None)
                    # Not its own shutdown(): that of a TLS socket drops state which the reader still uses.
                    socket.socket.shutdown(one, socket.SHUT_RDWR)
            if self.done.wait(0.1):
                return


@contextmanager
def _watched(session: requests.Session, seconds: float) -> Iterator[_Watch]:
    """Let nothing that goes through the session last longer than this, all redirects together."""
    from requests.adapters import HTTPAdapter

    watch = _Watch(seconds)

    class Adapter(HTTPAdapter):
        """Notes each connection when it is made, before it is opened."""

        def get_connection_with_tls_context(self, *args: Any, **named: Any) -> Any:
            pool = super().get_connection_with_tls_context(*args, **named)
            make = type(pool).ConnectionCls

            pool.ConnectionCls = lambda *args, **named: watch.note(make(*args, **named))  # type: ignore[assignment]
            return pool

    session.mount("http://", Adapter())
    session.mount("https://", Adapter())
    watch.thread.start()
    try:
        yield watch
    finally:
        watch.done.set()
        watch.thread.join()


@contextmanager
def _translated(url: str, watch: _Watch) -> Iterator[None]:
    """Turn what requests, urllib3 and the network raise into one SourceError."""
    started = perf_counter()
    try:
        yield
    except (OSError, ValueError) as error:  # requests' errors are OSErrors, those of bad addresses ValueErrors
        what, do = _meaning(error)
        if watch.expired.is_set() or "Timeout" in type(error).__name__:
            what, do = f"no whole answer within {watch.seconds:g} seconds", LATER
            raise SourceError(what, where=shown(url), got=f"{perf_counter() - started:.1f} s", do=do) from error
        raise SourceError(what, where=shown(url), got=type(error).__name__, do=do) from error


def _meaning(error: Exception) -> tuple[str, str]:
    names = {kind.__name__ for kind in type(error).__mro__}
    if "SSLError" in names:
        return "the server's certificate cannot be trusted", "check the address and this machine's clock"
    if names & {"ChunkedEncodingError", "ProtocolError"}:
        return "the answer was cut off", LATER
    if "ContentDecodingError" in names:
        return "the answer cannot be unpacked", LATER
    if names & {"InvalidURL", "InvalidSchema", "MissingSchema", "UnicodeError", "LocationParseError"}:
        return "not an address of the web", "correct it"
    return "the feed cannot be reached", "check the address and the network connection"


def _refuse_status(answer: _Answer, state: FeedState) -> None:
    status, where = answer.status, shown(answer.url)
    if status == 200 or (status == 304 and state != FeedState()):
        return
    if status in (401, 403):
        what, do = f"the server refuses us ({status})", "check the address, and whether it needs a password"
    elif status in (404, 410):
        what, do = f"there is no feed at this address ({status})", "correct it"
    elif status == 429:
        what, do = "the server refuses: too many requests (429)", "raise every_minutes if it goes on"
    elif status >= 500:
        what, do = f"the feed's server failed ({status})", LATER
    else:
        what, do = f"an answer that is no feed ({status})", "check the address"
    error = SourceError(what, where=where, do=do)
    error.retry_after_seconds = _retry_after(answer)
    raise error


def _retry_after(answer: _Answer) -> float:
    """Return the seconds that Retry-After asks for; as a date it counts from the server's own clock."""
    stated = answer.headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", stated, re.ASCII):
        return float(stated)
    until, sent = _http_date(stated), _http_date(answer.headers.get("date", ""))
    return max(0.0, (until - (sent or answer.received)).total_seconds()) if until else 0.0


def _server_ahead(answer: _Answer) -> float | None:
    sent = _http_date(answer.headers.get("date", ""))
    return (sent - answer.received).total_seconds() if sent else None


def _http_date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return None
    return found.replace(tzinfo=timezone.utc) if found.tzinfo is None else found


def _entries(answer: _Answer, symbols: str) -> list[Entry]:
    import feedparser

    body, where = answer.body, shown(answer.url)
    bare = body.replace(b"\0", b"")  # UTF-16 and UTF-32 as well
    _refuse_what_is_no_feed(bare, where)
    headers = {"content-type": _content_type(answer)}
    try:
        parsed = feedparser.parse(
            BytesIO(body), response_headers=headers, sanitize_html=False, resolve_relative_uris=False
        )
    except Exception as error:  # on hostile bytes it has raised whatever its parts raise
        raise SourceError("cannot be read as a feed", where=where, got=type(error).__name__, do=LATER) from error
    if not parsed.version and not parsed.entries:
        raise SourceError("neither RSS nor Atom", where=where, got=ascii(bare[:60]), do="check the address")
    if parsed.bozo and not _END.search(bare[-2000:]):
        raise SourceError("the feed was cut off in its middle", where=where, do=LATER)
    return [_entry(entry, symbols) for entry in parsed.entries]


def _refuse_what_is_no_feed(body: bytes, where: str) -> None:
    if not body.strip():
        raise SourceError("an empty answer", where=where, do="check the address, or try again later")
    found = _DTD.match(body)
    if (found and found[1].lower() == b"html") or re.match(rb"\s*<html", body, re.I):
        raise SourceError("a page instead of a feed", where=where, do="check the address: it may be a block page")
    if found:
        what = "the feed carries a DTD, which is refused: entities can be bombs"
        raise SourceError(what, where=where, do="find another address of it")
    if (marks := body.count(b"<") + body.count(b"&")) > MOST_MARKS:
        got, expected = f"{marks:,} marks", f"at most {MOST_MARKS:,}"
        raise SourceError("too much markup for a feed", where=where, got=got, expected=expected, do="check the address")


def _content_type(answer: _Answer) -> str:
    """Return the content type to decode by: UTF-8 where the bytes are it beyond doubt, whatever was declared.

    A server's charset is often its default and not the document's, and Latin-1 decodes anything.
    """
    try:
        answer.body.decode("utf-8")
    except UnicodeDecodeError:
        return answer.headers.get("content-type", "")
    if answer.body.isascii() or b"\0" in answer.body:  # then UTF-7, ISO-2022 and UTF-16 are possible as well
        return answer.headers.get("content-type", "")
    return "application/xml; charset=utf-8"


def _entry(entry: Any, symbols: str) -> Entry:
    # dict's own get: feedparser's takes published for a missing updated, and warns of it.
    name = "published" if dict.get(entry, "published_parsed") else "updated"
    stated, text = _instant(dict.get(entry, f"{name}_parsed")), str(dict.get(entry, name, ""))
    link = str(entry.get("link", ""))
    return Entry(
        item_id=str(entry.get("id", "")) or link or (text if stated else ""),
        title=str(entry.get("title", "")),
        stated=stated,
        whole_day=_ONLY_A_DAY.fullmatch(text) is not None,
        symbols=symbols,
    )


def _instant(parsed: Any) -> datetime | None:
    """Return feedparser's UTC tuple as an instant, None where there is none or no calendar has it."""
    if not parsed:
        return None
    try:
        return datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=calendar.timegm(parsed))
    except (ValueError, OverflowError, TypeError):
        return None
