"""Memory of each of two processes in training, against `gptmill.plan.cluster`.

`python -m benchmarks.cluster_memory`: under each strategy two processes take three steps of a model
of 38 million parameters; what their memory grew by is held against the formula.
"""

import gc
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from gptmill.engine.loop import FitConfig, fit
from gptmill.engine.optim import build_optimizer
from gptmill.engine.runtime import Runtime, open_runtime
from gptmill.engine.state import TrainState
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.params import Launch, load
from gptmill.plan.activations import Compute
from gptmill.plan.cluster import memory_of
from gptmill.plan.memory import Shape
from gptmill.plan.sizes import language_model_size
from gptmill.process.launch import launch
from gptmill.tasks.language_model import LanguageModelTask, TokenBatch

CONFIG = GPT2Config(8192, 256, 10, 8, 512)
ROWS, ACCUMULATION, STEPS = 8, 2, 3
OPTIMIZER = load().pretrain.optimizer.model_copy(update={"muon": 0.0})


class Random:
    """Random ids, the same in every process."""

    batches_per_epoch = 1

    def next_rows(self) -> np.ndarray:
        return np.arange(ROWS)

    def batch_of(self, rows: np.ndarray) -> TokenBatch:
        ids = np.random.default_rng(0).integers(0, CONFIG.vocabulary_size, (len(rows), 257))
        return TokenBatch(ids[:, :-1], ids[:, 1:])

    def state_dict(self) -> dict[str, int]:
        return {}


def section(strategy: str, processes: int) -> Launch:
    return Launch(
        processes=processes, nodes=1, minimum_nodes=1, rendezvous="", strategy=strategy,
        cpu_offload=False, activation_checkpointing=False, restarts=0,
    )  # fmt: skip


def train(config: GPT2Config, runtime: Runtime) -> None:
    """A few steps, with the best weights kept."""
    model = GPT2(config)
    spread = runtime.spread(model)
    whole = model if spread is not model else None
    del model
    state = TrainState(spread, build_optimizer(spread, OPTIMIZER), Random(), whole_model=whole)
    state.keep_best(1.0)
    settings = FitConfig(STEPS, ACCUMULATION, 1.0, lambda _: 1e-3)
    fit(state, LanguageModelTask(), runtime, settings, [])


def work(strategy: str, processes: int) -> None:
    """One of the processes."""
    runtime = open_runtime(0, threads=2, precision="float32", launch=section(strategy, processes))
    train(replace(CONFIG, layers=1, width=8), runtime)  # all that is imported on the way
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident size from here on
    before = resident("VmRSS")
    train(CONFIG, runtime)
    measured = resident("VmHWM") - before
    size = language_model_size(CONFIG, OPTIMIZER)
    shape = Shape(ROWS // processes, CONFIG.context_length, ACCUMULATION)
    planned = memory_of(size, CONFIG, shape, Compute(half=False), strategy, processes).total
    if runtime.first:
        print(f"| {strategy} | {processes} | {measured / 1e6:.0f} | {planned / 1e6:.0f} | "
              f"{planned / measured:.2f} |", flush=True)  # fmt: skip


def resident(name: str) -> int:
    """A figure of Linux's about this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    if sys.argv[1:]:
        work(sys.argv[1], int(sys.argv[2]))
    else:
        print("| strategy | processes | measured, MB | planned | ratio |\n|---|---|---|---|---|")
        for strategy, processes in (("ddp", 2), ("fsdp2", 2), ("fsdp2", 4)):
            arguments = [strategy, str(processes)]
            launch(section(strategy, processes), "benchmarks.cluster_memory", arguments)
