"""Training throughput of GPT-2 124M against its peers' own code, in alternation in one run.

    GPTMILL_NANOGPT=<a checkout> PYTHONPATH=<llms-from-scratch> python -m benchmarks.training
        [--rounds 3] [--batch 4] [--length 256] [--precision float32]

Random weights and tokens, no dropout anywhere, each code's own loss and AdamW step included,
medians of the rounds; a peer whose code is not there is left out, and said so. Compare the ratios,
not the tokens per second: machines differ and drift. The limit beside them is what this machine's
matrix products alone would allow.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptmill.engine.batches import ShuffledBatches
from gptmill.engine.loop import FitConfig, fit
from gptmill.engine.optim import build_optimizer
from gptmill.engine.runtime import Runtime, open_runtime
from gptmill.engine.state import TrainState
from gptmill.model.config import flops_per_token, gpt2_config
from gptmill.model.gpt2 import GPT2
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
    model = GPT2(replace(gpt2_config("124M"), dropout=0.0)).to(runtime.device)
    config = Optimizer(
        learning_rate=1e-4, final_learning_rate=1e-4, warmup_steps=0, weight_decay=0.1,
        beta1=0.9, beta2=0.95, gradient_clip=1.0, muon=0.0,
    )  # fmt: skip
    state = TrainState(model, build_optimizer(model, config), batches(batch, length))

    def run() -> None:
        steps = FitConfig(state.step + STEPS, 1, 1.0, lambda _: 1e-4)
        fit(state, LanguageModelTask(), runtime, steps, [])

    return run


def stepping(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    runtime: Runtime,
    batch: int,
    length: int,
) -> Callable[[], None]:
    """Two steps of a peer's model, as its own loop takes them."""
    source = batches(batch, length)

    def run() -> None:
        for _ in range(STEPS):
            inputs, targets = map(runtime.tensor, map(np.ascontiguousarray, source.next_batch()))
            with runtime.autocast():
                value = loss(inputs, targets)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def transformers(runtime: Runtime, batch: int, length: int) -> Callable[[], None]:
    """`GPT2LMHeadModel` and PyTorch's default AdamW."""
    from transformers import GPT2Config as PeerConfig
    from transformers import GPT2LMHeadModel

    config = PeerConfig(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = GPT2LMHeadModel(config).to(runtime.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    return stepping(model, optimizer, lambda x, y: model(x, labels=x).loss, runtime, batch, length)


def nanogpt(runtime: Runtime, batch: int, length: int) -> Callable[[], None]:
    """nanoGPT's `model.py` and the optimizer that it configures."""
    sys.path.insert(0, os.environ["GPTMILL_NANOGPT"])
    from model import GPT, GPTConfig

    model = GPT(GPTConfig(vocab_size=50257, dropout=0.0)).to(runtime.device).train()
    optimizer = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), runtime.device.type)
    return stepping(model, optimizer, lambda x, y: model(x, y)[1], runtime, batch, length)


def book(runtime: Runtime, batch: int, length: int) -> Callable[[], None]:
    """The book's `GPTModel` with its loss and PyTorch's default AdamW."""
    from llms_from_scratch.ch04 import GPTModel

    settings = {
        "vocab_size": 50257, "context_length": 1024, "emb_dim": 768, "n_heads": 12,
        "n_layers": 12, "drop_rate": 0.0, "qkv_bias": True,
    }  # fmt: skip
    model = GPTModel(settings).to(runtime.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    return stepping(model, optimizer, loss, runtime, batch, length)


def contenders(runtime: Runtime, batch: int, length: int) -> dict[str, Callable[[], None]]:
    """Ours first; then the peers that are here."""
    runs = {"gptmill": ours(runtime, batch, length)}
    for name, peer in (("nanoGPT", nanogpt), ("transformers", transformers), ("the book", book)):
        try:
            runs[name] = peer(runtime, batch, length)
        except (ImportError, KeyError) as absent:
            print(f"{name} is not measured: {absent} is not here", file=sys.stderr)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    runtime = open_runtime(seed=0, threads=options.threads, precision=options.precision)
    runs = contenders(runtime, options.batch, options.length)
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
        print(f"{name:14} {speed:8.0f} tokens/s {medians['gptmill'] / speed:8.2f}")
    flops = flops_per_token(gpt2_config("124M"), options.length)
    limit = runtime.peak_flops()
    print(f"{'limit':14} {limit / flops:8.0f} tokens/s at {limit / 1e9:.0f} GFLOP/s")
    print(f"{'MFU':14} {flops * medians['gptmill'] / limit:8.2f}")


if __name__ == "__main__":
    main()
