"""Answer the test instructions with the fine-tuned model."""

from pathlib import Path

from gptmill.card import ModelCard
from gptmill.engine.runtime import open_runtime
from gptmill.files import atomic_folder, read_json, write_json
from gptmill.generate.sampling import SamplingOptions
from gptmill.judge.reference import response_metrics
from gptmill.params import load
from gptmill.tasks.respond import respond
from gptmill.tokenizer import load_stop_tokens, load_tokenizer
from gptmill.tracking import stage_of
from gptmill.weights.folder import load_language_model
from stages import run


def main(model: Path, entries: Path, output: Path, metrics: Path) -> None:
    parameters = load()
    section = parameters.respond
    runtime = open_runtime(**dict(parameters.runtime), launch=parameters.launch)
    inputs = {"model": model, "entries": entries}
    with stage_of(runtime.first, "respond", section.model_dump(), inputs) as stage:
        responses = respond(
            load_language_model(model).to(runtime.device),
            load_tokenizer(model),
            read_json(entries),
            ModelCard.read(model).prompt_style,
            SamplingOptions(
                **dict(section.sampling),
                stop_tokens=tuple(load_stop_tokens(model)),
                seed=parameters.runtime.seed,
            ),
            section.batch_size,
            runtime,
        )
        if not runtime.first:
            return
        with atomic_folder(output) as folder:
            write_json(folder / "responses.json", responses)
        stage.write_metrics(metrics, response_metrics(responses))


if __name__ == "__main__":
    run(main, launched=True)
