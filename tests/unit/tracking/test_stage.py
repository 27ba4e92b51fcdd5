"""Stages journal, and MLflow's own client reads back what arrived: real stores, real processes."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gptmill
from gptmill import params
from gptmill.git import is_dirty
from gptmill.process.parent import is_dvc
from gptmill.tracking import Stage, courier, replay, tracking_address, ui_command
from gptmill.tracking.courier import Courier
from gptmill.tracking.delivery import Delivery
from gptmill.tracking.execution import Execution
from gptmill.tracking.history import executions, read_execution
from gptmill.tracking.journal import Journal, journal_folder
from tests.unit.tracking.conftest import (
    children,
    client,
    free_port,
    parents,
    readdress,
    runs,
    start_stage,
    wait_for,
)


def test_a_stage_arrives_whole(root: Path) -> None:
    tokens = root / "tokens.bin"
    tokens.write_bytes(b"tokens")
    with Stage("pretrain", {"steps": 3, "model": {"layers": 2}}, {"tokens": tokens}) as stage:
        for step in range(3):
            stage.log(step, {"train/loss": 3.0 - step})
        stage.text("samples", 0, "once")
        stage.text("samples", 2, "once upon")
        (root / "curve.csv").write_text("step\n")
        stage.artifact(root / "curve.csv", "plots")
        (root / "curve.csv").unlink()
        stage.metrics({"validation/loss": 1.5, "backend": "reference", "nothing": None})
        stage.timing({"tokens_per_second": 1000.0})
        stage.reference({"model": tokens})
    (child,), (parent,) = children(), parents()
    assert child.info.status == parent.info.status == "FINISHED"
    assert child.data.params == {"steps": "3", "model.layers": "2"}
    assert parent.data.params["pretrain.model.layers"] == "2"
    curve = client().get_metric_history(child.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in curve] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert parent.data.metrics["pretrain/validation/loss"] == 1.5
    assert parent.data.metrics["pretrain/tokens_per_second"] == 1000.0
    assert parent.data.tags["pretrain/backend"] == child.data.tags["backend"] == "reference"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.tags["profile"] == "tiny"
    digest = hashlib.sha256(b"tokens").hexdigest()
    assert child.data.tags["input.tokens"] == child.data.tags["output.model"] == digest
    assert child.inputs.dataset_inputs[0].dataset.digest == digest[:32]
    table = json.loads(
        Path(client().download_artifacts(child.info.run_id, "samples.json")).read_text()
    )
    assert table["data"] == [[0, "once"], [2, "once upon"]]
    assert [f.path for f in client().list_artifacts(child.info.run_id, "plots")] == [
        "plots/curve.csv"
    ]
    assert not list(journal_folder().glob("*.jsonl")), "a finished, delivered run leaves no journal"


def test_timings_stand_beside_the_metrics(root: Path) -> None:
    with Stage("tokenize", {}) as stage:
        ballast = bytearray(50 * 2**20)
        stage.log(3, {"tokens_per_second": 6.5, "train/loss": 1.0})
        stage.timing({"tokens_per_second": 7.0})
        del ballast
    timings = json.loads((root / "timings/tokenize.json").read_text())
    assert timings["tokens_per_second"] == 7.0
    assert timings["peak_memory_bytes"] > 50 * 2**20
    assert 0 < timings["seconds"] < 60
    assert {"started", "host", "device", "threads"} <= set(timings)
    rates = (root / "timings/tokenize.csv").read_text()
    assert rates == "step,name,value\n3,tokens_per_second,6.5\n"


def test_a_final_value_ends_the_curve_of_its_name(root: Path) -> None:
    with Stage("pretrain", {}) as stage:
        stage.log(0, {"validation/loss": 7.0})
        stage.log(40, {"validation/loss": 2.0})
        stage.metrics({"validation/loss": 1.9})
    (child,) = children()
    assert child.data.metrics["validation/loss"] == 1.9
    assert (
        min(p.step for p in client().get_metric_history(child.info.run_id, "validation/loss")) == 0
    )


def test_failures_and_interrupts_say_so(root: Path) -> None:
    with pytest.raises(RuntimeError), Stage("judge", {}):
        raise RuntimeError("no judge")
    with pytest.raises(KeyboardInterrupt), Stage("respond", {}):
        raise KeyboardInterrupt
    status = {run.data.tags["stage"]: run.info.status for run in children()}
    assert status == {"judge": "FAILED", "respond": "KILLED"}
    assert {run.info.status for run in parents()} == {"FAILED", "KILLED"}
    failed = next(run for run in children() if run.info.status == "FAILED")
    assert failed.data.tags["error"] == "RuntimeError: no judge"
    assert not (root / "timings/judge.json").exists()


def test_sigterm_ends_a_stage_as_killed(root: Path) -> None:
    process = start_stage("print('in', flush=True); time.sleep(60)")
    process.stdout.readline()
    process.terminate()
    assert process.wait(timeout=180) == 143
    assert [run.info.status for run in runs()] == ["KILLED", "KILLED"]


def test_a_killed_process_leaves_nothing_running(root: Path) -> None:
    process = start_stage(
        "stage.log(1, {'train/loss': 2.0}); print('in', flush=True); time.sleep(60)"
    )
    process.stdout.readline()
    run = next(journal_folder().glob("*.jsonl")).stem
    assert replay() == 0, "a living run belongs to its own process"
    process.kill()
    process.wait()
    with Path(journal_folder() / f"{run}.jsonl").open("ab") as file:
        file.write(b'{"kind": "points", "st')  # the line a kill cut short
    assert replay() == 1
    assert {run.info.status for run in runs()} == {"KILLED"}
    assert children()[0].data.metrics["train/loss"] == 2.0
    assert replay() == 0, "nothing is sent twice"


def test_the_next_stage_closes_what_a_kill_left(root: Path) -> None:
    process = start_stage("print('in', flush=True); time.sleep(60)")
    process.stdout.readline()
    process.kill()
    process.wait()
    with Stage("tokenize", {}):
        wait_for(lambda: any(run.info.status == "KILLED" for run in children()))
    status = {run.data.tags["stage"]: run.info.status for run in children()}
    assert status == {"pretrain": "KILLED", "tokenize": "FINISHED"}


def test_a_resumed_run_is_the_same_run_without_repeats(root: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Stage("pretrain", {"steps": 4}) as first:
        for step in range(3):
            first.log(step, {"train/loss": 3.0 - step})
        raise KeyboardInterrupt
    with Stage("pretrain", {"steps": 4}, resume_run=first.run_id) as second:
        for step in range(1, 4):  # the checkpoint was of step 1
            second.log(step, {"train/loss": 3.0 - step})
    assert second.run_id == first.run_id
    (child,) = children()
    assert child.info.status == parents()[-1].info.status == "FINISHED"
    curve = client().get_metric_history(child.info.run_id, "train/loss")
    assert [(p.step, p.value) for p in curve] == [(0, 3.0), (1, 2.0), (2, 1.0), (3, 0.0)]


def repro(root: Path, *stages: str) -> None:
    """A script named `dvc` that runs stages with these blocks, as the real one does."""
    tool = root / "dvc"
    scripts = [
        "from pathlib import Path\nfrom gptmill.tracking import Stage\n"
        f"with Stage('stage{number}', {{}}) as stage: {block}"
        for number, block in enumerate(stages)
    ]
    tool.write_text(
        "import subprocess, sys\n"
        f"for script in {scripts!r}: subprocess.run([sys.executable, '-c', script])\n"
    )
    subprocess.run([sys.executable, str(tool), "repro"], check=True)


def test_quick_stages_are_delivered_by_the_one_that_sums_up(root: Path) -> None:
    quick = "stage.metrics({'n': 1})"
    repro(root, quick, quick)
    assert runs() == []
    repro(root, quick, "stage.summarize(Path('metrics'), Path('dvc.lock'))")
    assert [run.data.tags["stage"] for run in children()] == [
        "stage0",
        "stage1",
        "stage0",
        "stage1",
    ]
    assert {run.info.status for run in runs()} == {"FINISHED"}
    assert len(parents()) == 2
    assert not list(journal_folder().glob("*.jsonl"))


def test_a_stage_of_the_pipeline_that_fails_is_delivered_with_those_before_it(root: Path) -> None:
    repro(root, "stage.metrics({'n': 1})", "1 / 0")
    assert [run.info.status for run in children()] == ["FINISHED", "FAILED"]
    assert [run.info.status for run in parents()] == ["FAILED"]


def test_a_long_stage_of_the_pipeline_is_delivered_while_it_works(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "nearest_dvc", lambda: "dvc")
    monkeypatch.setattr(courier, "SAMPLE_SECONDS", 0.02)
    monkeypatch.setattr(courier, "LONG_SECONDS", 0.04)
    with Stage("pretrain", {}):
        while not runs():
            time.sleep(0.05)


def test_stages_of_one_dvc_process_share_a_parent(root: Path) -> None:
    metrics = "stage.metrics({'n': 1})"
    repro(root, metrics, f"{metrics}; stage.summarize(Path('metrics'), Path('dvc.lock'))")
    (parent,) = parents()
    assert {run.data.tags["mlflow.parentRunId"] for run in children()} == {parent.info.run_id}
    assert {"stage0/n", "stage1/n"} <= set(parent.data.metrics)
    assert parent.info.run_name.startswith("tiny ")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["dvc", "repro"], True),
        (["/usr/bin/python3.11", "/venv/bin/dvc", "repro"], True),
        (["python", "-m", "dvc", "exp", "exec-run"], True),
        (["/bin/sh", "-c", "dvc repro"], False),
        (["python", "-m", "stages.pretrain"], False),
        (["vim", "dvc"], False),
        ([], False),
    ],
)
def test_dvc_is_known_by_its_command(command: list[str], expected: bool) -> None:
    assert is_dvc(command) is expected


def test_two_processes_at_once_on_no_database(root: Path) -> None:
    (root / "mlflow.db").unlink()
    body = "stage.log(0, {'train/loss': 1.0})"
    processes = [start_stage(body) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert "tracking:" not in "".join(errors), errors
    assert len(children()) == len(parents()) == 2
    assert {run.info.status for run in runs()} == {"FINISHED"}


def test_a_file_kept_while_others_are_sent_arrives_too(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Delivery._send_file
    kept = []

    def send_and_keep(delivery: Delivery, *arguments) -> None:
        if not kept:  # as the stage may, whose courier is at work beside it
            kept.append(stage.artifact(root / "second.csv", "plots"))
        send(delivery, *arguments)

    monkeypatch.setattr(Delivery, "_send_file", send_and_keep)
    monkeypatch.setattr(Courier, "run", lambda courier: None)  # it delivers when told to
    for name in ("first", "second"):
        (root / f"{name}.csv").write_text(name)
    with Stage("pretrain", {"steps": 3}) as stage:
        stage.artifact(root / "first.csv", "plots")
        stage._courier._deliver()
    (child,) = children()
    assert kept
    assert [f.path for f in client().list_artifacts(child.info.run_id, "plots")] == [
        "plots/first.csv", "plots/second.csv",
    ]  # fmt: skip


def test_a_silent_server_costs_a_moment_and_loses_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    begun = time.monotonic()
    with Stage("pretrain", {"steps": 3}) as stage:
        stage.log(0, {"train/loss": 1.0})
        stage.artifact(root / "params.yaml")
    assert time.monotonic() - begun < 2
    assert "does not answer" in capsys.readouterr().err
    assert replay() == 0
    journal = journal_folder() / f"{stage.run_id}.jsonl"
    assert journal.exists()
    # The server of that address comes up: here, the database stands in for it.
    readdress(journal, f"sqlite:///{root}/mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    kept = journal.read_bytes()
    assert replay() == 1
    journal.write_bytes(kept)  # as if the process had died before it noted the delivery
    assert replay() == 1
    (child,) = children()
    curve = client().get_metric_history(child.info.run_id, "train/loss")
    assert [(p.step, p.value) for p in curve] == [(0, 1.0)]
    assert child.info.status == "FINISHED"
    assert len(parents()) == 1


def test_a_deaf_server_is_given_a_second(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listener.getsockname()[1]}")
        begun = time.monotonic()
        with Stage("tokenize", {}):
            pass
        assert time.monotonic() - begun < 3


def test_passwords_are_not_written_down(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_port()}")
    with Stage("tokenize", {}) as stage:
        pass
    assert "secret" not in (journal_folder() / f"{stage.run_id}.jsonl").read_text()


def test_dvc_root_is_where_runs_go(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a temporary copy of the repository, timings stay there and runs go to the original."""
    copy = root / "copy"
    copy.mkdir()
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.setenv("DVC_EXP_NAME", "brave-newt")
    with Stage("tokenize", {}):
        pass
    assert (copy / "timings/tokenize.json").exists()
    assert tracking_address() == f"sqlite:///{root}/mlflow.db"
    assert parents()[0].info.run_name == "brave-newt"


