"""A project of its own for each test, and MLflow's own client to look at what arrived."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from gptmill.tracking import tracking_address


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_database: Path) -> Path:
    """A project of its own, in which `mlflow.db` stands ready."""
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "mlflow.db").write_bytes(fresh_database.read_bytes())
    (tmp_path / "params.yaml").write_text(
        "profile: tiny\npretrain: {steps: 3, model: {layers: 2}}\n"
    )
    return tmp_path


def client(address: str | None = None):
    from mlflow import MlflowClient

    return MlflowClient(address or tracking_address())


def runs(address: str | None = None) -> list:
    """All runs of the experiment, oldest first; none before there is one."""
    found = client(address).get_experiment_by_name("gptmill")
    if found is None:
        return []
    return client(address).search_runs(
        [found.experiment_id], order_by=["attributes.start_time ASC"], max_results=100
    )


def children(address: str | None = None) -> list:
    return [run for run in runs(address) if "mlflow.parentRunId" in run.data.tags]


def parents(address: str | None = None) -> list:
    return [run for run in runs(address) if "mlflow.parentRunId" not in run.data.tags]


def start_stage(body: str, **environment: str) -> subprocess.Popen[str]:
    """Another process with a stage whose `with` block is `body`."""
    script = "import sys, time\nfrom pathlib import Path\nfrom gptmill.tracking import Stage\n"
    script += "with Stage('pretrain', {'steps': 3}, {}) as stage:\n"
    script += textwrap.indent(textwrap.dedent(body), "    ")
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def readdress(journal: Path, address: str) -> None:
    """Rewrite a journal as if it had been meant for another place."""
    lines = [line.split("\t")[0] for line in journal.read_text().splitlines()]
    events = [json.loads(line) for line in lines]
    events[0]["address"] = address
    journal.write_text("".join(json.dumps(event) + "\n" for event in events))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(condition, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
