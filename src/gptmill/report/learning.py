"""The three training runs: their curves, what the curves say, and how the text grew."""

from dataclasses import dataclass

from gptmill.diagnosis import Diagnosis, diagnose
from gptmill.report.charts import Chart, Level, Series, line_chart
from gptmill.report.read import Results

TITLES = {
    "pretrain": "Pretraining",
    "finetune_classifier": "Fine-tuning the classifier",
    "finetune_instructions": "Fine-tuning on instructions",
}
MOST_SAMPLES = 8


@dataclass(frozen=True)
class TrainingRun:
    """One training stage; without curves `charts` is empty and `diagnosis` is `None`."""

    stage: str
    title: str
    charts: list[Chart]
    diagnosis: Diagnosis | None


def training_runs(results: Results) -> list[TrainingRun]:
    """Every training stage of the pipeline, run or not."""
    return [_training_run(results, stage, title) for stage, title in TITLES.items()]


def samples(results: Results) -> list[tuple[str, list[dict[str, object]]]]:
    """Title and texts by step of the runs that sampled, at most eight of each."""
    found = []
    for stage, title in TITLES.items():
        texts = results.entries(f"plots/{stage}/samples.json")
        if texts:
            found.append((title, _spread(texts, MOST_SAMPLES)))
    return found


def _training_run(results: Results, stage: str, title: str) -> TrainingRun:
    training = results.curve(f"plots/{stage}/training.csv", "train/loss")
    validation = results.curve(f"plots/{stage}/evaluation.csv", "validation/loss")
    if not training:
        return TrainingRun(stage, title, [], None)
    floor = results.metric(stage, "validation/floor_loss")
    losses = [Series("training", training, 1), Series("validation", validation, 2, marks=True)]
    level = Level("floor", floor) if floor else None
    unit = "example" if stage == "finetune_classifier" else "token"
    steep = stage != "finetune_classifier"  # language losses fall by an order of magnitude
    charts = [
        line_chart("Loss", losses, y=f"nats per {unit}", log=steep, level=level),
        *_accuracy(results, stage),
        *_single(results, stage, "Learning rate", "learning_rate", 3),
        *_single(results, stage, "Gradient norm", "gradient_norm", 4, log=True),
        *_throughput(results, stage),
    ]
    return TrainingRun(stage, title, charts, diagnose(training, validation, floor))


def _accuracy(results: Results, stage: str) -> list[Chart]:
    points = results.curve(f"plots/{stage}/evaluation.csv", "validation/accuracy")
    if not points:
        return []
    series = [Series("validation accuracy", points, 2, marks=True)]
    best = results.metric(stage, "test/best_possible_accuracy")
    level = Level("best possible on test", best) if best else None
    return [line_chart("Accuracy", series, level=level)]


def _single(
    results: Results, stage: str, title: str, column: str, color: int, log: bool = False
) -> list[Chart]:
    points = results.curve(f"plots/{stage}/training.csv", column)
    return [line_chart(title, [Series(title.lower(), points, color)], log=log)] if points else []


def _throughput(results: Results, stage: str) -> list[Chart]:
    """Rates while training, as the stage wrote them beside its wall time."""
    rows = results.rows(f"timings/{stage}.csv")
    names = list(dict.fromkeys(row["name"] for row in rows))
    series = []
    for color, name in enumerate(names, start=1):
        points = [(float(r["step"]), float(r["value"])) for r in rows if r["name"] == name]
        # Before the first step was timed there is no rate.
        points = [(step, rate) for step, rate in points if rate > 0]
        if points:
            series.append(Series(name.replace("_per_second", "").replace("_", " "), points, color))
    unit = f"{series[0].name} per second" if len(series) == 1 else "per second"
    return [line_chart("Throughput", series, y=unit)] if series else []


def _spread(items: list, most: int) -> list:
    """At most so many, evenly spread, first and last among them."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
