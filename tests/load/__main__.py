"""`make test-load`: many clients for minutes, and the table of it in docs/reliability.md."""

import argparse
import sys
from pathlib import Path

from gptmill.files import atomic_file
from tests.load.run import HEADER, Load, run_load

PAGE = Path("docs/reliability.md")
BEGIN, END = "<!-- written by tests/load -->", "<!-- end of tests/load -->"


def write(loads: list[Load]) -> None:
    """The table, between its two marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    table = "\n".join([*HEADER, *(load.row() for load in loads)])
    with atomic_file(PAGE) as beside:
        text = f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"
        beside.write_text(text, encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("models/onnx"))
    parser.add_argument("--clients", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE}")
    options = parser.parse_args()
    loads = []
    for clients in options.clients:
        loads.append(load := run_load(options.models, clients, options.seconds))
        print("\n".join([load.row(), *load.faults()[:20]]), flush=True)
    if options.write:
        write(loads)
    faults = [fault for load in loads for fault in load.faults()]
    sys.exit("\n".join(faults) or 0)


if __name__ == "__main__":
    main()
