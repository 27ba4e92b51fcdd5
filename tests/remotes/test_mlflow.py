"""The pipeline against MLflow's server, its tables in PostgreSQL and its files in S3."""

import os
import pwd
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.pipeline.conftest import Project, clone
from tests.remotes.conftest import (
    DEPLOY,
    Store,
    documents,
    dvc,
    free_port,
    instructions,
    open_to_others,
)

pytestmark = pytest.mark.remotes

BUCKET = "mlflow"
STAGES = {
    "pretrain", "load_gpt2_classifier", "load_gpt2_instructions", "finetune_classifier",
    "finetune_instructions", "respond", "export_onnx", "judge",
}  # fmt: skip
LOAD = """
import json, mlflow, pandas
frame = pandas.DataFrame({"text": ["dear Paul. you have won the cup!", "where are you"]})
model = mlflow.pyfunc.load_model("models:/gptmill-classifier@champion")
writer = mlflow.pyfunc.load_model("models:/gptmill-language-model@champion")
text = writer.predict(pandas.DataFrame({"text": ["One day"]}), params={"max_new_tokens": 3})
print(json.dumps([list(model.predict(frame)), list(text)]))
"""


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL of this test run; its address as MLflow's image takes it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not found:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    folder, port = tmp_path_factory.mktemp("postgres"), free_port()
    owner = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    if owner:
        os.chown(folder, pwd.getpwnam(owner).pw_uid, -1)
        open_to_others(folder.parent)
    tools, data = found[-1].parent, folder / "data"

    def run(tool: str, *words: str) -> None:
        done = subprocess.run(
            [tools / tool, *words], user=owner, cwd=folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert not done.returncode, done.stderr

    run("initdb", "-D", str(data), "-U", "mlflow", "--auth", "trust")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
    run("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
    run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow")
    yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/mlflow"
    run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")


@pytest.fixture(scope="session")
def mlflow_server(postgres: str, s3: Store, tmp_path_factory) -> Iterator[str]:
    """The server by the commands of deploy/, and its address."""
    services = documents(DEPLOY / "compose.yaml")[0]["services"]
    hosts = services["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"]
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": postgres,
        "MLFLOW_S3_ENDPOINT_URL": s3.address,
        "MLFLOW_SERVER_ALLOWED_HOSTS": hosts,
        "AWS_ENDPOINT_URL_S3": s3.address,
    }
    words = services["buckets"]["command"]
    subprocess.run([sys.executable, *words[1:]], env=environment, check=True)
    port = free_port()
    command = shlex.join(yaml.safe_load(instructions(DEPLOY / "mlflow.Dockerfile", "CMD")[-1]))
    command = command.replace("0.0.0.0", "127.0.0.1").replace("5000", str(port))
    log = tmp_path_factory.mktemp("mlflow") / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", *shlex.split(command), "--workers", "1"],
            env=environment, stdout=output, stderr=output, cwd=log.parent,
        )  # fmt: skip
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 180
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2).close()
            break
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
    yield address
    server.terminate()
    server.wait(timeout=30)


@pytest.fixture(scope="session")
def tracked(mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small pipeline, run against the server. It has no credentials for the store."""
    project = clone(tmp_path_factory.mktemp("tracked"))
    for name in [name for name in project.environment if name.startswith("AWS_")]:
        del project.environment[name]
    project.environment["MLFLOW_TRACKING_URI"] = mlflow_server
    dvc(project, "repro")
    return project


def test_parameters_metrics_and_files_are_on_the_server(
    tracked: Project, mlflow_server: str, s3: Store
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("gptmill")
    assert experiment.artifact_location.startswith("mlflow-artifacts:")
    runs = {
        run.data.tags.get("stage"): run for run in client.search_runs([experiment.experiment_id])
    }
    assert set(runs) >= STAGES
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    pretrain = runs["pretrain"]
    metrics = yaml.safe_load((tracked.root / "metrics/pretrain.json").read_text())
    assert pretrain.data.metrics["validation/loss"] == metrics["validation/loss"]
    assert runs[None].data.params["pretrain.steps"] == "24"  # the execution, which has no stage
    history = client.get_metric_history(pretrain.info.run_id, "train/loss")
    assert max(point.step for point in history) == 24
    keys = s3.objects(BUCKET)
    curves = [key for key in keys if key.endswith("plots/pretrain/training.csv")]
    assert len(curves) == 1 and pretrain.info.run_id in curves[0]
    drawn = (tracked.root / "plots/pretrain/training.csv").read_bytes()
    assert s3.client.get_object(Bucket=BUCKET, Key=curves[0])["Body"].read() == drawn
    assert not list(tracked.root.glob(".state/journal/*.jsonl"))
    assert not (tracked.root / "mlflow.db").exists()


def test_the_tables_are_in_postgresql(tracked: Project, postgres: str) -> None:
    import sqlalchemy

    with sqlalchemy.create_engine(postgres).connect() as connection:
        count = connection.execute(sqlalchemy.text("SELECT count(*) FROM metrics")).scalar_one()
    assert count > 100


def test_the_champions_load_and_predict(tracked: Project, s3: Store) -> None:
    assert [key for key in s3.objects(BUCKET) if key.endswith("/MLmodel")]
    labels, texts = yaml.safe_load(tracked.run("python", "-c", LOAD).stdout.splitlines()[-1])
    assert set(labels) <= {"ham", "spam"} and len(labels) == 2
    command = ["classify", "dear Paul. you have won the cup!", "where are you"]
    said = tracked.run("python", "-m", "gptmill.cli", *command).stdout
    assert [line.split()[0] for line in said.splitlines()[:2]] == labels
    assert len(texts) == 1 and texts[0]
