"""The events of one run in a file that outlives the process: appended, locked, never rewritten.

Each line is a JSON object with `kind` and `time` (Unix milliseconds). The process that writes a
journal holds its lock; so whoever can take the lock of a journal without an end knows that its
writer is gone. How far a journal was delivered stands beside it in `<run>.sent`.
"""

import fcntl
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gptmill.files import read_json, write_json
from gptmill.tracking.address import project_root

Event = dict[str, Any]


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
        self._file = _open_locked(self.path, create, wait)
        self._end_torn_line()

    def append(self, event: Event) -> None:
        """Add one event; what is written survives this process, not a crash of the machine.

        No two have the same time: of two values at one step, MLflow shows the later as the last.
        """
        with self._guard:
            self._time = max(now(), self._time + 1)
            line = json.dumps({"time": self._time, **event}, ensure_ascii=False)
            self._file.write(line.encode() + b"\n")

    def events(self, offset: int = 0) -> Iterator[tuple[int, Event]]:
        """Events from a byte offset on, each with the offset after it; a torn line is skipped."""
        with self.path.open("rb") as file:
            file.seek(offset)
            for line in file:
                offset += len(line)
                try:
                    yield offset, json.loads(line)
                except json.JSONDecodeError:
                    continue

    @property
    def sent(self) -> int:
        """The byte offset up to which events were delivered."""
        return read_json(self._sent)["offset"] if self._sent.exists() else 0

    def mark_sent(self, offset: int) -> None:
        """Remember how far delivery came, and whether that was the end."""
        write_json(self._sent, {"offset": offset, "ended": self.ended})

    @property
    def settled(self) -> bool:
        """Whether the run has ended and everything was delivered."""
        if not self._sent.exists():
            return False
        sent = read_json(self._sent)
        return sent["ended"] and sent["offset"] == self.path.stat().st_size

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

    def remove(self) -> None:
        """The run is finished and delivered."""
        for path in (self.path, self._sent):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.files, ignore_errors=True)

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
            events = [json.loads(line) for line in path.read_bytes().splitlines(keepends=True)
                      if line.endswith(b"}\n")]  # fmt: skip
        except (FileNotFoundError, json.JSONDecodeError):
            continue
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


def _open_locked(path: Path, create: bool, wait: float) -> BinaryIO:
    """Open for appending with the lock held; a file removed while waiting is opened anew."""
    deadline = time.monotonic() + wait
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | (os.O_CREAT if create else 0), 0o644)
        file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return file
        except FileNotFoundError:
            pass
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.close()
                raise
            time.sleep(0.05)
        file.close()
