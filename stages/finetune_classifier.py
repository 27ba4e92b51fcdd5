"""Fine-tune the foundation to tell labels apart, with TF-IDF as the baseline."""

from pathlib import Path

from gptmill.engine.runtime import open_runtime
from gptmill.params import load
from gptmill.tasks.classifier_tuning import ClassifierTuning
from stages import run
from stages._training import train_stage


def main(foundation: Path, data: Path, output: Path, metrics: Path, plots: Path) -> None:
    parameters = load()
    section = parameters.finetune_classifier
    runtime = open_runtime(**dict(parameters.runtime), launch=parameters.launch)
    train_stage(
        "finetune_classifier",
        ClassifierTuning(section, foundation, data, runtime, parameters.runtime.seed),
        section,
        runtime,
        keyed=[parameters.runtime],
        inputs={"foundation": foundation, "data": data},
        output=output,
        metrics=metrics,
        plots=plots,
    )


if __name__ == "__main__":
    run(main, launched=True)
