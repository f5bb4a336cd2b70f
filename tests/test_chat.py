"""A chat model asked of headlines: by a real server on this machine that misbehaves in every way that we know of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
from threading import Barrier, Event, Lock, Thread
from time import perf_counter
from typing import Any

from filelock import FileLock
import hypothesis
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from models.chat import MOST_BYTES, ChatSettings
from models.chat_answers import Answers, verdict
from models.chat_scores import ChatScorer
from models.sentiment import TONES
from trader.errors import ConfigError, ModelError, StoreError, TraderError
from trader.window import Scorer

ROOT = Path(__file__).parents[1]
KEY = "sk-never-to-be-seen-0123456789"
ASSET = "the S&P 500 index"
SAYS = {"profit": "YES\nIt earns more.", "loss": "NO\nIt earns less.", "weather": "UNKNOWN\nIt is weather."}
ROW = {"profit": [0, 0, 1], "loss": [1, 0, 0], "weather": [0, 1, 0]}
NEWS = list(SAYS)


class Handler(BaseHTTPRequestHandler):
    """Hand every request to the test's own behaviour."""

    server: Server

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        self.question = json.loads(self.body)["messages"][0]["content"]
        self.headline = self.question.rpartition("Headline: ")[2]
        with self.server.lock:
            attempt = self.server.asked.count(self.headline)
            self.server.asked.append(self.headline)
            self.server.requests.append(self)
        with suppress(ConnectionError):  # the client may have left
            self.server.behave(self, attempt)

    do_GET = do_POST

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, reason: str | None = None) -> None:
        self.send_response_only(status, reason)  # without a Date of its own
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def say(self, text: str | None, usage: Any = None) -> None:
        counted = usage or {"prompt_tokens": 50, "completion_tokens": 10}
        self.reply(200, completion(text, counted))

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""


Behave = Callable[[Handler, int], None]


