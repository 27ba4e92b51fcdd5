"""What a stage reads, as MLflow's data sets: a source that MLflow opens, columns and sizes."""

import csv
import json
from pathlib import Path
from typing import Any

from gptmill.errors import UserError
from gptmill.files import read_json

LARGEST = 64 * 2**20  # bytes of a file that is read through for its columns and rows


def describe(path: Path) -> dict[str, Any]:
    """Columns and sizes of a data set, where they cost a moment.

    `columns` are the names of a table's, `profile` has MLflow's own keys: `num_rows` (of a table,
    entries, documents) and `num_elements` (tokens), for each split of a folder that has some;
    else the number of files and bytes.
    """
    if not path.exists():
        return {"columns": [], "profile": {}}
    if path.is_file():
        return _table(path) or {"columns": [], "profile": _size([path])}
    if splits := _token_splits(path):
        return {"columns": [], "profile": splits}
    files = sorted(file for file in path.rglob("*") if file.is_file())
    tables = {file.stem: found for file in files if (found := _table(file))}
    if tables and len(tables) == len([file for file in files if file.suffix in (".csv", ".json")]):
        columns = next(iter(tables.values()))["columns"]
        return {"columns": columns, "profile": {k: v["profile"] for k, v in tables.items()}}
    return {"columns": [], "profile": _size(files)}


def source(path: str, root: Path) -> str:
    """The JSON that `mlflow.data.get_source` reads: the place in the project, from its root.

    The digest of the data set says whether the same bytes are still there.
    """
    return json.dumps({"uri": (root / path).as_posix()})


def schema(columns: list[str]) -> str | None:
    """Columns of text as MLflow's schema."""
    if not columns:
        return None
    listed = [{"type": "string", "name": name, "required": True} for name in columns]
    return json.dumps({"mlflow_colspec": listed})


def _table(path: Path) -> dict[str, Any] | None:
    """A CSV with a header, or a JSON list of objects."""
    if path.suffix not in (".csv", ".json") or path.stat().st_size > LARGEST:
        return None
    try:
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.reader(file)
                columns, rows = next(reader, []), sum(1 for _ in reader)
        else:
            entries = read_json(path, list)
            if not all(isinstance(entry, dict) for entry in entries):
                return None
            columns, rows = list(entries[0]) if entries else [], len(entries)
    except (UserError, ValueError, csv.Error):  # whoever reads it for good says what is wrong
        return None
    return {"columns": columns, "profile": {"num_rows": rows}}


def _token_splits(folder: Path) -> dict[str, Any]:
    """Documents and tokens of each split of a folder of token shards."""
    try:
        splits = read_json(folder / "index.json", dict)["splits"]
        return {
            name: {"num_rows": split["documents"], "num_elements": split["tokens"]}
            for name, split in splits.items()
        }
    except (UserError, KeyError, TypeError, AttributeError):
        return {}


def _size(files: list[Path]) -> dict[str, int]:
    return {"num_files": len(files), "num_bytes": sum(file.stat().st_size for file in files)}
