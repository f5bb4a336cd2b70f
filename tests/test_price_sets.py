"""Price files of many symbols: folders, archives, single files; an archive cannot do more than be read."""

from __future__ import annotations

from datetime import date
import gzip
import io
import os
from pathlib import Path
import tarfile

import pytest

from feeds import price_sets
from feeds.price_files import read_prices
from feeds.price_sets import holds_many, price_files
from tests.test_price_feeds import HEADER, ROWS, write
from trader.errors import BadBar, BadFile

CSV = "\n".join([HEADER, *ROWS]).encode()
EMPTY = "2008-12-02,null,null,null,null,null,null"
AFTER = "2008-12-03,843.60,873.12,827.60,870.74,870.74,6221880000"


def archive(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as made:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                made.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            made.addfile(info, io.BytesIO(member[1]))
    return path


def test_a_folder_gives_its_price_files_by_name(tmp_path: Path) -> None:
    for name in ("B.csv", "A.csv", "BRK.B.csv", "notes.txt", "._A.csv"):
        write(tmp_path, *ROWS, name=name)
    (tmp_path / "C.csv.gz").write_bytes(gzip.compress(CSV))
    found = list(price_files([tmp_path]))
    assert [file.symbol for file in found] == ["A", "B", "BRK.B", "C"]
    assert {file.symbol: file.read() for file in found} == {
        file.symbol: read_prices(tmp_path / "A.csv", symbol=file.symbol) for file in found
    }


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2", "w"])
def test_an_archive_gives_its_csv_files_and_no_other(tmp_path: Path, mode: str) -> None:
    link, folder = tarfile.TarInfo("link.csv"), tarfile.TarInfo("folder.csv")
    link.type, link.linkname, folder.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.DIRTYPE
    device = tarfile.TarInfo("device.csv")
    device.type = tarfile.CHRTYPE
    ending = {"w:gz": "tar.gz", "w:xz": "tar.xz", "w:bz2": "tar.bz2", "w": "tar"}[mode]
    path = archive(
        tmp_path / f"many.{ending}",
        ("../../out/A.csv", CSV), ("/B.csv", CSV), ("._A.csv", b"\0"), ("README", b"x"), link, folder, device,
        mode=mode,
    )  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    found = list(price_files([path]))
    assert [file.symbol for file in found] == ["A", "B"]
    assert found[0].read() == read_prices(write(tmp_path, *ROWS), symbol="A")
    (tmp_path / "spx.csv").unlink()
    assert sorted(tmp_path.rglob("*")) == before, "nothing is unpacked"


def test_an_error_names_the_archive_its_file_and_the_row(tmp_path: Path) -> None:
    path = archive(tmp_path / "many.tgz", ("A.csv", CSV + f"\n{EMPTY}\n".encode()))
    (file,) = price_files([path])
    with pytest.raises(BadBar, match=r"many.tgz A.csv row 4: open is not a number \(got nothing\)"):
        file.read()


def test_archives_and_folders_that_hold_nothing_of_use_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(price_sets, "MOST_BYTES", 500)
    monkeypatch.setattr(price_sets, "MOST_MEMBERS", 3)
    cut = archive(tmp_path / "cut.tar.gz", ("A.csv", CSV * 1), ("B.csv", os.urandom(400)))
    cut.write_bytes(cut.read_bytes()[:300])
    (tmp_path / "none").mkdir()
    (tmp_path / "false.tar.gz").write_text("not an archive")
    cases = {
        cut: "cut.tar.gz: cannot be read as an archive",
        tmp_path / "false.tar.gz": "cannot be read as an archive",
        tmp_path / "absent.tar": "cannot be read as an archive .*No such file",
        tmp_path / "none": "no price file in this folder",
        archive(tmp_path / "empty.tar", ("a.txt", b"x"), mode="w"): "no CSV file in this archive",
        archive(tmp_path / "large.tar", ("A.csv", b"x" * 501), mode="w"): "large.tar A.csv: too large a member",
        archive(tmp_path / "many.tar", *((f"{at}.csv", b"x") for at in range(4)), mode="w"): "too many members",
    }
    for path, words in cases.items():
        with pytest.raises(BadFile, match=words) as caught:
            list(price_files([path]))
        assert "\n" not in str(caught.value)


def test_one_plain_file_is_one_symbol_and_all_else_is_many(tmp_path: Path) -> None:
    assert not holds_many([Path("SPY.csv")])
    assert holds_many([Path("SPY.csv"), Path("QQQ.csv")])
    assert holds_many([tmp_path])
    assert holds_many([Path("many.TAR.GZ")])


def test_a_row_that_holds_a_date_alone_is_left_out_where_asked_and_later_rows_keep_their_numbers(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, *ROWS, EMPTY, AFTER)
    with pytest.raises(BadBar, match="row 4: open is not a number"):
        read_prices(path, symbol="SPX")
    empty: list[date] = []
    bars = read_prices(path, symbol="SPX", empty=empty)
    assert empty == [date(2008, 12, 2)]
    assert [bar.session for bar in bars] == [
        date(2008, 11, 26),
        date(2008, 11, 28),
        date(2008, 12, 1),
        date(2008, 12, 3),
    ]
    for row, words in (
        ("2008-12-04,1,1,1,,1,1", "row 6: close is not a number"),
        ("2008-12-03,1,1,1,1,1,1", "row 6: the same session twice"),
        ("2008-12-04,-1,1,1,1,1,1", r"row 6 \(2008-12-04\): open is not a positive number"),
        ("04/12/2008,1,1,1,1,1,1", "row 6: a date that cannot be read"),
        ("null,null,null,null,null,null,null", "row 6: a date that cannot be read"),
    ):
        with pytest.raises(BadBar, match=words):
            read_prices(write(tmp_path, *ROWS, EMPTY, AFTER, row), symbol="SPX", empty=[])


def test_a_file_of_empty_rows_alone_has_no_prices(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no price rows"):
        read_prices(write(tmp_path, EMPTY), symbol="SPX", empty=[])


@pytest.mark.skipif(not os.environ.get("TRADER_TEST_DATA"), reason="TRADER_TEST_DATA is not set: no StockNet prices")
def test_the_real_archive_has_three_symbols_with_an_empty_day_and_four_that_begin_late() -> None:
    path = Path(os.environ["TRADER_TEST_DATA"]) / "stocknet" / "price_raw.tar.gz"
    found = {file.symbol: file for file in price_files([path])}
    assert len(found) == 88
    for symbol, first, missing in (
        ("AAPL", date(2012, 9, 4), []), ("PTR", date(2012, 9, 4), [date(2016, 6, 29)]), ("GMRE", date(2016, 6, 30), []),
        ("BABA", date(2014, 9, 19), []),
    ):  # fmt: skip
        empty: list[date] = []
        bars = found[symbol].read(empty)
        assert (bars[0].session, bars[-1].session, empty) == (first, date(2017, 9, 1), missing)
