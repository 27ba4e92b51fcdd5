"""Two ways to learn from raw text: the next word (GPT), or a hidden one (BERT).

Both models have the same parts and see the same words in as many steps; the one masks the future,
the other hides 15% of its input and looks at both sides. Shapes: B batch, T words, V vocabulary.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from gptmill.data.tokens import sliding_windows
from gptmill.engine.dynamo import leave_out_dynamo
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.study.draw import panels
from gptmill.study.finding import Finding, require
from gptmill.tokenizer import VocabularyTokenizer, train_vocabulary

WORDS, CONTEXT, BATCH, WIDTH, LAYERS, HEADS = 512, 16, 16, 48, 2, 2
HIDDEN_SHARE = 0.15  # as in BERT (Devlin et al. 2019)
RATE = 5e-3
CHECKED, POINTS = 24, 8  # held-out rows, and points of a curve
LossOf = Callable[[GPT2, Tensor], Tensor]


def both_sides(model: GPT2, ids: Tensor) -> Tensor:
    """Logits [B, T, V] with every token looking at all others: the same blocks, no triangle."""
    parts, T = model.transformer, ids.shape[1]
    x = parts.wte(ids) + parts.wpe(torch.arange(T))
    everything = torch.ones(1, 1, T, T, dtype=torch.bool)
    for block in parts.h:
        x = block(x, everything)
    return model.lm_head(parts.ln_f(x))


def objectives(training: Sequence[str], held_out: Sequence[str], steps: int, seed: int) -> Finding:
    """Train one small model each way; how fast they learn, and what they make of a sentence."""
    tokenizer = train_vocabulary(training, "word", WORDS)
    rows, checked = (
        _windows(tokenizer, texts, split)
        for texts, split in ((training, "training"), (held_out, "held-out"))
    )
    checked = checked[:CHECKED]
    objectives: dict[str, tuple[LossOf, LossOf]] = {
        "next word, from the left": (_next_word_loss, _next_chances),
        "hidden word, from both sides": (
            _hidden_word_loss(tokenizer.unknown, seed),
            partial(_hidden_chances, mask=tokenizer.unknown),
        ),
    }
    curves, sentence = {}, {}
    for name, (loss, chances) in objectives.items():
        measure = partial(_mean_surprise, chances=chances, rows=checked)
        model, curves[name] = _train(rows, steps, seed, loss, measure, tokenizer.vocabulary_size)
        sentence[name] = chances(model, checked[0])
    words = [tokenizer.decode([id]) for id in checked[0].tolist()]
    left, sides = (curve[-1][1] for curve in curves.values())
    return Finding(
        "objectives",
        1,
        "Next word or hidden word",
        "The labels come from the text itself. Predicting the next word makes every word a "
        f"target; hiding words makes {HIDDEN_SHARE:.0%} of them targets and shows both sides of "
        f"each. After {steps} steps each, held-out −ln p is {left:.2f} from the left and "
        f"{sides:.2f} from both sides: fewer targets teach more slowly. Only the first model can "
        "write on, word after word",
        {"next_word_loss": left, "hidden_word_loss": sides, "next_word_targets_share": 1.0,
         "hidden_word_targets_share": HIDDEN_SHARE},
        [{"objective": name, "step": step, "loss": loss}
         for name, curve in curves.items() for step, loss in curve],
        _draw(words, sentence, curves),
    )  # fmt: skip


def _draw(
    words: list[str], sentence: dict[str, Tensor], curves: dict[str, list[tuple[int, float]]]
) -> Figure:
    figure, (left, right) = panels(1, 2, 8.4, 3.0, width_ratios=[1.6, 1])
    for shift, values in zip((-0.2, 0.2), sentence.values()):
        left.bar(np.arange(len(values)) + shift, values.tolist(), width=0.38)
    left.set_xticks(range(len(words) - 1), words[1:], rotation=60, ha="right", fontsize=7)
    left.set_title("probability of each word of a sentence")
    for name, curve in curves.items():
        right.plot(*zip(*curve), marker="o", markersize=3, label=name)
    right.set_ylim(0)
    right.set_title("held-out −ln p by steps")
    right.legend(fontsize=7)
    return figure


def _windows(tokenizer: VocabularyTokenizer, texts: Sequence[str], split: str) -> Tensor:
    """Rows of consecutive words, [N, T + 1]."""
    ids = np.array(tokenizer.encode("\n".join(texts)))
    require(len(ids), CONTEXT + 1, f"{split} words, parted by spaces or punctuation")
    inputs, targets = sliding_windows(ids, CONTEXT, CONTEXT)
    return torch.from_numpy(np.concatenate([inputs, targets[:, -1:]], axis=1))


def _train(
    rows: Tensor,
    steps: int,
    seed: int,
    loss_of: LossOf,
    measure: Callable[[GPT2], float],
    vocabulary: int,
) -> tuple[GPT2, list[tuple[int, float]]]:
    """Plain AdamW on random rows, measured a few times on the way."""
    torch.manual_seed(seed)
    model = GPT2(GPT2Config(vocabulary, CONTEXT + 1, LAYERS, HEADS, WIDTH), 0.1, 0.1)
    leave_out_dynamo()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    generator = torch.Generator().manual_seed(seed)
    curve = [(0, measure(model))]
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / (steps + 1))
        loss = loss_of(model, rows[torch.randint(len(rows), (BATCH,), generator=generator)])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % max(1, steps // POINTS) == 0:
            curve.append((step, measure(model)))
    return model, curve


def _next_word_loss(model: GPT2, rows: Tensor) -> Tensor:
    return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def _hidden_word_loss(mask: int, seed: int) -> LossOf:
    generator = torch.Generator().manual_seed(seed)

    def loss(model: GPT2, rows: Tensor) -> Tensor:
        hidden = torch.rand(rows.shape, generator=generator) < HIDDEN_SHARE
        hidden[0, 0] = True  # at least one target
        logits = both_sides(model, rows.masked_fill(hidden, mask))
        return F.cross_entropy(logits[hidden], rows[hidden])

    return loss


def _mean_surprise(model: GPT2, chances: Callable[[GPT2, Tensor], Tensor], rows: Tensor) -> float:
    return -torch.cat([chances(model, row) for row in rows]).log().mean().item()


@torch.no_grad()
def _next_chances(model: GPT2, ids: Tensor) -> Tensor:
    """p of each word but the first, given those before it."""
    chances = torch.softmax(model(ids[None, :-1])[0], dim=-1)
    return chances[torch.arange(len(ids) - 1), ids[1:]]


@torch.no_grad()
def _hidden_chances(model: GPT2, ids: Tensor, mask: int) -> Tensor:
    """p of each word but the first, given all others: one row for each hidden place."""
    places = torch.arange(1, len(ids))
    rows = ids.repeat(len(places), 1)
    rows[torch.arange(len(places)), places] = mask
    chances = torch.softmax(both_sides(model, rows), dim=-1)
    return chances[torch.arange(len(places)), places, ids[1:]]
