"""Balance or weigh labeled texts, split them where they are not split, and write a CSV a split."""

from pathlib import Path

from gptmill.data.classification import RAW_FILE, class_table, prepare
from gptmill.params import load
from gptmill.tracking import Stage
from stages import run


def main(texts: Path, output: Path, metrics: Path) -> None:
    parameters = load()
    section = parameters.prepare_classification
    with Stage("prepare_classification", section.model_dump(), {"texts": texts}) as stage:
        counts = prepare(
            texts / RAW_FILE,
            output,
            **dict(section),
            seed=parameters.runtime.seed,
        )
        stage.write_metrics(metrics, counts)
        stage.table("classes", *class_table(output))


if __name__ == "__main__":
    run(main)
