"""A channel that posts each notification as JSON to a URL, signed where there is a secret."""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import partial
import hashlib
import hmac
from http.client import HTTPConnection, HTTPException, HTTPSConnection
import json
import math
import re
import ssl
from typing import Any, Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, ProxyHandler, Request, build_opener

from trader.channels import (
    Failure,
    Line,
    Lines,
    Secrets,
    check_shared,
    check_variable,
    from_environment,
    is_loopback,
)
from trader.errors import ConfigError
from trader.outbox import KINDS, Notification

SIGNATURE = "X-Trader-Signature"
_MOST_WORDS = 2048  # bytes of a refusal that are read


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSettings:
    """A section ``[notify.NAME]`` with ``kind = "webhook"``.

    url, or url_variable: where to post, or the environment variable that says it, for a URL that is itself a secret.
    secret_variable: the environment variable with the key that signs; "" signs nothing.
    timeout_seconds: of a whole attempt.   give_up_days: age of a notification at which it is tried no longer.
    Plain http reaches this machine alone unless allow_plain_http. Raises ConfigError where a value cannot be used.
    """

    kind: Literal["webhook"]
    url: str = ""
    url_variable: str = ""
    secret_variable: str = ""
    events: tuple[str, ...] = KINDS
    timeout_seconds: float = 10.0
    give_up_days: float = 7.0
    allow_plain_http: bool = False

    def __post_init__(self) -> None:
        for name in ("url_variable", "secret_variable"):
            check_variable(getattr(self, name), f"notify {name}")
        if bool(self.url) == bool(self.url_variable):
            raise ConfigError("one of url and url_variable is needed, and not both", where="notify webhook")
        if self.url:
            _check_url(self.url, "notify url", self.allow_plain_http)
            if urlsplit(self.url).query:
                do = "put the URL into a variable and name that by url_variable"
                raise ConfigError("a query, which may hold a secret", where="notify url", do=do)
        check_shared(self.events, {"timeout_seconds": self.timeout_seconds, "give_up_days": self.give_up_days})


