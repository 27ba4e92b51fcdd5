"""A study: Optuna proposes parameters, the stage itself measures them, SQLite remembers.

Each trial is a child of one parent in MLflow by way of the stage's own record, curves, inputs and
machine included; Optuna's MLflow callback would keep parameters and final value alone.
"""

import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from gptmill.closure import code_hash
from gptmill.errors import UserError
from gptmill.files import state_root
from gptmill.params import PARAMS_FILE, flatten, read_yaml
from gptmill.search.cases import merged
from gptmill.search.search import Search
from gptmill.search.trial import Task, run_trial, stop_orphan
from gptmill.tracking import Stage
from gptmill.tracking.execution import Execution

# Trials that end before any is stopped early, and failures in a row that end the study.
FIRST_TRIALS, MOST_FAILURES = 4, 3
CONTINUES = "continues"


class Study:
    """A search that is kept in `.state/studies/<name>/study.db` and continues where it stopped.

    Args:
        parameters: the tree that trials start from, as params.yaml has it.

    Raises:
        UserError: the study was begun with another space, other parameters or other code.
    """

    def __init__(self, name: str, stage: str, search: Search, parameters: dict[str, Any]) -> None:
        self.search, self.parameters = search, parameters
        self.folder = (state_root() / "studies" / name).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            storage=f"sqlite:///{self.folder / 'study.db'}",
            study_name=name,
            direction=search.direction,
            load_if_exists=True,
        )
        # Another seed at each start, or a resumed study would draw its first values again.
        self.study.sampler = optuna.samplers.TPESampler(seed=len(self.study.trials))
        self.study.pruner = optuna.pruners.MedianPruner(FIRST_TRIALS, n_warmup_steps=1)
        self._begin(stage)
        execution = Execution(**self.study.user_attrs["execution"])
        root = state_root().parent.resolve()
        self.task = Task(stage, search.objective, execution, root, self.folder)

    def run(self, trials: int, timeout: float | None) -> None:
        """Run until the study has so many trials, or begin none after `timeout` seconds.

        Raises:
            UserError: three trials in a row failed, an input of the stage is missing, or another
                process runs this study.
        """
        self.task.links()  # a missing input is said before any trial begins
        with self._lock(), self._record() as stage:
            self._recover()
            begun, failures = time.monotonic(), 0
            while self.done < trials and failures < MOST_FAILURES:
                if timeout is not None and time.monotonic() - begun > timeout:
                    print(f"{timeout:g} s are over")
                    break
                failures = 0 if self._run_next(stage) else failures + 1
            if failures == MOST_FAILURES:
                raise UserError(f"{failures} trials in a row failed")
            self._sum_up(stage)

    @property
    def done(self) -> int:
        """Trials that ended; one that was cut off and gone on with counts once."""
        ended = [t for t in self.study.trials if t.state.is_finished()]
        return len({_label(trial) for trial in ended}) - len(self._waiting)

    @property
    def _waiting(self) -> set[int]:
        """Labels of cut-off trials whose continuation has not run."""
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return {trial.user_attrs[CONTINUES] for trial in waiting if CONTINUES in trial.user_attrs}

    @property
    def best(self) -> FrozenTrial | None:
        complete = self.study.get_trials(states=(TrialState.COMPLETE,))
        return self.study.best_trial if complete else None

    def command(self) -> str:
        """The experiment that runs the best trial's parameters; empty if params.yaml has them."""
        assert self.best is not None
        present = flatten(read_yaml(PARAMS_FILE))
        tried = flatten(merged(self.parameters, self.best.params))
        changed = {name: value for name, value in tried.items() if value != present[name]}
        sets = [f"-S '{name}={value}'" for name, value in changed.items()]
        return " ".join(["dvc exp run", *sets]) if sets else ""

    def plot(self, path: Path) -> None:
        """Each trial's value and the best so far, by trial."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        complete = self.study.get_trials(states=(TrialState.COMPLETE,))
        places = [_label(trial) for trial in complete]
        values = [trial.value for trial in complete if trial.value is not None]  # all have one
        better = min if self.search.direction == "minimize" else max
        best = [better(values[: i + 1]) for i in range(len(values))]
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(places, values, "o", label="trial")
        axes.step(places, best, where="post", label="best so far")
        axes.set_xlabel("trial (those without a point were stopped early or failed)")
        axes.set_ylabel(self.search.objective)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)

    def _begin(self, stage: str) -> None:
        """Give a new study its identity; hold an old one against what it was begun with."""
        facts = {
            "stage": stage,
            "search": self.search.model_dump(),
            "parameters": flatten(self.parameters),
            "code": code_hash(),
        }
        marks = {name: _digest(value) for name, value in facts.items()}
        name, before = self.study.study_name, self.study.user_attrs.get("begun with")
        if before is None:
            run = uuid.uuid4().hex
            execution = Execution(run[:16], f"study {name}", int(time.time() * 1000))
            self.study.set_user_attr("begun with", marks)
            self.study.set_user_attr("execution", execution.as_event())
            self.study.set_user_attr("run", run)
            self._enqueue_present()
        elif before != marks:
            other = ", ".join(fact for fact in marks if before[fact] != marks[fact])
            raise UserError(
                f"study '{name}' was begun with other {other}, so its trials would not compare: "
                "choose another --study"
            )

    def _enqueue_present(self) -> None:
        """The first trial is what params.yaml says, so that the search has to beat it."""
        known, space = flatten(self.parameters), self.search.space
        if all(dimension.holds(known[name]) for name, dimension in space.items()):
            self.study.enqueue_trial({name: known[name] for name in space})

    def _recover(self) -> None:
        """Go on with trials that a kill cut off, from their checkpoints."""
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            stop_orphan(trial.user_attrs.get("pid"), self.folder)
            self.study.tell(trial.number, state=TrialState.FAIL)
            self.study.enqueue_trial(trial.params, user_attrs={CONTINUES: _label(trial)})

    def _run_next(self, stage: Stage) -> bool:
        """Ask, run, tell; whether the trial came to a value or was stopped early."""
        trial = self.study.ask(self.search.distributions())
        label = trial.user_attrs.get(CONTINUES, trial.number)

        def hopeless(step: int, value: float) -> bool:
            trial.report(value, step)
            return trial.should_prune()

        values = ", ".join(f"{k.split('.')[-1]} {_short(v)}" for k, v in trial.params.items())
        print(f"trial {label}: {values}", flush=True)
        parameters = merged(self.parameters, trial.params)
        try:
            value = run_trial(
                self.task, label, parameters, lambda pid: trial.set_user_attr("pid", pid), hopeless
            )
        except UserError as error:
            self.study.tell(trial, state=TrialState.FAIL)
            print(f"  failed: {error}", flush=True)
            return False
        if value is None:
            self.study.tell(trial, state=TrialState.PRUNED)
            print("  stopped early: below the median", flush=True)
            return True
        self.study.tell(trial, value)
        best, reached = self.study.best_trial, self.study.best_value
        stage.log(label, {self.search.objective: value, "best": reached})
        print(f"  {self.search.objective} {_short(value)} (best {_short(reached)}, "
              f"trial {_label(best)})", flush=True)  # fmt: skip
        return True

    @contextlib.contextmanager
    def _record(self) -> Iterator[Stage]:
        """The study's own run beside its trials, reopened each time."""
        run = self.study.user_attrs["run"]
        about = {"direction": self.search.direction, "objective": self.search.objective}
        space = {name: str(d.ends()) for name, d in self.search.space.items()}
        name = f"tune_{self.task.stage}"
        with Stage(
            name, {**about, **space}, resume_run=run, execution=self.task.execution, timings=None
        ) as stage:
            yield stage

    def _sum_up(self, stage: Stage) -> None:
        if self.best is not None:
            image = self.folder / "history.png"
            self.plot(image)
            stage.artifact(image)
            found = {"best": self.best.value, "trials": self.done}
            stage.metrics({**found, "command": self.command() or "params.yaml as it is"})

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            held = FileLock(self.folder / "lock").acquire(blocking=False)
        except Timeout:
            name = self.study.study_name
            raise UserError(f"another process is running study '{name}'") from None
        with held:
            yield


def _label(trial: FrozenTrial) -> int:
    """The number of a trial, or of the one it continues."""
    return trial.user_attrs.get(CONTINUES, trial.number)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
