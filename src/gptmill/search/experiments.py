"""Runs as DVC experiments: queued, worked off by DVC's own workers, read back.

Everything goes through the `dvc` command: `dvc exp run --queue`, `dvc queue start`, `dvc queue
status`, `dvc exp show --json`. So a sweep continues without us, and `dvc exp show`, `dvc exp diff`,
`dvc exp apply` and `gptmill compare` know its runs by their names.
"""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import psutil

from gptmill.dvc import OWN
from gptmill.errors import UserError
from gptmill.git import git
from gptmill.params import PARAMS_FILE, flatten, read_yaml
from gptmill.search.cases import THREADS, Run, Sweep, merged

CODE = ("src", "stages", "dvc.yaml", "versions.yaml")
POLL_SECONDS = 5.0
TASK = re.compile(r"^[0-9a-f]{7,}\s+(?P<name>\S+)\s.*\s(?P<state>Queued|Running|Success|Failed)$")
WORKERS = re.compile(r"Worker status: (\d+) active, (\d+) idle")
# Workers need a moment to start and to pass from one task to the next.
PATIENCE = 6


@dataclass(frozen=True)
class Experiment:
    """What DVC knows of an experiment: `state` is queued, running, failed or success; parameters
    are flat, metrics are named `<stage>/<name>`."""

    revision: str
    state: str
    pid: int | None
    parameters: dict[str, Any]
    metrics: dict[str, float]

    @property
    def orphaned(self) -> bool:
        """Whether DVC believes it running though its process is gone."""
        return self.state == "running" and not (self.pid and psutil.pid_exists(self.pid))


def queue(sweep: Sweep, threads: int | None) -> list[Run]:
    """Queue every run that is not there yet; the runs of the sweep.

    Finished ones stay as they are, waiting and running ones too; those that failed, or whose
    process is gone, are queued again and resume from their checkpoints.

    Args:
        threads: threads of each run; `None` leaves those of params.yaml.

    Raises:
        UserError: an experiment of that name ran with other code or parameters.
    """
    known, runs = experiments(), sweep.runs()
    for run in runs:
        found = known.get(run.name)
        if found:
            _check_same(run, found)
    for run in runs:
        found = known.get(run.name)
        if found and (found.state == "failed" or found.orphaned):
            _forget(run.name, found)
        elif found:
            print(f"{run.name}: {'finished before' if found.state == 'success' else found.state}")
            continue
        pinned = {} if threads is None else {THREADS: threads}
        sets = [f"--set-param={n}={_hydra(v)}" for n, v in {**run.overrides, **pinned}.items()]
        targets = ["--single-item"] * sweep.alone + [sweep.stage] * bool(sweep.stage)
        copies = [f"--copy-paths={path}" for path in ignored_files()]
        dvc("exp", "run", "--queue", "--name", run.name, *copies, *sets, *targets)
        print(f"{run.name}: queued", flush=True)
    return runs


def run_queue(runs: list[Run], jobs: int, threads: int | None) -> None:
    """Start DVC's workers and wait, saying what happens, until no run is queued or running.

    Raises:
        UserError: the workers are gone though runs are left.
    """
    states, _ = _status()
    if not any(states.get(run.name) in ("Queued", "Running") for run in runs):
        return
    dvc("queue", "start", "--jobs", str(jobs), threads=threads)
    said = {run.name: states.get(run.name, "") for run in runs}
    idle = 0
    while True:
        states, workers = _status()
        for run in runs:
            state = states.get(run.name, "")
            if state and state != said.get(run.name):
                print(f"{run.name}: {state.lower()}", flush=True)
            said[run.name] = state
        if not any(state in ("Queued", "Running") for state in said.values()):
            return
        idle = 0 if workers else idle + 1
        if idle > PATIENCE:
            raise UserError("DVC's workers are gone; give the same command again to continue")
        time.sleep(POLL_SECONDS)


