"""How long a decision takes, from the close to the order row, with 700 new headlines; a part of ``benchmarks.paper``.

FININ with the default settings, trained once, the language model loaded. Nothing of the headlines is in any cache: they
are Reuters' where TRADER_TEST_DATA names their folder, else the wire's made unique.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
import os
from pathlib import Path
import statistics
import time
from typing import Any

import numpy as np

from benchmarks.accounts import Asked, opened, say, timed, verdict
from feeds import builtin, wire
from trader import running
from trader.clock import Calendar, SimulatedClock
from trader.errors import NoData
from trader.events import NewsBatch, NewsRows, to_us
from trader.outcome import Home
from trader.paper import Service
from trader.parts import readers_of, stock
from trader.running import World
from trader.store import FileSource, MarketStore
from trader.walkforward import is_retrain_session

HEADLINES, DECISIONS, SECONDS = 700, 10, 2.0
WARM = 5  # decisions before the first one that counts
PARTS = ("embedding", "sentiment", "forecast", "broker", "transaction")


def fresh_headlines(count: int) -> list[str]:
    """Return so many different headlines: Reuters' of 2013, or the wire's made unique."""
    folder = os.environ.get("TRADER_TEST_DATA")
    if folder:
        import pyarrow.parquet as pq

        column = pq.read_table(Path(folder) / "reuters" / "headlines_2013.parquet", columns=["headline"])["headline"]
        found = list(dict.fromkeys(text for text in column.slice(0, 4 * count).to_pylist() if text))
    else:
        found = [f"{text}, desk {at}" for at, text in enumerate(wire.headlines(builtin.series()).headline)]
    return found[:count]


def desk(written: NewsBatch, days: Sequence[date], per_day: int) -> NewsBatch:
    """Add to the wire so many headlines never read before in the hours before each of these closes."""
    texts, calendar = fresh_headlines(len(days) * per_day), Calendar()
    at = [to_us(calendar.cutoff(day) - timedelta(seconds=30 * (n + 1))) for day in days for n in range(per_day)]
    instants = np.concatenate([written.known_at, np.array(at, np.int64)])
    return NewsBatch(
        published_at=np.concatenate([written.published_at, np.array(at, np.int64)]),
        known_at=instants,
        headline=[*written.headline, *texts],
        symbols=[*written.symbols, *[""] * len(texts)],
        sentiment=np.concatenate([written.sentiment, np.full((len(texts), 3), np.nan, np.float32)]),
        item_id=[*written.item_id, *(f"desk {number}" for number in range(len(texts)))],
    )


class Watch:
    """Adds up the seconds that calls take, by the name of a part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def over(self, owner: Any, call: str, part: str) -> None:
        """Time a method of one object from now on."""
        inner = getattr(owner, call)

        def outer(*words: Any, **named: Any) -> Any:
            made, seconds = timed(lambda: inner(*words, **named))
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds
            return made

        setattr(owner, call, outer)


def decisions(
    service: Service, clock: SimulatedClock, days: Sequence[date], watch: Watch, ahead: bool
) -> Iterator[tuple[float, dict[str, float]]]:
    """Decide these sessions; yield the seconds of each and of its parts, those of the processor over all threads too.

    ahead: the headlines that came until 20 s before the close were read by then, as a running service does.
    """
    calendar = Calendar()
    for day in days:
        if ahead:
            clock.set(calendar.cutoff(day) - timedelta(seconds=20))
            service.read_ahead()  # type: ignore[attr-defined,unused-ignore]
        clock.set(calendar.decide_at(day))
        watch.seconds.clear()
        computed = time.process_time()
        done, seconds = timed(service.run_due)
        computed = time.process_time() - computed
        assert done == 1, f"{day}: {done} decisions"
        parts = dict(watch.seconds)
        parts["forecast"] -= parts.get("embedding", 0.0) + parts.get("sentiment", 0.0)
        say(f"    {day}: {seconds:.3f} s, of the processor {computed:.3f} s")
        rest = seconds - sum(parts.get(part, 0.0) for part in PARTS)
        yield seconds, {**parts, "the rest": rest, "processor": computed}


def told(name: str, made: Sequence[tuple[float, dict[str, float]]]) -> float:
    """Print median and maximum of some decisions, and the median of their parts; return the maximum."""
    seconds = [one for one, _ in made]
    say(f"  {name}: median {statistics.median(seconds):.3f} s, maximum {max(seconds):.3f} s; parts, medians:")
    for part in (*PARTS, "the rest", "processor"):
        say(f"    {part:<12}{statistics.median(parts.get(part, 0.0) for _, parts in made):8.3f} s")
    return max(seconds)


def latency(asked: Asked) -> bool:
    home, calendar = Home(asked.home / "latency"), Calendar()
    config = asked.config({"model": "finin", "news": "desk"})
    sessions = calendar.sessions(asked.first, asked.last)
    trained = next(at for at, day in enumerate(sessions) if is_retrain_session(calendar.index(day), config.walkforward))
    days = sessions[trained + 1 :][: WARM + 2 * DECISIONS]  # all before the next model is due
    if len(days) < WARM + 2 * DECISIONS:
        raise NoData("too few sessions after the first training", got=len(days), expected=WARM + 2 * DECISIONS)
    home.make()
    with MarketStore.open(home.store) as store:
        stock(store, "sp500", "wire")
        news = desk(wire.headlines(builtin.series()), days[WARM:], HEADLINES)
        rows = NewsRows(news=news, row=np.arange(1, len(news) + 1), rejected=())
        store.add_news("desk", [rows], source=FileSource(name="desk"))
    opened(home.folder, "desk", config, days[0])
    readers, watch, clock = readers_of(config, home), Watch(), SimulatedClock(calendar.decide_at(days[0]))
    watch.over(readers.texts, "index", "embedding")
    watch.over(readers.scorer, "scores", "sentiment")
    with running.running(home, "desk", World(clock=clock, patient=True, readers=readers)) as service:
        for part, owner, call in (
            ("forecast", service._source, "decide"),
            ("broker", service._books, "close"),
            ("transaction", service, "_write"),
        ):
            watch.over(owner, call, part)
        say("  to warm up, the first with its training:")
        list(decisions(service, clock, days[:WARM], watch, False))
        say(f"  load of the machine: {', '.join(f'{load:.1f}' for load in os.getloadavg())} on {os.cpu_count()} cores")
        cold, ahead = days[WARM : WARM + DECISIONS], days[WARM + DECISIONS :]
        most = told(f"{HEADLINES} new headlines at once", list(decisions(service, clock, cold, watch, False)))
        if hasattr(service, "read_ahead"):
            most = told("the same, read as they come", list(decisions(service, clock, ahead, watch, True)))
    slow = [] if most < SECONDS else [f"the slowest decision took {most:.3f} s"]
    return verdict("latency", f"a decision takes less than {SECONDS:.0f} s", slow)
