"""Model folders to ONNX folders, which application code opens without PyTorch.

An ONNX folder has `model.onnx` (with `model.onnx_data` beside it when the weights pass 2 GB, the
most a protobuf holds), the model folder's own configuration and tokenizer files, and
`genai_config.json`: `optimum`, `onnxruntime-genai` and transformers.js open it as it is.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from gptmill.card import ModelCard
from gptmill.errors import UserError
from gptmill.export.graph import DENSE, MINIMUM_OPSET, Graph, Layers, classifier, language_model
from gptmill.files import atomic_folder, read_json, write_json
from gptmill.model.classifier import GPT2Classifier
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.seal import seal
from gptmill.weights.assemble import TRANSPOSED
from gptmill.weights.folder import load_classifier, load_language_model

MODEL_FILE, DATA_FILE = "model.onnx", "model.onnx_data"
LARGEST_SINGLE_FILE = 2**31 - 2**24  # bytes of weights; protobuf's limit is 2 GiB, graph included


class ModelWeights(Mapping[str, np.ndarray]):
    """A model's parameters by Hugging Face's name and in its orientation; a tied one once."""

    def __init__(self, model: GPT2 | GPT2Classifier) -> None:
        self._parameters = dict(model.named_parameters())

    def __getitem__(self, name: str) -> np.ndarray:
        values = self._parameters[name].detach().numpy()
        return values.T if name.endswith(TRANSPOSED) else values

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


def export_language_model(
    model_folder: Path, output: Path, *, opset: int, layers: Layers = DENSE
) -> None:
    """Write the ONNX folder of a language model; `graph.language_model` states its interface.

    Args:
        opset: version of ONNX's operators, at least 20.
        layers: how matrices are stored; `quantize` has ways that take fewer bytes.

    Raises:
        UserError: the model folder is not one that `weights.folder` loads, or the opset too low.
    """
    model = load_language_model(model_folder)
    with _onnx_folder(model_folder, output) as folder:
        _write_model(
            folder, model, opset, lambda graph: language_model(graph, model.config, layers)
        )
        config = genai_config(model.config, read_json(folder / "config.json"))
        write_json(folder / "genai_config.json", config)


def export_classifier(
    model_folder: Path, output: Path, *, opset: int, layers: Layers = DENSE
) -> None:
    """Write the ONNX folder of a classifier, `graph.classifier`. Arguments and errors are those
    of `export_language_model`; the read-out is the folder's own."""
    model = load_classifier(model_folder)
    _, reading = ModelCard.read(model_folder).classifier(model_folder)
    with _onnx_folder(model_folder, output) as folder:
        _write_model(
            folder,
            model,
            opset,
            lambda graph: classifier(graph, model.config, layers, reading.readout),
        )


def genai_config(config: GPT2Config, ids: Mapping[str, Any]) -> dict[str, Any]:
    """What onnxruntime-genai reads: names of inputs and outputs, sizes, and greedy search.

    Args:
        ids: where `bos_token_id`, `eos_token_id` and `pad_token_id` stand.
    """
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": MODEL_FILE,
        "head_size": config.head_width,
        "hidden_size": config.width,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.heads,
    }
    search = {"do_sample": False, "max_length": config.context_length, "num_beams": 1}
    return {
        "model": {
            # genai's "gpt2" is an older graph with keys and values in one tensor; this one has
            # the interface of its decoder models, of which every name means the same.
            "type": "llama",
            **{key: ids[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
            "context_length": config.context_length,
            "vocab_size": config.vocabulary_size,
            "decoder": decoder,
        },
        "search": {**search, "past_present_share_buffer": False},
    }


@contextmanager
def _onnx_folder(model_folder: Path, output: Path) -> Iterator[Path]:
    """A folder with everything of the model folder but its weights; replaces `output` when the
    block is done."""
    with atomic_folder(output) as folder:
        for path in sorted(model_folder.iterdir()):
            if path.is_file() and ".safetensors" not in path.suffixes:
                shutil.copyfile(path, folder / path.name)
        yield folder
        seal(folder)


def _write_model(
    folder: Path, model: GPT2 | GPT2Classifier, opset: int, build: Callable[[Graph], ModelProto]
) -> None:
    if opset < MINIMUM_OPSET:
        raise UserError(f"export_onnx.opset: {opset} is under {MINIMUM_OPSET}, which has Gelu")
    weights = ModelWeights(model)
    beside = sum(values.nbytes for values in weights.values()) > LARGEST_SINGLE_FILE
    with (folder / DATA_FILE).open("wb") if beside else nullcontext() as data:
        graph = build(Graph(weights, opset, data, DATA_FILE))
    # Maps are the only part of a protobuf without an order of its own.
    (folder / MODEL_FILE).write_bytes(graph.SerializeToString(deterministic=True))
