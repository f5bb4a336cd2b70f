"""What a person and a machine see of a finished run of many symbols: one table, a few sentences, or one JSON object."""

from __future__ import annotations

import json
import textwrap

from rich import box
from rich.table import Table
from rich.text import Text

from trader.config import as_mapping
from trader.report import ACCOUNT_ROWS, EXCESS_ROWS, WIDTH, bracketed, class_name, figure
from trader.universe_metrics import DecisionReport
from trader.universe_outcome import UniverseOutcome

DECISION_ROWS = (
    ("accuracy", "accuracy", "percent"),
    ("F1 of up", "f1", "ratio"),
    ("MCC", "mcc", "small"),
    ("rank IC, mean of sessions", "rank_ic", "small"),
    ("sessions with IC above 0", "hit_sessions", "percent"),
)


def as_json(outcome: UniverseOutcome) -> str:
    """Return the run as one JSON object: every figure as {value, low, high}, stages in seconds, where the ledger is."""
    made = outcome.forecasts
    return json.dumps(
        {
            "run": outcome.run,
            "settings": as_mapping(outcome.config)["run"],
            "universe": outcome.universe.name,
            "symbols": [member.symbol for member in outcome.universe],
            "sessions": len(made.sessions),
            "first_session": str(made.sessions[0]),
            "last_session": str(made.sessions[-1]),
            "decisions": outcome.decisions.to_json(),
            "account": outcome.report.to_json(),
            "rivals": {name: one.to_json() for name, one in outcome.rivals.items()},
            "stale_opens": outcome.trading.stale_opens,
            "pooled": made.pooled,
            "folds": len(made.folds),
            "folds_trained": sum(not fold.cached for fold in made.folds),
            "stages": outcome.stages,
            "notes": list(outcome.notes),
            "ledger": str(outcome.home.ledger.resolve()),
            "ledger_hash": outcome.ledger_hash,
        },
        indent=1,
        ensure_ascii=False,
    )


def figures(outcome: UniverseOutcome) -> Table:
    """Return the table of a run's figures, at most 100 columns wide, each with its 95 % interval."""
    run, made, said = outcome.config.run, outcome.forecasts, outcome.decisions
    title = (
        f"Run {outcome.run}: {run.model} on {outcome.universe.name} ({len(outcome.universe)} symbols), "
        f"news {run.news}, {class_name(run.strategy)}, {run.execution}\n"
        f"{len(made.sessions):,} sessions, {made.sessions[0]} to {made.sessions[-1]}; "
        f"{len(made.folds)} models, lookback {run.lookback}, seed {run.seed}"
    )
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, min_width=80
    )
    table.title_style = "bold"
    table.add_column("[95 % interval]", no_wrap=True)
    for name in (class_name(run.model), "Always Buy", *outcome.rivals):
        table.add_column(name, justify="right")
    table.add_row(Text(f"{said.decisions:,} decisions, {said.sessions:,} sessions", style="italic"))
    for label, name, style in DECISION_ROWS:
        rivals = (_cell(one, name, style).replace(" [", "\n[") for one in outcome.rivals.values())
        table.add_row(label, _cell(said, name, style), _cell(said, name, style, always_buy=True), *rivals)
    table.add_section()
    table.add_row(Text(f"Account, {run.execution}", style="italic"))
    for label, name, of, style in ACCOUNT_ROWS:
        beside = figure(outcome.report, name, "always_buy", style) if of == "net" else ""
        table.add_row(label, figure(outcome.report, name, of, style), beside)
    table.add_section()
    for label, name, style in EXCESS_ROWS:
        table.add_row(label, figure(outcome.report, name, "excess", style), "")
    return table


def _cell(report: DecisionReport, name: str, style: str, *, always_buy: bool = False) -> str:
    try:
        return bracketed(report.get(name, "always_buy" if always_buy else "signals"), style)
    except KeyError:
        return ""


def closing_lines(outcome: UniverseOutcome) -> list[str]:
    """Return what stands below the table: verdict, notes, definitions, times, the ledger, what to run next."""
    report, said, run = outcome.report, outcome.decisions, outcome.run
    last, symbol = outcome.forecasts.sessions[-1], outcome.universe.symbols[0].symbol
    paragraphs = [
        report.verdict,
        *outcome.notes,
        f"Decisions: {said.decisions:,} with a side and a known next close, on {said.sessions:,} sessions. Rank IC: "
        f"the mean over {said.ranked:,} sessions of Spearman's correlation, over symbols, of {said.score} and next "
        f"return. Intervals: stationary bootstrap of sessions, all symbols of one together, {said.resamples:,} "
        f"resamples, mean block {said.block_length} sessions, of the account {report.block_length}.",
        f"Sharpe = {report.sharpe_definition}; the excess is paired, on the same resampled days. Always Buy holds an "
        "equal share of each symbol. Exposure: long and short added up.",
        _stage_line(outcome),
    ]
    lines = [line for part in paragraphs for line in textwrap.wrap(part, WIDTH)]
    return [
        *lines,
        f"Ledger {outcome.home.ledger.resolve()}, run {run}, hash {outcome.ledger_hash[:16]}…",
        f"Next: python -m trader trades {run} --symbol {symbol}",
        f"      python -m trader why {run} {last} --symbol {symbol}",
    ]


def _stage_line(outcome: UniverseOutcome) -> str:
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in outcome.stages.items())
    folds = outcome.forecasts.folds
    trained = sum(not fold.cached for fold in folds)
    name = class_name(outcome.forecasts.model)
    return f"Seconds: {spent}. Models of {name}: {trained:,} trained now, {len(folds) - trained:,} cached."
