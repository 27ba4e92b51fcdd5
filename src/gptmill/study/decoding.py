"""Decoding: one next-token distribution under temperatures and filters; greedy against sampling."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gptmill.generate.loop import generate
from gptmill.generate.sampling import SamplingOptions, distribution
from gptmill.generate.torch_decoder import TorchDecoder
from gptmill.model.gpt2 import GPT2
from gptmill.study.draw import panels
from gptmill.study.finding import Finding, require
from gptmill.tokenizer import Tokenizer

WAYS = {
    "temperature 0.5": SamplingOptions(temperature=0.5),
    "temperature 1": SamplingOptions(temperature=1.0),
    "temperature 2": SamplingOptions(temperature=2.0),
    "top-k 3": SamplingOptions(temperature=1.0, top_k=3),
    "top-p 0.9": SamplingOptions(temperature=1.0, top_p=0.9),
    "greedy": SamplingOptions(temperature=0.0),
}
SHOWN = 8  # tokens of a distribution
DRAWS, CONTINUED = 20, 4  # continuations, and tokens of each
FEWEST, DOUBT = 4, 1.5  # tokens of the prompt, and nats of entropy after it


def decoding(model: GPT2, tokenizer: Tokenizer, prompt: list[int], seed: int) -> Finding:
    """What each way of choosing leaves of the same logits, and the texts it leads to.

    The prompt is cut where its next token is neither certain nor anyone's guess.
    """
    require(len(prompt), FEWEST, "held-out tokens")
    with torch.no_grad():
        all_logits = model(torch.tensor([prompt]))[0]
    doubt = torch.special.entr(torch.softmax(all_logits, dim=-1)).sum(-1)
    cut = FEWEST - 1 + int((doubt[FEWEST - 1 :] - DOUBT).abs().argmin())
    prompt, logits = prompt[: cut + 1], all_logits[cut].numpy()
    likeliest = np.argsort(-logits, kind="stable")[:SHOWN]
    names = [tokenizer.decode([int(id)]) for id in likeliest]
    figure, axes = panels(2, 3, 8.4, 4.4)
    rows: list[dict[str, Any]] = []
    for place, (way, options) in zip(axes, WAYS.items()):
        ids, chances = distribution(logits, options)
        full = np.zeros(len(logits))
        full[ids] = chances
        place.bar(range(len(names)), full[likeliest], width=0.7)
        place.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
        place.set_ylim(0, 1)
        place.set_title(f"{way}: {len(ids):,} left, {_entropy(chances):.2f} nats", fontsize=8)
        rows += [
            {"way": way, "token": n, "probability": full[id]} for n, id in zip(names, likeliest)
        ]
    texts = {way: _distinct(model, tokenizer, prompt, WAYS[way], seed) for way in WAYS}
    return Finding(
        "decoding",
        5,
        "Greedy, temperature, top-k, top-p",
        f"After “{tokenizer.decode(prompt).strip()}”. A low temperature sharpens, a high one "
        f"flattens; filters cut the tail. Of {DRAWS} continuations by {CONTINUED} tokens greedy "
        f"decoding has {texts['greedy']} different, temperature 0.5 {texts['temperature 0.5']}, 1 "
        f"{texts['temperature 1']}, 2 {texts['temperature 2']}",
        {f"{way.replace(' ', '_')}_distinct_texts": count for way, count in texts.items()},
        rows,
        figure,
    )


def _entropy(chances: np.ndarray) -> float:
    return abs(float((chances * np.log(np.maximum(chances, 1e-300))).sum()))


def _distinct(
    model: GPT2, tokenizer: Tokenizer, prompt: list[int], options: SamplingOptions, seed: int
) -> int:
    """Different texts among so many continuations of a few tokens."""
    options = replace(options, max_new_tokens=CONTINUED, seed=seed)
    found = generate(TorchDecoder(model), tokenizer, [prompt] * DRAWS, options)
    return len({completion.text for completion in found})
