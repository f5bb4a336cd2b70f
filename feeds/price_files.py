"""Turn a CSV or Parquet file of daily prices in Yahoo's columns into bars.

``bars_of`` is shared with every feed that gets its prices as a table (the built-in series, Yahoo).
A price file is taken whole or not at all: a hole or a bad row would move every return that follows it.
"""

from __future__ import annotations

from datetime import date
import io
from pathlib import Path
from typing import TYPE_CHECKING

from trader.clock import Calendar
from trader.errors import BadBar, BadFile
from trader.events import Bar, from_us

if TYPE_CHECKING:
    import pandas as pd

PRICES = ("open", "high", "low", "close")
EXCHANGE_ZONE = "America/New_York"
_WITH_ZONE = r":\d\d.*(?:Z|[+-]\d\d:?\d\d)$"


def read_prices(path: Path | str, *, symbol: str, empty: list[date] | None = None) -> list[Bar]:
    """Read one symbol's daily bars, oldest first, each known at its session's true close.

    Columns Date, Open, High, Low, Close, Adj Close, Volume in any case and order; others are ignored.
    Without Adj Close the close stands for it. Without a Volume, or with an empty one, the volume is 0 throughout
    (currencies and some indices); a volume missing on single sessions is an error.
    Dates are ISO; one with a zone means the day it was in New York.
    empty: rows that have a date and not one number (Yahoo writes them where it has lost a day) are left out and their
    days put here, so that the symbol has no bar then; without it they are refused as any bad row is.
    Raises BadFile (missing, unreadable, wrong columns, no rows) and BadBar (unreadable or repeated date, a day
    that is no XNYS session, disorder, a price that is not a positive number), naming file and row; the first
    data row is row 1.
    """
    path = Path(path)
    return bars_of(_read_table(path), symbol=symbol, source=path.name, empty=empty)


def read_csv_prices(content: bytes, *, symbol: str, source: str, empty: list[date] | None = None) -> list[Bar]:
    """Read the content of a CSV file as ``read_prices`` does; ``source`` is for the errors."""
    return bars_of(_read_table(Path(source), content), symbol=symbol, source=source, empty=empty)


def bars_of(table: pd.DataFrame, *, symbol: str, source: str, empty: list[date] | None = None) -> list[Bar]:
    """Turn a table in Yahoo's columns, dates in a column or in the index, into bars; raise as read_prices does.

    source: the file or site, for the errors.
    """
    table = _standard_columns(table, source)
    table = table.set_axis(range(1, len(table) + 1), axis=0)  # its row numbers, whatever is left out
    if empty is not None:
        table = _without_empty(table, source, empty)
    if table.empty:
        raise BadFile("no price rows", where=source, do="give a file with one row a session")
    days = _days(table["date"], source)
    _check_order(days, table.index.to_list(), source)
    columns = [_numbers(table, name, source).tolist() for name in (*PRICES, "adj close", "volume")]
    closes = Calendar().closes_us(days)
    bars = []
    for row, day, known_us, *cells in zip(table.index, days, closes, *columns, strict=True):
        opened, high, low, close, adjusted, volume = cells
        try:
            bars.append(
                Bar(
                    symbol=symbol,
                    session=day,
                    open=opened,
                    high=high,
                    low=low,
                    close=close,
                    adj_close=adjusted,
                    volume=volume,
                    known_at=from_us(known_us),
                )
            )
        except BadBar as error:
            raise BadBar(error.what, where=f"{source} row {row} ({day})", got=error.got) from error
    return bars


def _without_empty(table: pd.DataFrame, source: str, empty: list[date]) -> pd.DataFrame:
    """Return the table without the rows that hold a date alone; their days go into ``empty``."""
    bare = table["date"].notna() & table[[*PRICES, "adj close"]].isna().all(axis=1)
    empty.extend(_days(table.loc[bare, "date"], source) if bare.any() else [])
    return table.loc[~bare]


