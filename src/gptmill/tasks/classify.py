"""Sequence classification: batches, loss, layers to train, and the metrics people compare by.

Shapes: B batch, T time, K labels, N examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptmill.data.spam import SPLITS, class_weights, read_split
from gptmill.engine.runtime import Runtime
from gptmill.model.classifier import GPT2Classifier
from gptmill.model.lora import add_low_rank
from gptmill.params import LowRank
from gptmill.tasks.language_model import evaluating
from gptmill.tokenizer import Tokenizer

EVALUATION_BATCH = 64  # texts in one forward pass without gradients


class LabelledBatch(NamedTuple):
    """Ids [B, T] padded on the right, 1 for real tokens [B, T], labels [B]."""

    inputs: np.ndarray
    mask: np.ndarray
    labels: np.ndarray


class ClassificationTask:
    """Cross-entropy of the label, each example weighted by its class.

    Args:
        class_weights: [K], all one for a balanced training set.
        readout: `last_token` or, as in the book, `padded_last`, which takes padding for text.
    """

    def __init__(self, class_weights: Sequence[float], readout: str) -> None:
        self.class_weights = np.asarray(class_weights, dtype=np.float32)
        self.readout = readout

    def targets(self, batch: LabelledBatch) -> float:
        return float(self.class_weights[batch.labels].sum())

    def loss(self, model: nn.Module, batch: LabelledBatch, runtime: Runtime) -> Tensor:
        return F.cross_entropy(
            self.logits(model, batch, runtime).float(),
            runtime.tensor(batch.labels),
            weight=runtime.tensor(self.class_weights),
            reduction="sum",
        )

    def logits(self, model: nn.Module, batch: LabelledBatch, runtime: Runtime) -> Tensor:
        """Logits [B, K]."""
        mask = None if self.readout == "padded_last" else runtime.tensor(batch.mask)
        return model(runtime.tensor(batch.inputs), mask)


def collate_labelled(
    examples: list[tuple[list[int], int]], padding: int, length: int | None = None
) -> LabelledBatch:
    """Pad on the right with `padding` to the longest text, or to `length`.

    Args:
        examples: (ids, label), the ids at most `length` long.
    """
    width = length or max(len(ids) for ids, _ in examples)
    inputs = np.full((len(examples), width), padding, dtype=np.int64)
    mask = np.zeros((len(examples), width), dtype=np.int64)
    for row, (ids, _) in enumerate(examples):
        inputs[row, : len(ids)] = ids
        mask[row, : len(ids)] = 1
    return LabelledBatch(inputs, mask, np.array([label for _, label in examples], dtype=np.int64))


@dataclass(frozen=True)
class LabelledSplit:
    """Texts, their (ids, label) pairs and labels [N] of one split."""

    frame: pd.DataFrame
    examples: list[tuple[list[int], int]]

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
    """The three splits of a folder of CSVs (`label`, `text`), encoded for one tokenizer.

    Args:
        maximum_length: tokens kept of a text; 0 is the longest training text.
        context_length: what the model can take; longer is cut in any case.
        readout: `last_token` pads every text to the longest of its batch and `padded_last` to the
            maximum length; `first_token` keeps that token alone and is `last_token` from then on,
            since no later token reaches the first one's hidden state.

    Attributes:
        readout: where to read of what is kept, `last_token` or `padded_last`.
        class_weights: [K] for the loss, all about one when the training classes are balanced.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        maximum_length: int,
        context_length: int,
        readout: str,
    ) -> None:
        if readout == "first_token":
            readout, maximum_length = "last_token", 1
        self.readout = readout
        self.padding = tokenizer.end_of_text
        frames = {name: read_split(folder / f"{name}.csv") for name in SPLITS}
        ids = {name: tokenizer.encode_batch(list(frame["text"])) for name, frame in frames.items()}
        longest = max(len(text) for text in ids["train"])
        self.maximum_length = min(maximum_length or longest, context_length)
        self.padded_length = self.maximum_length if readout == "padded_last" else None
        self.train, self.validation, self.test = (
            LabelledSplit(
                frame,
                [(text[: self.maximum_length], y) for text, y in zip(ids[name], frame["label"])],
            )
            for name, frame in frames.items()
        )
        self.class_weights = class_weights(self.train.labels)

    def collate(self, examples: list[tuple[list[int], int]]) -> LabelledBatch:
        return collate_labelled(examples, self.padding, self.padded_length)

    def logits(
        self, split: LabelledSplit, model: nn.Module, task: ClassificationTask, runtime: Runtime
    ) -> np.ndarray:
        """Logits [N, K] of a split, in its order; like lengths are computed together."""
        order = np.argsort(split.lengths, kind="stable")
        batches = [
            self.collate([split.examples[i] for i in order[start : start + EVALUATION_BATCH]])
            for start in range(0, len(order), EVALUATION_BATCH)
        ]
        logits = predict(model, task, batches, runtime)
        return logits[np.argsort(order, kind="stable")]

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
    model: nn.Module, task: ClassificationTask, batches: Sequence[LabelledBatch], runtime: Runtime
) -> np.ndarray:
    """Logits [N, K] of ready-made batches, in their order."""
    with evaluating(model), torch.inference_mode(), runtime.autocast():
        rows = [task.logits(model, batch, runtime).float().cpu().numpy() for batch in batches]
    return np.concatenate(rows)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def mean_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Unweighted cross-entropy per example, nats."""
    chosen = probabilities(logits)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean())


def classification_metrics(
    labels: np.ndarray, positive_probability: np.ndarray, prefix: str
) -> dict[str, Any]:
    """Accuracy, macro-F1, PR-AUC (average precision of label 1) and the confusion matrix's cells.

    Args:
        labels: [N] of 0 and 1.
        positive_probability: [N], the probability of label 1; at least one half predicts it.
    """
    from sklearn import metrics

    predicted = (positive_probability >= 0.5).astype(int)
    confusion = metrics.confusion_matrix(labels, predicted, labels=[0, 1])
    names = ("true_negatives", "false_positives", "false_negatives", "true_positives")
    return {
        f"{prefix}accuracy": float(metrics.accuracy_score(labels, predicted)),
        f"{prefix}macro_f1": float(metrics.f1_score(labels, predicted, average="macro")),
        f"{prefix}pr_auc": float(metrics.average_precision_score(labels, positive_probability)),
        **{f"{prefix}{name}": int(count) for name, count in zip(names, confusion.ravel())},
    }


def confusion_table(metrics: dict[str, Any], split: str) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the confusion matrix of one split, from its metrics."""
    names = ("true_negatives", "false_positives", "false_negatives", "true_positives")
    counts = [metrics[f"{split}/{name}"] for name in names]
    return ["truly", "called ham", "called spam"], [["ham", *counts[:2]], ["spam", *counts[2:]]]


