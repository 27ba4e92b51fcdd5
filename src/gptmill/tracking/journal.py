"""The events of one run in a file that outlives the process: appended, locked, never rewritten.

Each line is a JSON object with `kind` and `time` (Unix milliseconds), a tab, and the CRC-32 of the
object's bytes (lines of earlier versions have none). The process that writes a journal holds its
lock, `<run>.lock`, which the system gives back when the process dies; so whoever can take the lock
of a journal without an end knows that its writer is gone. How far a journal was delivered stands
beside it in `<run>.sent`.
"""

import json
import os
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gptmill.errors import UserError, without_credentials
from gptmill.files import read_json, write_json
from gptmill.tracking.address import project_root

Event = dict[str, Any]
POLL_SECONDS = 0.05


class DamagedJournal(ValueError):
    """A journal that can never be delivered: nothing tells what run it is of."""


def journal_folder() -> Path:
    return project_root() / ".state" / "journal"


def now() -> int:
    """Unix time in milliseconds, MLflow's unit."""
    return time.time_ns() // 1_000_000


class Journal:
    """The journal of one run, open and locked.

    Args:
        wait: seconds to wait for whoever holds it; a replay holds it for moments.
        create: whether a run without a journal gets one.

    Raises:
        BlockingIOError: a living process holds it.
        FileNotFoundError: there is none, and none was to be made.
    """

    def __init__(self, run: str, *, create: bool = True, wait: float = 30.0) -> None:
        folder = journal_folder()
        folder.mkdir(parents=True, exist_ok=True)
        self.run = run
        self.path = folder / f"{run}.jsonl"
        self.files = folder / "files" / run  # copies of artifacts that wait for delivery
        self._sent = folder / f"{run}.sent"
        self._guard = threading.Lock()
        self._time = 0
        self._lock = _locked(self.path, create, wait)
        self._file = self.path.open("ab", buffering=0)
        self._end_torn_line()

    def append(self, event: Event) -> None:
        """Add one event; what is written survives this process, not a crash of the machine.

        No two have the same time: of two values at one step, MLflow shows the later as the last.
        Credentials are struck out of all but a model's own texts.
        """
        if event["kind"] not in ("text", "table"):
            event = _without_credentials(event)
        with self._guard:
            self._time = max(now(), self._time + 1)
            text = json.dumps({"time": self._time, **event}, ensure_ascii=False)
            line = text.encode(errors="backslashreplace")  # a lone surrogate is no UTF-8
            self._file.write(b"%s\t%08x\n" % (line, zlib.crc32(line)))

    def events(self, offset: int = 0) -> Iterator[tuple[int, Event]]:
        """Events from a byte offset on, each with the offset after it; a line that was torn by a
        kill, or damaged, is skipped."""
        with self.path.open("rb") as file:
            file.seek(offset)
            for line in file:
                offset += len(line)
                event = _event(line)
                if event is not None:
                    yield offset, event

    @property
    def sent(self) -> int:
        """The byte offset up to which events were delivered; 0 if that is not known."""
        return self._delivered()[0]

    def mark_sent(self, offset: int) -> None:
        """Remember how far delivery came, and whether that was the end."""
        write_json(self._sent, {"offset": offset, "ended": self.ended})

    @property
    def settled(self) -> bool:
        """Whether the run has ended and everything was delivered."""
        offset, ended = self._delivered()
        return ended and offset == self.path.stat().st_size

    def _delivered(self) -> tuple[int, bool]:
        """What `mark_sent` noted; (0, False) if the note is missing or damaged: events may be sent
        twice, since that changes nothing."""
        try:
            noted = read_json(self._sent)
            offset, ended = int(noted["offset"]), bool(noted["ended"])
        except (UserError, TypeError, KeyError, ValueError):
            return 0, False
        return (offset, ended) if 0 <= offset <= self.path.stat().st_size else (0, False)

    @property
    def ended(self) -> bool:
        """Whether the last stretch of the run has an end (a resumed run has several stretches)."""
        last = ""
        for _, event in self.events():
            last = event["kind"] if event["kind"] in ("start", "end") else last
        return last != "start"

    def keep(self, path: Path) -> Path:
        """A copy of a file or folder, alone in a new one: safe from what the pipeline does next."""
        self.files.mkdir(parents=True, exist_ok=True)
        copy = Path(tempfile.mkdtemp(dir=self.files)) / path.name
        if path.is_dir():
            shutil.copytree(path, copy)
        else:
            shutil.copy(path, copy)
        return copy

    def close(self) -> None:
        """Give the lock back."""
        self._file.close()
        if not self.path.exists():
            # Whoever waits for it notices; Windows removes it by itself.
            with suppress(OSError):
                Path(self._lock.lock_file).unlink()
        self._lock.release()

    def remove(self) -> None:
        """The run is finished and delivered."""
        self._file.close()
        for path in (self.path, self._sent):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.files, ignore_errors=True)

    def set_aside(self) -> Path:
        """Move a journal that nobody can deliver out of the way; where it is now."""
        self._file.close()
        folder = self.path.parent / "damaged"
        folder.mkdir(exist_ok=True)
        self._sent.unlink(missing_ok=True)
        return self.path.replace(folder / self.path.name)

    def _end_torn_line(self) -> None:
        """Give a line that a kill cut short its newline, so that the next one stands alone."""
        if self.path.stat().st_size:
            with self.path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
            if torn:
                self._file.write(b"\n")


def points_of(pid: int, name: str) -> dict[int, float]:
    """A curve by step, as far as a process that is at work has journalled it."""
    for path in journal_folder().glob("*.jsonl"):
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            continue
        events = [event for line in lines if (event := _event(line))]
        starts = [event for event in events if event["kind"] == "start"]
        if starts and starts[-1]["pid"] == pid:
            points = [event for event in events if event["kind"] == "points"]
            return {p["step"]: p["values"][name] for p in points if name in p["values"]}
    return {}


def ownerless_journals() -> Iterator[Journal]:
    """Every journal that is not settled and whose writer is gone, locked, oldest first."""
    for path in sorted(journal_folder().glob("*.jsonl"), key=_modified):
        try:
            journal = Journal(path.stem, create=False, wait=0)
        except (BlockingIOError, FileNotFoundError):
            continue
        try:
            if path.stat().st_size and not journal.settled:
                yield journal
        finally:
            journal.close()


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # delivered and removed meanwhile
        return 0.0


def _without_credentials(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_credentials(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_credentials(each) for each in value]
    return without_credentials(value) if isinstance(value, str) else value


def _event(line: bytes) -> Event | None:
    """The event of a line; `None` for one that is torn or damaged."""
    text, tab, digest = line.rstrip(b"\n").rpartition(b"\t")
    if not tab:
        text = line  # of an earlier version
    elif digest != b"%08x" % zlib.crc32(text):
        return None
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(event, dict) and isinstance(event.get("kind"), str) and "time" in event
    return event if whole else None


def _locked(path: Path, create: bool, wait: float) -> FileLock:
    """The lock of a journal, held."""
    if not create and not path.exists():
        raise FileNotFoundError(path)
    lock = FileLock(path.with_suffix(".lock"), thread_local=False)
    try:
        lock.acquire(timeout=wait, poll_interval=POLL_SECONDS)
    except Timeout:
        raise BlockingIOError(f"{path} belongs to a living process") from None
    if not create and not path.exists():  # delivered and removed meanwhile
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()
        raise FileNotFoundError(path)
    return lock
