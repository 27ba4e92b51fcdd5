"""A raw corpus read once, in several processes: what is known of each document, and its text.

The cleaned texts lie in a folder of their own until the tokens are written, UTF-8, a file a batch;
what is known of a document is one record of a mapped file. So memory holds a few batches, whatever
the corpus, and of each document no more than the plan's arrays.
"""

import hashlib
import json
import shutil
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from gptmill.data.corpus import SPLITS, Batch, Document, batches, read_batch
from gptmill.data.duplicates import Sketches
from gptmill.data.fingerprint import fingerprint
from gptmill.files import name_beside, writing
from gptmill.process.pool import in_turn, process_pool

RECORD = np.dtype(
    [
        ("key", "<u8"),  # order of assignment
        ("digest", "<u8"),  # equal for texts alike but for white space and case; 0 if empty
        ("characters", "<i8"),
        ("bytes", "<i8"),
        ("words", "<i8"),
        ("nats", "<f8"),  # NaN where unknown
        ("given", "i1"),  # the split that its file is named for; -1 for none
        ("drawn", "?"),  # an independent draw of a known source
        ("of_characters", "?"),  # compared by runs of characters
    ]
)
AHEAD = 2  # batches under way, for each worker


class Spool:
    """Documents by number, in reading order.

    Attributes:
        records: [documents] of `RECORD`.
        starts: [batches + 1] the first document of each batch, and the number of documents.
    """

    def __init__(self, beside: Path) -> None:
        with writing(beside):
            beside.parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(mkdtemp(**name_beside(beside)))
        self.records = np.empty(0, RECORD)
        self.starts = [0]
        self.close = weakref.finalize(self, shutil.rmtree, self.folder, True)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def batches(self) -> int:
        return len(self.starts) - 1

    def texts(self, batch: int) -> Iterator[tuple[int, str]]:
        """Number and text of each document of a batch."""
        first, end = self.starts[batch : batch + 2]
        with _text_file(self.folder, batch).open("rb") as file:
            for number, size in enumerate(self.records["bytes"][first:end].tolist(), first):
                yield number, file.read(size).decode()

    def documents(self) -> Iterator[tuple[int, Document]]:
        """Every document with its number."""
        for batch in range(self.batches):
            ids = _ids(self.folder, batch)
            for id, (number, text) in zip(ids, self.texts(batch), strict=True):
                nats = self.records["nats"][number]
                yield number, Document(id, text, None if np.isnan(nats) else float(nats))

    def ids(self) -> Iterator[str]:
        for batch in range(self.batches):
            yield from _ids(self.folder, batch)

    def id(self, number: int) -> str:
        batch = int(np.searchsorted(self.starts, number, "right")) - 1
        return _ids(self.folder, batch)[number - self.starts[batch]]


def read_corpus(folder: Path, seed: int, workers: int, beside: Path) -> tuple[Spool, Sketches]:
    """Read a raw corpus once; the result does not depend on the number of workers.

    Args:
        seed: for the order of assignment.
        beside: the spool is a temporary sibling of this path.

    Raises:
        UserError: the corpus cannot be read.
    """
    parts = list(batches(folder))
    spool = Spool(beside)
    sketches = Sketches(text_bytes=sum(part.size for part in parts))
    try:
        with writing(beside):
            _fill(spool, sketches, parts, seed, workers)
    except BaseException:
        spool.close()
        raise
    return spool, sketches


def _fill(spool: Spool, sketches: Sketches, parts: list[Batch], seed: int, workers: int) -> None:
    tasks = (
        _Task(part, number, spool.folder, seed, sketches.modulus)
        for number, part in enumerate(parts)
    )
    workers = min(workers, len(parts))
    path = spool.folder / "records"
    with process_pool(workers) if workers > 1 else nullcontext() as pool, path.open("wb") as file:
        for found in in_turn(pool, _read, tasks, AHEAD * workers):
            file.write(found.records.tobytes())
            sketches.add(found.hashes, found.owners + np.int32(spool.starts[-1]))
            spool.starts.append(spool.starts[-1] + len(found.records))
    if spool.starts[-1]:
        spool.records = np.asarray(np.memmap(path, RECORD, "r"))


@dataclass(frozen=True)
class _Task:
    batch: Batch
    number: int
    folder: Path
    seed: int
    modulus: int  # what the sketches kept when the task was given; they may keep less by now


@dataclass(frozen=True)
class _Found:
    records: np.ndarray
    hashes: np.ndarray  # all shingles of the batch
    owners: np.ndarray  # whose they are, counted within the batch


def _read(task: _Task) -> _Found:
    """Read a batch, leave its texts in the spool's folder, and return the rest."""
    records, ids = [], []
    hashes, sizes = [np.empty(0, np.uint64)], []
    with _text_file(task.folder, task.number).open("wb") as file:
        for document in read_batch(task.batch):
            data = document.text.encode()
            file.write(data)
            record, shingles = _record(document, len(data), task)
            records.append(record)
            ids.append(document.id)
            hashes.append(shingles)
            sizes.append(len(shingles))
    _id_file(task.folder, task.number).write_text(json.dumps(ids), encoding="utf-8", newline="\n")
    owners = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return _Found(np.array(records, RECORD), np.concatenate(hashes), owners)


def _record(document: Document, size: int, task: _Task) -> tuple[tuple, np.ndarray]:
    """A row of `RECORD`, and the shingles."""
    key = hash64(f"{task.seed}:{document.id}")
    given = SPLITS.index(document.split) if document.split else -1
    if document.nats is not None:  # draws are never compared
        words = len(document.text.split())
        row = (key, int(words > 0), len(document.text), size, words, document.nats, given, True)
        return (*row, False), np.empty(0, np.uint64)
    found = fingerprint(document.text, task.modulus)
    row = (key, found.digest, len(document.text), size, found.words, np.nan, given, False)
    return (*row, found.of_characters), found.shingles


def hash64(text: str) -> int:
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def _text_file(folder: Path, batch: int) -> Path:
    return folder / f"{batch:06d}.txt"


def _id_file(folder: Path, batch: int) -> Path:
    return folder / f"{batch:06d}.ids"


@lru_cache(maxsize=4)
def _ids(folder: Path, batch: int) -> list[str]:
    return json.loads(_id_file(folder, batch).read_text(encoding="utf-8"))
