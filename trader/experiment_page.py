"""Write an experiment down: tables for the terminal, one long CSV file, one Markdown page.

Every figure stands with its 95 % interval, the paper's own beside it in parentheses, and a place without a figure says
why. Nothing is computed here: see ``trader.experiment_tables`` and ``trader.claims``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
import csv
import io
import textwrap

from rich import box
from rich.table import Table

from trader.cells import ExperimentRow
from trader.claims import Claim
from trader.experiment_claims import Verdicts
from trader.experiment_tables import PROTOCOLS, Place, Results, Row
from trader.search import SearchResult

WIDTH = 100
TITLES = {
    1: "Table 1: language models",
    2: "Table 2: methods",
    3: "Table 3: what each input is worth",
}
LABELS = {
    "accuracy": "accuracy, %",
    "pnl": "PnL, sum of side × return",
    "sharpe": "Sharpe ratio, annual",
    "correlation": "correlation with the return",
}
NOT_MEASURED = "–"
TABLE_4 = (
    "Table 4, which headline weighed how much, is asked of a backtest on the same news: "
    "`python -m trader why RUN SESSION --search WORD --pairs 5 --picture FILE`."
)


def written(value: float, metric: str) -> str:
    """Write a figure as a person reads it.

    >>> written(-0.1234, "pnl"), written(0.5204, "accuracy"), written(1.5, "sharpe")
    ('−0.123', '52.0', '1.50')
    """
    if metric == "accuracy":
        return f"{value * 100:.1f}"  # its label says %
    shown = f"{value:.{3 if metric == 'pnl' else 2}f}"
    return (shown.lstrip("-") if float(shown) == 0 else shown).replace("-", "−")


def entry(results: Results, table: int, place: Place, metric: str) -> tuple[str, str, str]:
    """Return a figure, its interval, and the paper's own in parentheses; "" for what there is not."""
    paper = results.paper.get((table, place), {}).get(metric)
    beside = f"({written(paper, metric)})" if paper is not None else ""
    figure = results.figures.get(place, {}).get(metric)
    if figure is None or figure.value is None:
        return NOT_MEASURED, "", beside
    if figure.low is None or figure.high is None:
        return written(figure.value, metric), "", beside
    low, high = (written(bound, metric) for bound in (figure.low, figure.high))
    return written(figure.value, metric), f"[{low}, {high}]", beside


def why_empty(results: Results, row: Row, market: str) -> str:
    """Return why a row has no figure on a market at all, or "" where it has one."""
    if any(place.method == row.key and place.market == market for place in results.figures):
        return ""
    missing = results.experiment.facts.get("missing", {}).get(row.key, {}).get(market, "")
    waiting = [why for place, why in results.gaps.items() if (place.method, place.market) == (row.key, market)]
    return missing or (waiting[0] if waiting else "not run")


def tables_of(results: Results) -> list[int]:
    """Return the numbers of the paper's tables that the experiment has a row of, Always Buy aside."""
    asked = [number for number in (1, 2, 3) if number in results.experiment.request["tables"]]
    return [number for number in asked if {row.key for row in rows_of(results, number)} - {"always_buy"}]


def title_of(results: Results, table: int, row: Row) -> str:
    """Return how a table names a row: among language models FININ stands for the one that it read through."""
    if table == 1 and row.key == "finin":
        return f"FININ, {results.experiment.request['settings']['text']['model']}"
    return row.title


def rows_of(results: Results, table: int) -> list[Row]:
    """Return the rows of a table, in its order."""
    return [row for row in results.rows if table in row.tables]


def terminal(results: Results, verdicts: Verdicts, metric: str = "sharpe") -> Iterator[Table | str]:
    """Yield tables and lines for a terminal of 100 columns: one metric of every table, then what it means."""
    yield headline(results)
    if results.target == "same_day":
        yield "Reading: the day's news against the SAME day's return, its own bar masked; no trading signal"
        yield reading_table(results)
    else:
        for number in tables_of(results):
            for market in results.markets:
                for protocol in results.protocols:
                    days = results.days(market, protocol)
                    yield f"{TITLES[number]}, {market}, {PROTOCOLS[protocol]}, {days:,} test days"
                    yield table_of(results, number, market, protocol, metric)
    if verdicts.differences:
        yield "Paired on the same days of the walk-forward, with as many seeds of the one as of the other"
        yield differences_table(results, verdicts)
    yield from paragraphs(results, verdicts)


