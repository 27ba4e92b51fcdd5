"""Greedy generation by gptmill, the book's code and transformers on the same random weights.

    pip install --no-deps llms-from-scratch==1.0.19
    python -m benchmarks.generation --size 124M --tokens 200 --rounds 2

Batch 1, a prompt of 4 tokens, float32. The book's code is its PyPI package (Raschka 2024): the
loop of chapter 4, which computes the whole text for every token, and its `kv_cache` variant. The
contestants take turns, so that all meet the same machine; the figures are medians over the
rounds, the tokens are checked to be the same. Reading every weight once per token is the floor:
the achieved share is the bytes of the weights times tokens per second, over the bandwidth of a
matrix-vector product on a matrix of the model's size, measured in the same rounds.
"""

import argparse
import inspect
import os
import statistics
import textwrap
import time
from collections.abc import Callable

import numpy as np
import torch
import transformers
from llms_from_scratch import ch04
from llms_from_scratch.ch05 import load_weights_into_gpt
from llms_from_scratch.kv_cache import gpt2 as book_cached

from gptmill.generate.torch_decoder import TorchDecoder
from gptmill.model.config import GPT2_SIZES, gpt2_config
from gptmill.model.gpt2 import GPT2, count_parameters
from gptmill.weights.openai import BLOCK_NAMES, NAMES

PROMPT = [6109, 3626, 6100, 345]  # "Every effort moves you"
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
# gptmill's speed over a peer's: the goals.
GOALS = {"book uncached": 6.0, "book cached": 1.5, "transformers": 1.2}


def gptmill(model: GPT2, tokens: int) -> list[int]:
    """The decoder that `generate` runs on, for exactly so many tokens."""
    decoder = TorchDecoder(model)
    ids = np.array([PROMPT])
    logits = decoder.prefill(ids, np.ones_like(ids))
    found = [logits.argmax(axis=1)]
    while len(found) < tokens:
        found.append(decoder.step(found[-1]).argmax(axis=1))
    return [int(token[0]) for token in found]


def uncached(model: ch04.GPTModel, tokens: int) -> list[int]:
    """The book's loop: the whole text through the model for every token."""
    ids = torch.tensor([PROMPT])
    found = ch04.generate_text_simple(model, ids, tokens, context_size=1024)
    return found[0, len(PROMPT) :].tolist()


@torch.no_grad()
def cached(model: book_cached.GPTModel, tokens: int) -> list[int]:
    """The book's model with its cache, in the loop that belongs to it."""
    cache = book_cached.KVCache(len(model.trf_blocks))
    model.current_pos = 0
    logits = model(torch.tensor([PROMPT]), use_cache=True, cache=cache)
    found = [logits[:, -1].argmax(dim=-1, keepdim=True)]
    while len(found) < tokens:
        logits = model(found[-1], use_cache=True, cache=cache)
        found.append(logits[:, -1].argmax(dim=-1, keepdim=True))
    return torch.cat(found).flatten().tolist()


def reference(peer: transformers.GPT2LMHeadModel, tokens: int) -> list[int]:
    """`transformers.generate` with its default cache."""
    found = peer.generate(
        torch.tensor([PROMPT]), max_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    return found[0, len(PROMPT) :].tolist()


def transformers_copy(model: GPT2) -> transformers.GPT2LMHeadModel:
    """The same weights in transformers' GPT-2, whose matrices are transposed."""
    config = model.config
    peer = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocabulary_size,
            n_positions=config.context_length,
            n_layer=config.layers,
            n_head=config.heads,
            n_embd=config.width,
            eos_token_id=None,  # every contestant makes as many tokens
        )
    ).eval()
    ours = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            weight = ours[name]
            parameter.copy_(weight.T if name.endswith(TRANSPOSED) else weight)
    return peer


