"""The model: shapes, causality, cache, padding, sizes, and every option of its configuration."""

import math
from dataclasses import replace

import pytest
import torch

from gptmill.model.classifier import GPT2Classifier
from gptmill.model.config import GPT2_SIZES, GPT2Config, gpt2_config
from gptmill.model.gpt2 import GPT2, count_parameters

CONFIG = GPT2Config(vocabulary_size=97, context_length=32, layers=3, heads=4, width=32)
OPTIONS = [
    {},
    {"bias": False},
    {"activation": "relu"},
    {"activation": "gelu"},
    {"tied_head": False},
    {"positions": "none"},
]


@pytest.fixture(params=OPTIONS, ids=lambda options: str(options))
def model(request: pytest.FixtureRequest) -> GPT2:
    torch.manual_seed(0)
    return GPT2(replace(CONFIG, **request.param)).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 97, (3, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_future_does_not_leak(model: GPT2, ids: torch.Tensor) -> None:
    before = model(ids)
    changed = ids.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 97
    after = model(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


@torch.no_grad()
def test_cached_steps_equal_one_pass(model: GPT2, ids: torch.Tensor) -> None:
    cache = model.new_cache(batch=3)
    pieces = [model(ids[:, a:b], cache=cache) for a, b in ((0, 7), (7, 12), (12, 13), (13, 20))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), atol=1e-5, rtol=0)


@torch.no_grad()
def test_left_padding_changes_nothing(model: GPT2, ids: torch.Tensor) -> None:
    padded = torch.cat([torch.full((3, 5), 11), ids], dim=1)
    mask = torch.cat([torch.zeros(3, 5), torch.ones(3, 20)], dim=1).long()
    full = model(ids)
    torch.testing.assert_close(model(padded, attention_mask=mask)[:, 5:], full, atol=1e-5, rtol=0)
    cache = model.new_cache(batch=3)
    model(padded[:, :20], attention_mask=mask[:, :20], cache=cache)
    last = model(padded[:, 20:], attention_mask=mask, cache=cache)
    torch.testing.assert_close(last, full[:, 15:], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("124M", 124_439_808), ("355M", 354_823_168), ("774M", 774_030_080), ("1558M", 1_557_611_200)],
)
def test_published_sizes(size: str, parameters: int) -> None:
    with torch.device("meta"):
        assert count_parameters(GPT2(gpt2_config(size))) == parameters
    assert set(GPT2_SIZES) == {"124M", "355M", "774M", "1558M"}


def test_an_untrained_model_knows_nothing(ids: torch.Tensor) -> None:
    torch.manual_seed(0)
    logits = GPT2(CONFIG)(ids[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(97), abs=0.05)


def test_the_tied_head_is_one_parameter() -> None:
    tied, untied = GPT2(CONFIG), GPT2(replace(CONFIG, tied_head=False))
    assert tied.lm_head.weight is tied.transformer.wte.weight
    assert count_parameters(untied) - count_parameters(tied) == 97 * 32


def test_residual_projections_start_smaller() -> None:
    torch.manual_seed(0)
    model = GPT2(GPT2Config(100, 16, 8, 4, 128))
    block = model.transformer.h[0]
    assert block.attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert not block.mlp.c_fc.bias.any()


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="width 32 is not a multiple of heads 5"):
        replace(CONFIG, heads=5)


@torch.no_grad()
def test_the_classifier_reads_the_last_real_token(ids: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = GPT2Classifier(CONFIG, labels=2).eval()
    alone = model(ids[:1, :9])
    padded = torch.cat([ids[:1, :9], torch.full((1, 6), 96)], dim=1)
    mask = torch.tensor([[1] * 9 + [0] * 6])
    torch.testing.assert_close(model(padded, mask), alone, atol=1e-6, rtol=0)
    assert not torch.allclose(model(padded), alone)  # the book's read-out: the padding's position
