"""The rows of the FININ paper's tables, and those that we set beside them: which model, with what inputs and settings.

A method names a row of ``trader.parts.MODELS``; ``trader.experiment`` runs it. What a method may choose on validation
stands in its ``space``; everything else is the model's default or fixed here.
Source: FININ, section 5 and tables 1–3; the baselines' own papers are named in shared models' modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
import hashlib
import itertools
import json
from typing import Any

from trader.config import Config
from trader.errors import ConfigError

Settings = Mapping[str, Any]
Space = Mapping[str, Sequence[Any]]

# The paper's 81 settings (section 5.2).
FININ_SPACE: Space = {"layers": (2, 3, 4), "hidden": (16, 32, 64), "heads": (1, 3, 6), "qkv": (32, 64, 128)}
# FININ with every switch of ours off: what the paper's words leave if nothing is added to them.
AS_PRINTED: Settings = {
    "recency": False,
    "text_scale": "one",
    "norm": "post",
    "skip": False,
    "uniform_start": False,
    "alike_start": False,
    "sharpness": 1.0,
    "gate": False,
    "head_layers": 0,
    "return_weight": 0.0,
    "warm_up": 0.0,
    "schedule": "constant",
}
_NETWORK: Space = {"hidden": (16, 32, 64), "learning_rate": (3e-4, 1e-3, 3e-3)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Through what a method reads the headlines; "" and −1 take what the config names.

    text: language model.   scorer: sentiment ("finbert", or the name of a chat model's section).
    headlines_a_day: at most so many, 0 for all.
    """

    text: str = ""
    scorer: str = ""
    headlines_a_day: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One row of the tables.

    tables: numbers of the paper's tables that show it.   same_as: the paper's name of the row, "" where it has none.
    settings: fixed.   space: what is chosen on validation, key → values.   seeds: how many, 0 as many as FININ.
    lookbacks: of those asked for, only these; None for all.   why_not: why it cannot be run at all, or "".
    follows: key of the row whose chosen setting it takes, where that row is run too; else it chooses its own.
    pooled: learns from the training days of all the experiment's markets.   ahead: asked for the next day alone.
    """

    key: str
    title: str
    model: str
    tables: tuple[int, ...]
    same_as: str = ""
    settings: Settings = field(default_factory=dict)
    space: Space = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)
    seeds: int = 1
    lookbacks: tuple[int, ...] | None = None
    why_not: str = ""
    follows: str = ""
    pooled: bool = False
    ahead: bool = False


def methods(config: Config, tables: Sequence[int], target: str, only: Sequence[str] = ()) -> list[Method]:
    """Return the methods that the tables need, in their order; with target "same_day" the sketch to beat as well.

    only: keys of those wanted, () for all; Always Buy is always there. Raises ConfigError for an unknown key.
    """
    found = [*_table_2(config), *_table_1(config), *_table_3(config)]
    chosen = [one for one in found if set(one.tables) & set(tables)]
    if target == "same_day":
        chosen = [one for one in chosen if not one.ahead]
        chosen.insert(1, Method(key="ridge", title="Ridge, 40 components", model="ridge", tables=()))
    known = [one.key for one in chosen]
    if strange := [key for key in only if key not in known]:
        raise ConfigError("no such method in these tables", got=strange[0], expected=", ".join(known))
    if only:
        chosen = [one for one in chosen if one.key in only or one.key == "always_buy"]
    return [replace(one, seeds=one.seeds or config.experiment.seeds) for one in chosen]


def _finin(key: str, title: str, tables: tuple[int, ...], **changes: Any) -> Method:
    # An ablation is the complete model without one thing: it takes that model's setting.
    follows = "" if key == "finin" or ("reading" in changes and changes["reading"].text) else "finin"
    base = Method(key=key, title=title, model="finin", tables=tables, same_as="FININ", space=FININ_SPACE, seeds=0)
    return replace(base, follows=follows, **changes)


def _table_2(config: Config) -> list[Method]:
    finbert, few = Reading(scorer="finbert"), (config.experiment.search_lookback,)
    weights = "random" if config.model.get("fpt", {}).get("weights", "random") == "random" else "pretrained"
    found = [
        Method(key="always_buy", title="Always Buy", model="always_buy", tables=(1, 2, 3), same_as="Always Buy"),
        Method(key="naf", title="NAF", model="naf", tables=(2,), same_as="NAF"),
        Method(key="sentiments", title="Sentiments", model="sentiments", tables=(2,), same_as="Sentiments"),
        Method(key="finbert", title="FinBERT", model="sentiments", tables=(2,), same_as="FinBERT", reading=finbert),
        Method(key="ensemble", title="Ensemble", model="ensemble", tables=(2,), same_as="Ensemble"),
        Method(key="fpt", title=f"FPT, {weights} GPT-2", model="fpt", tables=(2,), same_as="FPT"),
        *_chats(config),
        Method(key="pen", title="PEN", model="pen", tables=(2,), same_as="PEN"),
    ]
    found = [replace(one, space=_SPACES.get(one.model, {})) for one in found]
    return [
        *found,
        Method(key="logistic", title="Logistic regression", model="logistic", tables=(2,)),
        Method(key="boosting", title="Gradient boosting", model="boosting", tables=(2,)),
        _finin("finin", "FININ", (1, 2, 3)),
        _finin("finin_printed", "FININ as printed", (2,), settings=AS_PRINTED, seeds=1, lookbacks=few, same_as=""),
        _finin(
            "finin_uncapped",
            "FININ, all headlines",
            (2,),
            reading=Reading(headlines_a_day=0),
            seeds=1,
            lookbacks=few,
            same_as="",
        ),
        *_shown_beside(few),
    ]


def _shown_beside(few: tuple[int, ...]) -> list[Method]:
    """Return what FININ could gain from more to learn from: the same day's return, other markets' days."""
    logistic = Method(
        key="logistic_pretrained", title="Logistic, read the same day first", model="same_day_logistic", tables=(2,)
    )
    pretrained = _finin("finin_pretrained", "FININ, read the same day first", (2,), settings={"pretrain_epochs": 3})
    found = [pretrained, logistic, replace(_finin("finin_pooled", "FININ, markets pooled", (2,)), pooled=True)]
    return [replace(one, seeds=1, lookbacks=few, same_as="", ahead=True) for one in found]


_SPACES: dict[str, Space] = {
    "naf": _NETWORK,
    "sentiments": _NETWORK,
    "ensemble": _NETWORK,
    "fpt": {"learning_rate": (3e-4, 1e-3, 3e-3), "dropout": (0.0, 0.1, 0.3)},
    "pen": _NETWORK,
}


def _chats(config: Config) -> list[Method]:
    """Return a method for each chat model of the config, and the paper's two where they are not configured."""
    found = []
    for name in dict.fromkeys([*config.chat, "gpt-3.5", "gpt-4"]):
        title = name.upper() if name.startswith("gpt") else name
        why = "" if name in config.chat else f'no chat model: give [chat."{name}"] an endpoint, a model and prices'
        reading = Reading(scorer=name)
        found.append(
            Method(
                key=name,
                title=title,
                model="tone_sign",
                tables=(2,),
                same_as=title,
                reading=reading,
                why_not=why,
            )
        )
    return found