def _read_table(path: Path, content: bytes | None = None) -> pd.DataFrame:
    """Read a file by its ending, or the content of a CSV; the one place where pandas' and pyarrow's errors are ours."""
    import pandas as pd

    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return pd.read_parquet(path)
        return pd.read_csv(path if content is None else io.BytesIO(content), skip_blank_lines=False)
    except FileNotFoundError as error:
        raise BadFile("no such file", where=path, do="check the path") from error
    except pd.errors.EmptyDataError as error:
        raise BadFile("an empty file", where=path, do="give a file with one row a session") from error
    except (OSError, ValueError) as error:  # pyarrow's and pandas' parser errors, and bad UTF-8, are ValueErrors
        raise BadFile(
            "cannot be read as prices", where=path, got=_first_line(error), expected="a CSV or Parquet table"
        ) from error


def _standard_columns(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """Return the table with lower-case names and every column that a bar needs."""
    if table.index.name is not None and str(table.index.name).lower() == "date":
        table = table.reset_index()
    table = table.rename(columns=lambda name: str(name).strip().lower().replace("_", " "))
    missing = [name for name in ("date", *PRICES) if name not in table.columns]
    if missing:
        raise BadFile(
            f"no column {', '.join(missing)}",
            where=source,
            got=", ".join(table.columns[:12]),
            expected="Date, Open, High, Low, Close, Adj Close, Volume",
            do="rename the columns",
        )
    if repeated := sorted(set(table.columns[table.columns.duplicated()])):
        raise BadFile(f"two columns named {', '.join(repeated)}", where=source, do="keep one of them")
    if "adj close" not in table.columns:
        table = table.assign(**{"adj close": table["close"]})
    if "volume" not in table.columns or table["volume"].isna().all():
        table = table.assign(volume=0.0)
    return table


def _days(dates: pd.Series, source: str) -> list[date]:
    """Return each row's day: as written where it carries no zone, else the day in New York."""
    import pandas as pd

    if isinstance(dates.dtype, pd.DatetimeTZDtype):
        stamps = dates.dt.tz_convert(EXCHANGE_ZONE)
    elif pd.api.types.is_datetime64_dtype(dates.dtype):
        stamps = dates
    else:
        text = dates.astype("str").str.strip()
        # Number-like dates (20000103, Excel's 36528) would be read as nanoseconds since 1970.
        iso = text.where(text.str.match(r"\d{4}-\d\d-\d\d"))
        utc = pd.to_datetime(iso, format="ISO8601", utc=True, errors="coerce")
        in_new_york = utc.dt.tz_convert(EXCHANGE_ZONE).dt.tz_localize(None)
        stamps = in_new_york.where(text.str.contains(_WITH_ZONE, regex=True), utc.dt.tz_localize(None))
    if stamps.isna().any():
        row = int(stamps.isna().to_numpy().argmax())
        raise BadBar(
            "a date that cannot be read",
            where=f"{source} row {dates.index[row]}",
            got=dates.iloc[row],
            expected="a date like 2008-09-15",
        )
    return list(stamps.dt.date)


def _check_order(days: list[date], rows: list[int], source: str) -> None:
    """Raise BadBar for the first day that is no session, comes twice or comes before the one above it."""
    calendar = Calendar()
    for row, day in enumerate(days, start=1):
        where = f"{source} row {rows[row - 1]}"
        if not calendar.is_session(day):
            raise BadBar("not a session of the exchange (XNYS)", where=where, got=day, do="remove the row")
        if row == 1 or day > days[row - 2]:
            continue
        if day == days[row - 2] or day in days[: row - 1]:
            raise BadBar("the same session twice", where=where, got=day, do="keep one of the two rows")
        raise BadBar(
            "sessions out of order", where=where, got=f"{day} after {days[row - 2]}", do="sort the rows, oldest first"
        )


def _numbers(table: pd.DataFrame, name: str, source: str) -> pd.Series:
    """Return a column as float64; raise BadBar for the first cell that is not a number."""
    import pandas as pd

    numbers = pd.to_numeric(table[name], errors="coerce").astype("float64")
    if numbers.isna().any():
        row = int(numbers.isna().to_numpy().argmax())
        got = table[name].iloc[row]
        shown = "nothing" if pd.isna(got) else got
        raise BadBar(f"{name} is not a number", where=f"{source} row {table.index[row]}", got=shown)
    return numbers


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
