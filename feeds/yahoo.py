"""Daily bars and headlines from Yahoo Finance through yfinance; the one place where its ways to fail are translated.

yfinance's ``download()`` never raises, so this asks with ``Ticker.history`` and exceptions on, and takes an empty
answer for a failure. Prices come unadjusted for dividends, with the adjusted close beside them. Headlines are the
newest ten or so: there is no history of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
import warnings

from feeds.base import Fetched
from feeds.entries import Entry, rows_of
from feeds.price_files import EXCHANGE_ZONE, bars_of
from trader.clock import FIRST_DAY, Calendar, Clock
from trader.errors import SourceError
from trader.events import Bar, require_aware

if TYPE_CHECKING:
    import pandas as pd
    import requests

TIMEOUT_S = 20
MOST_HEADLINES = 50  # asked for; Yahoo gives what it has
_PRICES, _NEWS = "prices", "news"


def fetch_bars(
    symbol: str,
    first: date,
    last: date,
    *,
    now: datetime,
    session: requests.Session | None = None,
    holes: bool = False,
) -> list[Bar]:
    """Fetch the bars of the sessions from first to last, both included, that have closed by now; oldest first.

    A session that closes after ``now`` is left out: its bar is not finished. The answer may start later than first
    (a younger listing) and end before last (Yahoo has not the newest bar yet): look at the bars' sessions. A session
    missing in between is refused (unless ``holes`` are allowed), and so is an answer of nothing. Each bar is known_at
    its session's close; whoever fetches live notes when it came.
    session: what to ask with; by default yfinance's own. Yahoo's earlier answers are not taken from its cache.
    Raises SourceError (unreachable, too many requests, a server error, a page instead of prices, unknown symbol,
    a hole), TimeError for a naive now, BadBar for a row that is no bar.
    """
    require_aware(now)
    calendar = Calendar()
    due = [day for day in calendar.sessions(first, last) if calendar.cutoff(day) <= now]
    if not due:
        return []
    with _translated(symbol, _PRICES):
        table = _ask(symbol, first, last, session)
        table = table[[first <= day <= due[-1] for day in _days_of(table)]]
    if table.empty:
        raise SourceError(
            "Yahoo has no prices for these sessions",
            where=symbol,
            expected=f"{due[0]}..{due[-1]}",
            do="check the symbol",
        )
    bars = bars_of(table.rename_axis("Date"), symbol=symbol, source=f"Yahoo {symbol}")
    if not holes:
        _refuse_holes(bars, due, symbol)
    return bars


def live_bars(
    symbol: str, first: date, last: date, *, clock: Clock, session: requests.Session | None = None
) -> list[Bar]:
    """Fetch bars as ``fetch_bars`` does, each known_at the later of its close and the instant at which it was here.

    A session missing in between is left out: it may be in the store for long, and the newest bar is worth having.
    """
    bars = fetch_bars(symbol, first, last, now=clock.now(), session=session, holes=True)
    received = clock.now()
    return [replace(bar, known_at=max(bar.known_at, received)) for bar in bars]


def newest_bars(symbol: str, sessions: int, *, clock: Clock, session: requests.Session | None = None) -> Fetched:
    """Fetch the bars of the last so many sessions that have closed; raises as ``fetch_bars`` does.

    More than one, so that days on which nobody asked are filled and corrections are seen.
    """
    calendar, now = Calendar(), clock.now()
    today = now.astimezone(timezone.utc).date()
    # Two calendar days for each session are more than enough, with a fortnight for the longest closures.
    days = calendar.sessions(max(FIRST_DAY, today - timedelta(days=2 * sessions + 14)), today)
    closed = [day for day in days if calendar.cutoff(day) <= now][-sessions:]
    return Fetched(bars=live_bars(symbol, closed[0], closed[-1], clock=clock, session=session) if closed else ())


def fetch_news(symbol: str, *, clock: Clock, session: requests.Session | None = None) -> Fetched:
    """Fetch the newest headlines on a symbol, known_at the instant at which they were here (see feeds.entries).

    Both shapes that Yahoo has sent are read: an article in ``content`` (since December 2024), and a flat one.
    Raises SourceError (unreachable, too many requests, a page instead of news, no headline at all).
    """
    with _translated(symbol, _NEWS):
        articles = _ask_news(symbol, session)
        received = clock.now()
        entries = [_entry(article, symbol) for article in articles]
    if not entries:
        raise SourceError("Yahoo answered with no news", where=symbol, do="check the symbol, or try again later")
    news, skewed = rows_of(entries, received=received)
    return Fetched(news=news, skewed=skewed)


def _ask_news(symbol: str, session: requests.Session | None) -> list[Any]:
    import yfinance

    hidden = yfinance.config.debug.hide_exceptions
    yfinance.config.debug.hide_exceptions = False
    try:
        found = yfinance.Ticker(symbol, session=session).get_news(count=MOST_HEADLINES)
    finally:
        yfinance.config.debug.hide_exceptions = hidden
    return list(found or ())


def _entry(article: Mapping[str, Any], symbol: str) -> Entry:
    """Read one article of either shape; what is missing or of another type is taken for not stated."""
    nested = article.get("content")
    content: Mapping[str, Any] = nested if isinstance(nested, Mapping) else article
    links = [content.get("canonicalUrl"), content.get("clickThroughUrl"), content.get("link")]
    link = next((text for text in (_text(one) for one in links) if text), "")
    title = content.get("title")
    return Entry(
        item_id=_text(article.get("id")) or _text(article.get("uuid")) or _text(content.get("id")) or link,
        title=title if isinstance(title, str) else "",
        stated=_instant(content.get("pubDate") or content.get("providerPublishTime")),
        symbols=symbol,
    )


def _text(value: object) -> str:
    """Return a text, or the address in an object that holds one; "" for anything else."""
    if isinstance(value, Mapping):
        value = value.get("url")
    return value if isinstance(value, str) else ""


def _instant(value: object) -> datetime | None:
    """Read an ISO time (UTC where it states no zone) or seconds since 1970; None for anything else."""
    try:
        if isinstance(value, str):
            found = datetime.fromisoformat(value)
            return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return None
    return None


def _ask(symbol: str, first: date, last: date, session: requests.Session | None) -> pd.DataFrame:
    import yfinance
    from yfinance.data import YfData

    # Answers about past dates stay in a process-wide cache, where they would hide today's failure.
    YfData.cache_get.cache_clear()
    hidden = yfinance.config.debug.hide_exceptions
    yfinance.config.debug.hide_exceptions = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # yfinance 1.7 on pandas 3 warns of its own code
            table: pd.DataFrame = yfinance.Ticker(symbol, session=session).history(
                start=first.isoformat(),
                end=(last + timedelta(days=1)).isoformat(),
                auto_adjust=False,
                actions=False,
                keepna=True,
                timeout=TIMEOUT_S,
            )
    finally:
        yfinance.config.debug.hide_exceptions = hidden
    if table.empty:
        raise SourceError("Yahoo answered with nothing", where=symbol, do="check the symbol and the dates")
    return table


def _days_of(table: pd.DataFrame) -> list[date]:
    import pandas as pd

    return list(pd.DatetimeIndex(table.index).tz_convert(EXCHANGE_ZONE).date)


@contextmanager
def _translated(symbol: str, wanted: str) -> Iterator[None]:
    """Turn whatever yfinance raises into a SourceError that says what to do; wanted: prices or news."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:  # three HTTP libraries, JSON, pandas and yfinance's own: no common root but this
        what, do = _meaning(error, wanted)
        detail = f"{type(error).__name__}: {str(error)[:160]}"
        raise SourceError(what, where=symbol, got=detail, do=do) from error


