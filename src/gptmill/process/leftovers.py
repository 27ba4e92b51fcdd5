"""What a kill leaves beside outputs: found by the next run of the stage, or by `doctor --clean`."""

import re
from collections.abc import Iterator
from pathlib import Path

import psutil

from gptmill.files import REPLACED, UNFINISHED, remove

# `.NAME.PID.RANDOM.unfinished` is being written; `.NAME.PID.RANDOM.replaced` was there before.
NAME = re.compile(rf"\.(.+)\.(\d+)\.[a-z0-9_]+({re.escape(UNFINISHED)}|{re.escape(REPLACED)})")


def clear_beside(path: Path) -> None:
    """Remove what dead writers of `path` left; one that they had put aside may return."""
    if not path.parent.is_dir():
        return
    for left in path.parent.iterdir():
        match = NAME.fullmatch(left.name)
        if match and match[1] == path.name and abandoned(left):
            settle(left)


def settle(left: Path) -> str:
    """Remove one leftover, or put it back where it alone is left of an output; which was done."""
    match = NAME.fullmatch(left.name)
    target = left.parent / match[1]
    if match[3] == REPLACED and not target.exists():
        left.replace(target)
        return "put back"
    remove(left)
    return "removed"


def leftovers(folder: Path) -> Iterator[Path]:
    """Every abandoned one below a folder; what lies inside another is part of that."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if NAME.fullmatch(path.name):
            if abandoned(path):
                yield path
        elif path.is_dir() and not path.is_symlink():
            yield from leftovers(path)


def abandoned(left: Path) -> bool:
    """Whether the process that wrote it is gone; a younger process may have its number again."""
    match = NAME.fullmatch(left.name)
    try:
        return psutil.Process(int(match[2])).create_time() > left.lstat().st_mtime + 1
    except (psutil.NoSuchProcess, OverflowError, FileNotFoundError):
        return True
    except psutil.Error:
        return False


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
