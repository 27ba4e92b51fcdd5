"""The long form: every stage stopped at random moments, in every way that DVC runs one.

`make test-faults`; GPTMILL_FAULT_RUNS moments of each kind. A stage that was stopped and runs again
gives the bytes of one that was not, repeats no step before its last checkpoint, and leaves nothing.
"""

import os
import re
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.faults.conftest import (
    SIGNALS,
    STAGES,
    STATUS,
    Ledger,
    last_checkpoint,
    leftovers,
    moments,
    outputs_of,
    stage_command,
    stages_alive,
    stop,
    wait_until,
)
from tests.pipeline.conftest import Project

pytestmark = [pytest.mark.faults, pytest.mark.skipif(os.name == "nt", reason="POSIX signals")]
RESUMED = ("pretrain", "finetune_classifier", "finetune_instructions")
seconds: dict[str, float] = {}


def uninterrupted(project: Project, stage: str) -> dict[str, str]:
    """The outputs of a whole run, whose time is remembered."""
    start = time.monotonic()
    project.run(*stage_command(stage))
    seconds[stage] = time.monotonic() - start
    return outputs_of(project, stage)


def runs_again(project: Project, stage: str, command: tuple[str, ...]) -> None:
    """The same command goes on: from the last checkpoint if there is one."""
    step = last_checkpoint(project, stage)
    done = project.run(*command)
    resumed = re.search(r"resuming at step (\d+)", done.stdout + done.stderr)
    assert (int(resumed[1]) if resumed else None) == step
    assert not leftovers(project)
    assert not list(project.root.glob(f".state/{stage}/*/step-*"))
    assert len(list(project.root.glob(f".state/{stage}/*"))) <= 1  # the last finished training
    assert not stages_alive(project)


@pytest.mark.parametrize("kind", SIGNALS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_stopped_at_a_random_moment(
    whole: Project, ledger: Ledger, stage: str, kind: str
) -> None:
    expected = uninterrupted(whole, stage)
    command, number = stage_command(stage), SIGNALS[kind]
    for moment in moments(f"{stage} {kind}", seconds[stage]):
        process = whole.start(*command)
        time.sleep(moment)
        told = stop(process, number)
        assert process.returncode in (STATUS[number], 0), told  # or it was quicker
        assert "Traceback" not in told or moment < 0.3  # Python itself was starting
        if process.returncode:
            runs_again(whole, stage, command)
        assert outputs_of(whole, stage) == expected
        ledger.note(kind, f"python -m stages.{stage}", "same bytes, nothing left")


@pytest.mark.parametrize("stage", RESUMED)
def test_the_whole_group_of_dvc_repro_killed(whole: Project, ledger: Ledger, stage: str) -> None:
    """As when a machine loses power: dvc, shell and stage at once."""
    expected = uninterrupted(whole, stage)
    command = ("dvc", "repro", "--single-item", "--force", stage)
    for moment in moments(f"{stage} group", seconds[stage]):
        process = whole.start(*command)
        time.sleep(moment + 1.5)  # dvc's own start
        stop(process, signal.SIGKILL)
        if process.returncode:
            runs_again(whole, stage, command)
        assert outputs_of(whole, stage) == expected
        ledger.note("process group killed -9", f"dvc repro {stage}", "same bytes, nothing left")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["-9", "SIGTERM"])
@pytest.mark.parametrize("killed", ["dvc", "make"])
def test_the_parents_of_a_stage_killed_alone(
    whole: Project, ledger: Ledger, killed: str, number: int
) -> None:
    expected = uninterrupted(whole, "pretrain")
    (whole.root / "Makefile").write_text("repro:\n\tdvc repro --single-item --force pretrain\n")
    command = ("dvc", "repro", "--single-item", "--force", "pretrain")
    for moment in moments(f"{killed} {number}", seconds["pretrain"]):
        process = whole.start(*(command if killed == "dvc" else ("make", "repro")))
        wait_until(lambda: stages_alive(whole), process)
        time.sleep(moment)
        told = stop(process, number, group=False)
        wait_until(lambda: not stages_alive(whole))
        assert "Traceback" not in told
        if process.returncode:
            runs_again(whole, "pretrain", command)
        assert outputs_of(whole, "pretrain") == expected
        told = f"`{killed}` alone killed ({signal.Signals(number).name})"
        ledger.note(told, "dvc repro pretrain", "the stage ends; same bytes")
    whole.run("git", "checkout", "Makefile")


