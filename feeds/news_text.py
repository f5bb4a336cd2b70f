"""Clean what news files carry beside times: headlines, tickers, scores. Columns in, columns out, by pyarrow.

A headline is kept as it was written; only what storage and transport did to it is undone.
"""

from __future__ import annotations

import ast
import html
from html.entities import name2codepoint
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Latin letters and typographic marks. Not &Int; or &and;, which in a headline are damaged names.
_ENTITY_NAMES = [name for name, code in name2codepoint.items() if code < 256 or 0x2000 <= code <= 0x20AC]
_ENTITY = re.compile(rf"&(?:#\d{{1,7}}|#[xX][0-9a-fA-F]{{1,6}}|apos|trade|{'|'.join(_ENTITY_NAMES)});")
_DAMAGED_AMPERSAND = re.compile(r"&([A-Za-z]\w*);")
_INVISIBLE = "[\\x{200B}\\x{FEFF}]"  # marks that editors leave; not the joiner of emoji
_SPACE = "[\\p{Z}\\p{Cc}]+"
_SPACED_OUT = "[^ \\P{Z}]|[\\p{Cc}\\x{200B}\\x{FEFF}]|^ | $|  "  # where one of the two would change something
_NO_SYMBOL = frozenset(("", "nan", "none", "null", "n/a"))


def clean_headlines(texts: Any, *, printed_bytes: bool) -> Any:
    """Return a column of strings: entities decoded, `S&P;` made `S&P`, white space made single spaces; null made "".

    printed_bytes: undo Python's b"…" too.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.fill_null(as_strings(texts), "")
    mend = pc.match_substring(texts, "&")
    if printed_bytes:
        mend = pc.or_(mend, pc.match_substring_regex(texts, "^\\s*b[\"']"))
    if pc.any(mend).as_py():
        steps = (unprint_bytes, mend_ampersands) if printed_bytes else (mend_ampersands,)
        mended = pc.filter(texts, mend).to_pylist()
        for step in steps:
            mended = [step(text) for text in mended]
        texts = pc.replace_with_mask(texts, mend, pa.array(mended, type=pa.string()))
    spaced = pc.match_substring_regex(texts, _SPACED_OUT)  # a look is four times faster than a rewrite
    if pc.any(spaced).as_py():
        tidy = pc.replace_substring_regex(pc.filter(texts, spaced), _INVISIBLE, "")
        tidy = pc.utf8_trim(pc.replace_substring_regex(tidy, _SPACE, " "), " ")
        texts = pc.replace_with_mask(texts, spaced, tidy)
    return texts


def mend_ampersands(text: str) -> str:
    """Decode HTML entities, twice encoded ones too, and drop the semicolon that damaged `AT&T;`.

    >>> mend_ampersands("S&amp;P; lifts AT&T;, J&amp;amp;J &#39;AAA&quot;")
    'S&P lifts AT&T, J&J \\'AAA"'
    """
    for _ in range(2):
        text = _ENTITY.sub(lambda found: html.unescape(found[0]), text)
    return _DAMAGED_AMPERSAND.sub(r"&\1", text)


def unprint_bytes(text: str) -> str:
    r"""Undo Python's printing of bytes, also where the closing quote was lost.

    >>> unprint_bytes("b'Russia\\'s \\xe2\\x82\\xac 5bn'")
    "Russia's € 5bn"
    """
    bare = text.strip()
    if not re.match("b[\"']", bare):
        return text
    quote = bare[1]
    inner = bare[2:-1] if len(bare) > 2 and bare[-1] == quote else bare[2:]
    try:
        value = ast.literal_eval(f"b{quote}{inner}{quote}")
    except (SyntaxError, ValueError):  # a quote or a letter that bytes cannot hold: keep the text itself
        return inner.replace(f"\\{quote}", quote)
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else inner


def clean_symbols(cells: Any) -> list[str]:
    """Return space-separated tickers, each once and in the source's order.

    From "AAPL", "$AAPL,MSFT", "{'PTR.N', '0857.F'}" or lists; case is kept. "BRK B" is two symbols.
    """
    import pyarrow as pa

    if pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type):
        return [bare_tickers(" ".join(str(one) for one in cell or ())) for cell in cells.to_pylist()]
    coded = as_strings(cells).dictionary_encode()  # few tickers, many rows
    known = [bare_tickers(text or "") for text in coded.dictionary.to_pylist()]
    return [known[code] if code is not None else "" for code in coded.indices.to_pylist()]


def bare_tickers(text: str) -> str:
    """Return the tickers of one cell as ``clean_symbols`` does.

    >>> bare_tickers("$AAPL, {'PTR.N'}; brk-b")
    'AAPL PTR.N brk-b'
    """
    words = (word.strip("$'\"") for word in re.split(r"[\s,;|{}\[\]()'\"]+", text))
    # NAN in capitals is a fund (Nuveen's); pandas writes nan for nothing.
    return " ".join(dict.fromkeys(word for word in words if word == "NAN" or word.lower() not in _NO_SYMBOL))


def clean_scores(columns: list[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return (N, 3) float32 negative, neutral, positive, and (N,) which rows are no distribution.

    A row is NaN where none is stated. A distribution is three numbers ≥ 0 with sum 1 (± 0.02), as in trader.events.
    """
    pairs = [_numbers(column) for column in columns]
    scores = np.stack([numbers for numbers, _ in pairs], axis=1).astype(np.float32)
    garbled = np.logical_or.reduce([unreadable for _, unreadable in pairs])
    silent = np.isnan(scores).all(axis=1) & ~garbled
    with np.errstate(invalid="ignore"):
        fits = (scores >= 0).all(axis=1) & (np.abs(scores.sum(axis=1) - 1) <= 0.02)
    return scores, ~(silent | (fits & ~garbled))


def as_strings(cells: Any) -> Any:
    """Return any column as plain strings, nulls kept; bytes that are no text become their nearest."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = cells.type
    if pa.types.is_string(kind):
        return cells
    if pa.types.is_dictionary(kind):
        return as_strings(cells.dictionary_decode())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        texts = [None if cell is None else cell.decode("utf-8", errors="replace") for cell in cells.to_pylist()]
        return pa.array(texts, type=pa.string())
    if pa.types.is_nested(kind):
        return pa.array([None if cell is None else str(cell) for cell in cells.to_pylist()], type=pa.string())
    return pc.cast(cells, pa.string())


def _numbers(cells: Any) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        if pa.types.is_string(cells.type):
            bare = pc.utf8_trim_whitespace(cells)
            cells = pc.if_else(pc.equal(bare, ""), pa.scalar(None, pa.string()), bare)
        numbers = pc.cast(cells, pa.float64()).to_numpy(zero_copy_only=False)
        return numbers, np.zeros(len(numbers), dtype=np.bool_)
    except pa.ArrowInvalid:  # at least one is no number: find which, one by one
        values = np.full(len(cells), np.nan)
        garbled = np.zeros(len(cells), dtype=np.bool_)
        for at, text in enumerate(cells.to_pylist()):
            try:
                values[at] = float(text) if text else np.nan
            except ValueError:
                garbled[at] = True
        return values, garbled
