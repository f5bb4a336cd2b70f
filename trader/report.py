"""What a person and a machine see of a finished run: one table, a few sentences, or one JSON object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import textwrap
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from trader.config import as_mapping
from trader.events import Signal

if TYPE_CHECKING:
    from trader.metrics import Metric
    from trader.outcome import Outcome
    from trader.universe_contents import Contents

WIDTH = 100
DASH = "–"


def as_json(outcome: Outcome) -> str:
    """Return the run as one JSON object: every figure as {value, low, high}, stages in seconds, where the ledger is."""
    signals = outcome.forecasts.signals
    return json.dumps(
        {
            "run": outcome.run,
            "settings": as_mapping(outcome.config)["run"],
            "sessions": len(signals),
            "first_session": str(signals[0].session),
            "last_session": str(signals[-1].session),
            **outcome.report.to_json(),
            "rivals": {
                name: {one.name: {"value": one.value, "low": one.low, "high": one.high} for one in figures}
                for name, figures in outcome.rivals.items()
            },
            "stale_opens": outcome.trading.stale_opens,
            "folds": len(outcome.forecasts.folds),
            "folds_trained": sum(not fold.cached for fold in outcome.forecasts.folds),
            "stages": outcome.stages,
            "bare_backtrader_seconds": outcome.bare_seconds,
            "notes": list(outcome.notes),
            "ledger": str(outcome.home.ledger.resolve()),
            "ledger_hash": outcome.ledger_hash,
        },
        indent=1,
        ensure_ascii=False,
    )


def figures(outcome: Outcome) -> Table:
    """Return the table of a run's figures, at most 100 columns wide, each with its 95 % interval."""
    run, report = outcome.config.run, outcome.report
    signals = outcome.forecasts.signals
    title = (
        f"Run {outcome.run}: {run.model} on {run.market}, news {run.news}, {run.strategy}, {run.execution}\n"
        f"{len(signals):,} sessions, {signals[0].session} to {signals[-1].session}; "
        f"{len(outcome.forecasts.folds)} models, lookback {run.lookback}, seed {run.seed}"
    )
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, min_width=80
    )
    table.title_style = "bold"
    table.add_column("[95 % interval]", no_wrap=True)
    table.add_column(class_name(run.model), justify="right")
    table.add_column("Always Buy", justify="right")
    for name in outcome.rivals:
        table.add_column(name, justify="right")
    _signal_rows(table, outcome)
    for label, name, of, style in ACCOUNT_ROWS:
        row = [
            label,
            figure(report, name, of, style),
            figure(report, name, "always_buy", style) if of == "net" else "",
        ]
        table.add_row(*row, *("" for _ in outcome.rivals))
    table.add_section()
    for label, name, style in EXCESS_ROWS:
        table.add_row(label, figure(report, name, "excess", style), "", *("" for _ in outcome.rivals))
    return table


# label, name, of whom, how it is written
_SIGNALS = (
    ("accuracy", "accuracy", "percent"),
    ("paper PnL, a sum", "paper_pnl", "ratio"),
    ("paper Sharpe", "paper_sharpe", "ratio"),
)
ACCOUNT_ROWS = (
    ("PnL net, thousands", "pnl", "net", "thousands"),
    ("Sharpe, net", "sharpe", "net", "ratio"),
    ("annual return, net", "annual_return", "net", "percent"),
    ("annual volatility", "annual_volatility", "net", "percent"),
    ("max drawdown", "max_drawdown", "net", "percent"),
    ("PnL gross, thousands", "pnl", "gross", "thousands"),
    ("Sharpe, gross", "sharpe", "gross", "ratio"),
    ("costs paid, thousands", "costs", "net", "thousands"),
    ("turnover a year", "turnover", "net", "times"),
    ("exposure, mean", "exposure", "net", "percent"),
    ("hit rate, sessions held", "hit_rate", "net", "percent"),
)
EXCESS_ROWS = (
    ("excess Sharpe", "excess_sharpe", "ratio"),
    ("excess annual return", "excess_return", "percent"),
)


