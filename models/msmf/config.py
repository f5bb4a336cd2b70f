"""What is chosen before MSMF is trained, and which features that leaves.

Letters of this package, beside those of models.base (S F M N D B t H):
    U days whose texts are encoded at once   C features: one for each modality and scale that is read
    E blocks of numbers that stand beside them for the completion, see Network
    J tokens of an aligned feature   W width of a token   K experts   T tasks
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from models.charts import ChartConfig
from trader.errors import ConfigError

MODALITIES = ("numeric", "image", "text")
SCALES = ("fine", "coarse")
TASKS = ("movement", "return")

CHOICES = {
    "numeric_scales": ("both", *SCALES),
    "image_scales": ("both", *SCALES),
    "text_scales": ("both", *SCALES),
    "completion": ("rbm", "dbn", "mean", "forward", "zero"),
    "fusion": ("progressive", "stack", "concatenate"),
    "tasks": ("both", *TASKS),
    "weighting": ("fixed", "uncertainty"),
    "schedule": ("constant", "cosine"),
}
WIDTHS = ("hidden", "token_width")
AT_LEAST = {
    **dict.fromkeys(("lookback", "tokens", "heads", "experts", "epochs", "patience", "batch_days"), 1),
    **dict.fromkeys(("train_headlines", "epoch_days", "forward_days", "pretrain_epochs", "pair_rank"), 0),
    **dict.fromkeys(("movement_weight", "return_weight", "weight_decay"), 0.0),
}
SHARES = ("dropout", "warm_up", "missing_numeric", "missing_image", "missing_text")


class Feature(NamedTuple):
    """One modality at one scale."""

    modality: str
    scale: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MsmfConfig:
    """What is chosen before training; ConfigError where a value cannot be used.

    The paper states no sizes, no optimiser and no weights of the tasks: all defaults are ours.
    """

    lookback: int = 5  # t, sessions of numbers and of text; the chart looks back by itself
    chart_sessions: int = 20  # 5, 20 or 60
    chart_average: bool = True  # draw the moving average
    chart_volume: bool = True  # draw the volume
    hidden: int = 32  # H, of each modality at each scale
    tokens: int = 2  # J, of an aligned feature
    token_width: int = 32  # W
    heads: int = 4  # of every attention
    experts: int = 4  # K
    keep_within: float = 0.5  # share that blank learning keeps in the first stage, across the scales of a modality
    keep_across: float = 0.5  # and in the second, across modalities

    pair_rank: int = 4  # products of each pair of modalities, beside the fusion; 0 = none; ours, see models.msmf.pairs

    # The rows of the paper's tables 3 to 7
    modalities: tuple[str, ...] = MODALITIES  # what is read; one alone: single modality
    numeric_scales: str = "both"  # or fine, coarse: that modality at a single scale
    image_scales: str = "both"
    text_scales: str = "both"
    completion: str = "rbm"  # how a missing modality is filled: rbm, dbn, mean, forward, zero
    forward_days: int = 5  # sessions that forward filling looks back
    fusion: str = "progressive"  # or stack, concatenate
    tasks: str = "both"  # or movement, return: a single task
    gates: bool = True  # False: no multi-granularity gates, one gate over the experts serves all tasks
    missing_numeric: float = 0.0  # share of decisions whose numbers are taken away, by a hash of the day's bar
    missing_image: float = 0.0  # the same of charts
    missing_text: float = 0.0  # the same of text

    pretrain_epochs: int = (
        0  # over the training charts, in which the image branch learns to say the bars it shows; ours
    )
    pretrain_rate: float = 3e-3  # the learning rate of that

    # How it descends
    movement_weight: float = 1.0  # α of eq. 6
    return_weight: float = 0.3
    weighting: str = "fixed"  # or uncertainty: α is learned (Kendall, Gal, Cipolla 2018), from these on
    dropout: float = 0.2  # share of units
    learning_rate: float = 1e-3  # AdamW's
    warm_up: float = 0.1  # share of all steps over which the learning rate rises to that
    schedule: str = "cosine"  # after which it falls to zero; or constant
    weight_decay: float = 0.1  # λ of eq. 6, AdamW's, on matrices
    clip: float = 1.0  # largest gradient norm
    epochs: int = 20  # at most
    patience: int = 5  # epochs without a lower validation log loss
    batch_days: int = 32  # decisions in a training step, consecutive
    epoch_days: int = 2048  # most decisions of an epoch, 0 for all; of many symbols' each epoch draws others
    train_headlines: int = 64  # most headlines of a day in one training step, 0 for all; forecasts read all
    device: str = "cpu"  # or "cuda"

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", tuple(self.modalities))  # a list in a file
        self.chart  # noqa: B018 (refuses sessions that are none)
        for name in WIDTHS:
            if (got := getattr(self, name)) < 16 or got % 8:  # others round a row by its place in the batch
                raise ConfigError(f"{name} is no width", where="msmf", got=got, expected="16, 24, 32 or more by 8")
            if got % self.heads:
                raise ConfigError("heads do not divide the width", where=f"msmf {name}", got=self.heads, expected=got)
        for name, least in AT_LEAST.items():
            if not getattr(self, name) >= least:  # so that NaN is refused too
                got = getattr(self, name)
                raise ConfigError(f"{name} is too small", where="msmf", got=got, expected=f"at least {least}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"no such {name}", where="msmf", got=getattr(self, name), expected=", ".join(map(str, choices))
                )
        for name in SHARES:
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} is not a share", where="msmf", got=getattr(self, name), expected=f"0 ≤ {name} < 1"
                )
        for name in ("keep_within", "keep_across", "learning_rate", "pretrain_rate", "clip"):
            if not getattr(self, name) > 0 or (name.startswith("keep") and getattr(self, name) > 1):
                raise ConfigError(f"{name} cannot be used", where="msmf", got=getattr(self, name), expected="above 0")
        known, got = set(MODALITIES), self.modalities
        if not got or set(got) - known or len(set(got)) < len(got):
            raise ConfigError("no such modalities", where="msmf", got=got, expected=f"some of {', '.join(MODALITIES)}")

    @property
    def chart(self) -> ChartConfig:
        """How the chart is drawn."""
        return ChartConfig(sessions=self.chart_sessions, moving_average=self.chart_average, volume=self.chart_volume)

    @property
    def features(self) -> tuple[Feature, ...]:
        """The C features that are read, in the order of every array of them."""
        chosen = {name: getattr(self, f"{name}_scales") for name in MODALITIES}
        return tuple(
            Feature(name, scale)
            for name in MODALITIES
            if name in self.modalities
            for scale in SCALES
            if chosen[name] in ("both", scale)
        )

    @property
    def asked(self) -> tuple[str, ...]:
        """The T tasks, in the order of the outputs."""
        return TASKS if self.tasks == "both" else (self.tasks,)

    @property
    def reads(self) -> int:
        """Sessions that one decision reads: of numbers and text, or of the chart, and what forward filling needs."""
        own = max(self.lookback, self.chart.reads if "image" in self.modalities else 1)
        return own + (self.forward_days if self.completion == "forward" else 0)