def headline(results: Results) -> str:
    """Say what is shown: which experiment, on what, of what; and what a reader must know before any figure."""
    request, spans = results.experiment.request, results.experiment.facts.get("spans", {})
    span = ", ".join(f"{market} {first} to {last}" for market, (first, last) in spans.items())
    quick = " A QUICK run: fewer seeds and settings." if request["quick"] else ""
    target = "the same day's return" if results.target == "same_day" else "the next day's return"
    wire = " The wire is written from the day's own prices"
    wire += ": to read it says nothing of reading news." if results.target == "same_day" else "."
    what = f"Experiment {results.experiment.id}, {target}: news {request['news']}, {span or 'nothing read yet'}."
    return f"{what}{quick}{wire if request['news'] == 'wire' else ''}"


def table_of(results: Results, number: int, market: str, protocol: str, metric: str) -> Table:
    """Return one metric of one of the paper's tables on one market by one protocol: methods × lookbacks."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(f"{LABELS[metric]}\n[95 %] (paper)", no_wrap=True)
    for lookback in results.lookbacks:
        table.add_column(f"{lookback} {'day' if lookback == 1 else 'days'}", justify="right", no_wrap=True)
    for row in rows_of(results, number):
        if why := why_empty(results, row, market):
            table.add_row(
                f"{row.title}\n  {textwrap.shorten(why, 24, placeholder=' …')}",
                *[NOT_MEASURED] * len(results.lookbacks),
            )
            continue
        cells = [entry(results, number, Place(row.key, market, t, protocol), metric) for t in results.lookbacks]
        title = title_of(results, number, row)
        table.add_row(title, *(f"{value} {paper}".rstrip() + f"\n{interval}" for value, interval, paper in cells))
    return table


def reading_table(results: Results) -> Table:
    """Return the same-day figures: how well each method reads the day's news against the day's own return."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("[95 % interval]", no_wrap=True)
    for market in results.markets:
        table.add_column(f"{market}\ncorrelation", justify="right", no_wrap=True)
        table.add_column("\nright signs, %", justify="right", no_wrap=True)
    for row in results.rows:
        cells = []
        for market in results.markets:
            place = Place(row.key, market, 1, "walkforward")
            for metric in ("correlation", "accuracy"):
                value, interval, _ = entry(results, 0, place, metric)
                cells.append(f"{value}\n{interval}")
        table.add_row(row.title, *cells)
    return table


def differences_table(results: Results, verdicts: Verdicts) -> Table:
    """Return what lies between FININ and each other method, or between each reader and the sketch, with intervals."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for at, heading in enumerate(DIFFERENCES[results.target]):
        table.add_column(heading, justify="right" if at > 1 else "left")
    for row in difference_rows(results, verdicts):
        table.add_row(*row)
    return table


def difference_rows(results: Results, verdicts: Verdicts) -> Iterator[tuple[str, ...]]:
    """Yield market, method, difference with interval, and which of the two it favours."""
    titles = {row.key: row.title for row in results.rows}
    for one in verdicts.differences:
        other = one.against if results.target == "next_day" else one.method
        value, low, high = one.found.value, one.found.low, one.found.high
        if value is None or low is None or high is None:
            yield one.market, titles[other], NOT_MEASURED, one.found.reason
            continue
        figures = f"{value:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−")
        yield one.market, titles[other], figures, "above 0" if low > 0 else "below 0" if high < 0 else "cannot be told"


DIFFERENCES = {
    "next_day": ("market", "FININ less", "Sharpe ratio, mean over lookbacks [95 %]", "interval"),
    "same_day": ("market", "method", "correlation less the ridge sketch's [95 %]", "interval"),
}


def paragraphs(results: Results, verdicts: Verdicts) -> Iterator[str]:
    """Yield what stands below the tables, in plain sentences."""
    if results.target == "same_day":
        yield "This measures reading. It is no trading signal: the return is over when the news is read."
    elif short := windows_held(results):
        yield short
    if results.gaps:
        yield "Not all cells are there yet: what follows is so far."
    yield from (said(claim) for claim in verdicts.claims)
    yield from verdicts.sentences
    yield from gaps(results)
    if 4 in results.experiment.request["tables"]:
        yield TABLE_4
    yield budget(results)


def said(claim: Claim) -> str:
    """Say what became of a claim, and on which lookbacks it was tested."""
    at = ", ".join(map(str, claim.lookbacks))
    return f"{claim.sentence} Tested at t = {at}." if claim.statistic is not None else claim.sentence


def gaps(results: Results) -> Iterator[str]:
    """Yield a sentence for each row and market that lacks figures or seeds, with the reason."""
    for row in results.rows:
        for market in results.markets:
            if why := why_empty(results, row, market):
                yield f"{row.title}, {market}: {why}."
                continue
            lacking = {place: why for place, why in results.gaps.items() if place[:2] == (row.key, market)}
            for why in dict.fromkeys(lacking.values()):
                at = [f"t = {p.lookback} ({PROTOCOLS[p.protocol]})" for p, reason in lacking.items() if reason == why]
                yield f"{row.title}, {market}, {', '.join(at)}: {why}."
            undefined = {
                f"{metric}: {figure.reason}"
                for place, metrics in results.figures.items()
                if place[:2] == (row.key, market)
                for metric, figure in metrics.items()
                if figure.value is None and metric != "correlation"
            }
            for reason in sorted(undefined):
                yield f"{row.title}, {market}, where there is no figure: {reason}."


def windows_held(results: Results) -> str:
    """Say how many of the paper's windows the span holds, where it holds fewer than asked for."""
    asked = int(results.experiment.request["settings"]["experiment"]["windows"])
    held = {market: len(_windows(results, market)) for market in results.markets}
    few = [f"{count} on {market}" for market, count in held.items() if count < asked]
    return f"Of the {asked} windows asked for the span holds {', '.join(few)}." if few else ""


