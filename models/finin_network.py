"""The network of FININ and what is chosen before it is trained; ``models.finin`` feeds it with Days and trains it.

Source: Wang, Cohen, Ma, "Modeling News Interactions and Influence for Financial Market Prediction",
Findings of EMNLP 2024, arXiv 2410.10614; equation numbers below are theirs.

Read top to bottom: the configuration, then data fusion encoder → influence quantifier → prediction head.
A day is encoded once, whatever the number of windows it lies in.

Letters, beside those of models.base (S F M N D B t H):
    A attention heads   K width of one head's query, key and value   E width of an encoded day: 2H, or H without news
    O outputs: the logit of P(up), then one for each auxiliary target

What the paper leaves open, and what is done here:
    activations          GELU, with dropout, between the linear layers of every MLP; none after the last
    heads and widths     heads need not divide the width: each head has the whole width K (projections to A·K)
    news–news attention  r^(f) = r^(e) + attention(LayerNorm(r^(e))); no feed-forward after it
    market–news          no residual: the market state goes to the head by itself; the A·K values are mapped to H
    weights shown        the mean over heads, which still sums to 1
    scales               market features standardised on the training days and cut at ±5 (a crash is rare, not 20 σ);
                         embeddings as ``text_scale`` says
    a day without news   a learned vector in the place of r_d^(f)
    training             at most ``train_headlines`` of a day, drawn anew each epoch; forecasts read all of them

Every deviation from the paper is a switch of FininConfig; benchmarks/planted.py shows what each is worth. The defaults
are those that find the planted rule: like headlines look at each other from the start (skip, alike_start, sharpness),
what one learns from another decides how much it counts (gate), the market's query starts without a preference, and
the head adds the days up instead of learning 2tH numbers by heart (head_layers).
"""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trader.errors import ConfigError

CHOICES = {
    "head": ("mlp", "cnn", "lstm"),
    "schedule": ("constant", "cosine"),
    "text_scale": ("one", "layer_norm", "centred", "standardised"),
    "norm": ("post", "pre", "none"),
}
AT_LEAST = {
    **dict.fromkeys(("lookback", "layers", "heads", "epochs", "patience", "batch_days", "horizon"), 1),
    **dict.fromkeys(("train_headlines", "pretrain_epochs", "head_layers"), 0),
    **dict.fromkeys(("weight_decay", "text_weight_decay", "return_weight", "horizon_weight", "volatility_weight"), 0.0),
}
ABOVE_ZERO = ("learning_rate", "clip", "sharpness")
SHARES = ("dropout", "headline_dropout", "text_dropout", "warm_up", "average")


