"""Find the price files of many symbols: files, the files of a folder, the members of a tar archive; one symbol each.

The symbol is the file's name without its ending. Of an archive nothing is written to the disk: its plain CSV members
are read one after the other into memory, whatever paths they claim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
import lzma
from pathlib import Path, PurePosixPath
import tarfile
import zlib

from feeds.price_files import read_csv_prices, read_prices
from trader.errors import BadFile
from trader.events import Bar

ENDINGS = (".csv", ".csv.gz", ".parquet", ".pq")
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MOST_BYTES = 64 * 1024 * 1024  # of one member; a century of daily rows takes 2 MB
MOST_MEMBERS = 50_000


@dataclass(frozen=True, slots=True)
class PriceFile:
    """One symbol's prices, not read as bars yet: a file on disk, or an archive's member with its content."""

    symbol: str
    where: str
    path: Path
    content: bytes | None = None

    def read(self, empty: list[date] | None = None) -> list[Bar]:
        """Return its bars; raises and takes ``empty`` as ``read_prices`` does."""
        if self.content is None:
            return read_prices(self.path, symbol=self.symbol, empty=empty)
        return read_csv_prices(self.content, symbol=self.symbol, source=self.where, empty=empty)


def holds_many(paths: Sequence[Path]) -> bool:
    """Tell whether these words name more than one plain file."""
    return len(paths) != 1 or paths[0].is_dir() or _is_archive(paths[0])


def price_files(paths: Sequence[Path]) -> Iterator[PriceFile]:
    """Yield the price files of all paths, in the order given; a folder's by name, an archive's as they lie in it.

    Raises BadFile for a folder or an archive without a price file, and for an archive that is damaged, has a member
    that is too large or too many of them.
    """
    for path in paths:
        if path.is_dir():
            yield from _of_folder(path)
        elif _is_archive(path):
            yield from _of_archive(path)
        else:
            yield PriceFile(_symbol_of(path.name), path.name, path)


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def _symbol_of(name: str) -> str:
    ending = next((one for one in ENDINGS if name.lower().endswith(one)), "")
    return name[: len(name) - len(ending)] if ending else Path(name).stem


def _of_folder(folder: Path) -> Iterator[PriceFile]:
    files = [one for one in sorted(folder.iterdir()) if one.name.lower().endswith(ENDINGS) and one.name[0] != "."]
    if not files:
        raise BadFile("no price file in this folder", where=folder, expected=f"files that end in {', '.join(ENDINGS)}")
    for file in files:
        yield PriceFile(_symbol_of(file.name), file.name, file)


def _of_archive(path: Path) -> Iterator[PriceFile]:
    found = 0
    with _translated(path), tarfile.open(path, "r:*") as archive:
        for count, member in enumerate(archive):
            name = PurePosixPath(member.name).name
            if count >= MOST_MEMBERS:
                raise BadFile("too many members", where=path, expected=f"at most {MOST_MEMBERS}")
            # macOS packs a "._AAPL.csv" beside each file; folders, links and devices are no files.
            if not member.isfile() or name.startswith(".") or not name.lower().endswith(".csv"):
                continue
            if member.size > MOST_BYTES:
                raise BadFile("too large a member", where=f"{path.name} {name}", got=f"{member.size:,} bytes")
            content = archive.extractfile(member)
            assert content is not None, "a plain file has content"
            found += 1
            yield PriceFile(_symbol_of(name), f"{path.name} {name}", path, content.read(MOST_BYTES))
    if not found:
        raise BadFile("no CSV file in this archive", where=path)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise BadFile("cannot be read as an archive", where=path, got=got, do="check the file") from error
