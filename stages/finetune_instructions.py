"""Fine-tune the foundation to follow instructions."""

from pathlib import Path

from gptmill.engine.runtime import open_runtime
from gptmill.params import load
from gptmill.tasks.instruction_tuning import InstructionTuning
from stages import run
from stages._training import train_stage


def main(foundation: Path, data: Path, output: Path, metrics: Path, plots: Path) -> None:
    parameters = load()
    section = parameters.finetune_instructions
    runtime = open_runtime(**dict(parameters.runtime), launch=parameters.launch)
    style, seed = parameters.prepare_instructions.prompt_style, parameters.runtime.seed
    train_stage(
        "finetune_instructions",
        InstructionTuning(section, style, foundation, data, runtime, seed),
        section,
        runtime,
        keyed=[parameters.prepare_instructions, parameters.runtime],
        inputs={"foundation": foundation, "data": data},
        output=output,
        metrics=metrics,
        plots=plots,
    )


if __name__ == "__main__":
    run(main, launched=True)
