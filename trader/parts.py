"""The parts by name: models, strategies, language models, built-in markets. The only place where they are named.

``trader.engine`` asks for them and never sees which they are; a user's own comes as ``package.module:Class``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
import hashlib
from importlib import metadata
from importlib.util import find_spec
import inspect
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from feeds import builtin, planted, planted_charts, wire
from trader import broker
from trader.clock import Calendar
from trader.config import Config, as_mapping, build
from trader.errors import ConfigError, ModelError
from trader.events import NewsBatch, NewsRows
from trader.methods import Reading
from trader.outcome import Home
from trader.records import Costs
from trader.sources import source_hash
from trader.stepping import check_parameters
from trader.store import FileSource, MarketStore
from trader.training import ModelSpec
from trader.universe import Member, Universe
from trader.window import Scorer, TextIndex, Window

if TYPE_CHECKING:
    from models.chat import ChatSettings

MODELS = {  # name → class, and the dataclass of its settings
    "finin": ("models.finin:Finin", "models.finin:FininConfig"),
    "logistic": ("models.baselines:Logistic", ""),
    "boosting": ("models.baselines:Boosting", ""),
    "same_day_logistic": ("models.same_day_logistic:SameDayLogistic", ""),
    "always_buy": ("models.rules:AlwaysBuy", ""),
    "mean_return": ("models.rules:MeanReturn", ""),
    "naf": ("models.naf:Naf", "models.naf:NafConfig"),
    "sentiments": ("models.sentiments:Sentiments", "models.sentiments:SentimentsConfig"),
    "ensemble": ("models.ensemble:Ensemble", "models.ensemble:EnsembleConfig"),
    "fpt": ("models.fpt:Fpt", "models.fpt:FptConfig"),
    "pen": ("models.pen:Pen", "models.pen:PenConfig"),
    "ridge": ("models.ridge:Ridge", "models.ridge:RidgeConfig"),
    "msmf": ("models.msmf.model:Msmf", "models.msmf.config:MsmfConfig"),
    "lstm": ("models.sequence_return:Lstm", "models.sequence_return:LstmConfig"),
    "gru": ("models.sequence_return:Gru", "models.sequence_return:GruConfig"),
    "transformer": ("models.sequence_return:Transformer", "models.sequence_return:TransformerConfig"),
    "svm": ("models.svm:Svm", "models.svm:SvmConfig"),
    "random_forest": ("models.random_forest:RandomForest", "models.random_forest:RandomForestConfig"),
    "tone_sign": ("models.rules:ToneSign", "models.rules:ToneSignConfig"),
}
PLANTED: dict[str, ModuleType] = {one.SYMBOL: one for one in (planted, planted_charts)}  # market and news, by name
FACTS = "facts"  # a rival only: logistic regression on the numbers that the wire's words are made from
STRATEGIES = {
    "long_short": "strategies.long_short:LongShort",
    "long_only": "strategies.long_only:LongOnly",
    "threshold": "strategies.threshold:Threshold",
    "vol_target": "strategies.vol_target:VolTarget",
    "top_k": "strategies.top_k:TopK",
}
MANY = ("top_k",)  # of those, what trades many symbols


@dataclass(frozen=True, slots=True)
class Readers:
    """What turns headlines into numbers: embeddings with the fingerprint of their language model, and sentiment.

    warm_up: loads the language model, which is else loaded when the first text is new; None where there is none.
    """

    texts: TextIndex
    texts_id: str
    scorer: Scorer
    warm_up: Callable[[], object] | None = None


def stock(store: MarketStore, market: str, news: str) -> str:
    """Put built-in bars, the wire and planted markets into the store where they are asked for and not there yet.

    Returns the name of the news set in the store: the wire's and the planted ones' carry their version.
    """
    stock_bars(store, market)
    return stock_news(store, news)


def stock_news(store: MarketStore, news: str) -> str:
    """Put the wire or the planted market's headlines into the store; return the name of a set in the store."""
    if news == "wire":
        if wire.SET not in store.names():
            _add_set(store, wire.SET, wire.headlines(builtin.series()))
        return wire.SET
    if news in PLANTED:
        made = PLANTED[news]
        if made.SET not in store.names():
            _add_set(store, made.SET, made.write(made.Dials()).news)
        return str(made.SET)
    return news


