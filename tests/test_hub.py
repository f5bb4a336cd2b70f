"""The download of FNSPID, against a small hub served on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import os
from pathlib import Path
import subprocess
import sys
import threading
import time

import pytest

from feeds.hub import FILE, REPOSITORY, download_fnspid
from feeds.news_files import detect, read_news
from trader.errors import SourceError

COMMIT = "c" * 40
HEADER = "Unnamed: 0,Date,Article_title,Stock_symbol,Url,Publisher,Author,Article,Lsa_summary,Luhn_summary"
ROW = '{n},2020-06-05 06:30:54 UTC,"Headline {n}, with a comma",AAPL,http://x/{n},Nasdaq,,"Long\ntext",,\n'
NEWS = (HEADER + "\n" + "".join(ROW.format(n=n) for n in range(2000))).encode()


class Hub(ThreadingHTTPServer):
    """The three things a download needs: the file's metadata, a redirect to large storage, ranges of bytes."""

    daemon_threads = True

    def __init__(
        self, content: bytes, status: int = 200, cut_after: int | None = None, etag: str | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.content, self.status, self.cut_after = content, status, cut_after
        self.etag = etag or hashlib.sha256(content).hexdigest()
        self.ranges: list[str | None] = []
        self.tokens: list[str | None] = []
        self.storage = ""  # where the bytes are, as with the real hub: another host

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        hub = self.server
        if hub.status != 200 or not self.path.endswith(FILE) or f"/datasets/{REPOSITORY}/resolve/" not in self.path:
            self._send(hub.status if hub.status != 200 else 404, {})
        elif hub.storage:
            size = str(len(hub.content))
            linked = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{hub.etag}"', "X-Linked-Size": size}
            self._send(302, {**linked, "Location": hub.storage + self.path})
        else:
            self._send_bytes(with_body)

    def _send_bytes(self, with_body: bool) -> None:
        hub = self.server
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = hub.content[start:]
        headers = {"ETag": f'"{hub.etag}"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(hub.content) - 1}/{len(hub.content)}"
        self._send(206 if wanted else 200, headers)
        if with_body:
            hub.ranges.append(wanted)
            hub.tokens.append(self.headers.get("Authorization"))
            self.wfile.write(body if hub.cut_after is None else body[: hub.cut_after])
            if hub.cut_after is not None:
                self.wfile.flush()
                self.close_connection = True

    def _send(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": "0"} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        """Keep quiet."""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite runs with HF_HUB_OFFLINE=1, which huggingface_hub reads when it is first imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def in_a_process(target: Path, **settings: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Download as a user would, with the settings in the environment; also the seconds it took."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom feeds.hub import download_fnspid\n"
        "from trader.errors import SourceError\n"
        "try:\n    print(download_fnspid(Path(sys.argv[1])))\nexcept SourceError as error:\n    sys.exit(str(error))\n"
    )
    started = time.perf_counter()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script, str(target)],
        env={**clean, "PYTHONPATH": str(root), "NO_PROXY": "127.0.0.1", **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done, time.perf_counter() - started


def test_a_download_from_the_hub_named_by_hf_endpoint_is_read_with_its_preset(tmp_path: Path) -> None:
    with serving(Hub(NEWS)) as hub:
        done, _ = in_a_process(tmp_path, HF_ENDPOINT=hub.address)
    path = tmp_path / Path(FILE).name
    assert done.returncode == 0 and done.stdout.strip() == str(path) and done.stderr == ""
    assert path.read_bytes() == NEWS
    assert detect(path) == "fnspid"
    rows = list(read_news(path))
    assert sum(len(piece.news) for piece in rows) == 2000
    assert rows[0].news.headline[7] == "Headline 7, with a comma" and rows[0].news.symbols[7] == "AAPL"


def test_an_interrupted_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    part = tmp_path / f"{Path(FILE).name}.{hashlib.sha256(NEWS).hexdigest()}.part"
    part.write_bytes(NEWS[:50_000])
    seen: list[tuple[int, int]] = []
    with serving(Hub(NEWS)) as hub:
        path = download_fnspid(tmp_path, endpoint=hub.address, progress=lambda held, size: seen.append((held, size)))
        assert hub.ranges == ["bytes=50000-"]
    assert path.read_bytes() == NEWS
    assert seen[0][0] > 50_000 and seen[-1] == (len(NEWS), len(NEWS))
    assert not part.exists()


def test_a_connection_that_breaks_is_taken_up_again_in_the_same_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # 10 MB, the library's, is more than this whole file
    with serving(Hub(NEWS, cut_after=100_000)) as hub:
        assert download_fnspid(tmp_path, endpoint=hub.address).read_bytes() == NEWS
        assert hub.ranges[:2] == [None, "bytes=100000-"]
    assert not caplog.records  # the library's warnings stay off the terminal


def test_a_whole_file_is_not_fetched_twice_but_a_new_version_is(tmp_path: Path) -> None:
    with serving(Hub(NEWS)) as hub:
        download_fnspid(tmp_path, endpoint=hub.address)
        download_fnspid(tmp_path, endpoint=hub.address)
        assert len(hub.ranges) == 1
        hub.content = NEWS.replace(b"Headline", b"Corrected")
        hub.etag = hashlib.sha256(hub.content).hexdigest()
        assert download_fnspid(tmp_path, endpoint=hub.address).read_bytes() == hub.content


def test_the_token_is_not_sent_to_the_storage_behind_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving(Hub(NEWS)) as storage, serving(Hub(NEWS)) as hub:
        hub.storage = storage.address
        assert download_fnspid(tmp_path, endpoint=hub.address).read_bytes() == NEWS
        assert storage.tokens == [None]
        hub.storage = ""
        hub.etag = hashlib.sha256(b"another").hexdigest()
        with pytest.raises(SourceError):
            download_fnspid(tmp_path, endpoint=hub.address)
        assert hub.tokens == ["Bearer hf_secret"]


def test_other_bytes_than_announced_are_refused_and_not_kept(tmp_path: Path) -> None:
    with (
        serving(Hub(NEWS, etag="a" * 64)) as hub,
        pytest.raises(SourceError, match=r"not those the hub announced.*download it again"),
    ):
        download_fnspid(tmp_path, endpoint=hub.address)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_two_downloads_at_once_do_not_mix_their_bytes(tmp_path: Path) -> None:
    from filelock import FileLock

    part = tmp_path / f"{Path(FILE).name}.{hashlib.sha256(NEWS).hexdigest()}.part"
    with serving(Hub(NEWS)) as hub, FileLock(f"{part}.lock"), pytest.raises(SourceError, match="another download"):
        download_fnspid(tmp_path, endpoint=hub.address)


@pytest.mark.parametrize(("status", "advice"), [(401, "HF_TOKEN"), (404, "try again later")])
def test_a_refusal_names_the_status_and_what_to_do(tmp_path: Path, status: int, advice: str) -> None:
    with (
        serving(Hub(NEWS, status=status)) as hub,
        pytest.raises(SourceError, match=rf"the hub refused the file .got HTTP {status}.*{advice}"),
    ):
        download_fnspid(tmp_path, endpoint=hub.address)


def test_a_full_disk_is_named_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with serving(Hub(NEWS)) as hub, pytest.raises(SourceError, match=r"not enough disk space .got 0\.0 GB free"):
        download_fnspid(tmp_path, endpoint=hub.address)


def test_offline_mode_is_named_at_once(tmp_path: Path) -> None:
    done, seconds = in_a_process(tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip() == f"{REPOSITORY}: HF_HUB_OFFLINE is set, so nothing is downloaded; unset it"
    assert seconds < 10


def test_an_unreachable_hub_is_one_line_and_quick(tmp_path: Path) -> None:
    done, seconds = in_a_process(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1 and "the hub cannot be reached" in done.stderr
    assert seconds < 10


def test_a_server_that_is_no_hub_is_named(tmp_path: Path) -> None:
    class Plain(_Answers):
        def do_HEAD(self) -> None:
            self._send(200, {})

    hub = Hub(NEWS)
    hub.RequestHandlerClass = Plain
    with serving(hub), pytest.raises(SourceError, match="not a hub's; check HF_ENDPOINT"):
        download_fnspid(tmp_path, endpoint=hub.address)
