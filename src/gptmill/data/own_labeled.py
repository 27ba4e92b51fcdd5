"""Anybody's labeled texts as the raw table `texts.csv`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gptmill.data.classification import write_labeled
from gptmill.data.own_files import LeftOut, named_splits
from gptmill.data.tables import (
    LABEL_NAMES,
    SUFFIXES,
    TEXT_NAMES,
    Row,
    find_column,
    objects,
    read_rows,
    row_splits,
)
from gptmill.data.text_files import without_surrogates
from gptmill.errors import UserError

TAKEN = (*SUFFIXES, ".txt")
NO_TEXT, NO_LABEL = "row without a text", "row without a label"
NO_ONE_LABEL = "row whose label is several values"
SURROGATES = "row with half a surrogate pair, now U+FFFD"


def write_own_labeled(
    files: Sequence[Path],
    path: Path,
    *,
    text: str,
    label: str,
    encoding: str,
    left_out: LeftOut,
) -> None:
    """Write label, text and, where files are named for it, split.

    Args:
        text, label: columns; '' takes the only one of a usual name; a number is a place in files
            without a header.

    Raises:
        UserError: a file that cannot be read, columns in doubt, or no row with text and label.
    """
    splits = named_splits(files)
    found: list[dict[str, str]] = []
    read: Counter[tuple[str, str]] = Counter()
    for file in files:
        numbered = text.isdigit() and label.isdigit()
        rows = objects(file, read_rows(file, encoding, header=not numbered))
        columns = label_columns(rows, text, label, str(file))
        read[columns] += len(rows)
        for row, split in zip(rows, row_splits(file, rows)):
            split = splits.get(file, split)
            if taken := _taken(row, columns, left_out):
                found.append(taken | ({"split": split} if split else {}))
    for (of_text, of_label), count in read.items():
        print(f"{count:,} rows: text from {of_text!r}, label from {of_label!r}")
    if not found:
        raise UserError(f"{', '.join(map(str, files[:5]))}: no row with a text and a label")
    table = pd.DataFrame(found)
    if "split" in table.columns:
        table["split"] = table["split"].fillna("train")
    write_labeled(table, path)


def label_columns(rows: Sequence[Row], text: str, label: str, origin: str) -> tuple[str, str]:
    """The columns of text and label, found where there is no doubt."""
    names = [name for name in rows[0] if name.strip()]
    usual = [n for n in names if n.strip().lower() in (*TEXT_NAMES, *LABEL_NAMES)]
    if not text and not label and not usual and len(names) == 2:
        # Two columns without usual names: the one with few values that come again is the label.
        distinct = {name: len({str(row.get(name)) for row in rows}) for name in names}
        few, many = sorted(names, key=lambda name: distinct[name])
        if distinct[few] * 5 <= len(rows) and distinct[many] * 2 >= len(rows):
            if few in {row.get(few) for row in rows}:
                raise UserError(
                    f"{origin} has no header: {few!r} is a label. Name the columns by their place, "
                    f"download.classification.text: '{1 + names.index(many)}' and .label: "
                    f"'{1 + names.index(few)}'"
                )
            return many, few
    where = "download.classification."
    return (
        find_column(rows, text, TEXT_NAMES, f"{where}text", origin),
        find_column(rows, label, LABEL_NAMES, f"{where}label", origin),
    )


def _taken(row: Row, columns: tuple[str, str], left_out: LeftOut) -> dict[str, str] | None:
    """One row's text and label, or None with the reason counted."""
    text, label = row.get(columns[0]), label_text(row.get(columns[1]))
    if label is None:
        left_out.records[NO_ONE_LABEL] += 1
        return None
    if isinstance(text, int | float) and text == text:
        text = str(text)
    if not isinstance(text, str) or not text.strip():
        left_out.records[NO_TEXT] += 1
        return None
    if not label:
        left_out.records[NO_LABEL] += 1
        return None
    clean = without_surrogates(text).replace("\0", "")
    left_out.records[SURROGATES] += clean != text
    return {"label": label, "text": clean}


def label_text(value: Any) -> str | None:
    """A label as text: 1.0 is 1, white space around it goes, case stays; a list of one is that.

    None where it is no single value.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list | dict):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None or value != value else str(value).strip()
