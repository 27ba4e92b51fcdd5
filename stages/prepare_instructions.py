"""Split the instructions 85/10/5, no combination of one split in another."""

from pathlib import Path

from gptmill.data.instructions import prepare
from gptmill.params import load
from gptmill.tracking import Stage
from stages import run


def main(entries: Path, output: Path, metrics: Path) -> None:
    parameters = load()
    section = parameters.prepare_instructions
    with Stage("prepare_instructions", section.model_dump(), {"entries": entries}) as stage:
        counts = prepare(
            entries / "instructions.json",
            output,
            train_fraction=section.train_fraction,
            test_fraction=section.test_fraction,
            seed=parameters.runtime.seed,
        )
        stage.write_metrics(metrics, counts)


if __name__ == "__main__":
    run(main)
