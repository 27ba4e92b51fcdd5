"""What is written by hand against PyTorch's own, and what shortcuts and dropout are said to do."""

import pytest
import torch
from torch import nn

from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2, Block, FeedForward
from gptmill.study import layers

CONFIG = GPT2Config(vocabulary_size=5, context_length=8, layers=1, heads=2, width=16)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_layer_norm_by_hand(x: torch.Tensor) -> None:
    norm = nn.LayerNorm(16)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    torch.testing.assert_close(layers.layer_norm(x, norm.weight, norm.bias), norm(x))
    plain = layers.layer_norm(x, torch.ones(16), torch.zeros(16), unbiased=True)
    # The unbiased variance is 16/15 larger.
    torch.testing.assert_close(
        plain.var(-1, unbiased=False), torch.full((2, 6), 15 / 16), atol=1e-4, rtol=0
    )


@torch.no_grad()
def test_gelu_and_feed_forward_by_hand(x: torch.Tensor) -> None:
    torch.testing.assert_close(layers.gelu_tanh(x), nn.functional.gelu(x, approximate="tanh"))
    network = FeedForward(CONFIG)
    torch.testing.assert_close(layers.feed_forward(x, network), network(x))


@torch.no_grad()
@pytest.mark.parametrize("norm_first", [True, False])
def test_both_places_of_layer_norm_are_pytorchs(x: torch.Tensor, norm_first: bool) -> None:
    block = Block(CONFIG)
    reference = nn.TransformerEncoderLayer(
        16, 2, 64, 0.0, nn.GELU("tanh"), batch_first=True, norm_first=norm_first
    )
    names = {
        "self_attn.in_proj_": "attn.c_attn.", "self_attn.out_proj.": "attn.c_proj.",
        "linear1.": "mlp.c_fc.", "linear2.": "mlp.c_proj.", "norm1.": "ln_1.", "norm2.": "ln_2.",
    }  # fmt: skip
    ours = block.state_dict()
    reference.load_state_dict(
        {
            f"{theirs}{kind}": ours[f"{name}{kind}"]
            for theirs, name in names.items()
            for kind in ("weight", "bias")
        }
    )
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    expected = reference(x, src_mask=mask, is_causal=True)
    found = block(x) if norm_first else layers.post_norm(x, block)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_normalization_finds_the_biased_variance_and_no_neighbors() -> None:
    found = layers.normalization(CONFIG, seed=0).metrics
    assert found["layer_norm_max_difference"] < 1e-5 < 1e-3 < found["unbiased_max_difference"]
    assert found["layer_norm_depends_on_batch"] == 0
    assert found["batch_norm_depends_on_batch"] > 0.1


def test_activations_and_dropout() -> None:
    found = layers.activations(GPT2(CONFIG)).metrics
    assert found["gelu_max_difference"] < 1e-6 < 1e-4 < found["tanh_approximation"] < 1e-3
    assert found["feed_forward_width"] == 64
    rows = layers.dropout(seed=0).rows
    assert [row["kept_value"] for row in rows] == pytest.approx([1 / 0.9, 1.25, 2, 5])
    assert all(abs(row["mean"] - 1) < 0.03 for row in rows)
    assert all(abs(row["mean_without_scaling"] + row["p"] - 1) < 0.01 for row in rows)


def test_shortcuts_keep_the_gradient_that_a_plain_stack_loses() -> None:
    found = layers.shortcuts(seed=0).metrics
    assert found["first_to_last_plain"] < 1e-3
    assert 0.2 < found["first_to_last_with_shortcuts"] < 5


def test_gradients_near_the_output_shrink_with_depth_before_but_not_after() -> None:
    found = layers.norm_placement(seed=0).metrics
    assert found["pre_gradient_2_to_32_blocks"] < 0.4
    assert 0.6 < found["post_gradient_2_to_32_blocks"] < 1
