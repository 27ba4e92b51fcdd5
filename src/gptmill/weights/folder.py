"""Model folders: everything that running a model needs, in the layout of Hugging Face's GPT-2.

What the card writes (`gptmill.card`), `model.safetensors` (the tied matrix once), the tokenizer's
files, `provenance.json` and `gptmill.sha256`. `transformers` opens them as they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gptmill.card import CLASSIFY, GENERATE, ModelCard
from gptmill.errors import UserError
from gptmill.files import atomic_folder, write_json
from gptmill.model.classifier import GPT2Classifier
from gptmill.model.gpt2 import GPT2
from gptmill.reading import Reading
from gptmill.seal import seal
from gptmill.tokenizer import Tokenizer
from gptmill.weights.assemble import (
    POSITIONS,
    TRANSPOSED,
    assemble_classifier,
    assemble_language_model,
)
from gptmill.weights.safetensors import SINGLE, SafetensorsFolder, write_safetensors


def save_model(
    folder: Path,
    model: GPT2 | GPT2Classifier,
    tokenizer: Tokenizer,
    *,
    provenance: dict[str, Any],
    prompt_style: str | None = None,
    stop_tokens: Sequence[int] | None = None,
    reading: Reading | None = None,
) -> None:
    """Write a model folder, whole or not at all; the same arguments give the same bytes.

    Args:
        provenance: where the model comes from; written as it is.
        prompt_style: of an instruction model, written as a chat template too.
        stop_tokens: ids that end a continuation; by default end-of-text alone.
        reading: of a classifier; by default its labels have no names and texts are not cut.

    Raises:
        UserError: the tokenizer has more tokens than the model, or the disk is full.
    """
    rows = model.config.vocabulary_size
    if tokenizer.vocabulary_size > rows:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocabulary_size} tokens and the model only "
            f"{rows}; the first without a row is {tokenizer.decode([rows])!r}"
        )
    card = ModelCard(
        task=GENERATE,
        architecture=model.config,
        stop_tokens=tuple(stop_tokens or [tokenizer.end_of_text]),
        prompt_style=prompt_style,
    )
    if isinstance(model, GPT2Classifier):
        card = replace(card, task=CLASSIFY, reading=_named(reading, model.score.out_features))
    with atomic_folder(folder) as temporary:
        write_safetensors(temporary / SINGLE, _HuggingFaceTensors(model))
        tokenizer.save(temporary)
        card.write(temporary, tokenizer)
        write_json(temporary / "provenance.json", provenance)
        seal(temporary)


def load_language_model(folder: Path, context_length: int | None = None) -> GPT2:
    """Open a folder of Hugging Face's GPT-2 layout, ours or another's, single file or sharded.

    Weights become float32 on the CPU; the model is in evaluation mode. `context_length` crops
    the position table.

    Raises:
        UserError: anything missing, left over, misshapen, not finite, truncated, or a pickle.
    """
    config = ModelCard.read(folder).require(GENERATE, folder).architecture
    return assemble_language_model(config, SafetensorsFolder(folder), context_length)


def load_classifier(folder: Path) -> GPT2Classifier:
    """Open a `GPT2ForSequenceClassification` folder, float32 on the CPU, in evaluation mode.

    Raises:
        UserError: as `load_language_model`.
    """
    config, reading = ModelCard.read(folder).classifier(folder)
    return assemble_classifier(config, len(reading.labels), SafetensorsFolder(folder))


def complete_parameters(model: GPT2 | GPT2Classifier) -> dict[str, Tensor]:
    """Parameters by name in our orientation, a tied matrix once; what plain GPT-2 has and the
    model lacks is there as zeros, which compute the same."""
    config = model.config
    # named_parameters() gives a shared parameter once, under its first name: the embedding.
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    if config.positions == "none":
        parameters[POSITIONS] = torch.zeros(config.context_length, config.width)
    if not config.bias:
        for name, module in model.transformer.named_modules(prefix="transformer"):
            if isinstance(module, nn.Linear | nn.LayerNorm):
                parameters[f"{name}.bias"] = torch.zeros(module.weight.shape[0])
    return parameters


class _HuggingFaceTensors:
    """A model's tensors by Hugging Face's names, sorted, each in its orientation."""

    def __init__(self, model: GPT2 | GPT2Classifier) -> None:
        self.parameters = complete_parameters(model)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in sorted(self.parameters.items()):
            yield name, tensor.t() if name.endswith(TRANSPOSED) else tensor


def _named(reading: Reading | None, count: int) -> Reading:
    """The reading of a classifier with `count` logits."""
    reading = reading or Reading(tuple(f"LABEL_{i}" for i in range(count)))
    if len(reading.labels) != count:
        raise ValueError(f"{len(reading.labels)} labels for {count} logits")
    return reading
