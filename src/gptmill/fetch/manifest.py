"""A manifest of files to fetch: a JSON list of `{url, bytes, sha256[, member, member_sha256]}`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from gptmill.errors import UserError
from gptmill.files import read_json


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address. With `member`, the file is a zip and that member is wanted.

    Attributes:
        bytes: its size; None if the publisher states none.
        sha256: '' if the publisher states none, which a manifest does not allow.
    """

    url: str
    bytes: int | None
    sha256: str
    member: str | None = None
    member_sha256: str | None = None


def read_manifest(path: Path) -> list[RemoteFile]:
    """Read and check a manifest.

    Raises:
        UserError: not a list of entries, an address that is not http(s) or climbs out of its
            host, a hash that is not 64 hexadecimal digits.
    """
    values = read_json(path, list)
    if not values:
        raise UserError(f"{path} is not a list of files to fetch")
    entries = []
    for number, value in enumerate(values, start=1):
        try:
            entries.append(RemoteFile(**value))
            _check(entries[-1])
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}, entry {number}: {error}") from None
    return entries


def _check(file: RemoteFile) -> None:
    if not isinstance(file.url, str) or urlsplit(file.url).scheme not in {"http", "https"}:
        raise ValueError(f"url is not an http(s) address: {file.url!r}")
    for digest in (file.sha256, file.member_sha256 or "0" * 64):
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError(f"not a SHA-256 in lower-case hexadecimal: {digest!r}")
    if file.bytes is not None and (not isinstance(file.bytes, int) or file.bytes < 0):
        raise ValueError(f"bytes is not a size: {file.bytes!r}")
    if file.member is not None and escapes(file.member):
        raise ValueError(f"member {file.member!r} would be written outside its folder")
    url_parts(file.url)


def url_parts(url: str) -> list[str]:
    """Host and decoded path components of an address.

    Raises:
        ValueError: a component that is not a file name.
    """
    split = urlsplit(url)
    parts = [split.netloc, *(unquote(part) for part in split.path.split("/") if part)]
    for part in parts:
        if part in {"", ".", ".."} or any(character in part for character in "/\\\0"):
            raise ValueError(f"{url!r}: {part!r} would be written outside its folder")
    return parts


def escapes(name: str) -> bool:
    """Whether a zip member's name leads out of the folder it is unpacked in."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or bool(re.match(r"[A-Za-z]:", name))


def destination_names(entries: Sequence[RemoteFile]) -> list[str]:
    """A safe, unique file name for each file.

    Folders that all addresses share are dropped, the others joined with ' - ':
    `…/Carroll, Lewis/Alice.txt` becomes `Carroll, Lewis - Alice.txt` beside other authors.
    """
    paths = [url_parts(file.url) for file in entries]
    shared = _shared_folders([path[:-1] for path in paths])
    names: list[str] = []
    taken: set[str] = set()
    for file, path in zip(entries, paths, strict=True):
        wanted = PurePosixPath(file.member).name if file.member else " - ".join(path[shared:])
        name = _unique(_safe(wanted), taken)
        taken.add(name.casefold())
        names.append(name)
    return names


def _shared_folders(paths: Sequence[Sequence[str]]) -> int:
    """How many leading components all paths have in common."""
    columns = list(zip(*paths, strict=False))
    return next((i for i, column in enumerate(columns) if len(set(column)) > 1), len(columns))


def _safe(name: str) -> str:
    """Characters that some file system refuses become '_'; at most 200 bytes, ending kept."""
    name = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', "_", name).lstrip(".").rstrip(". ") or "file"
    suffix = PurePosixPath(name).suffix[:20]
    room = 200 - len(suffix.encode())
    return name[: len(name) - len(suffix)].encode()[:room].decode(errors="ignore") + suffix


def _unique(name: str, taken: set[str]) -> str:
    path = PurePosixPath(name)
    number = 1
    while name.casefold() in taken:
        number += 1
        name = f"{path.stem} ({number}){path.suffix}"
    return name
