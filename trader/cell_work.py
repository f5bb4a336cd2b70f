"""Make one cell of an experiment: train a model, forecast its test days without labels, check one forecast again.

Runs in a worker process; ``trader.experiment`` hands over a job and its days, ``trader.cells`` keeps what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
import time

import numpy as np
from numpy.typing import NDArray

from models.base import Days, FitReport, Model, Prediction
from models.panel import Part, PooledModel
from models.targets import same_day
from trader.cells import CellFacts, CellResult
from trader.errors import ModelError, TraderError
from trader.sources import source_hash
from trader.training import ModelSpec

Row = tuple[str, float, float | None, int, float]  # session, P(up), expected return, side, target return
SAME = 1e-6  # a probability, or a return


@dataclass(frozen=True, slots=True)
class Job:
    """A cell to be made. Ranges count from the first day that is handed over; ``use`` is empty for a trial."""

    facts: CellFacts
    spec: ModelSpec
    need: int
    seed: int
    train: range
    validation: range
    use: range
    sessions: Sequence[str]


@dataclass(frozen=True, slots=True)
class Share:
    """One symbol's share of a cell over many; ranges as in ``Job``, any of them may be empty."""

    symbol: str
    train: range
    validation: range
    use: range
    sessions: Sequence[str]


@dataclass(frozen=True, slots=True)
class PanelJob:
    """A cell over many symbols: one training, and what it says of each of them."""

    facts: CellFacts
    spec: ModelSpec
    need: int
    seed: int
    shares: Sequence[Share]


def evaluate(job: Job | PanelJob, days: Days | Sequence[Days]) -> CellResult | str:
    """Train one cell and forecast its test days; return what came out, or in one line why nothing did.

    days: from the first day that the first training decision reads to the last test day, all labels known; of a
    PanelJob those of each share.
    """
    started = time.process_time()  # one thread, one process: what it waits for others is not its cost
    check_code(job.spec)
    try:
        model = job.spec.factory()
        rows: list[Row] = []
        panel: list[tuple[str, str, float, float | None, int, float]] = []
        if isinstance(job, PanelJob):
            assert not isinstance(days, Days), "a list, one for each share"
            report = _learn_panel(job, model, days)
            for share, own in zip(job.shares, days, strict=True):
                panel += [(row[0], share.symbol, *row[1:]) for row in _forecast(job, share, model, own)]
        else:
            assert isinstance(days, Days), "one market's"
            days = same_day(days) if job.facts.target == "same_day" else days
            report = model.fit(days.between(0, job.validation.stop), job.train, job.validation, job.seed)
            rows = _forecast(job, job, model, days)
    except ModelError as error:
        return str(error)
    except TraderError:
        raise
    except Exception as error:  # a library's: out of memory, no convergence; the row says so and the others go on
        return f"the training failed ({type(error).__name__}: {error})"
    loss = report.validation_loss if np.isfinite(report.validation_loss) else None
    return CellResult(
        validation_loss=loss,
        validation_accuracy=report.validation_accuracy,
        epochs=report.epochs,
        best_epoch=report.best_epoch,
        seconds=time.process_time() - started,
        days=rows,
        panel=panel,
    )


def _learn_panel(job: PanelJob, model: Model, days: Sequence[Days]) -> FitReport:
    if not isinstance(model, PooledModel):
        raise ModelError("it does not learn from many symbols at once", where=job.facts.method)
    parts = [
        Part(own.between(0, max(share.train.stop, share.validation.stop)), share.train, share.validation)
        for share, own in zip(job.shares, days, strict=True)
        if share.train or share.validation
    ]
    return model.fit_panel(parts, job.seed)


def check_code(spec: ModelSpec) -> None:
    """Raise TraderError where a model's source is no longer what its cell is named by: it was edited during the run."""
    module = getattr(spec.factory, "func", spec.factory).__module__
    if spec.code and not spec.code.startswith(source_hash(module)):
        do = "run the same command again; the cells that are written stay"
        raise TraderError("the model's code has changed since the run began", where=module, do=do)


def _forecast(job: Job | PanelJob, share: Job | Share, model: Model, days: Days) -> list[Row]:
    """Forecast the test days of a share, their labels unseen, and three of them from their own days alone."""
    use, sessions = share.use, share.sessions
    if not use:
        return []
    blind = replace(days, next_return=np.full(len(days), np.nan))
    made = model.predict(blind, use)
    if not np.isfinite(made.p_up).all() or not np.isfinite(said := _returns(made)).all():
        raise ModelError("a forecast that is not a number", where=f"{job.facts.method} {job.facts.market}")
    for at in sorted({0, len(use) // 2, len(use) - 1}):
        alone = model.predict(blind.between(use[at] - job.need + 1, use[at] + 1), [job.need - 1])
        for got, kept in ((alone.p_up[0], made.p_up[at]), (_returns(alone)[0], said[at])):
            if not abs(got - kept) <= SAME:
                what = "the forecast changes when the days after it are cut away"
                raise TraderError(what, where=f"{job.facts.method} {sessions[at]}", got=f"{kept} and {got}")
    expected = made.expected_return
    return [
        (
            session,
            float(made.p_up[row]),
            None if expected is None else float(expected[row]),
            int(made.p_up[row] > 0.5) - int(made.p_up[row] < 0.5),
            float(days.next_return[day]),
        )
        for row, (session, day) in enumerate(zip(sessions, use, strict=True))
    ]


def _returns(made: Prediction) -> NDArray[np.float64]:
    """Return the expected returns (B,), zeros where the model gives none."""
    return np.zeros(len(made.p_up)) if made.expected_return is None else made.expected_return
