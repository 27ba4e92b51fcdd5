"""Muon (Jordan et al. 2024): momentum made orthogonal, for the matrices inside blocks.

PyTorch's own does one matrix at a time in bfloat16, which CPUs without it emulate. Here matrices
of one shape are one batch in float32, and everything else stays AdamW's.
"""

import torch
from torch import Tensor

MOMENTUM = 0.95
NEWTON_SCHULZ_STEPS = 3  # five are usual and slower; docs/log.md has both
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, chosen for a steep start


class Muon(torch.optim.AdamW):
    """AdamW, but groups with `muon` above 0 get Muon's update at `muon` times their rate.

    Nesterov momentum, decoupled decay, and the rate of a matrix with more rows than columns grows
    by √(rows/columns).
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            if group["muon"]:
                self._orthogonal_step(group)
        super().step(closure)  # what has no gradient any more is left alone

    def _orthogonal_step(self, group: dict) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in group["params"]:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        for (rows, columns), parameters in by_shape.items():
            gradients = [parameter.grad for parameter in parameters]
            momenta = [self._momentum(parameter) for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            steps = torch.stack(torch._foreach_lerp(gradients, momenta, MOMENTUM))
            rate = group["lr"] * group["muon"]
            updates = orthogonalized(steps) * (rate * max(1.0, rows / columns) ** 0.5)
            torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
            torch._foreach_sub_(parameters, list(updates.unbind()))
            for parameter in parameters:
                parameter.grad = None

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # AdamW's loading wants one of every state
        return state["momentum"]


def orthogonalized(matrices: Tensor, steps: int = NEWTON_SCHULZ_STEPS) -> Tensor:
    """Matrices [B, R, C] with their singular values moved towards 1, by Newton and Schulz."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
