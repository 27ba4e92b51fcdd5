"""A stage as a `with` block: what it logs is journalled at once and delivered beside its work."""

import hashlib
import json
import os
import signal
import sys
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path
from socket import gethostname
from types import FrameType, TracebackType
from typing import Any

from gptmill.closure import code_hash, code_in_use
from gptmill.dvc import locked_data, require_own_files
from gptmill.errors import hide_credentials_in_tracebacks
from gptmill.files import atomic_file, input_hashes, read_json, sha256_tree, write_json
from gptmill.params import flatten
from gptmill.tracking.address import as_noted, tracking_address
from gptmill.tracking.courier import Courier
from gptmill.tracking.datasets import describe
from gptmill.tracking.execution import Execution, current_execution
from gptmill.tracking.journal import Journal, now
from gptmill.tracking.machine import Machine
from gptmill.tracking.tags import all_parameters, device_tags, lineage_tags

TIMINGS = Path("timings")
DIGITS = 12  # of a metric: the last ones differ between machines, and with them dvc.lock's hashes


class Bystander:
    """The record of a process that is not the first: it keeps nothing."""

    run_id = ""

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def text(self, name: str, step: int, text: str) -> None: ...

    def __enter__(self) -> "Bystander":
        return self

    def __exit__(self, *_: object) -> None: ...


