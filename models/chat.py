"""One question to a chat model behind any OpenAI-compatible endpoint: post it, read the answer, wait, try again.

``models.chat_scores`` asks of headlines, ``models.chat_answers`` keeps the answers and pays. The key is read from the
environment and goes into one header of requests to one host; whatever a server sends back is cleaned of it before it
is shown or kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPMessage
from ipaddress import ip_address
import json
import math
import os
from random import Random
import re
import ssl
from time import perf_counter
from typing import Any, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from trader.errors import ConfigError, ModelError

MOST_BYTES = 1 << 18  # of one answer; a verdict and a sentence take about 1,000
LONGEST_WAIT = 600.0  # seconds that a server may ask us to wait
_FIRST_WAIT, _LONGEST_BACK_OFF = 1.0, 60.0  # seconds
_FRAME_TOKENS = 64  # what a chat format may add around one message
_CHUNK = 1 << 16
_MOST_TOKENS = 10**9  # that a server may claim to have counted in one answer
_SECRET = 8  # characters; a shorter "key" (a local server's "none") is no secret, and a word of its own in answers


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """Which chat model to ask, and for how much money.

    endpoint: base URL, such as ``https://host/v1``; plain http reaches this machine alone unless allow_plain_http.
    input_price, output_price: of a million tokens, in the currency of max_cost.
    max_cost: the most that all answers of this model in this cache may cost, past runs included.
    key_variable: the environment variable that holds the key; "" sends none.   prompt: a file of models/prompts.
    parallel: requests under way at a time.   replay: answer from the cache alone and never touch the network.
    Raises ConfigError where a value cannot be used.
    """

    endpoint: str
    model: str
    input_price: float
    output_price: float
    max_cost: float = 0.0
    key_variable: str = "OPENAI_API_KEY"
    prompt: str = "expert_v1"
    max_output_tokens: int = 100
    timeout_seconds: float = 60.0
    retries: int = 5
    parallel: int = 4
    replay: bool = False
    allow_plain_http: bool = False

    def __post_init__(self) -> None:
        _check_endpoint(self.endpoint, self.allow_plain_http)
        if not self.model.strip():
            raise ConfigError("no model is named", where="chat model")
        if not re.fullmatch(r"([A-Z_][A-Z0-9_]*)?", self.key_variable):
            # Not shown: somebody may have written the key itself here.
            do = "put the key into that variable, never into the config"
            raise ConfigError("not the name of an environment variable", where="chat key_variable", do=do)
        at_least = {"input_price": 0, "output_price": 0, "max_cost": 0, "timeout_seconds": 0.01}
        for name, least in {**at_least, "max_output_tokens": 1, "retries": 0, "parallel": 1}.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ConfigError("out of range", where=f"chat {name}", got=value, expected=f"at least {least}")
        if self.parallel > 32:
            raise ConfigError("too many", where="chat parallel", got=self.parallel, expected="at most 32")

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """Return the price of so many tokens."""
        return (input_tokens * self.input_price + output_tokens * self.output_price) / 1e6

    def most(self, prompt: str) -> float:
        """Return what a prompt and its answer can cost at most: no token is shorter than a byte."""
        return self.cost(len(prompt.encode()) + _FRAME_TOKENS, self.max_output_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A model's answer as it came.

    served: the model's name as the server gives it.   cost: by the tokens that it counted, else the most possible.
    """

    text: str
    served: str
    input_tokens: int | None
    output_tokens: int | None
    cost: float


class Purse(Protocol):
    """Who pays: every request is reserved for before it is sent."""

    def reserve(self, most: float) -> None:
        """Set money aside; raise where there is not enough."""
        ...

    def charge(self, most: float, paid: float, why: str) -> None:
        """Give back what was set aside, less what a request without an answer may have cost."""
        ...


