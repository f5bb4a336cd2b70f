"""How MSMF fused a decision: what is told is what the forecast used, and it is told in words and columns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import date
import io
from pathlib import Path
import shutil
import sqlite3
from typing import Any

import numpy as np
import pytest
from rich.console import Console
import torch
from torch import Tensor

from models.base import Days
from models.fusions import Filled, Fusion
from models.msmf.model import Msmf
from models.msmf.network import Said
from tests import builders
from tests.test_msmf import TEST, days, trained
from trader import cli, engine, explain, parts
from trader.errors import ModelError
from trader.explain import Fusing
from trader.ledger import Ledger
from trader.outcome import Home
from trader.report import why_lines
from trader.why_fusion import fusion_parts

DAYS = builders.sessions(140)
TINY: dict[str, Any] = {"hidden": 16, "token_width": 16, "heads": 2, "chart_sessions": 5, "epochs": 2}

SWITCHES: list[dict[str, Any]] = [
    {},
    {"completion": "forward", "missing_text": 0.3},
    {"completion": "dbn"},
    {"fusion": "stack"},
    {"fusion": "concatenate", "pair_rank": 0},
    {"tasks": "return", "completion": "mean"},
    {"gates": False, "completion": "zero"},
    {"modalities": ("text",)},
    {"modalities": ("image", "numeric"), "image_scales": "coarse", "numeric_scales": "fine"},
]


class Seen:
    """What passed through the network of a model while it forecast TEST, in one batch."""

    def __init__(self, model: Msmf, on: Days) -> None:
        self.network, told = model._trained().network, list[Said]()
        hook = self.network.register_forward_hook(lambda module, given, said: told.append(said))
        self.p_up = model.predict(on, TEST).p_up
        hook.remove()
        ((self.outputs, self.fused, self.shares),) = told


def only(text: str, start: str) -> str:
    """Return the one line that begins so, with those that it goes on in."""
    lines = text.splitlines()
    (at,) = [n for n, line in enumerate(lines) if line.startswith(start)]
    stop = next((n for n in range(at + 1, len(lines)) if not lines[n].startswith("  ")), len(lines))
    return " ".join(line.strip() for line in lines[at:stop])


def printed(fusion: Fusion) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    for part in fusion_parts(fusion):
        assert not isinstance(part, str) or len(part) <= 100
        console.print(part, highlight=False, markup=False)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert all(len(line) <= 100 for line in lines)
    return "\n".join([*lines, ""])


def hushed(on: Days, first: int, stop: int) -> Days:
    """Return days that have lost the headlines of first … stop − 1."""
    low, high = int(on.news_offset[first]), int(on.news_offset[stop])
    offset = on.news_offset.copy()
    offset[first : stop + 1], offset[stop + 1 :] = low, offset[stop + 1 :] - (high - low)
    kept = np.r_[0:low, high : len(on.news_text)]
    return replace(on, news_offset=offset, news_text=on.news_text[kept], news_sentiment=on.news_sentiment[kept])


@pytest.fixture(scope="module")
def model() -> Msmf:
    return trained()


# What is told


@pytest.mark.parametrize("settings", SWITCHES, ids=lambda settings: " ".join(settings) or "as it is")
def test_what_is_told_is_what_the_forecast_used_and_each_tasks_gates_sum_to_one(settings: dict[str, Any]) -> None:
    on, model = days(), trained(epochs=1, **settings)
    seen = Seen(model, on)
    quiet = np.flatnonzero(np.diff(on.news_offset)[list(TEST)] == 0)[:2]  # what is filled has to be told of, too
    for row in (0, 7, *quiet.tolist()):
        told = model.fusion(on, TEST[row])
        at = row if told.gated else 0  # without gates the same even shares serve the whole batch
        assert np.array_equal(told.modality_gates, seen.shares.modalities[at])
        assert np.array_equal(told.scale_gates, seen.shares.scales[at])
        assert np.array_equal(told.expert_gates, seen.shares.experts[row])
        assert np.array_equal(told.outputs, seen.outputs[row])
        T, M, C = len(told.tasks), len(told.modalities), len(told.features)
        assert (told.modality_gates.shape, told.scale_gates.shape) == ((T, M), (T, C))
        np.testing.assert_allclose(told.modality_gates.sum(1), 1, rtol=1e-6)
        np.testing.assert_allclose(told.expert_gates.sum(1), 1, rtol=1e-6)
        for modality in told.modalities:
            np.testing.assert_allclose(told.scale_gates[:, told.of(modality)].sum(1), 1, rtol=1e-6)
        if "movement" in told.tasks:
            assert 1 / (1 + np.exp(-float(told.outputs[0]))) == pytest.approx(seen.p_up[row], abs=1e-12)
        assert printed(told)


def test_from_the_gates_told_the_forecast_can_be_computed(model: Msmf) -> None:
    on = days()
    seen, row = Seen(model, on), 11
    told, tasks = model.fusion(on, TEST[row]), seen.network.tasks
    entering = torch.zeros(2, *seen.fused.fused.shape[1:])  # (T, C, J·W)
    for t in range(2):
        for c, (modality, _) in enumerate(told.features):
            gate = told.scale_gates[t, c] * told.modality_gates[t, told.modalities.index(modality)]
            entering[t, c] = seen.fused.fused[row, c] * float(gate) * len(told.features)
    with torch.no_grad():
        h, _ = tasks.experts(entering.flatten(1)[None])
        outputs = tasks.predict(h, seen.fused.aligned[row : row + 1])[0].numpy() + told.paired
    np.testing.assert_allclose(outputs, told.outputs, rtol=0, atol=1e-5)
    assert not np.allclose(told.modality_gates[0], told.modality_gates[1]), "even gates would have tested nothing"


def test_the_share_kept_is_what_is_left_other_than_zero() -> None:
    on, model = days(), trained(epochs=1, keep_within=0.25, keep_across=0.4)
    network, masks = model._trained().network, list[Tensor]()
    network.fusion.blank_within.register_forward_hook(lambda module, given, mask: masks.append(mask))
    seen = Seen(model, on)
    assert len(masks) == 3  # one a modality
    for row in (0, 13):
        told = model.fusion(on, TEST[row])
        assert told.kept_within is not None and told.kept_across is not None
        across = (seen.fused.fused[row] != 0).float().mean(1)  # (C,)
        within = torch.cat([(mask[row] != 0).float().view(2, -1).mean(1) for mask in masks[:3]])  # (C,)
        assert told.kept_across.tolist() == pytest.approx(across.tolist())
        assert told.kept_within.tolist() == pytest.approx(within.tolist())
        assert len(set(told.kept_across.tolist())) > 1, "a setting would have been the same for all"
        said = only(printed(told), "Blank learning kept")
        assert "kept 25.0 % of the features within each modality, then 40.1 % of all across them" in said
        assert f"{100 * float(across[4:].mean()):.1f} % of text" in said


def test_a_day_without_headlines_says_that_the_text_was_filled_and_by_what(model: Msmf) -> None:
    on = days()
    none = np.diff(on.news_offset) == 0  # (S,)
    day = next(day for day in TEST if none[day] and not none[day - 2 : day].any())
    told = model.fusion(on, day)
    assert [(one.modality, one.scale, one.method) for one in told.filled] == [("text", "fine", "rbm")]
    said = only(printed(told), "Text (fine) missing")
    assert said.startswith("Text (fine) missing: filled by rbm from numbers and chart, ")
    whole = hushed(on, day - 2, day + 1)  # the whole window
    both = model.fusion(whole, day)
    assert [(one.modality, one.scale) for one in both.filled] == [("text", "fine"), ("text", "coarse")]
    assert only(printed(both), "Text missing").startswith("Text missing: filled by rbm from numbers and chart, ")


def test_a_day_that_lacks_nothing_says_so(model: Msmf) -> None:
    on = days(silent=0.0)
    told = model.fusion(on, TEST[5])
    assert told.filled == () and told.present == told.features
    assert printed(told).splitlines()[-1] == "Nothing was missing."


@pytest.mark.parametrize(
    ("settings", "how", "far"),
    [
        ({"completion": "mean"}, "filled by the training mean.", 0.0),
        ({"completion": "zero"}, "filled by zeros, ", None),
        ({"completion": "dbn"}, "filled by dbn from numbers and chart, ", None),
        ({"completion": "forward", "forward_days": 1}, "filled by the training mean.", 0.0),
        ({"completion": "forward", "forward_days": 4}, "carried forward from 3 sessions before, ", None),
        ({"completion": "rbm", "modalities": ("text",)}, "filled by the training mean.", 0.0),
    ],
)
def test_each_way_of_filling_has_its_own_words(settings: dict[str, Any], how: str, far: float | None) -> None:
    model, day = trained(epochs=1, text_scales="fine", **settings), TEST[10]
    on = hushed(days(silent=0.0), day - 2, day + 1)
    told = model.fusion(on, day)
    (one,) = told.filled
    assert one.deviation == pytest.approx(far, abs=1e-4) if far is not None else one.deviation > 0.01
    assert f"Text missing: {how}" in only(printed(told), "Text missing") + " "


def test_what_a_setting_took_away_is_not_called_missing() -> None:
    on, model = days(silent=0.0), trained(epochs=1, missing_image=0.5)
    lacking = [told for day in TEST[:12] if (told := model.fusion(on, day)).filled]
    assert 0 < len(lacking) < 12
    assert all("\nChart taken away by a setting: filled by rbm from numbers and text" in printed(t) for t in lacking)


def test_a_decision_that_cannot_be_made_cannot_be_told(model: Msmf) -> None:
    with pytest.raises(ModelError, match="a decision lacks its 9 days"):
        model.fusion(days(), 3)
    with pytest.raises(ModelError, match="has not been trained"):
        Msmf().fusion(days(), 50)


# How it is told


def a_fusion(**changes: Any) -> Fusion:
    facts: dict[str, Any] = {
        "features": (("numeric", "fine"), ("numeric", "coarse"), ("text", "fine"), ("text", "coarse")),
        "modalities": ("numeric", "text"),
        "tasks": ("movement", "return"),
        "modality_gates": np.array([[0.3, 0.7], [0.6, 0.4]], np.float32),
        "scale_gates": np.array([[0.1, 0.9, 0.2, 0.8], [0.25, 0.75, 0.35, 0.65]], np.float32),
        "gated": True,
        "expert_gates": np.array([[0.9, 0.1], [0.15, 0.85]], np.float32),
        "method": "progressive",
        "kept_within": np.array([0.4, 0.6, 0.5, 0.5], np.float32),
        "kept_across": np.array([0.2, 0.4, 0.6, 0.8], np.float32),
        "filled": (),
        "outputs": np.array([0.3, -0.2], np.float32),
        "paired": np.array([-0.1, 0.05], np.float32),
    }
    return Fusion(**(facts | changes))


def test_the_table_has_a_row_a_task_and_each_share_under_its_name() -> None:
    text = printed(a_fusion())
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert rows["task"] == ["%", "fine", "coarse", "%", "fine", "coarse"] and rows["numbers"] == ["text"]
    assert rows["movement"] == ["30.0", "10.0", "90.0", "70.0", "20.0", "80.0"]
    assert rows["return"] == ["60.0", "25.0", "75.0", "40.0", "35.0", "65.0"]
    assert only(text, "Expert") == "Expert gates: movement 90.0 10.0 %; return 15.0 85.0 %."
    assert only(text, "Outputs").startswith("Outputs: movement +0.300 log odds (−0.100 from pairs of modalities")
    assert only(text, "Blank").endswith("then 50.0 % of all across them: 30.0 % of numbers and 70.0 % of text.")


def test_without_gates_one_gate_over_the_experts_is_said_to_serve_all() -> None:
    text = printed(a_fusion(gated=False, expert_gates=np.array([[0.9, 0.1]] * 2, np.float32)))
    assert text.startswith("No multi-granularity gates") and "task " not in text
    assert "Expert gates: 90.0 10.0 %." in text


@pytest.mark.parametrize(("method", "how"), [("stack", "stacked and averaged"), ("concatenate", "concatenated")])
def test_a_fusion_that_blanks_nothing_says_so(method: str, how: str) -> None:
    text = printed(a_fusion(method=method, kept_within=None, kept_across=None, paired=None))
    assert f"Features {how}: no blank learning." in text and "kept" not in text
    assert "Outputs: movement +0.300 log odds, return −0.200 deviations." in text


def test_one_modality_at_one_scale_for_one_task_is_one_column() -> None:
    one = np.ones((1, 1), np.float32)
    alone = {"modality_gates": one, "scale_gates": one, "expert_gates": one, "kept_within": one[0] / 2}
    alone |= {"features": (("image", "coarse"),), "modalities": ("image",), "tasks": ("movement",)}
    text = printed(a_fusion(**alone, kept_across=one[0] / 4, outputs=one[0], paired=None))
    assert "\n movement   100.0\n" in text and "fine" not in text
    assert "kept 50.0 % of the features within each modality, then 25.0 % of all across them." in text


def test_features_filled_in_unlike_ways_have_a_line_each() -> None:
    filled = (Filled("text", "fine", "forward", 3.0, 1), Filled("text", "coarse", "mean", 0.0))
    text = printed(a_fusion(filled=filled))
    assert "\nText (fine) missing: carried forward from the session before, 3.00 deviations from" in text
    assert "\nText (coarse) missing: filled by the training mean.\n" in text
    both = (Filled("text", "fine", "rbm", 3.0), Filled("text", "coarse", "rbm", 4.0))
    assert "\nText missing: filled by rbm from numbers, 3.54 deviations" in printed(a_fusion(filled=both))


# From the command line


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("msmf")
    builders.a_home(folder)
    config = replace(builders.config(model="msmf"), model={"msmf": TINY})
    engine.backtest(config, folder, DAYS[116], DAYS[138], readers=builders.readers())
    return folder


Say = Callable[..., str]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Say:
    monkeypatch.chdir(tmp_path)  # so that no config.toml of this project is met
    monkeypatch.setattr(explain, "readers_of", lambda config, home: builders.readers())

    def why(home: Path, session: date, *words: str) -> str:
        capsys.readouterr()
        assert cli.main(["why", "latest", str(session), "--home", str(home), *words]) == 0
        return capsys.readouterr().out

    return why


def kept(home: Path, at: int) -> list[str]:
    with Ledger.open(Home(home).ledger, read_only=True) as ledger:
        return why_lines(ledger.why_one("latest", DAYS[at]))


def test_why_tells_below_the_decision_how_it_was_fused_and_then_the_headlines_as_ever(home: Path, say: Say) -> None:
    for at in (116, 129, 138):
        decision, *headlines = kept(home, at)
        found = explain.explain(home, "latest", DAYS[at], readers=builders.readers())
        assert found.fusion is not None and not found.notes
        expected = found.signal.expected_return
        assert expected is not None and f"expected return {100 * expected:+.3f} %".replace("-", "−") in decision
        text = say(home, DAYS[at])
        assert text.startswith(f"{decision}\n\n") and text.endswith("\n".join(["", *headlines, ""]))
        assert only(text, "Expert gates") in printed(found.fusion) and "\n movement " in text
        assert all(len(line) <= 100 for line in text.splitlines())


def test_why_with_words_tells_it_too(home: Path, say: Say) -> None:
    text = say(home, DAYS[129], "--limit", "2", "--csv", "all.csv")
    assert text.startswith(kept(home, 129)[0]) and "Blank learning kept 50.0 %" in text and "\n return " in text
    assert text.index("Blank learning") < text.index("of largest weight")


def test_why_of_a_session_without_headlines_says_what_filled_the_text(home: Path, say: Say) -> None:
    quiet = [at for at in range(116, 139) if kept(home, at)[-1] == "No headline that session."]
    assert quiet
    text = say(home, DAYS[quiet[0]])
    assert "\nText (fine) missing: filled by rbm from numbers and chart, " in text


def test_where_the_model_is_gone_why_says_so_and_shows_what_the_ledger_keeps(
    home: Path, say: Say, tmp_path: Path
) -> None:
    own = shutil.copytree(home, tmp_path / "home")
    shutil.rmtree(Home(own).models)
    decision, *headlines = kept(home, 129)
    text = say(own, DAYS[129])
    assert text.startswith(f"{decision}\nThe forecast cannot be made again") and "Expert gates" not in text
    assert text.endswith("\n".join(["", *headlines, ""]))


def test_an_abstention_has_no_fusion(home: Path, say: Say, tmp_path: Path) -> None:
    own = shutil.copytree(home, tmp_path / "home")
    with closing(sqlite3.connect(Home(own).ledger)) as db, db:
        db.execute("UPDATE signals SET p_up = NULL, reason = 'no bar' WHERE session = ?", (str(DAYS[129]),))
    assert say(own, DAYS[129]).splitlines() == kept(own, 129)


def test_why_of_a_model_that_fuses_nothing_loads_no_model(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builders.signals_run(tmp_path, DAYS[:3])

    def refuse(*words: Any) -> None:
        raise AssertionError("asked to make the forecast again")

    monkeypatch.setattr(explain, "explain", refuse)
    with Ledger.open(tmp_path / "ledger.db", read_only=True) as ledger:
        lines = why_lines(ledger.why_one("latest", DAYS[1]))
    assert say(tmp_path, DAYS[1]).splitlines() == lines
    assert "expected return" not in lines[0]


def test_the_models_that_why_asks_again_are_those_that_can_tell() -> None:
    classes = {name: parts._class(path) for name, (path, _) in parts.MODELS.items()}
    assert set(cli.FUSING) == {name for name, kind in classes.items() if issubclass(kind, Fusing)}