def mend_the_books_mask() -> None:
    """The package cuts columns from the causal mask of its cached GPT-2 where it means the new
    tokens' rows, so that a second token fails; with rows it runs."""
    source = inspect.getsource(book_cached.MultiHeadAttention.forward)
    assert "causal_mask[:, -num_tokens:]" in source, "another release: is it mended?"
    source = source.replace("causal_mask[:, -num_tokens:]", "causal_mask[-num_tokens:]")
    exec(textwrap.dedent(source), vars(book_cached))
    book_cached.MultiHeadAttention.forward = book_cached.forward


def book_copy(model: GPT2, kind: type[torch.nn.Module]) -> torch.nn.Module:
    """The same weights in a model of the book, by its own loader from OpenAI's params."""
    config = model.config
    settings = {
        "vocab_size": config.vocabulary_size,
        "context_length": config.context_length,
        "emb_dim": config.width,
        "n_heads": config.heads,
        "n_layers": config.layers,
        "drop_rate": 0.0,
        "qkv_bias": True,
    }
    peer = kind(settings).eval()
    load_weights_into_gpt(peer, book_params(model))
    return peer


def book_params(model: GPT2) -> dict:
    """The *params* dictionary of the book: OpenAI's names and orientation."""
    params: dict = {"blocks": [{} for _ in model.transformer.h]}
    for name, tensor in model.transformer.named_parameters():
        value = tensor.detach().T if name.endswith(TRANSPOSED) else tensor.detach()
        if name in NAMES:
            target, path = params, NAMES[name]
        else:
            _, layer, rest = name.split(".", 2)
            target, path = params["blocks"][int(layer)], BLOCK_NAMES[rest]
        for key in path[:-1]:
            target = target.setdefault(key, {})
        target[path[-1]] = value.numpy()
    return params


def bandwidth(size: int) -> float:
    """Bytes per second at which a matrix-vector product reads a matrix of `size` bytes."""
    matrix, vector = torch.ones(size // (4 * 4096), 4096), torch.ones(4096)
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        torch.mv(matrix, vector)
        best = max(best, matrix.nbytes / (time.perf_counter() - start))
    return best


def compare(
    contestants: dict[str, Callable[[int], list[int]]], tokens: int, rounds: int, size: int
) -> tuple[dict[str, float], float]:
    """Median tokens per second of each, and the best bandwidth seen, over rounds in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    fastest = 0.0
    for _ in range(rounds):
        fastest = max(fastest, bandwidth(size))
        answers = []
        for name, run in contestants.items():
            start = time.perf_counter()
            answers.append(run(tokens))
            seconds[name].append(time.perf_counter() - start)
        assert all(answer == answers[0] for answer in answers), "the tokens differ"
    return {name: tokens / statistics.median(found) for name, found in seconds.items()}, fastest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(GPT2_SIZES), default="124M")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    mend_the_books_mask()
    transformers.logging.set_verbosity_error()
    model = GPT2(gpt2_config(options.size)).eval()
    peer = transformers_copy(model)
    whole, growing = book_copy(model, ch04.GPTModel), book_copy(model, book_cached.GPTModel)
    contestants = {
        "gptmill": lambda tokens: gptmill(model, tokens),
        "transformers": lambda tokens: reference(peer, tokens),
        "book cached": lambda tokens: cached(growing, tokens),
        "book uncached": lambda tokens: uncached(whole, tokens),
    }
    for run in contestants.values():
        run(4)
    size = 4 * count_parameters(model)
    speeds, fastest = compare(contestants, options.tokens, options.rounds, size)
    print(
        f"{options.size}, {options.threads} threads, {options.tokens} tokens, median of "
        f"{options.rounds}; weights {size / 1e6:.0f} MB, memory {fastest / 1e9:.1f} GB/s"
    )
    print(f"{'':14}{'tokens/s':>10}{'gptmill is':>12}{'goal':>6}{'bandwidth':>11}")
    for name, speed in speeds.items():
        ratio, goal = speeds["gptmill"] / speed, GOALS.get(name, "")
        print(f"{name:14}{speed:10.1f}{ratio:11.2f}×{goal:>6}{speed * size / fastest:11.0%}")


if __name__ == "__main__":
    main()
