"""Fetch the public news set FNSPID from the Hugging Face hub to disk; the only feed that downloads a file.

The file is tens of GB. huggingface_hub's hf_hub_download keeps nothing of a download that was interrupted (2.4
writes to a name of its own each time and deletes it), so its two parts are used here directly: the file's metadata,
and http_get, which goes on where a file ends. What is fetched is then read by news_files with the preset fnspid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import hashlib
import os
from pathlib import Path
import re
import shutil
from typing import BinaryIO, cast

from trader.errors import SourceError

REPOSITORY, FILE = "Zihan1004/FNSPID", "Stock_news/nasdaq_exteral_data.csv"
Progress = Callable[[int, int], None]
_CHUNK = 1 << 22


def download_fnspid(target: Path, *, endpoint: str | None = None, progress: Progress | None = None) -> Path:
    """Download FNSPID's news file into the folder ``target`` and return its path.

    What an interrupted call has fetched is kept beside it (``….part``, tied to the file's version on the hub) and
    the next call goes on from there; a file that is already whole is not fetched again. Where the hub states a
    sha256, the bytes are checked against it before the file gets its name.
    endpoint: the hub's address; by default HF_ENDPOINT, else huggingface_hub's own.
    progress: called with (bytes held, bytes in all).
    Raises SourceError where HF_HUB_OFFLINE is set, the hub cannot be reached, refuses, or sends other bytes
    than it announced, or the disk is full.
    """
    from filelock import FileLock

    place = target / Path(FILE).name
    with _translated(target):
        url, etag, size = _metadata(endpoint)
        done = target / f".{place.name}.{etag}.done"
        if done.exists() and place.exists() and place.stat().st_size == size:
            return place
        target.mkdir(parents=True, exist_ok=True)
        part = target / f"{place.name}.{etag}.part"
        with FileLock(f"{part}.lock", timeout=0):
            _fetch(url, part, size, progress)
            _check(part, etag)
            part.replace(place)
            done.touch()
    return place


def _metadata(endpoint: str | None) -> tuple[str, str, int]:
    """Ask the hub for the address of the file's present version, that version's tag and its size in bytes."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if constants.is_offline_mode():
        raise SourceError("HF_HUB_OFFLINE is set, so nothing is downloaded", where=REPOSITORY, do="unset it")
    url = hf_hub_url(REPOSITORY, FILE, repo_type="dataset", endpoint=endpoint)
    found = get_hf_file_metadata(url, endpoint=endpoint)
    if found.etag is None or found.size is None or found.commit_hash is None:
        raise SourceError("the answer is not a hub's", where=url, do="check HF_ENDPOINT")
    # The hub's own address rather than found.location: a signed one, which runs out before tens of GB are here.
    pinned = hf_hub_url(REPOSITORY, FILE, repo_type="dataset", revision=found.commit_hash, endpoint=endpoint)
    return pinned, re.sub(r"\W", "", found.etag), found.size


def _fetch(url: str, part: Path, size: int, progress: Progress | None) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    if part.exists() and part.stat().st_size > size:
        part.unlink()
    held = part.stat().st_size if part.exists() else 0
    free = shutil.disk_usage(part.parent).free
    if free < size - held:
        raise SourceError(
            "not enough disk space", where=part.parent, got=f"{free / 1e9:.1f} GB free",
            expected=f"{(size - held) / 1e9:.1f} GB", do="name another --home",
        )  # fmt: skip
    with _quiet(), part.open("ab") as file:
        counted = cast(BinaryIO, _Counted(file, size, progress))
        headers = build_hf_headers()  # with the user's token, which httpx takes off where it is sent elsewhere
        http_get(url, counted, resume_size=held, headers=headers, expected_size=size, displayed_filename=FILE)
        os.fsync(file.fileno())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's bars and its "trying to resume" off the terminal, which is the cli's."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    silent, verbosity = are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if not silent:
            enable_progress_bars()


class _Counted:
    """A file that tells how much of it there is after each write; what http_get needs of a file and no more."""

    def __init__(self, file: BinaryIO, size: int, progress: Progress | None) -> None:
        self._file, self._size, self._progress = file, size, progress

    def write(self, chunk: bytes) -> int:
        count = self._file.write(chunk)
        if self._progress:
            self._progress(self._file.tell(), self._size)
        return count

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int) -> int:
        return self._file.seek(offset)

    def truncate(self) -> int:
        return self._file.truncate()


def _check(part: Path, etag: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", etag):
        return  # not in large storage: the tag is no hash of the content alone
    digest = hashlib.sha256()
    with part.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != etag:
        part.unlink()
        raise SourceError(
            "the bytes are not those the hub announced", where=FILE, got=digest.hexdigest()[:12],
            expected=etag[:12], do="download it again",
        )  # fmt: skip


@contextmanager
def _translated(target: Path) -> Iterator[None]:
    """Turn what huggingface_hub and the disk raise into one line."""
    from filelock import Timeout
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise SourceError("HF_HUB_OFFLINE is set, so nothing is downloaded", where=REPOSITORY, do="unset it") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise SourceError(
            "the hub refused the file", where=f"{REPOSITORY}/{FILE}", got=f"HTTP {status}",
            do="set HF_TOKEN to an account that may read it" if status in (401, 403) else "try again later",
        ) from error  # fmt: skip
    except HTTPError as error:
        raise SourceError(
            "the hub cannot be reached", where=REPOSITORY, got=_first_line(error),
            do="check the network, then run the same command: it goes on where it stopped",
        ) from error  # fmt: skip
    except Timeout as error:
        raise SourceError("another download of it is running", where=target, do="wait for that one") from error
    except (OSError, ValueError) as error:
        raise SourceError(
            "the download failed", where=target, got=_first_line(error), do="run the same command again: it goes on"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
