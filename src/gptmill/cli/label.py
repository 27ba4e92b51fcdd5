"""`gptmill classify --file`: a table's rows, or a file's lines, with their labels."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptmill.data.tables import JSON_LINES, SUFFIXES, TEXT_NAMES, find_column, objects, read_rows
from gptmill.data.text_files import (
    lines,
    plain_suffix,
    read_text,
    whole_characters,
    without_surrogates,
)
from gptmill.errors import UserError
from gptmill.files import atomic_file

if TYPE_CHECKING:
    from gptmill.runtime.session import Classification, Classifier

TOGETHER = 256  # texts between two moves of the bar
PREDICTED, PROBABILITY = "predicted", "probability"
Row = dict[str, Any]


def label_file(classifier: "Classifier", file: Path, column: str, output: Path | None) -> None:
    """Label each row of a table, or each line of a text; print them, or write them to `output`.

    Of a table all columns stay, and `predicted` and `probability` are added; rows without a text
    get neither, and are counted.

    Raises:
        UserError: the file or its column cannot be read, nothing has a text, or a kind of output
            that is not known.
    """
    if output and plain_suffix(output) not in SUFFIXES:
        raise UserError(f"{output}: write one of {' '.join(SUFFIXES)}")
    rows, column = _rows(file, column)
    for name in (PREDICTED, PROBABILITY):
        if output and any(name in row for row in rows):
            raise UserError(f"{file} has a column {name!r} already, which would be lost: rename it")
    texts = [_text(row.get(column)) for row in rows]
    full = [number for number, text in enumerate(texts) if text.strip()]
    if not full:
        raise UserError(f"{file}: column {column!r} has no text to classify")
    found = dict(zip(full, _classified(classifier, [texts[number] for number in full])))
    if len(full) < len(rows):
        print(f"{len(rows) - len(full)} of {len(rows)} rows have no text", file=sys.stderr)
    if output:
        labeled = (row | _labels(found.get(i)) for i, row in enumerate(rows))
        write_rows(output, [whole_characters(row) for row in labeled])
        print(f"{output}: {len(rows):,} rows", file=sys.stderr)
        return
    for number in full:
        show(found[number], texts[number])


def show(result: "Classification", text: str) -> None:
    """Print label, probability and text."""
    print(f"{result.label}\t{result.probabilities[result.label]:.4f}\t{text}")


def _rows(file: Path, column: str) -> tuple[list[Row], str]:
    """Rows and the column of the texts; a plain text's lines are rows of one column."""
    if plain_suffix(file) not in SUFFIXES and not column:
        return [{"text": line} for line in lines(read_text(file))], "text"
    rows = objects(file, read_rows(file, header=not column.isdigit()))
    return rows, find_column(rows, column, TEXT_NAMES, "--column", str(file))


def _text(value: Any) -> str:
    if isinstance(value, int | float) and value == value:
        return str(value)
    return without_surrogates(value) if isinstance(value, str) else ""


def _classified(classifier: "Classifier", texts: Sequence[str]) -> Iterator["Classification"]:
    from tqdm import tqdm

    with tqdm(total=len(texts), unit="text", disable=None) as bar:
        for start in range(0, len(texts), TOGETHER):
            part = texts[start : start + TOGETHER]
            yield from classifier.classify(part)
            bar.update(len(part))


def _labels(result: "Classification | None") -> Row:
    if result is None:
        return {PREDICTED: None, PROBABILITY: None}
    return {PREDICTED: result.label, PROBABILITY: round(result.probabilities[result.label], 6)}


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a table in the kind that the name says, whole or not at all."""
    kind = plain_suffix(path)
    with atomic_file(path) as beside:
        if kind == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            try:
                pq.write_table(pa.Table.from_pylist(list(rows)), beside)
            except pa.ArrowException as error:
                raise UserError(f"{path}: Parquet has one type a column: {error}") from None
            return
        with beside.open("w", encoding="utf-8", newline="") as out:
            if kind in JSON_LINES:
                out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            elif kind == ".json":
                json.dump(list(rows), out, ensure_ascii=False, indent=2)
            else:
                _write_delimited(out, rows, "\t" if kind == ".tsv" else ",")


def _write_delimited(out: Any, rows: Iterable[Row], delimiter: str) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, columns, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    # A bare CR is a line's end to many readers unless it is quoted, as the module does.
    writer.writerows(rows)
