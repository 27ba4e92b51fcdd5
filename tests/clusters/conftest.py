"""Several machines on this one: network namespaces as hosts, and a real Slurm."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.faults.conftest import stage_command, stages_alive
from tests.pipeline.conftest import Project, clone

ADDRESSES = ("10.77.0.1", "10.77.0.2")
INTERFACE = "gptmill0"


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone that has pretrained in one process."""
    project = clone(tmp_path_factory.mktemp("alone"))
    project.run("dvc", "repro", "pretrain")
    return project


def with_tokens(alone: Project, root: Path) -> Project:
    """Another clone, with the same tokens."""
    root.mkdir(exist_ok=True)
    project = clone(root)
    shutil.copytree(alone.root / "data/tokens", root / "data/tokens")
    return project


@pytest.fixture
def shared_folder(alone: Project, tmp_path: Path) -> Iterator[Project]:
    """A project with the tokens, as every machine of a cluster sees it."""
    project = with_tokens(alone, tmp_path / "shared")
    yield project
    for process in stages_alive(project):
        process.kill()


def losses(project: Project) -> list[float]:
    """The curve of training losses that the stage drew."""
    rows = (project.root / "plots/pretrain/training.csv").read_text().splitlines()
    column = rows[0].split(",").index("train/loss")
    return [float(row.split(",")[column]) for row in rows[1:]]


def validation_loss(project: Project) -> float:
    return json.loads((project.root / "metrics/pretrain.json").read_text())["validation/loss"]


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@dataclass
class Host:
    """A network namespace with one address, joined to the other by a cable."""

    name: str
    address: str

    def enter(self) -> list[str]:
        """What to put before a command; `ip netns exec` would hide the control groups from it."""
        return ["nsenter", f"--net=/run/netns/{self.name}"]

    def start(self, project: Project, *command: str) -> subprocess.Popen[str]:
        """Start a command on this host."""
        return project.start(*self.enter(), *command)

    def processes(self) -> list[psutil.Process]:
        """All that runs on this host."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], check=True, capture_output=True)
        return [psutil.Process(int(pid)) for pid in listed.stdout.split()]

    def lose(self, process: subprocess.Popen[str]) -> None:
        """End all that runs on this host at once, as a machine does that is switched off."""
        for each in self.processes():
            each.kill()
        process.wait(timeout=10)

    def lose_stage(self) -> None:
        """Kill the stage's processes on this host."""
        for process in self.processes():
            if any(word.startswith("stages.") for word in process.cmdline()):
                process.kill()

    def sent(self) -> int:
        """Bytes that have left by the cable, headers included."""
        shown = ["ip", "-n", self.name, "-j", "-s", "link", "show", INTERFACE]
        found = json.loads(subprocess.run(shown, check=True, capture_output=True).stdout)
        return found[0]["stats64"]["tx"]["bytes"]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Two hosts; skipped where namespaces cannot be made."""
    hosts = [Host(f"gptmill-{os.getpid()}-{i}", a) for i, a in enumerate(ADDRESSES)]
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
            _ip("-n", host.name, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True, check=False)
        pytest.skip(f"network namespaces need root and the ip command: {error}")
    first, second = hosts
    _ip("link", "add", INTERFACE, "netns", first.name, "type", "veth",
        "peer", "name", INTERFACE, "netns", second.name)  # fmt: skip
    for host in hosts:
        _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", INTERFACE)
        _ip("-n", host.name, "link", "set", INTERFACE, "up")
    yield hosts
    for host in hosts:
        _ip("netns", "del", host.name)


PRETRAIN = stage_command("pretrain")
