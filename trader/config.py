"""Settings: config.toml as frozen dataclasses, checked key by key.

``config.toml`` in the project's root lists every key with its unit; the defaults here are the same
(a test compares them). Sections ``[model.NAME]``, ``[strategy.NAME]``, ``[chat.NAME]`` and ``[feeds.NAME]`` belong to
the part that they name and are checked against that part's own parameters when it is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from datetime import date
import difflib
import os
from pathlib import Path
import re
import tomllib
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from trader.errors import BadFile, ConfigError
from trader.risk import RiskLimits

T = TypeVar("T")

Execution = Literal["next_open", "next_close", "close"]


@dataclass(frozen=True, slots=True)
class Run:
    """What one run trades and with what."""

    market: str = "sp500"
    news: str = "wire"
    model: str = "finin"
    strategy: str = "long_short"
    lookback: int = 5
    execution: Execution = "next_open"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Inputs:
    """How bars and headlines become a day's input."""

    decide_minutes: int = 0
    headlines_a_day: int = 0
    prefer: tuple[str, ...] = ()
    market_features: Literal["returns", "levels"] = "returns"
    market_text: str = ""


@dataclass(frozen=True, slots=True)
class WalkForward:
    """Spans of a fold in sessions."""

    train: int = 400
    validation: int = 50
    step: int = 50
    horizon: int = 1
    mode: Literal["sliding", "expanding"] = "sliding"

    @property
    def purge(self) -> int:
        """Sessions left out between train and validation and between validation and use."""
        return self.horizon + 2


@dataclass(frozen=True, slots=True)
class Retrain:
    """Which trained model is taken up, and when one is too old; ``trader.adoption`` applies it.

    adopt: "always", or "challenge": the newcomer must not be worse than the model in use by more than ``margin`` nats
        of log loss on the newest ``challenge`` labelled sessions, which then neither train nor validate.
    max_age: sessions since the last one that a model saw, beyond which it decides no more; 0 sets no limit.
    """

    adopt: Literal["always", "challenge"] = "always"
    margin: float = 0.0
    challenge: int = 50
    max_age: int = 0

    @property
    def kept_back(self) -> int:
        """Labelled sessions that each fold keeps back for the challenge."""
        return self.challenge if self.adopt == "challenge" else 0


@dataclass(frozen=True, slots=True)
class Text:
    """The frozen language model."""

    model: str = "minilm"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Sentiment:
    """Who scores headlines that came without scores."""

    scorer: Literal["vader", "finbert"] = "vader"
    finbert: str = "ProsusAI/finbert"


@dataclass(frozen=True, slots=True)
class Compute:
    """Where and with how many processes models are trained; 0 workers means one a core."""

    device: str = "cpu"
    workers: int = 0


@dataclass(frozen=True, slots=True)
class CostSettings:
    """Money: starting cash, costs in basis points, the rate of idle cash a year."""

    cash: float = 100_000.0
    commission_bps: float = 1.0
    slippage_bps: float = 1.0
    borrow_bps_a_year: float = 50.0
    cash_rate: float = 0.02
    stale_open: Literal["next_close", "open"] = "next_close"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The error bars, and the rivals that stand beside the model."""

    risk_free: float = 0.02
    resamples: int = 2_000
    rivals: tuple[str, ...] = ("logistic", "facts")


@dataclass(frozen=True, slots=True)
class Experiment:
    """How much an experiment tries; seeds and trials are what its budget goes into."""

    lookbacks: tuple[int, ...] = (1, 3, 5, 10, 20)
    seeds: int = 3
    ablation_seeds: int = 1
    trials: int = 9
    finin_trials: int = 9
    search_lookback: int = 5
    headlines_a_day: int = 256
    window: int = 500
    window_step: int = 391
    windows: int = 10
    walk_step: int = 250
    walk_mode: Literal["sliding", "expanding"] = "expanding"
    missing_text: float = 0.4
    language_models: tuple[str, ...] = (
        "FacebookAI/roberta-base",
        "ProsusAI/finbert",
        "BAAI/bge-base-en-v1.5",
        "meta-llama/Llama-2-7b-hf",
    )


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of a run. ``text_of_file`` is the file as read, for the ledger."""

    run: Run = field(default_factory=Run)
    inputs: Inputs = field(default_factory=Inputs)
    walkforward: WalkForward = field(default_factory=WalkForward)
    retrain: Retrain = field(default_factory=Retrain)
    text: Text = field(default_factory=Text)
    sentiment: Sentiment = field(default_factory=Sentiment)
    compute: Compute = field(default_factory=Compute)
    costs: CostSettings = field(default_factory=CostSettings)
    risk: RiskLimits = field(default_factory=RiskLimits)
    evaluation: Evaluation = field(default_factory=Evaluation)
    experiment: Experiment = field(default_factory=Experiment)
    chat: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    feeds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notify: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    model: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    strategy: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def with_run(self, **changes: Any) -> Config:
        """Return a copy with the given [run] keys changed; None leaves a key as it is."""
        given = {name: value for name, value in changes.items() if value is not None}
        changed = replace(self, run=build(Run, {**_as_mapping(self.run), **given}, "the command line"))
        _check_ranges(changed, "the command line")
        return changed


