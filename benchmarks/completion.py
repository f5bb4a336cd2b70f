"""Fill planted features whose best possible filling is known, by each completion of models.msmf.completion.

    python -m benchmarks.completion

Prints RMSE over the missing features of 1,000 rows that were not trained on, as a share of mean filling's and of the
optimum's, and the share of the possible gain, (mean² − ours²) / (mean² − optimum²): 0 is mean filling, 1 the optimum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import math
import time

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor

from models.msmf.boltzmann import CompletionConfig
from models.msmf.completion import DbnCompletion, RbmCompletion

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Planted:
    """Rows to learn from (N, V); rows to fill (B, V), their mask, and the best filling from the true law, (B, V).

    block: how many features side by side come or are missing together; 1 where each does by itself.
    """

    train: Floats
    truth: Floats
    present: NDArray[np.bool_]
    optimum: Floats
    block: int = 1

    def rmse(self, filled: Floats) -> float:
        return math.sqrt(np.square(filled - self.truth)[~self.present].mean())

    @property
    def mean_rmse(self) -> float:
        return self.rmse(np.broadcast_to(self.train.mean(axis=0), self.truth.shape))

    @property
    def optimal_rmse(self) -> float:
        return self.rmse(self.optimum)

    def gain(self, rmse: float) -> float:
        """Return the share of the possible gain in mean square."""
        worst, best = self.mean_rmse**2, self.optimal_rmse**2
        return (worst - rmse**2) / (worst - best)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return train, truth and present as the completions take them."""
        return torch.tensor(self.train).float(), torch.tensor(self.truth).float(), torch.tensor(self.present)


def mixture(spread: float, N: int = 2000, B: int = 1000, K: int = 8, V: int = 64, seed: int = 0) -> Planted:
    """Mix K Gaussians of unit noise, centres ``spread`` apart; another half of each row is missing."""
    rng = np.random.default_rng(seed)
    centres, share = rng.normal(0, spread, (K, V)), rng.dirichlet(np.full(K, 5.0))
    train, truth = (centres[rng.choice(K, n, p=share)] + rng.normal(size=(n, V)) for n in (N, B))
    present = rng.permuted(np.tile(np.arange(V) < V // 2, (B, 1)), axis=1)
    far = np.square(truth[:, None] - centres) * present[:, None]  # (B, K, V)
    odds = np.log(share) - far.sum(axis=2) / 2  # (B, K)
    odds = np.exp(odds - odds.max(axis=1, keepdims=True))
    return Planted(train, truth, present, odds / odds.sum(axis=1, keepdims=True) @ centres)


def blocks(
    noise: float, heavy: bool = False, N: int = 2000, B: int = 1000, L: int = 4, D: int = 32, seed: int = 0
) -> Planted:
    """Drive three blocks of D features by L shared factors; one whole block of each row is missing.

    heavy: factors and noise from Student's t with 3 degrees of freedom, not from the normal law. The optimum is then
    the best LINEAR filling.
    """
    rng = np.random.default_rng(seed)
    loading = rng.normal(0, 0.5, (L, 3 * D))

    def draw(shape: tuple[int, int]) -> Floats:
        return rng.standard_t(3, shape) if heavy else rng.normal(size=shape)

    train, truth = (draw((n, L)) @ loading + noise * draw((n, 3 * D)) for n in (N, B))
    block = rng.integers(0, 3, B)
    present = np.repeat(np.arange(3), D) != block[:, None]  # (B, V)
    covariance = loading.T @ loading + noise**2 * np.eye(3 * D)
    return Planted(train, truth, present, linear_filling(truth, present, np.zeros(3 * D), covariance), D)


def crowded(N: int = 800, B: int = 400, D: int = 32, seed: int = 0) -> Planted:
    """Two blocks of D features that share one factor; the second one is missing.

    The first is full of eight factors of its own: the shared one is about a thousandth of its variance.
    """
    rng = np.random.default_rng(seed)
    loading = np.zeros((9, 2 * D))
    loading[:8, :D] = rng.normal(size=(8, D))
    loading[8] = np.concatenate([0.1 * rng.normal(size=D), rng.normal(size=D)])
    noise = np.repeat([0.02, 0.3], D)
    train, truth = (rng.normal(size=(n, 9)) @ loading + noise * rng.normal(size=(n, 2 * D)) for n in (N, B))
    present = np.tile(np.arange(2 * D) < D, (B, 1))
    covariance = loading.T @ loading + np.diag(noise**2)
    return Planted(train, truth, present, linear_filling(truth, present, np.zeros(2 * D), covariance), D)


def linear_filling(truth: Floats, present: NDArray[np.bool_], mean: Floats, covariance: Floats) -> Floats:
    """Fill by the conditional mean of a Gaussian with these moments."""
    filled = truth.copy()
    for mask in np.unique(present, axis=0):
        rows = (present == mask).all(axis=1)
        slopes = np.linalg.solve(covariance[np.ix_(mask, mask)], covariance[np.ix_(mask, ~mask)])
        filled[np.ix_(rows, ~mask)] = mean[~mask] + (truth[np.ix_(rows, mask)] - mean[mask]) @ slopes
    return filled


SETS: dict[str, Callable[[], Planted]] = {
    "8 Gaussians in 64, centres 1 apart, half missing": lambda: mixture(1.0),
    "8 Gaussians in 64, centres 2 apart, half missing": lambda: mixture(2.0),
    "3 blocks of 32, 4 factors, noise 0.7, one block missing": lambda: blocks(0.7),
    "the same, noise 0.3": lambda: blocks(0.3),
    "the same, noise 0.7, Student t(3)": lambda: blocks(0.7, heavy=True),
    "2 blocks of 32, the shared factor small in one, the other missing": crowded,
}
MODELS: tuple[tuple[str, Callable[[int, int], DbnCompletion]], ...] = (
    ("RBM 512, the default", lambda V, block: RbmCompletion(V, block=block)),
    ("RBM 512, features by themselves", lambda V, _: RbmCompletion(V)),
    ("RBM 256", lambda V, block: RbmCompletion(V, CompletionConfig(hidden=(256,)), block=block)),
    ("DBN 512–256", lambda V, block: DbnCompletion(V, block=block)),
    ("DBN 512–512", lambda V, block: DbnCompletion(V, CompletionConfig(hidden=(512, 512)), block=block)),
)


def main() -> None:
    for name, draw in SETS.items():
        planted = draw()
        train, truth, present = planted.tensors()
        worst, best, V = planted.mean_rmse, planted.optimal_rmse, train.shape[1]
        print(f"{name}: mean filling {worst:.3f}, optimum {best:.3f}")
        linear = planted.rmse(
            linear_filling(planted.truth, planted.present, planted.train.mean(axis=0), np.cov(planted.train.T))
        )
        rows = [("Gaussian measured on the same rows", linear, "")]
        for called, made in MODELS:
            model, begun = made(V, planted.block), time.process_time()
            model.fit(train, seed=0)
            took = f"fitted in {time.process_time() - begun:.1f} CPU s"
            rows.append((called, planted.rmse(model.fill(truth, present).double().numpy()), took))
            generator = torch.Generator().manual_seed(0)
            drawn = model.fill(truth, present, steps=100, generator=generator).double().numpy()
            rows.append((f"{called}, 100 Gibbs steps", planted.rmse(drawn), ""))
        for called, rmse, took in rows:
            shares = f"of mean {rmse / worst:.3f}   of optimum {rmse / best:.3f}   gain {planted.gain(rmse):.3f}"
            print(f"    {called:36s} {shares}   {took}", flush=True)


if __name__ == "__main__":
    main()