def experiments() -> dict[str, Experiment]:
    """Every experiment of the current commit by name, also queued and failed ones."""
    shown = json.loads(dvc("exp", "show", "--json"))
    rows = [row for commit in shown for row in commit.get("experiments") or []]
    return {row["name"]: _experiment(row) for row in rows if row["name"]}


def failure(name: str) -> str:
    """The last error line in the log of a failed run."""
    lines = dvc("queue", "logs", name).splitlines()
    errors = [line for line in lines if re.match(r"(error|ERROR|\w*Error)\b", line)]
    return (errors or lines or ["no log"])[0]


def dvc(*arguments: str, threads: int | None = None) -> str:
    """The output of a `dvc` command, with our Python first on the path of what it starts.

    Raises:
        UserError: it failed; what it said is passed on.
    """
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "dvc", *arguments]
    # Files, not pipes: the workers inherit them, and a pipe would end with the last worker.
    with TemporaryFile("w+") as output, TemporaryFile("w+") as errors:
        status = subprocess.run(command, env=environment, stdout=output, stderr=errors).returncode
        output.seek(0)
        errors.seek(0)
        if status:
            said = "\n".join(line for line in errors.read().splitlines() if line.strip())
            raise UserError(f"dvc {' '.join(arguments)} failed:\n{said[-2000:]}")
        return output.read()


def ignored_files(folder: str = OWN) -> list[str]:
    """What git ignores of a user's own text and model, and a queued run would lack: files, and
    folders that git knows nothing in."""
    listed = git("ls-files", "--others", "--directory", "-z", "--", folder)
    return [name.removesuffix("/") for name in listed.split("\0") if name]


def _status() -> tuple[dict[str, str], int]:
    """The state of every task by name, and how many workers live."""
    text = dvc("queue", "status")
    tasks = [match for line in text.splitlines() if (match := TASK.match(line.strip()))]
    workers = WORKERS.search(text)
    return (
        {task["name"]: task["state"] for task in tasks},
        sum(map(int, workers.groups())) if workers else 0,
    )


def _experiment(row: dict[str, Any]) -> Experiment:
    """A row of `dvc exp show --json`; without an executor it ran in the workspace, to its end."""
    executor = row["executor"] or {}
    last = row["revs"][0]
    data = last["data"] or {}
    metrics = {
        f"{Path(path).stem}/{name}": float(value)
        for path, file in data.get("metrics", {}).items()
        for name, value in file.get("data", {}).items()
        if isinstance(value, int | float)
    }
    return Experiment(
        last["rev"],
        executor.get("state", "success"),
        (executor.get("local") or {}).get("pid"),
        flatten(data.get("params", {}).get(str(PARAMS_FILE), {}).get("data", {})),
        metrics,
    )


def _check_same(run: Run, found: Experiment) -> None:
    """An experiment stands for its run if parameters and code are those of now.

    Threads do not count: they follow the number of workers, and change the last digits alone.
    """
    wanted = flatten(merged(read_yaml(PARAMS_FILE), run.overrides))
    differing = [
        name
        for name in sorted(wanted.keys() | found.parameters.keys())
        if name != THREADS and wanted.get(name) != found.parameters.get(name)
    ]
    if found.parameters and differing:
        what = f"{differing[0]} = {found.parameters.get(differing[0])}"
    elif subprocess.run(["git", "diff", "--quiet", found.revision, "--", *CODE]).returncode:
        what = "other code"
    else:
        return
    raise UserError(
        f"experiment {run.name} is there already, with {what}: rename the sweep, or remove it "
        f"with `dvc exp remove {run.name}` (`dvc queue remove {run.name}` while it waits)"
    )


def _forget(name: str, found: Experiment) -> None:
    """Take a failed or orphaned task out of DVC's queue."""
    if found.orphaned:
        dvc("queue", "kill", "--force", name)
    dvc("queue", "remove", name)


def _hydra(value: Any) -> str:
    """A value as DVC's overrides write it."""
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", value)
        keyword = value.lower() in ("true", "false", "null", "inf", "nan")
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        return value if plain and not keyword else f"'{quoted}'"
    return json.dumps(value)
