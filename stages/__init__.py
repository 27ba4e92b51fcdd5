"""One short script per DVC stage: `python -m stages.NAME --argument PATH …`, paths from dvc.yaml.

A stage is a `main` whose parameters are its command-line arguments.
"""

import argparse
import csv
import inspect
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

# The package beside the stages, wherever they lie: in the checkout of a queued experiment the
# editable install would bring the workspace's code, which may have moved on meanwhile.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from gptmill.errors import UserError
from gptmill.files import atomic_file, atomic_folder, disk_error, write_json
from gptmill.process.interrupt import end_at_once, in_order
from gptmill.process.parent import end_with_parents
from gptmill.process.ranks import is_first, is_worker, leave_if_stopped, stop_restarts
from gptmill.versions import VERSIONS_FILE, require_recorded


def run(main: Callable[..., None], launched: bool = False) -> None:
    """Call `main` with the command line's arguments, while its outputs are this process's own.

    A stage that is `launched` runs in as many processes as params.yaml's `launch` says; the first
    of them owns the outputs.

    A `UserError`, and what the disk refuses, is a message and status 1; Ctrl-C is a line and 130.
    """
    # Not at the top: until the last lines below have run, Ctrl-C would show a traceback.
    from gptmill.process.outputs import claimed

    module = inspect.getmodule(main)
    parser = argparse.ArgumentParser(description=module.__doc__)
    for name, parameter in inspect.signature(main).parameters.items():
        parser.add_argument(f"--{name}", type=parameter.annotation, required=True)
    arguments = vars(parser.parse_args())
    stage = Path(module.__file__).stem
    try:
        require_recorded(Path(__file__).resolve().parents[1] / VERSIONS_FILE)
        if launched and (status := _launched(stage)) is not None:
            sys.exit(status)
        with in_order(stage), claimed(stage, arguments) if is_first() else nullcontext():
            main(**arguments)
    except UserError as error:
        sys.exit(f"error: {error}" if stop_restarts() else 1)
    except OSError as error:
        told = disk_error(error, Path(error.filename or "."))
        if told is None:
            raise
        sys.exit(f"error: {told}" if stop_restarts() else 1)


def _launched(stage: str) -> int | None:
    """The exit status of the stage in several processes; None if this process is to run it."""
    if is_worker():
        return None
    from gptmill.params import load
    from gptmill.process.launch import launch

    section = load().launch
    if section.world_size == 1:
        return None
    return launch(section, f"stages.{stage}", sys.argv[1:])


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


# `python -m` has not yet found the stage's own module: its imports, which take seconds, are next.
if sys.argv[0] == "-m":
    end_at_once(
        sys.orig_argv[sys.orig_argv.index("-m") + 1].rpartition(".")[2],
        otherwise="nothing was half written, and the same command starts it again",
    )
    end_with_parents()
leave_if_stopped()
