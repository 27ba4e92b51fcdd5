"""One answer of a server: where its body begins, how much of it is taken, and at what pace.

Servers are not trusted: neither the length nor the compression that they state, nor that they
continue.
"""

import re
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3

from gptmill.fetch.manifest import RemoteFile

CHUNK_BYTES = 1 << 16  # a broken connection loses at most one
PACE_SECONDS = 60.0  # in which at least one chunk comes, or the connection is cut
LARGEST_FILE_BYTES = 16 << 30  # of a file whose size the manifest does not state
RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}


class Failed(Exception):
    """One address did not give the file; another may."""


class Interrupted(Exception):
    """A transfer that another attempt may finish, from the start if what is here is useless."""

    def __init__(self, reason: str, wait: float = 0.0, restart: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.restart = restart


def size(path: Path) -> int:
    """Bytes of a file that may not be there yet."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def body_start(response: requests.Response, address: str, offset: int) -> int | None:
    """Where in the file the answer's body begins; None if nothing was missing.

    Raises:
        Failed, Interrupted: the answer has no bytes of use to us.
    """
    status = response.status_code
    content_range = response.headers.get("Content-Range", "")
    if status == 200:
        return 0
    if status == 206 and content_range.startswith(f"bytes {offset}-"):
        return offset
    if status == 416 and content_range.replace(" ", "") == f"bytes*/{offset}":
        return None
    if status in {206, 416}:
        raise Interrupted(f"the server cannot continue at byte {offset:,}", restart=True)
    reason = f"the server answered {status} {response.reason}"
    if status in RETRIED_STATUS:
        raise Interrupted(reason, wait=_retry_after(response))
    raise Failed(f"{address}: {reason}{_HINTS.get(status, '')}")


_HINTS = {
    401: ": it asks for a login",
    403: ": it refuses this address or this machine",
    404: ": the file is not there; a mirror (GPTMILL_MIRROR) may have it",
    407: ": the proxy asks for a login (HTTPS_PROXY=http://user:password@host:port)",
    410: ": the file was removed; a mirror (GPTMILL_MIRROR) may have it",
}


# Answers that no second attempt makes better: redirects in a circle or to nowhere.
HOPELESS = (
    requests.exceptions.TooManyRedirects,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    requests.exceptions.MissingSchema,
    requests.exceptions.InvalidHeader,
    ValueError,  # of urllib's and of IDNA's parsers, UnicodeError among them
)


@dataclass
class _Pace:
    cut: bool = False


@contextmanager
def paced(response: requests.Response, received: Callable[[], int]) -> Iterator[_Pace]:
    """Cut the connection once a whole `PACE_SECONDS` brought nothing to the file."""
    pace, ended = _Pace(), threading.Event()

    def watch() -> None:
        before = received()
        while not ended.wait(PACE_SECONDS):
            if received() == before:
                pace.cut = True
                response.raw.shutdown()
                return
            before = received()

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield pace
    except (requests.RequestException, urllib3.exceptions.HTTPError):
        if not pace.cut:
            raise
    finally:
        ended.set()


def body(response: requests.Response) -> Iterator[bytes]:
    """The body in pieces of bounded size, also where the server compressed it unasked.

    Raises:
        Interrupted: the compressed bytes are damaged.
        Failed: a compression that we do not read.
    """
    pieces = response.raw.stream(CHUNK_BYTES, decode_content=False)
    encoding = response.headers.get("Content-Encoding", "").lower()
    if encoding in ("", "identity"):
        yield from pieces
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Failed(f"{response.url} answers in {encoding!r}, though it was asked for the file")
    decoder = zlib.decompressobj(wbits=47)  # gzip or zlib, as its first bytes say
    try:
        for piece in pieces:
            while piece:
                yield decoder.decompress(piece, CHUNK_BYTES)
                piece = decoder.unconsumed_tail
    except zlib.error as error:
        raise Interrupted(f"the compressed answer is damaged: {error}", restart=True) from None


def most(file: RemoteFile, partial: Path) -> int:
    """Bytes that a file may have at most: those of the manifest.

    A zip known by its member may have been packed again, to another size, and not to ten times as
    much. A file of unknown size may take half of what the disk has.
    """
    if file.bytes is not None:
        return file.bytes if file.member_sha256 is None else 10 * file.bytes + (1 << 20)
    return min(LARGEST_FILE_BYTES, size(partial) + shutil.disk_usage(partial.parent).free // 2)


def _number(text: str) -> int | None:
    """A header's number; `None` for none, and for digits that only Unicode knows."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _retry_after(response: requests.Response) -> float:
    """Seconds the server asks to wait; a date or nothing counts as none."""
    return float(_number(response.headers.get("Retry-After", "")) or 0)


def expected_size(response: requests.Response, file: RemoteFile, start: int) -> int | None:
    """Bytes after which nothing is missing: those of the manifest, or fewer if the server has no
    more, which the checksum then shows."""
    # A zip known by its member may have been packed again, to another size.
    known = None if file.member_sha256 else file.bytes
    length = _number(response.headers.get("Content-Length", ""))
    if length is None or "Content-Encoding" in response.headers:
        return known
    return start + length if known is None else min(known, start + length)


def network_reason(error: Exception) -> str:
    """What went wrong on the way, for a message."""
    if isinstance(error, requests.exceptions.SSLError):
        return f"the certificate was refused: {error}"
    if isinstance(error, requests.exceptions.ProxyError):
        return f"the proxy (HTTP_PROXY, HTTPS_PROXY) did not answer: {error}"
    slow = (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError)
    if isinstance(error, slow):
        return "the server did not answer in time"
    return f"the connection failed: {error}"