@pytest.mark.parametrize("where", ["--temp", "workspace"])
def test_an_experiment_killed_and_run_again(whole: Project, ledger: Ledger, where: str) -> None:
    """`dvc exp run`, here and in a temporary copy: what it trained is what `dvc repro` trains."""
    options = ("--temp",) if where == "--temp" else ()
    name = f"other-{where.strip('-')}"
    command = ("dvc", "exp", "run", *options, "--force", "--single-item", "--name", name,
               "-S", "pretrain.optimizer.learning_rate=2.0e-3", "pretrain")  # fmt: skip
    whole.run("git", "add", "-A")
    whole.run("git", "commit", "-qm", "state", "--allow-empty")
    process = whole.start(*command)
    wait_until(lambda: last_checkpoint(whole, "pretrain"), process)
    stop(process, signal.SIGKILL)
    wait_until(lambda: not stages_alive(whole))
    step = last_checkpoint(whole, "pretrain")
    whole.run("git", "checkout", "-q", "--", "params.yaml")
    done = whole.run(*command)
    assert f"resuming at step {step}" in done.stdout + done.stderr
    trained = whole.run("git", "show", f"{name}:metrics/pretrain.json").stdout
    whole.run("git", "checkout", "-q", "--", ".")
    parameters = YAML(typ="safe").load(whole.root / "params.yaml")
    assert parameters["pretrain"]["optimizer"]["learning_rate"] != 2.0e-3
    whole.set_parameters({"pretrain.optimizer.learning_rate": 2.0e-3})
    whole.run(*stage_command("pretrain"))
    assert (whole.root / "metrics/pretrain.json").read_text() == trained
    whole.run("git", "checkout", "-q", "--", ".")
    ledger.note("experiment killed -9", f"dvc exp run {' '.join(options)}".strip(), "goes on; same")


def test_two_at_once_do_not_write_one_output(whole: Project, ledger: Ledger) -> None:
    """The second waits for the first, and both end well."""
    expected = uninterrupted(whole, "tokenize")
    processes = [whole.start(*stage_command("tokenize")) for _ in range(2)]
    for process in processes:
        told = process.communicate(timeout=240)[0]
        assert process.returncode == 0, told
    assert outputs_of(whole, "tokenize") == expected
    ledger.note("the same stage twice at once", "python -m stages.tokenize", "one after the other")


def test_what_a_kill_left_among_plots_does_not_reach_dvc(whole: Project, ledger: Ledger) -> None:
    """In the issue it changed dvc.lock for good: the report depends on all of plots/."""
    whole.run("git", "checkout", "-q", "--", ".")
    whole.run("dvc", "repro")
    left = whole.root / "plots/.pretrain.999999999.abcd1234.unfinished"
    left.mkdir()
    (left / "training.csv").write_text("half")
    assert "up to date" in whole.run("dvc", "status").stdout
    assert "unfinished" not in whole.run("git", "status", "--porcelain").stdout
    whole.run(*stage_command("pretrain"))
    assert not left.exists()
    ledger.note("a half-written folder in plots/", "dvc status", "unseen; the next run removes it")


def can_mount() -> bool:
    return os.geteuid() == 0 and Path("/proc/mounts").exists()


@pytest.mark.skipif(os.name == "nt" or not can_mount(), reason="needs root to mount a file system")
@pytest.mark.parametrize("room", [16, 256, 1024])
@pytest.mark.parametrize("stage", [s for s in STAGES if s != "judge"])
def test_a_full_disk_at_any_output(whole: Project, ledger: Ledger, stage: str, room: int) -> None:
    """The stage's folder of outputs on a file system with so many KiB of room."""
    expected = uninterrupted(whole, stage)
    words = STAGES[stage].split()
    output = words[words.index("--output") + 1]
    folder = whole.root / "small"
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}k", "tmpfs", folder], check=True)
    try:
        command = [*stage_command(stage)]
        command[command.index(output)] = f"small/{Path(output).name}"
        done = whole.run(*command, check=False)
        assert "Traceback" not in done.stderr
        if done.returncode:
            assert "no space left on the disk while writing small/" in done.stderr, done.stderr
            assert list(folder.iterdir()) == []
    finally:
        subprocess.run(["umount", folder], check=True)
    if stage in RESUMED:
        whole.run("python", "-m", "gptmill.cli", "doctor", "--clean")
    whole.run(*stage_command(stage))
    assert outputs_of(whole, stage) == expected
    told = "one line, nothing half written" if done.returncode else "it fits"
    ledger.note(f"disk full after {room} KiB", f"python -m stages.{stage}", told)


def test_no_run_of_mlflow_is_left_running(whole: Project, ledger: Ledger) -> None:
    """After all of the above; the last test of this file."""
    whole.run("python", "-m", "gptmill.cli", "track", "replay")
    with sqlite3.connect(whole.root / "mlflow.db") as database:
        rows = database.execute("select status, count(*) from runs group by status").fetchall()
    assert "RUNNING" not in dict(rows)
    assert sum(count for _, count in rows) > 10
    ledger.note("all of the above", "MLflow's runs", "none is left RUNNING")
