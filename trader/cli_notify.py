"""The command that tries a notification channel; ``trader.cli`` reads its words."""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

from trader.errors import DeliveryError
from trader.terminal import settings


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``notify test NAME``."""
    notify = commands.add_parser("notify", help="try the channels of notifications")
    parser = notify.add_subparsers(required=True, metavar="WHAT").add_parser(
        "test", help="send one message through a channel and say what happened"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (default: config.toml in this folder)")
    parser.add_argument("name", metavar="NAME", help="the NAME of a section [notify.NAME]")
    parser.set_defaults(command=notify_test, home=None)


def notify_test(options: argparse.Namespace) -> None:
    """Send one message through a channel, at once and past the outbox; raise DeliveryError where it was not taken."""
    from trader.channels import Failure, Lines
    from trader.clock import WallClock
    from trader.events import to_us
    from trader.notify import open_channels
    from trader.outbox import Notification

    config, _ = settings(options)
    (channel,) = open_channels(config.notify, [options.name])
    now = WallClock().now()
    message = Notification(
        id=0,
        event_id=f"test/{to_us(now)}",
        account="test",
        kind="test",
        session=None,
        text="A test: notifications through this channel arrive.",
        body={"channel": options.name},
        made_at=now,
    )
    started = perf_counter()
    try:
        remark = channel.send(message, Lines())
    except Failure as failure:
        where = f"[notify.{options.name}] {channel.place}"
        do = "mend it, then try again: in a service it would be tried again by itself"
        raise DeliveryError("the message was not taken", where=where, got=failure.what, do=do) from failure
    print(f"{options.name}: delivered to {channel.place} in {perf_counter() - started:.2f} s, id {message.event_id}")
    if remark:
        print(f"Warning: {remark}")
