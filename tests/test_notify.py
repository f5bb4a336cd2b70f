"""Notifications by a real webhook on this machine: at least once, with an id, and never in trading's way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date, datetime, timedelta, timezone
import gc
import hashlib
import hmac
import json
import os
from pathlib import Path
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from typing import Any

import pytest

from tests.receivers import Behave, Post, WebhookServer, drips, end, hangs, make_certificate, serve, takes
from trader import cli, outbox
from trader.channels import Channel, Failure, Lines
from trader.clock import Clock, SimulatedClock
from trader.config import Config, from_mapping
from trader.errors import ConfigError, StoreError, TimeError
from trader.ledger_schema import connect, immediate
from trader.logs import Log
from trader.notify import LASTING_WAIT, Notifier, open_channels
from trader.outbox import KINDS, enqueue, stable_id

ROOT = Path(__file__).parents[1]
NOON = datetime(2018, 1, 3, 21, 0, tzinfo=timezone.utc)
SECRET = "never-to-be-seen-0123456789"


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], WebhookServer]]:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    running: list[WebhookServer] = []

    def start() -> WebhookServer:
        running.append(WebhookServer())
        serve(running[-1])
        return running[-1]

    yield start
    for server in running:
        end(server)


@pytest.fixture
def server(servers: Callable[[], WebhookServer]) -> WebhookServer:
    return servers()


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    with closing(connect(path)) as db:
        outbox.prepare(db.conn)
    return path


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock(NOON)


def hook(server: WebhookServer | str, **changes: Any) -> dict[str, Any]:
    url = server if isinstance(server, str) else server.url
    return {"kind": "webhook", "url": url, "timeout_seconds": 5.0, "secret_variable": "HOOK_SECRET", **changes}


def tell(ledger: Path, *names: str, **changes: Any) -> list[bool]:
    with closing(connect(ledger)) as db, immediate(db.conn):
        return [put(db.conn, name, **changes) for name in names]


def put(connection: sqlite3.Connection, name: str, **changes: Any) -> bool:
    facts: dict[str, Any] = {"account": "demo", "kind": "filled", "event_id": name, "text": f"It is {name}."}
    return enqueue(
        connection, **{**facts, "made_at": NOON, "session": date(2018, 1, 3), "body": {"size": 3}, **changes}
    )


class Service:
    """A notifier with its log, as a service has it."""

    def __init__(self, ledger: Path, clock: Clock, *channels: Channel, poll: float = 0.01) -> None:
        self.log_file = ledger.with_suffix(".log")
        self.log = Log.to_file(clock, self.log_file, strict=True)
        self.notifier = Notifier(ledger, channels, account="demo", clock=clock, log=self.log, poll_seconds=poll)

    def __enter__(self) -> Notifier:
        self.notifier.start()
        return self.notifier

    def __exit__(self, *_: object) -> None:
        assert self.notifier.close(20)
        self.log.close()

    def said(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]


def service(ledger: Path, clock: Clock, server: WebhookServer | str, **changes: Any) -> Service:
    return Service(ledger, clock, *open_channels({"hook": hook(server, **changes)}))


def rows(ledger: Path) -> list[dict[str, Any]]:
    with closing(connect(ledger)) as db:
        sql = "SELECT o.event_id, d.* FROM outbox o LEFT JOIN outbox_deliveries d USING (id) ORDER BY o.id, d.channel"
        return [{key: row[key] for key in row if key != "id"} for row in db.query(sql)]


def settles(ledger: Path, found: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """Return the deliveries as soon as they are as asked for."""
    pause = threading.Event()
    for _ in range(1000):
        if found(now := rows(ledger)):
            return now
        pause.wait(0.02)
    raise AssertionError(now)


def tried(ledger: Path, times: int) -> dict[str, Any]:
    """Return the first notification's delivery after so many attempts."""
    return settles(ledger, lambda now: now[0]["attempts"] == times)[0]


def answers(*statuses: int, **headers: str) -> Behave:
    """Answer the attempts of a notification one after the other, then take it."""

    def behave(post: Post, attempt: int) -> None:
        if attempt < len(statuses):
            post.reply(statuses[attempt], b"so it says", **headers)
        else:
            takes(post, attempt)

    return behave


# The outbox