_LANGUAGE_MODELS = {"roberta": "RoBERTa", "finbert": "FinBERT", "bge": "BGE", "llama-2": "Llama 2"}


def _table_1(config: Config) -> list[Method]:
    """Return FININ through each language model of the config; the one embedded here is the row "finin"."""
    found = []
    for spec in config.experiment.language_models:
        known = [word for word in _LANGUAGE_MODELS if word in spec.lower()]
        title = _LANGUAGE_MODELS[known[0]] if known else spec
        key = f"{known[0].replace('-', '')}_lm" if known else spec
        row = _finin(key, f"FININ, {title}", (1,), same_as=title if known else "", reading=Reading(text=spec))
        found.append(row)
    return found


def _table_3(config: Config) -> list[Method]:
    seeds = config.experiment.ablation_seeds
    return [
        _finin("no_news", "− news", (3,), same_as="no_news", settings={"news": False}, seeds=seeds),
        _finin("no_text", "− text", (3,), same_as="no_text", settings={"text": False}, seeds=seeds),
        _finin(
            "no_quantifier", "− quantifier", (3,), same_as="no_quantifier", settings={"quantifier": False}, seeds=seeds
        ),
    ]


def points(space: Space, trials: int, seed: int) -> list[Settings]:
    """Return at most ``trials`` settings of a space's grid: the models' own defaults, then others by hash of the seed.

    The defaults are the empty setting. The same arguments give the same settings in the same order.

    >>> points({"hidden": (16, 32)}, 2, 0)[0]
    {}
    """
    names = list(space)
    grid = [dict(zip(names, values, strict=True)) for values in itertools.product(*space.values())] if names else []
    drawn = sorted(grid, key=lambda one: hashlib.sha256(f"{seed}|{json.dumps(one)}".encode()).digest())
    return [{}, *drawn[: trials - 1]]
