"""Sums over days, as they are and over resampled days, for ``trader.metrics`` and ``trader.comparison``: the bootstrap.

Blocks are drawn within windows, never across their joins, and all columns share each draw, so that differences between
series are paired. Letters: n days, W windows, R resamples, K columns.
Source: Politis and Romano 1994, by ``arch.bootstrap``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Columns = dict[str, Floats]  # by name, (n,) each
Sums = Mapping[str, Columns]  # by series, then by name, (R, W) each

FEWEST = 8  # days; of fewer, arch's choice of a block asks for autocorrelations at lags beyond them, and fails


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
    """Return each column's sum over the resampled days of each window, (R, W); draw r is the same for all columns.

    Equal columns have equal sums, bit for bit.
    """
    found = {key: {name: np.empty((resamples, len(lengths))) for name in group} for key, group in columns.items()}
    for window, (start, length) in enumerate(zip(starts(lengths), lengths, strict=True)):
        counts = _counts(length, block, seed, window, resamples).astype(np.float64)  # (R, n_w)
        for key, group in columns.items():
            for name, values in group.items():  # one product a column: in a matrix product rounding depends on place
                found[key][name][:, window] = counts @ values[start : start + length]
    return found


@lru_cache(maxsize=64)
def _counts(length: int, block: int, seed: int, window: int, resamples: int) -> NDArray[np.uint16]:
    """Return (R, n_w) how often each draw holds each day. Kept: an experiment's methods share a window's days."""
    from arch.bootstrap import StationaryBootstrap  # half a second to import

    bootstrap = StationaryBootstrap(block, np.arange(length), seed=np.random.default_rng([seed, window]))
    counts = np.empty((resamples, length), dtype=np.uint16)
    for draw, ((drawn,), _) in enumerate(bootstrap.bootstrap(resamples)):
        counts[draw] = np.bincount(drawn, minlength=length)
    return counts


def block_length(series: Sequence[Floats], lengths: Sequence[int]) -> int:
    """Return the mean block in days: the largest of Politis and White's optima, at most a third of a window.

    Source: Patton, Politis and White 2009, by ``arch.bootstrap``.
    """
    from arch.bootstrap import optimal_block_length

    varying = [values for values in series if np.ptp(values) > 0]
    longest = max(1, min(lengths) // 3)
    if longest == 1 or not varying or len(varying[0]) < FEWEST:
        return 1
    optima = optimal_block_length(np.column_stack(varying))["stationary"].to_numpy()
    return int(np.clip(np.ceil(np.nanmax(np.append(optima, 1.0))), 1, longest))


def widening(lengths: Sequence[int], block: int) -> float:
    """Return the factor ≥ 1 by which draws must be spread about the estimate, to make up for short windows.

    Each window's draws lie around its own mean, so they lose 1/n_w of the variance in blocks of one day, and about
    2 · block / n_w in longer ones: from 49 days in blocks of 5 a fifth, and tests would reject too often. The variance
    kept, mean over windows, is computed for independent days; at least a tenth is taken to be kept.
    Source: Politis and Romano 1994, lemma 1, with the expected autocovariances of independent days, −σ²/n_w.
    """
    kept = []
    for length in lengths:
        lags = np.arange(1, length)
        weights = (1 - lags / length) * (1 - 1 / block) ** lags
        kept.append(1 - (1 + 2 * weights.sum()) / length)
    return float(max(np.mean(kept), 0.1) ** -0.5)


def superior_ability(
    gains: Floats, lengths: Sequence[int], block: int, seed: int, resamples: int
) -> tuple[float, float, float]:
    """Return Hansen's p-values (lower, consistent, upper) that no column of gains (n, K) has a mean above 0.

    Each p-value is (1 + draws above the best) / (1 + resamples). Columns must vary.
    Source: Hansen 2005, by ``arch.bootstrap``, with the days drawn within windows. Its version 8 does not studentise,
    so columns come here in units of their standard deviation.
    """
    from arch.bootstrap import SPA

    units = gains / gains.std(axis=0, ddof=1)
    test = SPA(np.zeros(len(units)), -units, block_size=block, reps=resamples, seed=seed)  # it takes losses
    test.bootstrap = _WithinWindows(units, lengths, block, seed)
    test.compute()
    lower, consistent, upper = ((1 + resamples * share) / (1 + resamples) for share in test.pvalues)
    return float(lower), float(consistent), float(upper)


class _WithinWindows:
    """Draw rows window by window, where ``SPA`` would draw blocks across their joins."""

    def __init__(self, rows: Floats, lengths: Sequence[int], block: int, seed: int) -> None:
        wider = widening(lengths, block)
        parts = np.split(rows, starts(lengths)[1:])
        self._parts = [part.mean(axis=0) + (part - part.mean(axis=0)) * wider for part in parts]
        self._block, self._seed = block, seed

    def bootstrap(self, resamples: int) -> Iterator[tuple[tuple[Floats], dict[str, Floats]]]:
        """Yield drawn rows (n, K), as arch's own bootstraps do."""
        from arch.bootstrap import StationaryBootstrap

        draws = [
            StationaryBootstrap(self._block, part, seed=np.random.default_rng([self._seed, window])).bootstrap(
                resamples
            )
            for window, part in enumerate(self._parts)
        ]
        for drawn in zip(*draws, strict=True):
            yield (np.concatenate([rows for (rows,), _ in drawn]),), {}
