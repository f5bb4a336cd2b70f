"""Boltzmann machines, restricted and stacked: a distribution over standardised features, learned by sampling.

``models.msmf.completion`` standardises, trains and asks them for what is missing. Letters:
    N training rows   B rows   V visible numbers   H hidden units

Source: Qin, "MSMF", eq. 1 (Restricted Boltzmann Machine) and its conclusion ("DBN"). The paper gives neither form nor
size nor training; decided here: Gaussian visible units of unit variance after standardising (Hinton and Salakhutdinov
2006), contrastive divergence (Hinton 2002), greedy layers (Hinton, Osindero and Teh 2006).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trader.errors import ConfigError

FIRST_WEIGHT = 0.01  # standard deviation of the first weights (Hinton 2010, section 8)
CALM_EPOCHS, CALM_MOMENTUM = 3, 0.5  # momentum is low while the first gradients are large (Hinton 2010, section 9)
LEAST_STEPS, LEAST_BATCH = 16, 8  # steps an epoch where rows are few, in batches no smaller than this


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionConfig:
    """What is chosen before training; ConfigError where a value cannot be used.

    hidden: H of each layer, bottom first. Continuous factors need many binary units: see docs/measured.md.
    """

    hidden: tuple[int, ...] = (512,)
    cd_steps: int = 1  # k of CD-k
    epochs: int = 40  # of the first fit
    refresh_epochs: int = 8  # of each later fit, which goes on from the present weights
    batch: int = 64  # rows a step; fewer where they would make less than LEAST_STEPS an epoch
    learning_rate: float = 0.01  # falls in a line to zero at the end of each fit; four times as much still holds
    momentum: float = 0.9
    weight_decay: float = 1e-4
    fill_steps: int = 10  # mean-field round trips; 5 filled the same within 0.3 %

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError("a layer needs hidden units", where="completion", got=self.hidden, expected="1 or more")
        for name in ("cd_steps", "epochs", "refresh_epochs", "batch", "fill_steps"):
            if (got := getattr(self, name)) < 1:
                raise ConfigError(f"{name} is too small", where="completion", got=got, expected="at least 1")
        if not (self.learning_rate > 0 and 0 <= self.momentum < 1 and self.weight_decay >= 0):
            got = f"learning_rate {self.learning_rate}, momentum {self.momentum}, weight_decay {self.weight_decay}"
            raise ConfigError("this is no descent", where="completion", got=got, expected="> 0, 0 ≤ … < 1, ≥ 0")


class Rbm(nn.Module):
    """V visible numbers and H binary hidden units that see each other, but not themselves.

    gaussian: E(v, h) = ½|v − a|² − b·h − v W h, so P(h|v) = σ(b + v W) and v|h ~ N(a + W h, 1), and the free energy is
        F(v) = −log Σ_h exp(−E(v, h)) = ½|v − a|² − Σ_j log(1 + exp(b_j + (v W)_j)).
    else (Bernoulli): −a·v in place of ½|v − a|², and P(v|h) = σ(a + W h); v are probabilities.

    Unit variance is a choice, too: in a trial with a learnt one CD filled four of five planted sets worse, one alike.
    Buffers, not parameters: no optimiser of the network around it may move them.
    """

    weight: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor

    def __init__(self, V: int, H: int, *, gaussian: bool = True) -> None:
        super().__init__()
        self.gaussian = gaussian
        self.register_buffer("weight", torch.zeros(V, H))  # W
        self.register_buffer("visible_bias", torch.zeros(V))  # a
        self.register_buffer("hidden_bias", torch.zeros(H))  # b

    def energy(self, v: Tensor, h: Tensor) -> Tensor:
        """(B, V), (B, H) → (B,) E(v, h) in nats."""
        return self._field(v) - h @ self.hidden_bias - ((v @ self.weight) * h).sum(1)

    def free_energy(self, v: Tensor) -> Tensor:
        """(B, V) → (B,) F(v) in nats; lower is likelier, up to a constant of the weights."""
        return self._field(v) - F.softplus(self.hidden_bias + v @ self.weight).sum(1)

    def hidden(self, v: Tensor) -> Tensor:
        """(B, V) → (B, H) P(h = 1 | v)."""
        return torch.sigmoid(torch.addmm(self.hidden_bias, v, self.weight))

    def visible(self, h: Tensor) -> Tensor:
        """(B, H) → (B, V) E(v | h)."""
        mean = torch.addmm(self.visible_bias, h, self.weight.T)
        return mean if self.gaussian else torch.sigmoid(mean)

    def draw_visible(self, h: Tensor, generator: torch.Generator) -> Tensor:
        """(B, H) → (B, V) a sample of v | h."""
        mean = self.visible(h)
        if not self.gaussian:
            return coins(mean, generator)
        return mean + torch.randn(mean.shape, generator=generator, device=mean.device)

    def start(self, v: Tensor, generator: torch.Generator) -> None:
        """Draw the first weights; the visible bias begins at the mean of the data (N, V)."""
        mean = v.mean(0)
        self.visible_bias.copy_(mean if self.gaussian else torch.logit(mean.clamp(0.01, 0.99)))
        self.weight.copy_(FIRST_WEIGHT * torch.randn(self.weight.shape, generator=generator, device=v.device))
        self.hidden_bias.zero_()

    def learn(self, v: Tensor, config: CompletionConfig, epochs: int, generator: torch.Generator) -> None:
        """Descend by CD-k over data (N, V) from the present weights."""
        state = (self.weight, self.visible_bias, self.hidden_bias)
        speed = [torch.zeros_like(tensor) for tensor in state]
        batch = min(config.batch, max(LEAST_BATCH, len(v) // LEAST_STEPS))
        for epoch in range(epochs):
            rate = config.learning_rate * (1 - epoch / epochs)
            momentum = config.momentum if epoch >= CALM_EPOCHS else min(CALM_MOMENTUM, config.momentum)
            order = torch.randperm(len(v), generator=generator, device=v.device)
            for part in order.tensor_split(max(1, len(v) // batch)):
                step = self._uphill(v[part], config.cd_steps, generator)
                step[0].sub_(self.weight, alpha=config.weight_decay)
                for tensor, moving, uphill in zip(state, speed, step, strict=True):
                    tensor.add_(moving.mul_(momentum).add_(uphill, alpha=rate))

    def _uphill(self, v: Tensor, cd_steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return the way up for W, a and b: ⟨−∂E⟩ over the data (B, V) minus that over samples k steps away.

        Centred: W moves with the mean of v under a half-lit h held still, not with a (Montavon and Müller 2012).
        Otherwise all H units pull on that mean together, and a rate twice the best one runs away.
        """
        p = seen = self.hidden(v)  # (B, H)
        for _ in range(cd_steps):
            dream = self.draw_visible(coins(p, generator), generator)  # (B, V)
            p = self.hidden(dream)  # (B, H)
        weight = (v.T @ (seen - 0.5) - dream.T @ (p - 0.5)) / len(v)  # (V, H)
        return weight, (v - dream).mean(0) - weight.sum(1) / 2, (seen - p).mean(0)

    def _field(self, v: Tensor) -> Tensor:
        return (v - self.visible_bias).square().sum(1) / 2 if self.gaussian else -v @ self.visible_bias


