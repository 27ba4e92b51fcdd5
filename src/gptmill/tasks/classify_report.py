"""What a classifier reached, beside the linear model that every user would compare it with.

Shapes: N texts, K labels.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from gptmill.data.scripts import without_spaces
from gptmill.engine.runtime import Runtime
from gptmill.reading import Reading, softmax
from gptmill.tasks.classify import (
    ClassificationData,
    ClassificationTask,
    LabeledSplit,
    mean_loss,
)

BINS = 15  # of confidence, as Guo et al. (2017) have them
TEMPERATURES = (0.05, 20.0)  # a validation split without a mistake would ask for zero
WORDS = 2  # fewer in the mean text, and the linear model reads characters

Row = dict[str, Any]


def classification_metrics(
    labels: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray, prefix: str
) -> dict[str, float]:
    """Figures of one split; of labels that it lacks there is none.

    Args:
        labels, predicted: [N] of 0 to K - 1.
        probabilities: [N, K].

    Returns:
        `accuracy`; F1 averaged over labels, equally (`macro_f1`) and by their texts
        (`weighted_f1`); `matthews_correlation`; `pr_auc`, the average precision of the second of
        two labels, or its mean over labels against the rest; `expected_calibration_error`.
    """
    from sklearn import metrics

    classes = probabilities.shape[1]
    present = np.unique(labels)
    ranked = present if classes > 2 else np.array([1])
    areas = [
        metrics.average_precision_score(labels == label, probabilities[:, label])
        for label in ranked
        if label in present
    ]
    f1 = {
        f"{average}_f1": metrics.f1_score(
            labels, predicted, labels=present, average=average, zero_division=0
        )
        for average in ("macro", "weighted")
    }
    found = {
        "accuracy": metrics.accuracy_score(labels, predicted),
        **f1,
        "matthews_correlation": metrics.matthews_corrcoef(labels, predicted),
        "pr_auc": np.mean(areas) if areas else 0.0,
        "expected_calibration_error": expected_calibration_error(labels, probabilities),
    }
    return {f"{prefix}{name}": float(value) for name, value in found.items()}


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean distance of confidence and accuracy over bins of confidence (Guo et al. 2017)."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, right - confidence, BINS)  # per bin: texts × (accuracy - confidence)
    return float(np.abs(gaps).sum() / len(labels))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that makes the labels likeliest, of logits [N, K] held out."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log: mean_loss(logits.astype(np.float64) / np.exp(log), labels),
        bounds=tuple(np.log(TEMPERATURES)),
        method="bounded",
    )
    return float(np.exp(found.x))


def fit_threshold(labels: np.ndarray, probability: np.ndarray) -> float:
    """The probability of label 1 [N] from which calling it so gives the highest macro-F1.

    Halfway between the two probabilities that it parts; the one nearest to 0.5 of equals.
    """
    order = np.argsort(-probability, kind="stable")
    ranked, truth = probability[order], labels[order]
    called = np.arange(1, len(truth))
    true_positives = np.cumsum(truth)[:-1]
    false_positives, missed = called - true_positives, truth.sum() - true_positives
    true_negatives = len(truth) - called - missed
    f1 = [
        2 * hits / np.maximum(2 * hits + false_positives + missed, 1)
        for hits in (true_positives, true_negatives)
    ]
    score = np.where(ranked[:-1] > ranked[1:], np.add(*f1), -1.0)
    between = (ranked[:-1] + ranked[1:]) / 2
    best = np.flatnonzero(score == score.max())
    return float(between[best[np.abs(between[best] - 0.5).argmin()]])


def calibrated(
    data: ClassificationData, logits: np.ndarray, threshold: float
) -> tuple[Reading, dict[str, float]]:
    """The reading with a temperature, and if `threshold` is 0 a threshold, of the validation split.

    Args:
        logits: [N, K] of the validation split.

    Returns:
        The reading, and `temperature`, `threshold` (of two labels) and the calibration error of
        validation before the temperature.
    """
    labels = data.validation.labels
    temperature = fit_temperature(logits, labels)
    reading = replace(data.reading, temperature=temperature)
    found = {
        "temperature": temperature,
        "validation/expected_calibration_error_before": expected_calibration_error(
            labels, softmax(logits)
        ),
    }
    if len(reading.labels) == 2:
        chance = reading.probabilities(logits)[:, 1]
        reading = replace(reading, threshold=threshold or fit_threshold(labels, chance))
        found["threshold"] = reading.threshold
    return reading, found


def final_report(
    data: ClassificationData,
    model: nn.Module,
    task: ClassificationTask,
    runtime: Runtime,
    *,
    baseline: Any,
    threshold: float,
) -> tuple[Reading, dict[str, Any], dict[str, list[Row]]]:
    """The calibrated reading, and figures of the model and of the baseline on held-out texts.

    Args:
        baseline: a fitted `tfidf_baseline`.
        threshold: of the second of two labels; 0 is found on the validation split.

    Returns:
        The reading; flat metrics (`test/…`, `baseline/test/…`); the rows of `predictions` (one per
        text), `confusion` (one per pair of labels), `classes` (one per label) and, of two labels,
        `precision_recall` (one per threshold and model, on the test split).
    """
    logits = {
        name: data.logits(split, model, task, runtime)
        for name, split in (("validation", data.validation), ("test", data.test))
    }
    reading, metrics = calibrated(data, logits["validation"], threshold)
    tables: dict[str, list[Row]] = {"predictions": [], "confusion": [], "classes": []}
    for name, split in (("validation", data.validation), ("test", data.test)):
        chances = reading.probabilities(logits[name])
        theirs = baseline.predict_proba(split.texts)
        predicted = reading.choose(chances)
        metrics |= classification_metrics(split.labels, chances, predicted, f"{name}/")
        metrics |= classification_metrics(
            split.labels, theirs, theirs.argmax(axis=1), f"baseline/{name}/"
        )
        for table, rows in _tables(name, split, reading, chances, predicted).items():
            tables[table] += rows
        if name == "test" and len(reading.labels) == 2:
            tables["precision_recall"] = [
                *precision_recall(split.labels, softmax(logits[name])[:, 1], "GPT-2"),
                *precision_recall(split.labels, theirs[:, 1], "TF-IDF"),
            ]
    return reading, metrics, tables


def _tables(
    name: str,
    split: LabeledSplit,
    reading: Reading,
    chances: np.ndarray,
    predicted: np.ndarray,
) -> dict[str, list[Row]]:
    """Rows about one split: of each text, of each pair of labels that occurs, of each label."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    names, labels = reading.labels, split.labels
    every = np.arange(len(names))
    counts = confusion_matrix(labels, predicted, labels=every)
    scores = precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0)
    return {
        "predictions": [
            {"split": name, "label": names[y], "predicted": names[p], "probability": round(c, 6)}
            for y, p, c in zip(labels, predicted, chances[np.arange(len(predicted)), predicted])
        ],
        "confusion": [
            {"split": name, "label": names[y], "predicted": names[p], "texts": int(counts[y, p])}
            for y, p in np.argwhere(counts)
        ],
        "classes": [
            {
                "split": name,
                "label": names[label],
                "precision": round(float(scores[0][label]), 6),
                "recall": round(float(scores[1][label]), 6),
                "f1": round(float(scores[2][label]), 6),
                "texts": int(scores[3][label]),
            }
            for label in every
        ],
    }


