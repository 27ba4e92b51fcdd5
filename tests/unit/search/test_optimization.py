"""Studies with a stage that takes no time: real processes, a real study database."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from optuna.trial import TrialState

from gptmill.errors import UserError
from gptmill.params import PARAMS_FILE, read_yaml
from gptmill.search.optimization import FIRST_TRIALS, Study
from gptmill.search.search import read_search

# The loss is the learning rate; above 0.01 the stage never ends, above 0.1 it fails.
STAGE = """
import json, sys, time
from pathlib import Path
from gptmill.params import load
from gptmill.tracking import Stage
rate = load().pretrain.optimizer.learning_rate
assert Path("data/tokens").is_dir()
with Stage("pretrain", {}) as stage:
    if rate > 0.1:
        sys.exit("error: the gradient is not finite")
    for step in range(3):
        stage.log(step, {"validation/loss": rate * (3 - step)})
    while rate > 0.01:
        time.sleep(0.1)
    Path("metrics").mkdir()
    Path("metrics/pretrain.json").write_text(json.dumps({"validation/loss": rate}))
"""
PIPELINE = """
stages:
  pretrain:
    cmd: python -m stages.pretrain --tokens data/tokens
    deps: [stages/pretrain.py, src/gptmill, data/tokens]
"""
SEARCH = """
objective: validation/loss
direction: minimize
space:
  pretrain.optimizer.learning_rate: {low: 1.0e-4, high: 1.0, log: true}
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy("params.yaml", tmp_path)
    source = Path("src").resolve()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(source))
    # Nobody there: the journal is what is looked at, and mlflow need not be imported.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for folder in ("stages", "data/tokens", "src/gptmill"):
        Path(folder).mkdir(parents=True)
    Path("stages/__init__.py").touch()
    Path("stages/pretrain.py").write_text(STAGE)
    Path("dvc.yaml").write_text(PIPELINE)
    Path("search.yaml").write_text(SEARCH)
    return tmp_path


def open_study(name: str = "rates") -> Study:
    parameters = read_yaml(PARAMS_FILE)
    return Study(name, "pretrain", read_search(Path("search.yaml"), parameters), parameters)


def enqueue(study: Study, *rates: float) -> None:
    for rate in rates:
        study.study.enqueue_trial({"pretrain.optimizer.learning_rate": rate})


def states(study: Study) -> list[str]:
    return [trial.state.name for trial in study.study.trials]


def test_the_first_trial_is_the_present_and_the_best_is_ready_to_run(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = open_study()
    enqueue(study, 2e-4, 9e-3)
    study.run(trials=3, timeout=None)
    present = read_yaml(PARAMS_FILE)["pretrain"]["optimizer"]["learning_rate"]
    assert [trial.value for trial in study.study.trials] == [present, 2e-4, 9e-3]
    assert study.command() == "dvc exp run -S 'pretrain.optimizer.learning_rate=0.0002'"
    assert "validation/loss 0.0002 (best 0.0002, trial 1)" in capsys.readouterr().out
    assert not list(study.folder.glob("trial-*")), "what trials wrote is gone"
    study.plot(root / "history.png")
    assert (root / "history.png").read_bytes().startswith(b"\x89PNG")
    assert not Path("timings/tune_pretrain.json").exists(), "a study is no stage of the pipeline"
    # Again: nothing is left to do; one more: one more trial.
    open_study().run(trials=3, timeout=None)
    again = open_study()
    enqueue(again, 3e-4)
    again.run(trials=4, timeout=0.0)
    assert again.done == 3, "no time, no trial"
    again.run(trials=4, timeout=60.0)
    assert again.done == 4


def test_a_hopeless_trial_is_stopped_early(root: Path) -> None:
    study = open_study()
    enqueue(study, *[1e-3] * (FIRST_TRIALS - 1), 0.05)
    begun = time.monotonic()
    study.run(trials=FIRST_TRIALS + 1, timeout=None)
    assert states(study) == ["COMPLETE"] * FIRST_TRIALS + ["PRUNED"]
    assert time.monotonic() - begun < 100
    assert study.best.value == 1e-3


def test_failures_are_told_and_three_in_a_row_end_the_study(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = open_study()
    enqueue(study, 0.5, 0.6, 0.7, 0.8)
    with pytest.raises(UserError, match="3 trials in a row failed"):
        study.run(trials=9, timeout=None)
    assert states(study) == ["COMPLETE", "FAIL", "FAIL", "FAIL", "WAITING"]
    assert "failed: error: the gradient is not finite" in capsys.readouterr().out


def test_a_killed_study_goes_on_with_the_trial_it_was_in(root: Path) -> None:
    script = (
        "from tests.unit.search.test_optimization import enqueue, open_study\n"
        "study = open_study()\nenqueue(study, 0.05)\nstudy.run(2, None)\n"
    )
    repository = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": f"{repository}:{os.environ['PYTHONPATH']}"}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(root.glob(".state/studies/rates/trial-1")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    study = open_study()
    while not (pid := orphan(study)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with pytest.raises(UserError, match="another process is running study 'rates'"):
        study.run(2, None)
    process.kill()
    process.wait()
    assert psutil.pid_exists(pid), "the stage outlives the study"
    # Let the same parameters come to an end this time.
    stage = Path("stages/pretrain.py")
    stage.write_text(stage.read_text().replace("rate > 0.01", "False"))
    study.run(trials=2, timeout=None)
    assert study.command() == "", "the present parameters are the best"
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert study.done == 2
    assert study.study.trials[2].params == study.study.trials[1].params
    assert study.study.trials[2].user_attrs["continues"] == 1
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def orphan(study: Study) -> int | None:
    """The process of the trial that never ends, once it has logged a point."""
    running = study.study.get_trials(states=(TrialState.RUNNING,))
    found = [t for t in running if t.intermediate_values and t.number == 1]
    return found[0].user_attrs.get("pid") if found else None


def test_another_search_is_another_study(root: Path) -> None:
    open_study()
    Path("search.yaml").write_text(SEARCH.replace("1.0,", "0.5,"))
    with pytest.raises(UserError, match="was begun with other search, so"):
        open_study()
    Path("search.yaml").write_text(SEARCH)
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("seed: 1\n", "seed: 5\n"))
    with pytest.raises(UserError, match="was begun with other parameters"):
        open_study()


def test_a_missing_input_is_named(root: Path) -> None:
    Path("data/tokens").rmdir()
    study = open_study()
    with pytest.raises(UserError, match="data/tokens does not exist: run `dvc repro pretrain`"):
        study.run(trials=1, timeout=None)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{low: 2.0, high: 1.0}", "needs choices, or low below high"),
        ("{low: 0.0, high: 1.0, log: true}", "log needs a low above 0"),
        ("{low: 0.1, choices: [1.0]}", "choices stand alone"),
        ("{low: -1.0, high: 1.0}", "learning_rate = -1.0 does not fit"),
        ("{choices: [fast]}", "learning_rate = fast does not fit"),
    ],
)
def test_a_search_that_cannot_work_is_refused(root: Path, space: str, message: str) -> None:
    Path("search.yaml").write_text(SEARCH.replace("{low: 1.0e-4, high: 1.0, log: true}", space))
    with pytest.raises(UserError, match=message):
        open_study()
