"""Sweeps as real DVC experiments, with a stage that takes no time; whose code a stage runs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

import gptmill
from gptmill.errors import UserError
from gptmill.files import read_json
from gptmill.params import read_yaml
from gptmill.search.cases import Sweep
from gptmill.search.experiments import (
    dvc,
    experiments,
    failure,
    ignored_files,
    queue,
    run_queue,
)
from tests.pipeline.conftest import clone

# The loss follows from seed and learning rate; while the file `stop` is there, one case fails and
# another never ends.
WORK = """
import json, os, sys, time
from pathlib import Path
from ruamel.yaml import YAML
values = YAML(typ="safe").load(Path("params.yaml").read_text())
state = Path(os.environ["DVC_ROOT"]) / ".state"
rate, seed = values["pretrain"]["optimizer"]["learning_rate"], values["runtime"]["seed"]
with (state / "log").open("a") as log:
    print(os.environ["DVC_EXP_NAME"], os.environ.get("OMP_NUM_THREADS"), file=log)
if (state / "stop").exists() and rate == 0.1:
    sys.exit("error: no luck")
while (state / "stop").exists() and rate == 0.5:
    time.sleep(0.1)
Path("metrics").mkdir(exist_ok=True)
Path("metrics/pretrain.json").write_text(json.dumps({"validation/loss": rate + seed}))
"""
PIPELINE = """
stages:
  pretrain:
    cmd: python work.py
    deps: [work.py, own/text]
    params: [pretrain, runtime]
    metrics: [{metrics/pretrain.json: {cache: false}}]
"""
SWEEP = Sweep(
    name="rates",
    stage="pretrain",
    cases={
        "endless": {"pretrain.optimizer.learning_rate": 0.5},
        "high": {"pretrain.optimizer.learning_rate": 0.1},
        "low": {},
    },
    seeds=[1],
)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy("params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / ".state/site"))
    for folder in ("src", "stages", ".state"):
        (tmp_path / folder).mkdir()
    Path("src/code.py").write_text("")
    Path("stages/pretrain.py").write_text("")
    Path("work.py").write_text(WORK)
    Path("dvc.yaml").write_text(PIPELINE)
    for name in ("text", "model"):
        (tmp_path / "own" / name).mkdir(parents=True)
        (tmp_path / "own" / name / "README.md").write_text("yours")
    Path(".gitignore").write_text("/.state/\n/timings/\n/own/*/*\n!/own/*/README.md\n")
    for command in (
        "git init -q",
        "git config user.email test@example.org",
        "git config user.name test",
        f"{sys.executable} -m dvc init -q",
        "git add -A",
        "git commit -qm start",
    ):
        subprocess.run(command.split(), check=True)
    return tmp_path


# A stage as they are: it records itself, and says what it sees of the user's own files.
READS_OWN = """
import json, os
from pathlib import Path
from gptmill.errors import UserError
from gptmill.tracking import Stage
try:
    with Stage("pretrain", {}):
        Path("metrics").mkdir(exist_ok=True)
        seen = sum(path.is_file() for path in Path("own").rglob("*"))
        Path("metrics/pretrain.json").write_text(json.dumps({"validation/loss": seen}))
except UserError as error:
    raise SystemExit(f"error: {error}")
