"""Pretrain a GPT-2 from scratch on the token shards."""

from pathlib import Path

from gptmill.data.tokens import TokenSplit
from gptmill.engine.checkpoint import Checkpoints, run_key
from gptmill.engine.hooks import every
from gptmill.engine.optim import build_optimizer
from gptmill.engine.runtime import open_runtime
from gptmill.engine.state import TrainState
from gptmill.engine.training import train
from gptmill.files import write_json
from gptmill.generate.loop import generate
from gptmill.generate.sampling import SamplingOptions
from gptmill.generate.torch_decoder import TorchDecoder
from gptmill.model.gpt2 import flops_per_token
from gptmill.params import load
from gptmill.tasks.language_model import (
    LanguageModelTask,
    Likelihood,
    split_likelihood,
    training_batches,
    training_steps,
)
from gptmill.tasks.python_completion import as_text, complete_functions, completion_metrics
from gptmill.tokenizer import load_tokenizer
from gptmill.tracking import Stage
from gptmill.weights.folder import save_model
from gptmill.weights.foundation import starting_model, watched_folder
from stages import run, write_curves


def main(tokens: Path, output: Path, metrics: Path, plots: Path) -> None:
    parameters = load()
    section = parameters.pretrain
    runtime = open_runtime(**dict(parameters.runtime))
    tokenizer = load_tokenizer(tokens / "tokenizer")
    training, validation = TokenSplit(tokens, "train"), TokenSplit(tokens, "validation")
    window = section.model.context_length
    inputs = {"tokens": tokens} | watched_folder(section.foundation)
    model, origin = starting_model(section, tokenizer)
    model.to(runtime.device)
    size = section.training.batch_size
    batches = training_batches(training, section.rows, size, window, parameters.runtime.seed)
    state = TrainState(model, build_optimizer(model, section.optimizer), batches)
    key = run_key([section, parameters.runtime], list(inputs.values()))
    checkpoints = Checkpoints("pretrain", key)
    checkpoints.load(state)
    options = SamplingOptions(**dict(section.sampling), seed=parameters.runtime.seed)

    def likelihood(stride: int, limit: int | None = None) -> Likelihood:
        return split_likelihood(model, validation, window, stride, runtime, limit)

    def sample(state: TrainState) -> None:
        text = generate(TorchDecoder(model), tokenizer, [section.prompt], options)[0].text
        state.curves.setdefault("samples", []).append({"step": state.step, "text": text})
        stage.text("samples", state.step, section.prompt + text)

    with Stage("pretrain", section.model_dump(), inputs, state.run_id) as stage:
        state.run_id = stage.run_id
        tokens_per_second = train(
            state,
            LanguageModelTask(),
            runtime,
            steps=training_steps(batches, section),
            training=section.training,
            optimizer=section.optimizer,
            checkpoints=checkpoints,
            evaluate=lambda: likelihood(window, section.evaluation_tokens).metrics("validation/"),
            log=stage.log,
            hooks=[every(section.sample_every, sample)],
        )
        final = likelihood(section.evaluation_stride)
        results = final.metrics("validation/") | {"train/tokens": state.targets}
        if validation.nats is not None:
            results["validation/floor_loss"] = validation.nats / validation.tokens
        if section.completions:
            texts = validation.texts(tokenizer, len(validation))
            decoder = TorchDecoder(model)
            attempts = complete_functions(decoder, tokenizer, texts, section.completions, options)
            results |= completion_metrics(attempts)
            stage.text("completions", state.step, as_text(attempts))
        save_model(output, model, tokenizer, provenance=stage.provenance() | origin)
        write_curves(plots, state.curves)
        stage.outputs(output, plots)
        write_json(metrics, results)
        stage.metrics(results)
        flops = tokens_per_second * flops_per_token(model.config, window)
        stage.timing({"tokens_per_second": tokens_per_second, "mfu": flops / runtime.peak_flops()})
    checkpoints.remove()


if __name__ == "__main__":
    run(main)
