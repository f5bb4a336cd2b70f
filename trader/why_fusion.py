"""Tell how a decision of several modalities was fused: a table of gates, and a line on each thing beside them.

Upstream ``models.fusions``; ``trader.why_report`` and the command line put it below the decision.
"""

from __future__ import annotations

from collections.abc import Sequence
import textwrap

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from models.fusions import Filled, Fusion
from trader.report import WIDTH, plain_table

WORDS = {"numeric": "numbers", "image": "chart"}  # what the documentation calls them
FILLINGS = {"mean": "the training mean", "zero": "zeros"}
MEASURES = {"movement": "log odds", "return": "deviations"}
AROUND = {
    "concatenate": "Features concatenated: no blank learning.",
    "stack": "Features stacked and averaged: no blank learning.",
}


def fusion_parts(fusion: Fusion) -> list[str | Table]:
    """Return what is printed of a fusion, in order: lines of at most 100 columns, and the gates as a table."""
    made: list[str | Table] = []
    if fusion.gated:
        made.append(_gates(fusion))
        two = len(fusion.features) > len(fusion.modalities)
        made.append(f"Gates: the share of each modality in each task{', and within it of fine and coarse' * two}.")
    else:
        said = "No multi-granularity gates: all features enter alike, and one gate over the experts serves all tasks."
        made += textwrap.wrap(said, WIDTH)
    for line in (_experts(fusion), _outputs(fusion), _kept(fusion), *_missing(fusion)):
        made += textwrap.wrap(line, WIDTH, subsequent_indent="  ")
    return made


def _word(modality: str) -> str:
    return WORDS.get(modality, modality)


def _gates(fusion: Fusion) -> Table:
    """Lay out a row a task: the share of each modality, and within it of its scales."""
    names = ["task"]
    for modality in fusion.modalities:
        scales = [fusion.features[at][1] for at in fusion.of(modality)]
        names += [f"{_word(modality)}\n%", *(scales if len(scales) > 1 else ())]
    rows = []
    for t, task in enumerate(fusion.tasks):
        row: list[object] = [task]
        for m, modality in enumerate(fusion.modalities):
            at = fusion.of(modality)
            row.append(_percent(fusion.modality_gates[t, m]))
            row += [_percent(fusion.scale_gates[t, c]) for c in at] if len(at) > 1 else []
        rows.append(row)
    return plain_table(names, rows, right=range(1, len(names)))


def _experts(fusion: Fusion) -> str:
    # Without gates of its own each task has the same row.
    rows = zip(fusion.tasks, fusion.expert_gates, strict=True) if fusion.gated else (("", fusion.expert_gates[0]),)
    said = [f"{task} {_row(gates)} %".strip() for task, gates in rows]
    return f"Expert gates: {'; '.join(said)}."


def _row(shares: NDArray[np.float32]) -> str:
    return " ".join(_percent(share) for share in shares)


def _outputs(fusion: Fusion) -> str:
    """Say what the network put out for each task, and how much of it came from pairs of modalities, past the gates."""
    said = []
    for t, task in enumerate(fusion.tasks):
        one = f"{task} {_signed(fusion.outputs[t])} {MEASURES.get(task, '')}".rstrip()
        if fusion.paired is not None:
            one += f" ({_signed(fusion.paired[t])}{' from pairs of modalities, beside the gates' if not t else ''})"
        said.append(one)
    return f"Outputs: {', '.join(said)}."


def _signed(number: float) -> str:
    return f"{number:+.3f}".replace("-", "−")


def _kept(fusion: Fusion) -> str:
    within, across = fusion.kept_within, fusion.kept_across
    if within is None or across is None:
        return AROUND.get(fusion.method, "No blank learning.")
    each = [(name, float(across[fusion.of(name)].mean())) for name in fusion.modalities]
    inside = {_percent(within[fusion.of(name)].mean()) for name in fusion.modalities}
    said = f"Blank learning kept {' or '.join(sorted(inside))} % of the features within each modality"
    said += f", then {_percent(across.mean())} % of all across them"
    if len(each) > 1:
        said += f": {_listed([f'{_percent(share)} % of {_word(name)}' for name, share in each])}"
    return f"{said}."


def _missing(fusion: Fusion) -> list[str]:
    """Return a line for each modality and way of filling, or one that says that there was none."""
    if not fusion.filled:
        return ["Nothing was missing."]
    alike: dict[tuple[str, str, int | None], list[Filled]] = {}
    for one in fusion.filled:
        alike.setdefault((one.modality, one.method, one.sessions_back), []).append(one)
    lacking = {one.modality for one in fusion.filled}  # what is left of them is not filled from
    given = _listed(_named(fusion, [feature for feature in fusion.present if feature[0] not in lacking]))
    lines = []
    for (_, method, back), some in alike.items():
        (what,) = _named(fusion, [(one.modality, one.scale) for one in some])
        if back is not None:
            how = f"carried forward from {'the session' if back == 1 else f'{back} sessions'} before"
        else:
            how = f"filled by {FILLINGS.get(method, f'{method} from {given}')}"
        far = float(np.sqrt(np.mean([one.deviation**2 for one in some])))
        where = "" if method == "mean" else f", {far:.2f} deviations from the training mean (a training day: about 1)"
        lines.append(f"{what} {'taken away by a setting' if some[0].taken else 'missing'}: {how}{where}.")
    return [line[0].upper() + line[1:] for line in lines]


def _named(fusion: Fusion, features: Sequence[tuple[str, str]]) -> list[str]:
    """Name features by modality, with the scale where it is one of two that are read."""
    names = []
    for modality in dict.fromkeys(name for name, _ in features):
        scales = [scale for name, scale in features if name == modality]
        whole = len(scales) == len(fusion.of(modality))
        names.append(_word(modality) if whole else f"{_word(modality)} ({scales[0]})")
    return names


def _listed(words: Sequence[str]) -> str:
    """Join words as a sentence does.

    >>> _listed(["numbers"]), _listed(["numbers", "chart", "text"])
    ('numbers', 'numbers, chart and text')
    """
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
