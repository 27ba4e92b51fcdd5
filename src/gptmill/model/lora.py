"""LoRA: low-rank updates beside frozen linear layers (Hu et al. 2021), merged before saving.

Shapes: I inputs, O outputs, R rank.
"""

import math

import torch
from torch import Tensor, nn

from gptmill.model.products import linear


class LowRankLinear(nn.Module):
    """A frozen linear layer W and a trained update: x Wᵀ + (alpha / R) (x Aᵀ) Bᵀ.

    A [R, I] starts random and B [O, R] at zero, so that training starts at the layer itself.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.scale = alpha / rank
        self.down = nn.Parameter(layer.weight.new_empty(rank, layer.in_features))
        self.up = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.scale * linear(linear(x, self.down), self.up)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The layer with W + (alpha / R) B A for its weight: the same outputs, nothing beside."""
        update = self.scale * self.up @ self.down
        self.layer.weight = nn.Parameter(self.layer.weight + update, requires_grad=False)
        return self.layer


def add_low_rank(model: nn.Module, rank: int, alpha: float) -> None:
    """Freeze `model` and put an update beside each of its linear layers."""
    model.requires_grad_(False)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, LowRankLinear(child, rank, alpha))


def merge_low_rank(model: nn.Module) -> None:
    """Put plain linear layers back, still frozen; a model without updates stays as it is."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LowRankLinear):
                setattr(module, name, child.merged())