@dataclass(frozen=True, slots=True, kw_only=True)
class FininConfig:
    """What is chosen before training; ConfigError where a value cannot be used.

    The paper selects layers, hidden, heads and qkv on validation; it states no optimiser: those defaults are ours,
    set for the few hundred samples of a fold, whose signal is near zero.
    """

    lookback: int = 5  # t, sessions; the paper: 1, 3, 5, 10, 20
    hidden: int = 32  # H; the paper: 16, 32, 64
    layers: int = 2  # linear layers of each MLP; the paper: 2, 3, 4
    heads: int = 3  # A; the paper: 1, 3, 6
    qkv: int = 32  # K, of each head; the paper: 32, 64, 128
    head: str = "mlp"  # pred of eq. 7: mlp (the paper's choice), cnn, lstm

    # The paper's ablations
    news: bool = True  # False: −NTP −NNP, market alone
    text: bool = True  # False: −MTP −NTP, numbers alone
    quantifier: bool = True  # False: −MIQ, the day's headlines are averaged

    # What it is told of a headline besides words and tone; ours
    recency: bool = False  # its place in the day's order, from 0 (first) to 1 (last), and the 8th power of that

    # Where the network starts and what it is built of; ours
    text_scale: str = "centred"  # or standardised, both on the training days; one factor for all; a layer_norm each
    norm: str = "pre"  # news–news: LayerNorm(r + attention), pre: r + attention(LayerNorm(r)), none
    skip: bool = True  # f1 and f2 add the encoded text to what they make of it, so that like texts stay alike
    feed_forward: bool = False  # an MLP of its own on each headline after the news–news attention, as in Vaswani et al.
    uniform_start: bool = True  # the market's query starts at zero, so that all headlines weigh alike
    alike_start: bool = True  # news–news queries start equal to the keys: a headline looks first at those like it
    sharpness: float = 2.0  # factor on the news–news scores before the softmax
    gate: bool = True  # values of eq. 6 pass a gate of their own, sigmoid(linear(r))
    day_norm: bool = False  # r_d^(f) shifted and scaled, learned from a start at mean 0, variance 1 over training days
    head_layers: int = 1  # linear layers of the mlp head; 0 = as many as ``layers``, 1 = none hidden

    # What it learns from, besides the direction of the next day; ours
    return_weight: float = 1.0  # of the loss on the standardised next return; above 0 it also forecasts that return
    horizon: int = 5  # sessions of the return that horizon_weight is about
    horizon_weight: float = 0.0  # of the loss on the standardised return over ``horizon`` sessions
    volatility_weight: float = 0.0  # of the loss on the standardised size of the next return
    pretrain_epochs: int = 0  # of the news side on the SAME day's return, training days alone; 0 = off

    # How it descends; ours
    dropout: float = 0.2  # share of units
    text_dropout: float = 0.0  # share of the embeddings' numbers
    headline_dropout: float = 0.0  # share of a day's headlines that a training step leaves out
    learning_rate: float = 1e-3  # AdamW's
    warm_up: float = 0.1  # share of all steps over which the learning rate rises to that
    schedule: str = "cosine"  # which falls to zero at the last epoch; or constant
    weight_decay: float = 0.1  # AdamW's, on matrices
    text_weight_decay: float = 0.1  # the same on e_t, which holds most of the weights
    average: float = 0.0  # decay a step of the mean of the weights that is kept in their place; 0 = the weights as is
    clip: float = 1.0  # largest gradient norm
    epochs: int = 30  # at most
    patience: int = 6  # epochs without a lower validation log loss
    batch_days: int = 32  # decisions in a training step, consecutive
    train_headlines: int = 256  # most headlines of a day in one training step, 0 for all
    device: str = "cpu"  # or "cuda"

    def __post_init__(self) -> None:
        # Seen on other widths: bits that depend on a day's place in its batch.
        if self.hidden < 16 or self.hidden % 8:
            raise ConfigError("hidden is no width", where="finin", got=self.hidden, expected="16, 24, 32 or more by 8")
        if self.qkv < 8 or self.qkv % 8:
            raise ConfigError("qkv is no width", where="finin", got=self.qkv, expected="8, 16, 24 or more by 8")
        for name, least in AT_LEAST.items():
            if not getattr(self, name) >= least:  # so that NaN is refused too
                got = getattr(self, name)
                raise ConfigError(f"{name} is too small", where="finin", got=got, expected=f"at least {least}")
        for name in ABOVE_ZERO:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is too small", where="finin", got=getattr(self, name), expected="above 0")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                what = f"no such {'prediction head' if name == 'head' else name}"
                raise ConfigError(what, where="finin", got=getattr(self, name), expected=", ".join(choices))
        for name in SHARES:
            if not 0 <= getattr(self, name) < 1:
                got = getattr(self, name)
                raise ConfigError(f"{name} is not a share", where="finin", got=got, expected=f"0 ≤ {name} < 1")

    @property
    def numbers(self) -> int:
        """How many numbers come with a headline."""
        return 5 if self.recency else 3

    @property
    def auxiliary(self) -> dict[str, float]:
        """Weights of the losses on the auxiliary targets that are asked for, in the order of the outputs."""
        weights = {"return": self.return_weight, "horizon": self.horizon_weight, "volatility": self.volatility_weight}
        return {name: weight for name, weight in weights.items() if weight > 0}


class Block(NamedTuple):
    """B days side by side, of N headlines at most; their headlines in one column of M, dummies being zero."""

    market: Tensor  # (B, F) standardised
    market_text: Tensor  # (1, D) frozen embedding of the market's description
    text: Tensor  # (M, D) frozen embeddings
    numbers: Tensor  # (M, 3) negative, neutral, positive; (M, 5) with recency
    place: Tensor  # (M,) int64, where each of them lies in (B·N,)
    mask: Tensor  # (B, N) bool, True where there is a headline


