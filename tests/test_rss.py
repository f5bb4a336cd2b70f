"""feeds.rss against real HTTP servers on loopback that misbehave in every way we could think of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
import gzip
from pathlib import Path
import threading
from time import perf_counter

from hypothesis import given, settings
from hypothesis import strategies as some
import pytest

from feeds.base import FeedState, Fetched
from feeds.entries import LONGEST_TITLE, clean_titles
from feeds.rss import Limits, fetch
from tests.misbehaving import Misbehaving, Request, serving
from trader.clock import SimulatedClock
from trader.errors import SourceError
from trader.events import NewsBatch, NewsItem, from_us

NOW = datetime(2026, 11, 25, 15, 30, tzinfo=timezone.utc)
CERTIFICATE = Path(__file__).parent / "loopback.pem"
QUICK = Limits(seconds=0.6)


def rss(*items: str, declared: str = "") -> bytes:
    declaration = f'<?xml version="1.0"{declared}?>'
    return f"{declaration}<rss version='2.0'><channel><title>A site</title>{''.join(items)}</channel></rss>".encode()


def item(title: str | None = "Shares rise", guid: str = "1", at: str | None = "Wed, 25 Nov 2026 15:00:00 GMT") -> str:
    parts = [f"<title>{title}</title>" if title is not None else "", f"<guid>{guid}</guid>" if guid else ""]
    return f"<item>{''.join(parts)}{f'<pubDate>{at}</pubDate>' if at else ''}</item>"


GOOD = rss(item("Shares rise", "1"), item("Shares fall", "2", "Wed, 25 Nov 2026 09:00:00 -0500"))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Misbehaving]:
    with serving() as running:
        yield running


def ask(url: str, state: FeedState | None = None, limits: Limits | None = None, now: datetime = NOW) -> Fetched:
    return fetch(url, clock=SimulatedClock(now), state=state, limits=limits or Limits(seconds=10))


def batch(fetched: Fetched) -> NewsBatch:
    assert fetched.news is not None
    return fetched.news.news


def items(fetched: Fetched) -> list[NewsItem]:
    return list(batch(fetched).items())


def titles(fetched: Fetched) -> list[str]:
    return list(batch(fetched).headline)


# What is read


def test_a_headline_is_known_when_we_received_it_and_published_when_the_feed_says(server: Misbehaving) -> None:
    first, second = items(ask(server.gives(GOOD)))
    assert (first.headline, first.item_id, first.symbols) == ("Shares rise", "1", ())
    assert (first.published_at, first.known_at) == (NOW - timedelta(minutes=30), NOW)
    assert (second.published_at, second.known_at) == (datetime(2026, 11, 25, 14, tzinfo=timezone.utc), NOW)


def test_the_instant_of_receipt_is_after_the_last_byte_not_before_the_first(server: Misbehaving) -> None:
    clock = SimulatedClock(NOW)

    def slowly(request: Request) -> None:
        clock.set(NOW + timedelta(seconds=30))  # the world moves on while we read
        request.give(rss(item(at="Wed, 25 Nov 2026 15:30:20 GMT")))

    fetched = fetch(server.does(slowly), clock=clock)
    assert fetched.skewed == 0
    assert items(fetched)[0].known_at == NOW + timedelta(seconds=30)
    assert items(fetched)[0].published_at == NOW + timedelta(seconds=20)


def test_atom_is_read_as_well(server: Misbehaving) -> None:
    atom = (
        b'<feed xmlns="http://www.w3.org/2005/Atom"><title>A</title><entry><id>urn:1</id>'
        b'<title type="html">&lt;b&gt;Oil&lt;/b&gt; &amp;amp; gas</title><updated>2026-11-25T15:00:00Z</updated>'
        b'<link href="http://x/1"/></entry></feed>'
    )
    (only,) = items(ask(server.gives(atom)))
    assert (only.headline, only.item_id, only.published_at) == ("Oil & gas", "urn:1", NOW - timedelta(minutes=30))


def test_entries_in_any_order_and_twice_are_handed_over_as_they_came(server: Misbehaving) -> None:
    body = rss(item("late", "b"), item("early", "a", "Wed, 25 Nov 2026 08:00:00 GMT"), item("late", "b"))
    fetched = ask(server.gives(body))
    assert titles(fetched) == ["late", "early", "late"]
    assert fetched.news is not None and fetched.news.live, "so that the store takes each once"


def test_an_entry_without_guid_is_known_by_its_link_and_without_that_by_its_time(server: Misbehaving) -> None:
    linked = "<item><title>x</title><link>http://x/1</link></item>"
    fetched = ask(server.gives(rss(linked, item("y", guid=""), item("z", guid="", at=None))))
    assert list(batch(fetched).item_id) == ["http://x/1", "Wed, 25 Nov 2026 15:00:00 GMT", ""]


def test_an_entry_without_a_title_is_refused_with_its_reason(server: Misbehaving) -> None:
    body = rss(item(None, "7"), item("<![CDATA[ <b> </b> ]]>", "8"), item("good"), item("x" * (LONGEST_TITLE + 1), "9"))
    fetched = ask(server.gives(body))
    assert fetched.news is not None and titles(fetched) == ["good"]
    refused = [(one.row, one.reason, one.text[:3].strip()) for one in fetched.news.rejected]
    assert refused == [
        (0, "an entry without a title", "7"),
        (0, "an entry without a title", "8"),
        (0, "a title of more than 2000 characters", "9 x"),
    ]
    assert fetched.news.row.tolist() == [3]


def test_a_feed_with_no_entries_is_a_feed(server: Misbehaving) -> None:
    assert titles(ask(server.gives(rss()))) == []


# Time


@pytest.mark.parametrize(
    ("stated", "published", "skewed"),
    [
        (None, NOW, 0),
        ("sometime", NOW, 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", NOW, 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", NOW, 1),
        ("Wed, 25 Nov 2026 15:31:00 GMT", NOW, 0),
        ("Wed, 25 Nov 2026 18:00:00 GMT", NOW, 1),
        ("Thu, 26 Nov 2026 15:30:00 GMT", NOW, 1),
        ("2026-11-24", datetime(2026, 11, 24, 23, 59, 59, 999000, tzinfo=timezone.utc), 0),
        ("2026-11-25", NOW, 0),
    ],
    ids=str,
)
def test_published_is_never_after_the_receipt_and_a_lie_is_counted(
    server: Misbehaving, stated: str | None, published: datetime, skewed: int
) -> None:
    fetched = ask(server.gives(rss(item(at=stated))))
    assert (items(fetched)[0].published_at, items(fetched)[0].known_at) == (published, NOW)
    assert fetched.skewed == skewed


@pytest.mark.parametrize(
    ("sent", "ahead"),
    [("Wed, 25 Nov 2026 15:30:07 GMT", 7.0), ("Tue, 24 Nov 2026 13:30:00 GMT", -93600.0), ("noon", None)],
)
def test_the_clock_of_the_server_is_noted_and_not_trusted(server: Misbehaving, sent: str, ahead: float | None) -> None:
    fetched = ask(server.gives(GOOD, Date=sent))
    assert fetched.server_ahead_seconds == ahead
    assert items(fetched)[0].known_at == NOW


# Asking again


def test_the_second_fetch_shows_what_the_first_was_given_and_takes_304_for_an_answer(server: Misbehaving) -> None:
    def answer(request: Request) -> None:
        if request.headers.get("If-None-Match") == '"v1"':
            request.give(b"", 304, Date="Wed, 25 Nov 2026 15:30:00 GMT")
        else:
            request.give(GOOD, ETag='"v1"', Last_Modified="Wed, 25 Nov 2026 15:00:00 GMT")

    url = server.does(answer)
    first = ask(url)
    assert first.state == FeedState(etag='"v1"', last_modified="Wed, 25 Nov 2026 15:00:00 GMT")
    assert not first.not_modified
    second = ask(url, first.state)
    assert (second.not_modified, second.news, second.state) == (True, None, first.state)
    assert second.server_ahead_seconds == 0
    assert "If-None-Match" not in server.asked[0][1]
    assert server.asked[1][1]["If-Modified-Since"] == "Wed, 25 Nov 2026 15:00:00 GMT"


def test_a_304_that_nobody_asked_for_is_no_answer(server: Misbehaving) -> None:
    with pytest.raises(SourceError, match=r"no feed \(304\)"):
        ask(server.gives(b"", 304))


# Limits


def test_a_body_that_drips_is_ended_at_the_deadline(server: Misbehaving) -> None:
    def drip(request: Request) -> None:
        request.send_response_only(200)
        request.end_headers()
        while not request.server.closing.wait(0.05):
            request.push(b"<rss>")

    began = perf_counter()
    with pytest.raises(SourceError, match=r"feed: no whole answer within 0.6 seconds \(got \d\.\d s\)"):
        ask(server.does(drip), limits=QUICK)
    assert perf_counter() - began < 10


def test_headers_that_drip_are_ended_at_the_deadline(server: Misbehaving) -> None:
    def drip(request: Request) -> None:
        request.push(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not request.server.closing.wait(0.05):
            request.push(b"x")

    began = perf_counter()
    with pytest.raises(SourceError, match=r"no whole answer within 0.6 seconds"):
        ask(server.does(drip), limits=QUICK)
    assert perf_counter() - began < 10


def test_a_server_that_says_nothing_is_ended_at_the_deadline(server: Misbehaving) -> None:
    with pytest.raises(SourceError, match=r"no whole answer within 0.6 seconds"):
        ask(server.does(lambda request: request.server.closing.wait(5) and None), limits=QUICK)


def test_redirects_that_are_each_quick_share_one_deadline(server: Misbehaving) -> None:
    def slow_hop(request: Request) -> None:
        request.server.closing.wait(0.25)
        request.give(b"", 302, Location="/feed")

    with pytest.raises(SourceError, match=r"no whole answer within 0.6 seconds"):
        ask(server.does(slow_hop), limits=QUICK)


def test_no_thread_is_left_behind(server: Misbehaving) -> None:
    with pytest.raises(SourceError):
        ask(server.does(lambda request: request.server.closing.wait(5) and None), limits=QUICK)
    ask(server.gives(GOOD))
    assert [one.name for one in threading.enumerate() if one.name == "feed deadline"] == []


def test_fifty_megabytes_are_not_read_to_their_end(server: Misbehaving) -> None:
    def pour(request: Request) -> None:
        request.send_response_only(200)
        request.send_header("Content-Length", "50000000")
        request.end_headers()
        for _ in range(5_000):
            request.push(b"<rss>aaaaa" * 1_000)

    with pytest.raises(SourceError, match=r"the feed is too large .expected at most 5 MB.*raise max_megabytes"):
        ask(server.does(pour))
    server.closing.wait(0.2)
    assert server.hung_up == 1
    assert 5_000_000 < server.sent < 20_000_000, "what was under way fills the sockets' own memory"


def test_a_small_answer_that_unpacks_to_fifty_megabytes_is_stopped(server: Misbehaving) -> None:
    packed = gzip.compress(b"<rss>aaaaa" * 5_000_000)
    assert len(packed) < 100_000
    with pytest.raises(SourceError, match="too large"):
        ask(server.gives(packed, Content_Encoding="gzip"))
    assert titles(ask(server.gives(gzip.compress(GOOD), Content_Encoding="gzip"))) == ["Shares rise", "Shares fall"]


@pytest.mark.parametrize("body", [b"<a>" * 210_000, b"&" * 210_000], ids=["<", "&"])
def test_markup_that_would_keep_the_parser_busy_is_refused(server: Misbehaving, body: bytes) -> None:
    began = perf_counter()
    with pytest.raises(SourceError, match=r"too much markup for a feed .got 210,001 marks"):
        ask(server.gives(b"<" + body))
    assert perf_counter() - began < 10


# Broken answers


@pytest.mark.parametrize(
    "cut",
    [
        lambda request: request.give(GOOD[:200], Content_Length=str(len(GOOD))),
        lambda request: request.give(b"e0\r\n" + GOOD[:100], Transfer_Encoding="chunked", Content_Length="none"),
        lambda request: request.give(gzip.compress(GOOD)[:-20], Content_Encoding="gzip", Content_Length="none"),
        lambda request: request.give(GOOD[: GOOD.index(b"fall")], Content_Length="none"),
    ],
    ids=["stated length", "chunked", "gzip", "no length"],
)
def test_an_answer_that_is_cut_off_is_not_taken_for_whole(server: Misbehaving, cut: object) -> None:
    with pytest.raises(SourceError, match=r"cut off|cannot be unpacked"):
        ask(server.does(cut))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (500, r"server failed \(500\); nothing to do: it is asked again later"),
        (503, r"server failed \(503\)"),
        (429, r"too many requests \(429\); raise every_minutes"),
        (403, r"refuses us \(403\)"),
        (404, r"no feed at this address \(404\); correct it"),
        (410, r"\(410\)"),
        (204, r"no feed \(204\)"),
        (302, r"no feed \(302\)"),
        (418, r"no feed \(418\)"),
    ],
)
def test_each_status_is_one_line_with_what_to_do(server: Misbehaving, status: int, words: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        ask(server.gives(GOOD, status))
    assert "\n" not in str(caught.value)
    assert caught.value.retry_after_seconds == 0


@pytest.mark.parametrize(
    ("stated", "seconds"),
    [
        ("120", 120),
        ("Wed, 25 Nov 2026 20:10:00 GMT", 600),
        ("Wed, 25 Nov 2026 01:00:00 GMT", 0),
        ("soon", 0),
        ("-5", 0),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_the_time_that_a_server_asks_us_to_wait_is_carried_on_the_error(
    server: Misbehaving, status: int, stated: str, seconds: float
) -> None:
    with pytest.raises(SourceError) as caught:
        # Its clock is four and a half hours ahead of ours: the date counts from its own.
        ask(server.gives(b"", status, Retry_After=stated, Date="Wed, 25 Nov 2026 20:00:00 GMT"))
    assert caught.value.retry_after_seconds == seconds


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "an empty answer"),
        (b" \n ", "an empty answer"),
        (b"<!DOCTYPE html><html><body>Are you human?</body></html>", "a page instead of a feed"),
        (b"<html><body>Are you human?</body></html>", "a page instead of a feed"),
        (bytes(range(256)) * 40, "neither RSS nor Atom"),
        (b'{"error": "no"}', "neither RSS nor Atom"),
        (b"/etc/passwd", "neither RSS nor Atom"),
        (b"http://127.0.0.1:1/feed", "neither RSS nor Atom"),
        (b"<opml version='1.0'></opml>", "neither RSS nor Atom"),
    ],
    ids=str,
)
def test_garbage_is_no_feed(server: Misbehaving, body: bytes, words: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        ask(server.gives(body))
    assert len(str(caught.value)) < 300 and str(caught.value).isascii()


def bomb(declared: str = "") -> str:
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    text = rss(item("&a9;"), declared=declared).decode()
    return text.replace("?>", f'?><!-- harmless --><!DOCTYPE rss [<!ENTITY a0 "lol">{entities}]>', 1)


@pytest.mark.parametrize(
    "body",
    [
        bomb().encode(),
        bomb().upper().encode(),
        ("\n" + bomb().partition("?>")[2]).encode(),
        bomb(" encoding='utf-16'").encode("utf-16"),
        b"\xef\xbb\xbf" + bomb().encode(),
        b'<?xml version="1.0"?><!DOCTYPE rss [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + rss(item("&x;"))[21:],
        b'<!DOCTYPE rss SYSTEM "http://127.0.0.1:1/evil.dtd">' + rss(item())[21:],
    ],
    ids=["bomb", "in capitals", "no declaration", "utf-16", "with a mark", "external entity", "external dtd"],
)
def test_a_document_that_defines_entities_is_refused(server: Misbehaving, body: bytes) -> None:
    with pytest.raises(SourceError, match="carries a DTD, which is refused"):
        ask(server.gives(body))


def test_a_bomb_in_an_encoding_that_hides_it_does_not_go_off(server: Misbehaving) -> None:
    url = server.gives(bomb(" encoding='utf-7'").encode("utf-7"), Content_Type="application/xml; charset=utf-7")
    began = perf_counter()
    with suppress(SourceError):  # refused, which is as good
        assert all(len(title) < 100 for title in titles(ask(url)))
    assert perf_counter() - began < 15


def test_a_doctype_that_a_headline_talks_about_is_no_dtd(server: Misbehaving) -> None:
    fetched = ask(server.gives(rss(item("<![CDATA[What <!DOCTYPE html> means]]>"))))
    assert titles(fetched) == ["What <!DOCTYPE html> means"]


def test_a_prolog_made_to_be_slow_is_read_at_once(server: Misbehaving) -> None:
    began = perf_counter()
    with pytest.raises(SourceError):
        ask(server.gives(b"<? ?><!-- -->" * 60_000 + b"<?"))
    assert perf_counter() - began < 15


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (rss(item("Société Générale €")), "application/xml; charset=iso-8859-1"),
        (rss(item("Société Générale €")), "application/xml; charset=windows-1252"),
        (rss(item("Société Générale €")), "application/xml; charset=koi8-r"),
        (rss(item("Société Générale €")), "text/xml; charset=us-ascii"),
        (rss(item("Société Générale €"), declared=" encoding='iso-8859-1'"), "text/xml"),
        (rss(item("Société Générale €")), "text/html; charset=no-such-thing"),
        (rss(item("Société Générale €")).decode().encode("utf-16"), "application/xml"),
        (rss(item("Société Générale €"), declared=" encoding='cp1252'").decode().encode("cp1252"), "application/xml"),
        (rss(item("Société Générale €")).decode().encode("cp1252"), "application/xml; charset=utf-8"),
    ],
    ids=[
        "latin-1 over utf-8",
        "windows-1252 over utf-8",
        "koi8-r over utf-8",
        "ascii over utf-8",
        "declared latin-1",
        "unknown",
        "utf-16",
        "cp1252",
        "utf-8 over cp1252",
    ],
)
def test_a_wrong_charset_does_not_garble_a_headline(server: Misbehaving, body: bytes, content_type: str) -> None:
    assert titles(ask(server.gives(body, Content_Type=content_type))) == ["Société Générale €"]


def test_a_feed_that_is_not_well_formed_is_read_if_it_is_whole(server: Misbehaving) -> None:
    assert titles(ask(server.gives(rss(item("AT&T & Verizon rise"))))) == ["AT&T & Verizon rise"]


# Redirects


def test_redirects_are_followed_and_the_state_is_that_of_the_last_answer(server: Misbehaving) -> None:
    server.gives(GOOD, path="/there", ETag='"x"')
    server.gives(b"", 307, path="/second", Location="there")
    fetched = ask(server.gives(b"", 301, Location="/second"))
    assert len(titles(fetched)) == 2 and fetched.state.etag == '"x"'


def test_a_redirect_loop_ends(server: Misbehaving) -> None:
    with pytest.raises(SourceError, match="more than 5 redirects"):
        ask(server.gives(b"", 302, Location="/feed"))
    assert len(server.asked) == 6


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "javascript:alert(1)"])
def test_a_redirect_leaves_the_web_nowhere(server: Misbehaving, target: str) -> None:
    with pytest.raises(SourceError, match="not an address of the web"):
        ask(server.gives(b"", 302, Location=target))


def test_a_redirect_from_https_to_http_is_refused(server: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CERTIFICATE))
    server.gives(GOOD, path="/plain")
    with serving(str(CERTIFICATE)) as safe:
        assert len(titles(ask(safe.gives(GOOD)))) == 2
        with pytest.raises(SourceError, match="redirected from https to http"):
            ask(safe.gives(b"", 302, Location=server.at("/plain")))
        assert server.asked == []
        assert len(titles(ask(server.gives(b"", 302, Location=safe.gives(GOOD))))) == 2, "the other way is fine"


def test_a_tls_server_that_drips_is_ended_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CERTIFICATE))

    def drip(request: Request) -> None:
        request.push(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not request.server.closing.wait(0.05):
            request.push(b"x")

    with serving(str(CERTIFICATE)) as safe, pytest.raises(SourceError, match=r"no whole answer within 0.6 seconds"):
        ask(safe.does(drip), limits=QUICK)


def test_a_certificate_that_nobody_vouches_for_is_refused() -> None:
    with serving(str(CERTIFICATE)) as safe, pytest.raises(SourceError, match="certificate cannot be trusted"):
        ask(safe.gives(GOOD))


# Addresses


@pytest.mark.parametrize("url", ["file:///etc/passwd", "feed.xml", "", "ftp://x/y", "http://"])
def test_what_is_no_address_of_the_web_is_refused(url: str) -> None:
    with pytest.raises(SourceError, match="not an address of the web"):
        ask(url)


@pytest.mark.parametrize("url", ["http://a..b/feed", "http://127.0.0.1:99999/feed", "http://[::1/feed"])
def test_a_damaged_address_is_one_line(url: str) -> None:
    with pytest.raises(SourceError):
        ask(url)


def test_nobody_there_is_one_line_without_what_is_secret_in_the_address() -> None:
    with serving() as gone:
        port = gone.server_address[1]
    with pytest.raises(SourceError, match=r"cannot be reached.*check the address and the network") as caught:
        ask(f"http://me:secret@127.0.0.1:{port}/feed?token=secret")
    assert "secret" not in str(caught.value)
    assert f"http://127.0.0.1:{port}/feed" in str(caught.value)


# Titles


@settings(max_examples=40, deadline=None)
@given(some.lists(some.text(), max_size=5))
def test_a_cleaned_title_is_one_line_of_plain_text(written: list[str]) -> None:
    cleaned = clean_titles(written)
    assert len(cleaned) == len(written)
    for title in cleaned:
        assert title == " ".join(title.split())
        assert title.encode().decode() == title and "\0" not in title


@settings(max_examples=40, deadline=None)
@given(some.lists(some.sampled_from(["Shares", "of", "AT&T", "rise", "5 %", "<", "2", "S&P", "500"]), min_size=1))
def test_plain_words_stay_as_they_were_written(words: list[str]) -> None:
    assert clean_titles([" ".join(words)]) == [" ".join(words)]


@settings(max_examples=40, deadline=None)
@given(
    some.lists(some.sampled_from(["Shares", "rise", "again"]), min_size=1),
    some.sampled_from(["b", "i", "em", "a href='http://x'", 'span class="x"']),
)
def test_tags_are_dropped_and_their_text_is_kept(words: list[str], tag: str) -> None:
    plain, marked = (
        " ".join(words),
        "<{}>{}</{}>".format(tag, f"</{tag}> <{tag}>".join(words), tag.split()[0]),
    )
    escaped = marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert clean_titles([marked, escaped]) == [plain, plain]


def test_a_title_made_to_be_slow_is_cleaned_at_once() -> None:
    began = perf_counter()
    clean_titles(["<!--" * 5_000, "<a " * 7_000, "&amp;" * 4_000, "<?" * 10_000] * 10)
    assert perf_counter() - began < 10


def test_a_time_of_the_store_is_the_one_of_the_feed(server: Misbehaving) -> None:
    published = batch(ask(server.gives(GOOD))).published_at
    assert [from_us(at) for at in published] == [NOW - timedelta(minutes=30), NOW - timedelta(minutes=90)]
