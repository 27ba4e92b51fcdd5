"""Small models and a tokenizer for the tests of weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.tokenizer import BytePairTokenizer, train_byte_pairs
from gptmill.weights.folder import save_model
from tests.support.unsealed import unsealed

CONFIG = GPT2Config(vocabulary_size=310, context_length=24, layers=2, heads=2, width=16)


@pytest.fixture(scope="session")
def tokenizer() -> BytePairTokenizer:
    text = "Every effort moves you, and the quick brown fox jumps over the lazy dog. "
    return train_byte_pairs([text * 4], 300)


@pytest.fixture
def build() -> Callable[..., GPT2]:
    """A model with changes to the small configuration."""

    def build_model(**changes: object) -> GPT2:
        torch.manual_seed(0)
        model = GPT2(replace(CONFIG, **changes)).eval()
        # All parameters random, biases and LayerNorms too, so that a swap would show.
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        return model

    return build_model


@pytest.fixture
def model(build: Callable[..., GPT2]) -> GPT2:
    return build()


@pytest.fixture
def write(tmp_path: Path, tokenizer: BytePairTokenizer) -> Callable[..., Path]:
    """Write a model folder as somebody else's and give its path."""

    def write_folder(model: torch.nn.Module, **options: object) -> Path:
        save_model(tmp_path / "model", model, tokenizer, provenance={"made": "here"}, **options)
        return unsealed(tmp_path / "model")

    return write_folder
