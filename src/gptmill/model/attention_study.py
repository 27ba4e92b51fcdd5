"""The taught ladder: self-attention in five rungs, each one idea further, none used in production.

Tests chain the rungs: numbers worked by hand → `SelfAttentionV1` equals `SelfAttentionV2` with its
matrices transposed → `CausalAttention` equals that under a mask → `MultiHeadWrapper` equals the
production attention (`gptmill.model.attention`) that stacks its heads.

Shapes: B batch, T tokens, C width of the input, D width of the output (of one head). Every
argument `x` may lack B. This module imports torch alone.
"""

import torch
from torch import Tensor, nn


def simplified_self_attention(x: Tensor) -> tuple[Tensor, Tensor]:
    """Context vectors [B, T, C] and weights [B, T, T] of x [B, T, C], with nothing to learn.

    A score is the dot product of two tokens; softmax makes the scores of a token weights that sum
    to 1; its context vector is the mean of all tokens under those weights.
    """
    weights = torch.softmax(x @ x.transpose(-2, -1), dim=-1)
    return weights @ x, weights


def attention_weights(query: Tensor, key: Tensor, hidden: Tensor | None = None) -> Tensor:
    """softmax(Q·Kᵀ/√D), [..., T, T], of queries and keys [..., T, D] (Vaswani et al. 2017).

    Dot products of D terms have a deviation of √D; unscaled, softmax would sit at its flat ends,
    where gradients vanish. Scores of what is `hidden` [T, T] become −∞, and their weight 0.
    """
    scores = query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return torch.softmax(scores, dim=-1)


def later_tokens(length: int) -> Tensor:
    """True above the diagonal of [T, T]: what a token (its row) must not see."""
    return torch.ones(length, length, dtype=torch.bool).triu(diagonal=1)


class SelfAttentionV1(nn.Module):
    """Trainable queries, keys and values as bare parameters [C, D]."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.rand(width, head_width))
        self.key = nn.Parameter(torch.rand(width, head_width))
        self.value = nn.Parameter(torch.rand(width, head_width))

    def forward(self, x: Tensor) -> Tensor:
        return attention_weights(x @ self.query, x @ self.key) @ (x @ self.value)


class SelfAttentionV2(nn.Module):
    """The same with linear layers, which hold their matrix as [D, C] and begin better scaled."""

    def __init__(self, width: int, head_width: int, bias: bool = False) -> None:
        super().__init__()
        self.query = nn.Linear(width, head_width, bias=bias)
        self.key = nn.Linear(width, head_width, bias=bias)
        self.value = nn.Linear(width, head_width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return attention_weights(self.query(x), self.key(x)) @ self.value(x)


class CausalAttention(SelfAttentionV2):
    """No token sees a later one, and dropout hides some weights while training.

    The mask is a buffer: it moves to the device with the module and is not learned. It can be made
    again from the length, so that no checkpoint carries it.
    """

    mask: Tensor

    def __init__(
        self,
        width: int,
        head_width: int,
        context_length: int,
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__(width, head_width, bias)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mask", later_tokens(context_length), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        T = x.shape[-2]
        weights = attention_weights(self.query(x), self.key(x), self.mask[:T, :T])
        return self.dropout(weights) @ self.value(x)


class MultiHeadWrapper(nn.Module):
    """Several causal heads beside each other, one after another in time, and an output projection.

    `width` is divided among the heads, so that the output is [B, T, C] again.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        context_length: int,
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        head_width = width // heads
        self.heads = nn.ModuleList(
            CausalAttention(width, head_width, context_length, dropout, bias) for _ in range(heads)
        )
        self.projection = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(torch.cat([head(x) for head in self.heads], dim=-1))

    def stacked(self) -> dict[str, Tensor]:
        """The weights of the production attention that computes the same at once.

        All heads' queries, then keys, then values, on top of each other: one matrix [3C, C], whose
        product is split into heads by a reshape.
        """
        parts = [getattr(head, name) for name in ("query", "key", "value") for head in self.heads]
        kinds = ["weight"] if self.projection.bias is None else ["weight", "bias"]
        stacked = {f"c_attn.{kind}": torch.cat([getattr(p, kind) for p in parts]) for kind in kinds}
        return stacked | {f"c_proj.{kind}": getattr(self.projection, kind) for kind in kinds}
