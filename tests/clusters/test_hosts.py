"""The pretraining stage on two hosts, which are network namespaces joined by a virtual cable."""

import json
import subprocess
from pathlib import Path

import pytest

from gptmill.model.config import from_json
from gptmill.params import load
from gptmill.plan.activations import Compute
from gptmill.plan.cluster import traffic
from gptmill.plan.sizes import language_model_size
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

pytestmark = pytest.mark.clusters


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


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_traffic_is_what_the_plan_says(
    strategy: str, shared_folder: Project, hosts: list[Host]
) -> None:
    """Bytes on the cable between two checkpoints, with the headers of TCP and IP."""
    shared_folder.set_parameters(
        {"pretrain.steps": 330, "pretrain.training.save_every": 100, "pretrain.sample_every": 1000,
         "pretrain.training.evaluate_every": 1000, "pretrain.model.width": 96,
         "pretrain.model.layers": 4, "pretrain.optimizer.muon": 0.0}
    )  # fmt: skip
    processes = on_two_hosts(shared_folder, hosts, strategy=strategy)
    sent = []
    for step in (100, 300):
        wait_until(lambda step=step: last_checkpoint(shared_folder, "pretrain") == step, 240)
        sent.append(sum(host.sent() for host in hosts) / len(hosts))
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    section = load(shared_folder.root / "params.yaml").pretrain
    with_tokenizer = shared_folder.root / "models/pretrained/config.json"
    config = from_json(json.loads(with_tokenizer.read_text()), "config.json")
    size = language_model_size(config, section.optimizer)
    planned = traffic(size, strategy, 2, section.training.accumulation, Compute(half=False))
    if strategy == "fsdp2":  # gloo scatters a sum by an all-reduce, which sends it twice
        planned += size.gradients // 2
    measured = (sent[1] - sent[0]) / 200
    print(f"{strategy}: {measured:,.0f} bytes a step measured, {planned:,} planned")
    assert measured == pytest.approx(planned, rel=0.1)