def confusion_table(
    rows: Sequence[Row], labels: Sequence[str], split: str
) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of one split's confusion matrix [K, K], truth by row."""
    counts = {(r["label"], r["predicted"]): r["texts"] for r in rows if r["split"] == split}
    columns = ["truly", *(f"called {label}" for label in labels)]
    return columns, [[y, *(counts.get((y, p), 0) for p in labels)] for y in labels]


def precision_recall(labels: np.ndarray, chance: np.ndarray, model: str) -> list[Row]:
    """Points of the precision–recall curve of label 1."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(labels, chance, drop_intermediate=True)
    return [
        {"model": model, "recall": round(r, 6), "precision": round(p, 6)}
        for r, p in zip(recall, precision)
    ]


def tfidf_baseline(texts: Sequence[str], labels: np.ndarray, balanced: bool, seed: int) -> Any:
    """What every user would compare with: TF-IDF of words and pairs, logistic regression.

    Where texts have no spaces between words, or hardly a word of two characters, runs of one to
    three characters are counted instead.

    Returns:
        A fitted sklearn pipeline; `predict_proba(texts)` is [N, K], labels in their order.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    tokens = words.build_tokenizer()
    few = np.mean([len(tokens(text)) for text in texts]) < WORDS
    if few or without_spaces("\n".join(texts)):
        words = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
    return make_pipeline(
        words,
        LogisticRegression(
            C=10.0, max_iter=1000, random_state=seed, class_weight="balanced" if balanced else None
        ),
    ).fit(texts, labels)
