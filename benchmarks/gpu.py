"""What a GPU makes of it: Tiny Shakespeare's GPU recipe, 124M against nanoGPT, two precisions.

    GPTMILL_MIRROR=… python -m benchmarks.gpu shakespeare
    GPTMILL_NANOGPT=… python -m benchmarks.gpu throughput --batch 16 --length 1024
    python -m benchmarks.gpu precision --steps 200

- `shakespeare` runs the profile `shakespeare_gpu` to its end in a folder of its own: seconds of
  wall time with start and compilation, and the validation loss, to be compared with nanoGPT's
  published 1.4697.
- `throughput` trains 124M in bfloat16, compiled, and in the same run nanoGPT's own `train.py` (in a
  checkout of it; none of it is here) on the same shape: tokens a second, share of
  the measured matrix product, peak memory. Goals: 1.1 times nanoGPT's, 55% of the product.
- `precision` trains the same model from the same weights on the same batches in float32 and in
  bfloat16: the largest difference of the two losses, each a mean of ten steps. Goal: 1e-2.

No GPU was at hand where this was written; `--size tiny --device cpu` walks through each of them.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.shakespeare import Ours, timed
from gptmill.engine.batches import ShuffledBatches
from gptmill.engine.hooks import StepResult
from gptmill.engine.loop import FitConfig, fit
from gptmill.engine.optim import build_optimizer
from gptmill.engine.runtime import Runtime, open_runtime
from gptmill.engine.state import TrainState
from gptmill.files import read_json
from gptmill.model.config import GPT2Config, flops_per_token, gpt2_config
from gptmill.model.gpt2 import GPT2
from gptmill.params import Optimizer
from gptmill.tasks.language_model import LanguageModelTask, TokenBatch

NANOGPTS_LOSS = 1.4697  # its README, config/train_shakespeare_char.py on one A100
WARM_UP, MEASURED = 10, 30  # steps
AVERAGED = 10  # steps behind a compared loss
ADAMW = Optimizer(
    learning_rate=6e-4, final_learning_rate=6e-4, warmup_steps=0, weight_decay=0.1,
    beta1=0.9, beta2=0.95, gradient_clip=1.0, muon=0.0,
)  # fmt: skip


def model_config(size: str, length: int) -> GPT2Config:
    """An OpenAI size without dropout, or `tiny`, to walk through on a CPU."""
    if size == "tiny":
        return GPT2Config(256, length, 2, 2, 32)
    return replace(gpt2_config(size), context_length=length, dropout=0.0)


def train(
    runtime: Runtime, config: GPT2Config, batch: int, steps: int
) -> tuple[list[float], list[float]]:
    """Losses, and the moment each step was done, of training on rows that repeat often enough to
    be learned."""
    torch.manual_seed(0)
    rows = np.random.default_rng(0).integers(
        0, config.vocabulary_size, (4 * batch, config.context_length + 1)
    )
    batches = ShuffledBatches(
        rows, lambda chosen: TokenBatch(np.stack(chosen)[:, :-1], np.stack(chosen)[:, 1:]), batch, 0
    )
    model = GPT2(config).to(runtime.device)
    state = TrainState(model, build_optimizer(model, ADAMW, runtime.workers(model)), batches)
    losses, moments = [], []

    def record(state: TrainState, result: StepResult) -> None:
        losses.append(result.loss.item())
        moments.append(time.perf_counter())

    settings = FitConfig(steps, 1, ADAMW.gradient_clip, lambda step: ADAMW.learning_rate)
    fit(state, LanguageModelTask(), runtime, settings, [record])
    return losses, moments


def shakespeare(options: argparse.Namespace) -> None:
    """The pipeline's own stage under the profile, from the start of its process."""
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(Path.cwd(), Path(folder), os.cpu_count() or 1)
        ours.run("-m", "gptmill.cli", "profile", "shakespeare_gpu")
        if options.size == "tiny":
            shorten(ours.project / "params.yaml")
        took = timed(
            lambda: ours.run(
                "-m", "stages.pretrain", "--tokens", "data/tokens", "--output", "models/pretrained",
                "--metrics", "pretrain.json", "--plots", "plots",
            )
        )  # fmt: skip
        metrics = read_json(ours.project / "pretrain.json")
    print(f"validation loss {metrics['validation/loss']:.4f} (nanoGPT {NANOGPTS_LOSS})")
    print(", ".join(f"{name} {value:.1f}" for name, value in took.items()))


