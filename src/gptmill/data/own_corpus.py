"""Anybody's texts as a raw corpus: `documents.jsonl`, with splits where files are named so."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gptmill.data.corpus import EMBEDDED_FILE
from gptmill.data.own_files import LeftOut, named_splits
from gptmill.data.tables import (
    SUFFIXES,
    TEXT_NAMES,
    find_column,
    objects,
    read_rows,
    row_splits,
)
from gptmill.data.text_files import lines, plain_stem, plain_suffix, read_text, without_surrogates
from gptmill.errors import UserError
from gptmill.files import atomic_file

TEXTS = (".txt", ".md", ".text", "")
TAKEN = (*TEXTS[:-1], *SUFFIXES)
EMPTY, SURROGATES = "document without text", "document with half a surrogate pair, now U+FFFD"


def write_own_corpus(
    files: Sequence[Path],
    folder: Path,
    *,
    text: str,
    encoding: str,
    separator: str,
    left_out: LeftOut,
) -> None:
    """Write every document of the files.

    Args:
        text: the column of tables; '' takes the only one of a usual name. A file of an unknown
            kind is a table if this is given, else plain text.
        separator: a line that ends a document of a plain text; '' is off.

    Raises:
        UserError: a file that cannot be read, or no document at all.
    """
    splits = named_splits(files)
    count = 0
    path = folder / EMBEDDED_FILE
    with atomic_file(path) as beside, beside.open("w", encoding="utf-8", newline="\n") as out:
        for file in files:
            for id, document, split in _documents(file, text, encoding, separator):
                line = _line(id, document, splits.get(file, split), left_out)
                if line:
                    out.write(json.dumps(line, ensure_ascii=False) + "\n")
                    count += 1
    if not count:
        raise UserError(f"{', '.join(map(str, files[:5]))}: no text in {len(files)} files")


def _line(id: str, text: Any, split: str | None, left_out: LeftOut) -> dict[str, Any] | None:
    if not isinstance(text, str) or not text.strip():
        left_out.records[EMPTY] += 1
        return None
    clean = without_surrogates(text)
    left_out.records[SURROGATES] += clean != text
    line: dict[str, Any] = {"id": id, "text": clean, "nats": None}
    return line | {"split": split} if split else line


def _documents(
    file: Path, column: str, encoding: str, separator: str
) -> Iterator[tuple[str, Any, str | None]]:
    """Ids, texts and splits, where a column names them, of one file."""
    name = (file.parent / plain_stem(file)).as_posix().lstrip("/")
    kind = plain_suffix(file)
    if kind in SUFFIXES or (column and kind not in TEXTS):
        rows = objects(file, read_rows(file, encoding, header=not column.isdigit()))
        field = find_column(rows, column, TEXT_NAMES, "download.corpus.text", str(file))
        print(f"{file}: {len(rows):,} rows, text from {field!r}")
        for number, (row, split) in enumerate(zip(rows, row_splits(file, rows))):
            yield f"{name}#{number:08d}", row.get(field), split
        return
    pieces = _separated(read_text(file, encoding), separator)
    if len(pieces) == 1:
        yield name, pieces[0], None
        return
    for number, piece in enumerate(piece for piece in pieces if piece.strip()):
        yield f"{name}#{number:08d}", piece, None


def _separated(text: str, separator: str) -> list[str]:
    """The parts of a text between lines that are the separator alone."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not separator or separator not in text:
        return [text]
    parts: list[list[str]] = [[]]
    for line in lines(text):
        if line.strip() == separator:
            parts.append([])
        else:
            parts[-1].append(line)
    return ["\n".join(part).strip("\n") + "\n" for part in parts]
