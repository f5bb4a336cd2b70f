"""Known news formats: which column is what, and what their times mean. Read by news_files, listed by the cli.

A preset is used when the user names it, and by itself where a file's columns are exactly the preset's.
To add one, add an entry to PRESETS; docs/news.md says where each set is got.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import re

from feeds.times import TimeRule

NEW_YORK = "America/New_York"
OURS = ("published_at", "headline", "negative", "neutral", "positive", "symbols", "item_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One format.

    about: a line for the list of presets.
    columns: our name → the file's. Where a tuple of the file's: published_at is the latest of them, headline is
    one item for each, item_id is all joined by "/". Empty: found as for a file without a preset.
    header: the file's columns in order, by which it is known, a nameless index column before them aside; a last
    "…" stands for any others.
    names: the columns of a file that has no header row, the date being eight digits.
    times: how to read published_at.
    date_in: a column that names the true date where the date column is damaged.
    printed_bytes: headlines may be printed Python bytes, b"…".
    """

    about: str
    columns: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    header: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    times: TimeRule
    date_in: str = ""
    printed_bytes: bool = False

    def fits(self, header: Sequence[str]) -> bool:
        """Tell whether a file's first row says that it is in this format."""
        if self.names:
            date_at = self.names.index("date")
            return len(header) == len(self.names) and re.fullmatch(r"(19|20)\d{6}", header[date_at].strip()) is not None
        bare = tuple(header[1:] if header[0].lower() in ("", "unnamed: 0", "index") else header)
        if self.header[-1:] == ("…",):
            return bare[: len(self.header) - 1] == self.header[:-1]
        return bool(self.header) and bare == self.header


_TOPS = tuple(f"Top{place}" for place in range(1, 26))

PRESETS: Mapping[str, Preset] = {
    "reuters": Preset(
        about="Reuters headlines 2007–2013 in Parquet: published_at in UTC to the minute",
        columns={"published_at": "published_at", "headline": "headline", "item_id": "source_id"},
        header=("published_at", "headline", "channel", "source_id"),
        times=TimeRule(zone="UTC", zero_seconds=True, midnight=False),
    ),
    "news-analytics": Preset(
        about="news analytics (the FININ paper's kind): scores per story and company, UTC to the second",
        columns={
            "published_at": ("time", "sourceTimestamp", "firstCreated"),
            "headline": "headline",
            "negative": "sentimentNegative",
            "neutral": "sentimentNeutral",
            "positive": "sentimentPositive",
            "symbols": "assetCodes",
            "item_id": ("sourceId", "assetName"),  # a story has a row, and scores, for each company in it
        },
        header=("time", "sourceTimestamp", "firstCreated", "sourceId", "headline", "…"),
        times=TimeRule(zone="UTC", midnight=False),
    ),
    "fnspid": Preset(
        about="FNSPID from the Hugging Face hub: 1999–2023, US companies, UTC; midnight means date only",
        columns={"published_at": "Date", "headline": "Article_title", "symbols": "Stock_symbol", "item_id": "Url"},
        header=("Date", "Article_title", "Stock_symbol", "…"),
        times=TimeRule(zone="UTC"),
    ),
    "benzinga": Preset(
        about="Kaggle's analyst_ratings_processed.csv: 2009–2020, US companies, to the minute",
        columns={"published_at": "date", "headline": "title", "symbols": "stock"},
        header=("title", "date", "stock"),
        times=TimeRule(zone=NEW_YORK, zero_seconds=True),
    ),
    "djia": Preset(
        about="Kaggle's Combined_News_DJIA.csv: 25 world news headlines a day, 2008–2016, date only",
        columns={"published_at": "Date", "headline": _TOPS},
        header=("Date", "Label", *_TOPS),
        times=TimeRule(zone=NEW_YORK),
        printed_bytes=True,
    ),
    "stocknet": Preset(
        about="the StockNet tweets about 88 US stocks, 2014–15, in Twitter's times to the second",
        columns={"published_at": "created_at", "headline": "text", "symbols": "ticker"},
        header=("date", "ticker", "created_at", "user_id", "text"),
        times=TimeRule(zone="UTC", midnight=False),
    ),
    "gold": Preset(
        about="headlines about gold 2000–2019: d-m-Y and d/m/Y mixed, damaged years taken from the address",
        columns={"published_at": "Dates", "headline": "News"},
        header=("Dates", "URL", "News", "Price Direction Up", "…"),
        times=TimeRule(zone=NEW_YORK, day_first=True),
        date_in="URL",
    ),
    "cnbc": Preset(
        about="CNBC headlines 2017–2020: `7:51  PM ET Fri, 17 July 2020`",
        columns={"published_at": "Time", "headline": "Headlines"},
        header=("Headlines", "Time", "Description"),
        times=TimeRule(zone=NEW_YORK),
    ),
    "guardian": Preset(
        about="Guardian business headlines 2017–2020: `18-Jul-20`, and `Jul-18` where the day was lost",
        columns={"published_at": "Time", "headline": "Headlines"},
        header=("Time", "Headlines"),
        times=TimeRule(zone="Europe/London"),
    ),
    "no-header": Preset(
        about="CSV without a header row: ticker, company, yyyymmdd, headline (Bloomberg 1991–2016)",
        columns={"published_at": "date", "headline": "headline", "symbols": "ticker"},
        names=("ticker", "name", "date", "headline"),
        times=TimeRule(zone=NEW_YORK),
    ),
    "day-first": Preset(
        about="any file whose dates are day/month/year",
        times=TimeRule(day_first=True),
    ),
    "month-first": Preset(
        about="any file whose dates are month/day/year",
        times=TimeRule(day_first=False),
    ),
}