class ChatClient:
    """Asks the model of some settings; safe to share between threads."""

    def __init__(self, settings: ChatSettings, sleep: Callable[[float], object]) -> None:
        """Take the key from the environment; raise ModelError where it is not there.

        sleep: called with the seconds to wait before a request is tried again.
        """
        self._settings, self._sleep = settings, sleep
        self._key = _key(settings.key_variable)
        self._url = settings.endpoint.rstrip("/") + "/chat/completions"
        # urllib honours the proxies of the environment; a plain request with the key must not go through one.
        plain = [ProxyHandler({})] if urlsplit(settings.endpoint).scheme == "http" else []
        self._opener = build_opener(_StayHere, *plain)

    def ask(self, prompt: str, seed: str, purse: Purse) -> Reply:
        """Ask at temperature 0; what is reserved for the returned reply stays so until the caller books its cost.

        Timeouts, broken connections and answers, and the statuses 408, 429 and 5xx are tried again after a wait that
        doubles, shortened by up to a half at random (from ``seed``), and no less than the server's Retry-After asks.
        Raises ModelError where the server refuses or all attempts failed, and what ``purse.reserve`` raises.
        """
        body, most, jitter = self._body(prompt), self._settings.most(prompt), Random(seed)
        for attempt in range(self._settings.retries + 1):
            purse.reserve(most)
            try:
                return self._post(body, most)
            except _Failure as failure:
                purse.charge(most, most if failure.billed else 0.0, failure.what)
                if not failure.again or attempt == self._settings.retries:
                    raise self._given_up(failure, attempt + 1) from failure
                wait = max(_back_off(attempt, jitter), failure.wait)
            self._sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _body(self, prompt: str) -> bytes:
        question = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self._settings.max_output_tokens,
        }
        return json.dumps(question).encode()

    def _post(self, body: bytes, most: float) -> Reply:
        status, headers, content = self._exchange(body)
        if not 200 <= status < 300:
            raise self._refused(status, headers, content)
        return self._reply(content, most)

    def _exchange(self, body: bytes) -> tuple[int, HTTPMessage, bytes]:
        """Send and read; the one place where the errors of urllib, http.client and the socket are translated."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "news-trader"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = Request(self._url, data=body, headers=headers, method="POST")
        started = perf_counter()
        try:
            try:
                response = self._opener.open(request, timeout=self._settings.timeout_seconds)
            except HTTPError as refusal:
                response = refusal  # reads like any response
            with response:
                return response.status, response.headers, self._read(response, started)
        except URLError as error:  # before the request was out: nothing to pay
            doubtful = isinstance(error.reason, ssl.SSLCertVerificationError)
            raise _Failure(self._clean(f"no connection ({error.reason})"), again=not doubtful, billed=False) from error
        except TimeoutError as error:
            seconds = f"{self._settings.timeout_seconds:g}"
            raise _Failure(f"no answer within {seconds} s", again=True, billed=True) from error
        except (OSError, HTTPException) as error:
            what = self._clean(f"a broken connection ({type(error).__name__})")
            raise _Failure(what, again=True, billed=True) from error

    def _read(self, response: Any, started: float) -> bytes:
        content = bytearray()
        while part := response.read1(_CHUNK):
            content += part
            if len(content) > MOST_BYTES:
                raise _Failure(f"an answer of more than {MOST_BYTES} bytes", again=False, billed=True)
            if perf_counter() - started > self._settings.timeout_seconds:  # the socket's own limit is for one read
                raise TimeoutError
        return bytes(content)

    def _refused(self, status: int, headers: HTTPMessage, content: bytes) -> _Failure:
        said, code = _complaint(content)
        what = self._clean(f"HTTP {status}" + (f": {said}" if said else ""))
        if 300 <= status < 400:
            return _Failure(f"HTTP {status}, a redirect", again=False, do="name the endpoint that it leads to")
        again = (status in (408, 429) or status >= 500) and code != "insufficient_quota"
        wait = _asked_wait(headers) if again else 0.0
        if wait > LONGEST_WAIT:
            return _Failure(what, again=False, do=f"run again in {math.ceil(wait)} s, as the server asks")
        return _Failure(what, again=again, wait=wait, do=_ADVICE.get(status, "").format(self._settings.key_variable))

    def _reply(self, content: bytes, most: float) -> Reply:
        try:
            found = json.loads(content)
            message = found["choices"][0]["message"]
            text = message.get("content") or message.get("refusal") or ""
            if not isinstance(text, str):
                raise TypeError("the content is no text")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise _Failure("an answer that is no chat completion", again=True, billed=True) from error
        usage = found.get("usage")
        counts = [_count(usage, name) for name in ("prompt_tokens", "completion_tokens")]
        known = counts[0] is not None and counts[1] is not None
        return Reply(
            text=self._without_key(text),
            served=self._clean(str(found.get("model", ""))),
            input_tokens=counts[0],
            output_tokens=counts[1],
            cost=self._settings.cost(counts[0] or 0, counts[1] or 0) if known else most,
        )

    def _given_up(self, failure: _Failure, attempts: int) -> ModelError:
        tries = f" in {attempts} attempts" if attempts > 1 else ""
        do = failure.do or "run the same command again: the answers so far are kept"
        return ModelError(
            f"the chat model {self._settings.model} gave no answer{tries}",
            where=self._settings.endpoint,
            got=failure.what,
            do=do,
        )

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if len(self._key) >= _SECRET else text

    def _clean(self, text: str) -> str:
        """Make a server's words fit for a terminal: without the key, control characters, or great length."""
        return "".join(letter if letter.isprintable() else " " for letter in self._without_key(text))[:200]