def load(path: Path | None) -> Config:
    """Read a config file; the defaults where path is None.

    Raises BadFile where the file cannot be read, ConfigError for an unknown key (naming the nearest known one)
    or a value of the wrong type or out of range.
    """
    if path is None:
        return Config()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile("the config file cannot be read", where=path, got=_plain(error), do="check --config") from error
    return from_mapping(parse_toml(text, path), str(path))


def parse_toml(text: str, where: object) -> dict[str, Any]:
    """Return TOML as nested dicts; raise ConfigError where it is none."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("not valid TOML", where=where, got=str(error)) from error


def from_mapping(raw: Mapping[str, Any], where: str) -> Config:
    """Build a Config from nested dicts; raises ConfigError as ``load`` does."""
    _refuse_unknown(raw, (part.name for part in fields(Config)), where, "section")
    sections: dict[str, Any] = {}
    hints = get_type_hints(Config)
    for name, value in raw.items():
        if not isinstance(value, Mapping):
            raise ConfigError("a section was expected", where=f"{where} {name}", got=value)
        if is_dataclass(hints[name]):
            sections[name] = build(hints[name], value, f"{where} [{name}]")
        else:
            for part, options in value.items():
                if not isinstance(options, Mapping):
                    raise ConfigError("a section was expected", where=f"{where} [{name}] {part}", got=options)
            sections[name] = value
    config = Config(**sections)
    _check_ranges(config, where)
    return config


def build(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make a dataclass from a mapping, every key known and of the right type.

    >>> build(WalkForward, {"trian": 3}, "config.toml [walkforward]")
    Traceback (most recent call last):
    trader.errors.ConfigError: config.toml [walkforward]: unknown key trian; did you mean train?
    """
    known = {part.name: part for part in fields(kind)}  # type: ignore[arg-type]
    _refuse_unknown(values, known, where, "key")
    hints = get_type_hints(kind)
    missing = [name for name, part in known.items() if name not in values and _has_no_default(part)]
    if missing:
        raise ConfigError(f"missing key {missing[0]}", where=where)
    return kind(**{name: _checked(value, hints[name], f"{where} {name}") for name, value in values.items()})


def _has_no_default(part: Any) -> bool:
    return part.default is MISSING and part.default_factory is MISSING


def _refuse_unknown(given: Iterable[str], known: Iterable[str], where: str, what: str) -> None:
    names = sorted(known)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1, cutoff=0.5)
            advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
            raise ConfigError(f"unknown {what} {name}", where=where, do=advice)


