"""No look-ahead, through the whole chain: what happens after a cut cannot change a signal before it.

Everything after the cut (returns, opens, highs, volumes, headlines) is drawn anew, in a new home with empty caches.
Three planted leaks show that the comparison can fail.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.base import Days
from tests import builders
from trader import engine
from trader.events import NewsBatch, Signal
from trader.registry import Registry
from trader.training import Trainer
from trader.window import Window

DAYS = builders.sessions(150)
FIRST, LAST, CUT = DAYS[100], DAYS[-1], DAYS[128]  # two models are trained between FIRST and CUT


def _signals(home: Path, future: int, **changes: object) -> list[Signal]:
    """Run a backtest whose bars and headlines after CUT are drawn from the seed ``future``."""
    until = DAYS.index(CUT) + 1
    past = builders.bars(DAYS[:until])
    after = builders.bars(DAYS[until:], seed=future, start=past[-1].close)
    news = [builders.headlines(DAYS[:until], most=8), builders.headlines(DAYS[until:], seed=future, most=8)]
    items = [item for part in news for item in part.items()]
    builders.fill(home, [*past, *after], NewsBatch.of(items))
    made = engine.backtest(builders.config(**changes), home, FIRST, LAST, readers=builders.readers())
    return list(made.forecasts.signals)


def _until_cut(signals: list[Signal]) -> list[Signal]:
    return [signal for signal in signals if signal.session <= CUT]


def _after_cut(signals: list[Signal]) -> list[float | None]:
    return [signal.p_up for signal in signals if signal.session > CUT]


@pytest.mark.parametrize("model", ["finin", "logistic", "msmf"])
def test_a_new_future_changes_no_signal_before_it_and_no_model_trained_before_it(tmp_path: Path, model: str) -> None:
    one = _signals(tmp_path / "one", future=1, model=model)
    other = _signals(tmp_path / "other", future=2, model=model)
    trained = {signal.model_id for signal in _until_cut(one)}
    assert len(trained) >= 3
    assert _until_cut(one) == _until_cut(other)
    for name in trained:
        mine, theirs = (Registry(tmp_path / home / "models").load(name) for home in ("one", "other"))
        assert all(np.array_equal(array, theirs[key], equal_nan=True) for key, array in mine.items())
    assert _after_cut(one) != _after_cut(other), "the futures must differ, or nothing was tested"


def test_a_planted_label_leak_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Window.learnable

    def leaking(self: Window, first: int, stop: int) -> Days:
        days = honest(self, first, stop)
        close = np.array([bar.close for bar in self.bars])
        later = np.minimum(np.arange(first, stop) + 20, len(close) - 1)  # labels that are known only weeks later
        days.next_return[:] = close[later] / close[first:stop] - 1
        return days

    monkeypatch.setattr(Window, "learnable", leaking)
    one, other = (_signals(tmp_path / str(seed), future=seed) for seed in (1, 2))
    assert _until_cut(one) != _until_cut(other)


def test_a_planted_scaler_leak_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Window.days

    def leaking(self: Window, first: int, stop: int) -> Days:
        days = honest(self, first, stop)
        everything = np.stack(self._market)  # the scale of all sessions, later ones included
        days.market[:] = (days.market - everything.mean(axis=0)) / (everything.std(axis=0) + 1e-9)
        return days

    monkeypatch.setattr(Window, "days", leaking)
    one, other = (_signals(tmp_path / str(seed), future=seed) for seed in (1, 2))
    assert _until_cut(one) != _until_cut(other)


def _with_another_past(home: Path, seed: int) -> list[Signal]:
    """Run in ``home`` with models kept, on a market whose bars all differ."""
    for name in ("market.db", "market.db-wal", "market.db-shm"):
        (home / name).unlink(missing_ok=True)
    builders.fill(home, builders.bars(DAYS, seed=seed), builders.headlines(DAYS))
    made = engine.backtest(builders.config(), home, FIRST, LAST, readers=builders.readers())
    return list(made.forecasts.signals)


def test_models_of_other_data_are_never_found_in_the_cache(tmp_path: Path) -> None:
    one, other = (_with_another_past(tmp_path, seed) for seed in (1, 2))
    assert {s.model_id for s in one}.isdisjoint({s.model_id for s in other})
    fresh = _with_another_past(tmp_path / "fresh", 2)
    assert other == fresh


def test_a_planted_cache_leak_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_id", lambda self, shape, days: f"by-date-{shape['seed']}")
    _with_another_past(tmp_path, 1)
    stale = _with_another_past(tmp_path, 2)  # finds the models of the first market under the same dates
    assert stale != _with_another_past(tmp_path / "fresh", 2)