class Dbn(nn.Module):
    """A stack of RBMs: the lowest Gaussian–Bernoulli, the others Bernoulli–Bernoulli, each over the one below.

    With one layer it is that RBM. The layers are learned from the bottom up, each on the hidden probabilities of the
    ready ones; then the two topmost layers of units are the RBM, and those below them are read downwards only.
    """

    def __init__(self, V: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        widths = zip((V, *hidden), hidden, strict=False)
        self.layers = nn.ModuleList(Rbm(below, H, gaussian=at == 0) for at, (below, H) in enumerate(widths))

    @property
    def stack(self) -> list[Rbm]:
        """The layers, bottom first."""
        return [layer for layer in self.layers if isinstance(layer, Rbm)]

    def learn(self, x: Tensor, config: CompletionConfig, fresh: bool, generator: torch.Generator) -> None:
        """Train greedily on standardised rows (N, V); ``fresh``: from new weights, else from the present ones."""
        for layer in self.stack:
            if fresh:
                layer.start(x, generator)
            layer.learn(x, config, config.epochs if fresh else config.refresh_epochs, generator)
            x = layer.hidden(x)  # (N, H)

    def round_trip(self, x: Tensor) -> Tensor:
        """(B, V) → (B, V): means all the way up, and down again."""
        for layer in self.stack:
            x = layer.hidden(x)
        for layer in reversed(self.stack):
            x = layer.visible(x)
        return x

    def wander(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(B, V) → the means of v that a sampled way up and down leads to, and a sample of them; (B, V) each."""
        for layer in self.stack:
            x = coins(layer.hidden(x), generator)
        for layer in reversed(self.stack[1:]):
            x = layer.draw_visible(x, generator)
        lowest = self.stack[0]
        return lowest.visible(x), lowest.draw_visible(x, generator)


def coins(p: Tensor, generator: torch.Generator) -> Tensor:
    """Draw 1 with probability p, else 0; same shape."""
    return (torch.rand(p.shape, generator=generator, device=p.device) < p).to(p.dtype)