def test_a_notification_is_there_exactly_if_the_rows_are_that_it_tells_of(ledger: Path) -> None:
    with closing(connect(ledger)) as db:
        db.conn.execute("CREATE TABLE trade (size INTEGER)")
        with pytest.raises(ZeroDivisionError), immediate(db.conn):
            db.conn.execute("INSERT INTO trade VALUES (1)")
            put(db.conn, "a")
            raise ZeroDivisionError
        assert db.conn.execute("SELECT * FROM trade").fetchall() == [] == rows(ledger)
        with immediate(db.conn):
            db.conn.execute("INSERT INTO trade VALUES (1)")
            assert put(db.conn, "a")
        assert len(rows(ledger)) == 1


def test_what_is_replayed_is_not_told_twice(ledger: Path) -> None:
    assert tell(ledger, "a", "b") == [True, True]
    assert tell(ledger, "a", "c", text="other words") == [False, True]
    assert [row["event_id"] for row in rows(ledger)] == ["a", "b", "c"]


def test_outside_a_transaction_nothing_is_enqueued(ledger: Path) -> None:
    with closing(connect(ledger)) as db, pytest.raises(StoreError, match="no transaction is open; enqueue inside"):
        put(db.conn, "a")
    assert rows(ledger) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kind": "flled"}, "unknown kind (got flled, expected one of halted"),
        ({"event_id": "a\nb"}, "other than visible ASCII"),
        ({"event_id": ""}, "other than visible ASCII"),
        ({"body": {"x": float("nan")}}, "facts that JSON cannot hold"),
        ({"body": {"x": {1}}}, "facts that JSON cannot hold"),
        ({"session": NOON}, "a session is a date"),
    ],
    ids=str,
)
def test_what_cannot_be_told_is_refused_and_the_transaction_is_the_callers(
    ledger: Path, change: dict[str, Any], sentence: str
) -> None:
    with closing(connect(ledger)) as db:
        with pytest.raises((StoreError, TimeError), match=re.escape(sentence)), immediate(db.conn):
            put(db.conn, **{"name": "a", **change}) if "event_id" not in change else put(db.conn, "a", **change)
        assert not db.conn.in_transaction


def test_half_a_letter_from_a_headline_does_not_stop_a_trade(ledger: Path, server: WebhookServer, clock: Clock) -> None:
    tell(ledger, "a", text="broken \ud800 text", body={"headline": "\ud800\n"})
    with service(ledger, clock, server) as notifier:
        assert notifier.drain(20)
    assert server.posts[0].said["text"] == "broken ? text"


def test_an_event_id_is_the_same_for_the_same_words_and_fits_into_a_header() -> None:
    words = ("mein Konto ä\n/\ud800", "late", date(2018, 1, 3), 1.5)
    assert stable_id(*words) == stable_id(*words) == "mein%20Konto%20%C3%A4%0A%2F%3F/late/2018-01-03/1.5"
    assert stable_id("a", "started", None) == "a/started/-"
    assert stable_id("a/b", "late", None) != stable_id("a", "b/late", None)


# Delivery


def test_the_webhook_gets_json_with_id_and_signature(server: WebhookServer, ledger: Path, clock: Clock) -> None:
    tell(ledger, "demo/filled/1")
    with service(ledger, clock, server) as notifier:
        assert notifier.drain(20)
    (post,) = server.posts
    assert post.said == {
        "id": "demo/filled/1",
        "account": "demo",
        "kind": "filled",
        "session": "2018-01-03",
        "text": "It is demo/filled/1.",
        "body": {"size": 3},
        "made_at": "2018-01-03T21:00:00.000000+00:00",
    }
    signed = hmac.new(SECRET.encode(), post.body, hashlib.sha256).hexdigest()
    assert (post.key, post.path) == ("demo/filled/1", "/hook")
    assert (post.headers["X-Trader-Signature"], post.headers["Content-Type"]) == (
        f"sha256={signed}",
        "application/json",
    )
    (row,) = rows(ledger)
    assert (row["channel"], row["attempts"], row["next_try"], row["error"]) == ("hook", 1, None, None)
    assert row["delivered_at"] == 1515013200 * 10**6