class Stage:
    """The record of one stage of one execution; `run_id` names it, to be resumed by.

    Args:
        name: the stage's name in dvc.yaml, `_` for `@`.
        parameters: the stage's own section, plain values, nested as it is.
        inputs: name and path of what the stage reads; hashed here.
        resume_run: `run_id` of a run that was cut off, to be reopened and gone on with.
        execution: what the run belongs to, if not to the pipeline's execution.
        timings: where its times are written; `None` outside the pipeline's stages.

    Leaving without an exception ends the run as FINISHED, by Ctrl-C or SIGTERM as KILLED, by any
    other exception as FAILED. `timings/<name>.json` is written by a stage that finished.
    """

    def __init__(
        self,
        name: str,
        parameters: dict[str, Any],
        inputs: dict[str, Path] | None = None,
        resume_run: str | None = None,
        execution: Execution | None = None,
        timings: Path | None = TIMINGS,
    ) -> None:
        self.name = name
        self.parameters = parameters
        self.inputs = input_hashes(inputs or {})
        self.run_id = resume_run or uuid.uuid4().hex
        self._execution, self._folder = execution, timings
        self._timings: dict[str, float] = {}
        self._machine = Machine()

    def __enter__(self) -> "Stage":
        hide_credentials_in_tracebacks()
        require_own_files()
        self._started = now()
        self._journal = Journal(self.run_id)
        self._logged, self._seconds_before = self._read_earlier()
        steps = [step for name, step in self._logged if not name.startswith("system/")]
        self._last_step = max(steps, default=0)
        self._journal.append(self._start_event())
        self._courier = Courier(self._journal, self._machine, self._seconds_before)
        self._courier.start()
        self._before = _on_terminate(_raise_terminated)
        return self

    def log(self, step: int, values: dict[str, float]) -> None:
        """Points of curves at a step; those a resumed run repeats are not logged again."""
        self._last_step = max(self._last_step, step)
        new = {name: value for name, value in values.items() if (name, step) not in self._logged}
        if new:
            self._journal.append({"kind": "points", "step": step, "values": new})

    def metrics(self, values: dict[str, Any]) -> None:
        """Final metrics, flat: the execution gets them too, as `<stage>/<name>`.

        A value that is not a number (the judge's backend) becomes a tag of the same name; `None` is
        left out.
        """
        self._summarize(values)

    def write_metrics(self, path: Path, values: dict[str, Any]) -> None:
        """Final metrics, as `metrics` has them, and the JSON file that DVC reads; both have floats
        of `DIGITS` significant digits."""
        values = {name: _rounded(value) for name, value in values.items()}
        write_json(path, values)
        self.metrics(values)

    def timing(self, values: dict[str, float]) -> None:
        """Figures that differ from run to run: to timings/ and MLflow, never among metrics."""
        self._timings |= values

    def text(self, name: str, step: int, text: str) -> None:
        """A sample; texts of one name become a table by step."""
        self._journal.append({"kind": "text", "name": name, "step": step, "text": text})

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A small table, such as a confusion matrix, that MLflow's UI shows as one."""
        self._journal.append({"kind": "table", "name": name, "columns": columns, "rows": rows})

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file or small folder, copied now and sent later, such as plots."""
        copy = str(self._journal.keep(path))
        self._journal.append({"kind": "file", "path": copy, "folder": folder})

    def reference(self, outputs: dict[str, Path]) -> None:
        """Outputs too large to copy, such as model folders: their paths and hashes."""
        hashes = input_hashes(outputs)
        tags = {f"output.{name}": value["sha256"] for name, value in hashes.items()}
        paths = {f"output.{name}.path": value["path"] for name, value in hashes.items()}
        self._journal.append({"kind": "tags", "values": tags | paths})

    def outputs(self, model: Path, plots: Path) -> None:
        """What training made: the model by reference, its curves as copies."""
        self.reference({"model": model})
        self.artifact(plots, "plots")

    def model(
        self,
        name: str,
        reference: dict[str, Any],
        metric: tuple[str, float, bool],
        tested_on: Path,
    ) -> None:
        """A model for the registry: its bytes stay where they are.

        Args:
            name: of the registered model.
            reference: what `gptmill.runtime.mlflow_pyfunc` finds it by: `task`, `path` in the
                project and `files`, their MD5 by name.
            metric: name, value on test data, and whether higher is better.
            tested_on: that data; only figures on the same data decide about the champion.
        """
        digest = hashlib.sha256(json.dumps(reference["files"], sort_keys=True).encode())
        self._journal.append(
            {
                "kind": "model",
                "name": name,
                "reference": reference,
                "content": digest.hexdigest(),
                "metric": metric[0],
                "value": metric[1],
                "higher_is_better": metric[2],
                "tested_on": sha256_tree(tested_on),
            }
        )

    def summarize(self, metrics: Path, lock: Path) -> None:
        """Give the execution what stages left that did not have to run again: every file of
        `metrics`, and the hashes of data in `lock` (dvc.lock), so that executions line up."""
        numbers, facts = {}, {}
        for path in sorted(metrics.glob("*.json")):
            for name, value in read_json(path, dict).items():
                kind = numbers if isinstance(value, int | float) else facts
                kind[f"{path.stem}/{name}"] = value
        values = {name: float(value) for name, value in numbers.items()}
        tags = {name: str(value) for name, value in facts.items() if value is not None}
        tags |= {f"data.{path}": digest for path, digest in locked_data(lock).items()}
        self._journal.append({"kind": "execution", "values": values, "tags": tags})

    def deliver(self) -> None:
        """Send what was recorded, and what earlier stages left waiting, to MLflow now."""
        self._courier.deliver()

    def provenance(self) -> dict[str, Any]:
        """What an output came from, without times or run ids: the same for the same run.

        `code` hashes the sources that this process has imported, so an edit elsewhere changes no
        output; the tag `provenance_code` leads from it to the MLflow run and its git commit.
        """
        code = code_in_use()
        self._journal.append({"kind": "tags", "values": {"provenance_code": code}})
        return {
            "stage": self.name,
            "parameters": self.parameters,
            "inputs": {name: value["sha256"] for name, value in self.inputs.items()},
            "code": code,
        }

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _on_terminate(self._before)
        self._courier.stop()
        status = _status(error)
        if status == "FINISHED":
            self._write_timings()
        # The execution's device is that of a stage which computes.
        computes = "torch" in sys.modules
        self._journal.append({"kind": "tags", "values": device_tags(), "execution": computes})
        message = "" if error is None else f"{type(error).__name__}: {error}"[:2000]
        self._journal.append(
            {"kind": "end", "stage": self.name, "status": status, "error": message}
        )
        self._courier.deliver_last()
        self._journal.close()

    def _start_event(self) -> dict[str, Any]:
        parameters = all_parameters()
        profile = str(parameters.get("profile", ""))
        execution = self._execution or current_execution(self.run_id, profile, self._started)
        return {
            "kind": "start",
            "time": self._started,
            "stage": self.name,
            "execution": execution.as_event(),
            "address": as_noted(tracking_address()),
            "parameters": flatten(self.parameters),
            "all_parameters": parameters,
            "tags": lineage_tags(parameters) | device_tags() | {"code": code_hash()},
            "inputs": {n: v | describe(Path(v["path"])) for n, v in self.inputs.items()},
            "pid": os.getpid(),
        }

    def _read_earlier(self) -> tuple[set[tuple[str, int]], float]:
        """The points that earlier processes of this run logged, and the seconds they worked."""
        logged, seconds, started, last = set(), 0.0, 0, 0
        for _, event in self._journal.events():
            if event["kind"] == "start":
                seconds += (last - started) / 1000
                started = event["time"]
            elif event["kind"] == "points":
                logged |= {(name, event["step"]) for name in event["values"]}
            last = event["time"]
        return logged, seconds + (last - started) / 1000

    def _summarize(self, values: dict[str, Any]) -> None:
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        facts = {k: str(v) for k, v in values.items() if v is not None and k not in numbers}
        # At the last step, where a final value belongs on a curve of the same name.
        step = self._last_step
        common = {"stage": self.name, "step": step}
        if numbers:
            self._journal.append({"kind": "summary", "values": numbers, **common})
        if facts:
            self._journal.append({"kind": "facts", "values": facts, **common})

    def _write_timings(self) -> None:
        started = datetime.fromtimestamp(self._started / 1000, UTC)
        figures = {
            "seconds": (now() - self._started) / 1000 + self._seconds_before,
            "peak_memory_bytes": self._machine.peak_memory(),
            **self._timings,
        }
        self._summarize(figures)
        about = {
            "started": started.isoformat(timespec="seconds"),
            "host": gethostname(),
            **device_tags(),
        }
        if self._folder is not None:
            write_json(self._folder / f"{self.name}.json", {**figures, **about})
            self._write_rates(self._folder / f"{self.name}.csv")

    def _write_rates(self, path: Path) -> None:
        """Throughput by step, for the report: rates differ from run to run, as times do."""
        rates = [
            (event["step"], name, value)
            for _, event in self._journal.events()
            if event["kind"] == "points"
            for name, value in event["values"].items()
            if name.endswith("_per_second")
        ]
        path.unlink(missing_ok=True)
        if rates:
            lines = ["step,name,value", *(",".join(map(str, rate)) for rate in rates)]
            with atomic_file(path) as beside:
                beside.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


class Terminated(SystemExit):
    """SIGTERM as an exception, so that a stage is left as it should be."""


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated(128 + number)


def _on_terminate(handler: Any) -> Any:
    """Set what SIGTERM does and give back what it did; only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _status(error: BaseException | None) -> str:
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "FINISHED"
    killed = isinstance(error, KeyboardInterrupt | Terminated)
    return "KILLED" if killed else "FAILED"


def stage_of(first: bool, *arguments: Any) -> Any:
    """The `Stage` of those arguments in the first process, in another one a `Bystander`."""
    return Stage(*arguments) if first else Bystander()
