"""The ladder, proven by a chain: hand-worked numbers at the foot, production at the top."""

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from gptmill.model.attention import CausalSelfAttention
from gptmill.model.attention_study import (
    CausalAttention,
    MultiHeadWrapper,
    SelfAttentionV1,
    SelfAttentionV2,
    attention_weights,
    later_tokens,
    simplified_self_attention,
)

WIDTH, HEADS, LENGTH = 12, 3, 7


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)


def test_simplified_attention_by_hand() -> None:
    # Tokens (1, 0) and (0, 2): scores 1, 0 and 0, 4; each row's softmax is 1/(1+e^-difference).
    context, weights = simplified_self_attention(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    first, second = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-4))
    close(weights, torch.tensor([[first, 1 - first], [1 - second, second]]))
    close(context, torch.tensor([[first, 2 * (1 - first)], [1 - second, 2 * second]]))


def test_trainable_attention_by_hand() -> None:
    """One number per token, so that every product can be followed; √1 changes nothing."""
    attention = SelfAttentionV1(1, 1)
    with torch.no_grad():
        attention.query.fill_(1.0)
        attention.key.fill_(math.log(2))
        attention.value.fill_(10.0)
    # Scores of token 1: ln 2 · (1, 2), so weights 2 and 4 of 6; of token 2: 4 and 16 of 20.
    found = attention(torch.tensor([[1.0], [2.0]]))
    close(found, torch.tensor([[(2 * 10 + 4 * 20) / 6], [(4 * 10 + 16 * 20) / 20]]))


def test_scaling_by_hand() -> None:
    # The dot product 2 over √4 is 1.
    query, key = torch.ones(1, 4), torch.tensor([[0.5] * 4, [0.0] * 4])
    assert attention_weights(query, key)[0, 0].item() == pytest.approx(1 / (1 + math.exp(-1)))


def test_scaling_keeps_the_deviation_of_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 400, 256, generator=generator)
    assert (query @ key.T).std().item() == pytest.approx(16, rel=0.05)
    inverse = torch.log(attention_weights(query, key))
    assert (inverse - inverse.mean(1, keepdim=True)).std().item() == pytest.approx(1, rel=0.05)


@torch.no_grad()
def test_parameters_equal_linear_layers_transposed(x: Tensor) -> None:
    first, second = SelfAttentionV1(WIDTH, 4), SelfAttentionV2(WIDTH, 4)
    for name in ("query", "key", "value"):
        getattr(second, name).weight.copy_(getattr(first, name).T)
    close(second(x), first(x))


@torch.no_grad()
def test_causal_equals_plain_attention_under_a_mask(x: Tensor) -> None:
    causal = CausalAttention(WIDTH, 4, context_length=10)
    plain = SelfAttentionV2(WIDTH, 4)
    plain.load_state_dict(causal.state_dict())
    # Each token alone with those before it: the mask computes all the prefixes at once.
    expected = torch.stack([plain(x[:, : t + 1])[:, -1] for t in range(LENGTH)], dim=1)
    close(causal(x), expected)


@torch.no_grad()
def test_masking_the_scores_equals_renormalizing_the_weights(x: Tensor) -> None:
    query, key = x[..., :4], x[..., 4:8]
    kept = attention_weights(query, key).masked_fill(later_tokens(LENGTH), 0)
    causal = attention_weights(query, key, later_tokens(LENGTH))
    close(causal, kept / kept.sum(-1, keepdim=True))


@pytest.mark.parametrize(
    "attention",
    [CausalAttention(WIDTH, 4, LENGTH), MultiHeadWrapper(WIDTH, HEADS, LENGTH)],
    ids=lambda module: type(module).__name__,
)
def test_the_future_cannot_leak(attention: nn.Module, x: Tensor) -> None:
    x.requires_grad_()
    attention(x)[:, 3].sum().backward()
    assert not x.grad[:, 4:].any()
    assert x.grad[:, :4].abs().sum(dim=(0, 2)).all()


def test_the_mask_is_a_buffer_that_no_checkpoint_carries() -> None:
    attention = CausalAttention(WIDTH, 4, LENGTH)
    assert dict(attention.named_buffers())["mask"].shape == (LENGTH, LENGTH)
    assert "mask" not in attention.state_dict()
    assert all(name.endswith("weight") for name, _ in attention.named_parameters())
    assert attention.to("meta").mask.device.type == "meta"


def test_dropout_hides_weights_in_training_alone(x: Tensor) -> None:
    torch.manual_seed(0)
    attention = CausalAttention(WIDTH, 4, LENGTH, dropout=0.5)
    torch.testing.assert_close(attention.eval()(x), attention(x))
    attention.train()
    assert not torch.equal(attention(x), attention(x))
    # The first token's one weight of 1 is either hidden or doubled.
    value = attention.value(x)[:, 0]
    shares = {round((attention(x)[0, 0] / value[0]).mean().item(), 4) for _ in range(20)}
    assert shares == {0.0, 2.0}


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
def test_the_wrapper_equals_production_with_its_heads_stacked(x: Tensor, bias: bool) -> None:
    wrapper = MultiHeadWrapper(WIDTH, HEADS, LENGTH, bias=bias)
    production = CausalSelfAttention(WIDTH, HEADS, dropout=0.0, bias=bias)
    production.load_state_dict(wrapper.stacked())
    close(production(x), wrapper(x))
    counted = [sum(p.numel() for p in module.parameters()) for module in (wrapper, production)]
    assert counted[0] == counted[1]


def test_it_imports_torch_alone() -> None:
    """No module of the house comes with the ladder, but the empty package above it."""
    code = (
        "import sys, gptmill.model.attention_study;"
        "print(sorted(n for n in sys.modules if n.split('.')[0] == 'gptmill'))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(
        ["gptmill", "gptmill.model", "gptmill.model.attention_study"]
    )
