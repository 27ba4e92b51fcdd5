"""The short form: what a pipeline must survive, once each."""

import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from gptmill.files import remove, sha256_tree
from tests.faults.conftest import (
    Ledger,
    last_checkpoint,
    leftovers,
    outputs_of,
    stage_command,
    stages_alive,
    stop,
    wait_until,
)
from tests.pipeline.conftest import Project

# Before other tests go on with the clone.
pytestmark = pytest.mark.usefixtures("straight", "nothing_left_running")
MODEL, PRETRAIN = "models/pretrained", "dvc repro pretrain"


@pytest.fixture
def nothing_left_running(short: Project) -> Iterator[None]:
    """A test that fails midway must not be the next one's fault."""
    yield
    for process in stages_alive(short):
        process.kill()


def locked_steps(project: Project) -> int:
    lock = YAML(typ="safe").load(project.root / "dvc.lock")["stages"]["pretrain"]
    return lock["params"]["params.yaml"]["pretrain"]["steps"]


def model_steps(project: Project) -> int:
    told = json.loads((project.root / MODEL / "provenance.json").read_text())
    return told["parameters"]["steps"]


def trained_steps(project: Project) -> int:
    rows = (project.root / "plots/pretrain/training.csv").read_text().splitlines()
    return int(rows[-1].split(",")[0])


def started(project: Project, steps: int, *command: str) -> subprocess.Popen:
    """A command that pretrains, with a first checkpoint written."""
    project.set_parameters({"pretrain.steps": steps})
    remove(project.root / ".state/pretrain")  # of another test
    process = project.start(*(command or PRETRAIN.split()))
    wait_until(lambda: last_checkpoint(project, "pretrain"), process)
    return process


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_an_orphan_does_not_overwrite_a_later_run(short: Project, ledger: Ledger) -> None:
    """`dvc` alone is killed, a parameter edited, the command given again: in the issue dvc.lock
    said 60 steps and the model 420."""
    process = started(short, 100000)
    stop(process, signal.SIGKILL, group=False)
    short.set_parameters({"pretrain.steps": 24})
    short.run(*PRETRAIN.split())
    assert not stages_alive(short)
    assert locked_steps(short) == model_steps(short) == trained_steps(short) == 24
    assert "pretrain" not in short.run("dvc", "status", "pretrain").stdout
    ledger.note(
        "`dvc` alone killed, parameter edited, run again", PRETRAIN, "no orphan; "
        "dvc.lock, provenance and curves agree",
    )  # fmt: skip


def test_a_parameter_edited_meanwhile_is_not_recorded(short: Project, ledger: Ledger) -> None:
    """dvc.lock would have the new value for what the old one made."""
    process = started(short, 100)
    before = locked_steps(short)
    short.set_parameters({"pretrain.steps": 48})
    told = process.communicate(timeout=240)[0]
    assert process.returncode
    assert "error: changed while the stage ran: params.yaml, pretrain.steps" in told
    assert "Traceback" not in told
    assert not (short.root / MODEL).exists()
    assert locked_steps(short) == before
    # Put back, the same run is published from its last checkpoint.
    short.set_parameters({"pretrain.steps": 100})
    assert "resuming at step 100 of 100" in short.run(*PRETRAIN.split()).stderr
    assert locked_steps(short) == trained_steps(short) == 100
    ledger.note(
        "parameter edited while the stage runs", PRETRAIN, "refused; put back, it is "
        "published from its last checkpoint",
    )  # fmt: skip


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(short: Project, ledger: Ledger) -> None:
    process = started(short, 100000)
    wait_until(lambda: last_checkpoint(short, "pretrain") >= 8, process)
    told = stop(process, signal.SIGINT)
    step = last_checkpoint(short, "pretrain")
    kept = re.search(r"pretrain interrupted: the checkpoint of step (\d+) is kept", told)
    # It may have been stopped right after that one appeared, before it was told.
    assert kept and int(kept[1]) in (step, step - 4), told
    assert "Traceback" not in told
    assert process.returncode
    assert not leftovers(short)
    ledger.note("Ctrl-C", PRETRAIN, "one line; the checkpoint is kept")


def test_ctrl_c_while_it_only_imports(short: Project, ledger: Ledger) -> None:
    process = short.start(*stage_command("pretrain"))
    wait_until(lambda: "torch" in Path(f"/proc/{process.pid}/maps").read_text(), process)
    told = stop(process, signal.SIGINT)
    assert process.returncode == 130
    assert told.strip().count("\n") == 0
    assert "pretrain interrupted: nothing was half written" in told
    ledger.note("Ctrl-C during imports", "python -m stages.pretrain", "one line, status 130")


def test_a_flipped_bit_in_the_last_checkpoint(
    short: Project, straight: dict[str, str], ledger: Ledger
) -> None:
    """The one before it is taken, and the model is that of a run without a fault."""
    again = ("dvc", "repro", "--single-item", "--force", "pretrain")
    process = started(short, 24, *again)
    wait_until(lambda: last_checkpoint(short, "pretrain") >= 8, process)
    stop(process, signal.SIGKILL)
    step = last_checkpoint(short, "pretrain")
    (last,) = short.root.glob(f".state/pretrain/*/step-{step:09}-*.pt")
    content = bytearray(last.read_bytes())
    content[random.Random(1).randrange(len(content))] ^= 1
    last.write_bytes(content)
    told = short.run(*again).stderr
    assert f"the checkpoint of step {step} is damaged" in told, told
    assert f"resuming at step {step - 4} of 24" in told
    assert outputs_of(short, "pretrain") == straight
    ledger.note("a bit flipped in the last checkpoint", PRETRAIN, "the one before; same bytes")


def can_mount() -> bool:
    return os.name != "nt" and os.geteuid() == 0 and Path("/proc/mounts").exists()


@pytest.mark.skipif(not can_mount(), reason="needs root to mount a small file system")
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_disk_that_takes_no_more(short: Project, ledger: Ledger, fault: str) -> None:
    """An output folder on a file system of its own, of a megabyte or without writing."""
    folder = short.root / "data/small"
    folder.mkdir(exist_ok=True)
    option = "size=1m" if fault == "full" else "ro"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", folder])
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        if fault == "full":
            (folder / "filler").write_bytes(bytes(900_000))
        before = sha256_tree(folder)
        command = ("python", "-m", "stages.download", "--dataset", "corpus",
                   "--output", "data/small/corpus")  # fmt: skip
        short.set_parameters({"download.corpus.count": 20000})
        done = short.run(*command, check=False)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        told = "no space left on the disk" if fault == "full" else "read-only file system"
        assert told in done.stderr
        assert "data/small/corpus" in done.stderr
        assert sha256_tree(folder) == before
    finally:
        short.set_parameters({"download.corpus.count": 400})
        subprocess.run(["umount", folder], check=True)
    ledger.note(f"disk {fault}", "python -m stages.download", "one line that names file and remedy")
