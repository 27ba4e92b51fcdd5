"""Matrix products in float32 by the quickest kernels that PyTorch holds for this processor.

PyTorch gives float32 products to Intel's MKL. On AMD's processors MKL stays with AVX2 where they
have AVX-512; oneDNN, which PyTorch holds too, uses it and is twice as quick (docs/speed.md).
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OPERATOR = "_linear_pointwise"


@cache
def onednn_is_quicker() -> bool:
    """Whether float32 products on the CPU are oneDNN's, by a rule from the hardware: never by a
    timing, so that one machine always gives the same bytes."""
    processor = torch.cpu.get_capabilities()
    amd = str(processor.get("cpu_name", "")).startswith("AMD")
    # The operator is PyTorch's own compiler's, not its public interface: a later one may lack it.
    available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, OPERATOR)
    return amd and bool(processor.get("avx512_f")) and available


class Linear(nn.Linear):
    """`nn.Linear` by the quickest kernels."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·weightᵀ + bias, x [..., K], weight [C, K], bias [C]: [..., C], differentiable."""
    if _is_for_onednn(x, weight):
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    """`linear` by oneDNN, for which PyTorch has no derivative."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = context.saved_tensors
        of_x, of_weight, of_bias = context.needs_input_grad
        rows = gradient.flatten(0, -2)  # [N, C]
        return (
            _onednn(gradient, weight.T) if of_x else None,
            _onednn(rows.T, x.flatten(0, -2).T) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·weightᵀ + bias."""
    return getattr(torch.ops.mkldnn, OPERATOR)(x, weight, bias, "none", [], "")


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether x·weightᵀ is oneDNN's: its calls take some 10 µs to set up."""
    return (
        x.numel() * len(weight) >= 2**20  # multiplications
        and onednn_is_quicker()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )
