"""Damage every kind of file thousands of times; write what came of it into docs/reliability.md.

    python -m tests.fuzz [--inputs 2000] [--guided 20000] [--readers NAME …] [--write]

`--guided` adds inputs that atheris chooses by the lines of gptmill they reach, in a process of
its own for each reader. `make fuzz` installs it and runs both.
"""

import argparse
import contextlib
import io
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings

from gptmill.errors import UserError
from gptmill.files import atomic_file
from tests.fuzz.readers import READERS, Reader, damaged

PAGE = Path("docs/reliability.md")
BEGIN, END = "<!-- written by tests/fuzz -->", "<!-- end of tests/fuzz -->"


class Trial:
    """A reader, a folder of its own with its file in it, and what came of damaging it."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.folder = Path(tempfile.mkdtemp(prefix="gptmill-fuzz-"))
        reader.make(self.folder)
        self.strategy = damaged(reader, self.folder)
        self.outcomes: Counter[str] = Counter()
        self.faults: dict[str, str] = {}
        self.longest = 0.0

    def once(self, content: bytes) -> None:
        """Put the content in the file's place and read it."""
        (self.folder / self.reader.file).write_bytes(content)
        started = time.perf_counter()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self.reader.read(self.folder)
            self.outcomes["read"] += 1
        except UserError:
            self.outcomes["refused"] += 1
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            fault = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
            self.faults.setdefault(fault, f"{error} from {content[:200]!r}")
            self.outcomes["fault"] += 1
        self.longest = max(self.longest, time.perf_counter() - started)

    def property(self, inputs: int) -> Callable[[], None]:
        """A Hypothesis test of so many inputs, which are the same each time."""

        @settings(
            max_examples=inputs,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        @given(self.strategy)
        def run(content: bytes) -> None:
            self.once(content)

        return run


def guided(reader: Reader, runs: int) -> int:
    """Let atheris choose inputs in another process; how many it made.

    Raises:
        SystemExit: it found a fault, which is printed.
    """
    command = [sys.executable, "-m", "tests.fuzz.guided", reader.name, f"-runs={runs}"]
    command += ["-rss_limit_mb=6000", f"-artifact_prefix={tempfile.gettempdir()}/"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        sys.exit(f"{reader.name}: atheris found\n{done.stderr[-4000:]}")
    return runs


def table(rows: list[list[str]]) -> str:
    header = ["reader", "inputs", "read", "refused", "anything else", "longest"]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--guided", type=int, default=0)
    parser.add_argument("--readers", nargs="*", default=[reader.name for reader in READERS])
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE}")
    options = parser.parse_args()
    rows, faults = [], 0
    for reader in READERS:
        if reader.name not in options.readers:
            continue
        trial = Trial(reader)
        trial.property(options.inputs)()
        shutil.rmtree(trial.folder)
        counts, chosen = trial.outcomes, 0
        if options.guided:
            chosen = guided(reader, options.guided)
        inputs = f"{counts.total():,}" + (f" + {chosen:,} by coverage" if chosen else "")
        figures = [f"{counts[kind]:,}" for kind in ("read", "refused", "fault")]
        rows.append([reader.name, inputs, *figures, f"{trial.longest:.2f} s"])
        print(table(rows[-1:]).splitlines()[-1], flush=True)
        for fault, example in trial.faults.items():
            print(f"    {fault}: {example}")
        faults += counts["fault"]
    if options.write:
        text = PAGE.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        with atomic_file(PAGE) as beside:
            beside.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}", encoding="utf-8")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
