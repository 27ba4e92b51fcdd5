"""Files that appear whole or not at all, their hashes, and where unfinished work lives."""

import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptmill.errors import UserError

UNFINISHED, REPLACED = ".unfinished", ".replaced"
SMALLEST_ROOM = 64 * 1024  # bytes; with less, a failed write is taken for a full disk
# Called with each path just before it is published. A stage sets it, to see that its parameters and
# inputs are still those that it started with (`gptmill.process.outputs`).
before_publishing: list[Callable[[Path], None]] = []


def state_root() -> Path:
    """`.state` in the original repository, also when DVC runs in a temporary copy of it."""
    return Path(os.environ.get("DVC_ROOT", ".")) / ".state"


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal, read in bounded memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(folder: Path) -> str:
    """One SHA-256 over a file, or over a folder's relative names and contents in sorted order."""
    if folder.is_file():
        return sha256(folder)
    digest = hashlib.sha256()
    for path in sorted(
        p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts
    ):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256(path)}\n".encode())
    return digest.hexdigest()


def input_hashes(inputs: dict[str, Path]) -> dict[str, dict[str, str]]:
    """Each input's path and SHA-256."""
    return {
        name: {"path": path.as_posix(), "sha256": sha256_tree(path) if path.exists() else "absent"}
        for name, path in inputs.items()
    }


def flush_to_disk(path: Path) -> None:
    """fsync a file or folder, so that a rename after it cannot publish a hole.

    Windows flushes no folders, and a file only through a descriptor that may write.
    """
    if path.is_dir():
        if os.name == "nt":
            return
        descriptor = os.open(path, os.O_RDONLY)
    else:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; rename it into place if the block succeeds."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(**name_beside(path))
        os.close(descriptor)
    beside = Path(name)
    try:
        with writing(path):
            yield beside
            flush_to_disk(beside)
            beside.chmod(0o644)
            _check_before_publishing(path)
            beside.replace(path)
            flush_to_disk(path.parent)
    finally:
        remove(beside)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` to fill; it replaces `path` if the block succeeds.

    Readers see the old or the new one: both swap names in one step where the platform can. Where
    it cannot, a kill between two renames leaves the old one aside, for the next run to put back.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(**name_beside(path)))
    try:
        with writing(path):
            yield beside
            for file in beside.rglob("*"):
                flush_to_disk(file)
            beside.chmod(0o755)
            flush_to_disk(beside)
            _check_before_publishing(path)
            _put_in_place(beside, path)
            flush_to_disk(path.parent)
    finally:
        remove(beside)


def name_beside(path: Path) -> dict[str, Any]:
    """A temporary name that tells the writer's process id; see `gptmill.process.leftovers`."""
    return {
        "dir": path.parent,
        "prefix": f".{path.name}.{os.getpid()}.",
        "suffix": UNFINISHED,
    }


def _put_in_place(beside: Path, path: Path) -> None:
    """Give the new folder its name; what had it is removed afterwards, never before."""
    if not path.exists():
        beside.replace(path)
    elif not exchange(beside, path):
        aside = beside.with_suffix(REPLACED)
        path.replace(aside)
        try:
            beside.replace(path)
        except BaseException:
            aside.replace(path)
            raise
        remove(aside)


def exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step, if system and file system can (Linux, macOS)."""
    here, swap = -100, 2  # AT_FDCWD; RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
    names = [os.fsencode(path) for path in (one, other)]
    try:
        libc = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return libc.renamex_np(*names, swap) == 0
        return libc.renameat2(here, names[0], here, names[1], swap) == 0
    except (AttributeError, TypeError, OSError):  # no such call, or no such library
        return False


def remove(path: Path) -> None:
    """Delete a file, link or folder as far as it can be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _check_before_publishing(path: Path) -> None:
    for check in before_publishing:
        check(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses to the block into a `UserError` that names `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        told = disk_error(error, path) if isinstance(error, OSError) else None
        if told is None and _free(path) < SMALLEST_ROOM:
            # NumPy, and writers in C++ and Rust, tell a full disk in words of their own.
            told = disk_error(OSError(errno.ENOSPC, ""), path)
        if told is None:
            raise
        raise told from error


def disk_error(error: OSError, path: Path) -> UserError | None:
    """A full, read-only or failing disk as an error the user can act on; `None` for another."""
    kept = "and run again; earlier outputs are untouched"
    path = _published(path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "no space left on the disk" if error.errno == errno.ENOSPC else "the quota is full"
        return UserError(
            f"{what} while writing {path} ({_free(path) / 2**20:.0f} MiB free): free some space or "
            f"move the project, {kept}"
        )
    where = _published(Path(error.filename)) if isinstance(error.filename, str) else path
    if error.errno == errno.EROFS:
        remedy = "mount it for writing or move the project"
        return UserError(f"{where} is on a read-only file system: {remedy}, {kept}")
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = "make file and folder readable and writable for this user"
        return UserError(f"no permission for {where}: {remedy}, {kept}")
    if error.errno == errno.EIO:
        return UserError(f"the disk failed at {where}: check it, move the project, {kept}")
    return None


def _published(path: Path) -> Path:
    """The path by the names that its parts will have."""
    parts = [
        part[1:].rsplit(".", 3)[0] if part.endswith((UNFINISHED, REPLACED)) else part
        for part in path.parts
    ]
    return Path(*parts)


def _free(path: Path) -> int:
    """Bytes free on the disk that `path` is on, or would be."""
    there = next(folder for folder in path.absolute().parents if folder.exists())
    return shutil.disk_usage(there).free


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys as given, floats in full, one newline at the end."""
    with atomic_file(path) as beside:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        beside.write_text(text + "\n", encoding="utf-8", newline="\n")


def read_json(path: Path, shape: type = object) -> Any:
    """Read JSON: an object (`dict`), a `list`, or anything. See `shapes.read_json_as` for more.

    Raises:
        UserError: the file is missing, malformed, holds half a surrogate pair (which no file and
            no terminal takes), or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a file") from None
    except UnicodeEncodeError:
        raise UserError(f"{path} holds half a surrogate pair (\\ud800 to \\udfff)") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, shape):
        kind = "a list" if shape is list else "an object"
        raise UserError(f"{path} is not {kind} in JSON but {str(value)[:40]}")
    return value
