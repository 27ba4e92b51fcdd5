"""Muon (Jordan et al. 2024): momentum made orthogonal, for the matrices inside blocks.

PyTorch's own does one matrix at a time in bfloat16, which CPUs without it emulate. Here matrices
of one shape are one batch in float32, and everything else stays AdamW's.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from gptmill.engine.parallel import gathered, local, sharded
from gptmill.engine.workers import ALONE, Workers

# One quintic a step: the first three of Polar Express (Amsel et al. 2025), each the best after
# those before it for singular values from 0.001 to 1. Five are usual; docs/log.md has others.
COEFFICIENTS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)


class Muon(torch.optim.AdamW):
    """AdamW, but groups with `muon` above 0 get Muon's update at `muon` times their rate.

    Nesterov momentum of `beta1`, decoupled decay, and the rate of a matrix with more rows than
    columns grows by √(rows/columns).

    Args:
        workers: threads that share the shapes of matrices.
    """

    def __init__(self, groups: list[dict], workers: Workers = ALONE, **options: Any) -> None:
        super().__init__(groups, **options)
        self._workers = workers

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            if group["muon"]:
                self._workers.map(partial(self._orthogonal_step, group), self._parts(group))
        super().step(closure)  # what has no gradient any more is left alone

    def _parts(self, group: dict) -> list[list[Tensor]]:
        """The group's matrices by shape, the largest first: the workers take one after another."""
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in group["params"]:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        return sorted(by_shape.values(), key=lambda same: -same[0].numel() * len(same))

    @torch.no_grad()
    def _orthogonal_step(self, group: dict, parameters: list[Tensor]) -> None:
        """Update matrices of one shape."""
        rows, columns = parameters[0].shape
        gradients = [local(parameter.grad) for parameter in parameters]
        momenta = [local(self._momentum(parameter)) for parameter in parameters]
        momentum, _ = group["betas"]
        torch._foreach_lerp_(momenta, gradients, 1 - momentum)
        parts = torch._foreach_lerp(gradients, momenta, momentum)
        # A sharded matrix is gathered, because its singular values are those of all its rows.
        steps = torch.stack([gathered(part, p) for part, p in zip(parts, parameters)])
        rate = group["lr"] * group["muon"]
        updates = orthogonalized(steps) * (rate * max(1.0, rows / columns) ** 0.5)
        values = [local(parameter) for parameter in parameters]
        torch._foreach_mul_(values, 1 - rate * group["weight_decay"])
        own = [local(sharded(update, p)) for update, p in zip(updates, parameters)]
        torch._foreach_sub_(values, own)
        for parameter in parameters:
            parameter.grad = None

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # AdamW's loading wants one of every state
        return state["momentum"]


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices [B, R, C] with their singular values moved towards 1, by Newton and Schulz.

    x ← a·x + b·xxᵀx + c·(xxᵀ)²x, but on the small square xxᵀ alone: all steps are polynomials in
    it, so their product is gathered there and meets x once.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    square = x @ x.mT
    product = factor = _polynomial(square, *COEFFICIENTS[0])
    for coefficients in COEFFICIENTS[1:]:
        square = factor @ square @ factor
        factor = _polynomial(square, *coefficients)
        product = factor @ product
    x = product @ x
    return x.mT if tall else x


def _polynomial(square: Tensor, a: float, b: float, c: float) -> Tensor:
    """a + b·s + c·s² of squares [B, R, R]."""
    result = torch.baddbmm(square, square, square, beta=b, alpha=c)
    result.diagonal(dim1=1, dim2=2).add_(a)
    return result
