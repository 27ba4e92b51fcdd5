"""The architecture without PyTorch: counts, and formats that cannot express an option."""

import itertools
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch

from gptmill.errors import UserError
from gptmill.model.classifier import GPT2Classifier
from gptmill.model.config import GPT2_SIZES, GPT2Config, from_json, gpt2_config, to_json
from gptmill.model.gpt2 import GPT2, count_parameters
from gptmill.params import Architecture

CONFIG = GPT2Config(301, 40, 2, 4, 64)
SIZES = [(1, 1, 8), (3, 2, 16), (2, 4, 64)]
OPTIONS = list(itertools.product([True, False], [True, False], ["learned", "none"]))


@pytest.mark.parametrize(("bias", "tied_head", "positions"), OPTIONS)
@pytest.mark.parametrize(("layers", "heads", "width"), SIZES)
def test_parameters_equal_the_sum_over_the_model_s(
    layers: int, heads: int, width: int, bias: bool, tied_head: bool, positions: str
) -> None:
    config = GPT2Config(
        301, 40, layers, heads, width, bias=bias, tied_head=tied_head, positions=positions
    )
    with torch.device("meta"):
        assert config.count_parameters() == count_parameters(GPT2(config))
        assert config.count_parameters(5) == count_parameters(GPT2Classifier(config, 5))


@pytest.mark.parametrize("size", GPT2_SIZES)
def test_published_sizes(size: str) -> None:
    with torch.device("meta"):
        assert gpt2_config(size).count_parameters() == count_parameters(GPT2(gpt2_config(size)))


@pytest.mark.parametrize(("bias", "tied_head", "positions"), OPTIONS)
def test_keys_of_hugging_face_say_it_all(bias: bool, tied_head: bool, positions: str) -> None:
    config = replace(CONFIG, bias=bias, tied_head=tied_head, positions=positions, dropout=0.2)
    assert from_json(to_json(config), "here") == config


@dataclass(frozen=True)
class WithNorm(GPT2Config):
    """What a newcomer's first line would be."""

    norm: str = "layer"


def test_an_option_that_a_format_does_not_know_is_refused_by_name() -> None:
    new = WithNorm(301, 40, 2, 4, 64, norm="rms")
    with pytest.raises(UserError, match="GPT-2 layout cannot express norm 'rms'"):
        to_json(new)
    assert to_json(replace(new, norm="layer")) == to_json(CONFIG)
    with pytest.raises(UserError, match="plain cannot express bias False"):
        replace(CONFIG, bias=False).require("plain")
    replace(CONFIG, bias=False, dropout=0.5).require("plain", bias=(True, False))


def test_parameters_and_architecture_have_the_same_fields() -> None:
    ours = set(GPT2Config.__dataclass_fields__) - {"vocabulary_size"}  # the tokenizer's
    assert set(Architecture.model_fields) == ours


def test_a_card_needs_no_pytorch() -> None:
    code = "import sys, gptmill.card, gptmill.model.config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
