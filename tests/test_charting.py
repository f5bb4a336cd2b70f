"""The command ``chart``: the picture is the array that a model sees, and every bad word is one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
import pytest

from models.charts import ChartConfig, charts
from tests import builders
from trader import cli
from trader.charting import png
from trader.clock import SimulatedClock
from trader.events import Bar, BarClosed
from trader.parts import window_of
from trader.store import MarketStore

ROOT = Path(__file__).parents[1]
DAYS = builders.sessions(200)
BARS = builders.bars(DAYS)

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Say:
    monkeypatch.delenv("TRADER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)  # so that no config.toml or var/ of this project is met

    def command(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as left:
            code = int(left.code or 0)
        return code, *capsys.readouterr()

    return command


def stored(bars: list[Bar], home: str = "var") -> None:
    with MarketStore.open(Path(home) / "market.db", clock=SimulatedClock(builders.NOW)) as store:
        store.add_bars(bars, source="made here")


def pixels(content: bytes) -> NDArray[np.uint8]:
    """Read a grey PNG without filters back, checking every part's sum."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    parts, at = {}, 8
    while at < len(content):
        (length,), kind = struct.unpack(">I", content[at : at + 4]), content[at + 4 : at + 8]
        body = content[at + 8 : at + 8 + length]
        assert struct.unpack(">I", content[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + body),)
        parts[kind], at = body, at + 12 + length
    assert list(parts) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *form = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    assert form == [8, 0, 0, 0, 0], "eight bits of grey"
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any(), "no filter"
    return rows[:, 1:]


def read(path: str | Path, scale: int) -> NDArray[np.uint8]:
    """Read a chart back, each of its pixels a square."""
    large = pixels(Path(path).read_bytes())
    small = large[::scale, ::scale]
    assert np.array_equal(large, small.repeat(scale, axis=0).repeat(scale, axis=1))
    return small


def model_sees(bars: list[Bar], at: int, how: ChartConfig) -> NDArray[np.uint8]:
    """Draw from a window that was filled with every bar from the first to the last."""
    window = window_of(builders.config(), builders.readers())
    for bar in bars:
        window.update(BarClosed(session=bar.session, at=bar.known_at, bar=bar))
    return charts(window.days(0, len(bars)).market, [at], how)[0]


@pytest.mark.parametrize("sessions", [5, 20, 60])
@pytest.mark.parametrize("words", [(), ("--no-volume",), ("--no-average",), ("--no-volume", "--no-average")])
def test_the_picture_is_the_array_that_a_model_sees(say: Say, sessions: int, words: tuple[str, ...]) -> None:
    stored(BARS)
    how = ChartConfig(sessions, moving_average="--no-average" not in words, volume="--no-volume" not in words)
    code, out, err = say("chart", "toy", DAYS[180], "--sessions", sessions, "--out", "chart.png", "--scale", 2, *words)
    assert (code, err) == (0, "")
    assert np.array_equal(read("chart.png", 2), model_sees(BARS, 180, how))
    assert out.startswith(f"toy {DAYS[181 - sessions]} to {DAYS[180]}: {sessions} sessions, ")
    assert ("no moving average" in out, "no volume" in out) == ("--no-average" in words, "--no-volume" in words)
    assert f"\n{how.width} × {how.height} pixels, each drawn 2 × 2.\nWritten: chart.png\n" in out


def test_twenty_sessions_and_six_by_six_are_the_defaults(say: Say) -> None:
    stored(BARS)
    assert say("chart", "toy", DAYS[180], "--out", "chart.png")[0] == 0
    assert np.array_equal(read("chart.png", 6), model_sees(BARS, 180, ChartConfig(20)))


def test_what_became_known_later_changes_no_pixel(say: Say) -> None:
    stored(BARS[:181], "before")
    stored(BARS, "after")
    with MarketStore.open(Path("after/market.db"), clock=SimulatedClock(builders.NOW)) as store:
        revised = replace(BARS[170], close=BARS[170].low, known_at=BARS[181].known_at)
        store.add_bars([revised], source="made here")
    for home in ("before", "after"):
        assert say("chart", "toy", DAYS[180], "--home", home, "--out", f"{home}.png")[0] == 0
    assert Path("before.png").read_bytes() == Path("after.png").read_bytes()


