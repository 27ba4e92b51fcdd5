"""Several processes train as one: the same losses, whatever their number and strategy."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptmill.data.documents import IGNORED
from gptmill.engine.checkpoint import Checkpoints
from gptmill.engine.hooks import StepResult, every
from gptmill.engine.loop import FitConfig, fit
from gptmill.engine.optim import build_optimizer
from gptmill.engine.parallel import checkpoint_blocks
from gptmill.engine.runtime import Runtime, open_runtime
from gptmill.engine.state import TrainState
from gptmill.engine.workers import Workers
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.params import Launch, load
from gptmill.tasks.language_model import LanguageModelTask, TokenBatch
from tests.unit.engine.test_training import new_state

STEPS = 50


def trained(steps: int, strategy: str, muon: float, *options: str) -> dict:
    """Losses and weights of a training on ragged sequences, two micro-batches a step, which goes on
    from a checkpoint where there is one; run in every process.

    `options` are `compiled`, `recomputed` (activation checkpointing) and `dropout`.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    launch = Launch(
        processes=processes, nodes=1, minimum_nodes=1, rendezvous="", strategy=strategy,
        cpu_offload=False, activation_checkpointing="recomputed" in options, restarts=0,
    )  # fmt: skip
    compiled = "compiled" in options
    runtime = open_runtime(5, threads=1, precision="float32", compile=compiled, launch=launch)
    model = GPT2(GPT2Config(31, 24, 2, 2, 16, dropout=0.1 * ("dropout" in options)))
    weight = model.transformer.h[0].mlp.c_fc.weight
    weight.data = weight.data.T.contiguous().T  # as weights read from a published file lie
    model = runtime.spread(model)
    section = load().pretrain.optimizer.model_copy(update={"muon": muon})
    state = TrainState(model, build_optimizer(model, section), new_state().batches)
    losses: list[float] = []

    def lose_a_process(state: TrainState, result: StepResult) -> None:
        first_try = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if first_try and state.step == 15 and runtime.rank == processes - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints = Checkpoints("distributed", "key", runtime)
    checkpoints.load(state)
    fit(
        state,
        LanguageModelTask(),
        runtime,
        FitConfig(steps, 2, 1.0, lambda _: 1e-3),
        [
            lambda _, result: losses.append(result.loss.item()),
            every(10, checkpoints.save),
            lose_a_process,
        ],
    )
    saved = state.state_dict()["model"]
    return {"losses": losses, "targets": state.targets, "model": saved, "rank": runtime.rank}


def in_processes(
    count: int, folder: Path, steps: int, strategy: str, muon: float, *options: str
) -> dict:
    """What the first of `count` processes trained; the state is kept in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    world |= {"LOCAL_WORLD_SIZE": str(count), "DVC_ROOT": str(folder)}
    arguments = [str(folder / "result.pt"), str(steps), strategy, str(muon), *options]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, *arguments],
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]
    assert [process.wait(timeout=240) for process in processes] == [0] * count
    return torch.load(folder / "result.pt", weights_only=True)


def launched(folder: Path, strategy: str, *options: str) -> dict:
    """What two processes of torchrun's agent trained in 30 steps; one is killed on the way."""
    arguments = [str(folder / "result.pt"), "30", strategy, "0", *options]
    program = (
        "import sys; from gptmill.params import Launch; from gptmill.process.launch import launch; "
        "section = Launch(processes=2, nodes=1, minimum_nodes=1, rendezvous='', restarts=1, "
        f"strategy='{strategy}', cpu_offload=False, activation_checkpointing=False); "
        f"sys.exit(launch(section, '{__name__}', {arguments!r}))"
    )
    environment = os.environ | {"DVC_ROOT": str(folder)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=240)
    return torch.load(folder / "result.pt", weights_only=True)


LONG = pytest.mark.clusters  # part of `make test-clusters` alone


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize(
    ("count", "muon"),
    [(2, 0.0), pytest.param(2, 7.0, marks=LONG), pytest.param(4, 0.0, marks=LONG)],
)
def test_losses_do_not_depend_on_the_processes(
    count: int, muon: float, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sequences are ragged, so a mean of the processes' means would be another gradient."""
    (tmp_path / "alone").mkdir()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "alone"))
    alone = trained(STEPS, "none", muon)
    several = in_processes(count, tmp_path, STEPS, strategy, muon)
    assert several["targets"] == alone["targets"]
    assert len(several["losses"]) == STEPS
    found, expected = torch.tensor(several["losses"]), torch.tensor(alone["losses"])
    # As far apart as runs of one process: `test_muon_drifts_by_rounding_alone`.
    same = STEPS if not muon else 10
    torch.testing.assert_close(found[:same], expected[:same], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)
    assert several["model"].keys() == alone["model"].keys()  # no name carries a wrapper's prefix