def stock_bars(store: MarketStore, market: str) -> None:
    """Put the bars of a built-in or a planted market into the store, where they are not there yet."""
    if market not in (*builtin.BUILT_IN, *PLANTED) or market in store.symbols():
        return
    if market in builtin.BUILT_IN:
        store.add_bars(builtin.bars(market), source="arch")
    else:
        made = PLANTED[market]
        store.add_bars(made.write(made.Dials()).bars, source=made.SET)


def stock_universe(store: MarketStore, universe: Universe, news: str) -> Universe:
    """Put the built-in bars and headlines that members name into the store; return the members with their news sets.

    news: the run's. Each member of what is returned has the name that its set has in the store.
    """
    for market in dict.fromkeys(member.prices for member in universe):
        stock_bars(store, market)
    sets = {name: stock_news(store, name) for name in dict.fromkeys(member.news or news for member in universe)}
    return replace(universe, symbols=tuple(replace(one, news=sets[one.news or news]) for one in universe))


def _add_set(store: MarketStore, name: str, written: NewsBatch) -> None:
    rows = NewsRows(news=written, row=np.arange(1, len(written) + 1), rejected=())
    store.add_news(name, [rows], source=FileSource(name=name, options=name))


def windows_of(
    config: Config, universe: Universe, readers: Readers, *, headlines_a_day: int | None = None, rescore: bool = False
) -> dict[str, Window]:
    """Return an empty window for each symbol, in the universe's order; all share the readers. Else as ``window_of``."""
    laid = partial(window_of, config, readers, headlines_a_day=headlines_a_day, rescore=rescore)
    return {one.symbol: laid(text=member_text(config, one)) for one in universe}


def member_text(config: Config, member: Member) -> str:
    """Return the sentence that describes a member to the model: its own, the config's, or the built-in one."""
    return member.text or config.inputs.market_text or market_text(_described(member))


def _described(member: Member) -> str:
    """Return by which name the built-in sentence describes a member: its prices' where those are built in."""
    built_in = member.prices in builtin.BUILT_IN or member.prices in PLANTED
    return member.prices if built_in else member.symbol


def window_of(
    config: Config, readers: Readers, *, text: str = "", headlines_a_day: int | None = None, rescore: bool = False
) -> Window:
    """Return an empty window of the config's market, laid as the config says.

    text: what describes the market to the model, in place of the config's.   headlines_a_day: likewise.
    rescore: leave out the scores that the source gave.
    """
    inputs = config.inputs
    return Window(
        Calendar(inputs.decide_minutes),
        readers.texts,
        readers.scorer,
        market_text=text or inputs.market_text or market_text(config.run.market),
        headlines_a_day=inputs.headlines_a_day if headlines_a_day is None else headlines_a_day,
        prefer=inputs.prefer,
        levels=inputs.market_features == "levels",
        rescore=rescore,
    )


def market_text(market: str) -> str:
    """Return the sentence that describes a market to the model."""
    return str(PLANTED[market].MARKET_TEXT) if market in PLANTED else builtin.market_text(market)


def about(config: Config) -> dict[str, str]:
    """Return what a run's models learn from, as their manifests name it."""
    return {"market": config.run.market, "news": config.run.news}