def final_report(
    data: ClassificationData,
    model: nn.Module,
    task: ClassificationTask,
    runtime: Runtime,
    seed: int,
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Metrics and tables of the model and of the TF-IDF baseline on validation and test.

    Returns:
        Flat metrics (`test/…`, `baseline/test/…`), and the rows of `predictions` (one per text)
        and `precision_recall` (one per threshold and model, on the test split).
    """
    balanced = not np.allclose(data.class_weights, 1.0, atol=0.05)
    baseline = tfidf_baseline(data.train.texts, data.train.labels, balanced, seed)
    metrics: dict[str, Any] = {}
    predictions, curves = [], []
    for name, split in (("validation", data.validation), ("test", data.test)):
        chances = {
            "": probabilities(data.logits(split, model, task, runtime))[:, 1],
            "baseline/": baseline.predict_proba(split.texts)[:, 1],
        }
        for prefix, chance in chances.items():
            metrics |= classification_metrics(split.labels, chance, f"{prefix}{name}/")
            if name == "test":
                curves += precision_recall(split.labels, chance, "TF-IDF" if prefix else "GPT-2")
        predictions += [
            {"split": name, "label": y, "predicted": int(p >= 0.5), "probability": round(p, 6)}
            for y, p in zip(split.labels, chances[""])
        ]
    return metrics, {"predictions": predictions, "precision_recall": curves}


def precision_recall(labels: np.ndarray, chance: np.ndarray, model: str) -> list[dict[str, Any]]:
    """Points of the precision–recall curve of label 1."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(labels, chance, drop_intermediate=True)
    return [
        {"model": model, "recall": round(r, 6), "precision": round(p, 6)}
        for r, p in zip(recall, precision)
    ]


def tfidf_baseline(
    train_texts: Sequence[str], train_labels: np.ndarray, balanced: bool, seed: int
) -> Any:
    """What every user would compare with: TF-IDF of words and pairs, logistic regression.

    Returns:
        A fitted sklearn pipeline; `predict_proba(texts)[:, 1]` is the probability of label 1.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(
            C=10.0, max_iter=1000, random_state=seed, class_weight="balanced" if balanced else None
        ),
    ).fit(train_texts, train_labels)
