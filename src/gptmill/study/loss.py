"""Cross-entropy from first principles, on one example, and what an untrained model must have.

Shapes: T tokens, V vocabulary.
"""

import math

import torch
from torch import Tensor

from gptmill.likelihood import perplexity
from gptmill.model.gpt2 import GPT2
from gptmill.study.draw import COLORS, bars, panels
from gptmill.study.finding import Finding, small

GPT2_VOCABULARY = 50257


@torch.no_grad()
def target_probabilities(model: GPT2, ids: Tensor) -> Tensor:
    """p(ids[t + 1] | ids[: t + 1]) for each t, [T - 1], by softmax and indexing alone."""
    probabilities = torch.softmax(model(ids[None])[0, :-1], dim=-1)
    return probabilities[torch.arange(len(ids) - 1), ids[1:]]


def cross_entropy(
    models: dict[str, GPT2], ids: Tensor, labels: list[str], floor: float | None
) -> Finding:
    """The loss step by step on one sentence for the trained model, and each model's beside ln V.

    Args:
        models: by name; the last is the trained one.
        ids: the example, [T], beginning with end-of-text, and its tokens as text.
        floor: the loss of the source itself on its held-out text, where it is known.
    """
    trained = list(models.values())[-1]
    chances = target_probabilities(trained, ids)
    logs = chances.log()
    loss = -logs.mean().item()
    with torch.no_grad():
        library = torch.nn.functional.cross_entropy(trained(ids[None])[0, :-1], ids[1:]).item()
    losses = {name: -target_probabilities(m, ids).log().mean().item() for name, m in models.items()}
    uniform = math.log(trained.config.vocabulary_size)
    figure, (left, right) = panels(1, 2, 8.4, 4.2, width_ratios=[1.25, 1])
    shown = [f"p {p:.3f}, −ln p {abs(log):.2f}" for p, log in zip(chances.tolist(), logs.tolist())]
    bars(left, labels[1:], chances.tolist(), shown)
    left.set_xlim(0, 1.7)
    left.set_title("probability of each next token")
    bars(right, list(losses), list(losses.values()), [f"{loss:.2f}" for loss in losses.values()])
    vocabulary = trained.config.vocabulary_size
    right.axvline(uniform, color=COLORS[1], label=f"ln {vocabulary:,} = {uniform:.2f}")
    right.legend(loc="lower right")
    right.set_title("loss on this example")
    told = "" if floor is None else f"; the source's own mean on held-out text is {floor:.2f}"
    untrained = next(iter(losses.values()))
    return Finding(
        "cross_entropy",
        5,
        "Cross-entropy from first principles",
        f"The mean of −ln p over {len(chances)} targets is {loss:.3f}, PyTorch's cross-entropy "
        f"(apart by {small(abs(loss - library))}); exp of it, a perplexity of "
        f"{perplexity(loss):.1f}, is as if choosing among so many tokens evenly. An untrained "
        f"model has {untrained:.2f}, near ln {vocabulary:,} = {uniform:.2f} (GPT-2's ln 50,257 = "
        f"{math.log(GPT2_VOCABULARY):.2f}){told}",
        {"loss": loss, "perplexity": perplexity(loss), "difference_to_library": abs(loss - library),
         "untrained_loss": untrained, "uniform_loss": uniform},
        [{"token": t, "probability": p, "log": log}
         for t, p, log in zip(labels[1:], chances.tolist(), logs.tolist())],
        figure,
    )  # fmt: skip
