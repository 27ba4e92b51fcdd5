"""Every alternative of the one model: by hand, in training against `transformers`, and end to end.

That saved and exported weights give the same logits is shown beside the writers
(tests/unit/weights, tests/unit/export, tests/reference/test_weights_transformers.py).
"""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from gptmill.engine.loop import FitConfig, fit
from gptmill.engine.optim import build_optimizer, learning_rate
from gptmill.engine.runtime import open_runtime
from gptmill.engine.state import TrainState
from gptmill.export.onnx import export_language_model
from gptmill.generate.loop import generate
from gptmill.generate.sampling import SamplingOptions
from gptmill.generate.torch_decoder import TorchDecoder
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2, FeedForward, count_parameters
from gptmill.params import Optimizer
from gptmill.runtime.session import Generator
from gptmill.tasks.language_model import LanguageModelTask, TokenBatch, batch_loss
from gptmill.tokenizer import load_tokenizer, train_vocabulary
from gptmill.weights.folder import load_language_model, save_model

TEXT = "the cat sat on the mat; the dog ran over the hill. " * 6
TOKENIZER = train_vocabulary([TEXT], "character", 100)
IDS = np.array(TOKENIZER.encode(TEXT))
CONFIG = GPT2Config(TOKENIZER.vocabulary_size, context_length=24, layers=2, heads=2, width=32)
OPTIONS = [
    {"activation": "relu"},
    {"activation": "gelu"},
    {"positions": "none"},
    {"bias": False},
    {"tied_head": False},
    {"dropout": 0.2},
    {"activation": "relu", "positions": "none", "bias": False, "tied_head": False, "dropout": 0.1},
]
OPTIMIZER = Optimizer(
    learning_rate=1e-2,
    final_learning_rate=1e-3,
    warmup_steps=2,
    weight_decay=0.1,
    beta1=0.9,
    beta2=0.95,
    gradient_clip=1.0,
    muon=0.0,
)


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def gelu_new(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {"relu": lambda x: max(0.0, x), "gelu": gelu, "gelu_new": gelu_new}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.no_grad()
def test_the_feed_forward_network_by_hand(activation: str) -> None:
    torch.manual_seed(0)
    layer = FeedForward(replace(CONFIG, activation=activation))
    x = torch.randn(5, 32) * 3  # wide enough for the two GELUs to differ by more than rounding
    inner = x @ layer.c_fc.weight.T + layer.c_fc.bias
    inner = inner.double().apply_(ACTIVATIONS[activation]).float()
    expected = inner @ layer.c_proj.weight.T + layer.c_proj.bias
    torch.testing.assert_close(layer(x), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("positions", ["learned", "none"])
@torch.no_grad()
def test_only_positions_tell_the_order_of_what_is_past(positions: str) -> None:
    """One layer sees a set of earlier tokens, unless they carry positions."""
    torch.manual_seed(0)
    model = GPT2(replace(CONFIG, layers=1, positions=positions), 0.3, 0.3).eval()
    model.load_state_dict({k: v + 0.1 * torch.randn_like(v) for k, v in model.state_dict().items()})
    ids = torch.from_numpy(IDS[:12])
    moved = torch.cat([ids[:11].flip(0), ids[11:]])
    last, moved_last = model(ids[None])[0, -1], model(moved[None])[0, -1]
    same = torch.allclose(last, moved_last, atol=1e-5)
    assert same == (positions == "none")


def test_without_biases_there_are_none() -> None:
    names = [name for name, _ in GPT2(replace(CONFIG, bias=False)).named_parameters()]
    assert not [name for name in names if "bias" in name]
    # Per block: 3C, C, 4C and C in linear layers, twice C in LayerNorms; C in the last LayerNorm.
    with_biases = count_parameters(GPT2(CONFIG))
    assert with_biases - count_parameters(GPT2(replace(CONFIG, bias=False))) == (2 * 11 + 1) * 32


def batch() -> TokenBatch:
    rows = IDS[: 8 * 25].reshape(8, 25)
    return TokenBatch(rows[:, :-1], rows[:, 1:])


class Repeated:
    """The same batch again and again."""

    def next_rows(self) -> np.ndarray:
        return np.arange(8)

    def batch_of(self, rows: np.ndarray) -> TokenBatch:
        return batch()

    def state_dict(self) -> dict[str, int]:
        return {}


@pytest.mark.parametrize("options", [{"dropout": 0.3}, {"dropout": 0.3, "activation": "relu"}])
def test_dropout_falls_where_transformers_has_it(options: dict, tmp_path: Path) -> None:
    """The same seed drops the same values: embeddings, attention weights, both shortcuts."""
    torch.manual_seed(0)
    ours = GPT2(replace(CONFIG, **options), 0.3, 0.3)
    save_model(tmp_path / "model", ours, TOKENIZER, provenance={})
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "model", attn_implementation="sdpa")
    ids = torch.from_numpy(batch().inputs)
    logits = []
    for training in (True, False):
        for model in (ours, theirs):
            torch.manual_seed(5)
            out = model.train(training)(ids)
            logits.append(out if isinstance(out, torch.Tensor) else out.logits)
    ours_training, theirs_training, ours_evaluated, theirs_evaluated = logits
    torch.testing.assert_close(ours_training, theirs_training, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours_evaluated, theirs_evaluated, atol=1e-4, rtol=0)
    assert not torch.allclose(ours_training, ours_evaluated, atol=0.1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_learns_is_saved_reopened_and_exported(options: dict, tmp_path: Path) -> None:
    runtime = open_runtime(seed=0, threads=1, precision="float32")
    model = GPT2(replace(CONFIG, **options), 0.1, 0.1)
    before = batch_loss(model, [batch()], runtime)
    state = TrainState(model, build_optimizer(model, OPTIMIZER), Repeated())
    schedule = partial(learning_rate, steps=40, config=OPTIMIZER)
    fit(state, LanguageModelTask(), runtime, FitConfig(40, 1, 1.0, schedule), [])
    after = batch_loss(model, [batch()], runtime)
    assert after < 0.5 * before

    save_model(tmp_path / "model", model, TOKENIZER, provenance={})
    reopened = load_language_model(tmp_path / "model")
    assert reopened.config == model.config
    assert batch_loss(reopened, [batch()], runtime) == pytest.approx(after, abs=1e-5)

    export_language_model(tmp_path / "model", tmp_path / "onnx", opset=20)
    greedy = SamplingOptions(max_new_tokens=16)
    tokenizer = load_tokenizer(tmp_path / "model")
    expected = generate(TorchDecoder(reopened), tokenizer, ["the c"], greedy)[0].text
    assert len(expected) == 16
    assert "".join(Generator(tmp_path / "onnx").stream("the c", greedy)) == expected