def fixed_settings(fixed: Mapping[str, Mapping[str, object]]) -> str:
    """Name the models' settings that the config fixed, for they shape the figures; "" where there are none."""
    words = [f"{name} {', '.join(f'{k} {v}' for k, v in keys.items())}" for name, keys in fixed.items() if keys]
    return f" Fixed by the config: {'; '.join(words)}." if words else ""


def budget(results: Results) -> str:
    """Say in one paragraph what was spent, and what was chosen how."""
    request = results.experiment.request
    settings, prefer = request["settings"]["experiment"], request["settings"]["inputs"]["prefer"]
    lookback = 1 if results.target == "same_day" else settings["search_lookback"]
    minutes = f"{results.seconds / 60:,.0f} minutes" if results.seconds >= 90 else f"{results.seconds:.0f} seconds"
    cap = settings["headlines_a_day"]
    most = f"At most {cap} headlines a day by hash of the text" if cap else "All headlines"
    most += f", those with one of the words {', '.join(prefer)} first" if prefer else ""
    ablations = settings.get("ablation_seeds", settings["seeds"])  # before there was that key: as many
    tried = f"{settings['trials']} ({settings['finin_trials']} for FININ)"
    walk = f"every {settings['walk_step']} sessions, {settings['walk_mode']}"
    return (
        f"{results.trained:,} different cells, {minutes} of one core. {most}; one setting a method and market, the "
        f"best of at most {tried} on the validation of the first window or fold at lookback {lookback}, then frozen; "
        f"seeds: {settings['seeds']} for FININ, {ablations} for its ablations, 1 for the others; walk-forward "
        f"retrained {walk}. "
        f"Figures are of the signals, close to close, without costs. Intervals: stationary bootstrap within windows."
        f"{fixed_settings(request['settings']['model'])}"
    )


