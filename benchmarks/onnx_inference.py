"""ONNX Runtime against PyTorch, Optimum's export and llama.cpp, on the same random weights.

    python -m benchmarks.onnx_inference --size 124M --threads 2

Contenders take turns within a round, and every figure is the median of the rounds: batch-1
generation in tokens/s, a classifier of 120-token texts in milliseconds a batch, and the seconds
from the start of a fresh process to its first token. The floor of generation is reading the
weights once a token: its share of the machine's memory bandwidth, measured by summing an array in
PyTorch, stands beside it. The last table holds each ratio against its goal.

Optimum and llama.cpp have environments of their own: GPTMILL_OPTIMUM_PYTHON names a Python with
`optimum-onnx[onnxruntime]` and torch, GPTMILL_LLAMA_PYTHON one with `xllamacpp`; without them
their goals are not measured, and said so.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from gptmill.export.gguf import export_gguf
from gptmill.export.onnx import export_classifier, export_language_model
from gptmill.export.quantize import quantized
from gptmill.generate.loop import Decoder
from gptmill.generate.torch_decoder import TorchDecoder
from gptmill.model.classifier import GPT2Classifier
from gptmill.model.config import GPT2_SIZES, gpt2_config
from gptmill.model.gpt2 import GPT2
from gptmill.runtime.session import OnnxDecoder, open_session
from gptmill.tokenizer import byte_pairs_from_merges
from gptmill.weights.folder import load_classifier, load_language_model, save_model

PROMPT = [464, 3280, 318, 25]
TEXT_TOKENS = 120
CLASSIFIER_BATCHES = (1, 32)
METHODS = {
    "language_model": ("weights8", "weights4", "dynamic8"),
    "classifier": ("weights8", "dynamic8"),
}
TORCH, FLOAT = "PyTorch float32", "ONNX float32"
OPTIMUM, LLAMA = "Optimum's export", "llama.cpp q8_0"
INT8 = ("ONNX weights8", "ONNX dynamic8")
FIRST_TOKEN_GOAL = 1.5  # seconds
# Peers in other environments answer each line of "prompt ids, tokens" with tokens per second.
OPTIMUM_PEER = """
import json, sys, time
import onnxruntime, torch
from optimum.onnxruntime import ORTModelForCausalLM
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
model = ORTModelForCausalLM.from_pretrained(sys.argv[1], export=True, session_options=options)
for line in sys.stdin:
    ids, tokens = json.loads(line)
    ids = torch.tensor([ids])
    start = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), min_new_tokens=tokens,
                   max_new_tokens=tokens, do_sample=False)
    print("RATE", tokens / (time.perf_counter() - start), flush=True)
