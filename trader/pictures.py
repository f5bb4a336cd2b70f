"""Draw what a decision read: its headlines by weight, and beside them which headline looked at which.

Upstream ``trader.explain``. matplotlib draws into the file without a screen; it is an extra, and imported here alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
import textwrap
from typing import TYPE_CHECKING, Any
import warnings

import numpy as np

from trader.errors import ConfigError, ModelError, StoreError
from trader.explain import Explained

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 10
LINE, LINES = 52, 2  # characters of a headline in one line, and how many lines
EVEN = 3  # the darkest colour stands for at least so many times an even share: a day of even shares stays pale
BAR, FOUND, QUIET = "#9db4cf", "#d9822b", "#ececec"


def draw(explained: Explained, path: Path, search: str | None = None) -> None:
    """Draw the headlines of largest weight as bars, and the pairs among them as a heat map; write it by its ending.

    search: words whose headlines come first and in a colour of their own (Explained.find).
    Where the model does not say who looked at whom, the bars stand alone.
    Raises ModelError where there is no weight to draw, ConfigError where matplotlib is not installed or cannot write
    such a file, StoreError where the file cannot be written.
    """
    figures = _figures()
    if explained.weights is None or not len(explained.weights):
        raise ModelError("no headline has a weight to be drawn", where=f"{explained.session} {explained.model_id}")
    found = explained.find(search) if search else []
    shown = _chosen(explained, found)
    paired = explained.pairs is not None and len(shown) > 1
    figure = figures.Figure(figsize=(13 if paired else 9, 1.7 + 0.44 * max(len(shown), 4)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    axes = figure.subplots(1, 2 if paired else 1, squeeze=False, width_ratios=(1.0, 1.15) if paired else None)[0]
    _title(figure, explained, search)
    _bars(axes[0], explained, shown, found)
    if paired:
        _heat(figure, axes[1], explained, shown)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # a sign that the font lacks is drawn as a box
            figure.savefig(path, dpi=140)
    except OSError as error:
        raise StoreError("the picture cannot be written", where=path, got=error.strerror) from error
    except ValueError as error:
        raise ConfigError(
            "no such kind of picture", where=path, got=path.suffix, expected=".png, .svg or .pdf"
        ) from error


def _figures() -> Any:
    try:
        from matplotlib import figure
    except ImportError as error:
        do = "pip install -c constraints.txt -e '.[pictures]'"
        raise ConfigError("a picture needs matplotlib, which is not installed", do=do) from error
    return figure


def _chosen(explained: Explained, found: Sequence[int]) -> list[int]:
    """Return the places to draw, largest weight first: those found, filled up with the heaviest others."""
    order = [int(at) for at in explained.order]
    wanted = {*list(found)[:SHOWN]}
    for at in order:
        if len(wanted) >= SHOWN:
            break
        wanted.add(at)
    return [at for at in order if at in wanted]


def _title(figure: Figure, explained: Explained, search: str | None) -> None:
    said = f"{explained.session}  {explained.symbol}:  P(up) {explained.p_up:.3f},  "
    said += f"{explained.signal.news_count:,} headlines"
    if search:
        said += f",  found with “{search}” in orange"
    figure.suptitle(said, x=0.01, ha="left", fontsize=12, fontweight="bold", parse_math=False)


def _bars(axes: Axes, explained: Explained, shown: Sequence[int], found: Sequence[int]) -> None:
    assert explained.weights is not None, "asked before"
    scaled = explained.scaled
    rank = {int(at): place for place, at in enumerate(explained.order, start=1)}
    lengths = [float(explained.weights[at]) if scaled is None else float(scaled[at]) for at in shown]
    rows = np.arange(len(shown))
    axes.barh(rows, lengths, color=[FOUND if at in found else BAR for at in shown], height=0.72)
    axes.set_yticks(rows, [_label(rank[at], explained.headlines[at]) for at in shown], fontsize=8)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)  # prices in dollars are no formulas
    for row, (at, length) in enumerate(zip(shown, lengths, strict=True)):
        share = f"{100 * explained.weights[at]:.2f} %"
        axes.text(length, row, f" {share}" if scaled is None else f" {length:.2f}  ({share})", va="center", fontsize=8)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, 1.35 * max(*lengths, 1e-9))
    if scaled is not None:
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel("weight" if scaled is None else "weight, scaled to 0 … 1 within the day", fontsize=9)
    axes.set_title("Headlines by weight (and share of the day's attention)", fontsize=10, loc="left")
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _label(rank: int, headline: str) -> str:
    lines = textwrap.wrap(f"{rank}. {headline}", LINE, max_lines=LINES, placeholder=" …") or [f"{rank}."]
    return "\n".join(lines)


def _heat(figure: Figure, axes: Axes, explained: Explained, shown: Sequence[int]) -> None:
    shares = explained.shares(shown)
    assert shares is not None, "asked before"
    percent = 100 * shares
    off = ~np.eye(len(shown), dtype=bool)
    masked = np.ma.masked_array(percent, ~off)
    even = 100 / len(explained.headlines) ** 2  # what each pair would have, were nobody looked at more than others
    top = max(float(percent[off].max()), EVEN * even)
    axes.set_facecolor(QUIET)  # a headline that looked at itself
    image = axes.imshow(masked, cmap="Blues", vmin=0, vmax=top, aspect="auto")
    rank = {int(at): place for place, at in enumerate(explained.order, start=1)}
    names = [str(rank[at]) for at in shown]
    axes.set_xticks(range(len(shown)), names, fontsize=8)
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    for row in range(len(shown)):
        for column in range(len(shown)):
            value = percent[row, column]
            dark = row != column and value > 0.6 * top
            colour = "white" if dark else "#333333"
            axes.text(column, row, _short(value), ha="center", va="center", fontsize=7, color=colour)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("Which made which matter (grey: by itself)", fontsize=10, loc="left")
    axes.set_xlabel("headline looked at, by rank", fontsize=9)
    axes.set_ylabel("… through headline", fontsize=9)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, aspect=28)
    bar.set_label("% of the decision's attention", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)


def _short(percent: float) -> str:
    """Write a small share in the few characters that a cell holds.

    >>> _short(12.3), _short(1.234), _short(0.0123), _short(0.0)
    ('12.3', '1.2', '.012', '0')
    """
    if percent >= 1:
        return f"{percent:.1f}"
    return f"{percent:.3f}".removeprefix("0") if percent >= 0.0005 else "0"
