"""Settings: the file, the defaults and the checks say the same, and a mistake is named."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from datetime import date
from pathlib import Path
import re
import tomllib
from typing import Any

import pytest

from trader.config import Config, as_mapping, day_of, from_mapping, home_of, load
from trader.errors import BadFile, ConfigError
from trader.records import Costs

FILE = Path(__file__).parents[1] / "config.toml"


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_config_toml_lists_every_key_with_its_default() -> None:
    written = tomllib.loads(FILE.read_text(encoding="utf-8"))
    defaults = Config()
    sections = {part.name: getattr(defaults, part.name) for part in fields(Config)}
    expected = {
        name: {key.name: _listed(getattr(section, key.name)) for key in fields(section)}
        for name, section in sections.items()
        if is_dataclass(section)
    }
    assert {name: written[name] for name in expected} == expected
    for name, keys in expected.items():
        assert {key: type(written[name][key]) for key in keys} == {key: type(value) for key, value in keys.items()}
    assert written.keys() | {"chat", "feeds", "notify"} == sections.keys(), "no section more; these stand as comments"


def test_config_toml_is_the_defaults() -> None:
    ours = as_mapping(load(FILE))
    expected = as_mapping(Config())
    for part in ("model", "strategy"):
        assert all(options == {} for options in ours.pop(part).values())
        expected.pop(part)
    assert ours == expected


def test_every_key_of_config_toml_has_a_comment() -> None:
    keys, section = {}, ""
    for line in FILE.read_text(encoding="utf-8").splitlines():
        if found := re.match(r"\[([^\]]+)\]\s*(#.*)?$", line):
            section, about = found.group(1), found.group(2) or ""
            keys[section] = about
        elif found := re.match(r'(\w+) = (?:"[^"]*"|[^#])*(#.*)?$', line):
            keys[f"{section} {found.group(1)}"] = found.group(2) or keys[section]
    bare = [key for key, about in keys.items() if " " in key and len(about.strip("# ")) < 5]
    assert len(keys) > 30
    assert bare == []


def test_the_costs_of_the_config_are_those_of_the_broker() -> None:
    ours = as_mapping(Config())["costs"]
    assert {key: value for key, value in ours.items() if key != "stale_open"} == as_dict(Costs())


def as_dict(costs: Costs) -> dict[str, float]:
    return {key.name: getattr(costs, key.name) for key in fields(costs)}


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"runn": {}}, "test: unknown section runn; did you mean run?"),
        ({"run": {"lokback": 3}}, "test [run]: unknown key lokback; did you mean lookback?"),
        ({"run": {"qqq": 3}}, "test [run]: unknown key qqq; known are execution, lookback, market"),
        ({"run": {"lookback": "3"}}, "test [run] lookback: a value of the wrong type (got '3', expected int)"),
        ({"run": {"lookback": 3.0}}, "wrong type"),
        ({"run": {"lookback": True}}, "wrong type"),
        ({"run": {"market": 5}}, "test [run] market: a value of the wrong type (got 5, expected str)"),
        ({"costs": {"cash": "much"}}, "test [costs] cash: a value of the wrong type (got 'much', expected float)"),
        ({"costs": {"cash": True}}, "wrong type"),
        ({"run": {"execution": "soon"}}, "(got soon, expected next_open or next_close or close)"),
        ({"evaluation": {"rivals": "logistic"}}, "test [evaluation] rivals: a list was expected (got logistic)"),
        ({"evaluation": {"rivals": [1]}}, "wrong type"),
        ({"run": 3}, "test run: a section was expected (got 3)"),
        ({"model": {"finin": 3}}, "test [model] finin: a section was expected (got 3)"),
        ({"run": {"lookback": 0}}, "test [run] lookback: too small (got 0, expected at least 1)"),
        ({"run": {"seed": -1}}, "too small"),
        ({"walkforward": {"train": 19}}, "test [walkforward] train: too small (got 19, expected at least 20)"),
        ({"walkforward": {"step": 0}}, "too small"),
        ({"walkforward": {"horizon": 2}}, "only next-day labels"),
        ({"costs": {"commission_bps": -0.1}}, "too small"),
        ({"costs": {"slippage_bps": float("nan")}}, "too small"),
        ({"costs": {"cash_rate": -0.01}}, "too small"),
        ({"evaluation": {"risk_free": float("nan")}}, "too small"),
        ({"evaluation": {"resamples": 99}}, "too small"),
    ],
    ids=str,
)
def test_a_mistake_is_named_with_its_place(raw: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(raw, "test")
    assert sentence in str(caught.value)


def test_where_notifications_go_is_kept_out_of_what_the_ledger_keeps() -> None:
    config = from_mapping({"notify": {"hook": {"kind": "webhook", "secret_variable": "pasted here"}}}, "test")
    assert config.notify and as_mapping(config) == as_mapping(Config())


def test_whole_numbers_are_taken_where_a_fraction_is_meant() -> None:
    cash = from_mapping({"costs": {"cash": 5000}}, "test").costs.cash
    assert (cash, type(cash)) == (5000.0, float)


def test_sections_of_models_and_strategies_are_kept_for_their_owner() -> None:
    config = from_mapping({"model": {"my.own:Model": {"depth": 3}}}, "test")
    assert config.model == {"my.own:Model": {"depth": 3}}


def test_the_command_line_goes_before_the_file_and_is_checked_alike() -> None:
    config = from_mapping({"run": {"lookback": 3, "seed": 5}}, "test")
    assert config.with_run(lookback=10, seed=None).run.lookback == 10
    assert config.with_run(lookback=10, seed=None).run.seed == 5
    with pytest.raises(ConfigError, match=r"the command line \[run\] lookback: too small"):
        config.with_run(lookback=0)
    with pytest.raises(ConfigError, match="the command line execution: not a possible value"):
        config.with_run(execution="tomorrow")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"nowhere\.toml: the config file cannot be read \(got No such file"):
        load(tmp_path / "nowhere.toml")
    with pytest.raises(BadFile, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'[run]\nmarket = "\xff"\n')
    with pytest.raises(BadFile, match="cannot be read"):
        load(tmp_path / "latin.toml")


def test_bad_toml_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[run]\nmarket = sp500\n")
    with pytest.raises(ConfigError, match=r"c\.toml: not valid TOML.*line 2"):
        load(tmp_path / "c.toml")


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[run]\nlokback = 3\n")
    with pytest.raises(ConfigError, match=r"c\.toml \[run\]: unknown key lokback; did you mean lookback\?"):
        load(tmp_path / "c.toml")


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2003", date(2003, 1, 1), date(2003, 12, 31)),
        ("2008-02", date(2008, 2, 1), date(2008, 2, 29)),
        ("2008-12", date(2008, 12, 1), date(2008, 12, 31)),
        (" 2008-9-5 ", date(2008, 9, 5), date(2008, 9, 5)),
    ],
)
def test_a_year_a_month_or_a_day_is_a_span(text: str, first: date, last: date) -> None:
    assert (day_of(text, end=False), day_of(text, end=True)) == (first, last)


@pytest.mark.parametrize("text", ["", "03", "2003-13", "2003-02-30", "yesterday", "2003-01-01T00:00", "0000"])
def test_what_is_not_a_day_is_refused(text: str) -> None:
    for end in (False, True):
        with pytest.raises(ConfigError, match="not a day"):
            day_of(text, end=end)


def test_home_is_the_option_then_the_variable_then_beside_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRADER_HOME", "/from/variable")
    assert home_of("/from/option", Path("/etc/config.toml")) == Path("/from/option")
    assert home_of(None, Path("/etc/config.toml")) == Path("/from/variable")
    monkeypatch.setenv("TRADER_HOME", "~/trader")
    assert home_of(None, None) == Path.home() / "trader"
    monkeypatch.delenv("TRADER_HOME")
    assert home_of(None, Path("/etc/config.toml")) == Path("/etc/var")
    assert home_of(None, None) == Path("var")
