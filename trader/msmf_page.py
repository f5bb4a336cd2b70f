"""Write an MSMF experiment down: tables for the terminal, one long CSV file, one Markdown page.

Every figure stands with its 95 % interval, the paper's own beside it in parentheses, and a row without a figure says
why. Nothing is computed here: see ``trader.msmf_tables``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import textwrap

from rich import box
from rich.table import Table

from trader.experiment_page import asked_for, csv_of, fixed_settings
from trader.experiment_tables import Row
from trader.msmf_tables import MAIN, NAMES, TITLES, Difference, Results, scores_of, sentences
from trader.scores import Score

NONE = "–"
DIFFERENCES = "MSMF less each other row, on the same days and with as many seeds"


def terminal(results: Results) -> Iterator[Table | str]:
    """Yield tables and lines for a terminal of 100 columns: every table, what lies between, and what it means."""
    yield headline(results)
    for table in results.tables:
        for market in results.markets:
            yield f"{TITLES[table]}, {market}, {_days(results, market)}"
            yield _table(results, table, market)
    if told := [one for one in results.differences if one.verdict not in ("cannot be told", "no figure")]:
        yield f"{DIFFERENCES}, where an interval excludes 0; in percentage points (all of them: --csv, --markdown)"
        yield _differences(results, told)
    yield from paragraphs(results)


def headline(results: Results) -> str:
    """Say which experiment this is, on what news and days, and what a reader must know before any figure."""
    request = results.experiment.request
    spans = ", ".join(f"{market} {first} to {last}" for market, (first, last) in results.spans.items())
    quick = " A QUICK run: one seed and fewer settings." if request["quick"] else ""
    wire = " The wire is written from the day's own prices." if request["news"] == "wire" else ""
    return (
        f"Experiment {results.experiment.id}: MSMF, news {request['news']}, test days {spans or 'none yet'}, "
        f"walk-forward.{quick}{wire}"
    )


def _days(results: Results, market: str) -> str:
    days, symbols = results.days.get(market, 0), results.symbols.get(market, 1)
    return f"{days:,} test days" + (f" of {symbols} symbols" if symbols > 1 else "")


def entry(results: Results, table: int, row: Row, market: str, score: Score) -> tuple[str, str, str]:
    """Return a figure in percent, its interval, and the paper's own in parentheses; "" for what there is not."""
    paper = results.paper.get((table, row.key), {}).get(score)
    beside = f"({_percent(paper, score)})" if paper is not None else ""
    figure = results.of(row.key, market).get(score)
    if figure is None or figure.value is None:
        return NONE, "", beside
    if figure.low is None or figure.high is None:
        return _percent(figure.value, score), "", beside
    return _percent(figure.value, score), f"[{_percent(figure.low, score)}, {_percent(figure.high, score)}]", beside


def _percent(value: float, score: Score) -> str:
    return f"{value * 100:.{1 if score in ('accuracy', 'f1') else 3}f}"


def _table(results: Results, table: int, market: str) -> Table:
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    made.add_column("%, [95 %] (paper, other data)", no_wrap=True)
    for score in scores_of(table):
        made.add_column(NAMES[score], justify="right", no_wrap=True)
    for row in results.rows(table):
        if why := why_empty(results, row, market):
            short = textwrap.shorten(why, 30, placeholder=" …")
            made.add_row(f"{row.title}\n  {short}", *[NONE] * len(scores_of(table)))
            continue
        cells = [entry(results, table, row, market, score) for score in scores_of(table)]
        made.add_row(row.title, *(f"{value} {paper}".rstrip() + f"\n{interval}" for value, interval, paper in cells))
    return made


def _differences(results: Results, told: Sequence[Difference]) -> Table:
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    alone = len(results.markets) == 1  # its name stands above every table
    for at, name in enumerate(("table", "market", "row", "", "difference [95 %]", "p, Holm", "MSMF is")):
        if not (alone and name == "market"):
            made.add_column(name, justify="right" if at in (4, 5) else "left")
    for one in told:
        table, market, *rest = _words(results, one)
        made.add_row(table, *([] if alone else [market]), *rest)
    return made


def _words(results: Results, one: Difference) -> tuple[str, ...]:
    titles = {row.key: row.title for row in results.held.rows}
    return (str(one.table), one.market, titles[one.row], NAMES[one.score], _interval(one), _p(one), one.verdict)


def _interval(one: Difference) -> str:
    found = one.found
    if found.value is None:
        return NONE
    digits = 1 if one.score in ("accuracy", "f1") else 3
    if found.low is None or found.high is None:
        return _signed(found.value, digits)
    return f"{_signed(found.value, digits)} [{_signed(found.low, digits)}, {_signed(found.high, digits)}]"


def _signed(value: float, digits: int) -> str:
    shown = f"{value * 100:+.{digits}f}"
    return (shown.replace("-", "+") if float(shown) == 0 else shown).replace("-", "−")


def _p(one: Difference) -> str:
    return NONE if one.adjusted is None else f"{one.adjusted:.3f}"


def why_empty(results: Results, row: Row, market: str) -> str:
    """Return why a row has no figure on a market, or "" where it has one."""
    place = results.place(row.key, market)
    if results.of(row.key, market):
        return ""
    missing = results.experiment.facts.get("missing", {}).get(row.key, {}).get(market, "")
    return missing or (results.held.gaps.get(place, "not run") if place else "not run")


def paragraphs(results: Results) -> Iterator[str]:
    """Yield what stands below the tables, in plain sentences."""
    if results.held.gaps:
        yield "Not all cells are there yet: what follows is so far."
    yield from sentences(results)
    yield from gaps(results)
    yield budget(results)


def gaps(results: Results) -> Iterator[str]:
    """Yield a sentence for each row and market that lacks figures or seeds, with the reason."""
    for row in results.held.rows:
        for market in results.markets:
            place = results.place(row.key, market)
            if why := why_empty(results, row, market) or (results.held.gaps.get(place, "") if place else ""):
                yield f"{row.title}, {market}: {why}."


def budget(results: Results) -> str:
    """Say what was spent, what was chosen how, and how the figures are defined."""
    request = results.experiment.request
    asked, cap = request["settings"]["experiment"], request["settings"]["experiment"]["headlines_a_day"]
    spent, fixed = results.held.seconds, fixed_settings(request["settings"]["model"])
    return (
        f"{results.held.trained:,} different cells, "
        f"{f'{spent / 60:,.0f} minutes' if spent >= 90 else f'{spent:.0f} seconds'} of one core. "
        f"{f'At most {cap} headlines a day by hash of the text' if cap else 'All headlines'}; lookback "
        f"{asked['search_lookback']} sessions; one setting a network and market, the best of at most {asked['trials']} "
        f"by validation log loss of the first fold, then frozen, and taken over by MSMF's variants; SVM and random "
        f"forest choose theirs in each fold. Seeds: {asked['seeds']}, one where nothing is random. Walk-forward, "
        f"retrained every {asked['walk_step']} sessions, {asked['walk_mode']}. Table 4 takes the text of "
        f"{asked.get('missing_text', 0) * 100:.0f} % of the sessions away. MAPE is that of the close which the "
        f"forecast return implies, F1 that of the rises; a row that forecasts the return alone is said to rise where "
        f"P(up), from that return, is above a half. Intervals: stationary bootstrap over days."
        f"{fixed}"
    )


# CSV and Markdown

COLUMNS = (
    *("table", "method", "title", "market", "score", "value", "low", "high", "seed_sd", "paper"),
    *("less_msmf", "less_low", "less_high", "p_holm", "test_days", "symbols", "news", "quick", "why_not"),
)


def as_csv(results: Results) -> str:
    """Return every figure as one long CSV table, in shares of 1; ``less_msmf`` is MSMF's figure less the row's."""
    return csv_of(COLUMNS, _csv_rows(results))


def _csv_rows(results: Results) -> Iterator[list[object]]:
    about = asked_for(results.experiment)
    less = {(one.table, one.market, one.row, one.score): one for one in results.differences}
    for table in results.tables:
        for market in results.markets:
            size = [results.days.get(market, 0), results.symbols.get(market, 0)]
            for row in results.rows(table):
                why = why_empty(results, row, market)
                for score in scores_of(table):
                    figure = results.of(row.key, market).get(score)
                    own = [figure.value, figure.low, figure.high, figure.seed_sd] if figure else [None] * 4
                    one = less.get((table, market, row.key, score))
                    beside = [one.found.value, one.found.low, one.found.high, one.adjusted] if one else [None] * 4
                    paper = results.paper.get((table, row.key), {}).get(score)
                    start = [table, row.key, row.title, market, score]
                    reason = why or (figure.reason if figure else "")
                    yield [*start, *own, paper, *beside, *size, *about, reason]


def as_markdown(results: Results, title: str) -> str:
    """Return the whole experiment as one Markdown page."""
    parts = [
        f"# {title}",
        headline(results),
        "In percent, with the 95 % interval; in parentheses the paper's, on its own data, which it does not name: "
        "never mixed with ours. Signals, close to close.",
    ]
    if found := list(sentences(results)):
        if results.held.gaps:
            found.insert(0, "Not all cells are there yet: what follows is so far.")
        parts += ["## Claims", "\n".join(f"- {line}" for line in found)]
    for table in results.tables:
        parts.append(f"## {TITLES[table]}")
        for market in results.markets:
            parts += [f"### {market}, {_days(results, market)}", _markdown_table(results, table, market)]
    if results.differences:
        heads = ("table", "market", "row", "score", "difference, points [95 %]", "p, Holm", "MSMF is")
        rows = [f"| {' | '.join(_words(results, one))} |" for one in results.differences]
        parts += [f"## {DIFFERENCES}", "\n".join([f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *rows])]
        parts.append(
            "The p-values are two-sided, adjusted by Holm over all "
            f"{len(results.differences) // max(1, len(results.markets))} comparisons of a market."
        )
    parts += ["## What is not there, and what was spent", *gaps(results), budget(results), *_settings(results)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(results: Results, table: int, market: str) -> str:
    scores = scores_of(table)
    lines = [f"| row | {' | '.join(NAMES[score] for score in scores)} |", "|---|" + "---:|" * len(scores)]
    for row in results.rows(table):
        cells = [" ".join(filter(None, entry(results, table, row, market, score))) for score in scores]
        name = f"**{row.title}**" if row.key == MAIN.get(table, "msmf") else row.title
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _settings(results: Results) -> list[str]:
    chosen = results.experiment.facts.get("settings", {})
    lines = [
        f"| {row.title} | {market} | {', '.join(f'{k} {v}' for k, v in setting.items()) or 'the defaults'} |"
        for row in results.held.rows
        for market, setting in chosen.get(row.key, {}).items()
    ]
    if not lines:
        return []
    return ["Settings chosen on validation:", "\n".join(["| row | market | setting |", "|---|---|---|", *lines])]