def _meaning(error: Exception, wanted: str) -> tuple[str, str]:
    """Say what happened and what to do; classes are told apart by name where requests and curl_cffi each have one."""
    from yfinance import exceptions

    names = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, exceptions.YFRateLimitError) or status == 429:
        return "Yahoo refuses: too many requests (429)", "wait some minutes, then ask again"
    if isinstance(error, exceptions.YFTickerMissingError) or status == 404:
        return f"Yahoo has no {wanted} for the symbol", "check the symbol, or try again later"
    if isinstance(error, exceptions.YFDataException):
        return "Yahoo is down", "try again later"
    if "JSONDecodeError" in names:
        # yfinance 1.7 parses the body whatever the status was, so a 500 and a block page look alike here.
        return f"Yahoo answered with a page instead of {wanted}", "a server error or a block: try again later"
    if "HTTPError" in names:
        return f"Yahoo's server failed ({status})", "try again later"
    if names & {"ConnectionError", "Timeout", "DNSError", "RequestException", "OSError"}:
        return "Yahoo cannot be reached", "check the network connection"
    return "Yahoo's answer cannot be used", "try again later"


def _refuse_holes(bars: list[Bar], due: list[date], symbol: str) -> None:
    """Raise SourceError if a session between the first bar and the last has no bar."""
    present = {bar.session for bar in bars}
    holes = [day for day in due if bars[0].session < day < bars[-1].session and day not in present]
    if holes:
        raise SourceError(
            f"Yahoo's answer lacks {len(holes)} sessions in its middle",
            where=symbol,
            got=f"none for {holes[0]}",
            do="ask again, or import a price file",
        )
