"""What `gptmill plan` says beside what the last run of this project took.

    python -m benchmarks.planning [--project DIRECTORY]

Memory is a stage's peak, time its wall time; both as planned / measured. The plan is made anew, so
run it on the machine that made the timings, and as busy. Goals: memory within 25%, time within 40%.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from gptmill.files import read_json

SHORT = 5.0  # seconds: a stage below is mostly the start of Python, and its ratio tells nothing


def planned(project: Path) -> dict[str, dict]:
    """Memory and seconds by stage."""
    command = [sys.executable, "-m", "gptmill.cli", "plan", "--json"]
    done = subprocess.run(command, cwd=project, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)["stages"]  # status 1 says that it does not fit


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--project", type=Path, default=Path(), help="where timings/ is")
    project = parser.parse_args().project
    totals = [0.0, 0.0]
    print(f"{'stage':24}{'MB':>7}{'planned':>9}{'ratio':>7}{'s':>9}{'planned':>9}{'ratio':>7}")
    for name, plan in planned(project).items():
        timing = project / f"timings/{name.replace('@', '_')}.json"
        if not timing.exists():
            continue
        measured = read_json(timing)
        memory, peak = plan["memory"]["total"] / 1e6, measured["peak_memory_bytes"] / 1e6
        seconds, took = plan["seconds"], measured["seconds"]
        totals[0] += seconds
        totals[1] += took
        ratio = f"{seconds / took:7.2f}" if took >= SHORT else f"{'':>7}"
        print(
            f"{name:24}{peak:7.0f}{memory:9.0f}{memory / peak:7.2f}{took:9.1f}{seconds:9.1f}{ratio}"
        )
    print(f"{'all':47}{totals[1]:9.1f}{totals[0]:9.1f}{totals[0] / totals[1]:7.2f}")


if __name__ == "__main__":
    main()