class Webhook:
    """Posts ``{id, account, kind, session, text, body, made_at}``; the same bytes each time it is tried.

    ``id`` and the header Idempotency-Key are the event id. With a secret, the header X-Trader-Signature is
    ``sha256=`` and the HMAC-SHA256 of the body in hex. A 2xx means delivered; redirects are not followed.
    """

    def __init__(self, name: str, settings: WebhookSettings) -> None:
        """Take URL and secret from the environment where variables are named; ConfigError where they are not set."""
        where = f"[notify.{name}]"
        self.name, self.events, self.give_up_days = name, settings.events, settings.give_up_days
        self._seconds = settings.timeout_seconds
        self._secret = from_environment(settings.secret_variable, where)
        self._url = settings.url or from_environment(settings.url_variable, where)
        if settings.url_variable:
            _check_url(self._url, f"{where}: environment variable {settings.url_variable}", settings.allow_plain_http)
        parts = urlsplit(self._url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        self.place = f"webhook {parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
        hidden = [self._url, parts.path, parts.query, *re.split(r"[/&=]", f"{parts.path}&{parts.query}")]
        self._secrets = Secrets(self._secret, *(hidden if settings.url_variable else ()))

    def __repr__(self) -> str:
        return f"Webhook({self.name!r}, {self.place!r})"

    def send(self, notification: Notification, lines: Lines) -> str:
        """Post one notification; raise Failure unless a 2xx came back in time."""
        body = payload(notification)
        headers = {"Content-Type": "application/json", "User-Agent": "news-trader"}
        headers["Idempotency-Key"] = notification.event_id
        if self._secret:
            headers[SIGNATURE] = "sha256=" + hmac.new(self._secret.encode(), body, hashlib.sha256).hexdigest()
        with lines.open(self._seconds) as line:
            self._post(Request(self._url, data=body, headers=headers, method="POST"), line)
        return ""

    def _post(self, request: Request, line: Line) -> None:
        """Send and read the status; the one place where urllib's, http.client's and the socket's errors are met."""
        try:
            try:
                with _opener(line, self._url).open(request, timeout=self._seconds):
                    # urllib returns a 2xx alone, and takes a cut within its headers for their end.
                    if line.is_over:
                        raise TimeoutError
                    return
            except HTTPError as refusal:
                with refusal:
                    raise self._refused(refusal.code, refusal.headers, _words(refusal)) from refusal
        except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError; a bad status line a ValueError
            if line.is_over:
                raise Failure(f"no answer within {self._seconds:g} s") from error
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise Failure(
                    self._secrets.clean(f"a certificate that is not trusted ({reason})"), lasting=True
                ) from error
            said = f": {reason}" if isinstance(error, URLError) else ""
            what = f"a broken connection ({type(reason).__name__}{said})"
            raise Failure(self._secrets.clean(what)) from error

    def _refused(self, status: int, headers: Message, content: bytes) -> Failure:
        if 300 <= status < 400:
            return Failure(f"HTTP {status}, a redirect; name the URL that it leads to", lasting=True)
        said = " ".join(content.decode("utf-8", "replace").split())
        what = self._secrets.clean(f"HTTP {status}" + (f": {said}" if said else ""))
        again = status in (408, 425, 429) or status >= 500
        return Failure(what, lasting=not again, wait=_asked_wait(headers) if again else 0.0)


def _words(refusal: HTTPError) -> bytes:
    try:
        return refusal.read(_MOST_WORDS)
    except (OSError, HTTPException, ValueError):
        return b""  # the status is known, and what it asks for


def payload(notification: Notification) -> bytes:
    """Return the JSON that a webhook posts, the same bytes for the same notification."""
    facts = {
        "id": notification.event_id,
        "account": notification.account,
        "kind": notification.kind,
        "session": notification.session,
        "text": notification.text,
        "body": notification.body,
        "made_at": notification.made_at.isoformat(timespec="microseconds"),
    }
    return json.dumps(facts).encode()


class _StayHere(HTTPRedirectHandler):
    """Follow no redirect: it would carry the notification to wherever the server points."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Decline, so that the redirect comes back as the answer that it is."""


class _OverLine(HTTPHandler):
    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def http_open(self, request: Request) -> Any:
        return self.do_open(partial(_dialled, HTTPConnection, self._line), request)


class _OverSecureLine(HTTPSHandler):
    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def https_open(self, request: Request) -> Any:
        connect = partial(_dialled, HTTPSConnection, self._line, context=ssl.create_default_context())
        return self.do_open(connect, request)


def _dialled(kind: type[HTTPConnection], line: Line, host: str, **options: Any) -> HTTPConnection:
    connection = kind(host, **options)
    connection._create_connection = line.dial  # type: ignore[attr-defined]
    return connection


def _opener(line: Line, url: str) -> Any:
    # urllib honours the proxies of the environment; a plain request must not go through one.
    plain = [ProxyHandler({})] if urlsplit(url).scheme == "http" else []
    return build_opener(_StayHere, _OverLine(line), _OverSecureLine(line), *plain)


def _check_url(url: str, where: str, allow_plain_http: bool) -> None:
    """Refuse what cannot be posted to, without showing it."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError("not a URL", where=where, expected="https://host/path") from error
    if parts.scheme not in ("http", "https") or not host or not re.fullmatch(r"[!-~]+", url):
        raise ConfigError("not a URL", where=where, expected="https://host/path")
    if parts.username is not None or parts.fragment:
        raise ConfigError("a URL with a name, a password or a fragment", where=where, expected="https://host/path")
    if parts.scheme == "http" and not (is_loopback(host) or allow_plain_http):
        do = "use https, or set allow_plain_http = true for a network that you trust"
        raise ConfigError("plain http would show the account to the network", where=where, do=do)


def _asked_wait(headers: Message) -> float:
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
