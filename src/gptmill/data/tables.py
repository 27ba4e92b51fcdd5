"""Rows of other people's tables: CSV, TSV, JSON, JSON lines, Parquet, also as .gz or .zst."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gptmill.data.text_files import lines, plain_suffix, read_bytes, read_text
from gptmill.errors import UserError

JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (".csv", ".tsv", ".json", *JSON_LINES, ".parquet")
DELIMITERS = ",\t;|"
LARGEST_CELL = 1 << 30  # characters; the csv module stops at 131,072
STANDS_FOR_CR = "\ue00d"  # private use: the csv module would end a line at a bare CR

SPLIT = "split"  # the column
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip

Row = dict[str, Any]


def read_rows(path: Path, encoding: str = "", header: bool = True) -> list[Row]:
    """A table's rows by column.

    Args:
        header: whether a CSV's first line names the columns; else they are '1', '2', ….

    Raises:
        UserError: unreadable, no rows, or quotation marks that swallow lines.
    """
    suffix = plain_suffix(path)
    if suffix == ".parquet":
        rows = _parquet(path)
    elif suffix in JSON_LINES:
        rows = list(_json_lines(path, read_text(path, encoding)))
    elif suffix == ".json":
        rows = _json(path, read_text(path, encoding))
    else:
        rows = _delimited(path, read_text(path, encoding), header)
    if not rows:
        raise UserError(f"{path} has no rows")
    return rows


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(lines(text), start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is not JSON: {error}") from None


def _json(path: Path, text: str) -> list[Row]:
    """A list of objects, an object that holds one under any key, or lines of objects."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        try:
            return list(_json_lines(path, text))
        except UserError:
            raise UserError(f"{path} is not JSON: {error}") from None
    if isinstance(values, dict):
        values = _rows_of(values)
    if not isinstance(values, list):
        raise UserError(f"{path} is neither a list nor an object that holds one")
    return values


def _rows_of(values: Row) -> list[Any]:
    """The rows of an object: its one list, a list for each split, columns, or itself."""
    lists = {key: value for key, value in values.items() if isinstance(value, list) and value}
    if len(lists) == 1:
        return next(iter(lists.values()))
    if lists and all(key.lower() in SPLIT_NAMES for key in lists):
        return [
            row | {SPLIT: key} if isinstance(row, dict) else row
            for key, rows in lists.items()
            for row in rows
        ]
    if lists.keys() == values.keys() and len({len(column) for column in lists.values()}) == 1:
        return [dict(zip(lists, cells)) for cells in zip(*lists.values())]
    return [values]


def objects(path: Path, rows: Sequence[Any]) -> list[Row]:
    """Rows that are objects; a text is one with the column `text`.

    Raises:
        UserError: a row that is neither.
    """
    found = [{"text": row} if isinstance(row, str) else row for row in rows]
    for number, row in enumerate(found, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {number} is no object and no text: {str(row)[:60]}")
    return found


def row_splits(path: Path, rows: Sequence[Row]) -> list[str | None]:
    """The split that each row's column `split` names, where all do; else None for each."""
    column = next((name for name in rows[0] if name.strip().lower() == SPLIT), None)
    nothing: list[str | None] = [None] * len(rows)
    if column is None:
        return nothing
    named = [SPLIT_NAMES.get(str(row.get(column)).strip().lower()) for row in rows]
    if not all(named):
        print(f"{path}: the column {column!r} names no splits, such as {rows[0].get(column)!r}")
        return nothing
    return named if "train" in named else nothing


def _parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(read_bytes(path)))
        rows = table.to_pylist()
    except (
        pa.ArrowException,
        OSError,
        UnicodeDecodeError,
    ) as error:  # a damaged page is an OSError
        raise UserError(f"{path} is not Parquet: {error}") from None
    names = _class_names(table.schema.metadata or {})
    for column, labels in names.items():
        for row in rows:
            if isinstance(row.get(column), int) and 0 <= row[column] < len(labels):
                row[column] = labels[row[column]]
    return rows


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Names of labels that the library `datasets` writes beside their numbers."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


# --- CSV