"""


@pytest.mark.slow
def test_a_queued_run_has_the_users_own_files_or_says_that_it_lacks_them(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(gptmill.__file__).parents[1]))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # no matter of this test
    Path("work.py").write_text(READS_OWN)
    subprocess.run(["git", "commit", "-qam", "reads"], check=True)
    for name in ("text/mine.txt", "model/config.json", "model/deep/er.json"):
        (repository / "own" / name).parent.mkdir(exist_ok=True)
        (repository / "own" / name).write_text("mine")
    assert ignored_files() == ["own/model/config.json", "own/model/deep", "own/text/mine.txt"]
    with pytest.raises(UserError, match=r"own/text/mine.txt is not in this .*--copy-paths own/t"):
        dvc("exp", "run", "--temp", "--name", "without", "pretrain")
    dvc("exp", "run", "--temp", "--name", "with", "--copy-paths=own/text/mine.txt", "pretrain")
    # With a seed of its own, or DVC would take the result of the run before.
    one = SWEEP.model_copy(update={"cases": {"low": {}}, "seeds": [7]})
    run_queue(queue(one, threads=None), jobs=1, threads=None)
    known = experiments()
    assert known["with"].metrics == {"pretrain/validation/loss": 3.0}
    assert known["rates-low-seed7"].metrics == {"pretrain/validation/loss": 5.0}
    dvc("exp", "apply", "rates-low-seed7")
    assert "own/text" not in dvc("status"), "the lock speaks of the text that is there"


def log(root: Path) -> list[str]:
    path = root / ".state/log"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
def test_a_sweep_runs_each_case_once_and_those_that_failed_or_were_killed_again(
    repository: Path,
) -> None:
    present = read_yaml(Path("params.yaml"))["pretrain"]["optimizer"]["learning_rate"]
    (repository / ".state/stop").touch()
    runs = queue(SWEEP, threads=1)
    dvc("queue", "start", "--jobs", "2", threads=1)
    wait_for(lambda: len(log(repository)) == 3 and state("rates-high") == "failed")
    wait_for(lambda: state("rates-low") == "success")
    kill_worker(experiments()["rates-endless-seed1"].pid)
    known = experiments()
    assert known["rates-endless-seed1"].orphaned
    assert known["rates-low-seed1"].metrics == {"pretrain/validation/loss": present + 1}
    assert known["rates-low-seed1"].parameters["runtime.threads"] == 1
    assert "no luck" in failure("rates-high-seed1")

    (repository / ".state/stop").unlink()
    run_queue(queue(SWEEP, threads=None), jobs=1, threads=None)
    known = experiments()
    losses = [known[run.name].metrics["pretrain/validation/loss"] for run in runs]
    assert losses == [1.5, 1.1, present + 1]
    ran = sorted(line.split()[0] for line in log(repository))
    twice = ["rates-endless-seed1"] * 2 + ["rates-high-seed1"] * 2
    assert ran == [*twice, "rates-low-seed1"], "what was finished did not run again"
    assert "rates-low-seed1 1" in log(repository), "threads are pinned"

    Path("src/code.py").write_text("changed = True\n")
    with pytest.raises(UserError, match="rates-endless-seed1 is there already, with other code"):
        queue(SWEEP, threads=None)
    Path("src/code.py").write_text("")
    other = SWEEP.model_copy(update={"cases": {"low": {"pretrain.steps": 7}}})
    with pytest.raises(UserError, match=r"with pretrain.steps = "):
        queue(other, threads=None)


def state(prefix: str) -> str:
    return experiments()[f"{prefix}-seed1"].state


def wait_for(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def kill_worker(pid: int) -> None:
    """Kill an experiment's process, what it started, and the worker above it."""
    executor = psutil.Process(pid)
    family = [executor.parent(), executor, *executor.children(recursive=True)]
    for process in family:
        process.kill()
    psutil.wait_procs(family, timeout=30)


def test_a_stage_runs_the_code_beside_it(tmp_path: Path) -> None:
    """In a checkout of an experiment, whatever package is installed or on the path."""
    shutil.copytree("src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg*"))
    (tmp_path / "stages").mkdir()
    shutil.copy("stages/__init__.py", tmp_path / "stages")
    (tmp_path / "stages/probe.py").write_text("import gptmill\nprint(gptmill.__file__)\n")
    done = subprocess.run(
        [sys.executable, "-m", "stages.probe"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path("src").resolve())},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(tmp_path / "src/gptmill/__init__.py")


@pytest.mark.slow
def test_a_killed_study_of_the_real_stage_ends_as_if_nothing_was(tmp_path: Path) -> None:
    """Two trials of pretraining; the first, which is params.yaml, is killed after a checkpoint."""
    project = clone(tmp_path)
    project.set_parameters({"pretrain.steps": 60})
    project.run("dvc", "repro", "tokenize")
    tune = ("python", "-m", "gptmill.cli", "tune", "pretrain", "--trials", "2")
    process = project.start(*tune)
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob(".state/pretrain/*/step-*.pt")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    said = project.run(*tune).stdout
    assert "best validation/loss" in said
    first = said.splitlines()[1]
    project.run("dvc", "repro", "pretrain")
    straight = read_json(tmp_path / "metrics/pretrain.json")["validation/loss"]
    assert first.startswith(f"  validation/loss {straight:.4g} "), said
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("gptmill").experiment_id
    runs = client.search_runs([experiment])
    (study,) = [run for run in runs if run.info.run_name == "study pretrain"]
    trials = [run for run in runs if run.info.run_name.startswith("trial ")]
    names = sorted(run.info.run_name for run in trials)
    # Optuna counts what goes on with trial 0 as its second; in MLflow it is the same run, reopened.
    assert names == ["trial 0, study pretrain", "trial 2, study pretrain"]
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {study.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    curve = client.get_metric_history(study.info.run_id, "pretrain/validation/loss")
    assert [point.step for point in curve] == [0, 2]
    assert curve[0].value == straight
