"""Two processes train as one: the same weights, each having seen half of the micro-batches."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from gptmill.engine.loop import FitConfig, fit
from gptmill.engine.runtime import open_runtime
from gptmill.engine.state import TrainState
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.tasks.language_model import LanguageModelTask
from tests.unit.engine.test_training import new_state

STEPS = 4


def trained(accumulation: int) -> TrainState:
    """Four plain gradient steps without dropout; run in every process.

    AdamW and clipping would hide a gradient of the wrong scale.
    """
    runtime = open_runtime(seed=5, threads=1, precision="float32")
    model = GPT2(GPT2Config(31, 24, 2, 2, 16))
    state = TrainState(model, torch.optim.SGD(model.parameters(), 0.1), new_state().batches)
    fit(state, LanguageModelTask(), runtime, FitConfig(STEPS, accumulation, 0.0, lambda _: 0.1), [])
    return state


def test_two_processes_equal_one_that_accumulates(tmp_path: Path) -> None:
    """The sequences are ragged, so a mean of the processes' means would be another gradient."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(tmp_path / f"{rank}.pt")],
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    alone = trained(accumulation=2)
    for rank in range(2):
        saved = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert saved["targets"] == alone.targets
        for name, tensor in alone.model.state_dict().items():
            torch.testing.assert_close(saved[name], tensor, atol=1e-5, rtol=1e-4)


if __name__ == "__main__":
    state = trained(accumulation=1)
    # The raw model is what is kept: no name carries the wrapper's prefix.
    torch.save({**state.model.state_dict(), "targets": state.targets}, sys.argv[1])
    torch.distributed.destroy_process_group()
