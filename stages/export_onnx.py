"""Export classifier, language model and instruction model to ONNX, whole and quantised. Parity with
PyTorch gates publishing; what is quantised is published inside its budget."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from gptmill.data.spam import read_split
from gptmill.data.tokens import TokenSplit
from gptmill.files import atomic_folder, read_json, write_json
from gptmill.onnx.export import export_classifier, export_language_model
from gptmill.onnx.parity import (
    answered,
    classifier_reference,
    halves,
    measure_classifier,
    measure_language_model,
    require_parity,
)
from gptmill.onnx.quantize import publish_within_budget, quantized
from gptmill.onnx.served import content_hashes
from gptmill.params import Parameters, load
from gptmill.tokenizer import load_tokenizer
from gptmill.tracking import Stage
from stages import run

EXPORTS = {
    "classifier": export_classifier,
    "language_model": export_language_model,
    "instructions": export_language_model,
}
# What the registry compares versions by, and whether higher is better.
TESTED = {
    "classifier": ("accuracy", True),
    "language_model": ("perplexity", False),
    "instructions": ("perplexity", False),
}
PASSAGES = 32  # held-out texts that each language model is measured on
PASSAGE_TOKENS = 8192  # of the split they are taken from


def main(
    language_model: Path,
    instructions: Path,
    classifier: Path,
    tokens: Path,
    entries: Path,
    messages: Path,
    output: Path,
    metrics: Path,
) -> None:
    parameters = load()
    section = parameters.export_onnx
    models = {
        "language_model": language_model,
        "instructions": instructions,
        "classifier": classifier,
    }
    with (
        Stage("export_onnx", section.model_dump(), models) as stage,
        atomic_folder(output) as folder,
    ):
        for name, model in models.items():
            EXPORTS[name](model, folder / name, opset=section.opset)
        measures = _measures(parameters, models, folder, tokens, entries, messages)
        results = {}
        for name, measure in measures.items():
            results |= measure(folder / name, prefix=f"{name}/")
        require_parity(results, section.tolerance)
        for method in section.quantisation:
            for name, measure in measures.items():
                variant = f"{name}-{method}"
                results |= publish_within_budget(
                    partial(
                        EXPORTS[name], models[name], opset=section.opset, layers=quantized(method)
                    ),
                    partial(measure, prefix=f"{variant}/"),
                    folder / variant,
                    section.budget,
                    f"{variant}/",
                )
        write_json(metrics, results)
        stage.metrics(results)
        data = {"classifier": messages, "language_model": tokens, "instructions": entries}
        for name, (metric, higher_is_better) in TESTED.items():
            reference = {
                "task": "classify" if name == "classifier" else "generate",
                "path": (output / name).as_posix(),
                "files": content_hashes(folder / name),
            }
            measured = (metric, results[f"{name}/{metric}"], higher_is_better)
            stage.model(f"gptmill-{name.replace('_', '-')}", reference, measured, data[name])


def _measures(
    parameters: Parameters,
    models: dict[str, Path],
    folder: Path,
    tokens: Path,
    entries: Path,
    messages: Path,
) -> dict[str, Callable[..., dict[str, float]]]:
    """What each model's ONNX folders are measured with: held-out text, and PyTorch's answers."""
    threads = parameters.runtime.threads
    texts = TokenSplit(tokens, "validation").texts(
        load_tokenizer(tokens / "tokenizer"), PASSAGE_TOKENS
    )
    passages = {
        "language_model": halves(texts[:PASSAGES], models["language_model"]),
        "instructions": answered(read_json(entries)[:PASSAGES], models["instructions"]),
    }
    measures = {
        name: partial(
            measure_language_model,
            model_folder=models[name],
            passages=found,
            greedy_steps=parameters.export_onnx.greedy_steps,
            threads=threads,
        )
        for name, found in passages.items()
    }
    labelled = read_split(messages)
    classifier_texts = list(labelled["text"])
    return {
        **measures,
        "classifier": partial(
            measure_classifier,
            reference=classifier_reference(
                folder / "classifier", models["classifier"], classifier_texts
            ),
            texts=classifier_texts,
            labels=list(labelled["label"]),
            threads=threads,
        ),
    }


if __name__ == "__main__":
    run(main)