def test_without_a_secret_nothing_is_signed(server: WebhookServer, ledger: Path, clock: Clock) -> None:
    tell(ledger, "a")
    with service(ledger, clock, server, secret_variable="") as notifier:
        assert notifier.drain(20)
    assert server.posts[0].headers["X-Trader-Signature"] is None


def test_notifications_come_in_order_once_each_and_only_those_asked_for(
    servers: Callable[[], WebhookServer], ledger: Path, clock: Clock
) -> None:
    everything, halts = servers(), servers()
    names = [f"n{i:02}" for i in range(20)]
    tell(ledger, *names)
    tell(ledger, "stop", kind="halted")
    tell(ledger, "other", account="another")
    sections = {"all": hook(everything), "few": hook(halts, events=["halted", "error"])}
    for _ in range(2):  # a restart repeats nothing
        with Service(ledger, clock, *open_channels(sections)) as notifier:
            assert notifier.drain(20)
    assert everything.keys() == [*names, "stop"]
    assert halts.keys() == ["stop"]


def test_what_is_enqueued_while_it_runs_is_found_woken_or_not(
    server: WebhookServer, ledger: Path, clock: Clock
) -> None:
    with service(ledger, clock, server) as notifier:
        tell(ledger, "a")
        assert server.wait_for(1)
        tell(ledger, "b")
        notifier.wake()
        assert server.wait_for(2)


def test_a_refusal_is_tried_again_with_the_same_bytes_after_a_wait_that_doubles(
    server: WebhookServer, ledger: Path, clock: SimulatedClock
) -> None:
    server.behave = answers(500, 503, 502)
    tell(ledger, "a")
    one = service(ledger, clock, server)
    with one as notifier:
        for attempt, wait in enumerate((2, 4, 8), 1):
            row = tried(ledger, attempt)
            assert row["next_try"] == (clock.now() + timedelta(seconds=wait)).timestamp() * 1e6
            assert re.fullmatch(r"HTTP 50\d: so it says", row["error"])
            clock.set(clock.now() + timedelta(seconds=wait - 0.1))
            notifier.wake()
            assert not notifier.drain(0.1)
            assert len(server.posts) == attempt, "too early"
            clock.set(clock.now() + timedelta(seconds=0.1))
            notifier.wake()
        assert notifier.drain(20)
    assert server.keys() == ["a"] * 4
    assert len({post.body for post in server.posts}) == 1
    assert rows(ledger)[0] | {"channel": "", "delivered_at": 0} == {
        "event_id": "a",
        "channel": "",
        "attempts": 4,
        "next_try": None,
        "delivered_at": 0,
        "given_up_at": None,
        "error": None,
    }
    assert [(line["event"], line["level"]) for line in one.said()] == [("not_notified", "warning")] * 3 + [
        ("notified", "info")
    ]


def test_the_wait_is_bounded(server: WebhookServer, ledger: Path, clock: SimulatedClock) -> None:
    server.behave = lambda post, _: post.reply(500)
    tell(ledger, "a")
    with service(ledger, clock, server) as notifier:
        for attempt in range(1, 13):
            row = tried(ledger, attempt)
            assert row["next_try"] <= (clock.now() + timedelta(seconds=600)).timestamp() * 1e6
            clock.set(clock.now() + timedelta(seconds=600))
            notifier.wake()


@pytest.mark.parametrize(("asked", "wait"), [("90", 90), ("0", 2), ("soon", 2), ("-5", 2), ("nan", 2), ("9e9", 3600)])
def test_retry_after_is_obeyed_within_reason(
    server: WebhookServer, ledger: Path, clock: SimulatedClock, asked: str, wait: float
) -> None:
    server.behave = answers(429, Retry_After=asked)
    tell(ledger, "a")
    with service(ledger, clock, server) as notifier:
        assert tried(ledger, 1)["next_try"] == (NOON + timedelta(seconds=wait)).timestamp() * 1e6
        clock.set(NOON + timedelta(seconds=wait - 1))
        notifier.wake()
        assert not notifier.drain(0.1)
        assert len(server.posts) == 1
        clock.set(NOON + timedelta(seconds=wait))
        assert notifier.drain(20)


