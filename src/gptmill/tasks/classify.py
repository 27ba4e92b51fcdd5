"""Sequence classification: batches, loss, and layers to train.

Shapes: B batch, T time, K labels, N examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor, nn
from torch.nn import functional as F

from gptmill.batching import batches_by_length, right_padded
from gptmill.data.classification import SPLITS, class_weights, read_labels, read_split
from gptmill.engine.runtime import Runtime
from gptmill.model.classifier import GPT2Classifier
from gptmill.model.lora import add_low_rank
from gptmill.params import LowRank
from gptmill.reading import LongTexts, Reading, mean_of_pieces, softmax
from gptmill.tokenizer import Tokenizer

EVALUATION_BATCH = 64  # texts in one forward pass without gradients


class LabeledBatch(NamedTuple):
    """Ids [B, T] padded on the right, 1 for real tokens [B, T], labels [B]."""

    inputs: np.ndarray
    mask: np.ndarray
    labels: np.ndarray


class ClassificationTask:
    """Cross-entropy of the label, each example weighted by its class (1 on average).

    Args:
        class_weights: [K], all one for a balanced training set.
        readout: `last_token` or, as in the book, `padded_last`, which takes padding for text.
    """

    unit = "examples"

    def __init__(self, class_weights: Sequence[float], readout: str) -> None:
        self.class_weights = np.asarray(class_weights, dtype=np.float32)
        self.readout = readout

    def targets(self, batch: LabeledBatch) -> float:
        return float(self.class_weights[batch.labels].sum())

    def loss(self, model: nn.Module, batch: LabeledBatch, runtime: Runtime) -> Tensor:
        return F.cross_entropy(
            self.logits(model, batch, runtime).float(),
            runtime.tensor(batch.labels),
            weight=runtime.tensor(self.class_weights),
            reduction="sum",
        )

    def logits(self, model: nn.Module, batch: LabeledBatch, runtime: Runtime) -> Tensor:
        """Logits [B, K]."""
        mask = None if self.readout == "padded_last" else runtime.tensor(batch.mask)
        return model(runtime.tensor(batch.inputs), mask)


def collate_labeled(
    examples: list[tuple[list[int], int]], padding: int, length: int | None = None
) -> LabeledBatch:
    """Pad on the right with `padding` to the longest text, or to `length`.

    Args:
        examples: (ids, label), the ids at most `length` long.
    """
    inputs, mask = right_padded([ids for ids, _ in examples], padding, length)
    return LabeledBatch(inputs, mask, np.array([label for _, label in examples], dtype=np.int64))


@dataclass(frozen=True)
class LabeledSplit:
    """Texts, what the model sees of them as (ids, label) pairs, and labels [N] of one split.

    `counts` [N] says how many pairs each text has: one, unless it is read in windows.
    """

    frame: pd.DataFrame
    examples: list[tuple[list[int], int]]
    counts: list[int]

    @property
    def labels(self) -> np.ndarray:
        return self.frame["label"].to_numpy()

    @property
    def texts(self) -> list[str]:
        return self.frame["text"].tolist()

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids, _ in self.examples]


class ClassificationData:
    """The three splits of a prepared folder, encoded for one tokenizer.

    Args:
        maximum_length: tokens that the model sees at once; 0 is the longest training text.
        context_length: what the model can take; longer is cut in any case.
        readout: `last_token` pads every text to the longest of its batch and `padded_last` to the
            maximum length; `first_token` keeps that token alone and is `last_token` from then on,
            since no later token reaches the first one's hidden state.
        long_texts: `head`, `tail` or `windows`; each window of a training text is an example.

    Attributes:
        reading: labels, where to read of what is kept, and how texts are cut.
        class_weights: [K] for the loss, all about one when the training classes are balanced.
        cut: training texts that are longer than what the model sees at once.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        *,
        maximum_length: int,
        context_length: int,
        readout: str,
        long_texts: LongTexts,
    ) -> None:
        if readout == "first_token":
            readout, maximum_length, long_texts = "last_token", 1, "head"
        self.padding = tokenizer.end_of_text
        frames = {name: read_split(folder, name) for name in SPLITS}
        ids = {name: tokenizer.encode_batch(list(frame["text"])) for name, frame in frames.items()}
        longest = max(len(text) for text in ids["train"])
        length = min(maximum_length or longest, context_length)
        self.reading = Reading(tuple(read_labels(folder)), length, readout, long_texts)
        self.padded_length = length if readout == "padded_last" else None
        self.train, self.validation, self.test = (
            self._split(frame, ids[name]) for name, frame in frames.items()
        )
        self.cut = sum(len(text) > length for text in ids["train"])
        self.class_weights = class_weights(self.train.labels, len(self.reading.labels))

    def _split(self, frame: pd.DataFrame, ids: list[list[int]]) -> LabeledSplit:
        parts = [self.reading.pieces(text) for text in ids]
        examples = [(piece, y) for text, y in zip(parts, frame["label"]) for piece in text]
        return LabeledSplit(frame, examples, [len(text) for text in parts])

    def collate(self, examples: list[tuple[list[int], int]]) -> LabeledBatch:
        return collate_labeled(examples, self.padding, self.padded_length)

    def logits(
        self, split: LabeledSplit, model: nn.Module, task: ClassificationTask, runtime: Runtime
    ) -> np.ndarray:
        """Logits [N, K] of a split, in its order; like lengths are computed together."""
        order = batches_by_length(split.lengths, EVALUATION_BATCH)
        batches = [self.collate([split.examples[row] for row in rows]) for rows in order]
        logits = predict(model, task, batches, runtime)
        return mean_of_pieces(logits[np.argsort(np.concatenate(order))], split.counts)

    def evaluate(
        self, model: nn.Module, task: ClassificationTask, runtime: Runtime
    ) -> dict[str, float]:
        """Loss and accuracy on the validation split."""
        logits = self.logits(self.validation, model, task, runtime)
        labels = self.validation.labels
        return {
            "validation/loss": mean_loss(logits, labels),
            "validation/accuracy": float((logits.argmax(axis=1) == labels).mean()),
        }


def choose_trainable(model: GPT2Classifier, trainable: str, lora: LowRank) -> None:
    """Freeze all but the head; and the final LayerNorm and last block or two; or nothing.

    With `lora` the head and low-rank updates of the blocks' linear layers learn, to be merged
    with `merge_low_rank` when training is done.
    """
    blocks = {"last_block": 1, "last_two_blocks": 2, "all": len(model.transformer.h)}
    model.requires_grad_(trainable == "all")
    if trainable == "lora":
        add_low_rank(model.transformer, lora.rank, lora.alpha)
    model.score.requires_grad_(True)
    if count := min(blocks.get(trainable, 0), len(model.transformer.h)):
        model.transformer.ln_f.requires_grad_(True)
        for block in model.transformer.h[-count:]:
            block.requires_grad_(True)


def predict(
    model: nn.Module, task: ClassificationTask, batches: Sequence[LabeledBatch], runtime: Runtime
) -> np.ndarray:
    """Logits [N, K] of ready-made batches, in their order."""

    def logits(batch: LabeledBatch) -> np.ndarray:
        return task.logits(model, batch, runtime).float().cpu().numpy()

    return np.concatenate(runtime.infer(model, logits, batches))


def mean_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Unweighted cross-entropy per example, nats."""
    chosen = softmax(logits)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean())