def _signal_rows(table: Table, outcome: Outcome) -> None:
    table.add_row(Text("Signals, close to close", style="italic"))
    for label, name, style in _SIGNALS:
        cells = [figure(outcome.report, name, of, style) for of in ("signals", "always_buy")]
        beside = (_of_list(rival, name, style) for rival in outcome.rivals.values())
        table.add_row(label, *cells, *beside)
    table.add_section()
    table.add_row(Text(f"Account, {outcome.config.run.execution}", style="italic"))


def figure(report: Any, name: str, of: str, style: str) -> str:
    """Return a report's figure with its interval, "" where it has none of this name."""
    try:
        metric = report.get(name, of)
    except KeyError:
        return ""
    return bracketed(metric, style)


def _of_list(metrics: Sequence[Metric], name: str, style: str) -> str:
    found = [bracketed(metric, style) for metric in metrics if metric.name == name]
    return found[0].replace(" [", "\n[") if found else DASH


def bracketed(metric: Metric, style: str) -> str:
    """Return a figure with its interval behind it, where it has one."""
    if metric.low is None or metric.high is None:
        return _written(metric.value, style)
    low, high = (_written(bound, style).removesuffix(" %") for bound in (metric.low, metric.high))
    return f"{_written(metric.value, style)} [{low}, {high}]"


def _written(value: float | None, style: str) -> str:
    """Write a figure as a person reads it.

    >>> _written(0.5312, "percent"), _written(-12345.6, "money"), _written(None, "ratio")
    ('53.1 %', '−12,346', '–')
    """
    if value is None:
        return DASH
    written = {
        "percent": f"{value * 100:.1f} %",
        "ratio": f"{value:.2f}",
        "small": f"{value:.4f}",
        "money": f"{value:,.0f}",
        "thousands": f"{value / 1000:,.1f}",
        "times": f"{value:.1f} ×",
    }[style]
    return written.replace("-", "−")


def closing_lines(outcome: Outcome) -> list[str]:
    """Return what stands below the table: verdict, notes, definitions, times, the ledger, what to run next."""
    report, run = outcome.report, outcome.run
    last = outcome.forecasts.signals[-1].session
    paragraphs = [
        report.verdict,
        *outcome.notes,
        f"Sharpe = {report.sharpe_definition}. Intervals: stationary bootstrap, {report.resamples:,} resamples, mean "
        f"block {report.block_length} sessions; the excess is paired, on the same resampled days.",
        _stage_line(outcome),
    ]
    lines = [line for part in paragraphs for line in textwrap.wrap(part, WIDTH)]
    return [
        *lines,
        f"Ledger {outcome.home.ledger.resolve()}, run {run}, hash {outcome.ledger_hash[:16]}…",
        f"Next: python -m trader trades {run}",
        f"      python -m trader why {run} {last}",
    ]


def _stage_line(outcome: Outcome) -> str:
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in outcome.stages.items())
    trained = sum(not fold.cached for fold in outcome.forecasts.folds)
    cached = len(outcome.forecasts.folds) - trained
    name = class_name(outcome.forecasts.model)
    line = f"Seconds: {spent}. Models of {name}: {trained} trained now, {cached} cached."
    if outcome.bare_seconds is None:
        return line
    return (
        f"{line} Bare backtrader over the same bars took {outcome.bare_seconds:.2f} s, "
        f"our broker {outcome.stages['broker'] / outcome.bare_seconds:.2f} times that."
    )


