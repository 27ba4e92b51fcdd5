"""Fine-tune the foundation to tell spam from ham, beside TF-IDF and logistic regression."""

from pathlib import Path

from gptmill.data.spam import best_possible_accuracy, spam_share
from gptmill.engine.batches import ShuffledBatches
from gptmill.engine.checkpoint import Checkpoints, run_key
from gptmill.engine.optim import build_optimizer
from gptmill.engine.runtime import open_runtime
from gptmill.engine.state import TrainState
from gptmill.engine.training import train
from gptmill.files import write_json
from gptmill.model.classifier import random_language_model, with_classification_head
from gptmill.model.lora import merge_low_rank
from gptmill.params import load
from gptmill.tasks.classify import (
    ClassificationData,
    ClassificationTask,
    choose_trainable,
    confusion_table,
    final_report,
)
from gptmill.tokenizer import load_tokenizer
from gptmill.tracking import Stage
from gptmill.weights.folder import load_language_model, save_model
from stages import run, write_curves


def main(foundation: Path, data: Path, output: Path, metrics: Path, plots: Path) -> None:
    parameters = load()
    section = parameters.finetune_classifier
    runtime = open_runtime(**dict(parameters.runtime))
    tokenizer = load_tokenizer(foundation)
    start = load_language_model(foundation)
    if section.initial_weights == "random":
        start = random_language_model(start.config)
    model = with_classification_head(start, labels=2).to(runtime.device)
    choose_trainable(model, section.trainable, section.lora)
    spam = ClassificationData(
        data, tokenizer, section.maximum_length, model.config.context_length, section.readout
    )
    task = ClassificationTask(spam.class_weights, spam.readout)
    batches = ShuffledBatches(
        spam.train.examples,
        spam.collate,
        section.training.batch_size,
        parameters.runtime.seed,
        lengths=spam.train.lengths,
    )
    state = TrainState(model, build_optimizer(model, section.optimizer), batches)
    key = run_key([section, parameters.runtime], [foundation, data])
    checkpoints = Checkpoints("finetune_classifier", key)
    checkpoints.load(state)
    inputs = {"foundation": foundation, "data": data}
    with Stage("finetune_classifier", section.model_dump(), inputs, state.run_id) as stage:
        state.run_id = stage.run_id
        examples_per_second = train(
            state,
            task,
            runtime,
            steps=section.epochs * batches.batches_per_epoch // section.training.accumulation,
            training=section.training,
            optimizer=section.optimizer,
            checkpoints=checkpoints,
            evaluate=lambda: spam.evaluate(model, task, runtime),
            log=stage.log,
        )
        merge_low_rank(model)
        results, tables = final_report(spam, model, task, runtime, parameters.runtime.seed)
        best = best_possible_accuracy(data / "test.csv", spam_share(data / "train.csv"))
        if best is not None:
            results["test/best_possible_accuracy"] = best
        save_model(
            output,
            model,
            tokenizer,
            provenance=stage.provenance(),
            labels=["ham", "spam"],
            maximum_length=spam.maximum_length,
            readout=spam.readout,
        )
        write_curves(plots, {**state.curves, **tables})
        stage.outputs(output, plots)
        stage.table("confusion_matrix", *confusion_table(results, "test"))
        write_json(metrics, results)
        stage.metrics(results)
        stage.timing({"examples_per_second": examples_per_second})
    checkpoints.remove()


if __name__ == "__main__":
    run(main)