def test_a_bar_that_came_a_session_late_is_drawn_as_a_model_sees_it(say: Say) -> None:
    late = [replace(bar, known_at=BARS[at + 1].known_at) if at == 175 else bar for at, bar in enumerate(BARS)]
    stored(late)
    assert say("chart", "toy", DAYS[180], "--out", "chart.png")[0] == 0
    assert np.array_equal(read("chart.png", 6), model_sees(BARS, 180, ChartConfig(20)))
    assert "no bar of toy known when the session was decided" in refused(say, "chart", "toy", DAYS[175])


def test_a_session_without_a_bar_is_not_drawn(say: Say) -> None:
    without = BARS[:170] + BARS[171:]
    stored(without)
    assert f"toy {DAYS[160]} to" in say("chart", "toy", DAYS[180], "--out", "chart.png")[1]
    assert np.array_equal(read("chart.png", 6), model_sees(without, 179, ChartConfig(20)))


# Every bad word


def refused(say: Say, *words: object, out: str = "x.png") -> str:
    code, said, err = say(*words, "--out", out)
    assert (code, said, len(err.splitlines())) == (2, "", 1), err
    assert not Path(out).exists()
    return err


def test_an_unknown_market_is_refused(say: Say) -> None:
    assert "no such market (got nobody, expected one of nasdaq, sp500); import it" in refused(
        say, "chart", "nobody", DAYS[180]
    )


def test_days_that_cannot_be_drawn_are_refused(say: Say) -> None:
    stored(BARS)
    assert "not a session of the exchange (got 2010-06-05" in refused(say, "chart", "toy", "2010-06-05")
    assert "expected" in refused(say, "chart", "toy", "yesterday")
    after = builders.sessions(201)[-1]
    assert f"{after}: no bar of toy known when the session was decided" in refused(say, "chart", "toy", after)
    assert "the store has no bar of toy for this session" in refused(say, "chart", "toy", "2009-06-05")


def test_too_little_history_is_refused_and_just_enough_is_not(say: Say) -> None:
    stored(BARS)
    reads = ChartConfig(20).reads + 20
    said = refused(say, "chart", "toy", DAYS[reads - 2])
    assert f"too little history for the chart (got {reads - 1}, expected at least {reads}" in said
    assert say("chart", "toy", DAYS[reads - 1], "--out", "chart.png")[0] == 0
    assert np.array_equal(read("chart.png", 6), model_sees(BARS, reads - 1, ChartConfig(20)))
    assert say("chart", "toy", DAYS[39], "--no-average", "--out", "chart.png")[0] == 0


def test_sessions_scale_and_file_have_their_bounds(say: Say) -> None:
    stored(BARS)
    chart = ("chart", "toy", DAYS[180])
    assert "no chart of so many sessions (got 10, expected 5, 20, 60)" in refused(say, *chart, "--sessions", 10)
    for scale in (0, 33, -1):
        assert f"no such scale (got {scale}, expected 1 to 32)" in refused(say, *chart, "--scale", scale)
    assert "no such kind of picture (got .jpg, expected .png)" in refused(say, *chart, out="x.jpg")
    assert "the file cannot be written" in say(*chart, "--out", "nowhere/x.png")[2]
    assert "--out" in say(*chart)[2]


def test_raw_levels_are_refused(say: Say) -> None:
    stored(BARS)
    Path("config.toml").write_text('[inputs]\nmarket_features = "levels"\n')
    said = refused(say, "chart", "toy", DAYS[180])
    assert said.startswith("trader: [inputs] market_features: a chart is drawn from returns (got raw price levels)")


# The file and the page


def test_a_png_of_any_scale_reads_back_as_it_was() -> None:
    image = np.where(np.random.default_rng(0).random((7, 5)) > 0.5, 255, 0).astype(np.uint8)
    for scale in (1, 2, 9):
        assert np.array_equal(pixels(png(image, scale)), image.repeat(scale, axis=0).repeat(scale, axis=1))


@pytest.mark.parametrize("sessions", [5, 20, 60])
def test_the_pictures_of_the_page_are_what_the_command_draws(say: Say, sessions: int) -> None:
    assert say("chart", "sp500", "2008-09-26", "--sessions", sessions, "--out", "chart.png")[0] == 0
    name = f"charts_{sessions}.png"
    assert name in (ROOT / "docs/charts.md").read_text(encoding="utf-8")
    assert np.array_equal(read("chart.png", 6), read(ROOT / "docs" / name, 6))
