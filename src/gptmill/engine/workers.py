"""Threads that each take whole rows of a batch, for models whose kernels are small.

Inside PyTorch, OpenMP splits every kernel among its threads and waits for all of them at its end:
several hundred times in a step of a small model. On a quiet machine that waiting costs as much as
the splitting gains, and beside a busy neighbor each wait lasts until the operating system runs the
slower thread again. A worker computes its rows with single-threaded kernels and is waited for once.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """`count` threads with single-threaded kernels; 1 is the calling thread, as it is.

    Within a `with` block the calling thread's own kernels are single-threaded too.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ThreadPoolExecutor | None = None
        self._threads_before: list[int] = []

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """`function` of each item, in their order."""
        if self.count == 1:
            return [function(item) for item in items]
        if self._pool is None:
            one_thread = torch.set_num_threads
            self._pool = ThreadPoolExecutor(self.count, "worker", one_thread, (1,))
        return list(self._pool.map(function, items))

    def __enter__(self) -> "Workers":
        self._threads_before.append(torch.get_num_threads())
        if self.count > 1:
            torch.set_num_threads(1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        torch.set_num_threads(self._threads_before.pop())


ALONE = Workers(1)


def backward(
    workers: Workers, parameters: list[Tensor], loss: Callable[[Any], Tensor], batch: Any
) -> Tensor:
    """Add the gradients of `loss(batch)` to the parameters' and return the loss, detached.

    Args:
        loss: a sum over rows, so that it and its gradients are the sums of the parts'.
        batch: a tuple of arrays that share their first axis, the rows.

    The parts are added in their own order, whichever thread is done first.
    """
    parts = _split_rows(batch, workers.count)
    if len(parts) == 1:
        value = loss(batch)
        value.backward()
        return value.detach()

    def compute(part: Any) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        value = loss(part)
        return value.detach(), torch.autograd.grad(value, parameters, allow_unused=True)

    values, gradients = zip(*workers.map(compute, parts))
    for parameter, *of_parts in zip(parameters, *gradients):
        for gradient in of_parts:
            if gradient is None:
                continue
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad += gradient
    return torch.stack(values).sum()


def _split_rows(batch: Any, count: int) -> list[Any]:
    """The batch in up to `count` parts; neighbors, which are of like length, in different ones."""
    rows = len(batch[0])
    parts = min(count, rows)
    if parts == 1:
        return [batch]
    make = getattr(batch, "_make", tuple)  # a NamedTuple stays one
    return [make(array[part::parts] for array in batch) for part in range(parts)]
