"""Perplexity by hand and by the transformers documentation's own loop."""

import math

import numpy as np
import pytest
import torch

from gptmill.engine.runtime import open_runtime
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.tasks.language_model import Likelihood, document_nats, token_nats

CONFIG = GPT2Config(vocabulary_size=53, context_length=16, layers=2, heads=2, width=16)


@pytest.fixture(scope="module")
def model() -> GPT2:
    torch.manual_seed(0)
    return GPT2(CONFIG)


def documented_loss(model: GPT2, ids: np.ndarray, window: int, stride: int) -> float:
    """The loop of "Perplexity of fixed-length models", line for line, on our model's logits."""
    encodings = torch.from_numpy(ids)[None]
    total, count, previous = 0.0, 0, 0
    for begin in range(0, encodings.shape[1], stride):
        end = min(begin + window, encodings.shape[1])
        target_length = end - previous
        inputs = encodings[:, begin:end]
        targets = inputs.clone()
        targets[:, :-target_length] = -100
        with torch.no_grad():
            logits = model(inputs)
        valid = int((targets != -100).sum()) - 1  # the labels move by one inside
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], targets[0, 1:], ignore_index=-100)
        scored = int((targets[0, 1:] != -100).sum())
        total += loss.item() * scored
        count += scored
        assert valid <= scored
        previous = end
        if end == encodings.shape[1]:
            break
    return total / count


@pytest.mark.parametrize("stride", [1, 5, 8, 15])
@pytest.mark.parametrize("length", [2, 15, 16, 17, 40, 101])
def test_sliding_windows_equal_the_documented_loop(model: GPT2, length: int, stride: int) -> None:
    """Their window of n ids scores n - 1 targets, ours scores one per input: window n - 1."""
    ids = np.random.default_rng(length).integers(0, 53, size=length)
    runtime = open_runtime(seed=0, threads=1, precision="float32")
    nats = token_nats(model, ids, window=15, stride=stride, runtime=runtime)
    assert nats.shape == (length - 1,)
    assert nats.mean() == pytest.approx(documented_loss(model, ids, 16, stride), abs=1e-5)


def test_documents_are_scored_as_a_text_is(model: GPT2) -> None:
    """The pipeline's figures: short documents in one batch, long ones in sliding windows."""
    random = np.random.default_rng(0)
    documents = [random.integers(0, 50, size=length) for length in (3, 40, 7, 16, 17, 3)]
    runtime = open_runtime(seed=0, threads=1, precision="float32")
    found = document_nats(model, documents, 52, window=16, stride=5, runtime=runtime)
    alone = [token_nats(model, np.append(52, ids), 16, 5, runtime).sum() for ids in documents]
    assert found == pytest.approx(sum(alone), rel=1e-6)


def test_evaluation_leaves_the_mode_as_it_was(model: GPT2) -> None:
    runtime = open_runtime(seed=0, threads=1, precision="float32")
    model.train()
    token_nats(model, np.arange(10), 8, 4, runtime)
    assert model.training


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_outside_the_window_is_refused(model: GPT2, stride: int) -> None:
    runtime = open_runtime(seed=0, threads=1, precision="float32")
    with pytest.raises(ValueError, match=r"not within 1\.\.8"):
        token_nats(model, np.arange(10), 8, stride, runtime)


def test_units_by_hand() -> None:
    """Uniform over 16 tokens: 4 bits each, perplexity 16; 2 tokens a byte, 4 a word."""
    metrics = Likelihood(nats=8 * math.log(16), tokens=8, bytes=4, words=2).metrics("test/")
    assert metrics["test/loss"] == pytest.approx(math.log(16))
    assert metrics["test/perplexity"] == pytest.approx(16)
    assert metrics["test/bits_per_token"] == pytest.approx(4)
    assert metrics["test/bits_per_byte"] == pytest.approx(8)
    assert metrics["test/bits_per_word"] == pytest.approx(16)
