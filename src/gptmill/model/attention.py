"""The production attention: one fused projection, scaled dot products, an optional cache.

Shapes: B batch, T new tokens, P past tokens, S = P + T, H heads, D head width, C = H·D.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptmill.model.products import Linear, linear


class KeyValueCache:
    """Keys and values of every layer, preallocated: no copy of the past at each step.

    Args:
        layers, batch, heads, length, head_width: the shape; `length` is the tokens there is room
            for at first, doubled when they are exceeded.

    For inference alone: writing in place needs `torch.no_grad()`.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        length: int,
        head_width: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (layers, 2, batch, heads, length, head_width)
        self.store = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0  # tokens held

    def extend(self, tokens: int) -> "list[LayerCache]":
        """Make room for so many more tokens in every layer.

        The views of all layers are cut at once: at one token per step the slicing overhead is
        measurable.
        """
        start, self.length = self.length, self.length + tokens
        if self.length > self.store.shape[4]:
            self._grow(start)
        layers = self.store.flatten(0, 1)
        new = layers[:, :, :, start : self.length].unbind()
        held = layers[:, :, :, : self.length].unbind()
        return [LayerCache(*views) for views in zip(new[::2], new[1::2], held[::2], held[1::2])]

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows of the batch, ascending; they move up within the store."""
        for new, old in enumerate(rows):
            if new != old:
                self.store[:, :, new, :, : self.length] = self.store[:, :, old, :, : self.length]
        self.store = self.store[:, :, : len(rows)]

    def _grow(self, held: int) -> None:
        old = self.store
        room = max(2 * old.shape[4], self.length)
        self.store = old.new_empty((*old.shape[:4], room, old.shape[5]))
        self.store[:, :, :, :, :held] = old[:, :, :, :, :held]


class LayerCache(NamedTuple):
    """One layer's part of the cache: where new keys and values go, and all up to their end."""

    new_key: Tensor  # [B, H, T, D]
    new_value: Tensor
    keys: Tensor  # [B, H, S, D]
    values: Tensor

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new keys and values [B, H, T, D]; return all of them, [B, H, S, D]."""
        self.new_key.copy_(key)
        self.new_value.copy_(value)
        return self.keys, self.values


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which no position sees a later one (Vaswani et al. 2017).

    Equal to the concatenated heads of the taught ladder: `c_attn` stacks all heads' query, key
    and value projections, so that one matrix product computes them.
    """

    def __init__(self, width: int, heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.c_attn = Linear(width, 3 * width, bias=bias)
        self.c_proj = Linear(width, width, bias=bias)

    def forward(
        self,
        x: Tensor,  # [B, T, C]
        mask: Tensor | None = None,  # [B or 1, 1, T, S], True where a query may look; None: causal
        cache: LayerCache | None = None,
    ) -> Tensor:
        B, T, C = x.shape
        query, key, value = (
            part.view(B, T, self.heads, C // self.heads).transpose(1, 2)  # [B, H, T, D]
            for part in self.c_attn(x).split(C, dim=2)
        )
        if cache is not None:
            key, value = cache.append(key, value)
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            # One new token sees all that is cached: no mask and no triangle.
            is_causal=mask is None and T > 1,
        )
        return self.c_proj(context.transpose(1, 2).reshape(B, T, C))

    def step(self) -> "Step":
        """`forward` of one new token per sequence, [B, C] in place of [B, 1, C], no dropout."""
        project, output, heads = bound(self.c_attn), bound(self.c_proj), self.heads

        def step(x: Tensor, mask: Tensor | None, cache: LayerCache) -> Tensor:
            B, C = x.shape
            query, key, value = project(x).view(B, 3, heads, 1, -1).unbind(1)  # [B, H, 1, D]
            keys, values = cache.append(key, value)
            context = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
            return output(context.reshape(B, C))

        return step


# One new token of each sequence [B, C], an additive mask [B, 1, 1, S] or None, the layer's cache.
Step = Callable[[Tensor, Tensor | None, LayerCache], Tensor]


def bound(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """A module's function with its parameters as they are at each call, without its hooks.

    Around a product with one row, the calls of modules take as long as the rest of a small model,
    and an eighth of 124M's time.
    """
    if type(module) is Linear:
        return partial(linear, weight=module.weight, bias=module.bias)
    if type(module) is nn.LayerNorm:
        return partial(
            torch.layer_norm,
            normalized_shape=module.normalized_shape,
            weight=module.weight,
            bias=module.bias,
            eps=module.eps,
        )
    return module.forward
