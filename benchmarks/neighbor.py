"""What a busy neighbor on the same cores costs: each kind of work alone, then beside others.

    python -m benchmarks.neighbor [--busy 0 1 2] [--seconds 6] [--work training generation …]

Every measurement is a fresh process of this module beside that many processes that only count.
The share is the rate beside them over the rate alone in the same round. A machine that is shared
fairly leaves 2 / 3 of two cores beside one busy process and 1 / 2 beside two; the goal is at least
40% beside two. OMP_WAIT_POLICY=active shows what PyTorch does by itself.
"""

import argparse
import atexit
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np

from gptmill.engine.runtime import open_runtime  # before PyTorch: sets how threads wait

import torch  # isort: skip

from gptmill.engine.batches import ShuffledBatches
from gptmill.engine.loop import FitConfig, fit
from gptmill.engine.optim import build_optimizer
from gptmill.engine.state import TrainState
from gptmill.export.onnx import export_classifier, export_language_model
from gptmill.generate.loop import generate
from gptmill.generate.sampling import SamplingOptions
from gptmill.generate.torch_decoder import TorchDecoder
from gptmill.model.classifier import GPT2Classifier
from gptmill.model.config import GPT2Config, gpt2_config
from gptmill.model.gpt2 import GPT2
from gptmill.params import load
from gptmill.runtime.session import Classifier, Generator
from gptmill.tasks.language_model import LanguageModelTask, TokenBatch, batch_loss
from gptmill.tokenizer import BytePairTokenizer, byte_pairs_from_merges
from gptmill.weights.folder import save_model

SMALL = GPT2Config(1024, 128, layers=4, heads=4, width=128)  # the default profile's
THREADS, ROWS, LENGTH = 2, 12, 87
Work = Callable[[], int]  # does some and returns how much


def batch(config: GPT2Config, rows: int, length: int) -> TokenBatch:
    ids = np.random.default_rng(0).integers(0, config.vocabulary_size, (rows, length + 1))
    return TokenBatch(ids[:, :-1], ids[:, 1:])


def training(
    config: GPT2Config = SMALL, rows: int = ROWS, length: int = LENGTH, muon: float = 7.0
) -> Work:
    """Tokens of one optimizer step."""
    runtime = open_runtime(seed=0, threads=THREADS, precision="float32")
    model = GPT2(config)
    values = load().pretrain.optimizer.model_copy(update={"muon": muon})
    optimizer = build_optimizer(model, values, runtime.workers(model))
    one = batch(config, rows, length)
    batches = ShuffledBatches([one], lambda chosen: chosen[0], 1, 0)
    state = TrainState(model, optimizer, batches)

    def step() -> int:
        fit(state, LanguageModelTask(), runtime, FitConfig(state.step + 1, 1, 1.0, rate), [])
        return one.inputs.size

    def rate(step: int) -> float:
        return 1e-4

    return step


def training_with_dropout() -> Work:
    """The same with dropout, whose draws no threads share: its kernels are left to OpenMP."""
    return training(replace(SMALL, dropout=0.1))


def training_124m() -> Work:
    """The same of 124M parameters, 4 × 256 tokens, AdamW."""
    return training(gpt2_config("124M"), 4, 256, muon=0.0)


def evaluation() -> Work:
    """Tokens of sixteen batches without gradients."""
    runtime = open_runtime(seed=0, threads=THREADS, precision="float32")
    model, batches = GPT2(SMALL), [batch(SMALL, 32, LENGTH)] * 16

    def evaluate() -> int:
        batch_loss(model, batches, runtime)
        return 16 * batches[0].inputs.size

    return evaluate


def generation_124m() -> Work:
    """Tokens of one row in PyTorch."""
    return generation(gpt2_config("124M"), 1)


def generation(config: GPT2Config = SMALL, rows: int = 32) -> Work:
    """Tokens in PyTorch, two batches as the stage `respond` shares them out."""
    runtime = open_runtime(seed=0, threads=THREADS, precision="float32")
    model, options = GPT2(config).eval(), SamplingOptions(max_new_tokens=40)
    prompts = batch(SMALL, rows, 20).inputs.tolist()
    tokenizer = tokenizer_of(config.vocabulary_size)

    def answer(rows: list[list[int]]) -> int:
        made = generate(TorchDecoder(model), tokenizer, rows, options)
        return sum(len(completion.ids) for completion in made)

    def write() -> int:
        with runtime.workers(model) as workers:
            return sum(
                workers.map(answer, [part for part in (prompts[::2], prompts[1::2]) if part])
            )

    return write


