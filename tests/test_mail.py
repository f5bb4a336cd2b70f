"""Notifications by a real mail server on this machine, plain and over TLS, that refuses, hangs and breaks off."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from email import message_from_bytes, policy
from email.message import EmailMessage
from threading import Event, Thread
from typing import Any, cast

import pytest

from tests.receivers import MailServer, end, make_certificate, serve
from trader.channels import Channel, Failure, Lines
from trader.errors import ConfigError
from trader.mail import message
from trader.notify import open_channels
from trader.outbox import Notification

PASSWORD = "never-to-be-seen-0123456789"
NOTE = Notification(
    id=7,
    event_id="demo/halted/2018-01-03",
    account="demo",
    kind="halted",
    session="2018-01-03",
    text="Halted: the day's loss of 5.2 % is over its limit.",
    body={"loss": -0.052, "limit": 0.05, "who": "Jürgen\n.\nQUIT"},
    made_at=datetime(2018, 1, 3, 21, 0, tzinfo=timezone.utc),
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., MailServer]]:
    monkeypatch.setenv("MAIL_PASSWORD", PASSWORD)
    running: list[MailServer] = []

    def start(*words: Any, **options: Any) -> MailServer:
        running.append(MailServer(*words, **options))
        serve(running[-1])
        return running[-1]

    yield start
    for server in running:
        end(server)


@pytest.fixture
def server(servers: Callable[..., MailServer]) -> MailServer:
    return servers()


def section(port: int, **changes: Any) -> dict[str, Any]:
    plain = {"kind": "email", "host": "127.0.0.1", "port": port, "security": "none", "timeout_seconds": 5.0}
    return {**plain, "sender": "trader@example.org", "to": ["one@example.org"], **changes}


def mailer(server: MailServer, **changes: Any) -> Channel:
    (channel,) = open_channels({"post": section(server.port, **changes)})
    return channel


LOGIN = {"user": "trader", "password_variable": "MAIL_PASSWORD"}


def read(mail: bytes) -> EmailMessage:
    return cast(EmailMessage, message_from_bytes(mail, policy=policy.default))


def test_a_mail_says_what_happened_and_carries_an_id_that_a_repeat_has_too(server: MailServer) -> None:
    channel = mailer(server, to=["one@example.org", "two@example.org"])
    assert channel.send(NOTE, Lines()) == channel.send(NOTE, Lines()) == ""
    first, second = (read(mail) for mail in server.mails)
    assert first["Subject"] == "[demo] halted: Halted: the day's loss of 5.2 % is over its limit."
    assert (first["From"], first["To"]) == ("trader@example.org", "one@example.org, two@example.org")
    assert first["Date"].datetime == NOTE.made_at and first["Auto-Submitted"] == "auto-generated"
    assert first["Message-ID"] == second["Message-ID"] and first["Message-ID"].endswith("@example.org>")
    lines = first.get_content().splitlines()
    assert lines[0] == NOTE.text and "id: demo/halted/2018-01-03" in lines and "loss: -0.052" in lines
    assert "Jürgen" in first.get_content()
    assert [line for line in server.heard if line.startswith("RCPT")] == [
        "RCPT TO:<one@example.org>",
        "RCPT TO:<two@example.org>",
    ] * 2
    other = Notification(**{name: getattr(NOTE, name) for name in NOTE.__slots__} | {"event_id": "other"})
    channel.send(other, Lines())
    assert read(server.mails[2])["Message-ID"] != first["Message-ID"]


def test_no_text_becomes_a_header_or_a_command(server: MailServer) -> None:
    bad = "x\r\nBcc: spy@example.org\r\n\r\n.\r\nMAIL FROM:<a@b>\ud800"
    note = Notification(**{name: getattr(NOTE, name) for name in NOTE.__slots__} | {"text": bad, "account": bad})
    mailer(server).send(note, Lines())
    (mail,) = server.mails
    assert read(mail)["Bcc"] is None and "spy" in read(mail)["Subject"] and len(read(mail)["Subject"]) <= 150
    assert sum(line.startswith("MAIL") for line in server.heard) == 1


def test_starttls_comes_before_the_login(
    servers: Callable[..., MailServer], certificate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    server = servers(certificate)
    server.features = ["STARTTLS", "AUTH PLAIN"]
    assert mailer(server, security="starttls", **LOGIN).send(NOTE, Lines()) == ""
    verbs = [line.split()[0] for line in server.heard]
    assert verbs == ["EHLO", "STARTTLS", "EHLO", "AUTH", "MAIL", "RCPT", "DATA", "QUIT"]
    assert server.logins == [f"\0trader\0{PASSWORD}"] and len(server.mails) == 1


def test_tls_from_the_first_byte(
    servers: Callable[..., MailServer], certificate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    server = servers(certificate, implicit_tls=True)
    server.features = ["AUTH PLAIN"]
    assert mailer(server, security="tls", **LOGIN).send(NOTE, Lines()) == ""
    assert len(server.logins) == len(server.mails) == 1


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_certificate_that_is_not_trusted_gets_no_password(
    servers: Callable[..., MailServer], certificate: str, security: str
) -> None:
    server = servers(certificate, implicit_tls=security == "tls")
    server.features = ["STARTTLS", "AUTH PLAIN"]
    with pytest.raises(Failure, match="a certificate that is not trusted") as caught:
        mailer(server, security=security, **LOGIN).send(NOTE, Lines())
    assert caught.value.lasting and server.logins == [] == server.mails


def test_a_server_without_starttls_gets_no_password(server: MailServer) -> None:
    server.features = ["AUTH PLAIN"]
    with pytest.raises(Failure, match="lacks what is needed: STARTTLS") as caught:
        mailer(server, security="starttls", **LOGIN).send(NOTE, Lines())
    assert caught.value.lasting and server.logins == [] == server.mails


@pytest.mark.parametrize(
    ("answers", "error", "lasting"),
    [
        ({"CONNECT": "421 busy"}, "refused: 421 busy", False),
        ({"CONNECT": "554 go away"}, "refused: 554 go away", True),
        ({"CONNECT": "gibberish"}, "refused: -1", False),
        ({"MAIL": "451 later"}, "refused: 451 later", False),
        ({"MAIL": "550 not you"}, "refused: 550 not you", True),
        ({"RCPT": "450 grey list"}, "refused for one@example.org (450 grey list)", False),
        ({"RCPT": "550 no such"}, "refused for one@example.org (550 no such)", True),
        ({"DATA": "503 no"}, "refused: 503 no", True),
        ({"END": "452 disk full"}, "refused: 452 disk full", False),
        ({"END": "554 spam"}, "refused: 554 spam", True),
    ],
    ids=str,
)
def test_a_refusal_is_told_and_whether_it_will_last(
    server: MailServer, answers: dict[str, str], error: str, lasting: bool
) -> None:
    server.answers = answers
    with pytest.raises(Failure) as caught:
        mailer(server).send(NOTE, Lines())
    assert caught.value.what.startswith(error) and caught.value.lasting is lasting


@pytest.mark.parametrize(("code", "lasting"), [(535, True), (454, False)])
def test_a_login_that_is_refused_shows_nothing_that_was_sent(server: MailServer, code: int, lasting: bool) -> None:
    server.features = ["AUTH PLAIN"]
    server.answers = {"AUTH": f"{code} no {PASSWORD}"}
    with pytest.raises(Failure) as caught:
        mailer(server, **LOGIN).send(NOTE, Lines())
    assert (caught.value.what, caught.value.lasting) == (f"the server refused the login ({code})", lasting)


def test_the_password_is_cleaned_from_whatever_the_server_says(server: MailServer) -> None:
    server.features = ["AUTH PLAIN"]
    coded = base64.b64encode(f"\0trader\0{PASSWORD}".encode()).decode()
    both = f"{PASSWORD} {coded} {base64.b64encode(PASSWORD.encode()).decode()}"
    channel = mailer(server, **LOGIN)
    for verb in ("MAIL", "RCPT", "END"):
        server.answers = {verb: f"550 {both}"}
        with pytest.raises(Failure, match=r"550 \*\*\* \*\*\* \*\*\*"):
            channel.send(NOTE, Lines())
    assert PASSWORD not in repr(channel) + channel.place + str(message(NOTE, cast(Any, channel)._settings))
    assert server.logins == [f"\0trader\0{PASSWORD}"] * 3


def test_who_is_refused_for_good_is_remarked_and_the_others_are_not_written_to_again(server: MailServer) -> None:
    server.answers = {"RCPT TO:<two@example.org>": "550 gone"}
    channel = mailer(server, to=["one@example.org", "two@example.org"])
    assert channel.send(NOTE, Lines()) == "refused for two@example.org (550 gone)"
    server.answers = {"RCPT TO:<two@example.org>": "450 later"}
    with pytest.raises(Failure, match=r"put off for two@example.org \(450 later\); taken for the others") as caught:
        channel.send(NOTE, Lines())
    assert not caught.value.lasting


def test_a_mail_that_breaks_off_in_the_middle_is_sent_again(server: MailServer) -> None:
    server.drops = 1
    channel = mailer(server)
    with pytest.raises(Failure, match="a broken connection") as caught:
        channel.send(NOTE, Lines())
    assert not caught.value.lasting and server.mails == []
    assert channel.send(NOTE, Lines()) == ""
    assert len(server.mails) == 1


def test_a_server_that_is_down_is_tried_again() -> None:
    gone = MailServer()
    gone.server_close()
    with pytest.raises(Failure, match=r"a broken connection \(ConnectionRefusedError") as caught:
        mailer(gone).send(NOTE, Lines())
    assert not caught.value.lasting


@pytest.mark.parametrize("verb", ["EHLO", "MAIL", "DATA"])
def test_a_server_that_hangs_is_left_after_a_time(server: MailServer, verb: str) -> None:
    server.answers = {verb: "hang"}
    with pytest.raises(Failure, match=r"no answer within 0\.3 s"):
        mailer(server, timeout_seconds=0.3).send(NOTE, Lines())
    assert not server.released.is_set()


def test_a_goodbye_that_hangs_does_not_make_a_taken_mail_a_failure(server: MailServer) -> None:
    server.answers = {"QUIT": "hang"}
    assert mailer(server, timeout_seconds=0.3).send(NOTE, Lines()) == ""
    assert len(server.mails) == 1


@pytest.mark.parametrize("security", ["none", "starttls"])
def test_a_conversation_is_cut_on_closing(
    servers: Callable[..., MailServer], certificate: str, monkeypatch: pytest.MonkeyPatch, security: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    server = servers(certificate)
    server.features, server.answers = ["STARTTLS"], {"MAIL": "hang"}
    lines, failed = Lines(), Event()
    channel = mailer(server, timeout_seconds=600.0, security=security)

    def send() -> None:
        with pytest.raises(Failure):
            channel.send(NOTE, lines)
        failed.set()

    Thread(target=send, daemon=True).start()
    assert server.reached.wait(20)
    lines.cut()
    assert failed.wait(20) and not server.released.is_set()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"to": []}, "notify to: nobody to write to"),
        ({"to": ["one@example.org, two@example.org"]}, "notify to: not a bare address"),
        ({"to": ["one@example.org\nBcc: a@b"]}, "notify to: not a bare address"),
        ({"to": "one@example.org"}, "a list was expected"),
        ({"sender": "Trader <t@example.org>"}, "notify sender: not a bare address"),
        ({"sender": "jürgen@example.org"}, "notify sender: not a bare address"),
        ({"port": 0}, "notify port: out of range"),
        ({"host": "a b"}, "notify host: not a host"),
        ({"security": "ssl"}, "security: not a possible value"),
        ({"user": "me"}, "user and password_variable go together"),
        ({"password_variable": "never"}, "not the name of an environment variable"),
        ({"user": "me", "password_variable": "NOT_SET_ANYWHERE"}, "environment variable NOT_SET_ANYWHERE: not set"),
        ({"host": "a.org", **LOGIN}, "the password would cross the network in the clear"),
        ({"events": ["halt"]}, "unknown event halt; did you mean halted?"),
        ({"timeout_seconds": float("inf")}, "notify timeout_seconds: out of range"),
        ({"hosts": 1}, "unknown key hosts; did you mean host?"),
    ],
    ids=str,
)
def test_a_section_that_cannot_be_used_is_refused_by_name(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_channels({"post": {**section(25), **change}})
    assert sentence in str(caught.value)


def test_what_is_needed_and_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"\[notify\.post\]: missing key host"):
        open_channels({"post": {"kind": "email", "sender": "a@b.org", "to": ["a@b.org"]}})


def test_a_password_that_smtplib_would_show_in_its_own_error_is_refused_unseen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAIL_PASSWORD", "never-tö-be-seen")
    with pytest.raises(ConfigError, match="other than ASCII") as caught:
        open_channels({"post": section(25, **LOGIN)})
    assert "never" not in str(caught.value)
