"""Scores of tone: three shares that sum to 1, in one order, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
import shutil
import subprocess
import sys
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
import pytest

from models.embeddings import ArrayCache
from models.sentiment import TONES, FinBert, ScoreCache, Vader
from tests.tiny_models import HEADLINES, tiny_model
from trader.errors import ModelError

FINBERT_ORDER = ["positive", "negative", "neutral"]


@pytest.fixture(scope="module")
def finbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("finbert"), "bert", labels=FINBERT_ORDER)


def test_vader_gives_shares_that_sum_to_one_and_calls_silence_neutral() -> None:
    texts = [*HEADLINES, "Great profit, terrible loss", "", "   ", "!!!"]
    scores = Vader().score(texts)
    assert scores.dtype == np.float32
    assert (scores >= 0).all()
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=3e-7)
    assert scores[texts.index("")].tolist() == [0, 1, 0]
    assert Vader().score([]).shape == (0, 3)


def test_vader_hears_the_tone_of_plain_words() -> None:
    good, bad = Vader().score(["A great success", "A terrible disaster"])
    assert TONES == ("negative", "neutral", "positive")
    assert good[2] > good[0]
    assert bad[0] > bad[2]


def test_shares_that_vader_rounds_past_one_are_put_right() -> None:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    texts = [f"good {'word ' * many} bad {'terrible ' * (many % 3)}" for many in range(1, 60)]
    found = SentimentIntensityAnalyzer()
    rounded = np.array([[found.polarity_scores(text)[name] for name in ("neg", "neu", "pos")] for text in texts])
    assert (np.abs(rounded.sum(axis=1) - 1) > 5e-4).any()
    np.testing.assert_allclose(Vader().score(texts).sum(axis=1), 1, atol=3e-7)
    np.testing.assert_allclose(Vader().score(texts), rounded, atol=2e-3)


def test_labels_are_read_by_name_and_never_by_place(finbert: Path, tmp_path: Path) -> None:
    scores = FinBert.open(str(finbert), dtype="float32").score(HEADLINES)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)
    assert len({tuple(row) for row in scores.tolist()}) == len(HEADLINES)
    # The same weights under other names: positive and neutral change places.
    renamed = shutil.copytree(finbert, tmp_path / "renamed")
    config = renamed / "config.json"
    text = config.read_text()
    for old, new in (('"positive"', '"X"'), ('"neutral"', '"Positive"'), ('"X"', '"Neutral"')):
        text = text.replace(old, new)
    config.write_text(text)
    other = FinBert.open(str(renamed), dtype="float32")
    assert np.array_equal(other.score(HEADLINES), scores[:, [0, 2, 1]])
    assert other.fingerprint != FinBert.open(str(finbert), dtype="float32").fingerprint


def test_finbert_gives_the_probabilities_that_transformers_gives(finbert: Path) -> None:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(finbert)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(finbert).eval()
    with torch.inference_mode():
        plain = [
            model(input_ids=tokenizer(text, return_tensors="pt")["input_ids"]).logits.softmax(1)[0].numpy()
            for text in HEADLINES
        ]
    expected = np.array(plain)[:, [FINBERT_ORDER.index(tone) for tone in TONES]]
    np.testing.assert_allclose(FinBert.open(str(finbert), dtype="float32").score(HEADLINES), expected, atol=1e-5)


def test_a_score_does_not_depend_on_its_neighbours(finbert: Path) -> None:
    scorer = FinBert.open(str(finbert), dtype="float32")
    together = scorer.score(HEADLINES)
    assert np.array_equal(scorer.score(HEADLINES[::-1])[::-1], together)
    assert np.array_equal(scorer.score(HEADLINES[3:4])[0], together[3])


@pytest.mark.parametrize(
    "labels", [["LABEL_0", "LABEL_1", "LABEL_2"], ["negative", "positive"], ["sell", "hold", "buy"]]
)
def test_labels_that_cannot_be_read_as_tones_are_refused(tmp_path: Path, labels: list[str]) -> None:
    tiny_model(tmp_path, labels=labels)
    with pytest.raises(ModelError, match=r"labels cannot be read as tones.*trained for financial tone"):
        FinBert.open(str(tmp_path))


def test_a_bare_encoder_whose_head_would_be_random_is_refused(tmp_path: Path, finbert: Path) -> None:
    tiny_model(tmp_path)
    shutil.copy(finbert / "config.json", tmp_path)
    with pytest.raises(ModelError, match=r"2 missing.*classifier\.bias"):
        FinBert.open(str(tmp_path)).score(HEADLINES)


class Counted(Vader):
    """Vader, counting what it is asked."""

    asked: ClassVar[list[str]] = []

    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked.extend(texts)
        return super().score(texts)


def test_scores_are_computed_on_first_use_and_kept_by_text(tmp_path: Path) -> None:
    first = ScoreCache.open(tmp_path, Counted()).scores([*HEADLINES, HEADLINES[0]])
    assert sorted(Counted.asked) == sorted(HEADLINES)
    again = ScoreCache.open(tmp_path, Counted())
    assert np.array_equal(again.scores(HEADLINES[::-1])[::-1], first[:-1])
    assert sorted(Counted.asked) == sorted(HEADLINES)
    assert np.array_equal(first, Vader().score([*HEADLINES, HEADLINES[0]]))


def test_each_scorer_has_a_folder_of_its_own(tmp_path: Path, finbert: Path) -> None:
    folders = {
        ScoreCache.open(tmp_path, scorer).folder
        for scorer in (Vader(), FinBert.open(str(finbert)), FinBert.open(str(finbert), max_tokens=64))
    }
    assert len(folders) == 3


def test_two_processes_give_the_scores_of_one(tmp_path: Path) -> None:
    texts = [f"profit {number} is great" for number in range(3000)]
    place = ScoreCache.open(tmp_path, Vader()).folder
    two = ScoreCache(place, compute=Vader().score, part=500, workers=2, parallel_from=1000)
    assert np.array_equal(two.scores(texts), Vader().score(texts))


def test_scoring_with_vader_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from models.sentiment import ScoreCache, Vader; "
        f"ScoreCache.open(Path({str(tmp_path)!r}), Vader()).scores(['a good day']); "
        "print([name for name in ('torch', 'transformers', 'requests') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_score_cache_is_no_embedding_cache(tmp_path: Path) -> None:
    assert issubclass(ScoreCache, ArrayCache)
    assert ScoreCache.open(tmp_path, Vader()).width == 3
