"""Downloads against a real server on loopback that fails as real servers do."""

import contextlib
import errno
import gzip
import hashlib
import io
import json
import random
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gptmill.errors import UserError
from gptmill.fetch import download as module
from gptmill.fetch import transfer
from gptmill.fetch.download import fetch
from gptmill.fetch.environment import mirror_from_environment, offline_from_environment
from gptmill.fetch.manifest import RemoteFile, destination_names, read_manifest
from tests.support.mirror import MANIFESTS, MIRROR, needs_mirror

BODY = bytes(range(256)) * 4096  # 1 MiB


class Server:
    """Files by path, a queue of faults, and a log of what was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.ranges = True
        self.retry_after = "0"
        self.sent = 0
        self.requests: list[tuple[str, str | None]] = []

    def start(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # a client that hangs up is no news
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.requests.append((handler.path, asked))
        fault = self.faults.pop(0) if self.faults else ""
        body = self.files.get(handler.path)
        if fault.isdigit() or body is None:
            self._send(handler, int(fault or 404), b"", {"Retry-After": self.retry_after})
            return
        offset = int(asked.split("=")[1].rstrip("-")) if asked and self.ranges else 0
        told = {}
        if asked and self.ranges:
            told = {"Content-Range": f"bytes {offset}-{len(body) - 1}/{len(body)}"}
        if fault == "wrong range":
            told = {"Content-Range": f"bytes 0-{len(body) - 1}/{len(body)}"}
        if offset >= len(body):
            self._send(handler, 416, b"", {"Content-Range": f"bytes */{len(body)}"})
            return
        if fault.startswith("redirect to "):
            self._send(handler, 302, b"", {"Location": fault.removeprefix("redirect to ")})
            return
        if fault in ("endless", "trickle", "bomb"):
            getattr(self, f"_{fault}")(handler)
            return
        status = 206 if told else 200
        if fault.endswith("without a length"):
            told["Content-Length"] = None
        keep = len(body) // 2 if fault.startswith("cut") else None
        self._send(handler, status, body[offset:], told, keep)

    def _endless(self, handler: BaseHTTPRequestHandler) -> None:
        """It tells a terabyte, and goes on until the client hangs up."""
        self._send(handler, 200, b"", {"Content-Length": str(1 << 40)})
        with contextlib.suppress(OSError):
            while self.sent < 1 << 30:
                handler.wfile.write(BODY)
                self.sent += len(BODY)

    def _trickle(self, handler: BaseHTTPRequestHandler) -> None:
        """A byte now and then, so that no timeout between two bytes is met."""
        self._send(handler, 200, b"", {"Content-Length": str(len(BODY))})
        with contextlib.suppress(OSError):
            for place in range(200):
                handler.wfile.write(BODY[place : place + 1])
                time.sleep(0.05)

    def _bomb(self, handler: BaseHTTPRequestHandler) -> None:
        """Compressed unasked: a gigabyte of zeros in a megabyte."""
        packer = zlib.compressobj(9, wbits=31)
        packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1 << 10)) + packer.flush()
        self._send(handler, 200, packed, {"Content-Encoding": "gzip"})

    @staticmethod
    def _send(handler, status: int, body: bytes, headers: dict, keep: int | None = None) -> None:
        handler.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            if value is not None:
                handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body[:keep])


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "BACKOFF_SECONDS", 0.0)
    made = Server()
    made.start()
    yield made
    made.http.shutdown()
    made.http.server_close()


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def write_manifest(folder: Path, *entries: dict) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps(list(entries)))
    return path


def entry(url: str, body: bytes, **more: object) -> dict:
    return {"url": url, "bytes": len(body), "sha256": sha(body)} | more


def one(server: Server, folder: Path, **more: object) -> Path:
    """A manifest of one file of 1 MiB that the server has."""
    server.files["/a/book.txt"] = BODY
    return write_manifest(folder, entry(f"{server.address}/a/book.txt", BODY, **more))


def run(manifest: Path, folder: Path, **options: object) -> list[Path]:
    return fetch(manifest, folder / "out", cache=folder / "cache", **options)


def test_a_file_is_downloaded_once(server, tmp_path):
    manifest = one(server, tmp_path)
    assert run(manifest, tmp_path) == [tmp_path / "out" / "book.txt"]
    assert (tmp_path / "out" / "book.txt").read_bytes() == BODY
    run(manifest, tmp_path, offline=True)  # the cache has it: no network is needed
    assert len(server.requests) == 1


def test_a_truncated_download_is_resumed_where_it_stopped(server, tmp_path):
    manifest = one(server, tmp_path)
    server.faults = ["cut"]
    assert run(manifest, tmp_path)[0].read_bytes() == BODY
    assert server.requests == [("/a/book.txt", None), ("/a/book.txt", f"bytes={len(BODY) // 2}-")]


def test_the_next_run_continues_what_this_one_left(server, tmp_path, monkeypatch):
    manifest = one(server, tmp_path)
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    server.faults = ["cut"]
    with pytest.raises(UserError, match=r"524,288 bytes are kept in .*partial"):
        run(manifest, tmp_path)
    assert not (tmp_path / "out").exists()
    run(manifest, tmp_path)
    assert server.requests[-1][1] == "bytes=524288-"


def test_the_manifests_size_tells_a_truncation_the_server_does_not(server, tmp_path):
    manifest = one(server, tmp_path)
    server.faults = ["cut without a length"]
    assert run(manifest, tmp_path)[0].read_bytes() == BODY
    assert server.requests[-1][1] == f"bytes={len(BODY) // 2}-"


def test_equal_files_are_downloaded_once(server, tmp_path):
    server.files = {"/a.txt": BODY, "/b.txt": BODY}
    entries = [entry(f"{server.address}/{name}.txt", BODY) for name in "ab"]
    files = run(write_manifest(tmp_path, *entries), tmp_path)
    assert [file.name for file in files] == ["a.txt", "b.txt"]
    assert {file.read_bytes() for file in files} == {BODY}
    assert len(server.requests) == 1


def test_a_server_without_ranges_begins_again(server, tmp_path):
    manifest = one(server, tmp_path)
    server.ranges = False
    server.faults = ["cut"]
    assert run(manifest, tmp_path)[0].read_bytes() == BODY


def test_a_wrong_content_range_begins_again(server, tmp_path):
    manifest = one(server, tmp_path)
    server.faults = ["cut", "wrong range"]
    assert run(manifest, tmp_path)[0].read_bytes() == BODY
    assert server.requests[-1][1] is None


def test_a_partial_that_is_complete_is_taken(server, tmp_path):
    manifest = one(server, tmp_path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f"{sha(BODY)}.partial").write_bytes(BODY)
    assert run(manifest, tmp_path)[0].read_bytes() == BODY
    assert server.requests == [("/a/book.txt", f"bytes={len(BODY)}-")]  # answered by 416


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * (len(BODY) + 5)], ids=["short", "long"])
def test_a_partial_of_another_file_is_thrown_away(server, tmp_path, left):
    manifest = one(server, tmp_path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f"{sha(BODY)}.partial").write_bytes(left)
    assert run(manifest, tmp_path)[0].read_bytes() == BODY


def test_server_errors_are_retried(server, tmp_path):
    manifest = one(server, tmp_path)
    server.faults = ["500", "429", "503"]
    assert run(manifest, tmp_path)[0].read_bytes() == BODY
    assert len(server.requests) == 4


def test_retries_end(server, tmp_path):
    manifest = one(server, tmp_path)
    server.faults = ["500"] * 9
    with pytest.raises(UserError, match=r"answered 500 .*5 attempts"):
        run(manifest, tmp_path)
    assert len(server.requests) == 5


def test_an_absent_file_is_told_and_not_retried(server, tmp_path):
    manifest = write_manifest(tmp_path, entry(f"{server.address}/none", BODY))
    with pytest.raises(UserError, match=r"/none: the server answered 404 .*GPTMILL_MIRROR"):
        run(manifest, tmp_path)
    assert len(server.requests) == 1


def test_nobody_listening_is_told(server, tmp_path):
    manifest = write_manifest(tmp_path, entry("http://127.0.0.1:1/x", BODY))
    with pytest.raises(UserError, match=r"127.0.0.1:1/x: the connection failed"):
        run(manifest, tmp_path)


def test_wrong_bytes_are_refused_kept_and_earlier_files_stay(server, tmp_path):
    manifest = one(server, tmp_path)
    run(manifest, tmp_path)
    (tmp_path / "cache" / sha(BODY)).unlink()
    server.files["/a/book.txt"] = wrong = BODY[:-1] + b"!"
    with pytest.raises(UserError) as caught:
        run(manifest, tmp_path)
    kept = tmp_path / "cache" / f"{sha(BODY)}.rejected"
    for told in (sha(BODY), sha(wrong), str(kept), f"{server.address}/a/book.txt"):
        assert told in str(caught.value)
    assert kept.read_bytes() == wrong
    assert (tmp_path / "out" / "book.txt").read_bytes() == BODY


def test_a_damaged_cache_is_mended(server, tmp_path):
    manifest = one(server, tmp_path)
    run(manifest, tmp_path)
    (tmp_path / "cache" / sha(BODY)).write_bytes(b"damaged")
    assert run(manifest, tmp_path)[0].read_bytes() == BODY


def test_a_server_that_sends_without_end_is_stopped(server, tmp_path):
    manifest = one(server, tmp_path)
    server.files["/a/book.txt"] = BODY * 3
    with pytest.raises(UserError, match="expected SHA-256"):
        run(manifest, tmp_path)


def test_every_failure_is_told_in_the_manifests_order(server, tmp_path):
    bodies = [f"text {i}".encode() for i in range(30)]
    server.files = {f"/{i:02d}.txt": body for i, body in enumerate(bodies)}
    entries = [entry(f"{server.address}/{i:02d}.txt", body) for i, body in enumerate(bodies)]
    del server.files["/07.txt"], server.files["/23.txt"]
    with pytest.raises(UserError) as caught:
        run(write_manifest(tmp_path, *entries), tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "/07.txt" in lines[0] and "/23.txt" in lines[1]
    assert len(list((tmp_path / "cache").iterdir())) == 28  # the others are not lost


def test_a_full_disk_is_told(server, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    manifest = one(server, tmp_path)
    monkeypatch.setattr(module._Downloader, "_append", full)
    with pytest.raises(UserError, match="no space left on the disk"):
        run(manifest, tmp_path)


def test_too_little_room_is_told_before_the_download(server, tmp_path):
    huge = entry(f"{server.address}/a", BODY) | {"bytes": 1 << 60}
    with pytest.raises(UserError, match="downloads need"):
        run(write_manifest(tmp_path, huge), tmp_path)
    assert not server.requests


# --- Servers that mean harm, or are broken


def test_an_endless_body_is_cut_at_the_manifests_size(server, tmp_path):
    manifest = one(server, tmp_path)
    server.faults = ["endless"]
    with pytest.raises(UserError, match="expected SHA-256"):
        run(manifest, tmp_path)
    assert (tmp_path / "cache" / f"{sha(BODY)}.rejected").stat().st_size < 2 * len(BODY)
    assert server.sent < 64 << 20  # what the sockets took on the way


def test_an_endless_body_of_unknown_size_is_cut_too(server, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "LARGEST_FILE_BYTES", 4 << 20)
    manifest = one(server, tmp_path, bytes=None)
    server.faults = ["endless"]
    with pytest.raises(UserError, match="more than 4,194,304 bytes came, without end"):
        run(manifest, tmp_path)
    assert server.sent < 64 << 20
    assert not list((tmp_path / "cache").iterdir())


def test_a_compressed_answer_is_read_as_the_file(server, tmp_path):
    manifest = one(server, tmp_path)
    server.files["/a/book.txt"] = gzip.compress(BODY)
    send = server._send
    server._send = lambda handler, status, body, headers, keep=None: send(
        handler, status, body, headers | {"Content-Encoding": "gzip"}, keep
    )
    assert run(manifest, tmp_path)[0].read_bytes() == BODY


def test_a_compressed_bomb_fills_neither_memory_nor_disk(server, tmp_path):
    manifest = one(server, tmp_path)
    server.faults = ["bomb"]
    tracemalloc.start()
    with pytest.raises(UserError, match="expected SHA-256"):
        run(manifest, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20
    assert (tmp_path / "cache" / f"{sha(BODY)}.rejected").stat().st_size < 2 * len(BODY)


def test_a_trickle_is_cut_and_tried_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "PACE_SECONDS", 0.3)
    manifest = one(server, tmp_path)
    server.faults = ["trickle"]
    assert run(manifest, tmp_path)[0].read_bytes() == BODY
    assert len(server.requests) == 2


def test_a_trickle_that_stays_one_is_told(server, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "PACE_SECONDS", 0.1)
    manifest = one(server, tmp_path)
    server.faults = ["trickle"] * 5
    with pytest.raises(UserError, match=r"less than 65,536 bytes came in .* s \(5 attempts"):
        run(manifest, tmp_path)


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd", "gopher://127.0.0.1/", "http://[::1", "http://", "http://\u2025.x/",
        "http://a..b/", "http:///x", "/a/book.txt", "//", "http://127.0.0.1:99999/",
        f"http://{'x' * 70}.example/",
    ],
)  # fmt: skip
def test_a_redirect_to_nowhere_is_told(server, tmp_path, address):
    """The last one goes in a circle."""
    manifest = one(server, tmp_path)
    server.faults = [f"redirect to {address}"] * 200
    with pytest.raises(UserError, match=f"{server.address}/a/book.txt: "):
        run(manifest, tmp_path)


@pytest.mark.parametrize("told", ["²", "-1", "1e9", "soon", "9" * 40, "Wed, 21 Oct 2015 07:28 GMT"])
def test_a_strange_wait_is_none(server, tmp_path, told):
    manifest = one(server, tmp_path)
    server.retry_after = told.encode("utf-8").decode("latin-1")
    server.faults = ["503"]
    assert run(manifest, tmp_path)[0].read_bytes() == BODY


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_zip_of_the_mirror_gives_way_to_the_source(server, tmp_path, seed):
    """Bytes changed, cut and repeated: never anything but the right file in the end."""
    member = bytes(range(256)) * 40
    packed = zipped({"readme": b"r" * 300, "in/messages": member})
    manifest = zip_manifest(server, tmp_path, packed, member)
    generator = random.Random(seed)
    damaged = bytearray(packed)
    for _ in range(generator.randrange(1, 6)):
        place = generator.randrange(len(damaged))
        damaged[place] = generator.randrange(256)
    if seed % 3 == 0:
        del damaged[generator.randrange(len(damaged)) :]
    path = tmp_path / "mirror" / server.address.removeprefix("http://") / "sms.zip"
    path.parent.mkdir(parents=True)
    path.write_bytes(damaged)
    assert run(manifest, tmp_path, mirror=str(tmp_path / "mirror"))[0].read_bytes() == member


def test_a_mirror_that_cannot_be_read_gives_way_to_the_source(server, tmp_path, monkeypatch):
    manifest = one(server, tmp_path)
    path = tmp_path / "mirror" / server.address.removeprefix("http://") / "a/book.txt"
    path.parent.mkdir(parents=True)
    path.touch()
    opened = Path.open

    def refuse(self: Path, *arguments: object, **options: object) -> object:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert run(manifest, tmp_path, mirror=str(tmp_path / "mirror"))[0].read_bytes() == BODY


def test_two_processes_fetch_one_file_once(server, tmp_path):
    """They would write one `.partial` by turns, and one would find a wrong checksum."""
    server.files["/a/book.txt"] = big = BODY * 16
    manifest = write_manifest(tmp_path, entry(f"{server.address}/a/book.txt", big))
    code = (
        "import sys\nfrom pathlib import Path\nfrom gptmill.fetch.download import fetch\n"
        "manifest, out, cache = map(Path, sys.argv[1:])\nfetch(manifest, out, cache=cache)"
    )
    commands = [
        [sys.executable, "-c", code, str(manifest), str(tmp_path / name), str(tmp_path / "cache")]
        for name in ("one", "two", "three")
    ]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for command in commands]
    for process in processes:
        assert process.wait() == 0, process.stderr.read()
    for name in ("one", "two", "three"):
        assert (tmp_path / name / "book.txt").read_bytes() == big
    assert len(server.requests) == 1


# --- Mirror, proxy, offline


def test_a_mirror_folder_comes_before_the_source(server, tmp_path):
    url = f"{server.address}/Carroll%2C%20Lewis/Alice%27s.txt"
    host = server.address.removeprefix("http://")
    path = tmp_path / "mirror" / host / "Carroll, Lewis" / "Alice's.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    manifest = write_manifest(tmp_path, entry(url, BODY))
    assert run(manifest, tmp_path, mirror=str(tmp_path / "mirror"), offline=True)
    assert not server.requests


def test_a_mirror_server_comes_before_the_source(server, tmp_path):
    server.files["/gutenberg.example/Carroll%2C%20Lewis/Alice.txt"] = BODY
    url = "https://gutenberg.example/Carroll%2C%20Lewis/Alice.txt"
    assert run(write_manifest(tmp_path, entry(url, BODY)), tmp_path, mirror=server.address + "/")


@pytest.mark.parametrize("content", [None, b"an old version"])
def test_a_mirror_without_the_right_file_falls_back_to_the_source(server, tmp_path, content):
    manifest = one(server, tmp_path)
    mirror = tmp_path / "mirror"
    path = mirror / server.address.removeprefix("http://") / "a" / "book.txt"
    path.parent.mkdir(parents=True)
    if content:
        path.write_bytes(content)
    assert run(manifest, tmp_path, mirror=str(mirror))[0].read_bytes() == BODY


def test_offline_a_wrong_file_in_the_mirror_does_not_reach_for_the_network(server, tmp_path):
    manifest = one(server, tmp_path)
    path = tmp_path / "mirror" / server.address.removeprefix("http://") / "a" / "book.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"an old version")
    with pytest.raises(UserError, match="expected SHA-256"):
        run(manifest, tmp_path, mirror=str(tmp_path / "mirror"), offline=True)
    assert not server.requests


def test_a_mirror_that_is_not_there_is_told(server, tmp_path):
    with pytest.raises(UserError, match="neither a folder nor"):
        run(one(server, tmp_path), tmp_path, mirror=str(tmp_path / "no such"))


def test_the_proxy_of_the_environment_is_used(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.files["http://books.example/x.txt"] = BODY  # a proxy is asked for whole addresses
    run(write_manifest(tmp_path, entry("http://books.example/x.txt", BODY)), tmp_path)
    assert server.requests == [("http://books.example/x.txt", None)]


def test_offline_lists_each_missing_file_and_where_it_goes(server, tmp_path):
    server.files["/a.txt"] = b"here"
    present = entry(f"{server.address}/a.txt", b"here")
    run(write_manifest(tmp_path, present), tmp_path)
    missing = [entry(f"https://example.org/{i}.txt", f"{i}".encode()) for i in range(2)]
    with pytest.raises(UserError) as caught:
        run(write_manifest(tmp_path, present, *missing), tmp_path, offline=True)
    for value in missing:
        assert value["url"] in str(caught.value)
        assert f"goes to {tmp_path / 'cache' / value['sha256']}" in str(caught.value)
    assert present["url"] not in str(caught.value)
    for value, body in zip(missing, (b"0", b"1"), strict=True):  # do as the message says
        (tmp_path / "cache" / value["sha256"]).write_bytes(body)
    assert len(run(write_manifest(tmp_path, present, *missing), tmp_path, offline=True)) == 3


def test_the_environment_names_mirror_and_offline(monkeypatch):
    monkeypatch.setenv("GPTMILL_MIRROR", "/srv/mirror")
    assert mirror_from_environment() == "/srv/mirror"
    monkeypatch.setenv("GPTMILL_MIRROR", "")
    assert mirror_from_environment() is None
    monkeypatch.setenv("GPTMILL_OFFLINE", "1")
    assert offline_from_environment()
    monkeypatch.setenv("GPTMILL_OFFLINE", "0")
    assert not offline_from_environment()


# --- Names and manifests


def named(*urls: str) -> list[str]:
    return destination_names([RemoteFile(url, None, "0" * 64) for url in urls])


def test_names_keep_the_folders_that_tell_files_apart():
    start = "https://h/x/1"
    assert named(f"{start}/Carroll%2C%20Lewis/Alice.txt", f"{start}/Grimm/Tales.txt") == [
        "Carroll, Lewis - Alice.txt",
        "Grimm - Tales.txt",
    ]
    assert named(f"{start}/Carroll/Alice.txt", f"{start}/Carroll/Snark.txt") == [
        "Alice.txt",
        "Snark.txt",
    ]
    assert named("https://h/a/the-verdict.txt") == ["the-verdict.txt"]


def test_names_are_unique_and_safe():
    assert named("https://h/a%3Ab.txt", "https://h/a%3Fb.txt", "https://h/A_B.TXT") == [
        "a_b.txt",
        "a_b (2).txt",
        "A_B (3).TXT",
    ]
    assert len(named(f"https://h/{'é' * 300}.txt")[0].encode()) <= 200


@pytest.mark.parametrize(
    "change",
    [
        {"url": "https://h/a/%2e%2e/%2e%2e/etc/passwd"},
        {"url": "https://h/..%2f..%2fetc%2fpasswd"},
        {"url": "file:///etc/passwd"},
        {"sha256": "../../etc/passwd"},
        {"member": "../../etc/passwd"},
        {"member": "/etc/passwd"},
        {"bytes": "many"},
        {"checksum": "unknown key"},
    ],
)
def test_a_manifest_that_leads_astray_is_refused(tmp_path, change):
    good = entry("https://h/a.txt", b"")
    assert read_manifest(write_manifest(tmp_path, good))
    with pytest.raises(UserError, match=r"manifest.json, entry 2"):
        read_manifest(write_manifest(tmp_path, good, good | change))


# --- Zips


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return buffer.getvalue()


def zip_manifest(server: Server, folder: Path, body: bytes, member: bytes, **more: object) -> Path:
    server.files["/sms.zip"] = body
    value = entry(f"{server.address}/sms.zip", b"the source's own zip", bytes=None)
    return write_manifest(
        folder, value | {"member": "in/messages", "member_sha256": sha(member)} | more
    )


def test_the_member_decides_however_the_zip_was_packed(server, tmp_path):
    packed = zipped({"readme": b"r", "in/messages": BODY}, zipfile.ZIP_STORED)
    manifest = zip_manifest(server, tmp_path, packed, BODY, bytes=len(packed) + 99)
    server.faults = ["whole without a length"]
    files = run(manifest, tmp_path)
    assert len(server.requests) == 1
    assert files == [tmp_path / "out" / "messages"]
    assert files[0].read_bytes() == BODY
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["messages"]


def test_a_member_with_another_hash_is_refused(server, tmp_path):
    manifest = zip_manifest(server, tmp_path, zipped({"in/messages": b"other"}), BODY)
    with pytest.raises(UserError, match=f"in/messages: expected SHA-256 {sha(BODY)}"):
        run(manifest, tmp_path)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"in/messages": b"x", "../evil": b"x"}, "outside its folder"),
        ({"in/messages": b"x", "/etc/evil": b"x"}, "outside its folder"),
        ({"in/messages": b"x", "C:\\evil": b"x"}, "outside its folder"),
        ({"other": b"x"}, "has no member 'in/messages', only other"),
        ({"in/messages": b"\0" * (8 << 20)}, "refused as a bomb"),
    ],
)
def test_an_unsafe_or_wrong_zip_is_refused(server, tmp_path, files, told):
    member = files.get("in/messages", b"x")
    with pytest.raises(UserError, match=told):
        run(zip_manifest(server, tmp_path, zipped(files), member), tmp_path)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "evil").exists()


def test_what_is_no_zip_is_refused(server, tmp_path):
    manifest = zip_manifest(server, tmp_path, b"<html>please log in</html>", BODY)
    with pytest.raises(UserError, match="is not a zip"):
        run(manifest, tmp_path)


# --- Real files


@needs_mirror
def test_real_files_come_from_the_mirror(tmp_path):
    messages = run(MANIFESTS / "sms_spam.json", tmp_path, mirror=str(MIRROR), offline=True)
    assert len(messages[0].read_bytes().splitlines()) == 5574
    books = run(MANIFESTS / "alice.json", tmp_path, mirror=str(MIRROR), offline=True)
    assert books[0].name == "Alice's Adventures in Wonderland.txt"
    shutil.rmtree(tmp_path / "out")
    assert run(MANIFESTS / "alice.json", tmp_path, offline=True) == books
