"""Documents to pretrain on, as they are read from a raw corpus.

The raw folder is never changed: books are cleaned as they are read. It is read once, batch by
batch (`gptmill.data.spool`), for the plan (`gptmill.data.splits`) and then the tokens
(`gptmill.data.shards`).
"""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gptmill.data.cleaning import clean_gutenberg
from gptmill.errors import UserError
from gptmill.files import atomic_file, read_json

SPLITS = ("train", "validation", "test")
EMBEDDED_FILE = "documents.jsonl"
FILTERED_FILE = "filtered.json"  # reason → documents that were dropped while the corpus was made
BATCH_BYTES = 1 << 20  # of files or lines that are read at once, and at least one of them


@dataclass(frozen=True, slots=True)
class Document:
    """One text.

    Attributes:
        nats: -ln of its probability under its own source, where that is known.
        split: that its file is named for, if any.
        ends: whether the text ends here, and is no piece that another follows.
    """

    id: str
    text: str
    nats: float | None
    split: str | None = None
    ends: bool = True


@dataclass(frozen=True, slots=True)
class Batch:
    """Whole text files, or the lines of one file of JSON from byte `start` to `end`."""

    paths: tuple[Path, ...]
    size: int  # bytes
    start: int = 0
    end: int = 0


def batches(folder: Path) -> Iterator[Batch]:
    """A raw corpus in parts of about `BATCH_BYTES`, in reading order.

    It is `documents.jsonl` if that is there, else each `*.txt` by name.

    Raises:
        UserError: there are no documents.
    """
    lines = folder / EMBEDDED_FILE
    if lines.exists():
        yield from _line_batches(lines)
        return
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise UserError(f"{folder} has neither {EMBEDDED_FILE} nor a *.txt file")
    together: list[Path] = []
    size = 0
    for path in paths:
        together.append(path)
        size += path.stat().st_size
        if size >= BATCH_BYTES:
            yield Batch(tuple(together), size)
            together, size = [], 0
    if together:
        yield Batch(tuple(together), size)


def _line_batches(path: Path) -> Iterator[Batch]:
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        start = 0
        while start < size:
            file.seek(start + BATCH_BYTES - 1)
            file.readline()
            end = min(file.tell(), size)
            yield Batch((path,), end - start, start, end)
            start = end


def read_batch(batch: Batch) -> Iterator[Document]:
    """Stream the documents of a batch.

    Text files have their line ends normalized; books of Project Gutenberg are cleaned
    (`clean_gutenberg`).

    Raises:
        UserError: a line that is not a document, bytes that are not UTF-8.
    """
    if batch.end:
        yield from _json_documents(batch)
        return
    for path in batch.paths:
        yield Document(path.stem, clean_gutenberg(_decode(path)), None)


def documents(folder: Path) -> Iterator[Document]:
    """Stream a raw corpus; see `batches` and `read_batch`."""
    for batch in batches(folder):
        yield from read_batch(batch)


def filtered(folder: Path) -> dict[str, int]:
    """Reason → documents that were dropped while a raw corpus was made; of most sources none."""
    path = folder / FILTERED_FILE
    return read_json(path, dict) if path.exists() else {}


def _decode(path: Path) -> str:
    """UTF-8 text with one kind of line end and without a byte order mark."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start}. "
            "Convert it first, for example: iconv -f latin1 -t utf-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def write_documents(stories: Iterable, path: Path) -> None:
    """Write embedded stories (`text`, `nats`) as lines of JSON, numbered from 00000000."""
    with atomic_file(path) as beside, beside.open("w", encoding="utf-8", newline="\n") as file:
        for number, story in enumerate(stories):
            line = {"id": f"{number:08d}", "text": story.text, "nats": story.nats}
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def _json_documents(batch: Batch) -> Iterator[Document]:
    [path] = batch.paths
    with path.open("rb") as file:
        file.seek(batch.start)
        for number, line in enumerate(io.BytesIO(file.read(batch.end - batch.start)), start=1):
            try:
                value = json.loads(line)
                text, nats = value["text"], value["nats"]
                if not isinstance(text, str) or not isinstance(nats, float | int | None):
                    raise TypeError("text is not a text, or nats not a number")
                text.encode()  # a ValueError of half a surrogate pair
                text = text if nats is not None else clean_gutenberg(text)
                yield Document(value["id"], text, nats, value.get("split"))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                number += _lines(file, batch.start)
                raise UserError(f"{path}, line {number} is not a document: {error!r}") from None


def _lines(file: BinaryIO, end: int) -> int:
    """How many lines end before byte `end`."""
    file.seek(0)
    count = 0
    while left := end - file.tell():
        count += file.read(min(left, BATCH_BYTES)).count(b"\n")
    return count