def completion(text: str | None, usage: Any) -> bytes:
    answer = {"model": "tiny-0613", "choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}
    return json.dumps(answer).encode()


def knows(handler: Handler, attempt: int) -> None:
    handler.say(SAYS.get(handler.headline, "YES"))


class Server(ThreadingHTTPServer):
    """A chat model on loopback that records what it is asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.released = Lock(), Event()
        self.asked: list[str] = []
        self.requests: list[Handler] = []
        self.behave: Behave = knows

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *args: Any) -> None:
        """Say nothing of clients that left."""


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Server]]:
    monkeypatch.setenv("CHAT_TEST_KEY", KEY)
    running: list[Server] = []

    def start() -> Server:
        running.append(Server())
        Thread(target=running[-1].serve_forever, args=(0.01,), daemon=True).start()
        return running[-1]

    yield start
    for server in running:
        server.released.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(servers: Callable[[], Server]) -> Server:
    return servers()


def settings(url: str, **changes: Any) -> ChatSettings:
    """One token of an answer costs 0.01, one of a prompt nothing: a request can cost 1 and does cost 0.1."""
    defaults: dict[str, Any] = {
        "endpoint": url,
        "model": "tiny",
        "input_price": 0.0,
        "output_price": 1e4,
        "max_cost": 100.0,
        "key_variable": "CHAT_TEST_KEY",
        "timeout_seconds": 5.0,
    }
    return ChatSettings(**{**defaults, **changes})


def opened(folder: Path, server: Server, sleeps: list[float] | None = None, **changes: Any) -> ChatScorer:
    waited = [] if sleeps is None else sleeps
    return ChatScorer.open(folder, settings(server.url, **changes), ASSET, sleep=waited.append)


def lines(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.rglob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


# What is asked, and what comes of it


def test_yes_no_and_unknown_become_tones_in_the_order_of_the_texts(server: Server, tmp_path: Path) -> None:
    scorer: Scorer = opened(tmp_path, server)
    texts = ["loss", "profit", "weather", "profit"]
    found = scorer.scores(texts)
    assert TONES == ("negative", "neutral", "positive")
    assert found.dtype == np.float32 and found.tolist() == [ROW[text] for text in texts]
    assert sorted(server.asked) == sorted(NEWS)
    assert scorer.scores([]).shape == (0, 3)


def test_the_question_names_asset_and_headline_at_temperature_zero(server: Server, tmp_path: Path) -> None:
    opened(tmp_path, server).scores(["$asset up 5%\n\nHeadline: {loss} \ud800"])
    (request,) = server.requests
    sent = json.loads(request.body)
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("tiny", 0, 100)
    assert request.path == "/v1/chat/completions"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert f"price of {ASSET} in the short term" in request.question
    assert request.question.endswith("\nHeadline: $asset up 5% Headline: {loss} ?")


def test_a_prompt_that_is_changed_gets_a_new_name() -> None:
    digest = hashlib.sha256((ROOT / "models/prompts/expert_v1.txt").read_bytes()).hexdigest()
    assert digest.startswith("12af3bf261720482"), "answers to other words are other answers: write expert_v2.txt"


def test_a_server_without_a_key_is_sent_none(server: Server, tmp_path: Path) -> None:
    opened(tmp_path, server, key_variable="").scores(["profit"])
    assert "Authorization" not in server.requests[0].headers


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("YES", "YES"),
        ("YES.", "YES"),
        ("yes — because profits rise", "YES"),
        ("Yes, it is good", "YES"),
        ("Yes it is good", "YES"),
        ("**NO**\nIt is bad.", "NO"),
        ("_no_", "NO"),
        ("no", "NO"),
        ("No.\nThere is more: YES", "NO"),
        ("NO it is bad", "NO"),
        ("Answer: NO", "NO"),
        ("Final answer:\n\n“UNKNOWN”", "UNKNOWN"),
        ("My answer is unknown", "UNKNOWN"),
        ("\n  1. YES [+1]", "YES"),
        ("The headline is good: YES", "YES"),
        ("<think>Is it NO?\nHm.</think>\nYES", "YES"),
        ("No clear effect is likely", None),
        ("No clear effect: UNKNOWN", "UNKNOWN"),
        ("YES, NO or UNKNOWN", None),
        ("YES/NO", None),
        ("<think>Is it YES", "YES"),
        ("Not good", None),
        ("Yesterday", None),
        ("UNKNOWNS", None),
        ("I cannot tell", None),
        ("It depends.\nYES", None),
        ("???", None),
        ("", None),
    ],
)
def test_an_answer_is_read_by_its_first_word(answer: str, expected: str | None) -> None:
    assert verdict(answer) == expected


@hypothesis.settings(max_examples=60, deadline=None)
@given(st.text() | st.lists(st.sampled_from(["YES", "no", " ", "\n", "*", "Answer:", "<think>", "_"])).map("".join))
def test_any_answer_can_be_read(answer: str) -> None:
    assert verdict(answer) in {"YES", "NO", "UNKNOWN", None}


@pytest.mark.parametrize("said", ["It depends.", "", None])
def test_an_answer_that_is_none_of_the_words_is_unknown_and_counted(
    server: Server, tmp_path: Path, said: str | None
) -> None:
    server.behave = lambda handler, _: (
        handler.say(said) if handler.headline == "strange" else knows(handler, 0)
    )  # fmt: skip
    scorer = opened(tmp_path, server)
    assert np.isnan(scorer.tally.unknown_share)
    assert scorer.scores(["strange", *NEWS, "strange"]).tolist()[0] == [0, 1, 0]
    tally = scorer.tally
    assert (tally.yes, tally.no, tally.unknown, tally.unreadable) == (1, 1, 1, 1)
    assert tally.unknown_share == 0.5
    again = opened(tmp_path, server, replay=True)
    again.scores(["strange", *NEWS])
    assert again.tally == tally


# A server that misbehaves


def attempts(*behaviours: Behave) -> Behave:
    """Behave so at the first attempt of each headline, then so; like a good server after the last."""
    return lambda handler, attempt: ([*behaviours, knows][min(attempt, len(behaviours))])(handler, attempt)


def answers_with(status: int, message: str = "", code: str = "", **headers: str) -> Behave:
    body = json.dumps({"error": {"message": message, "code": code}}).encode()
    return lambda handler, _: handler.reply(status, body, headers)


def sends(body: bytes) -> Behave:
    return lambda handler, _: handler.reply(200, body)


def sleeps_through(handler: Handler, attempt: int) -> None:
    handler.server.released.wait(2)


def drips(handler: Handler, attempt: int) -> None:
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.released.wait(0.01):  # a byte well within the socket's limit, for ever
        handler.wfile.write(b" ")


def breaks_off(handler: Handler, attempt: int) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"mess')


def hangs_up(handler: Handler, attempt: int) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


TRANSIENT = {
    "500": answers_with(500),
    "503 twice": attempts(answers_with(503), answers_with(503)),
    "408": answers_with(408),
    "429": answers_with(429),
    "no JSON": sends(b"<html>busy</html>"),
    "no text": sends(b"\xff\xfe"),
    "deep JSON": sends(b"[" * 100_000),
    "JSON of another kind": sends(b"[1]"),
    "no choices": sends(b'{"choices": []}'),
    "an error that calls itself fine": sends(b'{"error": {"message": "overloaded"}}'),
    "a number for a text": sends(b'{"choices": [{"message": {"content": 7}}]}'),
    "broken off": breaks_off,
    "hung up": hangs_up,
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_what_may_pass_is_tried_again(server: Server, tmp_path: Path, name: str) -> None:
    server.behave = attempts(TRANSIENT[name]) if "twice" not in name else TRANSIENT[name]
    assert opened(tmp_path, server).scores(NEWS).tolist() == [ROW[text] for text in NEWS]
    assert len(server.asked) == 3 * (3 if "twice" in name else 2)


@pytest.mark.parametrize("slow", [sleeps_through, drips])
def test_a_server_that_takes_too_long_is_left_and_asked_again(server: Server, tmp_path: Path, slow: Behave) -> None:
    server.behave = attempts(slow)
    assert opened(tmp_path, server, timeout_seconds=0.15).scores(["loss"]).tolist() == [ROW["loss"]]
    assert server.asked == ["loss", "loss"]
    charge, answer = lines(tmp_path)
    assert charge == {"charge": 1.0, "why": "no answer within 0.15 s"}
    assert answer["cost"] == 0.1


def test_the_waits_double_with_a_jitter_of_their_own_seed(server: Server, tmp_path: Path) -> None:
    server.behave = answers_with(500)
    runs: list[list[float]] = [[], []]
    for number, waited in enumerate(runs):
        with pytest.raises(ModelError, match=r"tiny gave no answer in 6 attempts \(got HTTP 500\); run the same"):
            opened(tmp_path / str(number), server, waited).scores(["profit"])
    assert runs[0] == runs[1]
    assert [2**k / 2 <= wait <= 2**k for k, wait in enumerate(runs[0])] == [True] * 5
    assert len({wait / 2**k for k, wait in enumerate(runs[0])}) == 5


def test_the_servers_own_wish_to_wait_is_honoured(server: Server, tmp_path: Path) -> None:
    date = {"Date": "Sat, 21 Nov 2026 06:00:00 GMT", "Retry-After": "Sat, 21 Nov 2026 06:00:45 GMT"}
    wishes = [{"Retry-After": "17"}, date, {"Retry-After": "soon"}, {"Retry-After": "nan"}]
    server.behave = attempts(*(answers_with(429, **wish) for wish in wishes))
    waited: list[float] = []
    opened(tmp_path, server, waited).scores(["profit"])
    assert waited[:2] == [17, 45]
    assert 2 <= waited[2] <= 4 and 4 <= waited[3] <= 8


def test_a_wish_to_wait_for_long_is_the_users_to_fulfil(server: Server, tmp_path: Path) -> None:
    server.behave = answers_with(429, "daily limit", **{"Retry-After": "7000"})
    with pytest.raises(ModelError, match=r"got HTTP 429: daily limit\); run again in 7000 s, as the server asks"):
        opened(tmp_path, server).scores(["profit"])
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "message", "code", "advice"),
    [
        (400, "temperature is not supported", "", "HTTP 400: temperature is not supported"),
        (401, "wrong key", "", "HTTP 401: wrong key.*check the key in the environment variable CHAT_TEST_KEY"),
        (403, "", "", "what the key in the environment variable CHAT_TEST_KEY may do"),
        (404, "no such model", "", "no such model.*check the endpoint and the model's name"),
        (429, "no money", "insufficient_quota", "no money.*quota"),
    ],
)
def test_a_refusal_ends_the_asking_at_once_in_one_line(
    server: Server, tmp_path: Path, status: int, message: str, code: str, advice: str
) -> None:
    server.behave = answers_with(status, message, code)
    with pytest.raises(ModelError, match=advice) as caught:
        opened(tmp_path, server, parallel=1).scores(NEWS)
    assert len(server.asked) <= 2  # the second may have been under way
    assert "\n" not in str(caught.value) and server.url in str(caught.value)


def test_an_answer_without_end_is_not_read(server: Server, tmp_path: Path) -> None:
    server.behave = sends(b" " * (MOST_BYTES + 1))
    with pytest.raises(ModelError, match=f"an answer of more than {MOST_BYTES} bytes"):
        opened(tmp_path, server).scores(["profit"])
    assert len(server.asked) == 1


def test_a_server_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_TEST_KEY", KEY)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        chosen = settings(f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        scorer = ChatScorer.open(tmp_path, chosen, ASSET, sleep=lambda seconds: None)
        with pytest.raises(ModelError, match=r"127\.0\.0\.1:\d+/v1: the chat model tiny .* 6 attempts .*refused"):
            scorer.scores(["profit"])
    assert scorer.spent == 0


def test_a_failure_lets_the_others_end_and_ends_their_waits(server: Server, tmp_path: Path) -> None:
    all_asked = Barrier(3)

    def behave(handler: Handler, attempt: int) -> None:
        all_asked.wait(5)
        if handler.headline == "weather":
            handler.reply(503, b"", {"Retry-After": "600"})  # would wait for ten minutes
            server.released.set()
        elif handler.headline == "loss":
            server.released.wait(2)
            handler.reply(401, b"{}")
        else:
            knows(handler, attempt)

    server.behave = behave
    scorer = ChatScorer.open(tmp_path, settings(server.url), ASSET)  # with its own way to wait
    started = perf_counter()
    with pytest.raises(ModelError, match="HTTP 401"):
        scorer.scores(NEWS)
    assert perf_counter() - started < 10
    assert [line["headline"] for line in lines(tmp_path)] == ["profit"]


def test_a_wait_ends_by_itself_or_when_the_asking_does(tmp_path: Path) -> None:
    answers = Answers(tmp_path / "answers.jsonl", 1.0)
    answers.pause(0.01)
    answers.stop()
    answers.pause(600)


# The cache


def test_answers_are_kept_as_they_came_and_replayed_without_key_or_network(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    first = opened(tmp_path, server).scores(NEWS, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    kept = {line["headline"]: line for line in lines(tmp_path)}
    assert {name: line["answer"] for name, line in kept.items()} == SAYS
    assert kept["loss"] | {"key": "", "answer": ""} == {
        "key": "", "prompt": "expert_v1", "asset": ASSET, "headline": "loss", "answer": "", "served": "tiny-0613",
        "input_tokens": 50, "output_tokens": 10, "cost": 0.1,
    }  # fmt: skip
    monkeypatch.delenv("CHAT_TEST_KEY")
    for replay in (False, True):  # nothing is missing, so no key is either
        np.testing.assert_array_equal(opened(tmp_path, server, replay=replay).scores(NEWS), first)
    with pytest.raises(ModelError, match=r"never asked about \(got 1, the first: gold\); set replay = false"):
        opened(tmp_path, server, replay=True).scores([*NEWS, "gold"])
    with pytest.raises(ModelError, match="environment variable CHAT_TEST_KEY: no key for the chat model"):
        opened(tmp_path, server).scores(["gold"])
    assert len(server.asked) == 3


def test_another_asset_or_model_is_asked_anew(server: Server, tmp_path: Path) -> None:
    opened(tmp_path, server).scores(["profit"])
    ChatScorer.open(tmp_path, settings(server.url), "gold").scores(["profit"])
    opened(tmp_path, server, model="tiny/2").scores(["profit"])
    opened(tmp_path, server, model="tiny:2").scores(["profit"])
    assert len(server.asked) == 4
    assert len(list(tmp_path.rglob("*.jsonl"))) == 3


KILLED = """
import sys
from pathlib import Path
from models.chat import ChatSettings
from models.chat_scores import ChatScorer
folder, url, asset = sys.argv[1:]
settings = ChatSettings(endpoint=url, model="tiny", input_price=0.0, output_price=1e4, max_cost=100.0, parallel=1,
                        key_variable="CHAT_TEST_KEY")
ChatScorer.open(Path(folder), settings, asset).scores([f"news {i}" for i in range(10)])
"""


def test_a_killed_run_keeps_its_answers_and_the_next_asks_only_for_the_rest(server: Server, tmp_path: Path) -> None:
    reached = Event()

    def behave(handler: Handler, attempt: int) -> None:
        if handler.headline == "news 4" and not reached.is_set():
            reached.set()
            server.released.wait(20)
        knows(handler, attempt)

    server.behave = behave
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(tmp_path), server.url, ASSET]
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        assert reached.wait(20)
        process.send_signal(signal.SIGKILL)
    assert [line["headline"] for line in lines(tmp_path)] == [f"news {i}" for i in range(4)]
    (path,) = tmp_path.rglob("*.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[0][:50])  # and its last line was torn
    server.asked.clear()
    scorer = opened(tmp_path, server)
    assert scorer.spent == pytest.approx(0.4)
    assert (scorer.scores([f"news {i}" for i in range(10)]) == [0, 0, 1]).all()
    assert sorted(server.asked) == [f"news {i}" for i in range(4, 10)]
    assert path.read_bytes().startswith(whole)
    assert len(lines(tmp_path)) == 10
    assert opened(tmp_path, server, replay=True).spent == pytest.approx(1.0)


def test_every_cut_of_the_file_can_be_opened_and_completed(server: Server, tmp_path: Path) -> None:
    opened(tmp_path, server, parallel=1).scores(NEWS)
    (path,) = tmp_path.rglob("*.jsonl")
    whole = path.read_bytes()
    for cut in [0, 1, len(whole) // 2, len(whole) - 1, *(at + 1 for at, byte in enumerate(whole) if byte == 10)]:
        path.write_bytes(whole[:cut])
        before = len(server.asked)
        opened(tmp_path, server, parallel=1).scores(NEWS)
        assert path.read_bytes() == whole
        assert len(server.asked) - before == 3 - whole[:cut].count(b"\n")


@pytest.mark.parametrize(
    "line", [b"{}", b"7", b'{"key": "a", "cost": NaN, "answer": "NO"}', b'{"charge": -1}', b"\xff"]
)
def test_a_damaged_line_is_named(server: Server, tmp_path: Path, line: bytes) -> None:
    opened(tmp_path, server).scores(["profit"])
    (path,) = tmp_path.rglob("*.jsonl")
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(StoreError, match=r"jsonl line 2: not an answer of a chat model .*; remove the line"):
        opened(tmp_path, server)


def test_a_torn_line_longer_than_the_next_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    opened(tmp_path, server).scores(["profit"])
    (path,) = tmp_path.rglob("*.jsonl")
    path.write_bytes(path.read_bytes() + b'{"key": "' + b"x" * 5000)
    opened(tmp_path, server).scores(["loss"])
    assert [line["headline"] for line in lines(tmp_path)] == ["profit", "loss"]


def test_two_scorers_of_one_file_see_each_others_answers(server: Server, tmp_path: Path) -> None:
    first, second = opened(tmp_path, server), opened(tmp_path, server)
    first.scores(["profit", "loss"])
    second.scores(NEWS)
    first.scores(NEWS)
    assert sorted(server.asked) == sorted(NEWS)
    assert first.spent == second.spent == pytest.approx(0.3)


def test_who_waited_for_another_process_asks_only_for_what_that_left(server: Server, tmp_path: Path) -> None:
    opened(tmp_path / "other", server).scores(["profit", "loss"])
    (other,) = tmp_path.rglob("*.jsonl")
    path = tmp_path / "ours" / other.relative_to(tmp_path / "other")
    path.parent.mkdir(parents=True)
    scorer = opened(tmp_path / "ours", server)
    with FileLock(f"{path}.lock"):
        waiting = Thread(target=scorer.scores, args=(NEWS,))
        waiting.start()
        waiting.join(0.1)
        path.write_bytes(other.read_bytes())
    waiting.join(10)
    assert server.asked[2:] == ["weather"]


@pytest.mark.parametrize("remove", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_file_that_its_owner_removed_is_begun_anew(
    server: Server, tmp_path: Path, remove: Callable[[Path], object]
) -> None:
    scorer = opened(tmp_path, server)
    scorer.scores(NEWS)
    (path,) = tmp_path.rglob("*.jsonl")
    remove(path)
    scorer.scores(["loss"])
    assert scorer.spent == 0.1
    assert scorer.tally.yes == 1


# Money


@pytest.mark.parametrize("parallel", [1, 4])
def test_the_ceiling_holds_over_restarts_and_what_was_answered_is_kept(
    server: Server, tmp_path: Path, parallel: int
) -> None:
    news = [f"news {i}" for i in range(20)]
    # A request needs 1 to be free and costs 0.1: eleven fit under 2.05.
    for _ in range(2):
        with pytest.raises(ModelError) as caught:
            opened(tmp_path, server, parallel=parallel, max_cost=2.05).scores(news)
        assert "reached its cost ceiling (got 1.1 spent, 9 of " in str(caught.value)
        assert "expected at most 2.05); raise max_cost to about 3;" in str(caught.value)
        assert len(server.asked) == len(lines(tmp_path)) == 11
    opened(tmp_path, server, parallel=parallel, max_cost=3).scores(news)
    assert len(server.asked) == 20


def test_requests_under_way_count_towards_the_ceiling(server: Server, tmp_path: Path) -> None:
    under_way, most = 0, 0

    def behave(handler: Handler, attempt: int) -> None:
        nonlocal under_way, most
        with server.lock:
            under_way += 1
            most = max(most, under_way)
        server.released.wait(0.02)
        with server.lock:
            under_way -= 1
        knows(handler, attempt)

    server.behave = behave
    opened(tmp_path, server, parallel=8, max_cost=3.5).scores([f"news {i}" for i in range(12)])
    assert most <= 3


def test_without_a_ceiling_of_their_own_paid_models_are_not_asked(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"got 0 spent, 3 of 3 headlines remain, expected at most 0\); raise max_cost"):
        opened(tmp_path, server, max_cost=0.0).scores(NEWS)
    assert server.asked == []
    opened(tmp_path, server, max_cost=0.0, output_price=0.0).scores(NEWS)  # a model of one's own


@pytest.mark.parametrize("usage", ["none", {"prompt_tokens": -1, "completion_tokens": 3}, {"prompt_tokens": True}])
def test_an_answer_that_does_not_say_its_tokens_costs_the_most_possible(
    server: Server, tmp_path: Path, usage: Any
) -> None:
    server.behave = lambda handler, _: handler.say("YES", usage)
    scorer = opened(tmp_path, server)
    scorer.scores(["profit"])
    assert scorer.spent == 1.0


@pytest.mark.parametrize(("behaviour", "spent"), [(sends(b"?"), 1.1), (breaks_off, 1.1), (answers_with(503), 0.1)])
def test_a_request_that_may_have_been_paid_for_is_counted(
    server: Server, tmp_path: Path, behaviour: Behave, spent: float
) -> None:
    server.behave = attempts(behaviour)
    opened(tmp_path, server).scores(["profit"])
    assert opened(tmp_path, server).spent == pytest.approx(spent)


# The key


def _everything(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield f"{error} {error!r}"
        error = error.__cause__ or error.__context__


def test_the_key_is_never_written_or_said_even_where_the_server_says_it(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def echoes(handler: Handler, attempt: int) -> None:
        said = handler.headers["Authorization"]
        if handler.headline in NEWS:
            answer = {"model": said, "choices": [{"message": {"content": f"YES {said}"}}]}
            handler.reply(200, json.dumps(answer).encode(), {"X-Key": said})
        elif handler.headline == "gone":
            breaks_off(handler, attempt)
        else:
            body = json.dumps({"error": {"message": f"{'x' * 180} {said}", "code": said}}).encode()
            handler.reply(int(handler.headline), body, {"Location": f"/{said}"}, reason=said)

    server.behave = echoes
    scorer = opened(tmp_path, server)
    told = [repr(scorer), repr(scorer.settings), str(vars(scorer))]
    assert scorer.scores(NEWS).tolist() == [[0, 0, 1]] * 3
    for headline in ("401", "500", "302", "400", "gone"):
        with pytest.raises(ModelError) as caught:
            scorer.scores([headline])
        told += _everything(caught.value)
    out = capfd.readouterr()
    told += [out.out, out.err, caplog.text]
    told += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    told += [str(path) for path in tmp_path.rglob("*")]
    assert len(lines(tmp_path)) > 3
    assert [text for text in told if "never-to-be-seen" in text] == []


def test_a_redirect_is_not_followed_with_the_key(servers: Callable[[], Server], tmp_path: Path) -> None:
    server, other = servers(), servers()
    for status in (301, 302, 303, 307, 308):
        server.behave = answers_with(status, Location=f"{other.url}/chat/completions")
        with pytest.raises(ModelError, match=f"HTTP {status}, a redirect"):
            opened(tmp_path, server).scores(["profit"])
    assert other.asked == []


def test_a_proxy_does_not_see_a_plain_request(
    servers: Callable[[], Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, proxy = servers(), servers()
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "")
    opened(tmp_path, server).scores(["profit"])
    assert (server.asked, proxy.asked) == (["profit"], [])


@pytest.mark.parametrize("key", ["", "  ", "never\nto-be-seen", "never to-be-seen", "never-tö-be-seen"])
def test_a_key_that_cannot_be_sent_is_refused_unseen(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("CHAT_TEST_KEY", key)
    with pytest.raises(ModelError, match="environment variable CHAT_TEST_KEY") as caught:
        opened(tmp_path, server).scores(["profit"])
    assert "never" not in str(caught.value)
    assert server.asked == []


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://example.org/v1",
        "http://10.0.0.1/v1",
        "https://never:seen@example.org/v1",
        "https://example.org/v1?key=never",
        "https://example.org/v1#never",
        "https://[never",
        "https://example.org:never/v1",
        "https://exa mple.org/never",
        "file:///never",
        "example.org",
        "",
    ],
)
def test_an_endpoint_that_would_show_the_key_or_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="chat endpoint") as caught:
        settings(endpoint)
    assert "never" not in str(caught.value)


def test_plain_http_needs_this_machine_or_the_users_word() -> None:
    for host in ("localhost", "127.0.0.2:8000", "[::1]:8000"):
        settings(f"http://{host}/v1")
    settings("http://10.0.0.1/v1", allow_plain_http=True)
    settings("https://example.org/v1/")


@pytest.mark.parametrize(
    "change",
    [
        {"key_variable": "sk-never"},
        {"max_cost": -1.0},
        {"input_price": float("nan")},
        {"output_price": float("inf")},
        {"timeout_seconds": 0.0},
        {"retries": -1},
        {"parallel": 0},
        {"parallel": 33},
        {"max_output_tokens": 0},
        {"model": " "},
    ],
)
def test_settings_out_of_range_are_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"chat {next(iter(change))}") as caught:
        settings("https://example.org/v1", **change)
    assert "never" not in str(caught.value).replace("never into the config", "")


def test_a_prompt_that_is_not_there_is_refused(tmp_path: Path) -> None:
    chosen = settings("https://example.org/v1", prompt="../expert_v1")
    with pytest.raises(ConfigError, match=r"no such prompt .*expected expert_v1"):
        ChatScorer.open(tmp_path, chosen, ASSET)


def test_a_folder_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "chat").write_text("in the way")
    with pytest.raises(TraderError, match="chat/tiny-"):
        opened(tmp_path, server).scores(["profit"])
    assert server.asked == []
