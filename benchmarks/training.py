"""Training throughput of GPT-2 124M against transformers' own, in alternation in one run.

    python -m benchmarks.training [--rounds 3] [--batch 4] [--length 256] [--precision float32]

Random weights and tokens, AdamW step included, medians of the rounds. Compare the ratio, not the
tokens per second: machines differ and drift.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from gptmill.engine.batches import ShuffledBatches
from gptmill.engine.loop import FitConfig, fit
from gptmill.engine.optim import build_optimizer
from gptmill.engine.runtime import Runtime, open_runtime
from gptmill.engine.state import TrainState
from gptmill.model.gpt2 import GPT2, flops_per_token, gpt2_config
from gptmill.params import Optimizer
from gptmill.tasks.language_model import LanguageModelTask, TokenBatch

STEPS = 2  # per round; a step of 124M takes seconds on two cores


def batches(batch: int, length: int) -> ShuffledBatches:
    """Random ids of GPT-2's vocabulary."""
    rows = np.random.default_rng(0).integers(0, 50257, (batch, length + 1))
    return ShuffledBatches(
        rows, lambda chosen: TokenBatch(np.stack(chosen)[:, :-1], np.stack(chosen)[:, 1:]), batch, 0
    )


def ours(runtime: Runtime, batch: int, length: int) -> Callable[[], None]:
    """Two steps of our loop."""
    model = GPT2(gpt2_config("124M")).to(runtime.device)
    config = Optimizer(
        learning_rate=1e-4, final_learning_rate=1e-4, warmup_steps=0, weight_decay=0.1,
        beta1=0.9, beta2=0.95, gradient_clip=1.0, muon=0.0,
    )  # fmt: skip
    state = TrainState(model, build_optimizer(model, config), batches(batch, length))

    def run() -> None:
        steps = FitConfig(state.step + STEPS, 1, 1.0, lambda _: 1e-4)
        fit(state, LanguageModelTask(), runtime, steps, [])

    return run


def peer(runtime: Runtime, batch: int, length: int) -> Callable[[], None]:
    """The same with `transformers.GPT2LMHeadModel` and PyTorch's default AdamW."""
    from transformers import GPT2Config as PeerConfig
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel(PeerConfig()).to(runtime.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    source = batches(batch, length)

    def run() -> None:
        for _ in range(STEPS):
            inputs = runtime.tensor(source.next_batch().inputs)
            with runtime.autocast():
                loss = model(inputs, labels=inputs).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    runtime = open_runtime(seed=0, threads=options.threads, precision=options.precision)
    runs = {
        "gptmill": ours(runtime, options.batch, options.length),
        "transformers": peer(runtime, options.batch, options.length),
    }
    tokens = STEPS * options.batch * options.length
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # warm up
    for _ in range(options.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            speeds[name].append(tokens / (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    for name, speed in medians.items():
        print(f"{name:14} {speed:8.0f} tokens/s")
    flops = flops_per_token(gpt2_config("124M"), options.length) * medians["gptmill"]
    print(f"{'ratio':14} {medians['gptmill'] / medians['transformers']:8.2f}")
    print(f"{'MFU':14} {flops / runtime.peak_flops():8.2f}")


if __name__ == "__main__":
    main()
