"""The whole of MSMF (figure 1): encoders → completion → fusion → gates, experts, towers; and its loss (eq. 6).

The language model is not part of it. ``models.msmf.model`` lays out the days and trains it.
Letters as in ``models.msmf.config``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.msmf.completion import DbnCompletion, MeanFilling, RbmCompletion, ZeroFilling
from models.msmf.config import MsmfConfig
from models.msmf.encoders import ImageEncoder, NumericEncoder, TextEncoder
from models.msmf.fusion import FUSIONS, Fused
from models.msmf.pairs import PairedModalities
from models.msmf.tasks import Shares, Tasks

COMPLETIONS = {
    "rbm": RbmCompletion,
    "dbn": DbnCompletion,
    "mean": MeanFilling,
    "zero": ZeroFilling,
    "forward": MeanFilling,  # where there is nothing to carry forward
}


class Samples(NamedTuple):
    """B decisions as the network reads them; what is missing is zeros here and false in ``present``.

    numbers: (B, t, F) standardised.   image: (B, 1, height, width) 0 … 1.   day: (B,) and window: (B, t) positions of
    the decision's day and of its window's in the texts of U days.   news: (B, t) which of them have any.
    present: (B, C).
    """

    numbers: Tensor
    image: Tensor
    day: Tensor
    window: Tensor
    news: Tensor
    present: Tensor


class Said(NamedTuple):
    """outputs: (B, T) the logit of P(up) and the standardised return, as far as asked.   fused, shares: how."""

    outputs: Tensor
    fused: Fused
    shares: Shares


class Network(nn.Module):
    """MSMF. D: width of the language model; features: F of the market.

    Between encoders and completion a decision is C + E blocks of H: its features, and for an RBM or a DBN the numbers
    themselves, zeros to fill the E-th block. An encoder keeps of the numbers what the tasks ask for; what they tell of
    a missing modality may be something else.
    """

    return_moments: Tensor

    def __init__(self, config: MsmfConfig, D: int, features: int) -> None:
        super().__init__()
        c, H, reads = config, config.hidden, config.modalities
        self.config = config
        self.numeric = NumericEncoder(features, c.lookback, H, c.dropout) if "numeric" in reads else None
        self.image = ImageEncoder(c.chart.height, c.chart.width, H, c.dropout) if "image" in reads else None
        self.text = TextEncoder(D, c.lookback, H, c.heads, c.dropout) if "text" in reads else None
        numbers = c.lookback * features if "numeric" in reads and c.completion in ("rbm", "dbn") else 0
        self.beside = -(-numbers // H)  # E
        self.completion = COMPLETIONS[c.completion]((len(c.features) + self.beside) * H, block=H)
        self.completion.requires_grad_(False)  # it learns by contrastive divergence, not from the loss
        self.fusion = FUSIONS[c.fusion](c)
        self.tasks = Tasks(c)
        self.pairs = PairedModalities(c) if c.pair_rank and len(reads) > 1 else None
        self.register_buffer("return_moments", torch.tensor([0.0, 1.0]))  # mean and std of the training returns
        if c.weighting == "uncertainty":
            self.log_variance = nn.Parameter(torch.zeros(len(c.asked)))

    def features(self, x: Samples, attended: Tensor, means: Tensor) -> Tensor:
        """Encode B decisions → (B, C + E, H), zeros where missing. attended, means: (U, H) texts by day (eq. 2)."""
        made: dict[tuple[str, str], Tensor] = {}
        if self.numeric is not None:
            made["numeric", "fine"], made["numeric", "coarse"] = self.numeric(x.numbers)  # (B, H) each
        if self.image is not None:
            made["image", "fine"], made["image", "coarse"] = self.image(x.image)  # (B, H) each
        if self.text is not None:
            made["text", "fine"], made["text", "coarse"] = self.text(attended[x.day], means[x.window], x.news)
        stacked = torch.stack([made[feature] for feature in self.config.features], 1)  # (B, C, H)
        if self.beside:
            flat = x.numbers.flatten(1)  # (B, t·F)
            flat = F.pad(flat, (0, self.beside * self.config.hidden - flat.shape[1]))  # (B, E·H)
            stacked = torch.cat([stacked, flat.view(len(flat), self.beside, -1)], 1)  # (B, C + E, H)
        return stacked * self._there(x.present)[:, :, None]

    def fill(self, x: Tensor, present: Tensor) -> Tensor:
        """Fill what is missing (eq. 1): (B, C + E, H), present (B, C) → features (B, C, H).

        A modality is filled from the whole ones. What is left of itself, as the days before of a text, looks other than
        it does in the complete rows that the completion learned from, where it holds the decision's day too.
        """
        C = present.shape[1]
        own = x[:, :C]
        if bool(present.all()):
            return own
        each = self._there(self.whole(present))[:, :, None].expand_as(x).flatten(1)  # (B, (C + E)·H)
        filled: Tensor = self.completion.fill(x.flatten(1), each).view_as(x)
        return torch.where(present[:, :, None], own, filled[:, :C])

    def whole(self, present: Tensor) -> Tensor:
        """(B, C) → (B, C) which features are there with all scales of their modality."""
        names = [feature.modality for feature in self.config.features]
        alike = torch.tensor([[one == other for other in names] for one in names], device=present.device)  # (C, C)
        return (present[:, None, :] | ~alike).all(2)

    def away(self, x: Tensor) -> Tensor:
        """Filled features (B, C, H) → (B, C) how far from the training mean, in deviations; a training day: about 1."""
        standard, known = self.completion.standard, x.flatten(1)  # (B, C·H)
        rest = standard.mean[known.shape[1] :].expand(len(x), -1)  # (B, E·H)
        white: Tensor = standard(torch.cat([known, rest], 1)).view(len(x), -1, x.shape[2])
        return white[:, : x.shape[1]].square().mean(2).sqrt()

    def _there(self, present: Tensor) -> Tensor:
        """(B, C) → (B, C + E): the numbers are there where their features are."""
        if not self.beside:
            return present
        at = [feature.modality for feature in self.config.features].index("numeric")
        return torch.cat([present, present[:, at : at + 1].expand(-1, self.beside)], 1)

    def forward(self, x: Tensor, present: Tensor) -> Said:
        """Filled features (B, C, H), present (B, C) → Said."""
        fused = self.fusion(x)
        outputs, shares = self.tasks(x, present, fused)
        if self.pairs is not None:
            outputs = outputs + self.pairs(x)  # (B, T)
        return Said(outputs, fused, shares)

    def loss(self, said: Tensor, label: Tensor, standard_return: Tensor) -> Tensor:
        """Eq. 6 but for Ω, which is AdamW's: Σ_t α_t L_t of outputs (B, T); label, standard_return: (B,).

        Movement: log loss. Return: Huber on the standardised return.
        """
        c, total = self.config, said.new_zeros(())
        weights = {"movement": c.movement_weight, "return": c.return_weight}
        for t, task in enumerate(c.asked):
            if task == "movement":
                one = F.binary_cross_entropy_with_logits(said[:, t], label)
            else:
                one = F.huber_loss(said[:, t], standard_return)
            if c.weighting == "uncertainty":  # α_t = exp(−s_t), with s_t charged for
                total = total + weights[task] * (one * (-self.log_variance[t]).exp() + 0.5 * self.log_variance[t])
            else:
                total = total + weights[task] * one
        return total

    def told(self, outputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Outputs (B, T) → P(up) (B,), expected return (B,) or None.

        Where the return alone was asked, P(up) is that of a normal return around the forecast, as wide as in training.
        """
        asked = self.config.asked
        mean, std = self.return_moments.double()
        expected = None
        if "return" in asked:
            expected = outputs[:, asked.index("return")].double() * std + mean  # (B,)
        if "movement" in asked:
            return outputs[:, asked.index("movement")].double().sigmoid(), expected
        assert expected is not None, "one of the tasks is asked"
        return 0.5 * (1 + torch.erf(expected / (std * math.sqrt(2)))), expected


def carried_forward(x: Tensor, present: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Give each missing feature its last value of the sessions before.

    x: (R, C, H) and present: (R, C) of R sessions.   rows: (back + 1, B) for each decision its sessions among them,
    oldest first, its own the last. Returns features (B, C, H) and what is there now (B, C); what was not there in any
    of those sessions stays missing.
    """
    filled, there = x[rows[-1]], present[rows[-1]]  # (B, C, H), (B, C)
    for before in rows[:-1].flip(0):  # the nearest first
        take = ~there & present[before]  # (B, C)
        filled, there = torch.where(take[:, :, None], x[before], filled), there | take
    return filled, there
