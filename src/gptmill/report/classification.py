"""The classifier: confusion matrices, labels by F1, what is confused, precision against recall."""

from dataclasses import dataclass, field

from gptmill.report.charts import Chart, Series, line_chart
from gptmill.report.read import Results

FOLDER = "plots/finetune_classifier"
LARGEST = 12  # labels of a matrix that can be read
CONFUSED = 12  # pairs of labels that are listed


@dataclass(frozen=True)
class Confusion:
    """Counts of a split: `counts[truth][prediction]`, and each as a share of its row."""

    split: str
    labels: list[str]
    counts: list[list[int]]
    shares: list[list[float]]


@dataclass(frozen=True)
class Classification:
    """What the page shows of the classifier; empty where it was not trained.

    Attributes:
        matrices: one a split, of as many labels as can be read.
        charts: precision against recall, of two labels.
        classes: rows of the test split, the lowest F1 first.
        confused: label, what it was called, and how often, of more labels than a matrix shows.
    """

    matrices: list[Confusion] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    classes: list[dict[str, str]] = field(default_factory=list)
    confused: list[tuple[str, str, int]] = field(default_factory=list)


def section(results: Results) -> Classification:
    """The classifier's part of the page."""
    rows = results.rows(f"{FOLDER}/confusion.csv")
    splits = list(dict.fromkeys(row["split"] for row in rows))
    classes = results.rows(f"{FOLDER}/classes.csv")
    labels = list(dict.fromkeys(row["label"] for row in classes))
    curve = results.rows(f"{FOLDER}/precision_recall.csv")
    few = len(labels) <= LARGEST
    wrong = [
        (row["label"], row["predicted"], int(row["texts"]))
        for row in rows
        if row["split"] == "test" and row["label"] != row["predicted"]
    ]
    return Classification(
        [_confusion(split, rows, labels) for split in splits] if few else [],
        [_precision_recall(curve)] if curve else [],
        sorted((r for r in classes if r["split"] == "test"), key=lambda row: float(row["f1"])),
        [] if few else sorted(wrong, key=lambda pair: -pair[2])[:CONFUSED],
    )


def _confusion(split: str, rows: list[dict[str, str]], labels: list[str]) -> Confusion:
    texts = {(r["label"], r["predicted"]): int(r["texts"]) for r in rows if r["split"] == split}
    counts = [[texts.get((truth, guess), 0) for guess in labels] for truth in labels]
    shares = [[count / (sum(row) or 1) for count in row] for row in counts]
    return Confusion(split, labels, counts, shares)


def _precision_recall(rows: list[dict[str, str]]) -> Chart:
    models = list(dict.fromkeys(row["model"] for row in rows))
    series = [
        Series(
            model,
            [(float(r["recall"]), float(r["precision"])) for r in rows if r["model"] == model],
            color,
        )
        for color, model in enumerate(models, start=1)
    ]
    lowest = min(float(row["precision"]) for row in rows)
    return line_chart(
        "Precision against recall, test split",
        series,
        x="recall",
        y="precision",
        limits=(min(0.95, int(lowest * 10) / 10), 1.01),
    )
