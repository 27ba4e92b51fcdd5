"""The pretraining stage on two hosts, which are network namespaces joined by a virtual cable."""

import subprocess
from pathlib import Path

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


def on_two_hosts(project: Project, hosts: list[Host], **launch: object) -> list[subprocess.Popen]:
    """Give the stage's command on both hosts; they meet at the first one."""
    section = {"nodes": 2, "minimum_nodes": 2, "strategy": "ddp", **launch}
    section["rendezvous"] = f"{hosts[0].address}:29511"
    project.set_parameters({f"launch.{name}": value for name, value in section.items()})
    return [host.start(project, *PRETRAIN) for host in hosts]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_hosts_train_as_one(
    strategy: str, alone: Project, shared_folder: Project, hosts: list[Host]
) -> None:
    processes = on_two_hosts(shared_folder, hosts, strategy=strategy)
    printed = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert losses(shared_folder) == pytest.approx(losses(alone), abs=1e-5)
    assert validation_loss(shared_folder) == pytest.approx(validation_loss(alone), abs=1e-5)
    print(f"{strategy}: bytes sent {[host.sent() for host in hosts]}")


def test_a_host_that_leaves_for_good(
    alone: Project, shared_folder: Project, hosts: list[Host], tmp_path: Path
) -> None:
    """The other one continues from the last checkpoint, with the same global batch."""
    longer = {"pretrain.steps": 300, "pretrain.training.save_every": 20,
              "pretrain.optimizer.muon": 0.0}  # fmt: skip
    shared_folder.set_parameters(longer)
    first, second = on_two_hosts(shared_folder, hosts, minimum_nodes=1)
    wait_until(lambda: last_checkpoint(shared_folder, "pretrain"))
    hosts[1].lose(second)
    printed = first.communicate(timeout=300)[0]
    assert first.returncode == 0, printed
    assert "resuming at step" in printed
    straight = with_tokens(alone, tmp_path / "straight")
    straight.set_parameters(longer)
    straight.run(*PRETRAIN)
    assert losses(shared_folder) == pytest.approx(losses(straight), abs=1e-5)
