"""The command that draws a chart as a model sees it; ``trader.cli`` reads its words."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from trader.errors import ConfigError
from trader.terminal import opened_store, settings, write

LARGEST_SCALE = 32


def add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: Callable[[argparse.ArgumentParser], None]
) -> None:
    """Add ``chart SYMBOL SESSION``; ``shared`` adds the words that every command takes."""
    parser = commands.add_parser("chart", help="draw prices as a model sees them, into a PNG")
    shared(parser)
    parser.add_argument("symbol", help="sp500, nasdaq, or a symbol you imported")
    parser.add_argument("session", help="the chart's last session, YYYY-MM-DD")
    parser.add_argument("--sessions", type=int, default=20, metavar="N", help="5, 20 (default) or 60")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to, a .png")
    parser.add_argument("--no-volume", action="store_true", help="prices over the whole height")
    parser.add_argument("--no-average", action="store_true", help="leave out the moving average")
    parser.add_argument("--scale", type=int, default=6, metavar="N", help="side of a pixel in the file (default 6)")
    parser.set_defaults(command=chart)


def chart(options: argparse.Namespace) -> None:
    """Draw one chart and write it; say what it shows."""
    from models.charts import ChartConfig
    from trader.charting import chart_of, png
    from trader.config import day_of

    if options.out.suffix.lower() != ".png":
        raise ConfigError("no such kind of picture", where=options.out, got=options.out.suffix, expected=".png")
    if not 1 <= options.scale <= LARGEST_SCALE:
        raise ConfigError("no such scale", where="--scale", got=options.scale, expected=f"1 to {LARGEST_SCALE}")
    how = ChartConfig(options.sessions, moving_average=not options.no_average, volume=not options.no_volume)
    config = settings(options)[0].with_run(market=options.symbol)
    session = day_of(options.session, end=False)
    with opened_store(options) as store:
        made = chart_of(store, config, session, how)
    average = f"moving average of {how.sessions} closes" if how.moving_average else "no moving average"
    volume = "volume" if how.volume else "no volume"
    print(f"{options.symbol} {made.first} to {made.last}: {how.sessions} sessions, {average}, {volume}.")
    print(f"{how.width} × {how.height} pixels, each drawn {options.scale} × {options.scale}.")
    write(options.out, png(made.image, options.scale))