_ADVICE: Mapping[int, str] = {
    401: "check the key in the environment variable {0}",
    403: "check what the key in the environment variable {0} may do",
    404: "check the endpoint and the model's name",
    429: "check the account's quota, or lower parallel; the answers so far are kept",
}


class _Failure(Exception):
    """An attempt without an answer.

    again: whether another attempt may help.   billed: whether it may have cost money.
    wait: seconds that the server asks for.   do: advice for the user.
    """

    def __init__(self, what: str, *, again: bool, billed: bool = False, wait: float = 0.0, do: str = "") -> None:
        super().__init__(what)
        self.what, self.again, self.billed, self.wait, self.do = what, again, billed, wait, do


class _StayHere(HTTPRedirectHandler):
    """Follow no redirect: it would carry the key to wherever the server points."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Decline, so that the redirect comes back as the answer that it is."""


def _check_endpoint(endpoint: str, allow_plain_http: bool) -> None:
    where = "chat endpoint"
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError("not a URL", where=where, expected="https://host/v1") from error
    if parts.scheme not in ("http", "https") or not host or not re.fullmatch(r"[!-~]+", endpoint):
        raise ConfigError("not a URL", where=where, expected="https://host/v1")
    if parts.username is not None or parts.query or parts.fragment:  # not shown: it may hold a secret
        raise ConfigError("more than a base URL", where=where, expected="https://host/v1")
    if parts.scheme == "http" and not (_is_loopback(parts) or allow_plain_http):
        do = "use https, or set allow_plain_http = true for a network that you trust"
        raise ConfigError("plain http would show the key to the network", where=where, got=host, do=do)


def _is_loopback(parts: SplitResult) -> bool:
    try:
        return parts.hostname == "localhost" or ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def _key(variable: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ModelError("no key for the chat model", where=f"environment variable {variable}", do=f"set {variable}")
    if not re.fullmatch(r"[!-~]+", key):  # http.client would show it in its own error
        raise ModelError("the key holds a space or a letter that no key has", where=f"environment variable {variable}")
    return key


def _back_off(attempt: int, jitter: Random) -> float:
    return min(_FIRST_WAIT * 2.0**attempt, _LONGEST_BACK_OFF) * (0.5 + 0.5 * jitter.random())


def _asked_wait(headers: HTTPMessage) -> float:
    """Return the seconds of Retry-After, which is a number or a date by the server's own clock; else 0."""
    asked = headers.get("Retry-After", "")
    try:
        seconds = float(asked)
    except ValueError:
        try:
            then, now = parsedate_to_datetime(asked), parsedate_to_datetime(headers.get("Date", ""))
            seconds = (then - now).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0


def _complaint(content: bytes) -> tuple[str, str]:
    """Return the message and the code of an error's body, "" where it has none."""
    try:
        error = json.loads(content).get("error")
        found = error if isinstance(error, dict) else {"message": error}
        return str(found.get("message") or ""), str(found.get("code") or "")
    except (ValueError, AttributeError, RecursionError):
        return "", ""


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None
