"""Cached logits against one uncached pass, for every option of the model; modes; growth."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from gptmill.batching import left_padded
from gptmill.generate import torch_decoder
from gptmill.generate.torch_decoder import TorchDecoder
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2

CONFIG = GPT2Config(vocabulary_size=97, context_length=48, layers=3, heads=4, width=32, dropout=0.3)
OPTIONS = [
    {},
    {"bias": False},
    {"activation": "relu"},
    {"tied_head": False},
    {"positions": "none"},
]


def random_model(**options: object) -> GPT2:
    torch.manual_seed(0)
    model = GPT2(replace(CONFIG, **options))
    for parameter in model.parameters():  # biases too, which start at zero
        nn.init.normal_(parameter, std=0.1)
    return model


@torch.no_grad()
def uncached(model: GPT2, rows: list[list[int]]) -> np.ndarray:
    """Logits [B, V] after each row, computed alone and in one pass."""
    training = model.training
    model.eval()
    logits = [model(torch.tensor([row]))[0, -1] for row in rows]
    model.train(training)
    return torch.stack(logits).numpy()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("lengths", [[5], [3, 3], [9, 1, 4]], ids=["one", "even", "ragged"])
def test_cached_and_uncached_logits_agree(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object], lengths: list[int]
) -> None:
    monkeypatch.setattr(torch_decoder, "ROOM", 4)  # so that the cache grows on the way
    model = random_model(**options)
    decoder = TorchDecoder(model)
    random = np.random.default_rng(0)
    rows = [random.integers(0, 97, length).tolist() for length in lengths]
    logits = decoder.prefill(*left_padded(rows))
    for step in range(30):
        np.testing.assert_allclose(logits, uncached(model, rows), atol=1e-5, rtol=0)
        if step == 12 and len(rows) > 1:
            kept = np.arange(1, len(rows))
            rows = [rows[row] for row in kept]
            decoder.keep(kept)
        tokens = random.integers(0, 97, len(rows))
        rows = [[*row, int(token)] for row, token in zip(rows, tokens)]
        logits = decoder.step(tokens)
    assert logits.dtype == np.float32


def test_the_cache_is_allocated_once() -> None:
    decoder = TorchDecoder(random_model(context_length=torch_decoder.ROOM + 9))
    decoder.prefill(*left_padded([[1, 2, 3, 4, 5]]))
    memory = decoder._cache.store.data_ptr()
    for _ in range(torch_decoder.ROOM):
        decoder.step(np.array([7]))
    assert decoder._cache.store.data_ptr() == memory
    assert decoder._cache.length == torch_decoder.ROOM + 5


def test_a_model_in_training_is_in_training_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model().train()
    decoder = TorchDecoder(model)
    logits = decoder.prefill(*left_padded([[1, 2]]))
    np.testing.assert_allclose(logits, uncached(model, [[1, 2]]), atol=1e-5, rtol=0)
    assert model.training
    assert model.transformer.drop.training
    monkeypatch.setattr(model.transformer, "forward", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decoder.prefill(*left_padded([[1, 2]]))
    assert model.training


def test_parameters_are_read_as_they_are() -> None:
    model, other = random_model(), random_model(activation="gelu")
    nn.init.normal_(other.transformer.h[1].attn.c_attn.weight)
    decoder = TorchDecoder(model)
    model.load_state_dict(other.state_dict())
    decoder.prefill(*left_padded([[1, 2]]))
    found = decoder.step(np.array([3]))
    np.testing.assert_allclose(found, uncached(model, [[1, 2, 3]]), atol=1e-5, rtol=0)


def test_half_precision_gives_float32_logits() -> None:
    model = random_model()
    exact = uncached(model, [[1, 2, 3]])
    decoder = TorchDecoder(model.bfloat16())
    decoder.prefill(*left_padded([[1, 2], [5, 1, 2]]))
    found = decoder.step(np.array([3, 3]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:1], exact, atol=0.05, rtol=0)


def test_a_layer_that_is_more_than_linear_computes_as_it_is() -> None:
    class Adapted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = random_model()
    model.transformer.h[0].attn.c_attn = Adapted(32, 96)
    decoder = TorchDecoder(model)
    decoder.prefill(*left_padded([[1, 2]]))
    found = decoder.step(np.array([3]))
    np.testing.assert_allclose(found, uncached(model, [[1, 2, 3]]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_rows_kept_in_the_cache_are_theirs() -> None:
    model = random_model().eval()
    ids = torch.randint(0, 97, (4, 7))
    cache = model.new_cache(batch=4, length=7)
    model(ids[:, :5], cache=cache)
    cache.keep([1, 3])
    found = model(ids[[1, 3], 5:], cache=cache)
    torch.testing.assert_close(found, model(ids[[1, 3]])[:, 5:], atol=1e-5, rtol=0)
