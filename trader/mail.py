"""A channel that sends each notification as an e-mail by SMTP."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import EmailMessage
import hashlib
import json
import re
from smtplib import (
    SMTP,
    SMTP_SSL,
    SMTPAuthenticationError,
    SMTPException,
    SMTPNotSupportedError,
    SMTPRecipientsRefused,
    SMTPResponseException,
)
import socket
import ssl
from typing import Any, Literal

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

Refusals = dict[str, tuple[int, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailSettings:
    """A section ``[notify.NAME]`` with ``kind = "email"``.

    sender, to: bare addresses, ASCII.   security: starttls (port 587 as a rule), tls (465), or none.
    user, password_variable: how to log in, the second an environment variable; "" logs in nowhere. A password goes
    over TLS only, or to this machine. timeout_seconds: of a whole attempt.   give_up_days: age of a notification at
    which it is tried no longer. Raises ConfigError where a value cannot be used.
    """

    kind: Literal["email"]
    host: str
    sender: str
    to: tuple[str, ...]
    port: int = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str = ""
    password_variable: str = ""
    events: tuple[str, ...] = KINDS
    timeout_seconds: float = 30.0
    give_up_days: float = 7.0

    def __post_init__(self) -> None:
        check_variable(self.password_variable, "notify password_variable")
        if not re.fullmatch(r"[!-~]+", self.host):
            raise ConfigError("not a host", where="notify host", got=self.host)
        if not 1 <= self.port <= 65535:
            raise ConfigError("out of range", where="notify port", got=self.port, expected="1..65535")
        if not self.to:
            raise ConfigError("nobody to write to", where="notify to", expected='["you@example.org"]')
        for name, address in (("sender", self.sender), *(("to", one) for one in self.to)):
            if not re.fullmatch(r"[!#-'*+\-./-9=?A-Z^-~]+@[A-Za-z0-9.\-\[\]:]+", address):
                raise ConfigError("not a bare address", where=f"notify {name}", got=address, expected="name@host")
        if bool(self.user) != bool(self.password_variable):
            raise ConfigError("user and password_variable go together", where="notify email")
        if self.user and self.security == "none" and not is_loopback(self.host):
            do = 'set security = "starttls" or "tls"'
            raise ConfigError("the password would cross the network in the clear", where="notify security", do=do)
        check_shared(self.events, {"timeout_seconds": self.timeout_seconds, "give_up_days": self.give_up_days})


class Email:
    """Mails each notification; the Message-ID comes from its event id, so that mailboxes can drop repeats.

    One mail goes to all addresses. Where a server takes it for some and refuses others for good, it counts as
    delivered, with a remark; where it puts some off, it is sent to all again.
    """

    def __init__(self, name: str, settings: EmailSettings) -> None:
        """Take the password from the environment; raise ConfigError where it is not set."""
        self.name, self.events, self.give_up_days = name, settings.events, settings.give_up_days
        self._settings = settings
        self._password = from_environment(settings.password_variable, f"[notify.{name}]")
        if not self._password.isascii():  # smtplib would show it in its own error
            where = f"[notify.{name}]: environment variable {settings.password_variable}"
            raise ConfigError("a password of other than ASCII letters", where=where)
        self.place = f"email {settings.host}:{settings.port}"
        # A server may repeat what it was sent to log in: the password, alone or as in AUTH PLAIN.
        sent = [self._password.encode(), f"\0{settings.user}\0{self._password}".encode()] if self._password else []
        self._secrets = Secrets(self._password, *(base64.b64encode(one).decode() for one in sent))

    def __repr__(self) -> str:
        return f"Email({self.name!r}, {self.place!r})"

    def send(self, notification: Notification, lines: Lines) -> str:
        """Mail one notification; raise Failure unless the server took it for somebody, in time."""
        mail = message(notification, self._settings)
        with lines.open(self._settings.timeout_seconds) as line, self._translated(line):
            smtp = self._connected(line)
            try:
                refused = smtp.send_message(mail, self._settings.sender, list(self._settings.to))
                with suppress(OSError, SMTPException):  # it has taken the mail; how it says goodbye is no matter
                    smtp.quit()
            finally:
                smtp.close()
        if any(code < 500 for code, _ in refused.values()):
            raise Failure(f"put off for {self._each(refused)}; taken for the others, who will get it again")
        return f"refused for {self._each(refused)}" if refused else ""

    def _connected(self, line: Line) -> SMTP:
        settings = self._settings
        host = socket.gethostname()
        us = host if "." in host else "[127.0.0.1]"  # smtplib itself would ask the name servers, without a time limit
        if settings.security == "tls":
            return self._logged_in(_SecureSMTP(line, settings, us, context=ssl.create_default_context()))
        smtp = _LineSMTP(line, settings, us)
        if settings.security == "starttls":
            try:
                smtp.starttls(context=ssl.create_default_context())
            except BaseException:
                smtp.close()
                raise
        return self._logged_in(smtp)

    def _logged_in(self, smtp: SMTP) -> SMTP:
        try:
            if self._settings.user:
                smtp.login(self._settings.user, self._password)
        except BaseException:
            smtp.close()
            raise
        return smtp

    @contextmanager
    def _translated(self, line: Line) -> Iterator[None]:
        """Turn the errors of smtplib and the socket into Failures; the one place where they are met."""
        try:
            yield
        except SMTPAuthenticationError as error:
            lasting = error.smtp_code >= 500
            raise Failure(f"the server refused the login ({error.smtp_code})", lasting=lasting) from error
        except SMTPRecipientsRefused as error:
            lasting = all(code >= 500 for code, _ in error.recipients.values())
            raise Failure(f"refused for {self._each(error.recipients)}", lasting=lasting) from error
        except SMTPResponseException as error:
            if line.is_over:
                raise self._too_slow() from error
            what = self._secrets.clean(f"refused: {error.smtp_code} {_text(error.smtp_error)}")
            raise Failure(what, lasting=500 <= error.smtp_code < 600) from error
        except SMTPNotSupportedError as error:
            what = self._secrets.clean(f"the server lacks what is needed: {error}")
            raise Failure(what, lasting=True) from error
        except ssl.SSLCertVerificationError as error:
            what = self._secrets.clean(f"a certificate that is not trusted ({error.verify_message})")
            raise Failure(what, lasting=True) from error
        except (OSError, SMTPException, ValueError) as error:  # a reply without a code is a ValueError's
            if line.is_over:
                raise self._too_slow() from error
            raise Failure(self._secrets.clean(f"a broken connection ({type(error).__name__}: {error})")) from error

    def _too_slow(self) -> Failure:
        return Failure(f"no answer within {self._settings.timeout_seconds:g} s")

    def _each(self, refused: Refusals) -> str:
        said = (f"{address} ({code} {_text(words)})" for address, (code, words) in refused.items())
        return self._secrets.clean(", ".join(said))


def message(notification: Notification, settings: EmailSettings) -> EmailMessage:
    """Return a notification as an e-mail in plain text: its sentence, then its facts, one a line."""
    mail = EmailMessage()
    mail["Subject"] = _header(f"[{notification.account}] {notification.kind}: {notification.text}", 150)
    mail["From"], mail["To"] = settings.sender, ", ".join(settings.to)
    mail["Date"] = notification.made_at
    domain = settings.sender.rpartition("@")[2]
    mail["Message-ID"] = f"<{hashlib.sha256(notification.event_id.encode()).hexdigest()[:32]}@{domain}>"
    mail["Auto-Submitted"] = "auto-generated"  # so that no absence note answers it
    facts = {"account": notification.account, "kind": notification.kind, "session": notification.session}
    facts |= {"made at": notification.made_at.isoformat(), "id": notification.event_id}
    lines = [f"{name}: {value}" for name, value in facts.items() if value is not None]
    for name, value in notification.body.items():
        lines.append(f"{name}: {value if isinstance(value, str) else json.dumps(value)}")
    text = "\n".join([notification.text, "", *lines, ""])
    mail.set_content(text.encode("utf-8", "replace").decode())  # half a surrogate pair is no text for a mail
    return mail


def _header(text: str, most: int) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:most]


def _text(words: bytes | str) -> str:
    text = words.decode("utf-8", "replace") if isinstance(words, bytes) else words
    return " ".join(text.split())


class _LineSMTP(SMTP):
    """Speaks over a line, so that the whole attempt has one time limit and can be cut."""

    def __init__(self, line: Line, settings: EmailSettings, us: str, **options: Any) -> None:
        self._line = line
        super().__init__(settings.host, settings.port, us, settings.timeout_seconds, **options)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return self._line.dial((host, port))


class _SecureSMTP(SMTP_SSL, _LineSMTP):
    """The same over TLS from the first byte."""

    def __init__(self, line: Line, settings: EmailSettings, us: str, *, context: ssl.SSLContext) -> None:
        self._line = line
        SMTP_SSL.__init__(self, settings.host, settings.port, us, timeout=settings.timeout_seconds, context=context)
