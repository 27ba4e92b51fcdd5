"""Export classifier, language model and instruction model to ONNX, whole and quantized. Parity with
PyTorch gates publishing; what is quantized is published inside its budget."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from gptmill.data.classification import read_split
from gptmill.data.tokens import TokenSplit
from gptmill.engine.runtime import SMALL_MODEL
from gptmill.engine.workers import ALONE, Workers
from gptmill.export.graph import DENSE
from gptmill.export.onnx import export_classifier, export_language_model
from gptmill.export.parity import (
    instruction_passages,
    measure_classifiers,
    measure_language_models,
    require_parity,
    text_passages,
)
from gptmill.export.quantize import keep_within_budget, quantized
from gptmill.files import atomic_folder, read_json
from gptmill.params import ExportOnnx, Parameters, load
from gptmill.runtime.mlflow_pyfunc import content_hashes
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
FLOAT32_BYTES = 4
PASSAGES = 32  # held-out texts that each language model is measured on
PASSAGE_TOKENS = 8192  # of the split they are taken from


def main(
    language_model: Path,
    instructions: Path,
    classifier: Path,
    tokens: Path,
    entries: Path,
    labeled: Path,
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
        layers = {"": DENSE, **{f"-{m}": quantized(m) for m in section.quantization}}
        for name, model in models.items():
            for variant, stored in layers.items():
                EXPORTS[name](model, folder / (name + variant), opset=section.opset, layers=stored)
        workers, threads = _shared_out(parameters.runtime.threads, folder)
        measures = _measures(parameters, models, tokens, entries, labeled)

        def measure(name: str) -> list[dict[str, float]]:
            return measures[name](
                [folder / (name + variant) for variant in layers], threads=threads
            )

        with workers:
            measured = dict(zip(measures, workers.map(measure, measures)))
        results = _published(measured, list(layers), folder, section)
        stage.write_metrics(metrics, results)
        data = {
            "classifier": labeled / "test.csv",
            "language_model": tokens,
            "instructions": entries,
        }
        for name, (metric, higher_is_better) in TESTED.items():
            reference = {
                "task": "classify" if name == "classifier" else "generate",
                "path": (output / name).as_posix(),
                "files": content_hashes(folder / name),
            }
            measured = (metric, results[f"{name}/{metric}"], higher_is_better)
            stage.model(f"gptmill-{name.replace('_', '-')}", reference, measured, data[name])


def _measures(
    parameters: Parameters, models: dict[str, Path], tokens: Path, entries: Path, labeled: Path
) -> dict[str, Callable[..., list[dict[str, float]]]]:
    """What each model's ONNX folders are measured with: the model and held-out text."""
    texts = TokenSplit(tokens, "validation").texts(
        load_tokenizer(tokens / "tokenizer"), PASSAGE_TOKENS
    )
    passages = {
        "language_model": text_passages(texts[:PASSAGES], models["language_model"]),
        "instructions": instruction_passages(read_json(entries)[:PASSAGES], models["instructions"]),
    }
    measures = {
        name: partial(
            measure_language_models,
            model_folder=models[name],
            passages=found,
            greedy_steps=parameters.export_onnx.greedy_steps,
        )
        for name, found in passages.items()
    }
    test = read_split(labeled, "test")
    measures["classifier"] = partial(
        measure_classifiers,
        model_folder=models["classifier"],
        texts=list(test["text"]),
        labels=list(test["label"]),
    )
    return measures


def _shared_out(threads: int, folder: Path) -> tuple[Workers, int]:
    """Who measures, and on how many threads each: small models side by side, as in training."""
    largest = max(path.stat().st_size for path in folder.rglob("model.onnx*"))
    small = largest < SMALL_MODEL * FLOAT32_BYTES
    return (Workers(threads), 1) if small else (ALONE, threads)


def _published(
    measured: dict[str, list[dict[str, float]]],
    variants: list[str],
    folder: Path,
    section: ExportOnnx,
) -> dict[str, float]:
    """All that was measured, each key with its folder's name; stops without parity, and removes
    what is outside the budget."""
    results = {}
    for place, variant in enumerate(variants):
        for name, found in measured.items():
            prefix = f"{name}{variant}/"
            results |= {prefix + key: value for key, value in found[place].items()}
            if variant:
                kept = keep_within_budget(folder / prefix, section.budget, results, prefix)
                results[f"{prefix}published"] = int(kept)
        if not variant:
            require_parity(results, section.tolerance)
    return results


if __name__ == "__main__":
    run(main)
