"""One trial of a study: the stage's own command in a folder of its own, with other parameters.

The folder holds its params.yaml and links to what the stage reads; what it writes stays there, and
`.state`, the journal and MLflow are the project's. So a trial is the stage as `dvc repro` runs it,
and one that was cut off resumes from its checkpoint.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from gptmill.dvc import definition
from gptmill.errors import UserError
from gptmill.files import read_json
from gptmill.params import PARAMS_FILE, YAML
from gptmill.tracking import points_of
from gptmill.tracking.execution import STUDY, TRIAL, Execution

POLL_SECONDS = 0.5
CODE = ("src", "stages")


@dataclass(frozen=True)
class Task:
    """What every trial of a study runs."""

    stage: str
    objective: str
    execution: Execution
    root: Path
    folder: Path

    def command(self) -> list[str]:
        """The stage's command of dvc.yaml, by this Python."""
        words = shlex.split(definition(self.stage)["cmd"])
        return [sys.executable, *words[1:]]

    def links(self) -> list[str]:
        """What the stage reads, code as a whole.

        Raises:
            UserError: an input is not there yet.
        """
        deps = [d for d in definition(self.stage)["deps"] if not d.startswith(CODE)]
        for dep in deps:
            if not (self.root / dep).exists():
                raise UserError(f"{dep} does not exist: run `dvc repro {self.stage}` first")
        return [*CODE, *deps]


class Trial:
    """A stage at work. `label` names the trial in MLflow."""

    def __init__(self, task: Task, label: int, parameters: dict[str, Any]) -> None:
        self.task = task
        self.folder = task.folder / f"trial-{label}"
        self._prepare(parameters)
        environment = os.environ | {
            "DVC_ROOT": str(task.root),
            STUDY: json.dumps(task.execution.as_event()),
            TRIAL: str(label),
        }
        self.log = self.folder / "log"
        with self.log.open("w", encoding="utf-8", newline="\n") as log:
            self.process = subprocess.Popen(
                task.command(), cwd=self.folder, env=environment, stdout=log, stderr=log
            )

    def points(self) -> Iterator[tuple[int, float]]:
        """The objective by step, as it comes, until the stage ends."""
        seen, ended = -1, False
        while not ended:
            ended = self.process.poll() is not None  # before the last look, not after it
            for step, value in sorted(points_of(self.process.pid, self.task.objective).items()):
                if step > seen:
                    seen = step
                    yield step, value
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """End the stage as Ctrl-C would."""
        self.process.terminate()
        self.process.wait()

    def value(self) -> float:
        """The objective of a stage that finished.

        Raises:
            UserError: it failed; its last words are passed on.
        """
        if self.process.returncode:
            lines = [
                line for line in self.log.read_text(encoding="utf-8").splitlines() if line.strip()
            ]
            raise UserError(lines[-1] if lines else f"exit status {self.process.returncode}")
        metrics = read_json(self.folder / f"metrics/{self.task.stage}.json")
        if self.task.objective not in metrics:
            known = ", ".join(metrics)
            raise UserError(f"the stage has no metric '{self.task.objective}'; it has: {known}")
        return float(metrics[self.task.objective])

    def remove(self) -> None:
        """Delete what it wrote: the best trial is made again by its parameters, to the byte."""
        shutil.rmtree(self.folder)

    def _prepare(self, parameters: dict[str, Any]) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for name in self.task.links():
            link = self.folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(self.task.root / name)
        with (self.folder / PARAMS_FILE).open("w", encoding="utf-8", newline="\n") as file:
            YAML().dump(parameters, file)


def run_trial(
    task: Task,
    label: int,
    parameters: dict[str, Any],
    started: Callable[[int], None],
    hopeless: Callable[[int, float], bool],
) -> float | None:
    """Run a trial to its end; `None` if it was given up as hopeless on the way.

    Args:
        started: called with the process id.
        hopeless: called with each point of the objective; `True` ends the trial.

    Raises:
        UserError: the stage failed.
    """
    trial = Trial(task, label, parameters)
    started(trial.process.pid)
    try:
        for step, value in trial.points():
            if hopeless(step, value) and trial.process.poll() is None:
                trial.stop()
                trial.remove()
                return None
    except BaseException:
        trial.stop()
        raise
    value = trial.value()
    trial.remove()
    return value


def stop_orphan(pid: int | None, folder: Path) -> None:
    """End the stage of a trial whose study was killed, if it lives on."""
    try:
        process = psutil.Process(pid)
        if Path(process.cwd()).is_relative_to(folder.resolve()):
            process.terminate()
            process.wait(30)
    except (psutil.Error, TypeError):
        return
