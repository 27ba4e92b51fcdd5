"""`gptmill serve` against llama.cpp's server on the same model, the same requests, in turns.

    python -m venv llama && llama/bin/pip install xllamacpp==2026.10.11549
    python -m benchmarks.servers --llama llama/bin/python

Both stream `/v1/completions` of 64 tokens, sampled alike, to 1, 8 and 64 clients in a process of
their own each; both have as many requests at once and the same threads. The GGUF file, float32, is
`gptmill export gguf` of the folder that the ONNX model was exported from.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx

PROMPTS = ["One day", "Meg went to the market and", "The dog", "It was late when Tom", "Once"]
LLAMA = """
import sys, time
import xllamacpp as llama
path, batch, context, threads = sys.argv[1], *map(int, sys.argv[2:])
parameters = llama.CommonParams()
parameters.model.path, parameters.n_parallel = path, batch
parameters.n_ctx = context * batch
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
server = llama.Server(parameters)
print(server.listening_address, flush=True)
time.sleep(1e6)
"""


@contextmanager
def started(command: list[str]) -> Iterator[str]:
    """The address that a server prints."""
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    try:
        for line in server.stdout:
            if line.startswith("http"):
                break
        yield line.split()[0]
    finally:
        server.kill()
        server.wait()


async def client(http: httpx.AsyncClient, number: int, until: float, options) -> tuple[int, int]:
    """Requests and tokens of one client."""
    requests = tokens = 0
    while time.perf_counter() < until:
        body = {
            "model": options.model, "prompt": PROMPTS[(number + requests) % len(PROMPTS)],
            "max_tokens": options.tokens, "temperature": 0.8, "top_p": 0.9, "top_k": 40,
            "min_p": 0.0, "seed": requests, "stream": True, "ignore_eos": True,
        }  # fmt: skip
        try:
            async with http.stream("POST", "/v1/completions", json=body) as answer:
                answer.raise_for_status()
                last = [line async for line in answer.aiter_lines() if line][-1]
        except httpx.RemoteProtocolError:  # llama.cpp ends a connection after so many requests
            continue
        assert last == "data: [DONE]", last
        requests, tokens = requests + 1, tokens + options.tokens
    return requests, tokens


async def load(address: str, clients: int, options) -> float:
    """Tokens a second."""
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(
        base_url=address, limits=limits, timeout=300, trust_env=False, verify=False
    ) as http:
        started = time.perf_counter()
        until = started + options.seconds
        done = await asyncio.gather(*(client(http, n, until, options) for n in range(clients)))
        return sum(tokens for _, tokens in done) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama", type=Path, required=True, help="a Python that has xllamacpp")
    parser.add_argument("--folder", type=Path, default=Path("models/pretrained"))
    parser.add_argument("--models", type=Path, default=Path("models/onnx"))
    parser.add_argument("--model", default="language_model")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ours = [sys.executable, "-m", "gptmill.cli", "serve", "--models", str(options.models)]
    ours += ["--port", "0", "--max-batch", str(options.batch), "--threads", str(options.threads)]
    with tempfile.TemporaryDirectory() as folder:
        gguf = Path(folder) / "model.gguf"
        command = [sys.executable, "-m", "gptmill.cli", "export", "gguf", str(options.folder)]
        subprocess.run([*command, "--type", "f32", "--output", str(gguf)], check=True)
        theirs = [str(options.llama), "-c", LLAMA, str(gguf)]
        theirs += map(str, (options.batch, 128, options.threads))
        with started(ours) as gptmill, started(theirs) as llama:
            compare(gptmill, llama, options)


def compare(gptmill: str, llama: str, options: argparse.Namespace) -> None:
    """Rounds in turns, and their medians."""
    rates: dict[tuple[str, int], list[float]] = {}
    for address in (gptmill, llama):
        asyncio.run(load(address, 2, argparse.Namespace(**{**vars(options), "seconds": 1})))
    for _ in range(options.rounds):
        for clients in options.clients:
            for address in (gptmill, llama):
                rate = asyncio.run(load(address, clients, options))
                rates.setdefault((address, clients), []).append(rate)
    print("| clients | gptmill, tokens/s | llama.cpp | ratio |\n|---|---|---|---|")
    for clients in options.clients:
        ours, theirs = rates[gptmill, clients], rates[llama, clients]
        row = (
            f"{median(ours):,.0f}",
            f"{median(theirs):,.0f}",
            f"{median(ours) / median(theirs):.2f}",
        )
        print(f"| {clients} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
