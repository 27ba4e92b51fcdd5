"""Small models with large random weights, so that a wrong mask or position shows in the logits."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptmill.export.onnx import export_classifier, export_language_model
from gptmill.model.classifier import GPT2Classifier
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.reading import Reading
from gptmill.tokenizer import Tokenizer, train_byte_pairs
from gptmill.weights.folder import save_model

TEXT = "the cat sat on the mat and the dog ran over the hill " * 9
CONTEXT = 24
LABELS = ["ham", "spam", "other"]


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        mean = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
        torch.nn.init.normal_(parameter, mean, 0.3, generator)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_byte_pairs([TEXT], 280)


@pytest.fixture(scope="session")
def make_language_model(tokenizer, tmp_path_factory) -> Callable[..., Path]:
    def make(
        seed: int = 0,
        stop_tokens: list[int] | None = None,
        prompt_style: str | None = None,
        context: int = CONTEXT,
        **changes,
    ) -> Path:
        sizes = {"layers": 2, "heads": 4, "width": 32, **changes}
        model = GPT2(GPT2Config(tokenizer.vocabulary_size, context, **sizes)).eval()
        randomise(model, seed)
        folder = tmp_path_factory.mktemp("model") / "language_model"
        save_model(
            folder,
            model,
            tokenizer,
            provenance={},
            stop_tokens=stop_tokens,
            prompt_style=prompt_style,
        )
        return folder

    return make


@pytest.fixture(scope="session")
def make_classifier(tokenizer, tmp_path_factory) -> Callable[..., Path]:
    def make(readout: str = "last_token", seed: int = 0, maximum_length: int = 12) -> Path:
        config = GPT2Config(tokenizer.vocabulary_size, CONTEXT, layers=2, heads=4, width=32)
        model = GPT2Classifier(config, len(LABELS)).eval()
        randomise(model, seed)
        folder = tmp_path_factory.mktemp("model") / "classifier"
        reading = Reading(tuple(LABELS), maximum_length, readout)
        save_model(folder, model, tokenizer, provenance={}, reading=reading)
        return folder

    return make


@pytest.fixture(scope="session")
def language_model(make_language_model) -> Path:
    return make_language_model()


@pytest.fixture(scope="session")
def classifier(make_classifier) -> Path:
    return make_classifier()


@pytest.fixture(scope="session")
def language_model_onnx(language_model, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("onnx") / "language_model"
    export_language_model(language_model, output, opset=20)
    return output


@pytest.fixture(scope="session")
def classifier_onnx(classifier, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("onnx") / "classifier"
    export_classifier(classifier, output, opset=20)
    return output