def mlp(config: FininConfig, width: int, out: int, deep: int = 0) -> nn.Sequential:
    """Build ``deep`` linear layers, or ``config.layers`` where it is 0: width → H → … → out."""
    layers: list[nn.Module] = []
    for _ in range((deep or config.layers) - 1):
        layers += [nn.Linear(width, config.hidden), nn.GELU(), nn.Dropout(config.dropout)]
        width = config.hidden
    return nn.Sequential(*layers, nn.Linear(width, out))


class Turn(nn.Module):
    """(B, t, E) → (B, E, t), as a convolution wants it."""

    def forward(self, x: Tensor) -> Tensor:
        """Swap days and width."""
        return x.transpose(1, 2)


class LastState(nn.Module):
    """An LSTM over the days, oldest first: (B, t, E) → its last state (B, H)."""

    def __init__(self, width: int, H: int) -> None:
        super().__init__()
        self.recur = nn.LSTM(width, H, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Run through all days."""
        states: Tensor = self.recur(x)[0]  # (B, t, H)
        return states[:, -1]  # (B, H)


def prediction_head(config: FininConfig, width: int, out: int) -> nn.Sequential:
    """Build pred of eq. 7, windows (B, t, E = width) → (B, O = out); the paper's final choice is the MLP."""
    t, H, drop = config.lookback, config.hidden, nn.Dropout(config.dropout)
    if config.head == "cnn":
        convolve = nn.Conv1d(width, H, kernel_size=min(3, t), padding="same")
        return nn.Sequential(Turn(), convolve, nn.GELU(), nn.Flatten(), drop, nn.Linear(t * H, out))
    if config.head == "lstm":
        return nn.Sequential(LastState(width, H), drop, nn.Linear(H, out))
    return nn.Sequential(nn.Flatten(), mlp(config, t * width, out, config.head_layers))


class NewsAttention(nn.Module):
    """Each headline looks at all headlines of its day: r^(e) → r^(f) (section 4.2, first layer)."""

    def __init__(self, config: FininConfig) -> None:
        super().__init__()
        self.heads, self.width, self.before = config.heads, config.heads * config.qkv, config.norm == "pre"
        self.factor = config.sharpness / math.sqrt(config.qkv)
        self.qkv = nn.Linear(config.hidden, 3 * self.width)
        self.out = nn.Linear(self.width, config.hidden)
        self.drop = nn.Dropout(config.dropout)
        self.norm = nn.Identity() if config.norm == "none" else nn.LayerNorm(config.hidden)
        self.after = None
        if config.feed_forward:
            self.after = nn.Sequential(nn.LayerNorm(config.hidden), mlp(config, config.hidden, config.hidden))
        if config.alike_start:
            with torch.no_grad():
                for rows in (self.qkv.weight, self.qkv.bias):  # (3·A·K, H), (3·A·K,)
                    rows[: self.width] = rows[self.width : 2 * self.width]

    def projected(self, r: Tensor) -> Tensor:
        """(B, N, H) → queries, keys and values (3, B, A, N, K)."""
        B, N, _ = r.shape
        r = self.norm(r) if self.before else r  # (B, N, H)
        projected: Tensor = self.qkv(r).view(B, N, 3, self.heads, -1)  # (B, N, 3, A, K)
        return projected.permute(2, 0, 3, 1, 4)  # (3, B, A, N, K)

    def forward(self, r: Tensor, mask: Tensor) -> Tensor:
        """(B, N, H) headlines, (B, N) which of them may be looked at → (B, N, H)."""
        B, N, _ = r.shape
        q, k, v = self.projected(r)  # each (B, A, N, K)
        # No dropout inside: with it the fused kernel, whose memory is linear in N, is not taken.
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :], scale=self.factor)  # (B, A, N, K)
        y = r + self.drop(self.out(y.transpose(1, 2).reshape(B, N, -1)))  # (B, N, H)
        y = y if self.before else self.norm(y)  # (B, N, H)
        refined: Tensor = y if self.after is None else y + self.drop(self.after(y))  # (B, N, H)
        return refined

    def pairs(self, r: Tensor, mask: Tensor) -> Tensor:
        """Return (B, N, N) who looks at whom, mean over heads; rows sum to 1."""
        q, k, _ = self.projected(r)  # each (B, A, N, K)
        scores = q @ k.transpose(2, 3) * self.factor  # (B, A, N, N)
        shares: Tensor = scores.masked_fill(~mask[:, None, None, :], -math.inf).softmax(-1)  # (B, A, N, N)
        return shares.mean(1)  # (B, N, N)


