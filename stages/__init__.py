"""One short script per DVC stage: `python -m stages.NAME --argument PATH …`, paths from dvc.yaml.

A stage is a `main` whose parameters are its command-line arguments.
"""

import argparse
import csv
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The package beside the stages, wherever they lie: in the checkout of a queued experiment the
# editable install would bring the workspace's code, which may have moved on meanwhile.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from gptmill.errors import UserError
from gptmill.files import atomic_file, atomic_folder, write_json


def run(main: Callable[..., None]) -> None:
    """Call `main` with the command line's arguments; a `UserError` is a message and status 1."""
    parser = argparse.ArgumentParser(description=inspect.getmodule(main).__doc__)
    for name, parameter in inspect.signature(main).parameters.items():
        parser.add_argument(f"--{name}", type=parameter.annotation, required=True)
    try:
        main(**vars(parser.parse_args()))
    except UserError as error:
        sys.exit(f"error: {error}")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """A CSV with the union of the rows' columns, in order of appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_file(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_curves(folder: Path, curves: dict[str, list[dict[str, Any]]]) -> None:
    """Training curves as DVC plots them: CSV for numbers, JSON for samples."""
    with atomic_folder(folder) as beside:
        for name, rows in curves.items():
            if name == "samples":
                write_json(beside / "samples.json", rows)
            else:
                write_rows(beside / f"{name}.csv", rows)
