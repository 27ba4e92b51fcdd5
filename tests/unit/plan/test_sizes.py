"""Bytes of the model states, exact against PyTorch's own objects."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from gptmill.engine.optim import build_optimizer
from gptmill.engine.state import TrainState
from gptmill.model.classifier import GPT2Classifier
from gptmill.model.config import GPT2_SIZES, GPT2Config, gpt2_config
from gptmill.model.gpt2 import GPT2
from gptmill.params import LowRank, Optimizer
from gptmill.plan.sizes import ModelSize, classifier_size, language_model_size
from gptmill.tasks.classify import choose_trainable
from gptmill.tokenizer import train_byte_pairs
from gptmill.weights.folder import save_model

CONFIG = GPT2Config(300, 24, 3, 2, 16)
ADAMW = Optimizer(
    learning_rate=1e-3, final_learning_rate=0.0, warmup_steps=0, weight_decay=0.1,
    beta1=0.9, beta2=0.95, gradient_clip=1.0, muon=0.0,
)  # fmt: skip
MUON = ADAMW.model_copy(update={"muon": 5.0})
LORA = LowRank(rank=3, alpha=6.0)
ARCHITECTURES = [
    CONFIG,
    replace(CONFIG, tied_head=False),
    replace(CONFIG, bias=False),
    replace(CONFIG, positions="none", tied_head=False),
]


def bytes_of(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def trained_once(model: nn.Module, loss: torch.Tensor, optimizer: Optimizer) -> tuple[int, int]:
    """Bytes of gradients and of the optimizer's state after a real step."""
    loss.backward()
    gradients = bytes_of([p.grad for p in model.parameters() if p.grad is not None])
    built = build_optimizer(model, optimizer)
    built.step()
    state = [value for entry in built.state.values() for value in entry.values()]
    assert all(isinstance(value, torch.Tensor) for value in state)
    return gradients, bytes_of(state)


def check(size: ModelSize, model: nn.Module, loss: torch.Tensor, optimizer: Optimizer) -> None:
    parameters = list(model.parameters())
    assert size.weights == bytes_of(parameters)
    assert size.trained == sum(p.numel() for p in parameters if p.requires_grad)
    state = TrainState(model, torch.optim.SGD(parameters, 0.1), batches=None)
    state.keep_best(0.0)
    assert size.state_dict == bytes_of(list(state.best_weights.values()))
    assert (size.gradients, size.optimizer) == trained_once(model, loss, optimizer)


@pytest.mark.parametrize("optimizer", [ADAMW, MUON], ids=["AdamW", "Muon"])
@pytest.mark.parametrize("config", ARCHITECTURES)
def test_states_of_a_language_model(config: GPT2Config, optimizer: Optimizer) -> None:
    model = GPT2(config)
    loss = model(torch.zeros(1, 8, dtype=torch.int64)).sum()
    check(language_model_size(config, optimizer), model, loss, optimizer)


@pytest.mark.parametrize("optimizer", [ADAMW, MUON], ids=["AdamW", "Muon"])
@pytest.mark.parametrize("trainable", ["head", "last_block", "last_two_blocks", "all", "lora"])
def test_states_of_a_frozen_classifier(trainable: str, optimizer: Optimizer) -> None:
    model = GPT2Classifier(CONFIG, labels=2)
    choose_trainable(model, trainable, LORA)
    loss = model(torch.zeros(1, 8, dtype=torch.int64)).sum()
    check(classifier_size(CONFIG, trainable, LORA, optimizer), model, loss, optimizer)


def test_muons_largest_batch_is_of_one_shape() -> None:
    """Both feed-forward matrices have as many numbers, but not one shape."""
    size = language_model_size(CONFIG, MUON)
    assert size.largest_muon_shape == 3 * 4 * 16 * 16 * 4
    assert language_model_size(CONFIG, ADAMW).largest_muon_shape == 0


@pytest.mark.parametrize("config", ARCHITECTURES)
def test_a_saved_model_has_as_many_bytes(config: GPT2Config, tmp_path: Path) -> None:
    tokenizer = train_byte_pairs(["a text"], 257)
    save_model(tmp_path / "model", GPT2(config), tokenizer, provenance={})
    file = (tmp_path / "model/model.safetensors").stat().st_size
    assert 0 <= file - language_model_size(config).saved < 8000  # the header


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("124M", 124_439_808), ("355M", 354_823_168), ("774M", 774_030_080), ("1558M", 1_557_611_200)],
)
def test_openais_sizes(size: str, parameters: int) -> None:
    """As their checkpoints hold them."""
    assert size in GPT2_SIZES
    assert language_model_size(gpt2_config(size)).parameters == parameters
