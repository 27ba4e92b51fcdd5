"""Documents to pretrain on, as they are read from a raw corpus.

The raw folder is never changed: books are cleaned as they are read. Two passes over it, each in
bounded memory, make a plan (`gptmill.data.splits`) and then the tokens (`gptmill.data.tokens`).
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gptmill.data.cleaning import clean_gutenberg
from gptmill.errors import UserError
from gptmill.files import atomic_file

SPLITS = ("train", "validation", "test")
EMBEDDED_FILE = "documents.jsonl"


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


def documents(folder: Path) -> Iterator[Document]:
    """Stream a raw corpus: `documents.jsonl` if it is there, else each `*.txt` by name.

    Text files have their line ends normalised; books of Project Gutenberg are cleaned
    (`clean_gutenberg`).

    Raises:
        UserError: no documents, a line that is not a document, bytes that are not UTF-8.
    """
    lines = folder / EMBEDDED_FILE
    if lines.exists():
        yield from _json_documents(lines)
        return
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise UserError(f"{folder} has neither {EMBEDDED_FILE} nor a *.txt file")
    for path in paths:
        yield Document(path.stem, clean_gutenberg(_decode(path)), None)


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


def _json_documents(path: Path) -> Iterator[Document]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                value = json.loads(line)
                text, nats = value["text"], value["nats"]
                if not isinstance(text, str) or not isinstance(nats, float | int | None):
                    raise TypeError("text is not a text, or nats not a number")
                text.encode()  # a ValueError of half a surrogate pair
                text = text if nats is not None else clean_gutenberg(text)
                yield Document(value["id"], text, nats, value.get("split"))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(f"{path}, line {number} is not a document: {error!r}") from None
