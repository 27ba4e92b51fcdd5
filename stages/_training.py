"""One training stage, whatever its recipe: resumed, recorded, published whole."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gptmill.engine.checkpoint import Checkpoints, run_key
from gptmill.engine.nonfinite import left_out
from gptmill.engine.optim import build_optimizer
from gptmill.engine.runtime import Runtime
from gptmill.engine.state import TrainState
from gptmill.engine.training import show_finished, steps_of_epochs, train
from gptmill.tasks.recipe import Recipe, Result
from gptmill.tracking import Stage, stage_of
from gptmill.weights.folder import save_model
from stages import write_curves


def train_stage(
    name: str,
    recipe: Recipe,
    section: Any,
    runtime: Runtime,
    *,
    keyed: list[BaseModel],
    inputs: dict[str, Path],
    output: Path,
    metrics: Path,
    plots: Path,
) -> None:
    """Train from the last checkpoint, or take the finished training where only parameters have
    changed that measure it (`checkpoint.AFTERWARDS`); publish model, curves and metrics.

    Args:
        name: the stage's name in dvc.yaml.
        section: its parameters, `training`, `optimizer` and `epochs` among them.
        keyed: the other parameters that decide the result: a checkpoint of others is not taken.
        inputs: what the stage reads, by name.
    """
    training = section.training
    model = runtime.spread(recipe.model)
    optimizer = build_optimizer(model, section.optimizer, runtime.workers(model))
    whole_model = recipe.model if model is not recipe.model else None
    state = TrainState(model, optimizer, recipe.batches, whole_model=whole_model)
    checkpoints = Checkpoints(name, run_key([section, *keyed], list(inputs.values())), runtime)
    finished = not checkpoints.load(state) and checkpoints.load_finished(state, section)
    with stage_of(runtime.first, name, section.model_dump(), inputs, state.run_id) as stage:
        state.run_id = stage.run_id
        hooks = recipe.hooks(stage.text)
        if finished:
            rate = 0.0
            show_finished(state, hooks, stage.log)
        else:
            rate = train(
                state,
                recipe.task,
                runtime,
                steps=recipe.steps
                or steps_of_epochs(recipe.batches, section.epochs, training.accumulation),
                training=training,
                optimizer=section.optimizer,
                checkpoints=checkpoints,
                evaluate=recipe.evaluate,
                log=stage.log,
                hooks=hooks,
            )
            checkpoints.finish(state)
        state.gather()
        result = recipe.finish(state, stage.text)
        if not runtime.first:
            return
        _publish(stage, recipe, state, result, output, plots)
        stage.write_metrics(metrics, result.metrics | left_out(state))
        if rate:
            stage.timing({f"{recipe.task.unit}_per_second": rate})
        if rate and result.flops_per_target is not None:
            stage.timing({"mfu": rate * result.flops_per_target / runtime.peak_flops()})
    checkpoints.close(section)


def _publish(
    stage: Stage, recipe: Recipe, state: TrainState, result: Result, output: Path, plots: Path
) -> None:
    """Write the model and its curves."""
    provenance = stage.provenance() | result.origin
    save_model(output, recipe.model, recipe.tokenizer, provenance=provenance, **result.saved)
    write_curves(plots, {**state.curves, **result.tables})
    stage.outputs(output, plots)
    if result.shown is not None:
        stage.table(*result.shown)
