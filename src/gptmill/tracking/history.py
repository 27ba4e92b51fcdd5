"""Executions read back from MLflow, for comparison."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gptmill.errors import UserError
from gptmill.shapes import parse_json_as, read_json_as
from gptmill.tracking.address import database_path, require_answer, tracking_address
from gptmill.tracking.courier import replay
from gptmill.tracking.names import from_mlflow

CURVES = ("train/loss", "validation/loss", "validation/accuracy", "gradient_norm")
MOST = 1000


@dataclass(frozen=True)
class Record:
    """One execution: `curves` by `<stage>/<metric>`, `texts` by `<stage>/<name>` as (step, text),
    `data` by path as DVC has it, else by `<stage>/<input>`; `started` in Unix milliseconds."""

    id: str
    name: str
    status: str
    started: int
    parameters: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    texts: dict[str, list[tuple[int, str]]] = field(default_factory=dict)


def executions() -> list[Record]:
    """All executions, the latest first, without curves, after sending what waits in journals; none
    where there is no database yet.

    Raises:
        UserError: the server does not answer.
    """
    replay()
    delivery = _open()
    if delivery is None:
        return []
    from gptmill.tracking.delivery import EXECUTION

    found = delivery.client.search_runs(
        [delivery.experiment],
        f"tags.`{EXECUTION}` LIKE '%'",
        order_by=["attributes.start_time DESC"],
        max_results=MOST,
    )
    return [_record(run) for run in found]


def read_execution(record: Record) -> Record:
    """The same execution with what its stages recorded."""
    delivery = _open()
    assert delivery is not None, record
    children = delivery.client.search_runs(
        [delivery.experiment],
        f"tags.`mlflow.parentRunId` = '{record.id}'",
        order_by=["attributes.start_time ASC"],
        max_results=MOST,
    )
    inputs: dict[str, str] = {}
    for child in children:
        stage = child.data.tags["stage"]
        for name, value in _named(child.data.tags).items():
            if name.startswith("input."):
                inputs[f"{stage}/{name.removeprefix('input.')}"] = value
        for name in CURVES:
            if name in child.data.metrics:
                points = _curve(delivery.client, child.info.run_id, name)
                if len(points) > 1:
                    record.curves[f"{stage}/{name}"] = points
        for name, rows in _texts(delivery.client, child):
            record.texts[f"{stage}/{name}"] = rows
    record.data.update({} if record.data else inputs)
    return record


def _open() -> Any:
    address = tracking_address()
    database = database_path(address)
    if database is not None and not database.exists():
        return None
    try:
        require_answer(address)
    except ConnectionError as error:
        raise UserError(str(error)) from None
    from gptmill.tracking.delivery import Delivery

    return Delivery(address)


def _record(run: Any) -> Record:
    return Record(
        id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        started=run.info.start_time,
        parameters=_named(run.data.params),
        metrics=_named(run.data.metrics),
        tags=_named(run.data.tags),
        data={
            name.removeprefix("data."): value
            for name, value in _named(run.data.tags).items()
            if name.startswith("data.")
        },
    )


def _named(values: dict[str, Any]) -> dict[str, Any]:
    """By our own names."""
    return {from_mlflow(name): value for name, value in values.items()}


def _curve(client: Any, run: str, name: str) -> list[tuple[float, float]]:
    """The first value at each step: a later one at the last step is the stage's final metric."""
    points: dict[int, float] = {}
    for point in sorted(client.get_metric_history(run, name), key=lambda point: point.timestamp):
        points.setdefault(point.step, point.value)
    return sorted(points.items())


def _texts(client: Any, child: Any) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    tag = "mlflow.loggedArtifacts"
    origin = f"the tag {tag} of run {child.info.run_id}"
    for table in parse_json_as(child.data.tags.get(tag, "[]"), list[dict[str, str]], origin):
        with TemporaryDirectory() as folder:
            path = client.download_artifacts(child.info.run_id, table["path"], folder)
            found = read_json_as(Path(path), dict[str, list])
        if found["columns"] == ["step", "text"]:
            name = from_mlflow(table["path"].removesuffix(".json"))
            yield name, [(step, text) for step, text in found["data"]]