def _delimited(path: Path, text: str, header: bool) -> list[Row]:
    found = [line for line in lines(text) if line.strip()]
    if not found:
        return []
    delimiter = "\t" if plain_suffix(path) == ".tsv" else max(DELIMITERS, key=found[0].count)
    records, whole = _records(text, delimiter)
    several = next((at for at, r in enumerate(records) if any("\n" in c for c in r)), None)
    plain = [line.split(delimiter) for line in found]
    if several is not None and _lines_are_records(plain, records, whole):
        print(f"{path}: quotation marks are text; as CSV's, record {several + 1} swallows lines")
        records = plain
    elif several is not None and not whole:
        raise UserError(
            f"{path}, record {several + 1}: a quotation mark opens a cell that swallows lines and "
            "is not closed as CSV wants it; double it inside quotation marks, or remove it"
        )
    if not records:
        return []
    names = records[0] if header else [str(i + 1) for i in range(max(map(len, records)))]
    named = [name.strip() for name in names if name.strip()]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: two columns are named {twice!r}: rename one")
    return [_row(path, names, record) for record in records[int(header) :]]


def _lines_are_records(
    plain: Sequence[Sequence[str]], records: Sequence[Sequence[str]], whole: bool
) -> bool:
    """Whether lines that quotation marks hold together are records by themselves.

    Every line has as many cells as the header; and the marks are not as CSV has them, or what they
    hold repeats, in some column, values of other records alone, as labels do.
    """
    if len({len(record) for record in plain}) > 1:
        return False
    if not whole:
        return True
    single = {tuple(record) for record in records if not any("\n" in cell for cell in record)}
    held = [line for line in plain[1:] if tuple(line) not in single and '"' not in line[0][:1]]
    return bool(held) and any(
        {line[at] for line in held} <= {record[at] for record in single}
        for at in range(len(plain[0]))
    )


def _records(text: str, delimiter: str) -> tuple[list[list[str]], bool]:
    """Records of a CSV that are not blank, and whether its quotation marks are as CSV has them.

    A bare CR inside a cell stays one.
    """
    csv.field_size_limit(LARGEST_CELL)
    if "\n" in text:
        text = text.replace("\r\n", "\n").replace("\r", STANDS_FOR_CR)
    for strict in (True, False):
        try:
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=strict)
            records = [[cell.replace(STANDS_FOR_CR, "\r") for cell in row] for row in reader]
            return [row for row in records if any(cell.strip() for cell in row)], strict
        except csv.Error:
            if not strict:
                raise
    raise AssertionError


def _row(path: Path, names: Sequence[str], record: Sequence[str]) -> Row:
    if len(record) > len(names) and any(cell.strip() for cell in record[len(names) :]):
        raise UserError(
            f"{path}: a row has {len(record)} cells and the header {len(names)}: {record[:3]} … "
            "(a text with a delimiter inside needs quotation marks around it)"
        )
    padded = [*record, *[""] * (len(names) - len(record))]
    return {name: cell for name, cell in zip(names, padded) if name.strip()}


# --- Columns

TEXT_NAMES = (
    "text", "sentence", "review", "message", "sms", "content", "body", "tweet", "comment", "query",
    "question", "utterance", "document", "headline", "v2",
)  # fmt: skip
LABEL_NAMES = (
    "label", "category", "class", "sentiment", "intent", "target", "topic", "labels", "label_text",
    "emotion", "rating", "stars", "v1",
)  # fmt: skip


def find_column(
    rows: Sequence[Row], wanted: str, known: Sequence[str], parameter: str, origin: str
) -> str:
    """The column that a parameter names, or else the only one with a usual name.

    Raises:
        UserError: no such column, none with a usual name, or more than one.
    """
    columns = list(dict.fromkeys(name for row in rows[:100] for name in row))
    if wanted:
        if wanted not in columns:
            raise UserError(f"{origin} has no column {wanted!r} ({parameter}), only {columns}")
        return wanted
    found = [name for name in columns if name.strip().lower() in known]
    if len(found) != 1:
        what = (
            f"more than one that may be it ({', '.join(found)})"
            if found
            else "none of a usual name"
        )
        raise UserError(f"{origin}: name the column in {parameter}: {what}; there are {columns}")
    return found[0]
