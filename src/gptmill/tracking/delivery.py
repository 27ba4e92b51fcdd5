"""Journals into MLflow, so that sending the same events again changes nothing.

A run is found by the tag of its journal, an execution by its own, and points keep the timestamps
they were journalled with: a delivery that was cut off anywhere is simply done again.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from gptmill.files import atomic_file
from gptmill.tracking import datasets
from gptmill.tracking.address import database_path, project_root
from gptmill.tracking.journal import DamagedJournal, Event, Journal
from gptmill.tracking.names import to_mlflow
from gptmill.tracking.places import artifact_location, move_in
from gptmill.tracking.registry import register

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A server that stops answering in the middle must not hold a stage: the journal has it all.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

RUN, EXECUTION, FAILED = "gptmill.run", "gptmill.execution", "gptmill.failed_stages"
PARENT = "mlflow.parentRunId"
NOT_RECORDED = "gptmill.not_recorded"
BATCH = 500
LONGEST_VALUE = 6000  # characters of a parameter, as MLflow has it
LOCK_SECONDS = 30.0
# Attempts at a database, with waits of 0.1 and 0.3 s between them. MLflow's own ten take 100 s.
ATTEMPTS = 3


class Delivery:
    """A connection to one tracking address; importing mlflow takes the second this costs."""

    def __init__(self, address: str) -> None:
        for name in ("alembic", "mlflow.store.db.utils", "mlflow.pyfunc"):
            logging.getLogger(name).setLevel(logging.WARNING)
        with _initializing(address):
            from mlflow import MlflowClient
            from mlflow.store.db import utils

            utils.MAX_RETRY_COUNT = ATTEMPTS
            _make_database(address)
            self.client = MlflowClient(address)
            self.experiment = self._open_experiment(address)
        self._runs: dict[str, str] = {}

    def deliver(self, journal: Journal) -> None:
        """Send what the journal holds beyond what was sent; remove it once it is over and done."""
        start = next((event for _, event in journal.events() if event["kind"] == "start"), None)
        if start is None:
            raise DamagedJournal("it does not say what run it is of")
        child = self._find(RUN, journal.run)
        offset = journal.sent if child else 0  # a store that lost the run gets it all again
        new = list(journal.events(offset))
        child = child or self._create_child(journal.run, self._latest_start(journal))
        self._send(journal, child, [event for _, event in new])
        if new:
            journal.mark_sent(new[-1][0])
        for _, event in new:
            if event["kind"] == "file":  # no other: the stage may have kept one meanwhile
                shutil.rmtree(Path(event["path"]).parent, ignore_errors=True)
        if journal.ended and new and new[-1][1].get("status") == "FINISHED":
            journal.remove()

    def _send(self, journal: Journal, child: str, events: list[Event]) -> None:
        start = self._latest_start(journal)
        parent, trial = self._parent(start), start["tags"].get("trial", "")
        for event in events:
            if event["kind"] == "start":
                self._send_start(child, parent, event)
        if any(event["kind"] == "start" for event in events):
            self._close_left_executions(journal, parent)
        self._send_points(child, parent, events, int(trial or 0))
        self._send_tags(child, parent, events)
        if any(event["kind"] in ("text", "table") for event in events):
            self._send_tables(child, journal)
        for event in events:
            if event["kind"] == "file":
                path = Path(event["path"])
                if path.exists():
                    self._send_file(child, path, event["folder"])
            elif event["kind"] == "model":
                register(self.client, child, event)
            elif event["kind"] == "end":
                self._send_end(child, event)
                if not trial:  # of trials some are stopped early: their study ends by itself
                    self._send_status(parent, event)

    # --- runs

    def _open_experiment(self, address: str) -> str:
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "gptmill")
        found, database = self.client.get_experiment_by_name(name), database_path(address)
        if found is not None and database:
            move_in(database, name)
        if found is None:
            artifacts = artifact_location(database) if database else None
            try:
                return self.client.create_experiment(name, artifact_location=artifacts)
            except MlflowException:  # another process was quicker
                found = self.client.get_experiment_by_name(name)
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def _find(self, tag: str, value: str) -> str | None:
        if value not in self._runs:
            found = self.client.search_runs([self.experiment], f"tags.`{tag}` = '{value}'")
            if not found:
                return None
            self._runs[value] = found[0].info.run_id
        return self._runs[value]

    def _create(self, name: str, started: int, tags: dict[str, str]) -> str:
        run = self.client.create_run(self.experiment, started, tags, name)
        return run.info.run_id

    def _create_child(self, run: str, start: Event) -> str:
        tags = {RUN: run, "stage": start["stage"], PARENT: self._parent(start)}
        trial = start["tags"].get("trial")
        what = f"trial {trial}" if trial else start["stage"]
        # Curves of two executions are told apart by the names of their runs.
        name = f"{what}, {start['execution']['name']}"
        self._runs[run] = self._create(name, start["time"], tags)
        return self._runs[run]

    def _parent(self, start: Event) -> str:
        execution = start["execution"]
        with _locked(project_root() / ".state" / "executions.lock"):
            found = self._find(EXECUTION, execution["id"])
            if found is None:
                tags = {EXECUTION: execution["id"], **start["tags"]}
                found = self._create(execution["name"], execution["started"], tags)
                self._runs[execution["id"]] = found
                self._send_parameters(found, start["all_parameters"])
        return found

    def _close_left_executions(self, journal: Journal, parent: str) -> None:
        """End the executions that this run belonged to before it was resumed under another."""
        for _, event in journal.events():
            if event["kind"] != "start":
                continue
            left = self._find(EXECUTION, event["execution"]["id"])
            if left in (None, parent) or self.client.get_run(left).info.status != "RUNNING":
                continue
            at_work = f"tags.`{PARENT}` = '{left}' AND attributes.status = 'RUNNING'"
            if not self.client.search_runs([self.experiment], at_work, max_results=1):
                self._send_status(left, {**event, "status": "KILLED"})

    def _latest_start(self, journal: Journal) -> Event:
        return [event for _, event in journal.events() if event["kind"] == "start"][-1]

    # --- what a run holds

    def _send_start(self, child: str, parent: str, event: Event) -> None:
        """Open the run, or reopen it under the execution that resumes it."""
        self.client.update_run(child, "RUNNING")
        self.client.update_run(parent, "RUNNING")
        self._send_parameters(child, event["parameters"])
        hashes = {f"input.{name}": value["sha256"] for name, value in event["inputs"].items()}
        self._set_tags(child, {PARENT: parent, **event["tags"], **hashes})
        self._send_inputs(child, event["inputs"])

    def _send_parameters(self, run: str, parameters: dict[str, Any]) -> None:
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        names = self._names(run, parameters)
        texts = {names[name]: str(parameters[name]) for name in names}
        for batch in _batches([Param(n, t[:LONGEST_VALUE]) for n, t in texts.items()], 100):
            try:
                self.client.log_batch(run, params=batch)
            except MlflowException as error:
                # A run's parameters cannot change; what did must not keep the rest from arriving.
                self.client.set_tag(run, "parameters_changed", str(error)[:LONGEST_VALUE])
                for param in batch:
                    with suppress(MlflowException):
                        self.client.log_batch(run, params=[param])
        if cut := [name for name, text in texts.items() if len(text) > LONGEST_VALUE]:
            self.client.set_tag(run, "parameters_cut", ", ".join(cut))

    def _send_inputs(self, run: str, inputs: dict[str, dict[str, Any]]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        root = project_root()
        sets = [
            DatasetInput(
                Dataset(
                    name=value["path"],
                    digest=value["sha256"][:32],
                    source_type="local",
                    source=datasets.source(value["path"], root),
                    schema=datasets.schema(value.get("columns", [])),
                    profile=json.dumps(value.get("profile", {})),
                ),
                [InputTag("mlflow.data.context", name)],
            )
            for name, value in inputs.items()
        ]
        if sets:
            self.client.log_inputs(run, sets)

    def _send_points(self, child: str, parent: str, events: list[Event], trial: int) -> None:
        """Curves to the child; final values to the parent, in a study as a curve over trials."""
        points, summary = [], []
        for event in events:
            if event["kind"] == "execution":
                for name, value in event["values"].items():
                    summary.append((name, value, event["time"], 0))
            if event["kind"] in ("points", "summary"):
                for name, value in event["values"].items():
                    points.append((name, value, event["time"], event["step"]))
                    if event["kind"] == "summary":
                        name = f"{event['stage']}/{name}"
                        summary.append((name, value, event["time"], trial))
        self._send_metrics(child, points)
        self._send_metrics(parent, summary)

    def _send_metrics(self, run: str, points: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        names = self._names(run, [name for name, *_ in points])
        metrics = [Metric(names[name], *rest) for name, *rest in points if name in names]
        for batch in _batches(metrics, BATCH):
            self.client.log_batch(run, metrics=batch)

    def _names(self, run: str, names: Iterable[str]) -> dict[str, str]:
        """MLflow's name for each of ours; a tag of the run says which it cannot hold."""
        mapped, refused = {}, []
        for name in dict.fromkeys(names):
            try:
                mapped[name] = to_mlflow(name)
            except ValueError as error:
                refused.append(str(error))
        if refused:
            self.client.set_tag(run, NOT_RECORDED, "; ".join(refused))
        return mapped

    def _send_tags(self, child: str, parent: str, events: list[Event]) -> None:
        for event in events:
            if event["kind"] == "tags":
                self._set_tags(child, event["values"])
                if event.get("execution"):
                    self._set_tags(parent, event["values"])
            elif event["kind"] == "execution":
                self._set_tags(parent, event["tags"])
            elif event["kind"] == "facts":
                self._set_tags(child, event["values"])
                facts = {f"{event['stage']}/{k}": v for k, v in event["values"].items()}
                self._set_tags(parent, facts)

    def _set_tags(self, run: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        names = self._names(run, tags)
        for batch in _batches([RunTag(names[name], tags[name]) for name in names], 100):
            self.client.log_batch(run, tags=batch)

    def _send_tables(self, child: str, journal: Journal) -> None:
        """Every table of the run, and its texts as tables by step, whole each time."""
        tables: dict[str, dict[str, list]] = {}
        texts: dict[str, dict[int, str]] = {}
        for _, event in journal.events():
            if event["kind"] == "text":
                texts.setdefault(event["name"], {})[event["step"]] = event["text"]
            elif event["kind"] == "table":
                tables[event["name"]] = {"columns": event["columns"], "data": event["rows"]}
        for name, rows in texts.items():
            tables[name] = {
                "columns": ["step", "text"],
                "data": [list(row) for row in rows.items()],
            }
        names = self._names(child, tables)
        for name, path in names.items():
            self.client.log_dict(child, tables[name], f"{path}.json")
        listed = [{"path": f"{path}.json", "type": "table"} for path in names.values()]
        self.client.set_tag(child, "mlflow.loggedArtifacts", json.dumps(listed))

    def _send_file(self, child: str, path: Path, folder: str) -> None:
        if path.is_dir():
            self.client.log_artifacts(child, str(path), f"{folder}/{path.name}".lstrip("/"))
        else:
            self.client.log_artifact(child, str(path), folder or None)

    def _send_end(self, child: str, event: Event) -> None:
        if event["error"]:
            self.client.set_tag(child, "error", event["error"])
        self.client.set_terminated(child, event["status"], event["time"])

    def _send_status(self, parent: str, event: Event) -> None:
        """Close the execution: it is as its worst stage, open only while a stage runs."""
        status, stage = event["status"], event["stage"]
        tag = self.client.get_run(parent).data.tags.get(FAILED, "")
        others = [entry for entry in tag.split(", ") if entry and not entry.startswith(f"{stage} ")]
        failed = ", ".join(others if status == "FINISHED" else [*others, f"{stage} ({status})"])
        if failed != tag:
            self.client.set_tag(parent, FAILED, failed)
        worst = "FAILED" if "(FAILED)" in failed else "KILLED" if failed else "FINISHED"
        self.client.set_terminated(parent, worst, event["time"])


def _batches(values: list, size: int) -> Iterator[list]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


@contextmanager
def _initializing(address: str) -> Iterator[None]:
    """Alone with a database: two processes that create its tables at once break it for good."""
    database = database_path(address)
    if database is None:
        yield
        return
    with _locked(database.parent / ".state" / f"{database.name}.lock"):
        yield


def _make_database(address: str) -> None:
    """Make a new database under another name first: MLflow cannot open one again in which a kill
    interrupted the making of its tables."""
    from mlflow import MlflowClient

    database = database_path(address)
    if database is None or (database.exists() and database.stat().st_size):
        return
    with atomic_file(database) as temporary:
        MlflowClient(f"sqlite:///{temporary}").search_experiments()


def _locked(path: Path) -> FileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, timeout=LOCK_SECONDS)
