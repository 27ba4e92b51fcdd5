"""Weights per head are production's own; reach follows the causal mask."""

import pytest
import torch
from torch import Tensor

from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.study.attention import block_inputs, head_weights, heads, influence, ladder, reach

CONFIG = GPT2Config(vocabulary_size=31, context_length=16, layers=5, heads=2, width=16)


@pytest.fixture(scope="module")
def model() -> GPT2:
    torch.manual_seed(0)
    return GPT2(CONFIG, 0.3, 0.3).eval()


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.arange(9) * 3 % 31


@torch.no_grad()
def test_the_weights_drawn_are_those_production_uses(model: GPT2, ids: Tensor) -> None:
    weights = head_weights(model, ids)
    assert weights.shape == (5, 2, 9, 9)
    for layer, (block, x) in enumerate(block_inputs(model, ids)):
        normed = block.ln_1(x)
        values = block.attn.c_attn(normed)[..., 32:].view(1, 9, 2, 8).transpose(1, 2)
        context = (weights[layer] @ values).transpose(1, 2).reshape(1, 9, 16)
        torch.testing.assert_close(block.attn.c_proj(context), block.attn(normed))


@torch.no_grad()
def test_reading_weights_leaves_no_hook_behind(model: GPT2, ids: Tensor) -> None:
    head_weights(model, ids)
    assert all(not block._forward_hooks for block in model.transformer.h)


@torch.no_grad()
def test_heat_maps_cover_heads_and_have_no_future(model: GPT2, ids: Tensor) -> None:
    found = heads(model, ids, list("abcdefghi"))
    assert found.metrics["largest_future_weight"] == 0
    assert len(found.figure.axes) == 4 * 2  # four of five layers
    assert len(found.rows) == 5 * 2
    assert found.metrics["nearest_head"] <= found.metrics["farthest_head"] <= 8


@pytest.mark.parametrize("position", [0, 4, 8])
def test_influence_ends_at_the_position_read(model: GPT2, ids: Tensor, position: int) -> None:
    shares = influence(model, ids, position)
    assert shares.sum().item() == pytest.approx(1)
    assert (shares[: position + 1] > 0).all()
    assert not shares[position + 1 :].any()


def test_the_last_token_has_read_all(model: GPT2, ids: Tensor) -> None:
    found = reach(model, ids, list("abcdefghi")).metrics
    seen = [found[f"{name}_sees_tokens"] for name in ("first", "middle", "last")]
    assert seen == [1, 5, 9]
    assert 1 < found["last_effective_tokens"] < 9


def test_the_ladder_meets_production_at_the_mask() -> None:
    found = ladder(CONFIG, seed=0)
    differences = [row["max_difference"] for row in found.rows]
    assert min(differences[:3]) > 0.1
    assert max(differences[3:]) < 1e-6
    # Three matrices of 16 × 8; four of 16 × 16.
    assert [row["parameters"] for row in found.rows] == [0, 384, 384, 384, 1024, 1024]
    assert len(found.timings) == 6 and all(seconds > 0 for seconds in found.timings.values())
    assert not any("seconds" in name for name in found.metrics)
