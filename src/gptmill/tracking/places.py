"""Addresses in the database after the project was moved or copied.

MLflow writes the full path of every artifact into its database. Where that lies in a project, the
artifacts lie beside it in `mlartifacts`; so when the database says another place, it was moved, or
is a copy, and is told where it is now. Without that nothing could be read after a move, and a copy
would write into the original.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

ARTIFACTS = "mlartifacts"
# Table, column, and what of it is ours.
ADDRESSES = [
    ("experiments", "artifact_location", "experiment_id = :experiment"),
    ("runs", "artifact_uri", "experiment_id = :experiment"),
    ("logged_models", "artifact_location", "experiment_id = :experiment"),
    ("model_versions", "source", "true"),
    ("model_versions", "storage_location", "true"),
]


def artifact_location(database: Path) -> str:
    """Where an experiment of a database keeps its artifacts."""
    return (database.parent / ARTIFACTS).as_uri()


def move_in(database: Path, experiment: str) -> None:
    """Make every address of an experiment, and of its models, start where the database lies now.

    Data sets that earlier versions logged with a bare path get the JSON that MLflow reads.
    """
    here = artifact_location(database)
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        row = connection.execute(
            "SELECT experiment_id, artifact_location FROM experiments WHERE name = ?", (experiment,)
        ).fetchone()
        if row is None:
            return
        number, before = row
        if before != here and before.startswith("file:") and before.endswith(f"/{ARTIFACTS}"):
            _move_addresses(connection, number, before, here)
        else:
            before = here
        for uuid, source in list(_data_sets(connection, number)):
            moved = _moved_source(source, _folder(before), database.parent)
            if moved != source:
                connection.execute(
                    "UPDATE datasets SET dataset_source = ? WHERE dataset_uuid = ?", (moved, uuid)
                )


def _move_addresses(
    connection: sqlite3.Connection, experiment: int, before: str, here: str
) -> None:
    values = {"experiment": experiment, "here": here, "length": len(before)}
    for table, column, ours in ADDRESSES:
        # What follows the old place must be a path below it: /a/mlartifacts is not /a/mlartifacts2.
        connection.execute(
            f"UPDATE {table} SET {column} = :here || substr({column}, :length + 1) WHERE {ours} "
            f"AND ({column} = :before OR substr({column}, 1, :length + 1) = :before || '/')",
            {**values, "before": before},
        )


def _data_sets(connection: sqlite3.Connection, experiment: int) -> Iterator[tuple[str, str]]:
    yield from connection.execute(
        "SELECT dataset_uuid, dataset_source FROM datasets "
        "WHERE experiment_id = ? AND dataset_source_type = 'local'",
        (experiment,),
    )


def _moved_source(source: str, before: Path, here: Path) -> str:
    """The JSON of a data set's source; a path in the old project becomes one in this."""
    try:
        path = Path(json.loads(source)["uri"])
    except (ValueError, TypeError, KeyError):
        path = Path(source)
    path = here / path
    if before != here and path.is_relative_to(before):
        path = here / path.relative_to(before)
    return json.dumps({"uri": path.as_posix()})


def _folder(location: str) -> Path:
    """The folder that holds the artifacts of a `file:` address."""
    return Path(url2pathname(urlsplit(location).path)).parent