def search_table(found: SearchResult, limit: int) -> Table:
    """Return the best settings of a search, lowest validation loss first; those that failed last, with their reason."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in (*found.best, "log loss, nats", "seconds"):
        table.add_column(str(name), justify="right")
    ranked = sorted(found.trials, key=lambda trial: (trial.value is None, trial.value or 0.0, trial.number))
    for trial in ranked[:limit]:
        shown = trial.reason if trial.value is None else f"{trial.value:.4f}"
        table.add_row(*(str(trial.settings[key]) for key in found.best), shown, f"{trial.seconds:.1f}")
    return table


# CSV and Markdown

COLUMNS = (
    *("method", "title", "market", "lookback", "protocol", "metric", "value", "low", "high", "seed_sd"),
    *("test_days", "paper", "news", "quick", "why_not"),
)


def csv_of(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a CSV table."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(columns)
    lines.writerows(rows)
    return out.getvalue()


def asked_for(experiment: ExperimentRow) -> list[str]:
    """Return what every row of a CSV table says of the experiment: its news, and whether it was a quick run."""
    return [experiment.request["news"], "quick" if experiment.request["quick"] else ""]


def as_csv(results: Results) -> str:
    """Return every figure as one long CSV table."""
    return csv_of(COLUMNS, _csv_rows(results))


def _csv_rows(results: Results) -> Iterator[list[object]]:
    about = asked_for(results.experiment)
    for row in results.rows:
        for market in results.markets:
            if why := why_empty(results, row, market):
                yield [row.key, row.title, market, *[""] * 9, *about, why]
        for place in (place for place in results.figures if place.method == row.key):
            for metric, figure in results.figures[place].items():
                paper = next(
                    (results.paper[n, place].get(metric) for n in (2, 1, 3) if (n, place) in results.paper), None
                )
                values = [figure.value, figure.low, figure.high, figure.seed_sd]
                days = len(results.positions[place].next_return)
                why = figure.reason or results.gaps.get(place, "")
                yield [place.method, row.title, *place[1:], metric, *values, days, paper, *about, why]
        for place, why in results.gaps.items():
            if place.method == row.key and place not in results.figures:
                yield [place.method, row.title, *place[1:], *[""] * 7, *about, why]


def as_markdown(results: Results, verdicts: Verdicts, title: str) -> str:
    """Return the whole experiment as one Markdown page."""
    parts = [f"# {title}", headline(results), *(_markdown_intro(results)), *_markdown_claims(results, verdicts)]
    if results.target == "same_day":
        parts += _markdown_reading(results)
    else:
        for number in tables_of(results):
            parts.append(f"## {TITLES[number]}")
            for market in results.markets:
                for protocol in results.protocols:
                    for metric in ("sharpe", "accuracy", "pnl"):
                        parts += _markdown_table(results, number, market, protocol, metric)
    if verdicts.differences:
        heads = DIFFERENCES[results.target]
        lines = [f"| {' | '.join(row)} |" for row in difference_rows(results, verdicts)]
        title = "FININ against each of the others" if results.target == "next_day" else "Against the ridge sketch"
        note = "Paired on the same days of the walk-forward, with as many seeds of the one as of the other."
        parts += [f"## {title}", note, "\n".join([f"| {' | '.join(heads)} |", "|---|---|---:|---|", *lines])]
    if 4 in results.experiment.request["tables"]:
        parts.append(TABLE_4)
    parts += ["## What is not there, and what was spent", *gaps(results), budget(results), *_markdown_settings(results)]
    return "\n\n".join(parts) + "\n"


def _markdown_intro(results: Results) -> Sequence[str]:
    if results.target == "same_day":
        return [
            "How well each method reads: the day's news against the same day's return, the day's own bar masked, "
            "walk-forward out of sample. No trading signal: the return is over when the news is read."
        ]
    return [
        "Our figure with its 95 % interval; in parentheses the paper's, on its own data, never mixed with ours. "
        "Signals, close to close, no costs. " + windows_held(results)
    ]


def _windows(results: Results, market: str) -> Sequence[int]:
    for place, held in results.positions.items():
        if (place.market, place.protocol) == (market, "windows"):
            return list(held.windows)
    return []


def _markdown_claims(results: Results, verdicts: Verdicts) -> list[str]:
    found = [*(said(claim) for claim in verdicts.claims), *verdicts.sentences]
    found = ["Not all cells are there yet: what follows is so far.", *found] if found and results.gaps else found
    return ["## Claims", "\n".join(f"- {line}" for line in found)] if found else []


def _markdown_table(results: Results, number: int, market: str, protocol: str, metric: str) -> list[str]:
    days = results.days(market, protocol)
    head = f"### {market}, {PROTOCOLS[protocol]} ({days:,} test days): {LABELS[metric]}"
    lines = ["| method | " + " | ".join(f"t = {t}" for t in results.lookbacks) + " |"]
    lines.append("|---|" + "---:|" * len(results.lookbacks))
    for row in rows_of(results, number):
        cells = []
        for lookback in results.lookbacks:
            value, interval, paper = entry(results, number, Place(row.key, market, lookback, protocol), metric)
            cells.append(" ".join(part for part in (value, interval, paper) if part))
        lines.append(f"| {title_of(results, number, row)} | " + " | ".join(cells) + " |")
    return [head, "\n".join(lines)]


def _markdown_reading(results: Results) -> list[str]:
    lines = ["| method | " + " | ".join(f"{m}: correlation | right signs, %" for m in results.markets) + " |"]
    lines.append("|---|" + "---:|---:|" * len(results.markets))
    for row in results.rows:
        cells = []
        for market in results.markets:
            for metric in ("correlation", "accuracy"):
                value, interval, _ = entry(results, 0, Place(row.key, market, 1, "walkforward"), metric)
                cells.append(f"{value} {interval}".rstrip())
        lines.append(f"| {row.title} | " + " | ".join(cells) + " |")
    days = ", ".join(f"{market} {results.days(market, 'walkforward'):,}" for market in results.markets)
    return [f"## Reading ({days} test days)", "\n".join(lines)]


def _markdown_settings(results: Results) -> list[str]:
    lines = [
        f"| {row.title} | {market} | {', '.join(f'{k} {v}' for k, v in setting.items()) or 'the defaults'} |"
        for row in results.rows
        for market, setting in results.experiment.facts.get("settings", {}).get(row.key, {}).items()
    ]
    tried = results.experiment.facts.get("tried", {})
    fell = [
        f"{row.title}, {market}: {asked - done} of {asked} settings failed and were not chosen from."
        for row in results.rows
        for market, (done, asked) in tried.get(row.key, {}).items()
        if done < asked
    ]
    return [
        *fell,
        "Settings chosen on validation:",
        "\n".join(["| method | market | setting |", "|---|---|---|", *lines]),
    ]
