"""The course's ideas, each run on the pipeline's own model and text, measured and drawn."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from gptmill.data.tokens import TokenSplit
from gptmill.model.gpt2 import GPT2
from gptmill.params import Study
from gptmill.study import attention, layers
from gptmill.study.curves import four_runs, loss_curves
from gptmill.study.decoding import decoding
from gptmill.study.embeddings import embeddings
from gptmill.study.finding import CannotShow, Finding
from gptmill.study.loss import cross_entropy
from gptmill.study.objectives import objectives
from gptmill.study.sizes import model_sizes
from gptmill.study.small import CPU, small_text
from gptmill.study.text import tokenizers, windows
from gptmill.tokenizer import Tokenizer

FREQUENT = 150  # tokens in the picture of embeddings


@dataclass(frozen=True)
class Subject:
    """What is studied: the trained model, the same as its training began, and the text."""

    trained: GPT2
    began: GPT2
    tokenizer: Tokenizer
    training: TokenSplit
    validation: TokenSplit


def study(subject: Subject, section: Study, seed: int) -> list[Finding]:
    """Every finding, in the order of the syllabus.

    On one thread of the CPU: the models are so small that a second costs more than it brings,
    and the same numbers come out whatever `runtime.threads` says.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [*_of_text(subject, section, seed), *_of_the_model(subject, section, seed)]
    finally:
        torch.set_num_threads(threads)


def _shown(ideas: dict[str, Callable[[], Finding]]) -> list[Finding]:
    """The findings that this text can show; the others are named, with what they lack."""
    found = []
    for name, make in ideas.items():
        try:
            found.append(make())
        except CannotShow as missing:
            print(f"study: this text cannot show {name}: {missing}")
    return found


def _of_text(subject: Subject, section: Study, seed: int) -> list[Finding]:
    """Chapters 1 and 2, and the four runs of chapter 5, on the corpus."""
    tokenizer = subject.tokenizer
    learned = subject.training.texts(tokenizer, 16 * section.tokens)
    held_out = subject.validation.texts(tokenizer, section.tokens)
    ids = torch.from_numpy(subject.validation.at(np.arange(_some(subject, section.tokens))))
    tokens = frequent_tokens(tokenizer, ids.numpy())
    ideas: dict[str, Callable[[], Finding]] = {
        "the objectives": lambda: objectives(learned, held_out, 2 * section.steps, seed),
        "tokenizers": lambda: tokenizers(learned, held_out, tokenizer),
    }
    embedded = {
        "embeddings": lambda: embeddings(subject.began, subject.trained, ids, tokens),
    }
    try:
        characters = small_text(learned, held_out)
        runs = four_runs(characters, section.steps, seed)
    except CannotShow as missing:
        print(f"study: this text cannot show windows and loss curves: {missing}")
        return _shown(ideas | embedded)
    model = runs[0][1].model
    return _shown(
        ideas
        | {"windows": lambda: windows(model, characters.validation, CPU)}
        | embedded
        | {"loss curves": lambda: loss_curves(runs)}
    )


def _of_the_model(subject: Subject, section: Study, seed: int) -> list[Finding]:
    """Chapters 3 to 5 on the trained model and one held-out sentence."""
    model, tokenizer, config = subject.trained, subject.tokenizer, subject.trained.config
    length = min(section.sentence_tokens, config.context_length - 1)
    sentence = torch.from_numpy(subject.validation.at(np.arange(_some(subject, length))))
    labels = [tokenizer.decode([id]).strip() for id in sentence.tolist()]
    example = torch.cat([torch.tensor([subject.validation.end_of_text]), sentence])
    nats = subject.validation.nats
    floor = nats and nats / subject.validation.tokens
    torch.manual_seed(seed)
    models = {"untrained": GPT2(config).eval(), "as this run began": subject.began,
              "trained": model}  # fmt: skip
    return _shown(
        {
            "the ladder": lambda: attention.ladder(config, seed),
            "attention heads": lambda: attention.heads(model, sentence, labels),
            "dropout": lambda: layers.dropout(seed),
            "normalization": lambda: layers.normalization(config, seed),
            "activations": lambda: layers.activations(model),
            "shortcuts": lambda: layers.shortcuts(seed),
            "norm placement": lambda: layers.norm_placement(seed),
            "sizes": lambda: model_sizes(config),
            "cross-entropy": lambda: cross_entropy(models, example, ["", *labels], floor),
            "decoding": lambda: decoding(model, tokenizer, sentence.tolist(), seed),
            "attention's reach": lambda: attention.reach(model, sentence, labels),
        }
    )


def frequent_tokens(tokenizer: Tokenizer, ids: np.ndarray) -> dict[int, str]:
    """The most frequent tokens of ids [N] and their texts, without end-of-text."""
    counts = np.bincount(ids, minlength=tokenizer.vocabulary_size)
    counts[tokenizer.end_of_text] = 0
    order = np.argsort(-counts, kind="stable")[: min(FREQUENT, int((counts > 0).sum()))]
    return {int(id): tokenizer.decode([int(id)]).strip() for id in order}


def _some(subject: Subject, count: int) -> int:
    return min(count, len(subject.validation))
