"""A stage that its dvc left behind ends; one that was started by hand does not."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from gptmill.process.parent import is_dvc, lives

CHILD = """
import sys, time
from gptmill.process import parent
from gptmill.process.interrupt import in_order
parent.POLL_SECONDS = 0.05
with in_order('pretrain'):
    parent.end_with_parents()
    print(parent.psutil.Process().pid, flush=True)
    time.sleep(60)
"""
# Like DVC: the command by a shell, here one that stays between.
STARTER = """
import subprocess, sys
subprocess.run(['/bin/sh', '-c', f'{sys.executable} child.py; true'])
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    (tmp_path / "child.py").write_text(textwrap.dedent(CHILD))
    for name in ("dvc", "starter"):
        (tmp_path / name).write_text(textwrap.dedent(STARTER))
    return tmp_path


def start(name: str) -> tuple[subprocess.Popen, psutil.Process]:
    process = subprocess.Popen(
        [sys.executable, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    return process, psutil.Process(int(process.stdout.readline()))


def ended_within(process: psutil.Process, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while lives(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not lives(process)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_death_of_dvc_ends_the_stage(number: int) -> None:
    dvc, child = start("dvc")
    dvc.send_signal(number)
    dvc.wait()
    assert ended_within(child, 10)
    assert "pretrain terminated, since process" in dvc.stderr.read()


def test_the_death_of_the_shell_between_ends_the_stage() -> None:
    dvc, child = start("dvc")
    child.parent().kill()
    assert ended_within(child, 10)
    dvc.wait()


def test_a_stage_that_was_started_by_hand_lives_on() -> None:
    starter, child = start("starter")
    starter.kill()
    starter.wait()
    assert not ended_within(child, 0.5)
    child.kill()


def test_dvc_as_a_library_is_known_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "pretrain")
    starter, child = start("starter")
    child.parent().kill()
    assert ended_within(child, 10)
    starter.kill()
    starter.wait()


def test_a_dead_process_that_nobody_has_reaped_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = psutil.Process(child.pid)
    assert lives(process)
    child.kill()
    assert ended_within(process, 10)
    assert psutil.pid_exists(child.pid)  # a zombie, as a killed dvc is to make
    child.wait()
    assert not lives(process)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["dvc", "repro"], True),
        (["/x/bin/python3.11", "/x/bin/dvc", "repro"], True),
        (["python", "-m", "dvc", "exp", "run"], True),
        (["/bin/sh", "-c", "dvc repro"], False),
        (["python", "train.py", "dvc"], False),
        (["vim", "dvc"], False),
        ([], False),
    ],
)
def test_what_is_dvc(command: list[str], expected: bool) -> None:
    assert is_dvc(command) is expected
