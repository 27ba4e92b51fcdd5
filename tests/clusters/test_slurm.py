"""The pretraining stage under a real Slurm: two nodes, each a network namespace."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.clusters.conftest import (
    PRETRAIN,
    Host,
    losses,
    validation_loss,
    wait_until,
    with_tokens,
)
from tests.faults.conftest import last_checkpoint
from tests.pipeline.conftest import Project

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIGURATION = """
ClusterName=gptmill
SlurmctldHost=node1({controller})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.txt
MinJobAge=3600
KillWait=2
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

pytestmark = pytest.mark.clusters


@dataclass
class Slurm:
    """A cluster whose tools are run on its first node."""

    host: Host
    folder: Path

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """A tool's output."""
        return subprocess.run(
            self._on_host(*command), cwd=cwd, check=True, capture_output=True, text=True
        ).stdout

    def submit(self, project: Project, script: Path, *options: str) -> int:
        """Submit a batch script in the project; the job's number."""
        command = ["sbatch", "--parsable", *options, str(script)]
        return int(
            subprocess.run(
                self._on_host(*command), cwd=project.root, env=self._environment(project),
                check=True, capture_output=True, text=True,
            ).stdout
        )  # fmt: skip

    def job(self, number: int) -> dict[str, str]:
        """What `scontrol` says of a job."""
        shown = self.run("scontrol", "show", "job", str(number), "--oneliner")
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def _on_host(self, *command: str) -> list[str]:
        configuration = f"SLURM_CONF={self.folder}/slurm.conf"
        return [*self.host.enter(), "env", configuration, *command]

    def _environment(self, project: Project) -> dict[str, str]:
        return project.environment | {"SLURM_CONF": f"{self.folder}/slurm.conf"}


@pytest.fixture
def slurm(hosts: list[Host], tmp_path: Path) -> Iterator[Slurm]:
    """Slurm's daemons; skipped where Debian's packages are not installed."""
    if missing := [name for name in DAEMONS if not shutil.which(name)]:
        pytest.skip(f"{', '.join(missing)}: apt-get install slurmctld slurmd munge slurm-client")
    folder = tmp_path / "slurm"
    (folder / "state").mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(bytes(range(128)))
    key.chmod(0o400)
    nodes = "".join(
        f"NodeName=node{i} NodeAddr={host.address} CPUs=1 RealMemory=4000 State=UNKNOWN\n"
        for i, host in enumerate(hosts, 1)
    )
    text = CONFIGURATION.format(folder=folder, controller=hosts[0].address, nodes=nodes)
    (folder / "slurm.conf").write_text(text)
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket",
              f"--key-file={key}", f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/seed",
              f"--log-file={folder}/munge.log"]  # fmt: skip
    started = [subprocess.Popen(munged, stderr=subprocess.DEVNULL)]
    cluster = Slurm(hosts[0], folder)
    try:
        wait_until((folder / "munge.socket").exists, 30)
        started.append(_daemon(cluster, hosts[0], 1, "slurmctld", "-D"))
        for number, host in enumerate(hosts, 1):
            started.append(_daemon(cluster, host, number, "slurmd", "-D", "-N", f"node{number}"))
        wait_until(lambda: cluster.run("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2", 60)
        yield cluster
    finally:
        for process in reversed(started):
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()
            process.wait()


def _daemon(cluster: Slurm, host: Host, number: int, *command: str) -> subprocess.Popen:
    """A daemon on a host of its own name."""
    script = f"hostname node{number}; exec {' '.join(command)}"
    return subprocess.Popen(
        [*host.enter(), "env", f"SLURM_CONF={cluster.folder}/slurm.conf",
         "unshare", "--uts", "sh", "-c", script],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


SCRIPT = Path("deploy/slurm.sh").resolve()
TWO_NODES = {"launch.nodes": 2, "launch.minimum_nodes": 2, "launch.strategy": "ddp"}


def finished(slurm: Slurm, job: int) -> bool:
    state = slurm.job(job)["JobState"]
    assert state not in ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"), state
    return state == "COMPLETED"


def test_a_job_on_two_nodes_trains_as_one_process(
    alone: Project, shared_folder: Project, slurm: Slurm
) -> None:
    shared_folder.set_parameters(TWO_NODES)
    job = slurm.submit(shared_folder, SCRIPT, "--nodes", "2")
    wait_until(lambda: finished(slurm, job), 240)
    assert slurm.job(job)["NodeList"] == "node[1-2]"
    assert losses(shared_folder) == pytest.approx(losses(alone), abs=1e-5)
    assert validation_loss(shared_folder) == pytest.approx(validation_loss(alone), abs=1e-5)


def test_a_job_that_loses_a_task_is_queued_again_and_finished(
    alone: Project, shared_folder: Project, slurm: Slurm, hosts: list[Host], tmp_path: Path
) -> None:
    longer = {"pretrain.steps": 300, "pretrain.training.save_every": 20,
              "pretrain.optimizer.muon": 0.0}  # fmt: skip
    shared_folder.set_parameters({**TWO_NODES, **longer})
    job = slurm.submit(shared_folder, SCRIPT, "--nodes", "2")
    wait_until(lambda: last_checkpoint(shared_folder, "pretrain"), 240)
    hosts[1].lose_stage()
    wait_until(lambda: finished(slurm, job), 600)
    assert slurm.job(job)["Restarts"] == "1"
    print(slurm.folder.joinpath("jobs.txt").read_text())
    printed = (shared_folder.root / f"slurm-{job}.out").read_text()
    assert "requeued after status" in printed and "resuming at step" in printed
    straight = with_tokens(alone, tmp_path / "straight")
    straight.set_parameters(longer)
    straight.run(*PRETRAIN)
    assert losses(shared_folder) == pytest.approx(losses(straight), abs=1e-5)