def plain_table(names: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> Table:
    """Return a table of any rows; ``right`` numbers the columns that are set to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for at, name in enumerate(names):
        table.add_column(name, justify="right" if at in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell) if cell is not None else DASH) for cell in row))
    return table


def universe_table(rows: Sequence[Contents]) -> Table:
    """Return what is held for each symbol of a universe, one a row."""
    cells = [
        (
            row.symbol,
            f"{row.bars:,}",
            row.first,
            row.last,
            row.gaps,
            f"{row.headlines:,}",
            row.news_sessions,
            row.outside,
        )
        for row in rows
    ]
    names = ("symbol", "bars", "first", "last", "gaps", "headlines", "sessions\nwith news", "outside\nits bars")
    return plain_table(names, cells, right=(1, 4, 5, 6, 7))


def runs_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the list of runs, newest first."""
    cells = [
        (
            row["id"],
            row["status"],
            (row["started_utc"] or "")[:16].replace(" ", "\n"),
            f"{row['market']}\n{row['news']}",
            f"{class_name(row['model'])}\n{class_name(row['strategy'])}",
            row["sessions"],
            f"{row['traded_from']}\n{row['traded_to']}" if row["traded_from"] else DASH,
            _with_interval(row["sharpe"], row["sharpe_low"], row["sharpe_high"]),
        )
        for row in rows
    ]
    names = ("run", "status", "started\n(UTC)", "market\nnews", "model\nstrategy", "days", "traded", "Sharpe, net")
    return plain_table(names, cells, right=(0, 5, 7))


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    interval = "" if low is None or high is None else f"\n[{_written(low, 'ratio')}, {_written(high, 'ratio')}]"
    return _written(value, "ratio") + interval


def class_name(name: str) -> str:
    """Return the short name of a part: a user's ``package.module:Class`` is shown as Class."""
    return name.rpartition(":")[2]


def trades_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return orders with what became of them, oldest first."""
    cells = [
        (
            row["ref"],
            row["decided"],
            row["filled"],
            row["symbol"],
            f"{row['size']:+,.4f}",
            _number(row["price"], ",.2f"),
            _number(row["commission"], ",.2f"),
            _number(row["slippage_cost"], ",.2f"),
            row["status"] + (f": {row['reason']}" if row["reason"] else ""),
        )
        for row in rows
    ]
    names = ("order", "decided", "filled", "symbol", "size", "price", "comm.", "slippage", "status")
    return plain_table(names, cells, right=(0, 4, 5, 6, 7))


def _number(value: float | None, style: str) -> str:
    return DASH if value is None else format(value, style)


def decision_line(signal: Signal) -> str:
    """Say a decision in one line: market, side, P(up), the expected return where there is one, and the model."""
    assert signal.p_up is not None, "an abstention decides nothing"
    side = {1: "long", -1: "short", 0: "no side"}[signal.side]
    expected = ""
    if signal.expected_return is not None:
        expected = f"expected return {100 * signal.expected_return:+.3f} %, ".replace("-", "−")
    return f"{signal.session} {signal.symbol}: {side}, P(up) {signal.p_up:.4f}, {expected}model {signal.model_id}"


def why_lines(signal: Signal) -> list[str]:
    """Return a session's decision and its headlines by weight, as lines of at most 100 columns."""
    if signal.p_up is None:
        return [f"{signal.session} {signal.symbol}: no decision ({signal.reason}); the position was kept."]
    lines = [decision_line(signal)]
    if not signal.top:
        read = f"{signal.news_count:,} headlines; this model does not weigh them."
        return [*lines, read if signal.news_count else "No headline that session."]
    lines.append(
        f"{signal.news_count:,} headlines; the attention is spread as over {signal.effective_news:.1f} equal ones. "
        f"The {len(signal.top)} of largest weight:"
    )
    lines.append("weight  × mean  headline")
    for headline, weight in signal.top:
        first, *others = textwrap.wrap(headline, WIDTH - 16) or [""]
        lines.append(f"{weight:6.4f}  {weight * signal.news_count:5.2f}  {first}")
        lines += [f"{'':16}{more}" for more in others]
    return lines