class MarketAttention(nn.Module):
    """The market state, as the only query, weighs the day's headlines (eq. 6)."""

    def __init__(self, config: FininConfig) -> None:
        super().__init__()
        self.heads, width = config.heads, config.heads * config.qkv
        self.q = nn.Linear(config.hidden, width)
        self.kv = nn.Linear(config.hidden, 2 * width)
        self.out = nn.Linear(width, config.hidden)
        self.gate = nn.Linear(config.hidden, width) if config.gate else None
        self.norm = nn.LayerNorm(config.hidden) if config.norm == "pre" else nn.Identity()
        self.drop = nn.Dropout(config.dropout)
        if config.uniform_start:
            nn.init.zeros_(self.q.weight)
            nn.init.zeros_(self.q.bias)

    def forward(self, m: Tensor, r: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H) market, (B, N, H) headlines, (B, N) mask → (B, H) r_d^(f), (B, N) weights, mean over heads."""
        B, N, _ = r.shape
        r = self.norm(r)  # (B, N, H)
        q = self.q(m).view(B, self.heads, 1, -1)  # (B, A, 1, K)
        k, v = self.kv(r).view(B, N, 2, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (B, A, N, K)
        if self.gate is not None:
            v = v * self.gate(r).sigmoid().view(B, N, self.heads, -1).transpose(1, 2)  # (B, A, N, K)
        scores = q @ k.transpose(2, 3) / math.sqrt(k.shape[-1])  # (B, A, 1, N)  eq. 6
        scores = scores.masked_fill(~mask[:, None, None, :], -math.inf)  # news only: the market is no key of its own
        weights = scores.softmax(-1)  # (B, A, 1, N)
        y = self.out((weights @ v).view(B, -1))  # (B, A, 1, K) → (B, A·K) → (B, H)
        return self.drop(y), weights.squeeze(2).mean(1)  # (B, H), (B, N)


class Network(nn.Module):
    """The whole of figure 2. D: width of the language model; features: F.   The language model is not part of it."""

    text_mean: Tensor
    text_factor: Tensor
    return_moments: Tensor

    def __init__(self, config: FininConfig, D: int, features: int) -> None:
        super().__init__()
        self.config, H = config, config.hidden
        fused = 2 * H if config.text else H
        self.e1, self.f1 = mlp(config, features, H), mlp(config, fused, H)
        if config.text:
            self.e_t = nn.Linear(D, H)
            self.drop_text = nn.Dropout(config.text_dropout)
            self.register_buffer("text_mean", torch.zeros(D))  # subtracted from every embedding
            self.register_buffer("text_factor", torch.ones(D))  # and what it is then multiplied by
        if config.news:
            self.e2, self.f2 = mlp(config, config.numbers, H), mlp(config, fused, H)
            self.no_news = nn.Parameter(torch.zeros(H))
            if config.day_norm:
                self.day_shift, self.day_scale = nn.Parameter(torch.zeros(H)), nn.Parameter(torch.ones(H))
            if config.quantifier:
                self.news_news, self.market_news = NewsAttention(config), MarketAttention(config)
        if config.return_weight:
            self.register_buffer("return_moments", torch.tensor([0.0, 1.0]))  # mean and std of the training returns
        self.head = prediction_head(config, 2 * H if config.news else H, 1 + len(config.auxiliary))

    def fuse(self, f: nn.Module, text: Tensor, number: Tensor) -> Tensor:
        """Join embeddings (…, D) and encoded numbers (…, H) by f1 or f2 → (…, H)."""
        if self.config.text:
            if self.config.text_scale == "layer_norm":
                text = F.layer_norm(text, text.shape[-1:])  # (…, D)
            # Mean and factor go into the weights: a matrix (H, D) is smaller than all headlines (M, D).
            weight = self.e_t.weight * self.text_factor  # (H, D)
            bias = self.e_t.bias - weight @ self.text_mean  # (H,)
            text = F.linear(self.drop_text(text), weight, bias)  # (…, H)  eqs. 1, 2: one e_t for both
            number = torch.cat([text.expand_as(number), number], -1)  # (…, 2H)
        fused: Tensor = f(number)  # (…, H)
        return fused + text if self.config.text and self.config.skip else fused  # (…, H)

    def market(self, x: Block) -> Tensor:
        """Encode the market of B days → m^(e) (B, H)."""
        return self.fuse(self.f1, x.market_text, self.e1(x.market))  # (B, H)  eqs. 1, 3, 4

    def headlines(self, x: Block) -> tuple[Tensor, Tensor]:
        """Encode the headlines of B days → r^(e) (B, N, H), zero where there is none, and what may be looked at."""
        r = self.fuse(self.f2, x.text, self.e2(x.numbers))  # (M, H)  eqs. 2, 3, 5
        r = r.new_zeros(x.mask.numel(), r.shape[1]).index_copy(0, x.place, r).view(*x.mask.shape, -1)  # (B, N, H)
        # A day without news weighs its padding, so that no softmax is 0/0; ``news`` replaces the result.
        return r, x.mask | ~x.mask.any(1, keepdim=True)  # (B, N, H), (B, N)

    def news(self, m: Tensor, x: Block) -> tuple[Tensor, Tensor]:
        """Weigh the headlines of B days by their markets (B, H) → r_d^(f) (B, H) and the weights (B, N)."""
        r, mask = self.headlines(x)  # (B, N, H), (B, N)
        if self.config.quantifier:
            r = self.news_news(r, mask)  # (B, N, H)
            news, weights = self.market_news(m, r, mask)  # (B, H), (B, N)  eq. 6
        else:
            weights = mask / mask.sum(1, keepdim=True)  # (B, N)
            news = (weights[:, None] @ r).squeeze(1)  # (B, 1, N) @ (B, N, H) → (B, H)
        if self.config.day_norm:
            news = (news - self.day_shift) * self.day_scale  # (B, H)
        return torch.where(x.mask.any(1, keepdim=True), news, self.no_news), weights  # (B, H), (B, N)

    @torch.no_grad()
    def start_day_norm(self, x: Block) -> None:
        """Set shift and scale of r_d^(f) by the B days of a block, those without news left out."""
        some = x.mask.any(1)  # (B,)
        news = self.news(self.market(x), x)[0][some]  # (≤ B, H)
        if len(news) > 1:
            self.day_shift.copy_(news.mean(0))
            self.day_scale.copy_(1 / news.std(0).clamp(min=1e-6))

    def encode(self, x: Block) -> tuple[Tensor, Tensor]:
        """Encode B days → (B, E), and the weights of their headlines (B, N)."""
        m = self.market(x)  # (B, H)
        if not self.config.news:
            return m, torch.zeros_like(x.mask, dtype=m.dtype)
        news, weights = self.news(m, x)  # (B, H), (B, N)
        return torch.cat([m, news], -1), weights  # (B, 2H), (B, N)

    def pairs(self, x: Block) -> Tensor:
        """Return who looks at whom among the headlines of B days (B, N, N); all alike where they are averaged."""
        r, mask = self.headlines(x)  # (B, N, H), (B, N)
        if self.config.quantifier:
            shares: Tensor = self.news_news.pairs(r, mask)  # (B, N, N)
            return shares
        return (mask / mask.sum(1, keepdim=True))[:, None].expand(-1, mask.shape[1], -1)  # (B, N, N)

    def forward(self, windows: Tensor) -> Tensor:
        """Windows of encoded days (B, t, E), oldest day first → (B, O): the logit of P(up) (eq. 7), then the rest."""
        outputs: Tensor = self.head(windows)  # (B, O)
        return outputs