def model_spec(config: Config, name: str, texts_id: str) -> ModelSpec:
    """Return what is needed to train the named model: a row of MODELS or a ``package.module:Class`` of the user's.

    A user's class is called with ``lookback`` and the keys of its section ``[model."package.module:Class"]``.
    Raises ConfigError for a name, key or value that does not exist.
    """
    if name not in MODELS and ":" not in name:
        raise _unknown("model", name, MODELS)
    where, seed, lookback = f"[model.{name}]", config.run.seed, config.run.lookback
    options = {**config.model.get(name, {}), "lookback": lookback}
    if name == "boosting" and find_spec("xgboost") is None:
        do = "pip install -c constraints.txt -e '.[boost]'"
        raise ModelError("gradient boosting needs xgboost, which is not installed", do=do)
    path, settings_path = MODELS.get(name, (name, ""))
    kind = _class(path)
    if settings_path:
        settings = _class(settings_path)
        if "device" in {one.name for one in fields(settings)}:
            options["device"] = config.compute.device
        chosen = build(settings, options, where)
        reads = kind(chosen).lookback  # trailing means may reach back further than the lookback that was asked for
        code = _code_of(path) + _weights_of(chosen)
        return ModelSpec(name, partial(kind, chosen), asdict(chosen), reads, texts_id, seed, code)
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        raise ConfigError(f"the model does not take these settings ({error})", where=where) from error
    code = _code_of(path) if name in MODELS else _source_hash(kind)
    if name == "boosting":
        code += _version_of("xgboost-cpu", "xgboost")
    return ModelSpec(name, partial(kind, **options), options, lookback, texts_id, seed, code)


def cpu_spec(config: Config, name: str, texts_id: str) -> ModelSpec | None:
    """Return what a model falls back to where its GPU is lost: itself for the CPU; None where it runs there anyway."""
    if config.compute.device == "cpu":
        return None
    return model_spec(replace(config, compute=replace(config.compute, device="cpu")), name, texts_id)


def rivals_of(config: Config, texts_id: str) -> list[ModelSpec]:
    """Return the models to be scored beside; the wire's facts are there with the wire alone."""
    names = [name for name in config.evaluation.rivals if name not in (config.run.model, FACTS)]
    specs = [model_spec(config, name, texts_id) for name in names]
    if FACTS in config.evaluation.rivals and config.run.news == "wire":
        settings = {"lookback": 1}  # the facts look back by themselves
        path = MODELS["logistic"][0]
        factory = partial(_class(path), **settings)
        specs.append(ModelSpec(FACTS, factory, settings, 1, "none", config.run.seed, _code_of(path)))
    return specs


def facts_window(window: Window) -> Window | None:
    """Return the window with the wire's facts as numbers, each known at its session's close, instead of its words.

    None where the wire does not cover all its sessions.
    """
    table = wire.facts(builtin.series()).fillna(0.0)  # missing in the first year, and where a volume is
    rows = zip((stamp.date() for stamp in table.index), table.to_numpy(dtype=np.float32), strict=True)
    numbers = dict(rows)
    return window.with_numbers(numbers) if all(day in numbers for day in window.sessions) else None


def _version_of(*packages: str) -> str:
    """Return name and version of the first of these packages that is installed, else ""."""
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            return f"{package} {metadata.version(package)}"
    return ""


def _code_of(path: str) -> str:
    return source_hash(path.partition(":")[0])


def _weights_of(chosen: Any) -> str:
    """Return the hash of the pretrained weights that a model's settings name, "" where they name none."""
    spec = getattr(chosen, "weights", "random")
    if spec == "random":
        return ""
    from models.checkpoint import fingerprint_of, folder_of, hashes_of

    return fingerprint_of(hashes_of(folder_of(spec)))[:16]


def _source_hash(kind: type[Any]) -> str:
    try:
        file = Path(inspect.getfile(kind)).resolve()
        # All of its package, not only its own file: what it imports shapes it too.
        depth = kind.__module__.count(".")
        files = sorted(file.parents[depth - 1].rglob("*.py")) if depth else [file]
        return hashlib.sha256(b"".join(one.read_bytes() for one in files)).hexdigest()[:16]
    except (TypeError, OSError):  # a class that has no file
        return ""


def _class(path: str) -> Any:
    return broker.load_class(path, object)


