"""Zero-shot and few-shot: prompts made of examples, and labels scored by their likelihood.

A task file is JSON lines of `{"text": …, "label": …}`. A prompt shows examples and leaves the
last label open (in-context learning, Brown et al. 2020):

    Text: You have won a prize, call now
    Label: spam

    Text: See you at six
    Label:

The answer is the label with the largest log-likelihood, the sum over its tokens. Everything runs
on a `Decoder`, therefore on PyTorch and ONNX Runtime alike. N prompts, K labels, V vocabulary.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptmill.batching import batches_by_length, left_padded
from gptmill.data.text_files import lines, read_text
from gptmill.errors import UserError
from gptmill.generate.loop import Decoder
from gptmill.tokenizer import Tokenizer

SHOTS = (0, 1, 4, 16)
Each = Callable[[Callable[[list[int]], np.ndarray], list[list[int]]], Iterable[Any]]


@dataclass(frozen=True)
class Example:
    """A text and the label it should get."""

    text: str
    label: str


@dataclass(frozen=True)
class Accuracy:
    """How many of `queries` got their label when shown so many examples."""

    examples: int  # asked for
    shown: float  # on average, fewer where the context has no room
    queries: int
    accuracy: float
    standard_error: float  # of the accuracy, over the queries


def read_task(path: Path) -> list[Example]:
    """Read a task file.

    Raises:
        UserError: no such file, no examples in it, or a line without an example (with its number).
    """
    found = enumerate(lines(read_text(path)), 1)
    examples = [_example(line, f"{path}:{at}") for at, line in found if line.strip()]
    if not examples:
        raise UserError(f'{path} has no examples; a line is {{"text": "…", "label": "…"}}')
    return examples


def few_shot_prompt(examples: Sequence[Example], text: str) -> str:
    """The examples with their labels, then `text` with its label left open."""
    shown = "".join(f"Text: {e.text}\nLabel: {e.label}\n\n" for e in examples)
    return f"{shown}Text: {text}\nLabel:"


def evaluate(
    decoder: Decoder,
    tokenizer: Tokenizer,
    queries: Sequence[Example],
    pool: Sequence[Example],
    shots: Sequence[int] = SHOTS,
    seed: int = 0,
    batch_size: int = 16,
    each: Each = map,
) -> list[Accuracy]:
    """Accuracy on the queries for each number of examples.

    `each` calls a function of each batch of prompts, `map` or one that several processes share.

    Every query is shown examples of its own, drawn from the pool without its own text, so that
    the standard error covers their choice; the first of 16 are those it is shown when 4 are.

    Raises:
        UserError: fewer than two labels in the pool, a query whose label is not among them, or a
            pool smaller than the examples asked for.
    """
    labels = _labels(queries, pool)
    draws = [_draw(pool, query.text, max(shots), (seed, i)) for i, query in enumerate(queries)]
    answers = np.array([labels.index(query.label) for query in queries])
    room = _room(decoder, tokenizer, labels)
    results = []
    for count in shots:
        fitting = [
            fit_prompt(tokenizer, drawn[:count], query.text, room)
            for drawn, query in zip(draws, queries)
        ]
        prompts = [ids for ids, _ in fitting]
        scores = score_labels(decoder, tokenizer, prompts, labels, batch_size, each)
        accuracy = float((scores.argmax(axis=1) == answers).mean())
        error = math.sqrt(accuracy * (1 - accuracy) / len(queries))
        shown = sum(kept for _, kept in fitting) / len(fitting)
        results.append(Accuracy(count, shown, len(queries), accuracy, error))
    return results


def shown_prompt(
    decoder: Decoder,
    tokenizer: Tokenizer,
    pool: Sequence[Example],
    text: str,
    count: int,
    seed: int = 0,
) -> list[int]:
    """The ids of a prompt that shows `count` examples, as many as the context has room for, and
    leaves the label of `text` open.

    Raises:
        UserError: fewer other examples in the pool.
    """
    room = _room(decoder, tokenizer, {example.label for example in pool})
    return fit_prompt(tokenizer, _draw(pool, text, count, (seed, 0)), text, room)[0]


def majority_accuracy(queries: Sequence[Example]) -> float:
    """What always answering the queries' commonest label would get: the line to beat."""
    return max(Counter(query.label for query in queries).values()) / len(queries)