def test_retry_after_as_a_date_counts_by_the_servers_own_clock(
    server: WebhookServer, ledger: Path, clock: SimulatedClock
) -> None:
    date_there, then = "Fri, 01 Jan 2038 00:00:00 GMT", "Fri, 01 Jan 2038 00:01:30 GMT"
    server.behave = answers(503, Retry_After=then, Date=date_there)
    tell(ledger, "a")
    with service(ledger, clock, server):
        assert tried(ledger, 1)["next_try"] == (NOON + timedelta(seconds=90)).timestamp() * 1e6


@pytest.mark.parametrize("status", [400, 401, 404, 410, 301, 302, 307])
def test_a_refusal_that_lasts_waits_long_is_shown_and_lets_the_others_pass(
    server: WebhookServer, ledger: Path, clock: SimulatedClock, status: int
) -> None:
    server.behave = lambda post, attempt: (answers(status) if post.key == "bad" else takes)(post, attempt)
    tell(ledger, "bad", "good")
    one = service(ledger, clock, server)
    with one as notifier:
        settles(ledger, lambda now: bool(now[1]["delivered_at"]))
        assert f"HTTP {status}" in tried(ledger, 1)["error"]
        assert rows(ledger)[0]["next_try"] == (NOON + timedelta(seconds=LASTING_WAIT)).timestamp() * 1e6
        clock.set(NOON + timedelta(seconds=LASTING_WAIT))
        assert notifier.drain(20)
    assert server.keys() == ["bad", "good", "bad"]
    assert f"HTTP {status}" in one.said()[0]["error"]


def test_one_that_makes_the_receiver_fail_does_not_hold_up_the_others(
    server: WebhookServer, ledger: Path, clock: SimulatedClock
) -> None:
    server.behave = lambda post, _: post.reply(500 if post.key == "bad" else 200)
    tell(ledger, "bad", "b", "c")
    with service(ledger, clock, server) as notifier:
        tried(ledger, 1)
        clock.set(NOON + timedelta(seconds=1))
        notifier.wake()
        settles(ledger, lambda now: all(row["delivered_at"] for row in now[1:]))
    assert server.keys() == ["bad", "b", "c"]


def test_an_outage_is_probed_by_one_message_and_not_by_all(
    server: WebhookServer, ledger: Path, clock: SimulatedClock
) -> None:
    server.behave = lambda post, _: post.reply(500)
    tell(ledger, *(f"n{i}" for i in range(50)))
    with service(ledger, clock, server) as notifier:
        tried(ledger, 1)
        notifier.wake()
        assert not notifier.drain(0.2)
    assert len(server.posts) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(
    servers: Callable[[], WebhookServer], ledger: Path, clock: Clock, status: int
) -> None:
    server, other = servers(), servers()
    server.behave = answers(status, Location=other.url)
    tell(ledger, "a")
    with service(ledger, clock, server):
        assert tried(ledger, 1)["error"].startswith(f"HTTP {status}, a redirect; name the URL")
    assert other.posts == []


