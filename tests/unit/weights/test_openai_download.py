"""Downloads of OpenAI's checkpoints, from a server on this machine in OpenAI's place."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gptmill.errors import UserError
from gptmill.fetch import download
from gptmill.weights import openai
from gptmill.weights.openai import DATA, FILES, download_openai

PLACE = "openaipublic.blob.core.windows.net/gpt-2/models/124M"
CONTENTS = {name: f"{name} ".encode() * 1000 for name in FILES}
HASHES = {name: hashlib.sha256(CONTENTS[name]).hexdigest() for name in openai.SHA256}


class Source(BaseHTTPRequestHandler):
    """Files with ranges; `cut` makes the next answer end early."""

    asked: list[tuple[str, str | None]]
    cut: int

    def do_GET(self) -> None:
        name, wanted = self.path.rpartition("/")[2], self.headers.get("Range")
        type(self).asked.append((name, wanted))
        if name not in CONTENTS or "/gpt-2/models/124M/" not in self.path:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = CONTENTS[name][start:]
        self.send_response(206 if wanted else 200)
        if wanted:
            last = len(CONTENTS[name]) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{last + 1}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.cut] if name == DATA and self.cut else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Source.asked, Source.cut = [], 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Source)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setattr(openai, "ADDRESS", f"http://127.0.0.1:{server.server_port}/gpt-2/models")
    monkeypatch.setattr(openai, "SHA256", HASHES)
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    for name in ("GPTMILL_OFFLINE", "GPTMILL_MIRROR", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield openai.ADDRESS
    server.shutdown()
    thread.join()
    server.server_close()


def test_all_files_once(source: str, tmp_path: Path) -> None:
    folder = download_openai("124M", tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENTS
    assert len(Source.asked) == len(FILES)
    assert download_openai("124M", tmp_path) == folder
    assert len(Source.asked) == len(FILES)


def test_a_broken_transfer_is_continued(source: str, tmp_path: Path) -> None:
    Source.cut = 700
    with pytest.raises(UserError, match=DATA):
        download_openai("124M", tmp_path)
    assert (tmp_path / "124M" / f"{DATA}.partial").stat().st_size == 700
    Source.cut = 0
    folder = download_openai("124M", tmp_path)
    assert Source.asked[-1] == (DATA, "bytes=700-")
    assert (folder / DATA).read_bytes() == CONTENTS[DATA]


def test_a_wrong_hash(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTENTS, "vocab.bpe", b"something else")
    with pytest.raises(UserError, match=rf"vocab\.bpe: expected SHA-256 {HASHES['vocab.bpe']}"):
        download_openai("124M", tmp_path)
    assert not (tmp_path / "124M/vocab.bpe").exists()


def test_a_file_that_is_not_there(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(CONTENTS, "model.ckpt.index")
    with pytest.raises(UserError, match=r"model\.ckpt\.index: the server answered 404"):
        download_openai("124M", tmp_path)


def test_offline_names_each_file_and_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPTMILL_MIRROR", raising=False)
    monkeypatch.setenv("GPTMILL_OFFLINE", "1")
    with pytest.raises(UserError) as caught:
        download_openai("355M", tmp_path)
    message = str(caught.value)
    assert all(f"goes to {tmp_path / '355M' / name}" in message for name in FILES)
    assert "offline, and 5 file(s) are missing" in message


def test_a_mirror_that_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "mirror" / PLACE
    place.mkdir(parents=True)
    for name, content in CONTENTS.items():
        (place / name).write_bytes(content)
    monkeypatch.setattr(openai, "SHA256", HASHES)
    monkeypatch.setenv("GPTMILL_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("GPTMILL_OFFLINE", "1")
    folder = download_openai("124M", tmp_path / "cache")
    assert (folder / DATA).read_bytes() == CONTENTS[DATA]


def test_an_unknown_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no GPT-2 '125M': the sizes are 124M, 355M, 774M, 1558M"):
        download_openai("125M", tmp_path)
