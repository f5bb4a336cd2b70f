"""The rows of the MSMF paper's tables 1 to 7, and those that we set beside them.

As ``trader.methods`` for FININ; ``trader.experiment`` runs them. Every network chooses among as many settings as the
others; the rows of tables 3 to 7 are the complete model with one thing changed, at the setting that it chose.
Source: MSMF, section 4 and tables 1–7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trader.config import Config
from trader.errors import ConfigError
from trader.methods import Method, Settings, Space

TABLES = (1, 2, 3, 4, 5, 6, 7)
YARDSTICK = "mean_return"  # the row that stands in every table: what needs no input at all
# As the paper's words leave it: none of what this project added (docs/msmf.md).
AS_IN_THE_PAPER: Settings = {"pair_rank": 0, "pretrain_epochs": 0}
_SPACE: Space = {"hidden": (16, 32, 64), "learning_rate": (3e-4, 1e-3, 3e-3)}
_FILLINGS = (("zero", "Zero filling"), ("forward", "Forward filling"), ("mean", "Mean imputation"))


def methods(config: Config, tables: Sequence[int], only: Sequence[str] = ()) -> list[Method]:
    """Return the methods that the tables need, in their order; the yardstick is always there.

    only: keys of those wanted, () for all. Raises ConfigError for an unknown key.
    """
    found = [*_rivals(), *_complete(), *_parts(config)]
    chosen = [one for one in found if set(one.tables) & set(tables)]
    known = [one.key for one in chosen]
    if strange := [key for key in only if key not in known]:
        raise ConfigError("no such method in these tables", got=strange[0], expected=", ".join(known))
    if only:
        chosen = [one for one in chosen if one.key in only or one.key == YARDSTICK]
    return [replace(one, seeds=one.seeds or config.experiment.seeds) for one in chosen]


def _rivals() -> list[Method]:
    """Return the baselines of the return (table 1) and of the movement (table 2)."""
    learned: dict[str, Any] = {"space": _SPACE, "seeds": 0}
    return [
        Method(key=YARDSTICK, title="Training mean", model=YARDSTICK, tables=TABLES),
        Method(key="lstm", title="LSTM", model="lstm", tables=(1,), same_as="LSTM", **learned),
        Method(key="gru", title="GRU", model="gru", tables=(1,), same_as="GRU", **learned),
        Method(
            key="transformer", title="Transformer", model="transformer", tables=(1,), same_as="Transformer", **learned
        ),
        Method(key="svm", title="SVM", model="svm", tables=(2,), same_as="SVM"),
        Method(
            key="random_forest",
            title="Random forest",
            model="random_forest",
            tables=(2,),
            same_as="Random Forest",
            seeds=0,
        ),
        Method(key="boosting", title="XGBoost", model="boosting", tables=(2,), same_as="XGBoost", seeds=0),
        Method(key="logistic", title="Logistic regression", model="logistic", tables=(2,)),
    ]


def _msmf(key: str, title: str, tables: tuple[int, ...], same_as: str = "", **settings: Any) -> Method:
    """Return a row of MSMF as in the paper, changed by these settings, at the complete model's choice of the rest."""
    return Method(
        key=key,
        title=title,
        model="msmf",
        tables=tables,
        same_as=same_as,
        settings={**AS_IN_THE_PAPER, **settings},
        space=_SPACE,
        seeds=0,
        follows="" if key == "msmf" else "msmf",
    )


def _complete() -> list[Method]:
    beside = _msmf("msmf_pairs", "MSMF with products of pairs", (1, 2), pair_rank=4)
    return [_msmf("msmf", "MSMF", (1, 2, 3, 5, 6, 7), "MSMF"), beside]


def _parts(config: Config) -> list[Method]:
    """Return the rows of tables 3 to 7: one thing changed in each."""
    missing = config.experiment.missing_text
    names = (("numeric", "Time series", "Time Series"), ("image", "Image", "Image"), ("text", "Text", "Text"))
    single = [
        _msmf(
            f"{name}_{scale}", f"{title}, {scale} alone", (3,), f"{printed} (single-scale)", **{f"{name}_scales": scale}
        )
        for name, title, printed in names
        for scale in ("fine", "coarse")
    ]
    filled = [
        _msmf(f"fill_{how}", title, (4,), title, completion=how, missing_text=missing) for how, title in _FILLINGS
    ]
    return [
        *single,
        _msmf("numeric_only", "Time series alone", (4,), "Single modal data", modalities=["numeric"]),
        *filled,
        _msmf("fill_dbn", "Completion, DBN", (4,), completion="dbn", missing_text=missing),
        _msmf("fill_rbm", "MSMF (completion, RBM)", (4,), "MSMF", completion="rbm", missing_text=missing),
        _msmf("stack", "Feature stack", (5,), "Feature stack", fusion="stack"),
        _msmf("concatenate", "Feature concatenation", (5,), "Feature concatenate", fusion="concatenate"),
        _msmf("return_only", "Return alone", (6,), "Stock return only", tasks="return"),
        _msmf("movement_only", "Movement alone", (6,), "Stock movement only", tasks="movement"),
        _msmf("no_gates", "Without multi-granularity gates", (7,), "Without MG gates", gates=False),
    ]