class PlainTask(LanguageModelTask):
    """The loss in the model's own precision."""

    def loss(self, model: nn.Module, batch: TokenBatch, runtime: Runtime) -> Tensor:
        logits = model(runtime.tensor(batch[0])).flatten(0, 1)
        targets = runtime.tensor(batch[1]).flatten()
        return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def one_process(parts: int, dtype: torch.dtype) -> Tensor:
    """Losses of a training with Muon that adds up the gradients of so many parts of a batch."""
    runtime = open_runtime(5, threads=1, precision="float32")
    runtime = replace(runtime, small_model_workers=Workers(parts))
    model = GPT2(GPT2Config(31, 24, 2, 2, 16)).to(dtype)
    optimizer = build_optimizer(model, load().pretrain.optimizer)
    losses: list[float] = []
    fit(
        TrainState(model, optimizer, new_state().batches), PlainTask(), runtime,
        FitConfig(STEPS, 2, 1.0, lambda _: 1e-3), [lambda _, r: losses.append(r.loss.item())],
    )  # fmt: skip
    return torch.tensor(losses)


def test_muon_drifts_by_rounding_alone() -> None:
    """It raises the smallest singular values, which are rounding: in float32 another order of sums
    shows after 50 steps, in float64 it does not."""
    single = one_process(2, torch.float32) - one_process(1, torch.float32)
    double = one_process(2, torch.float64) - one_process(1, torch.float64)
    assert single[:10].abs().max() < 1e-6 < single.abs().max() < 1e-2
    assert double.abs().max() < 1e-6


@LONG
def test_a_state_of_four_processes_continues_on_two_and_on_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alone").mkdir()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "alone"))
    alone = trained(30, "none", 0.0)
    four = in_processes(4, tmp_path, 10, "fsdp2", 0.0)
    two = in_processes(2, tmp_path, 20, "fsdp2", 0.0)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    one = trained(30, "none", 0.0)
    losses = [*four["losses"], *two["losses"], *one["losses"]]
    torch.testing.assert_close(
        torch.tensor(losses), torch.tensor(alone["losses"]), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=LONG), "fsdp2"])
def test_a_lost_process_is_started_again_from_the_last_checkpoint(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last process is killed at step 15: its companion starts again with it, at step 10."""
    (tmp_path / "alone").mkdir()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "alone"))
    alone = trained(30, "none", 0.0)
    resumed = launched(tmp_path, strategy)
    assert len(resumed["losses"]) == 20
    torch.testing.assert_close(
        torch.tensor(resumed["losses"]), torch.tensor(alone["losses"][10:]), atol=1e-6, rtol=1e-6
    )


def test_blocks_computed_again_have_the_same_gradients() -> None:
    gradients = {}
    for again in (False, True):
        torch.manual_seed(0)
        model = GPT2(GPT2Config(31, 24, 2, 2, 16))
        if again:
            checkpoint_blocks(model)
        model(torch.arange(24)[None] % 31).square().sum().backward()
        gradients[again] = [parameter.grad for parameter in model.parameters()]
    torch.testing.assert_close(gradients[True], gradients[False], atol=0, rtol=0)


@LONG
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("option", ["compiled", "recomputed"])
def test_an_option_changes_no_loss(
    option: str, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alone").mkdir()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "alone"))
    alone = trained(STEPS, "none", 0.0)
    several = in_processes(2, tmp_path, STEPS, strategy, 0.0, option)
    torch.testing.assert_close(
        torch.tensor(several["losses"]), torch.tensor(alone["losses"]), atol=1e-5, rtol=1e-5
    )
    assert several["model"].keys() == alone["model"].keys()


@LONG
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_dropout_is_the_same_after_a_restart(strategy: str, tmp_path: Path) -> None:
    """It is drawn by step and process, so a resumed run drops what an undisturbed one drops."""
    for name in ("undisturbed", "disturbed"):
        (tmp_path / name).mkdir()
    straight = in_processes(2, tmp_path / "undisturbed", 30, strategy, 0.0, "dropout")
    resumed = launched(tmp_path / "disturbed", strategy, "dropout")
    torch.testing.assert_close(
        torch.tensor(resumed["losses"]), torch.tensor(straight["losses"][10:]), atol=0, rtol=0
    )


if __name__ == "__main__":
    path, steps, strategy, muon, *options = sys.argv[1:]
    result = trained(int(steps), strategy, float(muon), *options)
    if result.pop("rank") == 0:
        torch.save(result, path)
