"""Tone by a chat model: is this headline good or bad for the asset? Asked once, answered from the disk afterwards.

``ChatScorer`` stands where a ``models.sentiment.ScoreCache`` stands; ``models.chat`` does the asking and
``models.chat_answers`` the keeping.
Source: Lopez-Lira and Tang (2023), "Can ChatGPT Forecast Stock Price Movements?"; their prompt in our words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
import hashlib
import json
import math
from pathlib import Path
import re
from string import Template

import numpy as np
from numpy.typing import NDArray

from models.chat import ChatClient, ChatSettings
from models.chat_answers import NO, UNKNOWN, UNREADABLE, YES, Answers, CeilingReached
from models.embeddings import Progress
from trader.errors import ConfigError, ModelError

_PROMPTS = Path(__file__).parent / "prompts"
_ROWS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]], np.float32)  # of NO, UNKNOWN, YES, UNREADABLE


@dataclass(frozen=True, slots=True)
class Tally:
    """How often a model said what, over distinct headlines; unreadable answers are scored as unknown."""

    yes: int
    no: int
    unknown: int
    unreadable: int

    @property
    def unknown_share(self) -> float:
        """The share of headlines scored as unknown, NaN without headlines; the paper's 55 and 67 %."""
        headlines = self.yes + self.no + self.unknown + self.unreadable
        return (self.unknown + self.unreadable) / headlines if headlines else math.nan


class ChatScorer:
    """Scores headlines for one asset by what a chat model answers; see the module for how answers are kept."""

    @classmethod
    def open(
        cls, folder: Path, settings: ChatSettings, asset: str, *, sleep: Callable[[float], object] | None = None
    ) -> ChatScorer:
        """Open the model's answers under ``folder``; nothing is asked yet, and no key is needed yet.

        asset: how the prompt names it, such as "the S&P 500 index".
        sleep: called with the seconds to wait before a request is tried again; by default a wait that ends at once
            when another request has failed for good.
        Raises ConfigError for a prompt that does not exist, StoreError where the answers cannot be read.
        """
        digest = hashlib.sha256(settings.model.encode()).hexdigest()[:8]
        name = re.sub(r"[^\w.-]+", "-", settings.model, flags=re.ASCII)[:48]
        answers = Answers(folder / "chat" / f"{name}-{digest}.jsonl", settings.max_cost)
        answers.refresh()
        return cls(answers, settings, asset, _template(settings.prompt), sleep or answers.pause)

    def __init__(
        self,
        answers: Answers,
        settings: ChatSettings,
        asset: str,
        template: Template,
        sleep: Callable[[float], object],
    ) -> None:
        self.settings, self.asset = settings, asset
        self._answers, self._template, self._sleep = answers, template, sleep
        self._scored: dict[str, int] = {}

    @property
    def spent(self) -> float:
        """What all answers of this model in this cache have cost, in the currency of the prices."""
        return self._answers.spent

    @property
    def tally(self) -> Tally:
        """What was answered to the distinct headlines scored by this object."""
        said = list(self._scored.values())
        yes, no, unknown, unreadable = (said.count(one) for one in (YES, NO, UNKNOWN, UNREADABLE))
        return Tally(yes=yes, no=no, unknown=unknown, unreadable=unreadable)

    def scores(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Return (negative, neutral, positive) of each text, (n, 3): one of them is 1; asks for what is not held.

        progress: called with (headlines answered, headlines to ask) after each answer that has reached the disk.
        Raises ModelError where the key is missing, the server refuses or stays silent, the next request could pass
        max_cost, or an answer is missing in a replay; StoreError where the disk refuses. Answers so far are kept.
        """
        keys = [self._key(text) for text in texts]
        self._answers.refresh()
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._answers.verdicts}
        if missing:
            self._obtain(missing, progress)
        said = np.array([self._answers.verdicts[key] for key in keys], dtype=np.int64)
        self._scored.update(zip(keys, said.tolist(), strict=True))
        return _ROWS[said]

    def _prompt(self, headline: str) -> str:
        # One line, so that a headline cannot pose as a part of the prompt; a lone surrogate becomes "?".
        line = " ".join(headline.split()).encode("utf-8", "replace").decode()
        return self._template.substitute(asset=self.asset, headline=line)

    def _key(self, headline: str) -> str:
        """Hash model, prompt version and the words sent, which hold asset and headline."""
        sent = [self.settings.model, self.settings.prompt, self._prompt(headline)]
        return hashlib.sha256(json.dumps(sent).encode()).hexdigest()

    def _obtain(self, missing: Mapping[str, str], progress: Progress | None) -> None:
        from filelock import FileLock

        if self.settings.replay:
            raise ModelError(
                "headlines that the chat model was never asked about",
                where=self._answers.path,
                got=f"{len(missing)}, the first: {next(iter(missing.values()))[:80]}",
                do="set replay = false to ask, or choose the model, prompt, asset and headlines of the first run",
            )
        client = ChatClient(self.settings, self._sleep)
        self._answers.make()
        # Held while asking: a second process that wants the same answers waits and then finds them.
        with FileLock(f"{self._answers.path}.lock"):
            self._answers.refresh()
            wanted = {key: text for key, text in missing.items() if key not in self._answers.verdicts}
            try:
                self._ask_all(client, wanted, progress)
            except CeilingReached as error:
                raise self._too_dear(list(wanted), error.most) from error

    def _ask_all(self, client: ChatClient, wanted: Mapping[str, str], progress: Progress | None) -> None:
        waiting = list(wanted.items())[::-1]
        running: set[Future[None]] = set()
        done = 0
        self._answers.stopped = False
        threads = ThreadPoolExecutor(self.settings.parallel)
        try:
            while waiting or running:
                while waiting and len(running) < 2 * self.settings.parallel:
                    running.add(threads.submit(self._ask, client, *waiting.pop()))
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    done += 1
                    if progress is not None:
                        progress(done, len(wanted))
        except BaseException:
            self._answers.stop()
            raise
        finally:
            threads.shutdown(wait=True, cancel_futures=True)  # requests under way are paid for: their answers are kept

    def _ask(self, client: ChatClient, key: str, headline: str) -> None:
        prompt = self._prompt(headline)
        reply = client.ask(prompt, seed=key, purse=self._answers)
        about = {"key": key, "prompt": self.settings.prompt, "asset": self.asset, "headline": headline}
        self._answers.book(self.settings.most(prompt), about, reply)

    def _too_dear(self, wanted: Sequence[str], most: float) -> ModelError:
        remaining = [key for key in wanted if key not in self._answers.verdicts]
        a_headline = self._answers.mean_cost or most
        enough = self.spent + most + len(remaining) * a_headline
        return ModelError(
            f"the chat model {self.settings.model} reached its cost ceiling",
            where=self._answers.path,
            got=f"{self.spent:.4g} spent, {len(remaining)} of {len(wanted)} headlines remain",
            expected=f"at most {self.settings.max_cost:g}",
            do=f"raise max_cost to about {enough:.3g}; the answers so far are kept",
        )


def _template(prompt: str) -> Template:
    known = sorted(path.stem for path in _PROMPTS.glob("*.txt"))
    if prompt not in known:
        raise ConfigError("no such prompt", where="chat prompt", got=prompt, expected=", ".join(known))
    return Template((_PROMPTS / f"{prompt}.txt").read_text(encoding="utf-8").strip())