def test_https_needs_a_certificate_that_is_trusted(
    ledger: Path, clock: SimulatedClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    monkeypatch.delenv("https_proxy", raising=False)
    certificate = make_certificate(tmp_path)
    server = WebhookServer(certificate=certificate)
    serve(server)
    tell(ledger, "a")
    with service(ledger, clock, server):
        assert tried(ledger, 1)["error"].startswith("a certificate that is not trusted")
    assert server.posts == []
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    clock.set(NOON + timedelta(seconds=LASTING_WAIT))
    with service(ledger, clock, server) as notifier:
        assert notifier.drain(20)
    end(server)
    assert server.keys() == ["a"]


def breaks_off(post: Post, attempt: int) -> None:
    post.wfile.write(b"HTTP/1.1 2")
    post.connection.shutdown(socket.SHUT_RDWR)


def babbles(post: Post, attempt: int) -> None:
    post.wfile.write(b"\x00\xff no http\r\n\r\n")


def refuses_without_end(post: Post, attempt: int) -> None:
    post.send_response_only(429)
    post.send_header("Retry-After", "77")
    post.end_headers()
    post.server.released.wait(30)


@pytest.mark.parametrize(
    ("behave", "error"),
    [
        (hangs, "no answer within 0.3 s"),
        (drips, "no answer within 0.3 s"),  # each byte in time, the whole not
        (breaks_off, "a broken connection ("),
        (babbles, "a broken connection ("),
        (refuses_without_end, "HTTP 429"),
    ],
)
def test_a_receiver_that_misbehaves_is_left_after_a_time_and_tried_again(
    server: WebhookServer, ledger: Path, clock: SimulatedClock, behave: Behave, error: str
) -> None:
    server.behave = lambda post, attempt: (takes if attempt else behave)(post, attempt)
    tell(ledger, "a")
    with service(ledger, clock, server, timeout_seconds=0.3) as notifier:
        assert tried(ledger, 1)["error"].startswith(error)
        clock.set(NOON + timedelta(seconds=100))
        assert notifier.drain(20)
    assert server.keys() == ["a", "a"]


def test_a_server_that_is_down_gets_it_when_it_is_up(
    ledger: Path, clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    tell(ledger, "a")
    with service(ledger, clock, f"http://127.0.0.1:{port}/hook") as notifier:
        assert "Connection refused" in tried(ledger, 1)["error"]
        server = WebhookServer(port)
        serve(server)
        clock.set(NOON + timedelta(seconds=2))
        assert notifier.drain(20)
    end(server)
    assert server.keys() == ["a"]


def test_what_is_too_old_is_given_up_aloud(server: WebhookServer, ledger: Path, clock: SimulatedClock) -> None:
    server.behave = lambda post, _: post.reply(503, b"away")
    tell(ledger, "old")
    tell(ledger, "young", made_at=NOON + timedelta(days=2))
    with service(ledger, clock, server):
        tried(ledger, 1)
    clock.set(NOON + timedelta(days=7, seconds=1))
    server.behave = takes
    one = service(ledger, clock, server)
    with one as notifier:
        assert notifier.drain(20)
    old, young = rows(ledger)
    assert old["error"] == "given up after 7 days and 1 attempts, the last: HTTP 503: away"
    assert old["given_up_at"] and not old["delivered_at"] and young["delivered_at"]
    assert server.keys() == ["old", "young"]
    (line,) = [line for line in one.said() if line["event"] == "notification_given_up"]
    assert (line["level"], line["id"], line["channel"]) == ("error", "old", "hook")
    with closing(connect(ledger)) as db:
        (state,) = outbox.states(db.conn, "demo")
    assert (state.channel, state.delivered, state.waiting, state.given_up) == ("hook", 1, 0, 1)
    assert state.error == old["error"]


def test_a_clock_that_was_set_back_does_not_stop_deliveries(
    server: WebhookServer, ledger: Path, clock: SimulatedClock
) -> None:
    server.behave = answers(500)
    tell(ledger, "a")
    clock.set(NOON + timedelta(hours=26))
    with service(ledger, clock, server):
        tried(ledger, 1)
    with service(ledger, SimulatedClock(NOON), server) as notifier:
        assert notifier.drain(20)


# Trading goes on


def test_a_receiver_that_hangs_does_not_hold_up_the_caller(server: WebhookServer, ledger: Path, clock: Clock) -> None:
    server.behave = hangs
    with service(ledger, clock, server, timeout_seconds=600.0) as notifier:
        tell(ledger, "first")
        notifier.wake()
        assert server.wait_for(1)
        for name in (f"n{i}" for i in range(30)):  # a transaction each, while the first is under way
            tell(ledger, name)
            notifier.wake()
        assert not server.released.is_set() and len(server.posts) == 1
        assert len(rows(ledger)) == 31 and rows(ledger)[0]["attempts"] is None
        assert not notifier.drain(0.05)
        server.behave = takes
    assert not server.released.is_set(), "closed while the receiver still hung"
    with service(ledger, clock, server) as notifier:
        assert notifier.drain(20)
    assert set(server.keys()) == {"first", *(f"n{i}" for i in range(30))}
    assert server.keys().count("first") == 2


def test_one_channel_that_hangs_leaves_the_other_its_turn(
    servers: Callable[[], WebhookServer], ledger: Path, clock: Clock
) -> None:
    stuck, well = servers(), servers()
    stuck.behave = hangs
    tell(ledger, "a", "b", "c")
    channels = open_channels({"stuck": hook(stuck, timeout_seconds=0.2), "well": hook(well)})
    with Service(ledger, clock, *channels):
        assert well.wait_for(3)
    assert well.keys() == ["a", "b", "c"]


def test_a_locked_ledger_repeats_nothing_and_is_waited_for(
    server: WebhookServer, ledger: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trader.notify._BUSY_MS", 10)
    monkeypatch.setattr("trader.notify.FIRST_WAIT", 0.02)
    holder = sqlite3.connect(ledger, check_same_thread=False)

    def locks(post: Post, attempt: int) -> None:
        holder.execute("BEGIN IMMEDIATE")
        post.reply(200)

    server.behave = locks
    tell(ledger, "a")
    one = service(ledger, clock, server)
    with one as notifier:
        assert server.wait_for(1)
        assert not notifier.drain(1.0)  # it comes back many times meanwhile
        holder.rollback()
        assert notifier.drain(20)
    holder.close()
    assert server.keys() == ["a"]
    failures = [line["error"] for line in one.said() if line["event"] == "notifier_failed"]
    assert failures and all("database is locked" in error for error in failures)


def test_a_ledger_that_cannot_be_opened_is_said_and_nothing_more(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"no database" * 100)
    one = service(path, clock, "https://127.0.0.1:1/x", secret_variable="")
    with one as notifier:
        assert not notifier.drain(0.05)
        for _ in range(200):
            if not one.said():
                notifier.drain(0.05)
    assert "the ledger cannot be used" in one.said()[0]["error"]


class Broken:
    """A channel with a mistake in it."""

    name, events, give_up_days, place = "broken", KINDS, 7.0, "nowhere"

    def send(self, notification: outbox.Notification, lines: Lines) -> str:
        raise KeyError(SECRET)


def test_a_mistake_in_a_channel_does_not_end_the_others(server: WebhookServer, ledger: Path, clock: Clock) -> None:
    tell(ledger, "a", "b")
    one = Service(ledger, clock, Broken(), *open_channels({"hook": hook(server)}))
    with one:
        assert server.wait_for(2)
        settles(ledger, lambda now: sum(row["error"] == "an unexpected KeyError" for row in now) == 2)
    assert SECRET not in one.log_file.read_text()


def test_closing_leaves_no_thread_and_no_file(server: WebhookServer, ledger: Path, clock: Clock) -> None:
    tell(ledger, "a")

    def run() -> None:
        before = len(server.posts)
        with service(ledger, clock, server, timeout_seconds=600.0):
            assert server.wait_for(before + 1)

    def left() -> tuple[set[str], int]:
        for thread in threading.enumerate():
            if "process_request_thread" in thread.name:  # the server's own
                thread.join(20)
        gc.collect()
        ours = {t.name for t in threading.enumerate() if t.name == "notifier" or isinstance(t, threading.Timer)}
        return ours, len(os.listdir("/proc/self/fd"))

    run()  # what is imported and opened once
    before = left()
    tell(ledger, "b")
    server.behave = hangs
    for _ in range(3):
        run()
    server.released.set()
    assert left() == before == (set(), before[1])


def test_closing_before_the_start_or_twice_does_no_harm(ledger: Path, clock: Clock, server: WebhookServer) -> None:
    one = service(ledger, clock, server)
    assert one.notifier.close()
    with service(ledger, clock, server) as notifier:
        assert notifier.close()
        assert notifier.close()
    with Service(ledger, clock) as idle:  # no channels
        assert idle.drain(0)


def test_a_connection_that_does_not_come_about_is_cut_on_closing() -> None:
    """A full backlog answers no further connection."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        crowd = [socket.socket() for _ in range(4)]
        for one in crowd:
            one.setblocking(False)
            one.connect_ex(address)
        lines, began, failures = Lines(), threading.Event(), []

        def dial() -> None:
            with lines.open(600) as line:
                began.set()
                try:
                    line.dial(address).close()
                except OSError as error:
                    failures.append(error)

        thread = threading.Thread(target=dial, daemon=True)
        thread.start()
        assert began.wait(10)
        thread.join(0.2)
        assert thread.is_alive(), "it was to hang"
        lines.cut()
        thread.join(20)
        assert not thread.is_alive() and len(failures) == 1
        with pytest.raises(Failure, match="closed"), lines.open(1):
            pass
        for one in crowd:
            one.close()


KILLED = """
import sys
from pathlib import Path
from trader.clock import WallClock
from trader.logs import Log
from trader.notify import Notifier, open_channels
ledger, url = sys.argv[1:]
clock = WallClock()
sections = {"hook": {"kind": "webhook", "url": url, "give_up_days": 1e5}}
with Notifier(Path(ledger), open_channels(sections), account="demo", clock=clock, log=Log.to_stderr(clock)) as notifier:
    notifier.drain(60)
"""


def sender(ledger: Path, server: WebhookServer) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", KILLED, str(ledger), server.url], cwd=ROOT, stderr=subprocess.PIPE)


def test_a_kill_between_sending_and_marking_sends_it_twice_and_never_not_at_all(
    server: WebhookServer, ledger: Path
) -> None:
    tell(ledger, "a", "b", "c")
    holder = sqlite3.connect(ledger, check_same_thread=False)

    def locks(post: Post, attempt: int) -> None:
        if post.key == "b" and not attempt:
            holder.execute("BEGIN IMMEDIATE")  # so that it cannot mark what it is about to see taken
        post.reply(200)

    server.behave = locks
    with sender(ledger, server) as first:
        assert server.wait_for(2)
        first.send_signal(signal.SIGKILL)
    holder.rollback()
    holder.close()
    assert [bool(row["delivered_at"]) for row in rows(ledger)] == [True, False, False]
    with sender(ledger, server) as second:
        assert second.wait(60) == 0
    assert server.keys() == ["a", "b", "b", "c"]
    assert server.posts[1].body == server.posts[2].body
    assert all(row["delivered_at"] for row in rows(ledger))
    with closing(sqlite3.connect(ledger)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# Secrets and settings


def test_no_secret_is_ever_written_or_said(
    server: WebhookServer,
    ledger: Path,
    clock: SimulatedClock,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    path = "/services/never-T0001/never-B0001?key=never-key"
    monkeypatch.setenv("HOOK_URL", server.url.replace("/hook", path))

    def echoes(post: Post, attempt: int) -> None:
        everything = f"{post.path} {SECRET} " + server.url.replace("/hook", path)
        post.reply(int(post.key), everything.encode(), Location=post.path)

    server.behave = echoes
    for status in ("400", "302", "500"):
        tell(ledger, status)
        with service(ledger, clock, "", url_variable="HOOK_URL"):
            settles(ledger, lambda now: all(row["attempts"] for row in now))
        clock.set(clock.now() + timedelta(seconds=60))
    (channel,) = open_channels({"hook": hook("", url_variable="HOOK_URL")})
    told = [repr(channel), channel.place]
    (tmp_path / "config.toml").write_text(
        '[notify.hook]\nkind = "webhook"\nurl_variable = "HOOK_URL"\nsecret_variable = "HOOK_SECRET"\n'
    )
    server.behave = lambda post, attempt: post.reply(404, f"{post.path} {SECRET}".encode())
    assert cli.main(["notify", "test", "--config", str(tmp_path / "config.toml"), "hook"]) == 2
    out = capfd.readouterr()
    told += [out.out, out.err]
    for file in ledger.parent.iterdir():
        told.append(file.read_bytes().decode("latin1"))
    assert server.posts[0].path == path and "HTTP 404" in out.err
    assert [text for text in told if "never-" in text] == []


def test_a_url_in_the_config_holds_no_query() -> None:
    with pytest.raises(ConfigError, match="a query, which may hold a secret") as caught:
        open_channels({"hook": hook("https://example.org/hook?key=never")})
    assert "never" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"kind": "pigeon"}, '[notify.x]: what kind of channel? (got pigeon, expected kind = "webhook" or "email")'),
        ({}, "what kind of channel?"),
        (hook("https://a.org", urll=1), "[notify.x]: unknown key urll; did you mean url?"),
        (hook("https://a.org", timeout_seconds="5"), "[notify.x] timeout_seconds: a value of the wrong type"),
        (hook("https://a.org", timeout_seconds=0.0), "notify timeout_seconds: out of range"),
        (hook("https://a.org", give_up_days=float("nan")), "notify give_up_days: out of range"),
        (hook("https://a.org", events=["halted", "fill"]), "unknown event fill; did you mean filled?"),
        (hook("https://a.org", secret_variable="sk-never"), "not the name of an environment variable"),
        (hook("https://a.org", secret_variable="NOT_SET_ANYWHERE"), "environment variable NOT_SET_ANYWHERE: not set"),
        (hook(""), "one of url and url_variable is needed"),
        (hook("https://a.org", url_variable="B"), "one of url and url_variable is needed"),
        (hook("http://never.org/x"), "plain http would show the account to the network"),
        (hook("https://never:never@a.org/x"), "a URL with a name, a password"),
        (hook("ftp://never/x"), "not a URL"),
        (hook("https://a.org:never/x"), "not a URL"),
    ],
    ids=str,
)
def test_a_section_that_cannot_be_used_is_refused_by_name_and_unseen(
    monkeypatch: pytest.MonkeyPatch, section: dict[str, Any], sentence: str
) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    with pytest.raises(ConfigError) as caught:
        open_channels({"x": section})
    assert sentence in str(caught.value)
    assert "never" not in str(caught.value).replace("never into the config", "")


def test_config_toml_shows_every_key_of_a_channel_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import MISSING, fields
    import tomllib

    from trader.mail import EmailSettings
    from trader.webhook import WebhookSettings

    text = (ROOT / "config.toml").read_text(encoding="utf-8")
    shown = text[text.index("# [notify.hook]") : text.index("[model.finin]")]
    assert all(
        "#" in line[2:] for line in shown.splitlines() if "=" in line and "events" not in line and "kind" not in line
    )
    written = tomllib.loads(re.sub("^# ", "", shown, flags=re.MULTILINE))["notify"]
    for name, kind in (("hook", WebhookSettings), ("post", EmailSettings)):
        assert written[name].keys() == {one.name for one in fields(kind)}
        for one in fields(kind):
            found = written[name][one.name]
            if one.default is not MISSING and one.name != "url":
                assert (tuple(found) if isinstance(found, list) else found) == one.default, one.name


def test_a_config_keeps_its_channels_and_without_any_nothing_is_opened() -> None:
    config = from_mapping({"notify": {"hook": hook("https://a.org", secret_variable="")}}, "test")
    (channel,) = open_channels(config.notify)
    assert (channel.name, channel.place, channel.events) == ("hook", "webhook https://a.org", KINDS)
    assert open_channels(Config().notify) == []


# The command


def command(tmp_path: Path, server: WebhookServer, name: str = "hook") -> int:
    path = tmp_path / "config.toml"
    path.write_text(f'[notify.hook]\nkind = "webhook"\nurl = "{server.url}"\ntimeout_seconds = 5\n')
    return cli.main(["notify", "test", "--config", str(path), name])


def test_notify_test_sends_one_message_and_says_what_happened(
    server: WebhookServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, server) == 0
    (post,) = server.posts
    assert (post.said["kind"], post.said["account"]) == ("test", "test")
    place = server.url.removesuffix("/hook")
    assert re.fullmatch(rf"hook: delivered to webhook {place} in \d+\.\d\d s, id {post.key}\n", capsys.readouterr().out)
    server.behave = answers(503)
    assert command(tmp_path, server) == 2
    err = capsys.readouterr().err
    assert err.startswith(
        f"trader: [notify.hook] webhook {place}: the message was not taken (got HTTP 503: so it says)"
    )


def test_notify_test_names_the_channels_there_are(
    server: WebhookServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, server, "hok") == 2
    assert "trader: [notify.hok]: no such channel (expected one of: hook)" in capsys.readouterr().err


def test_the_page_of_notifications_works_as_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "notifications.md").read_text(encoding="utf-8")
    blocks = ["\n".join(line[4:] for line in block.splitlines()) for block in re.findall(r"(?:^    .*\n)+", page, re.M)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    receiver, section = (block.replace("8099", port) for block in blocks[:2])
    assert len(receiver.splitlines()) <= 12
    (tmp_path / "config.toml").write_text(section)
    with subprocess.Popen(
        [sys.executable, "-c", receiver], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as running:
        while socket.socket().connect_ex(("127.0.0.1", int(port))):
            assert running.poll() is None
        try:
            assert cli.main(["notify", "test", "--config", str(tmp_path / "config.toml"), "hook"]) == 0
            assert running.stdout is not None
            assert running.stdout.readline() == b"test A test: notifications through this channel arrive.\n"
        finally:
            running.kill()
    assert all(f"`{kind}`" in page for kind in KINDS)
