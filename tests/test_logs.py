"""The log of a service: one line an event, and nothing that happens to the log happens to the service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone
import json
import os
from pathlib import Path
import re
import resource
import subprocess
import sys
from threading import Thread
from typing import Any

import numpy as np
import pytest

from trader.clock import SimulatedClock
from trader.errors import StoreError
from trader.logs import Form, Log

NOON = datetime(2018, 1, 3, 21, 0, 3, 250, tzinfo=timezone.utc)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "service.log"


def log_to(path: Path, form: Form = "json", **options: Any) -> Log:
    return Log.to_file(SimulatedClock(NOON), path, form, **options)


def test_an_event_is_one_line_of_json_with_its_keys_in_a_stable_order(path: Path) -> None:
    log = log_to(path, strict=True).bound(account="demo")
    log.event("filled", size=-3, price=271.5, session=date(2018, 1, 3), level="warning", of={"a": (1, None, True)})
    (line,) = path.read_text().splitlines()
    assert line == (
        '{"at": "2018-01-03T21:00:03.000250+00:00", "level": "warning", "event": "filled", "account": "demo", '
        '"session": "2018-01-03", "size": -3, "price": 271.5, "of": {"a": [1, null, true]}}'
    )


def test_the_time_is_the_clocks_and_in_utc(path: Path) -> None:
    zone = timezone(timedelta(hours=-5))
    Log.to_file(SimulatedClock(NOON.astimezone(zone)), path).event("started")
    assert json.loads(path.read_text())["at"] == "2018-01-03T21:00:03.000250+00:00"


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_fact_breaks_a_line_or_speaks_to_the_terminal(path: Path, form: Form) -> None:
    bad = "a\nb\r\nc\x0bd\x0ce\x1c\x1d\x1e\x85\u2028\u2029\x1b[2Jf\ud800"
    log = log_to(path, form, strict=True)
    log.event(f"x{bad}", account=bad, session=bad, text=bad, **{bad: [bad]})
    text = path.read_bytes().decode()
    assert len(text.splitlines()) == 1 and text.endswith("\n")
    assert "\x1b" not in text
    if form == "json":
        assert json.loads(text)["text"] == bad


def test_lines_for_people_stand_in_columns(path: Path) -> None:
    log = log_to(path, "text", strict=True)
    log.event("started", account="demo", version=3)
    log.event("feed_stale", level="warning", account="demo", session=date(2018, 1, 3), why="no news", empty="")
    assert path.read_text().splitlines() == [
        "2018-01-03 21:00:03Z  info     started             demo                version=3",
        '2018-01-03 21:00:03Z  warning  feed_stale          demo 2018-01-03     why="no news" empty=""',
    ]


def test_numbers_of_numpy_and_numbers_that_json_lacks_are_said(path: Path) -> None:
    log_to(path, strict=True).event("x", a=np.float32(0.5), b=np.int64(3), c=float("nan"), d=float("-inf"))
    assert json.loads(path.read_text())["c"] == "nan"
    assert path.read_text().endswith('"a": 0.5, "b": 3, "c": "nan", "d": "-inf"}\n')


UNSAID = {"object": {"what": object()}, "set": {"what": {1, 2}}, "own word": {"at": "now"}, "bytes": {"what": [b"x"]}}


@pytest.mark.parametrize("facts", UNSAID.values(), ids=UNSAID)
def test_a_fact_that_cannot_be_said_is_an_error_in_tests_and_named_in_the_line_elsewhere(
    path: Path, facts: dict[str, Any]
) -> None:
    (name,) = facts
    with pytest.raises(StoreError, match=f"{name}: a fact that a log line cannot hold"):
        log_to(path, strict=True).event("x", **facts)
    log_to(path).event("x", good=1, **facts)
    line = json.loads(path.read_text())
    assert (line["good"], line["at"][:4]) == (1, "2018")
    assert line["unreadable_facts"] == [f"{name} ({type(facts[name]).__name__})"]


def test_a_fact_that_holds_itself_is_named_too(path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    log_to(path).event("x", endless=endless)
    assert json.loads(path.read_text())["unreadable_facts"] == ["endless (list)"]


def test_a_file_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the log cannot be written"):
        log_to(tmp_path / "nowhere" / "service.log")


# What fails


def test_a_closed_pipe_costs_lines_which_are_told_of_when_somebody_reads_again() -> None:
    reader, writer = os.pipe()
    log = Log(SimulatedClock(NOON), writer)
    os.close(reader)
    log.event("one")
    log.bound(account="demo").event("two")
    assert log.dropped == 2
    again, other = os.pipe()
    os.dup2(other, writer)
    log.event("three")
    log.event("four")
    os.close(writer)
    os.close(other)
    with os.fdopen(again) as lines:
        three, four = [json.loads(line) for line in lines]
    assert (three["event"], three["dropped_lines"], "dropped_lines" in four) == ("three", 2, False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full")
def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    log = Log(SimulatedClock(NOON), os.open("/dev/full", os.O_WRONLY))
    for _ in range(3):
        log.event("one", text="x" * 10_000)
    assert log.dropped == 3


LIMITED = """
import resource, signal, sys
from datetime import datetime, timezone
from pathlib import Path
from trader.clock import SimulatedClock
from trader.logs import Log
log = Log.to_file(SimulatedClock(datetime(2018, 1, 3, tzinfo=timezone.utc)), Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (150, resource.RLIM_INFINITY))
log.event("one")
log.event("two")
log.event("three")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.event("four")
"""


def test_a_line_that_was_torn_does_not_spoil_the_next(path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    subprocess.run([sys.executable, "-c", LIMITED, str(path)], check=True)
    first, torn, last = path.read_text().splitlines()
    assert json.loads(first)["event"] == "one"
    assert re.fullmatch(r'\{"at".{10,}', torn)
    assert (json.loads(last)["event"], json.loads(last)["dropped_lines"]) == ("four", 2)


def test_a_reader_that_sleeps_holds_nobody_up() -> None:
    reader, writer = os.pipe()
    log = Log(SimulatedClock(NOON), writer)
    done = Thread(target=lambda: [log.event("x", number=i, text="y" * 1000) for i in range(500)], daemon=True)
    done.start()
    done.join(30)
    assert not done.is_alive()  # a pipe holds 64 KiB: most of the 500 found no room
    assert log.dropped > 300
    os.close(writer)
    with os.fdopen(reader) as lines:
        numbers = [json.loads(line)["number"] for line in lines.read().splitlines()[:-1]]
    assert numbers == list(range(len(numbers))) and len(numbers) > 30


def test_a_closed_log_and_one_without_a_place_keep_count(path: Path) -> None:
    log = log_to(path)
    log.close()
    log.event("late")
    silent = Log(SimulatedClock(NOON), None)
    silent.event("x")
    assert (log.dropped, silent.dropped) == (1, 1)


TO_STDERR = """
import sys
from datetime import datetime, timezone
from trader.clock import SimulatedClock
from trader.logs import Log
log = Log.to_stderr(SimulatedClock(datetime(2018, 1, 3, tzinfo=timezone.utc)), *sys.argv[1:])
log.event("started")
print(log.dropped)
"""


def run(*words: str, **options: Any) -> str:
    return subprocess.run([sys.executable, "-c", TO_STDERR, *words], check=True, text=True, **options).stdout or ""


def test_stderr_gets_json_unless_it_is_a_terminal_or_text_is_asked_for(tmp_path: Path) -> None:
    with (tmp_path / "err").open("w+") as err:
        run(stderr=err, stdout=subprocess.PIPE)
        run("text", stderr=err, stdout=subprocess.PIPE)
        err.seek(0)
        first, second = err.read().splitlines()
    assert first.startswith('{"at": "2018') and second.startswith("2018-01-03 00:00:00Z  info")
    terminal, other = os.openpty()
    run(stderr=other, stdout=subprocess.PIPE)
    assert os.read(terminal, 100).decode().startswith("2018-01-03 00:00:00Z  info     started")
    for descriptor in (terminal, other):
        os.close(descriptor)


@pytest.fixture
def restored_interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


def closes_stderr() -> None:
    os.close(2)


def test_without_a_stderr_nothing_is_written_to_whatever_took_its_number() -> None:
    close: Callable[[], None] = closes_stderr
    assert run(stdout=subprocess.PIPE, preexec_fn=close).strip() == "1"


def test_threads_do_not_mix_their_lines(path: Path, restored_interval: None) -> None:
    sys.setswitchinterval(1e-6)
    log = log_to(path)
    threads = [Thread(target=lambda: [log.event("x", text="y" * 9000) for _ in range(50)]) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["x"] * 200