def fit_prompt(
    tokenizer: Tokenizer, examples: Sequence[Example], text: str, room: int
) -> tuple[list[int], int]:
    """The prompt's ids within `room` tokens, and how many examples are in it.

    The first examples go until the rest fits; a text too long by itself keeps its end.
    """
    for first in range(len(examples) + 1):
        ids = tokenizer.encode(few_shot_prompt(examples[first:], text))
        if len(ids) <= room:
            break
    return ids[-room:], len(examples) - first


def score_labels(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    labels: Sequence[str],
    batch_size: int = 16,
    each: Each = map,
) -> np.ndarray:
    """Log-likelihood in nats, [N, K], of each label (after a space) following each prompt.

    A token's probability is read at the end of what stands before it: the prompt and a beginning
    of the label. Labels that begin alike share that pass; labels of one token need one in all.
    """
    label_ids = _label_ids(tokenizer, labels)
    beginnings = sorted({ids[:end] for ids in label_ids for end in range(len(ids))})
    rows = [[*prompt, *beginning] for prompt in prompts for beginning in beginnings]
    wanted = sorted({id for ids in label_ids for id in ids})
    found = _next_log_probabilities(decoder, rows, wanted, batch_size, each)
    found = found.reshape(len(prompts), len(beginnings), len(wanted))
    scores = np.zeros((len(prompts), len(labels)))
    for label, ids in enumerate(label_ids):
        for end, id in enumerate(ids):
            scores[:, label] += found[:, beginnings.index(ids[:end]), wanted.index(id)]
    return scores


def plot_accuracy(results: Sequence[Accuracy], majority: float, path: Path) -> None:
    """Accuracy with its standard error over the number of examples, as an image file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(results))
    axes.errorbar(
        places,
        [result.accuracy for result in results],
        yerr=[result.standard_error for result in results],
        marker="o",
        capsize=4,
        label="likeliest label ± standard error",
    )
    axes.axhline(majority, linestyle="--", color="grey", label="always the commonest label")
    axes.set_xticks(places, [_tick(result) for result in results])
    axes.set_xlabel("examples in the prompt")
    axes.set_ylabel(f"accuracy on {results[0].queries} texts")
    axes.set_ylim(0, 1.02)
    axes.legend()
    figure.savefig(path)


def _tick(result: Accuracy) -> str:
    fit = "" if result.shown == result.examples else f"\n({result.shown:.1f} fit)"
    return f"{result.examples}{fit}"


def _example(line: str, place: str) -> Example:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON: {error}") from error
    values = [fields.get(key) for key in ("text", "label")] if isinstance(fields, dict) else []
    if not values or not all(isinstance(value, str) and value.strip() for value in values):
        raise UserError(f'{place}: not {{"text": "…", "label": "…"}} with texts that are not empty')
    return Example(fields["text"], fields["label"])


def _labels(queries: Sequence[Example], pool: Sequence[Example]) -> list[str]:
    labels = sorted({example.label for example in pool})
    if len(labels) < 2:
        raise UserError(f"the examples have the labels {labels}; scoring needs at least two")
    for query in queries:
        if query.label not in labels:
            raise UserError(f"label '{query.label}' is not among the examples' {labels}")
    if not queries:
        raise UserError("there are no texts to label")
    return labels


def _draw(pool: Sequence[Example], text: str, count: int, key: tuple[int, int]) -> list[Example]:
    others = [example for example in pool if example.text != text]
    if len(others) < count:
        raise UserError(f"{count} examples are to be shown, and there are {len(others)} others")
    generator = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))
    return [others[i] for i in generator.permutation(len(others))[:count]]


def _room(decoder: Decoder, tokenizer: Tokenizer, labels: Iterable[str]) -> int:
    """Tokens of a prompt at most: all but the last token of a label are read after it."""
    return decoder.context_length - max(len(ids) for ids in _label_ids(tokenizer, labels)) + 1


def _label_ids(tokenizer: Tokenizer, labels: Iterable[str]) -> list[tuple[int, ...]]:
    return [tuple(tokenizer.encode(f" {label}")) for label in labels]


def _next_log_probabilities(
    decoder: Decoder, rows: list[list[int]], wanted: list[int], batch_size: int, each: Each
) -> np.ndarray:
    """Log-probabilities [rows, wanted] of the wanted ids after each row."""

    def compute(chosen: list[int]) -> np.ndarray:
        logits = decoder.prefill(*left_padded([rows[row] for row in chosen])).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        normalizer = np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return logits[:, wanted] - normalizer

    batches = batches_by_length([len(row) for row in rows], batch_size)
    found = np.empty((len(rows), len(wanted)))
    for chosen, result in zip(batches, each(compute, batches)):
        found[chosen] = result
    return found
