"""Search a model's settings with Optuna: every one of a grid, or those that its TPE sampler proposes.

    space, objective → search → best setting, and a row in the storage file for each setting tried

A trial is written when it is finished, whole or not at all, so a search that is killed goes on where it stopped: what
is written is never run again, and what was running is run anew. Optuna does not store the state of its sampler; so
each proposal comes from a fresh one, whose seed is made of the search's seed and the proposal's number and which is
shown the finished trials alone. A search in pieces therefore tries the same settings in the same order as one in one
piece. One process at a time works on a study.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
import hashlib
import itertools
import json
import math
from pathlib import Path
import time
from typing import TYPE_CHECKING, Any, Literal

from trader.errors import ConfigError, ModelError, StoreError
from trader.methods import FININ_SPACE, Settings, Space

if TYPE_CHECKING:
    import optuna

__all__ = ["FININ_SPACE", "SearchResult", "Trial", "search"]

Objective = Callable[[Settings], float]
Scalar = None | bool | int | float | str

ASKED_AGAIN = 30  # times the sampler may repeat itself before a setting that was not tried is taken by its hash


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting that was tried. value: its validation log loss (nats); None where it failed, ``reason`` says why.

    now: it ran in this call; else it was in the storage file already.
    """

    number: int
    settings: Settings
    value: float | None
    reason: str
    seconds: float
    now: bool


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The setting of smallest value (the first tried where several are equal), and all trials as they were tried."""

    best: Settings
    value: float
    trials: tuple[Trial, ...]


def search(
    objective: Objective,
    space: Space,
    *,
    study: str,
    storage: Path,
    trials: int | None = None,
    sampler: Literal["grid", "tpe"] = "grid",
    seed: int = 0,
    about: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> SearchResult:
    """Find the settings of a space that minimise the objective; no setting is tried twice.

    objective: settings → validation log loss; a ModelError, or a number that is none, makes a failed trial.
    space: key → its possible values (numbers, words, truth values, None).   study: its name in the storage file.
    trials: at most so many, earlier calls included; None for as many as the space has settings.
    sampler: "grid" goes through all settings in an order drawn from the seed; "tpe" is Optuna's, which takes numbers
        to be ordered.   about: whatever else the objective depends on (data, code, split), as words or a hash.
    progress: called with (trials finished, trials in all).

    Raises ConfigError for a space that cannot be searched, where Optuna is not installed, or for a study made with
    another space, sampler, seed or ``about``; ModelError where every trial failed; StoreError where the file cannot
    be used. Other errors of the objective pass, and leave no trial.
    """
    grid = _grid(space, seed)
    total = len(grid) if trials is None else min(trials, len(grid))
    if total < 1:
        raise ConfigError("no trials to run", where=study, got=trials, expected="at least 1")
    named = {"space": {key: list(values) for key, values in space.items()}, "sampler": sampler, "seed": seed}
    with _opened(storage, study, named | {"about": about}) as opened:
        done = [_trial(one) for one in opened.get_trials(deepcopy=False) if one.state.is_finished()]
        while len(done) < total:
            asked = _next(grid, done) if sampler == "grid" else _proposed(space, grid, done, seed)
            done.append(_tried(objective, asked, len(done)))
            opened.add_trial(_row(done[-1], space))
            if progress:
                progress(len(done), total)
    return _result(done[:total], study)


def _grid(space: Space, seed: int) -> list[Settings]:
    """Return every setting of the space, in an order drawn from the seed."""
    for key, values in space.items():
        scalars = all(isinstance(one, Scalar) for one in values)
        if not values or not scalars or len(set(values)) != len(values):
            expected = "different numbers, words, truth values or None"
            raise ConfigError("a space that cannot be searched", where=key, got=list(values), expected=expected)
    grid = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    return sorted(grid, key=lambda one: hashlib.sha256(f"{seed}|{json.dumps(one, sort_keys=True)}".encode()).digest())


def _next(grid: Sequence[Settings], done: Sequence[Trial]) -> Settings:
    tried = [one.settings for one in done]
    return next(one for one in grid if one not in tried)


def _proposed(space: Space, grid: Sequence[Settings], done: Sequence[Trial], seed: int) -> Settings:
    """Return what TPE proposes after the finished trials, from a sampler of this proposal's own.

    The positions of the values stand for the values, so that the order of numbers is known to it.
    """
    optuna = _optuna()
    order = {key: _ordered(values) for key, values in space.items()}
    kinds = {key: _distribution(values) for key, values in order.items()}
    digest = hashlib.sha256(f"{seed}|{len(done)}".encode()).digest()
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=int.from_bytes(digest[:4], "big")))
    for one in done:
        if one.value is not None:
            places = {key: order[key].index(value) for key, value in one.settings.items()}
            study.add_trial(optuna.trial.create_trial(value=one.value, params=places, distributions=kinds))
    tried = [one.settings for one in done]
    for _ in range(ASKED_AGAIN):
        places = study.ask(kinds).params
        asked = {key: order[key][places[key]] for key in space}
        if asked not in tried:
            return asked
    return _next(grid, done)


def _ordered(values: Sequence[Any]) -> list[Any]:
    return sorted(values) if _numbers(values) else list(values)


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)


def _distribution(values: Sequence[Any]) -> optuna.distributions.BaseDistribution:
    optuna = _optuna()
    if _numbers(values):
        return optuna.distributions.IntDistribution(0, len(values) - 1)
    return optuna.distributions.CategoricalDistribution(tuple(range(len(values))))


def _tried(objective: Objective, settings: Settings, number: int) -> Trial:
    started = time.perf_counter()
    value: float | None = None
    try:
        value, reason = float(objective(settings)), ""
        if not math.isfinite(value):
            value, reason = None, f"the objective is {value}"
    except ModelError as error:
        reason = str(error)
    return Trial(number, settings, value, reason, time.perf_counter() - started, now=True)


def _row(trial: Trial, space: Space) -> optuna.trial.FrozenTrial:
    """Return a finished trial as Optuna keeps it, readable in its own dashboard."""
    optuna = _optuna()
    states = optuna.trial.TrialState
    return optuna.trial.create_trial(
        state=states.FAIL if trial.value is None else states.COMPLETE,
        value=trial.value,
        params=dict(trial.settings),
        distributions={key: optuna.distributions.CategoricalDistribution(tuple(space[key])) for key in space},
        user_attrs={"reason": trial.reason, "seconds": trial.seconds},
    )


def _trial(row: optuna.trial.FrozenTrial) -> Trial:
    reason, seconds = row.user_attrs.get("reason", ""), row.user_attrs.get("seconds", 0.0)
    return Trial(row.number, dict(row.params), row.value, reason, seconds, now=False)


def _result(done: Sequence[Trial], study: str) -> SearchResult:
    good = [one for one in done if one.value is not None]
    if not good:
        raise ModelError("every setting failed", where=study, got=f"{len(done)} trials, the first: {done[0].reason}")
    best = min(good, key=lambda one: one.value if one.value is not None else math.inf)
    assert best.value is not None
    return SearchResult(best.settings, best.value, tuple(done))


@contextmanager
def _opened(storage: Path, name: str, made_of: Mapping[str, Any]) -> Iterator[optuna.Study]:
    """Open a study, made where it is not there; refuse one that was made of something else."""
    optuna = _optuna()
    from sqlalchemy import URL
    from sqlalchemy.exc import SQLAlchemyError

    url = URL.create("sqlite", database=str(storage)).render_as_string()  # a path may hold spaces, ? and %
    try:
        storage.parent.mkdir(parents=True, exist_ok=True)
        kept = optuna.storages.RDBStorage(url)
    except (OSError, SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
        raise _unusable(storage, error) from error
    try:
        study = optuna.create_study(storage=kept, study_name=name, load_if_exists=True)
        _refuse_another(study, made_of, storage)
        yield study
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise _unusable(storage, error) from error
    finally:
        kept.engine.dispose()


def _refuse_another(study: optuna.Study, made_of: Mapping[str, Any], storage: Path) -> None:
    asked = {key: json.dumps(value, sort_keys=True) for key, value in made_of.items()}
    known = study.user_attrs
    for key, value in asked.items():
        if key not in known:
            study.set_user_attr(key, value)
        elif known[key] != value:
            raise ConfigError(
                f"the study was made with another {key}",
                where=f"{storage} {study.study_name}",
                got=value,
                expected=known[key],
                do="give the new study another name",
            )


def _unusable(storage: Path, error: BaseException) -> StoreError:
    first = str(error.__cause__ or error).partition("\n")[0]
    return StoreError("the storage of the search cannot be used", where=storage, got=first, do="move it away")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        do = "pip install -c constraints.txt -e '.[search]'"
        raise ConfigError("the search needs optuna, which is not installed", do=do) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