def _checked(value: Any, hint: Any, where: str) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value not in get_args(hint):
            raise ConfigError(
                "not a possible value", where=where, got=value, expected=" or ".join(map(str, get_args(hint)))
            )
        return value
    if origin in (Union, UnionType):
        options = get_args(hint)
        return (
            value if value is None else _checked(value, next(kind for kind in options if kind is not type(None)), where)
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError("a section was expected", where=where, got=value)
        return {key: _checked(one, get_args(hint)[1], f"{where}.{key}") for key, one in value.items()}
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError("a list was expected", where=where, got=value)
        return tuple(_checked(one, get_args(hint)[0], where) for one in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(hint, type) or not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(
            "a value of the wrong type", where=where, got=repr(value), expected=getattr(hint, "__name__", str(hint))
        )
    return value


_AT_LEAST: dict[tuple[str, str], float] = {
    ("run", "lookback"): 1,
    ("run", "seed"): 0,
    ("inputs", "decide_minutes"): 0,
    ("inputs", "headlines_a_day"): 0,
    ("walkforward", "train"): 20,
    ("walkforward", "validation"): 5,
    ("walkforward", "step"): 1,
    ("retrain", "margin"): 0,
    ("retrain", "challenge"): 5,
    ("retrain", "max_age"): 0,
    ("text", "max_tokens"): 8,
    ("compute", "workers"): 0,
    ("costs", "cash"): 1,
    ("costs", "commission_bps"): 0,
    ("costs", "slippage_bps"): 0,
    ("costs", "borrow_bps_a_year"): 0,
    ("costs", "cash_rate"): 0,
    ("evaluation", "risk_free"): 0,
    ("evaluation", "resamples"): 100,
    ("experiment", "seeds"): 1,
    ("experiment", "ablation_seeds"): 1,
    ("experiment", "trials"): 1,
    ("experiment", "finin_trials"): 1,
    ("experiment", "search_lookback"): 1,
    ("experiment", "headlines_a_day"): 0,
    ("experiment", "window"): 50,
    ("experiment", "window_step"): 1,
    ("experiment", "windows"): 0,
    ("experiment", "walk_step"): 1,
    ("experiment", "missing_text"): 0.0,
}


# From a 16:00 close the next open is 1,050 minutes away; a decision must come before it.
MOST_DECIDE_MINUTES = 1_020


def _check_ranges(config: Config, where: str) -> None:
    minutes = config.inputs.decide_minutes
    if minutes > MOST_DECIDE_MINUTES:
        expected = f"at most {MOST_DECIDE_MINUTES}: the decision comes before the next open"
        raise ConfigError("too late", where=f"{where} [inputs] decide_minutes", got=minutes, expected=expected)
    if minutes and config.run.execution == "close":
        expected = '0 with execution = "close", which trades at the close itself'
        raise ConfigError("too late", where=f"{where} [inputs] decide_minutes", got=minutes, expected=expected)
    for (section, key), least in _AT_LEAST.items():
        value = getattr(getattr(config, section), key)
        if not value >= least:
            raise ConfigError(
                "too small", where=f"{where} [{section}] {key}", got=value, expected=f"at least {least:g}"
            )
    _check_age(config, where)
    if config.walkforward.horizon != 1:
        raise ConfigError(
            "only next-day labels are built so far",
            where=f"{where} [walkforward] horizon",
            got=config.walkforward.horizon,
            expected=1,
        )


def _check_age(config: Config, where: str) -> None:
    """Refuse an age limit that every model passes before its first decision."""
    spec, retrain = config.walkforward, config.retrain
    youngest = spec.purge + (retrain.challenge + spec.horizon if retrain.kept_back else 0)
    if 0 < retrain.max_age < youngest:
        expected = f"0, or at least {youngest}: the age of a model at its first decision"
        raise ConfigError("too small", where=f"{where} [retrain] max_age", got=retrain.max_age, expected=expected)


def _as_mapping(part: Any) -> dict[str, Any]:
    return {one.name: getattr(part, one.name) for one in fields(part)}


def as_mapping(config: Config, *, live: bool = False) -> dict[str, Any]:
    """Return the settings as nested plain dicts, for the ledger.

    live: with the live feeds, which an account needs; they shape no backtest and no experiment, so the names of
    those do not hang on them.
    [notify] is left out: it shapes no result, may be changed at any time, and names people and places.
    """
    return {
        part.name: _as_mapping(value)
        if is_dataclass(value := getattr(config, part.name))
        else {k: dict(v) for k, v in value.items()}
        for part in fields(config)
        if part.name != "notify" and (live or part.name != "feeds")
    }


def day_of(text: str, *, end: bool) -> date:
    """Read YYYY, YYYY-MM or YYYY-MM-DD as the first (or, with end, the last) day of that span.

    >>> day_of("2003", end=False), day_of("2018-02", end=True)
    (datetime.date(2003, 1, 1), datetime.date(2018, 2, 28))
    """
    found = re.fullmatch(r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?", text.strip())
    try:
        if found is None:
            raise ValueError(text)
        year, month, day = (int(part) if part else None for part in found.groups())
        assert year is not None
        if day is not None and month is not None:
            return date(year, month, day)
        if not end:
            return date(year, month or 1, 1)
        if month is None or month == 12:
            return date(year, 12, 31)
        return date.fromordinal(date(year, month + 1, 1).toordinal() - 1)
    except ValueError as error:
        raise ConfigError("not a day", got=text, expected="YYYY, YYYY-MM or YYYY-MM-DD") from error


def home_of(option: str | None, config_file: Path | None) -> Path:
    """Return the folder of stores, caches, models and the ledger.

    Order: the option --home, the variable TRADER_HOME, ``var`` beside the config file, ``var`` in this folder.
    """
    chosen = option or os.environ.get("TRADER_HOME")
    if chosen:
        return Path(chosen).expanduser()
    return (config_file.parent if config_file else Path()) / "var"


def _plain(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