"""
LLAMA_PEER = """
import json, sys, time, urllib.request
import xllamacpp as llama
parameters = llama.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.n_parallel = sys.argv[1], 1024, 1
parameters.cpuparams.n_threads = int(sys.argv[2])
server = llama.Server(parameters)
for line in sys.stdin:
    ids, tokens = json.loads(line)
    body = {"prompt": ids, "n_predict": tokens, "temperature": 0, "ignore_eos": True,
            "cache_prompt": False}
    request = urllib.request.Request(f"{server.listening_address}/completion",
                                     json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    start = time.perf_counter()
    made = json.load(urllib.request.urlopen(request))["tokens_predicted"]
    print("RATE", made / (time.perf_counter() - start), flush=True)
"""
FIRST_TOKEN = """
import time
from gptmill.generate.sampling import SamplingOptions
from gptmill.runtime.session import Generator
generator = Generator({folder!r}, {threads})
next(generator.stream({prompt}, SamplingOptions(max_new_tokens=4)))
print(time.monotonic())
"""


def write_models(root: Path, size: str, opset: int = 20) -> None:
    """Model folders under `models`, ONNX folders of every precision under `onnx`."""
    torch.manual_seed(0)
    # A tokenizer's files as large as GPT-2's own: 50,000 merges that make distinct tokens.
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    pairs = [(a, b) for a in letters for b in letters]
    triples = [(a + b, c) for a in letters for b in letters for c in letters]
    tokenizer = byte_pairs_from_merges([*pairs, *triples][:50_000])
    config = gpt2_config(size)
    models = {"language_model": GPT2(config), "classifier": GPT2Classifier(config, 2)}
    for name, model in models.items():
        folder = root / "models" / name
        save_model(folder, model.eval(), tokenizer, provenance={})
        export = export_language_model if name == "language_model" else export_classifier
        export(folder, root / "onnx" / name / "float32", opset=opset)
        for method in METHODS[name]:
            output = root / "onnx" / name / method
            export(folder, output, opset=opset, layers=quantized(method))
    export_gguf(root / "models" / "language_model", root / "q8_0.gguf", "q8_0")


def contenders(root: Path, kind: str, size: str, threads: int) -> dict[str, Callable[..., object]]:
    """Decoders (`language_model`) or functions of a batch size (`classifier`), by name."""
    onnx = {path.name: path for path in sorted((root / "onnx" / kind).iterdir())}
    if kind == "language_model":
        context = gpt2_config(size).context_length
        found = {"PyTorch float32": TorchDecoder(load_language_model(root / "models" / kind))}
        for name, path in onnx.items():
            found[f"ONNX {name}"] = OnnxDecoder(open_session(path, threads), context)
        return found
    found = {"PyTorch float32": torch_classifier(root / "models" / kind)}
    for name, path in onnx.items():
        found[f"ONNX {name}"] = onnx_classifier(path, threads)
    return found


def classifier_batch(batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 50_000, (batch, TEXT_TOKENS))


def torch_classifier(folder: Path) -> Callable[[int], object]:
    model = load_classifier(folder)

    def classify(batch: int) -> object:
        ids = torch.from_numpy(classifier_batch(batch))
        with torch.inference_mode():
            return model(ids, torch.ones_like(ids))

    return classify


def onnx_classifier(folder: Path, threads: int) -> Callable[[int], object]:
    session = open_session(folder, threads)

    def classify(batch: int) -> object:
        ids = classifier_batch(batch)
        return session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})

    return classify


class Peer:
    """Another environment's Python that generates when asked; `with` ends it."""

    def __init__(self, python: str, script: str, model: Path, threads: int) -> None:
        self._process = subprocess.Popen(
            [python, "-c", script, str(model), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )

    def tokens_per_second(self, tokens: int) -> float:
        self._process.stdin.write(json.dumps([PROMPT, tokens]) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("RATE "):
                return float(line.split()[1])
        raise RuntimeError(f"{self._process.args[0]} ended: does it have the peer's packages?")

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def peers(root: Path, threads: int) -> dict[str, Peer]:
    """Those whose environments are named."""
    known = {
        OPTIMUM: ("GPTMILL_OPTIMUM_PYTHON", OPTIMUM_PEER, root / "models" / "language_model"),
        LLAMA: ("GPTMILL_LLAMA_PYTHON", LLAMA_PEER, root / "q8_0.gguf"),
    }
    return {
        name: Peer(os.environ[variable], script, model, threads)
        for name, (variable, script, model) in known.items()
        if os.environ.get(variable)
    }


def tokens_per_second(decoder: Decoder, tokens: int) -> float:
    """Greedy, batch 1, the prompt's prefill included."""
    start = time.perf_counter()
    logits = decoder.prefill(np.array([PROMPT]), np.ones((1, len(PROMPT)), np.int64))
    for _ in range(tokens - 1):
        logits = decoder.step(logits.argmax(axis=1))
    return tokens / (time.perf_counter() - start)


def milliseconds(classify: Callable[[int], object], batch: int) -> float:
    start = time.perf_counter()
    classify(batch)
    return 1000 * (time.perf_counter() - start)


def first_token_seconds(folder: Path, threads: int) -> float:
    """From before a process is started to its first token, the file in the system's cache."""
    script = FIRST_TOKEN.format(folder=str(folder), threads=threads, prompt=PROMPT)
    start = time.monotonic()
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    return float(printed.stdout) - start


def bandwidth() -> float:
    """Bytes per second of reading 512 MiB, the best of ten."""
    values = torch.ones(2**27)

    def seconds() -> float:
        start = time.perf_counter()
        values.sum()
        return time.perf_counter() - start

    return values.nbytes / min(seconds() for _ in range(10))


def in_turns(measures: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median of each measure, all measured once a round after one warm-up."""
    for measure in measures.values():
        measure()
    results = [{name: measure() for name, measure in measures.items()} for _ in range(rounds)]
    return {name: statistics.median(result[name] for result in results) for name in measures}


def compare_generation(
    root: Path, size: str, threads: int, tokens: int, rounds: int
) -> dict[str, float]:
    """Tokens per second of each."""
    decoders = contenders(root, "language_model", size, threads)
    measures = {
        name: lambda decoder=decoder: tokens_per_second(decoder, tokens)
        for name, decoder in decoders.items()
    }
    weights = 4 * sum(p.numel() for p in decoders[TORCH].model.parameters())
    sizes = {LLAMA: (root / "q8_0.gguf").stat().st_size}
    for name in decoders:
        file = root / "onnx" / "language_model" / name.removeprefix("ONNX ") / "model.onnx"
        sizes[name] = file.stat().st_size if file.exists() else weights
    speed = bandwidth()
    print(f"\ngeneration, batch 1, {len(PROMPT)} + {tokens} tokens; memory {speed / 1e9:.1f} GB/s")
    with ExitStack() as stack:
        for name, peer in peers(root, threads).items():
            stack.enter_context(peer)
            measures[name] = lambda peer=peer: peer.tokens_per_second(tokens)
        results = in_turns(measures, rounds)
    for name, rate in results.items():
        share = sizes.get(name, weights) * rate / speed
        print(
            f"{name:22}{rate:8.1f} tokens/s{rate / results[TORCH]:7.2f} × PyTorch"
            f"{share:6.0%} of memory bandwidth"
        )
    return results


def compare_classifier(
    root: Path, size: str, threads: int, rounds: int
) -> dict[int, dict[str, float]]:
    """Milliseconds of each, by batch size."""
    functions = contenders(root, "classifier", size, threads)
    found = {}
    for batch in CLASSIFIER_BATCHES:
        print(f"\nclassifier, {batch} × {TEXT_TOKENS} tokens")
        measures = {
            name: lambda function=function, batch=batch: milliseconds(function, batch)
            for name, function in functions.items()
        }
        found[batch] = in_turns(measures, rounds if batch == 1 else 1)
        for name, took in found[batch].items():
            print(f"{name:22}{took:8.1f} ms{found[batch][TORCH] / took:7.2f} × PyTorch")
    return found


def compare_cold_start(root: Path, threads: int, rounds: int) -> float:
    """Seconds to the first token in float32."""
    print("\nfirst token, from the start of the process")
    found = {}
    for path in sorted((root / "onnx" / "language_model").iterdir()):
        seconds = [first_token_seconds(path, threads) for _ in range(rounds + 1)][1:]
        found[path.name] = statistics.median(seconds)
        print(f"ONNX {path.name:17}{found[path.name]:8.2f} s")
    return found["float32"]


def print_goals(
    first_token: float, rates: dict[str, float], batches: dict[int, dict[str, float]]
) -> None:
    """Each ratio beside its goal."""
    int8 = max(INT8, key=lambda name: rates[name])
    rows = [
        ("generation: ONNX float32 / PyTorch", ratio(rates, FLOAT, TORCH), 1.0),
        ("generation: ONNX float32 / Optimum's export", ratio(rates, FLOAT, OPTIMUM), 1.0),
        (f"generation: {int8} / float32", ratio(rates, int8, FLOAT), 2.0),
        (f"generation: {int8} / llama.cpp q8_0", ratio(rates, int8, LLAMA), 0.8),
    ]
    for batch, goal in zip(CLASSIFIER_BATCHES, (1.2, 1.0)):
        took = batches[batch]
        int8 = min(INT8, key=lambda name, took=took: took[name])
        rows += [
            (f"classifier × {batch}: ONNX float32 / PyTorch", ratio(took, TORCH, FLOAT), goal),
            (f"classifier × {batch}: {int8} / float32", ratio(took, FLOAT, int8), 1.5),
        ]
    print(f"\n{'goal':52}{'reached':>8}{'goal':>7}")
    for name, reached, goal in rows:
        if reached is None:
            print(f"{name:52}{'–':>8}{goal:7.1f}  not measured")
        else:
            print(f"{name:52}{reached:8.2f}{goal:7.1f}  {'met' if reached >= goal else 'missed'}")
    verdict = "met" if first_token < FIRST_TOKEN_GOAL else "missed"
    print(f"{'first token, seconds':52}{first_token:8.2f}{FIRST_TOKEN_GOAL:7.1f}  {verdict}")


def ratio(values: dict[str, float], over: str, under: str) -> float | None:
    """None where either was not measured."""
    return values[over] / values[under] if over in values and under in values else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(GPT2_SIZES), default="124M")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_models(root, options.size)
        print(f"{options.size}, {options.threads} threads, median of {options.rounds} rounds")
        first = compare_cold_start(root, options.threads, options.rounds)
        rates = compare_generation(
            root, options.size, options.threads, options.tokens, options.rounds
        )
        batches = compare_classifier(root, options.size, options.threads, options.rounds)
        print_goals(first, rates, batches)


if __name__ == "__main__":
    main()
