"""Search a model's settings on the validation of the first window: the paper's grid, or Optuna's TPE over it.

No test day is looked at. ``trader.search`` keeps the trials; ``trader.experiment_plan`` cuts the window out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from trader.cell_work import evaluate
from trader.cells import CellResult
from trader.config import Config
from trader.errors import ModelError
from trader.experiment import Request, walk_of
from trader.experiment_inputs import load, too_short
from trader.experiment_plan import plan_cell
from trader.methods import Settings, methods
from trader.outcome import Home
from trader.parts import Readers, check_chats, readers_of
from trader.progress import Stages, Watch, silent
from trader.protocol import Windows, sliding, walking
from trader.search import FININ_SPACE, SearchResult, search

Sampler = Literal["grid", "tpe"]


def search_finin(
    config: Config,
    home_folder: Path,
    request: Request,
    *,
    sampler: Sampler = "grid",
    trials: int | None = None,
    watch: Watch = silent,
    readers: Readers | None = None,
) -> SearchResult:
    """Try FININ's 81 settings (or the ``trials`` first of them) at ``[experiment] search_lookback`` on one market.

    A search that is killed goes on where it stopped; its trials stand in ``search.db`` of the home, by Optuna.
    Raises TraderError for what a user can mend.
    """
    home, stages, market = Home(home_folder), Stages(watch), request.markets[0]
    home.make()
    check_chats(config)
    [row] = [one for one in methods(config, (2,), "next_day", ("finin",)) if one.key == "finin"]
    asked = (request.news, request.first, request.last)
    inputs = load(config, home, market, asked, row.reading, readers or readers_of(config, home), stages)
    windows = Windows(config.experiment.window, config.experiment.window_step, 1)
    folds = sliding(inputs.window.numbers, inputs.start, inputs.stop, windows)
    folds = folds or walking(inputs.window.numbers, inputs.start, inputs.stop, walk_of(config))
    if not folds:
        raise too_short(inputs.market, inputs.spanned)
    fold = replace(folds[0], use=range(folds[0].validation.stop, folds[0].validation.stop))
    place = (config.experiment.search_lookback, "trial", 0, 0, fold)

    def loss(setting: Settings) -> float:
        planned = plan_cell(config, "next_day", row, inputs, *place, setting)
        result = evaluate(planned.job, planned.days())
        if not isinstance(result, CellResult) or result.validation_loss is None:
            raise ModelError(str(result) if isinstance(result, str) else "no validation loss")
        return result.validation_loss

    # Data, code and the other settings: what a trial depends on beside its own. Others are another study.
    about = plan_cell(config, "next_day", row, inputs, *place, {}).facts.cell[:12]
    with stages("search") as step:
        return search(
            loss,
            FININ_SPACE,
            study=f"finin {market} {request.news} t={config.experiment.search_lookback} {sampler} {about}",
            storage=home.folder / "search.db",
            trials=trials,
            sampler=sampler,
            seed=config.run.seed,
            progress=lambda done, total: step(done, total, "settings"),
        )
