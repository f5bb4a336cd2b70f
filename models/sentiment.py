"""The tone of a headline as (negative, neutral, positive): by a lexicon, or by a classifier run through models.text.

Scores are computed on first use and kept on disk by text (``ScoreCache``), never at import of the news.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
import hashlib
from importlib import util
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import fingerprint_of
from models.embeddings import ArrayCache, Progress, create
from models.text import Dtype, FrozenModel
from trader.errors import ModelError

TONES = ("negative", "neutral", "positive")  # the order of the columns everywhere


class Scorer(Protocol):
    """What a ScoreCache asks of a scorer; Vader and FinBert are two."""

    parallel_from: ClassVar[int]  # texts from which starting further processes pays
    part: ClassVar[int]  # texts scored and written at a time

    @property
    def fingerprint(self) -> str:
        """Hex digits that change with everything that can change a score."""
        ...

    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Score texts: (n, 3) in the order of TONES, each row ≥ 0 and summing to 1."""
        ...


@dataclass(frozen=True)
class Vader:
    """The VADER lexicon: quick and made for social media; it does not know "beats", "misses" or "downgrade".

    Its three shares are rounded to 0.001 each; they are divided by their sum here. A text without a word is neutral.
    Source: Hutto and Gilbert (2014), through the package vaderSentiment.

    >>> Vader().score(["Profit is great", ""]).round(2).tolist()[1]
    [0.0, 1.0, 0.0]
    """

    parallel_from: ClassVar[int] = 50_000
    part: ClassVar[int] = 16_384

    @cached_property
    def fingerprint(self) -> str:
        """Hash the lexicons and the code that reads them; raise ModelError where the package is missing."""
        found = util.find_spec("vaderSentiment")
        if found is None or found.origin is None:
            raise ModelError("VADER is not installed", do="pip install vaderSentiment")
        files = [
            path
            for path in sorted(Path(found.origin).parent.glob("*"))
            if path.suffix in (".txt", ".py") and not path.name.startswith("__")
        ]
        hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        return fingerprint_of({"scorer": "vader", "files": hashes, "rule": "shares over their sum"})

    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Score texts: (n, 3) in the order of TONES, each row summing to 1."""
        polarity = self._analyser.polarity_scores
        shares = np.array(
            [[found["neg"], found["neu"], found["pos"]] for found in map(polarity, texts)], dtype=np.float64
        ).reshape(-1, 3)
        shares[shares.sum(axis=1) == 0] = (0.0, 1.0, 0.0)
        scores: NDArray[np.float32] = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
        return scores

    @cached_property
    def _analyser(self) -> Any:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        return SentimentIntensityAnalyzer()

    def __getstate__(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class FinBert:
    """A classifier of financial tone: FinBERT, or any checkpoint whose three labels are those of TONES."""

    parallel_from: ClassVar[int] = 2_000
    part: ClassVar[int] = 512

    frozen: FrozenModel
    columns: tuple[int, int, int]  # of the logits, in the order of TONES

    @classmethod
    def open(
        cls, spec: str = "ProsusAI/finbert", *, dtype: Dtype = "auto", device: str = "cpu", max_tokens: int = 128
    ) -> FinBert:
        """Open a local folder or a hub id without loading its weights.

        Raise ModelError where its labels (id2label in config.json) are not negative, neutral and positive: the
        order of the outputs differs between checkpoints and cannot be guessed. Else as FrozenModel.open.
        """
        frozen = FrozenModel.open(
            spec, auto_class="AutoModelForSequenceClassification", dtype=dtype, device=device, max_tokens=max_tokens
        )
        named = {str(label).lower(): int(column) for column, label in (frozen.config.get("id2label") or {}).items()}
        if set(named) != set(TONES) or sorted(named.values()) != [0, 1, 2]:
            raise ModelError(
                "its labels cannot be read as tones",
                where=frozen.folder / "config.json",
                got=", ".join(named) or "no id2label",
                expected=", ".join(TONES),
                do="name a checkpoint trained for financial tone",
            )
        return cls(frozen, (named["negative"], named["neutral"], named["positive"]))

    @property
    def fingerprint(self) -> str:
        """The model's; the order of its labels is in the hash of its config.json."""
        return fingerprint_of({"scorer": "softmax", "model": self.frozen.fingerprint})

    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Score texts: (n, 3) in the order of TONES; each row depends on its own text alone, bit for bit."""
        return self.frozen.run(texts, self._probabilities, 3)

    def _probabilities(self, output: Any, mask: Any) -> Any:
        return output.logits.float().softmax(dim=1)[:, list(self.columns)]  # (B, 3)


class ScoreCache(ArrayCache):
    """The scores of one scorer, (n, 3) float32 on disk, by text; mechanics and crash safety as ``ArrayCache``."""

    @classmethod
    def open(cls, folder: Path, scorer: Scorer, *, workers: int = 1) -> ScoreCache:
        """Open or make the scorer's folder under ``folder``; it is asked only for what is missing."""
        place = create(folder, scorer.fingerprint, 3, "float32")
        return cls(place, compute=scorer.score, part=scorer.part, workers=workers, parallel_from=scorer.parallel_from)

    def scores(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Return (negative, neutral, positive) of each text, (n, 3), after scoring those not held yet."""
        return self.rows(self.index(texts, progress))
