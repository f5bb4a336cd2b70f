"""Sums over days, as they are and over resampled days, for ``trader.metrics``: the stationary bootstrap.

Blocks are drawn within windows, never across their joins, and all columns share each draw, so that differences between
series are paired. Letters: n days, W windows, R resamples, K columns.
Source: Politis and Romano 1994, by ``arch.bootstrap``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Columns = dict[str, Floats]  # by name, (n,) each
Sums = Mapping[str, Columns]  # by series, then by name, (R, W) each


def starts(lengths: Sequence[int]) -> NDArray[np.int64]:
    """Return (W,) the first day of each window."""
    return np.cumsum([0, *lengths[:-1]])


def window_sums(columns: Mapping[str, Columns], lengths: Sequence[int]) -> Sums:
    """Return each column's sum over each window, (1, W)."""
    first = starts(lengths)
    return {
        key: {name: np.add.reduceat(values, first)[None] for name, values in group.items()}
        for key, group in columns.items()
    }


def resampled_sums(
    columns: Mapping[str, Columns], lengths: Sequence[int], block: int, seed: int, resamples: int
) -> Sums:
    """Return each column's sum over the resampled days of each window, (R, W); draw r is the same for all columns."""
    from arch.bootstrap import StationaryBootstrap  # half a second to import

    names = [(key, name) for key, group in columns.items() for name in group]
    matrix = np.column_stack([columns[key][name] for key, name in names])  # (n, K)
    sums = np.empty((resamples, len(lengths), len(names)))  # (R, W, K)
    for window, (start, length) in enumerate(zip(starts(lengths), lengths, strict=True)):
        part = matrix[start : start + length]  # (n_w, K)
        bootstrap = StationaryBootstrap(block, np.arange(length), seed=np.random.default_rng([seed, window]))
        for draw, ((drawn,), _) in enumerate(bootstrap.bootstrap(resamples)):
            sums[draw, window] = np.bincount(drawn, minlength=length) @ part  # how often each day was drawn: (n_w,)
    found: dict[str, dict[str, Floats]] = {key: {} for key in columns}
    for column, (key, name) in enumerate(names):
        found[key][name] = sums[:, :, column]
    return found


def block_length(series: Sequence[Floats], lengths: Sequence[int]) -> int:
    """Return the mean block in days: the largest of Politis and White's optima, at most a third of a window.

    Source: Patton, Politis and White 2009, by ``arch.bootstrap``.
    """
    from arch.bootstrap import optimal_block_length

    varying = [values for values in series if np.ptp(values) > 0]
    longest = max(1, min(lengths) // 3)
    if longest == 1 or not varying:
        return 1
    optima = optimal_block_length(np.column_stack(varying))["stationary"].to_numpy()
    return int(np.clip(np.ceil(np.nanmax(np.append(optima, 1.0))), 1, longest))