def provenance_of(package: Path) -> dict:
    """What a process with this copy of the package records."""
    process = start_stage(
        "import json; print(json.dumps(stage.provenance()))", PYTHONPATH=str(package)
    )
    return json.loads(process.communicate(timeout=180)[0])


def test_provenance_is_of_the_code_in_use_and_has_no_times(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")  # mlflow unused
    source = Path(gptmill.__file__).parent
    shutil.copytree(source, root / "copy/gptmill", ignore=shutil.ignore_patterns("__pycache__"))
    first = provenance_of(root / "copy")
    assert set(first) == {"stage", "parameters", "inputs", "code"}
    assert provenance_of(root / "copy") == first
    (root / "copy/gptmill/doctor.py").write_text("unused = True")
    assert provenance_of(root / "copy") == first
    with (root / "copy/gptmill/files.py").open("a") as file:
        file.write("\nused = True\n")
    assert provenance_of(root / "copy")["code"] != first["code"]


def test_the_journal_of_a_living_run_is_its_own(root: Path) -> None:
    journal = Journal("a")
    with pytest.raises(BlockingIOError):
        Journal("a", wait=0)
    journal.close()
    Journal("a", wait=0).close()


def test_thousands_of_points_are_quick(root: Path) -> None:
    with Stage("pretrain", {}) as stage:
        begun = time.thread_time()  # of this thread: the courier and the neighbors take theirs
        for step in range(2000):
            stage.log(step, {"train/loss": 1.0, "learning_rate": 0.1})
        assert time.thread_time() - begun < 1
    (child,) = children()
    assert len(client().get_metric_history(child.info.run_id, "train/loss")) == 2000


def test_the_ui_is_small_and_on_loopback(root: Path) -> None:
    command, environment = ui_command(5001)
    joined = " ".join(command)
    assert "--host 127.0.0.1 --port 5001 --workers 1" in joined
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_a_run_says_what_it_came_from_and_ran_on(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = commit_all(root)
    tokens = root / "tokens.bin"
    tokens.write_bytes(b"tokens")
    monkeypatch.setenv("DVC_EXP_NAME", "brave-newt")
    with Stage("pretrain", {}, {"tokens": tokens}) as stage:
        stage.log(0, {"train/loss": 1.0})
        wait_for(lambda: "system/" in stage._journal.path.read_text())
    (child,), (parent,) = children(), parents()
    digest = hashlib.sha256(b"tokens").hexdigest()
    for run in (child, parent):
        tags = run.data.tags
        assert tags["git_commit"] == commit
        assert tags["git_dirty"] == "false"
        assert tags["dvc_experiment"] == "brave-newt"
        assert tags["host"] == socket.gethostname()
        assert len(tags["params_hash"]) == 16
        assert {"device", "threads"} <= set(tags)
    assert child.data.tags["input.tokens"] == digest
    assert child.data.metrics["system/process_memory_usage_megabytes"] > 10
    assert 0 <= child.data.metrics["system/cpu_utilization_percentage"] <= 100


def commit_all(root: Path) -> str:
    """A repository of the project, all of it committed; the commit."""
    (root / ".gitignore").write_text("mlflow.db\n.state/\ntimings/\ntokens.bin\n")
    git = ["git", "-c", "user.email=test@example.org", "-c", "user.name=test"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run([*git, *command], check=True)
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_dirtiness_is_by_content(root: Path) -> None:
    (root / "src").mkdir()
    commit_all(root)
    assert not is_dirty()
    (root / "README.md").write_text("no result depends on this")
    assert not is_dirty()
    path = root / "params.yaml"
    before, times = path.read_text(), path.stat()
    path.write_text(before.replace("steps: 3", "steps: 4"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    subprocess.run(["git", "update-index", "--assume-unchanged", "params.yaml"], check=True)
    assert is_dirty(), "whatever git believes by time and size"
    path.write_text(before)
    (root / "src/new.py").write_text("")
    assert is_dirty()


def test_parameters_are_those_the_stage_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit of params.yaml between a stage's first lines and its record changes nothing."""
    monkeypatch.setattr(params, "parse", lambda values, origin: values)
    read = params.load()
    before = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(before.replace("steps: 3", "steps: 9"))
    with Stage("pretrain", read["pretrain"]):
        pass
    (child,), (parent,) = children(), parents()
    assert child.data.params["steps"] == parent.data.params["pretrain.steps"] == "3"


def test_tables_stand_beside_the_samples(root: Path) -> None:
    with Stage("finetune_classifier", {}) as stage:
        stage.text("samples", 4, "once")
        stage.table("confusion_matrix", ["truly", "called ham"], [["ham", 7], ["spam", 2]])
    (child,) = children()
    path = client().download_artifacts(child.info.run_id, "confusion_matrix.json")
    table = json.loads(Path(path).read_text())
    assert table == {"columns": ["truly", "called ham"], "data": [["ham", 7], ["spam", 2]]}
    listed = json.loads(child.data.tags["mlflow.loggedArtifacts"])
    assert {entry["path"] for entry in listed} == {"samples.json", "confusion_matrix.json"}
    assert read_execution(executions()[0]).texts == {
        "finetune_classifier/samples": [(4, "once")]
    }, "a table is no text"


def test_trials_are_children_of_their_study(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Execution("abcd", "study rates", 1_700_000_000_000)
    monkeypatch.setenv("GPTMILL_STUDY", json.dumps(study.as_event()))
    for trial, loss in ((0, 2.0), (1, 1.0)):
        monkeypatch.setenv("GPTMILL_TRIAL", str(trial))
        with pytest.raises(KeyboardInterrupt), Stage("pretrain", {}) as stage:
            stage.metrics({"validation/loss": loss})
            raise KeyboardInterrupt
    (parent,) = parents()
    assert parent.info.run_name == "study rates"
    curve = client().get_metric_history(parent.info.run_id, "pretrain/validation/loss")
    assert [(p.step, p.value) for p in curve] == [(0, 2.0), (1, 1.0)]
    assert parent.info.status == "RUNNING", "a trial that is stopped early ends no study"
    monkeypatch.delenv("GPTMILL_TRIAL")
    with Stage("tune_pretrain", {}, execution=study, timings=None):
        pass
    assert parents()[0].info.status == "FINISHED"
    assert not (root / "timings").exists()


def test_the_ui_sends_what_waits_first(root: Path) -> None:
    process = start_stage("print('in', flush=True); time.sleep(60)")
    process.stdout.readline()
    process.kill()
    process.wait()
    script = f"from gptmill.tracking import serve_ui; serve_ui({free_port()})"
    server = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        assert server.stdout.readline() == "1 runs that waited were sent\n"
        assert server.stdout.readline().startswith("http://127.0.0.1:")
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert {run.info.status for run in runs()} == {"KILLED"}