def shorten(params: Path) -> None:
    """A few steps of a small model, to see that the way is open."""
    text = params.read_text()
    for name, value in (("steps", 4), ("layers", 1), ("width", 48), ("context_length", 16),
                        ("evaluation_stride", 16), ("max_new_tokens", 8)):  # fmt: skip
        # The first alone: `study` has steps of its own, and at least twenty.
        text = re.sub(rf"\b{name}: \d+", f"{name}: {value}", text, count=1)
    params.write_text(text.replace("compile: true", "compile: false"))


def throughput(options: argparse.Namespace) -> None:
    """Tokens a second of ours and of nanoGPT's `train.py`, one after the other."""
    runtime = open_runtime(0, os.cpu_count() or 1, options.precision, options.compile)
    config = model_config(options.size, options.length)
    if runtime.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    _, moments = train(runtime, config, options.batch, WARM_UP + MEASURED)
    step = statistics.median(np.diff(moments[WARM_UP:]))
    tokens = options.batch * options.length / step
    share = tokens * flops_per_token(config, options.length) / runtime.peak_flops()
    print(f"gptmill  {tokens:10.0f} tokens/s, {share:.0%} of the matrix product")
    if runtime.device.type == "cuda":
        print(f"         {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")
    if options.nanogpt:
        theirs = options.batch * options.length / nanogpts_step(options, config)
        print(f"nanoGPT  {theirs:10.0f} tokens/s; ratio {tokens / theirs:.2f}")


def nanogpts_step(options: argparse.Namespace, config: GPT2Config) -> float:
    """The median step that nanoGPT's own loop reports, in seconds, on random ids of its format;
    in a copy of the checkout, so that nothing is left in it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "nanoGPT"
        shutil.copytree(options.nanogpt, copy, ignore=shutil.ignore_patterns(".git"))
        (copy / "data/random").mkdir()
        ids = np.random.default_rng(0).integers(0, config.vocabulary_size, 1 << 20)
        for split in ("train", "val"):
            ids.astype(np.uint16).tofile(copy / f"data/random/{split}.bin")
        settings = {
            "dataset": "random", "out_dir": folder, "batch_size": options.batch,
            "block_size": options.length, "gradient_accumulation_steps": 1,
            "n_layer": config.layers, "n_head": config.heads, "n_embd": config.width,
            "dropout": 0.0, "bias": True, "max_iters": WARM_UP + MEASURED,
            "eval_interval": 10**6, "eval_iters": 1, "log_interval": 1,
            "device": options.device, "dtype": options.precision,
            "compile": options.compile, "always_save_checkpoint": False,
        }  # fmt: skip
        given = [f"--{name}={value}" for name, value in settings.items()]
        output = subprocess.run(
            [sys.executable, "train.py", *given],
            cwd=copy, check=True, stdout=subprocess.PIPE, text=True,
        ).stdout  # fmt: skip
    times = [float(found) for found in re.findall(r"time ([\d.]+)ms", output)]
    return statistics.median(times[WARM_UP:]) / 1000


def precision(options: argparse.Namespace) -> None:
    """The same training in float32 and bfloat16, losses smoothed over ten steps."""
    config = model_config(options.size, options.length)
    curves = []
    for name in ("float32", "bfloat16"):
        runtime = open_runtime(0, os.cpu_count() or 1, name, options.compile)
        losses, _ = train(runtime, config, options.batch, options.steps)
        curves.append(np.array(losses).reshape(-1, AVERAGED).mean(axis=1))
        print(f"{name:9} first {losses[0]:.4f}, last {losses[-1]:.4f}")
    difference = float(np.abs(curves[0] - curves[1]).max())
    print(f"largest difference of {AVERAGED}-step means: {difference:.2e} (goal 1e-2)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["shakespeare", "throughput", "precision"])
    checkout = os.environ.get("GPTMILL_NANOGPT")
    parser.add_argument(
        "--nanogpt", type=Path, default=checkout and Path(checkout), help="a checkout of nanoGPT"
    )
    parser.add_argument("--size", default="124M", help="an OpenAI size, or tiny")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=200, help="of `precision`, a multiple of ten")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    os.environ["GPTMILL_DEVICE"] = options.device
    {"shakespeare": shakespeare, "throughput": throughput, "precision": precision}[options.what](
        options
    )


if __name__ == "__main__":
    main()
