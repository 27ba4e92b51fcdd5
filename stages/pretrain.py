"""Pretrain a GPT-2 from scratch on the token shards."""

from pathlib import Path

from gptmill.engine.runtime import open_runtime
from gptmill.params import load
from gptmill.tasks.pretraining import Pretraining
from gptmill.weights.foundation import watched_folder
from stages import run
from stages._training import train_stage


def main(tokens: Path, output: Path, metrics: Path, plots: Path) -> None:
    parameters = load()
    section = parameters.pretrain
    runtime = open_runtime(**dict(parameters.runtime), launch=parameters.launch)
    train_stage(
        "pretrain",
        Pretraining(section, tokens, runtime, parameters.runtime.seed),
        section,
        runtime,
        keyed=[parameters.runtime],
        inputs={"tokens": tokens} | watched_folder(section.foundation),
        output=output,
        metrics=metrics,
        plots=plots,
    )


if __name__ == "__main__":
    run(main, launched=True)
