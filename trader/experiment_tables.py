"""An experiment's cells as figures: per method, market, lookback and protocol, with intervals, beside the paper's.

``trader.cells`` holds the test days, ``trader.comparison`` measures them, ``trader.experiment_page`` writes them down.
A place whose cells are not all there has no figures but a reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import csv
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from trader.cells import Cells, ExperimentRow
from trader.comparison import Figure, Positions, figures

METRICS = ("accuracy", "pnl", "sharpe", "correlation")
PROTOCOLS = {"windows": "the paper's windows", "walkforward": "walk-forward"}


class Place(NamedTuple):
    """Where a figure stands."""

    method: str
    market: str
    lookback: int
    protocol: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the tables: its method, its title, its name in the paper ("" where it has none), and which tables."""

    key: str
    title: str
    same_as: str
    tables: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """An experiment, measured.

    positions: what each place's seeds did on its test days.   figures: place → metric → figure.
    gaps: place → which of its cells are not there.   paper: (table, place) → metric → the paper's own figure.
    """

    experiment: ExperimentRow
    rows: Sequence[Row]
    markets: Sequence[str]
    lookbacks: Sequence[int]
    protocols: Sequence[str]
    positions: Mapping[Place, Positions]
    figures: Mapping[Place, Mapping[str, Figure]]
    gaps: Mapping[Place, str]
    paper: Mapping[tuple[int, Place], Mapping[str, float]]
    seconds: float
    trained: int

    @property
    def target(self) -> str:
        """next_day or same_day."""
        return str(self.experiment.request["target"])

    def days(self, market: str, protocol: str) -> int:
        """Return how many test days a market's methods were measured on."""
        found = [len(p.next_return) for place, p in self.positions.items() if place[1::2] == (market, protocol)]
        return max(found, default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """An experiment's cells by the places that they belong to.

    seeds: place → seed → its cells, oldest split first, of the seeds that have every split.
    gaps: place → which of its cells are not there.   seconds, trained: spent on all cells, trials too.
    """

    rows: Sequence[Row]
    places: Sequence[Place]
    seeds: Mapping[Place, Mapping[int, Sequence[Mapping[str, Any]]]]
    gaps: Mapping[Place, str]
    seconds: float
    trained: int


def gather(cells: Cells, experiment: ExperimentRow) -> Gathered:
    """Return what an experiment has so far; deterministic, whatever order the cells were made in."""
    rows = [
        Row(row["key"], row["title"], row["same_as"], tuple(row["tables"])) for row in experiment.facts.get("rows", [])
    ]
    everything = cells.of(experiment.id)
    found = [cell for cell in everything if cell["protocol"] != "trial"]
    unique = {cell["cell"]: cell["seconds"] for cell in everything}
    planned = {_named(name): tuple(counts) for name, counts in experiment.facts.get("planned", {}).items()}
    held, gaps = {}, {}
    for place, (splits, seeds) in planned.items():
        own = [cell for cell in found if _place(cell) == place]
        whole = _whole_seeds(own, splits)
        if whole:
            held[place] = whole
        if len(whole) < seeds:
            failed = experiment.facts.get("failed", {}).get("|".join(map(str, place)), "")
            gaps[place] = failed or f"not run yet: {len(own)} of {splits * seeds} cells; --resume makes the rest"
    return Gathered(
        rows=rows, places=list(planned), seeds=held, gaps=gaps, seconds=sum(unique.values()), trained=len(unique)
    )


def measure(cells: Cells, experiment: ExperimentRow) -> Results:
    """Measure everything that an experiment has so far."""
    held = gather(cells, experiment)
    positions = {place: _positions(cells, seeds, place.protocol) for place, seeds in held.seeds.items()}
    asked = experiment.request["settings"]["evaluation"]
    risk_free, resamples, seed = float(asked["risk_free"]), int(asked["resamples"]), int(experiment.request["seed"])
    return Results(
        experiment=experiment,
        rows=held.rows,
        markets=list(experiment.request["markets"]),
        lookbacks=sorted({place.lookback for place in held.places}),
        protocols=[name for name in PROTOCOLS if any(place.protocol == name for place in held.places)],
        positions=positions,
        figures={
            place: dict(figures(found, risk_free=risk_free, seed=seed, resamples=resamples).items())
            for place, found in positions.items()
        },
        gaps=held.gaps,
        paper=_paper(held.rows, held.places),
        seconds=held.seconds,
        trained=held.trained,
    )


def _place(cell: Mapping[str, Any]) -> Place:
    return Place(cell["method"], cell["market"], cell["lookback"], cell["protocol"])


def _named(name: str) -> Place:
    method, market, lookback, protocol = name.split("|")
    return Place(method, market, int(lookback), protocol)


def _whole_seeds(own: Sequence[Mapping[str, Any]], splits: int) -> dict[int, list[Mapping[str, Any]]]:
    """Return the cells by seed, oldest split first, of those seeds that have every split."""
    by_seed: dict[int, list[Mapping[str, Any]]] = {}
    for cell in sorted(own, key=lambda cell: (cell["seed"], cell["split"])):
        by_seed.setdefault(cell["seed"], []).append(cell)
    return {seed: held for seed, held in by_seed.items() if [one["split"] for one in held] == list(range(splits))}


def _positions(cells: Cells, by_seed: Mapping[int, Sequence[Mapping[str, Any]]], protocol: str) -> Positions:
    sides, forecasts, returns, lengths = [], [], [], []
    for held in by_seed.values():
        parts = [cells.days(cell["cell"]) for cell in held]
        days = [day for part in parts for day in part]
        sides.append([day["side"] for day in days])
        forecasts.append([_forecast(day) for day in days])
        returns = [day["target_return"] for day in days]
        lengths = [len(part) for part in parts]
    return Positions(
        sides=np.array(sides),
        next_return=np.array(returns),
        windows=lengths if protocol == "windows" else [sum(lengths)],  # a walk-forward's folds adjoin
        forecast=np.array(forecasts),
    )


def _forecast(day: Mapping[str, Any]) -> float:
    """Return what a day's forecast is correlated by: the expected return, or where there is none P(up) − ½."""
    expected = day["expected_return"]
    return float(day["p_up"]) - 0.5 if expected is None else float(expected)


# The paper's own figures, beside ours and never mixed with them

_MARKETS = {"sp500": "sp500", "gspc": "sp500", "spy": "sp500", "ndx": "nasdaq100", "qqq": "nasdaq100"}
_SHORT = {"acc": "accuracy", "pnl": "pnl", "sr": "sharpe"}
_COLUMNS = {"RoBERTa": "roberta", "FinBERT": "finbert", "BGE": "bge", "Llama 2": "llama2"}


def _paper(rows: Sequence[Row], places: Sequence[Place]) -> dict[tuple[int, Place], dict[str, float]]:
    """Return the paper's figures of the places that its tables have: those of its windows alone."""
    printed = {
        **_table_2(),
        **_wide("finin_table1_language_models.csv", _COLUMNS),
        **_wide("finin_table3_ablations.csv", {}),
    }
    row_of = {row.key: row for row in rows}
    found = {}
    for place in places:
        row, market = row_of[place.method], _MARKETS.get(place.market.lower(), "")
        for table in row.tables:
            # Its row FININ of table 2 read through RoBERTa, which has a row of its own in table 1.
            name = {1: "", 3: "complete"}.get(table, row.same_as) if place.method == "finin" else row.same_as
            held = printed.get((2 if name == "Always Buy" else table, name, market, place.lookback))
            if name and held and place.protocol == "windows":
                found[table, place] = held
    return found


def printed(name: str) -> list[dict[str, str]]:
    """Return the lines of a CSV file of a paper's own figures."""
    text = resources.files("trader").joinpath("papers", name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _table_2() -> dict[tuple[int, str, str, int], dict[str, float]]:
    found: dict[tuple[int, str, str, int], dict[str, float]] = {}
    for line in printed("finin_table2_market_prediction.csv"):
        for column, value in line.items():
            short, _, lookback = column.partition("_")
            if short in _SHORT and lookback.isdecimal():
                key = (2, line["method"], line["market"], int(lookback))
                found.setdefault(key, {})[_SHORT[short]] = float(value)
    return found


def _wide(name: str, columns: Mapping[str, str]) -> dict[tuple[int, str, str, int], dict[str, float]]:
    """Read a table with a column a method; the paper gives it for the S&P 500 alone."""
    found: dict[tuple[int, str, str, int], dict[str, float]] = {}
    title_of = {column: title for title, column in columns.items()}
    table = 1 if "table1" in name else 3
    for line in printed(name):
        for column, value in line.items():
            if column not in ("lookback_days", "metric"):
                key = (table, title_of.get(column, column), "sp500", int(line["lookback_days"]))
                found.setdefault(key, {})[_SHORT[line["metric"]]] = float(value)
    return found
