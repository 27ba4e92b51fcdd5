"""Load on `gptmill serve`: many clients at once, against the same requests one at a time.

    python -m benchmarks.serving --models models/onnx --model language_model --seconds 120

Starts the server as a user would, in a process of its own, and streams from it over HTTP. A
stream is lost if it ends without its last line. Memory is the server's resident set.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil

PROMPTS = ["One day", "Meg went to the market and", "The dog", "It was late when Tom", "Once"]


@dataclass
class Load:
    """What clients met."""

    requests: int = 0
    tokens: int = 0
    lost: int = 0
    errors: Counter = field(default_factory=Counter)
    first_token: list[float] = field(default_factory=list)
    seconds: float = 0.0


async def one_request(client: httpx.AsyncClient, body: dict, load: Load) -> None:
    started = time.perf_counter()
    last = {}
    try:
        async with client.stream("POST", "/api/generate", json=body) as answer:
            if answer.status_code != 200:
                load.errors[answer.status_code] += 1
                return
            async for line in answer.aiter_lines():
                if not last:
                    load.first_token.append(time.perf_counter() - started)
                last = json.loads(line)
    except httpx.HTTPError as error:
        load.errors[type(error).__name__] += 1
        return
    if not last.get("done"):
        load.lost += 1
        return
    load.requests += 1
    load.tokens += last["eval_count"]


async def client_loop(client: httpx.AsyncClient, number: int, until: float, load: Load, options):
    turn = 0
    while time.perf_counter() < until:
        seed = number * 100_000 + turn
        body = {
            "model": options.model,
            "prompt": PROMPTS[seed % len(PROMPTS)],
            "options": {"num_predict": options.tokens, "seed": seed},
        }
        await one_request(client, body, load)
        turn += 1


async def run_clients(address: str, clients: int, seconds: float, options) -> Load:
    load = Load()
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(
        base_url=address, limits=limits, timeout=300, trust_env=False, verify=False
    ) as client:
        started = time.perf_counter()
        loops = [
            client_loop(client, number, started + seconds, load, options)
            for number in range(clients)
        ]
        await asyncio.gather(*loops)
        load.seconds = time.perf_counter() - started
    return load


async def with_memory(address: str, process: psutil.Process, options) -> tuple[Load, list[float]]:
    """The load, and the server's memory in MiB after 5% of it, at its middle and at its end."""
    work = asyncio.ensure_future(run_clients(address, options.clients, options.seconds, options))
    memory = []
    for share in (0.05, 0.45, 0.45):
        await asyncio.sleep(share * options.seconds)
        memory.append(process.memory_info().rss / 2**20)
    return await work, memory


def steps_and_rows(address: str, model: str) -> tuple[float, float]:
    """Steps of a model so far, and requests summed over them."""
    text = httpx.get(f"{address}/metrics").text
    steps, rows = (
        float(re.search(rf'gptmill_batch_size_{part}{{model="{model}"}} (\S+)', text)[1])
        for part in ("count", "sum")
    )
    return steps, rows


def report(name: str, load: Load) -> None:
    waits = sorted(load.first_token)
    middle, late = (waits[int(share * (len(waits) - 1))] for share in (0.5, 0.99))
    print(
        f"{name:10} {load.requests} requests, {load.requests / load.seconds:.1f}/s, "
        f"{load.tokens / load.seconds:.0f} tokens/s, errors {sum(load.errors.values())} "
        f"{dict(load.errors) or ''}, lost streams {load.lost}, first token after {middle:.3f} s "
        f"(median), {late:.3f} s (99%)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models/onnx"))
    parser.add_argument("--model", default="language_model")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--alone-seconds", type=float, default=10, help="of the one-at-a-time run")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer at most")
    parser.add_argument("--max-batch", type=int, default=16)
    options = parser.parse_args()
    command = [sys.executable, "-m", "gptmill.cli", "serve", "--models", str(options.models)]
    command += ["--port", "0", "--max-batch", str(options.max_batch)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().split()[0]
        process = psutil.Process(server.pid)
        asyncio.run(run_clients(address, 1, 1, options))  # warm-up
        alone = asyncio.run(run_clients(address, 1, options.alone_seconds, options))
        report("1 client", alone)
        before = steps_and_rows(address, options.model)
        together, memory = asyncio.run(with_memory(address, process, options))
        report(f"{options.clients} clients", together)
        steps, rows = np.subtract(steps_and_rows(address, options.model), before)
        ratio = (together.tokens / together.seconds) / (alone.tokens / alone.seconds)
        print(f"{ratio:.2f} × the tokens/s of one at a time; mean batch {rows / steps:.1f}")
        print("memory: " + ", ".join(f"{mib:.0f} MiB" for mib in memory))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
