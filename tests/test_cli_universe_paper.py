"""The commands of a paper account of a universe: opened, replayed, shown in 100 columns, compared."""

from __future__ import annotations

from pathlib import Path
import re

import pytest

from tests import a_universe, builders
from tests.a_universe import DAYS, FIRST, UNIVERSE
from tests.commands import Say, commands
from tests.test_universe_paper import DUE, world
from trader import running, universe_engine
from trader.clock import SimulatedClock
from trader.outcome import Home


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Say:
    monkeypatch.delenv("TRADER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    for room in (universe_engine, running):
        monkeypatch.setattr(room, "readers_of", lambda config, home: builders.readers())
    a_universe.fill(tmp_path / "home")
    (tmp_path / "toys.toml").write_text(UNIVERSE)
    (tmp_path / "config.toml").write_text(
        f'[run]\nnews = "toy"\nmodel = "{a_universe.POOLED}"\nlookback = 3\n'
        "[walkforward]\ntrain = 20\nvalidation = 10\nstep = 10\n[inputs]\ndecide_minutes = 30\n"
        "[compute]\nworkers = 1\n[evaluation]\nresamples = 100\nrivals = []\n[strategy.top_k]\nk = 1\n"
    )

    return commands(capsys)


def test_an_account_of_many_symbols_is_opened_replayed_shown_and_compared(say: Say) -> None:
    days = ("--from", FIRST, "--to", DAYS[90])
    assert say("backtest", "--market", "toys.toml", *days, "--daily")[0] == 0
    code, out, err = say("paper", "open", "many", "--market", "toys.toml", "--from", FIRST)
    assert code == 0, err
    assert "toys (3 symbols), top_k" in out
    code, out, err = say("paper", "replay", "many", "--to", DAYS[90])
    assert code == 0 and "21 decisions replayed." in out, err
    code, shown, _ = say("paper", "status", "many")
    lines = shown.splitlines()
    assert "on toys (3 symbols), news toy" in shown
    [held] = [line for line in lines if line.startswith("Holds ")]
    assert " of 3 symbols, of equity: " in held and "%" in held
    assert f"Decided 1 of 3 symbols on {DAYS[90]}; not A, B" in shown, "their bars came late"
    assert max(map(len, (held, *lines[:1]))) <= 100
    assert " toys " in say("paper", "status")[1]
    code, out, err = say("backtest", "--as-account", "many")
    assert code == 0, err
    assert "Every signal, order, fill, holding and equity is the same." in out
    assert say("paper", "halt", "many")[0] == 0


def test_an_account_of_many_symbols_equals_its_backtest_though_sessions_without_any_bar_follow(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage: the store ends, orders wait, and two sessions are decided without a bar."""
    cut, whole = 80, a_universe.bars
    monkeypatch.setattr(a_universe, "bars", lambda *asked: [bar for bar in whole(*asked) if bar.session <= DAYS[cut]])
    (tmp_path / "home" / "market.db").unlink()
    a_universe.fill(tmp_path / "home")
    assert say("paper", "open", "many", "--market", "toys.toml", "--from", FIRST)[0] == 0
    assert say("paper", "replay", "many", "--to", DAYS[cut])[0] == 0
    home = Home(tmp_path / "home")
    for at in (cut + 1, cut + 2):
        with running.running(home, "many", world(SimulatedClock(DUE.decide_at(DAYS[at])))) as service:
            assert service.run_due() == 1
    code, out, err = say("backtest", "--as-account", "many")
    assert code == 0 and "Every signal, order, fill, holding and equity is the same." in out, out + err


def test_what_is_invested_is_long_and_short_added_up(say: Say) -> None:
    assert say("paper", "open", "many", "--market", "toys.toml", "--from", FIRST)[0] == 0
    assert say("paper", "replay", "many", "--to", DAYS[92])[0] == 0
    shown = say("paper", "status", "many")[1]
    [held] = [line for line in shown.splitlines() if line.startswith("Holds ")]
    shares = [float(share) for share in re.findall(r"(-?[\d.]+)%", held.replace("−", "-"))]
    [line] = [line for line in shown.splitlines() if "of equity" in line and line.startswith("Equity")]
    [whole] = re.findall(r"([\d.]+)% of equity", line)
    assert min(shares) < 0 < max(shares)
    assert float(whole) == pytest.approx(sum(map(abs, shares)), abs=0.2)


def test_what_an_account_of_many_symbols_cannot_have_is_refused_in_one_line(say: Say) -> None:
    assert say("paper", "open", "many", "--market", "toys.toml", "--from", FIRST)[0] == 0
    for words, said in (
        (("paper", "open", "other", "--market", "nowhere.toml"), "cannot be read"),
        (("paper", "open", "other", "--market", "toys.toml", "--strategy", "long_only"), "trades one symbol"),
        (("paper", "open", "other", "--market", "toys.toml", "--execution", "close"), "decide_minutes"),
        (("models", "promote", "tiny-1", "--account", "many"), "takes one symbol, not a universe"),
        (("models", "rollback", "--account", "many"), "takes one symbol, not a universe"),
    ):
        code, _, err = say(*words)
        assert code == 2 and said in err and err.count("\n") == 1, err
