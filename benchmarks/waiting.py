"""What clients of `gptmill serve` wait for, on a model of random weights and 1,024 positions.

    python -m benchmarks.waiting first --size 12x768     # the first token of each turn of a chat
    python -m benchmarks.waiting gaps --streams 4        # between two tokens, beside long prompts

`first` asks two servers the same in turns, one with `--prefix-cache 0`. `gaps` streams alone and
then beside prompts of 1,000 tokens, one after the other, in alternating rounds of the same server;
of the latter only the gaps count in which such a prompt was there.
Times are a client's, over HTTP.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np

from gptmill.export.onnx import export_language_model
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.tokenizer import train_byte_pairs
from gptmill.weights.folder import save_model

TEXT = "".join(chr(32 + (7 * n * n + n) % 94) for n in range(4000))
VOCABULARY = 320


def make_model(folder: Path, layers: int, width: int) -> None:
    """An ONNX folder `random` under `folder`."""
    tokenizer = train_byte_pairs([TEXT], VOCABULARY)
    config = GPT2Config(
        tokenizer.vocabulary_size, 1024, layers=layers, heads=max(1, width // 64), width=width
    )
    save_model(folder / "plain", GPT2(config).eval(), tokenizer, provenance={})
    export_language_model(folder / "plain", folder / "onnx" / "random", opset=20)


@contextmanager
def serving(models: Path, *more: str) -> Iterator[str]:
    """The address of a server in a process of its own."""
    command = [sys.executable, "-m", "gptmill.cli", "serve", "--port", "0", "--models", str(models)]
    server = subprocess.Popen([*command, *more], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().split()[0]
    finally:
        server.terminate()
        server.wait()


async def stream(
    client: httpx.AsyncClient, ids: list[int], tokens: int
) -> tuple[float, list[float], str]:
    """When the request was sent, when each of its tokens came, and the text."""
    body = {
        "model": "random", "prompt": ids, "max_tokens": tokens, "temperature": 0, "stream": True,
        "ignore_eos": True,
    }  # fmt: skip
    sent, times, text = time.perf_counter(), [], ""
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                times.append(time.perf_counter())
                text += json.loads(line[6:])["choices"][0]["text"]
    return sent, times, text


def random_ids(draw: np.random.Generator, tokens: int) -> list[int]:
    return draw.integers(0, VOCABULARY - 64, tokens).tolist()


async def first_tokens(addresses: list[str], options: argparse.Namespace) -> None:
    """Chats of several turns behind one long beginning, each turn asked of every server."""
    draw = np.random.default_rng(0)
    waits: list[list[list[float]]] = [[[] for _ in range(options.turns)] for _ in addresses]
    clients = [client_of(address) for address in addresses]
    for client in clients:
        await stream(client, random_ids(draw, 8), 4)  # it is open
    for _ in range(options.rounds):
        history = random_ids(draw, 700)
        for turn in range(options.turns):
            history += random_ids(draw, 20)
            for client, wait in zip(clients, waits):
                sent, times, _ = await stream(client, history, 8)
                wait[turn].append(times[0] - sent)
            history += random_ids(draw, 20)  # what was answered, as another would write it
    print("turn   without, s   with, s   ratio")
    for turn, (without, within) in enumerate(zip(*waits), start=1):
        a, b = np.median(without), np.median(within)
        print(f"{turn:4} {a:12.3f} {b:9.3f} {a / b:7.1f}")


async def gaps(address: str, options: argparse.Namespace) -> None:
    """Running streams, alone and beside long prompts."""
    draw = np.random.default_rng(0)
    found: dict[bool, list[float]] = {False: [], True: []}
    answered: list[float] = []
    client = client_of(address)
    await stream(client, random_ids(draw, 8), 4)
    for round in range(2 * options.rounds):
        beside, read = bool(round % 2), list[tuple[float, float]]()
        streams = [
            asyncio.ensure_future(stream(client, random_ids(draw, 20), options.tokens))
            for _ in range(options.streams)
        ]
        await asyncio.sleep(0.1)
        while beside and not all(task.done() for task in streams):
            sent, times, _ = await stream(client, random_ids(draw, 1000), 1)
            read.append((sent, times[0]))
        answered += [end - start for start, end in read]
        for _, times, _ in await asyncio.gather(*streams):
            found[beside] += [
                late - early
                for early, late in pairwise(times)
                if not beside or any(late > start and early < end for start, end in read)
            ]
    alone, late = (np.percentile(found[beside], [50, 99]) * 1e3 for beside in (False, True))
    print(f"{options.streams} streams alone: median {alone[0]:.1f} ms, 99% {alone[1]:.1f} ms")
    print(
        f"beside {len(answered)} prompts of 1,000 tokens (answered after "
        f"{np.median(answered):.2f} s): median {late[0]:.1f} ms, 99% {late[1]:.1f} ms"
    )
    print(f"99% beside / alone: {late[1] / alone[1]:.2f}")


def client_of(address: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=address, timeout=300, trust_env=False, verify=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("first", "gaps"))
    parser.add_argument("--size", default="6x192", help="layers x width")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=150)
    options = parser.parse_args()
    layers, width = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), layers, width)
        models = Path(folder) / "onnx"
        if options.what == "gaps":
            with serving(models) as address:
                asyncio.run(gaps(address, options))
        else:
            with serving(models, "--prefix-cache", "0") as without, serving(models) as within:
                asyncio.run(first_tokens([without, within], options))


if __name__ == "__main__":
    main()
