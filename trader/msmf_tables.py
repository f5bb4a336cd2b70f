"""An MSMF experiment's cells as the figures of its paper's tables 1 to 7, and what may be said of them.

``trader.experiment_tables`` gathers the cells, ``trader.scores`` measures them, ``trader.msmf_page`` writes them down.
What is compared is compared on the same days, with as many seeds of the one as of the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trader.cells import Cells, ExperimentRow
from trader.comparison import Contrast, Figure, holm
from trader.experiment_tables import Gathered, Place, Row, gather, printed
from trader.methods_msmf import YARDSTICK
from trader.scores import BETTER, SCORES, Forecasts, Score, compared, scored

TITLES = {
    1: "Table 1: the next return",
    2: "Table 2: the next movement",
    3: "Table 3: one modality at a single scale",
    4: "Table 4: completion of missing text",
    5: "Table 5: fusion",
    6: "Table 6: one task or two",
    7: "Table 7: multi-granularity gates",
}
SHOWN: Mapping[int, tuple[Score, ...]] = {1: ("mape", "rmse"), 2: ("accuracy", "f1")}  # the other tables show all
MAIN: Mapping[int, str] = {4: "fill_rbm"}  # the row of the paper's own model; "msmf" in the other tables
NAMES: Mapping[Score, str] = {"accuracy": "accuracy", "f1": "F1", "mape": "MAPE", "rmse": "RMSE"}
CONVINCING = 0.05
FINE = (
    100  # draws a comparison: of fewer than 40 not even the rarest would pass Holm, for p is at least 2 / (1 + draws)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The paper's model less another row of one table on one market; ``adjusted``: its two-sided p-value after Holm."""

    table: int
    market: str
    row: str
    score: Score
    found: Contrast
    adjusted: float | None

    @property
    def verdict(self) -> str:
        """What the difference shows of the paper's model: better and worse are so after Holm."""
        low, high = self.found.low, self.found.high
        if self.found.value is None or low is None or high is None:
            return "no figure"
        word = "better" if self.found.value * BETTER[self.score] > 0 else "worse"
        if self.adjusted is not None and self.adjusted < CONVINCING:
            return word
        return f"{word}, not by Holm" if low > 0 or high < 0 else "cannot be told"


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """An MSMF experiment, measured.

    figures: place → score → figure.   paper: (table, row) → score → the paper's own figure, on its own data.
    days, symbols: how many test days each market has, and how many symbols.   first, last: of the test days.
    """

    experiment: ExperimentRow
    held: Gathered
    markets: Sequence[str]
    figures: Mapping[Place, Mapping[Score, Figure]]
    differences: Sequence[Difference]
    paper: Mapping[tuple[int, str], Mapping[Score, float]]
    days: Mapping[str, int]
    symbols: Mapping[str, int]
    spans: Mapping[str, tuple[str, str]]

    @property
    def tables(self) -> list[int]:
        """The tables asked for that have a row beside the yardstick, in order."""
        asked = self.experiment.request["tables"]
        return [number for number in TITLES if number in asked and len(self.rows(number)) > 1]

    def rows(self, table: int) -> list[Row]:
        """The rows of a table, in its order."""
        return [row for row in self.held.rows if table in row.tables]

    def place(self, row: str, market: str) -> Place | None:
        """Where a row's figures on a market stand; None where no cell of it was planned."""
        found = [place for place in self.held.places if (place.method, place.market) == (row, market)]
        return found[0] if found else None

    def of(self, row: str, market: str) -> Mapping[Score, Figure]:
        """Return a row's figures on a market; empty where there is none."""
        place = self.place(row, market)
        return self.figures.get(place, {}) if place else {}


def scores_of(table: int) -> tuple[Score, ...]:
    """Return what a table shows."""
    return SHOWN.get(table, SCORES)


def measure(cells: Cells, experiment: ExperimentRow) -> Results:
    """Measure everything that an experiment has so far."""
    held = gather(cells, experiment)
    said, spans = {}, {}
    for place, seeds in held.seeds.items():
        said[place], days = _forecasts(cells, [[cell["cell"] for cell in own] for own in seeds.values()])
        spans[place.market] = (days[0], days[-1])
    asked = experiment.request["settings"]["evaluation"]
    seed, resamples = int(experiment.request["seed"]), int(asked["resamples"])
    markets = list(experiment.request["markets"])
    return Results(
        experiment=experiment,
        held=held,
        markets=markets,
        figures={place: scored(one, seed=seed, resamples=resamples) for place, one in said.items()},
        differences=_differences(experiment, held, said, markets, seed, resamples),
        paper=_paper(held.rows),
        days={place.market: one.next_return.shape[0] for place, one in said.items()},
        symbols={place.market: one.next_return.shape[1] for place, one in said.items()},
        spans=spans,
    )


