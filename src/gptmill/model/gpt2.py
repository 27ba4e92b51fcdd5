"""GPT-2 (Radford et al. 2019): a stack of pre-LayerNorm transformer blocks.

Parameter names are OpenAI's and Hugging Face's, so that loading weights is a transpose. Shapes:
B batch, T new tokens, P past tokens, S = P + T, C width, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptmill.model.attention import CausalSelfAttention, KeyValueCache, LayerCache, Step, bound
from gptmill.model.config import GPT2Config
from gptmill.model.products import Linear

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu_new": lambda: nn.GELU(approximate="tanh"),  # the approximation GPT-2 was trained with
    "gelu": nn.GELU,
    "relu": nn.ReLU,
}
GPT2_DEVIATION = 0.02  # of initial weights


class FeedForward(nn.Module):
    """Two linear layers, four times as wide between them."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = Linear(config.width, 4 * config.width, bias=config.bias)
        self.c_proj = Linear(4 * config.width, config.width, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]()

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))

    def step(self) -> Callable[[Tensor], Tensor]:
        """`forward` without the calls of modules."""
        widen, activation, narrow = bound(self.c_fc), bound(self.activation), bound(self.c_proj)
        return lambda x: narrow(activation(widen(x)))


class Block(nn.Module):
    """LayerNorm, attention, shortcut; LayerNorm, feed-forward, shortcut. Keeps [B, T, C]."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, bias=config.bias)
        self.attn = CausalSelfAttention(config.width, config.heads, config.dropout, config.bias)
        self.ln_2 = nn.LayerNorm(config.width, bias=config.bias)
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        x = x + self.dropout(self.attn(self.ln_1(x), mask, cache))
        return x + self.dropout(self.mlp(self.ln_2(x)))

    def step(self) -> Step:
        """`forward` of one new token per sequence, [B, C], in evaluation mode."""
        first, attention = bound(self.ln_1), self.attn.step()
        second, feed_forward = bound(self.ln_2), self.mlp.step()

        def step(x: Tensor, mask: Tensor | None, cache: LayerCache) -> Tensor:
            x = x + attention(first(x), mask, cache)
            return x + feed_forward(second(x))

        return step


class Transformer(nn.Module):
    """Embeddings, blocks and the final LayerNorm: ids [B, T] to hidden states [B, T, C]."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocabulary_size, config.width)
        if config.positions == "learned":
            self.wpe = nn.Embedding(config.context_length, config.width)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width, bias=config.bias)

    def forward(
        self,
        ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        past = cache.length if cache is not None else 0
        T = ids.shape[1]
        x = self.wte(ids)
        if self.config.positions == "learned":
            if position_ids is None:
                position_ids = _positions(attention_mask, past, T, ids.device)
            x = x + self.wpe(position_ids)
        x = self.drop(x)
        mask = _visible(attention_mask, past, T, ids.device)
        caches = cache.extend(T) if cache is not None else [None] * len(self.h)
        for block, layer_cache in zip(self.h, caches):
            x = block(x, mask, layer_cache)
        return self.ln_f(x)

    def step(self) -> Callable[[Tensor, Tensor, Tensor | None, KeyValueCache], Tensor]:
        """`forward` of one new token per sequence, in evaluation mode: a function of ids [B],
        positions [B], an additive mask [B, 1, 1, at least S] or None, and a cache, to hidden
        states [B, C]."""
        learned = self.config.positions == "learned"
        blocks = [cast(Block, block).step() for block in self.h]
        final = bound(self.ln_f)

        def step(
            ids: Tensor, positions: Tensor, mask: Tensor | None, cache: KeyValueCache
        ) -> Tensor:
            x = F.embedding(ids, self.wte.weight)
            if learned:
                x = x + F.embedding(positions, self.wpe.weight)
            caches = cache.extend(1)
            mask = None if mask is None else mask[..., : cache.length]
            for block, layer_cache in zip(blocks, caches):
                x = block(x, mask, layer_cache)
            return final(x)

        return step


class GPT2(nn.Module):
    """The language model: hidden states and a head over the vocabulary."""

    def __init__(
        self,
        config: GPT2Config,
        deviation: float = GPT2_DEVIATION,
        embedding_deviation: float = GPT2_DEVIATION,
    ) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = Linear(config.width, config.vocabulary_size, bias=False)
        if config.tied_head:
            self.lm_head.weight = self.transformer.wte.weight
        initialize(self, config.layers, deviation)
        nn.init.normal_(self.transformer.wte.weight, std=embedding_deviation)

    def forward(
        self,
        ids: Tensor,  # [B, T]
        *,
        attention_mask: Tensor | None = None,  # [B, S], 1 for real tokens and 0 for padding
        position_ids: Tensor | None = None,  # [B, T]; by default counted over real tokens
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Logits [B, T, V] of the token after each position."""
        return self.lm_head(self.transformer(ids, attention_mask, position_ids, cache))

    def new_cache(self, batch: int, length: int | None = None) -> KeyValueCache:
        """An empty cache for `batch` sequences, with room for `length` tokens (the context)."""
        config, weight = self.config, self.transformer.wte.weight
        length = length or config.context_length
        shape = (config.layers, batch, config.heads, length, config.head_width)
        return KeyValueCache(*shape, weight.device, weight.dtype)


def initialize(model: nn.Module, layers: int, deviation: float = GPT2_DEVIATION) -> None:
    """GPT-2's initialization: normal weights, zero biases, and projections onto the residual
    stream scaled by 1/√(2·layers), the number of additions to it.

    0.02 suits a width of 768 and more; a narrow model learns faster from about 1/√width, position
    embeddings excepted.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.endswith("wpe.weight"):
            nn.init.normal_(parameter, std=GPT2_DEVIATION)
        elif parameter.dim() >= 2:
            scale = math.sqrt(2 * layers) if name.endswith("c_proj.weight") else 1.0
            nn.init.normal_(parameter, mean=0.0, std=deviation / scale)


def set_dropout(model: GPT2, rate: float) -> None:
    """Train on with this dropout, wherever the model has it."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        elif isinstance(module, CausalSelfAttention):
            module.dropout = rate
    model.config = model.transformer.config = replace(model.config, dropout=rate)


def count_parameters(model: nn.Module) -> int:
    """Parameters, a tied matrix counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _positions(attention_mask: Tensor | None, past: int, T: int, device: torch.device) -> Tensor:
    """Positions [1 or B, T]; padding before a sequence does not count."""
    if attention_mask is None:
        return torch.arange(past, past + T, device=device)[None]
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, -T:]


def _visible(
    attention_mask: Tensor | None, past: int, T: int, device: torch.device
) -> Tensor | None:
    """What each query may look at, [B or 1, 1, T, S]; None is the plain causal triangle."""
    if attention_mask is None and (past == 0 or T == 1):
        return None
    S = past + T
    query, key = torch.arange(past, S, device=device), torch.arange(S, device=device)
    causal = key[None, :] <= query[:, None]  # [T, S]
    if attention_mask is None:
        return causal[None, None]
    # A padded query has nothing to see; itself keeps its softmax finite.
    own = key[None, :] == query[:, None]
    real = attention_mask.bool()[:, None, None, :]
    return (causal & real) | own
