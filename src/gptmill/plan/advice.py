"""What would fit where a plan does not: parameters to change, each tried against the same formulas.

For a training, in this order: smaller micro-batches with as many more of them (the same effective
batch, hence the same result but for rounding), then shorter texts as well, then a smaller
foundation with either. An export leaves out quantized variants, then takes smaller foundations.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from gptmill.errors import UserError
from gptmill.model.config import GPT2_SIZES
from gptmill.params import Parameters, parse
from gptmill.plan.activations import Compute
from gptmill.plan.foundations import REPOSITORIES
from gptmill.plan.peaks import stage_peaks
from gptmill.plan.sizes import language_model_size
from gptmill.plan.workload import Workload, workload

SHORTEST = 32  # tokens; below it a language model has nothing to look back at
Changes = dict[str, Any]
LENGTHS = {
    "pretrain": "pretrain.model.context_length",
    "finetune_classifier": "finetune_classifier.maximum_length",
    "finetune_instructions": "finetune_instructions.allowed_max_length",
}


def what_fits(
    stage: str, work: Workload, base: Mapping[str, int], compute: Compute, limit: int
) -> Changes | None:
    """The first changes, by dotted name, with which the stage's peak stays within `limit` bytes;
    None if none of them does."""
    for changes in _candidates(stage, work):
        try:
            changed = workload(with_changes(work.parameters, changes), work.counts)
        except UserError:
            continue  # a foundation that cannot be read is no advice
        if stage_peaks(changed, base, compute)[stage].total <= limit:
            return changes
    return None


def with_changes(parameters: Parameters, changes: Changes) -> Parameters:
    """The same parameters with some values set, by dotted name, and checked."""
    values = parameters.model_dump()
    for name, value in changes.items():
        *path, last = name.split(".")
        section = values
        for part in path:
            section = section[part]
        section[last] = value
    return parse(values, "advice")


def _candidates(stage: str, work: Workload) -> Iterator[Changes]:
    if stage in LENGTHS:
        yield from _smaller_batches(stage, work)
    if stage == "pretrain":
        yield from _smaller_vocabularies(work)
    if stage == "respond":
        yield from _halved("respond.batch_size", work.parameters.respond.batch_size, 1)
    task = "classifier" if stage.endswith("classifier") else "instructions"
    if stage.startswith("load_gpt2"):
        name = f"load_gpt2.{task}.evaluation_tokens"
        yield from _halved(name, getattr(work.parameters.load_gpt2, task).evaluation_tokens, 512)
    if stage != "pretrain":
        tasks = ("classifier", "instructions") if stage == "export_onnx" else (task,)
        less: list[Changes] = [{}]
        if stage in LENGTHS:
            less = list(_smaller_batches(stage, work))
        elif stage == "export_onnx":
            less = list(_fewer_variants(work))
            yield from less
        for foundation in _smaller_foundations(work, tasks):
            yield from (foundation | changes for changes in less)


def _fewer_variants(work: Workload) -> Iterator[Changes]:
    """All variants are compared side by side; those named first are kept longest."""
    variants = work.parameters.export_onnx.quantization
    for kept in range(len(variants), -1, -1):
        yield {"export_onnx.quantization": variants[:kept]}


def _smaller_batches(stage: str, work: Workload) -> Iterator[Changes]:
    """Smaller micro-batches; then the same with shorter texts."""
    yield from _batches(stage, work)
    for length in _shorter(stage, work):
        for batch in _batches(stage, work):
            yield batch | {LENGTHS[stage]: length}


def _batches(stage: str, work: Workload) -> Iterator[Changes]:
    """Micro-batches that divide the effective batch, largest first."""
    training = getattr(work.parameters, stage).training
    effective = training.batch_size * training.accumulation
    for size in range(training.batch_size, 0, -1):
        if effective % size == 0:
            yield {
                f"{stage}.training.batch_size": size,
                f"{stage}.training.accumulation": effective // size,
            }


def _shorter(stage: str, work: Workload) -> Iterator[int]:
    runs = {
        "pretrain": work.pretrain,
        "finetune_classifier": work.classifier,
        "finetune_instructions": work.instructions,
    }
    length = runs[stage].largest.tokens // 2
    while length >= SHORTEST:
        yield length
        length //= 2


def _smaller_vocabularies(work: Workload) -> Iterator[Changes]:
    """Logits of 8,192 tokens are held at once when held-out text is measured."""
    size = work.counts.corpus.vocabulary // 2
    while size >= 512:
        yield {"tokenize.kind": "bpe", "tokenize.vocabulary_size": size}
        size //= 2


def _smaller_foundations(work: Workload, tasks: tuple[str, ...]) -> Iterator[Changes]:
    """OpenAI's models below the one that is asked for, largest first."""
    names = {size: name for name, size in REPOSITORIES.items()}
    for size in reversed(GPT2_SIZES):
        changes: Changes = {}
        for task in tasks:
            config = work.foundations[task].config
            layers = GPT2_SIZES[size][0]
            if config.layers > layers and language_model_size(config).parameters > 1e8:
                start = f"load_gpt2.{task}"
                changes |= {
                    f"{start}.source": "huggingface",
                    f"{start}.location": names[size],
                    f"{start}.revision": "",
                }
        if changes:
            yield changes


def _halved(name: str, value: int, smallest: int) -> Iterator[Changes]:
    while value // 2 >= smallest:
        value //= 2
        yield {name: value}