def costs_of(config: Config) -> Costs:
    """Return what an account starts with and pays."""
    return Costs(**{key: value for key, value in as_mapping(config)["costs"].items() if key != "stale_open"})


def strategy_of(config: Config) -> tuple[type[Any], Mapping[str, Any]]:
    """Return the strategy's class and its parameters; raise ConfigError for a name that does not exist."""
    from strategies.base import bt

    name = config.run.strategy
    if name not in STRATEGIES and ":" not in name:
        raise _unknown("strategy", name, STRATEGIES)
    kind = broker.load_class(STRATEGIES.get(name, name), bt.Strategy)
    parameters = dict(config.strategy.get(name, {}))
    check_parameters(kind, parameters)
    return kind, parameters


def trades_many(strategy: str) -> bool:
    """Tell whether a strategy may be given many symbols: one of ours that ranks them, a user's own, or none known."""
    return strategy in MANY or strategy not in STRATEGIES


def _unknown(what: str, name: str, table: Mapping[str, object]) -> ConfigError:
    return ConfigError(f"no such {what}", got=name, expected=f"{', '.join(table)} or package.module:Class")


def workers_of(config: Config) -> int:
    """Return how many processes may work side by side: what the config says, or one a core."""
    return config.compute.workers or os.cpu_count() or 1


def with_dtype(config: Config) -> Config:
    """Fix what dtype "auto" means on this machine, so that an account reads alike wherever it goes on."""
    from models.text import choose_dtype

    dtype = choose_dtype(config.text.dtype, config.compute.device)
    return replace(config, text=replace(config.text, dtype=dtype))


def readers_for(config: Config, home: Home, reading: Reading, market: str) -> Readers:
    """Return what an experiment's method reads headlines through: the configured readers but for what it names.

    Raises ModelError where weights are not there, ConfigError for a chat model that the config does not describe.
    """
    if reading.text:
        config = replace(config, text=replace(config.text, model=reading.text))
    if reading.scorer == "finbert":
        config = replace(config, sentiment=replace(config.sentiment, scorer="finbert"))
    found = readers_of(config, home)
    if reading.scorer in config.chat:
        from models.chat_scores import ChatScorer

        settings = check_chats(config)[reading.scorer]
        return replace(found, scorer=ChatScorer.open(home.cache, settings, builtin.market_name(market)))
    return found


def check_chats(config: Config) -> dict[str, ChatSettings]:
    """Return the settings of the chat models by name; raise ConfigError for a key that they do not have.

    Called before a config is written into the ledger: a secret pasted under some other key must not get there.
    """
    from models.chat import ChatSettings

    return {name: build(ChatSettings, section, f'[chat."{name}"]') for name, section in config.chat.items()}


def readers_of(config: Config, home: Home) -> Readers:
    """Return the configured language model and sentiment scorer, each behind its cache on disk.

    Raises ModelError where their weights are not there or not the ones expected.
    """
    from models.embeddings import EmbeddingCache
    from models.sentiment import FinBert, ScoreCache, Vader
    from models.text import TextEncoder

    text, workers = config.text, workers_of(config)
    if config.compute.device != "cpu":
        from models.fitting import require_device  # it loads torch

        require_device(config.compute.device)
    memo = home.cache / "checkpoints.json"  # hashes of large weight files
    encoder = TextEncoder.open(
        text.model, dtype=text.dtype, device=config.compute.device, max_tokens=text.max_tokens, memo=memo
    )
    scorer = (
        Vader()
        if config.sentiment.scorer == "vader"
        else FinBert.open(config.sentiment.finbert, dtype=text.dtype, device=config.compute.device)
    )
    return Readers(
        texts=EmbeddingCache.open(home.cache, encoder, workers=workers),
        texts_id=encoder.fingerprint,
        scorer=ScoreCache.open(home.cache, scorer, workers=workers),
        warm_up=partial(encoder.encode, ["Stocks close higher"]),
    )