def onnx_generation(config: GPT2Config = SMALL) -> Work:
    """Tokens of one continuation in ONNX Runtime."""
    generator = Generator(exported(GPT2(config)), THREADS)
    options = SamplingOptions(max_new_tokens=60)

    def write() -> int:
        return sum(1 for _ in generator.stream([1, 2, 3], options))

    return write


def onnx_generation_124m() -> Work:
    return onnx_generation(gpt2_config("124M"))


def onnx_classification() -> Work:
    """Texts of about 80 tokens in ONNX Runtime."""
    classifier = Classifier(exported(GPT2Classifier(SMALL, 2)), THREADS)
    texts = ["some words and more of them, and one more " * 2] * 64

    def classify() -> int:
        return len(classifier.classify(texts))

    return classify


def server() -> Work:
    """Tokens of eight requests at once to `gptmill serve`, a process of its own, over HTTP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    models = exported(GPT2(SMALL)).parent
    command = [sys.executable, "-m", "gptmill.cli", "serve", "--models", str(models)]
    process = subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.DEVNULL)
    atexit.register(process.kill)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
    body = {"model": "onnx", "prompt": "a", "stream": False, "options": {"num_predict": 40}}

    def ask(_: int) -> int:
        return client.post("/api/generate", json=body).raise_for_status().json()["eval_count"]

    def ask_all() -> int:
        with ThreadPoolExecutor(8) as pool:
            return sum(pool.map(ask, range(8)))

    for _ in range(200):
        try:
            client.get("/api/version")
            return ask_all
        except httpx.TransportError:
            time.sleep(0.1)
    raise TimeoutError("gptmill serve did not answer within 20 seconds")


def export() -> Work:
    """Models exported to ONNX with their session opened."""
    model = GPT2(SMALL)

    def write() -> int:
        exported(model)
        return 1

    return write


def exported(model: GPT2 | GPT2Classifier) -> Path:
    """A model's ONNX folder, in a temporary place that lives as long as this process."""
    root = Path(tempfile.mkdtemp())
    tokenizer = tokenizer_of(model.config.vocabulary_size)
    save_model(root / "model", model.eval(), tokenizer, provenance={})
    write = export_classifier if isinstance(model, GPT2Classifier) else export_language_model
    write(root / "model", root / "onnx", opset=20)
    return root / "onnx"


def tokenizer_of(size: int) -> BytePairTokenizer:
    """Byte pairs of so many tokens: letters, pairs and triples of letters."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    merges = [(a, b) for a in letters for b in letters]
    merges += [(a + b, c) for a in letters for b in letters for c in letters]
    return byte_pairs_from_merges(merges[: size - 257])


WORKS: dict[str, Callable[[], Work]] = {
    work.__name__: work
    for work in (
        training, training_with_dropout, training_124m, evaluation, generation, generation_124m,
        onnx_generation, onnx_generation_124m, onnx_classification, export, server,
    )
}  # fmt: skip


def measure(work: str, seconds: float) -> None:
    """Print the median rate of one kind of work, in this process."""
    run = WORKS[work]()
    run()
    rates, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(rates) < 3:
        start = time.perf_counter()
        done = run()
        rates.append(done / (time.perf_counter() - start))
    print(statistics.harmonic_mean(rates))


def rate_beside(work: str, busy: int, seconds: float) -> float:
    """The rate of a fresh process beside `busy` others."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    command = [sys.executable, "-m", "benchmarks.neighbor", "--measure", work]
    try:
        done = subprocess.run(
            [*command, "--seconds", str(seconds)], capture_output=True, text=True, check=True
        )
    finally:
        for other in others:
            other.kill()
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", nargs="*", choices=WORKS, default=list(WORKS))
    parser.add_argument("--busy", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--measure", choices=WORKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        torch.manual_seed(0)
        measure(options.measure, options.seconds)
        return
    print(f"{'':22}" + "".join(f"{f'beside {busy}':>16}" for busy in options.busy))
    for work in options.work:
        rates = [rate_beside(work, busy, options.seconds) for busy in options.busy]
        cells = [f"{rate:9.1f} {rate / rates[0]:5.0%}" for rate in rates]
        print(f"{work:22}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
