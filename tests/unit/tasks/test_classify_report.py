"""A classifier's figures against hand counts, scikit-learn, and a grid."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from gptmill.reading import softmax
from gptmill.tasks.classify import mean_loss
from gptmill.tasks.classify_report import (
    classification_metrics,
    confusion_table,
    expected_calibration_error,
    fit_temperature,
    fit_threshold,
    tfidf_baseline,
)


def of_two(chance: list[float]) -> np.ndarray:
    return np.stack([1 - np.array(chance), chance], axis=1)


def test_two_labels_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    chance = of_two([0.1, 0.2, 0.7, 0.9, 0.4])
    metrics = classification_metrics(labels, chance, chance.argmax(axis=1), "test/")
    assert metrics["test/accuracy"] == pytest.approx(3 / 5)
    # ham: precision 2/3, recall 2/3; spam: precision 1/2, recall 1/2
    assert metrics["test/macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert metrics["test/weighted_f1"] == pytest.approx((3 * 2 / 3 + 2 * 1 / 2) / 5)
    # ranked: spam, ham, spam, … : precision 1 at recall 1/2, 2/3 at recall 1
    assert metrics["test/pr_auc"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # (TP TN - FP FN) / sqrt of the four sums: (1·2 - 1·1) / sqrt(2·2·3·3)
    assert metrics["test/matthews_correlation"] == pytest.approx(1 / 6)


def test_three_labels_by_hand() -> None:
    labels = np.array([0, 0, 1, 2])
    chance = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.8, 0.1], [0.4, 0.5, 0.1]])
    metrics = classification_metrics(labels, chance, chance.argmax(axis=1), "")
    assert metrics["accuracy"] == 2 / 4
    # 0: precision 1, recall 1/2; 1: precision 1/3, recall 1; 2: never called
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    # one against rest, average precision: 0 ranked 1st and 3rd; 1 first; 2 last of equals
    assert metrics["pr_auc"] == pytest.approx(((1 + 2 / 3) / 2 + 1 + 1 / 4) / 3, abs=1e-9)


def test_a_label_that_a_split_lacks_is_left_out_of_the_mean() -> None:
    labels = np.array([0, 1, 0, 1])
    chance = np.eye(3)[[0, 1, 0, 1]]
    metrics = classification_metrics(labels, chance, labels, "")
    assert metrics["macro_f1"] == metrics["pr_auc"] == 1.0


def test_calibration_error_by_hand() -> None:
    # bin 9/15 … 10/15 holds 0.65 and 0.62, one right; bin 13/15 holds 0.9, right
    chance = of_two([0.65, 0.38, 0.9])
    error = expected_calibration_error(np.array([1, 1, 1]), chance)
    assert error == pytest.approx((2 * abs(0.5 - 0.635) + abs(1 - 0.9)) / 3)


def test_the_temperature_is_that_of_the_draw() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(20_000, 4)) * 3
    chances = softmax(logits / 2.5)
    labels = (chances.cumsum(axis=1) > random.random((len(logits), 1))).argmax(axis=1)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(2.5, rel=0.03)
    assert mean_loss(logits / temperature, labels) < mean_loss(logits, labels)
    perfect = np.array([[5.0, 0.0], [0.0, 5.0]])
    assert 0.05 <= fit_temperature(perfect, np.array([0, 1])) < 0.2  # not zero


def test_the_threshold_is_the_best_of_all() -> None:
    random = np.random.default_rng(1)
    labels = (random.random(300) < 0.15).astype(int)
    chance = np.clip(0.15 * labels + random.random(300) * 0.4, 0, 1)
    found = fit_threshold(labels, chance)

    def score(threshold: float) -> float:
        return f1_score(labels, chance >= threshold, average="macro")

    assert score(found) == pytest.approx(max(map(score, np.linspace(0, 1, 5001))))
    assert score(found) > score(0.5) + 0.1


def test_the_matrix_has_a_row_a_label() -> None:
    rows = [{"split": "test", "label": "b", "predicted": "a", "texts": 3},
            {"split": "validation", "label": "a", "predicted": "a", "texts": 9}]  # fmt: skip
    columns, table = confusion_table(rows, ["a", "b"], "test")
    assert columns == ["truly", "called a", "called b"]
    assert table == [["a", 0, 0], ["b", 3, 0]]


def test_the_baseline_learns_words() -> None:
    texts = ["win cash now", "free cash prize", "see you at home", "lunch at home"] * 5
    labels = np.array([1, 1, 0, 0] * 5)
    baseline = tfidf_baseline(texts, labels, balanced=False, seed=0)
    chance = baseline.predict_proba(["free cash", "at home"])[:, 1]
    assert chance[0] > 0.8
    assert chance[1] < 0.2


@pytest.mark.parametrize(
    ("texts", "asked"),
    [
        (
            ["天氣很好我們去公園", "今天公園很好玩", "股票跌了很多", "市場股票今天跌"],
            ["公園好", "股票"],
        ),
        (["++", "++-", "!!", "!?!"], ["+", "!"]),
        (["I a", "a I I", "u u", "u o u"], ["I", "u"]),
        (["ACGTACGT" * 9, "ACGTTACG" * 9, "GGCCGGTT" * 9, "GGTTGGCC" * 9], ["ACG" * 30, "GG" * 40]),
    ],
)
def test_the_baseline_reads_characters_where_words_are_few(texts, asked) -> None:
    baseline = tfidf_baseline(texts * 5, np.array([0, 0, 1, 1] * 5), balanced=False, seed=0)
    assert list(baseline.predict(asked)) == [0, 1]
