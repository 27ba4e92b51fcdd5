"""Fine-tune the foundation to follow instructions."""

from pathlib import Path

from gptmill.engine.batches import ShuffledBatches
from gptmill.engine.checkpoint import Checkpoints, run_key
from gptmill.engine.optim import build_optimizer
from gptmill.engine.runtime import open_runtime
from gptmill.engine.state import TrainState
from gptmill.engine.training import train
from gptmill.files import write_json
from gptmill.params import load
from gptmill.tasks.instruct import InstructionData
from gptmill.tasks.language_model import LanguageModelTask
from gptmill.tokenizer import load_tokenizer
from gptmill.tracking import Stage
from gptmill.weights.folder import load_language_model, save_model
from stages import run, write_curves


def main(foundation: Path, data: Path, output: Path, metrics: Path, plots: Path) -> None:
    parameters = load()
    section = parameters.finetune_instructions
    style = parameters.prepare_instructions.prompt_style
    runtime = open_runtime(**dict(parameters.runtime))
    tokenizer = load_tokenizer(foundation)
    model = load_language_model(foundation).to(runtime.device)
    entries = InstructionData(
        data,
        tokenizer,
        style,
        section.mask_prompt,
        section.allowed_max_length,
        model.config.context_length,
    )
    batches = ShuffledBatches(
        entries.train,
        entries.collate,
        section.training.batch_size,
        parameters.runtime.seed,
        lengths=entries.lengths,
    )
    state = TrainState(model, build_optimizer(model, section.optimizer), batches)
    key = run_key(
        [section, parameters.prepare_instructions, parameters.runtime], [foundation, data]
    )
    checkpoints = Checkpoints("finetune_instructions", key)
    checkpoints.load(state)
    inputs = {"foundation": foundation, "data": data}
    with Stage("finetune_instructions", section.model_dump(), inputs, state.run_id) as stage:
        state.run_id = stage.run_id
        targets_per_second = train(
            state,
            LanguageModelTask(),
            runtime,
            steps=section.epochs * batches.batches_per_epoch // section.training.accumulation,
            training=section.training,
            optimizer=section.optimizer,
            checkpoints=checkpoints,
            evaluate=lambda: entries.evaluate(model, runtime),
            log=stage.log,
        )
        results = {
            "validation/loss": state.best_value,
            "validation/loss_before": state.curves["evaluation"][0]["validation/loss"],
        }
        save_model(output, model, tokenizer, provenance=stage.provenance(), prompt_style=style)
        write_curves(plots, state.curves)
        stage.outputs(output, plots)
        write_json(metrics, results)
        stage.metrics(results)
        stage.timing({"targets_per_second": targets_per_second})
    checkpoints.remove()


if __name__ == "__main__":
    run(main)