def _forecasts(cells: Cells, seeds: Sequence[Sequence[str]]) -> tuple[Forecasts, list[str]]:
    """Return what a row said over all its splits, and the sessions; seeds: a list of cells each, oldest first."""
    said = [[day for cell in own for day in cells.days(cell)] for own in seeds]
    sessions = sorted({day["session"] for day in said[0]})
    symbols = sorted({day.get("symbol", "") for day in said[0]})  # one without a name where there is one alone
    row = {session: at for at, session in enumerate(sessions)}
    column = {symbol: at for at, symbol in enumerate(symbols)}
    p_up, expected = (np.full((len(said), len(sessions), len(symbols)), np.nan) for _ in range(2))
    came = np.full((len(sessions), len(symbols)), np.nan)
    for k, days in enumerate(said):
        for day in days:
            at = (row[day["session"]], column[day.get("symbol", "")])
            p_up[k][at], came[at] = day["p_up"], day["target_return"]
            expected[k][at] = np.nan if day["expected_return"] is None else day["expected_return"]
    return Forecasts(p_up, came, None if np.isnan(expected).all() else expected), sessions


def _differences(
    experiment: ExperimentRow,
    held: Gathered,
    said: Mapping[Place, Forecasts],
    markets: Sequence[str],
    seed: int,
    resamples: int,
) -> list[Difference]:
    """Compare the paper's model with every other row of each table, p-values adjusted over all of a market."""
    found: list[Difference] = []
    of = {(place.method, place.market): one for place, one in said.items()}
    for market in markets:
        asked: dict[tuple[int, str, Score], str] = {}  # what is compared → with which row
        for table in (number for number in TITLES if number in experiment.request["tables"]):
            main = MAIN.get(table, "msmf")
            apart = {main} if table in SHOWN else {main, YARDSTICK}  # the yardstick is compared with once
            others = [row.key for row in held.rows if table in row.tables and row.key not in apart]
            pairs = [other for other in others if (main, market) in of and (other, market) in of]
            asked |= {(table, other, score): main for other in pairs for score in scores_of(table)}
        enough = max(resamples, FINE * len(asked))
        made = {
            (table, other, score): compared(of[main, market], of[other, market], score, seed=seed, resamples=enough)
            for (table, other, score), main in asked.items()
        }
        known = {key: one.p_value for key, one in made.items() if one.p_value is not None}
        adjusted = holm(known)
        found += [
            Difference(table=t, market=market, row=row, score=score, found=one, adjusted=adjusted.get((t, row, score)))
            for (t, row, score), one in made.items()
        ]
    return found


def sentences(results: Results) -> Iterator[str]:
    """Yield what became of the paper's claims: that its model beats every other row of every table."""
    for market in results.markets:
        own = [one for one in results.differences if one.market == market]
        told = {table: [one for one in own if one.table == table] for table in results.tables}
        if own and not any(one.verdict in ("better", "worse") for one in own):
            yield (
                f"{market}: in none of {len(own)} comparisons (p-values two-sided, Holm over all of them) is MSMF "
                "shown to be better or worse than another row."
            )
        else:
            yield from (f"{TITLES[table]}, {market}: {_said(results, held)}" for table, held in told.items() if held)
        yield from _beside_the_mean(results, market)


def _said(results: Results, own: Sequence[Difference]) -> str:
    titles = {row.key: row.title for row in results.held.rows}
    named: dict[str, list[str]] = {}
    for one in own:
        named.setdefault(one.verdict, []).append(f"{titles[one.row]} in {NAMES[one.score]}")
    shown = [
        f"MSMF is shown to be {word} than {', '.join(named[word])}." for word in ("better", "worse") if word in named
    ]
    rest = len(own) - sum(len(named.get(word, ())) for word in ("better", "worse"))
    if not shown:
        return f"MSMF is shown to be neither better nor worse than another row in any of {rest} comparisons."
    return " ".join([*shown, f"Of {rest} other comparisons it cannot be told."] if rest else shown)


def _beside_the_mean(results: Results, market: str) -> Iterator[str]:
    """Say how many rows forecast the return better than its training mean, which reads nothing."""
    rmse = {
        row.title: figure.value
        for row in results.held.rows
        if (figure := results.of(row.key, market).get("rmse")) and figure.value is not None
    }
    titles = {row.key: row.title for row in results.held.rows}
    if (mean := rmse.pop(titles.get(YARDSTICK, ""), None)) is not None and rmse:
        below = [title for title, value in rmse.items() if value is not None and value < mean]
        yield (
            f"{market}: {len(below)} of {len(rmse)} rows that forecast a return have a smaller RMSE than the training "
            f"mean, which reads nothing{': ' + ', '.join(below) if below else ''}."
        )


def _paper(rows: Sequence[Row]) -> dict[tuple[int, str], dict[Score, float]]:
    """Return the paper's own figures by table and row."""
    lines = {(int(line["table"].split()[0]), line["method"]): line for line in printed("msmf_tables.csv")}
    names = {"With MG gates": "MSMF", "Multi-task": "MSMF"}
    of = {(table, names.get(method, method)): line for (table, method), line in lines.items()}
    return {
        (table, row.key): {score: float(line[score]) for score in SCORES if line[score]}
        for row in rows
        for table in row.tables
        if row.same_as and (line := of.get((table, row.same_as)))
    }
