"""The one training loop, for pretraining and every kind of fine-tuning."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gptmill.engine.hooks import Hook, StepResult
from gptmill.engine.nonfinite import leave_out
from gptmill.engine.parallel import whole
from gptmill.engine.runtime import Runtime
from gptmill.engine.state import Batches, TrainState
from gptmill.engine.workers import backward


class Task(Protocol):
    """What is learned: a loss over one micro-batch, and how many targets it has.

    `unit` names a target, in the plural: throughput is reported in it.
    """

    unit: str

    def targets(self, batch: Any) -> float:
        """Real targets (or their summed weights) of the micro-batch."""

    def loss(self, model: nn.Module, batch: Any, runtime: Runtime) -> Tensor:
        """The loss summed over those targets, in nats."""


@dataclass(frozen=True)
class FitConfig:
    """`accumulation` micro-batches make a step; gradients are clipped to a global norm (0: not)."""

    steps: int
    accumulation: int
    gradient_clip: float
    learning_rate: Callable[[int], float]


def fit(
    state: TrainState, task: Task, runtime: Runtime, config: FitConfig, hooks: Sequence[Hook]
) -> None:
    """Train until `state.step` is `config.steps`.

    A step divides the summed loss by the real targets of all its micro-batches on all processes,
    so the gradient does not depend on how the targets fall into micro-batches. Each process takes
    its share of every micro-batch's rows, so the data do not depend on how many processes there
    are, and gradients are exchanged once, after the last micro-batch.

    A step whose gradient is not finite moves nothing.

    Raises:
        NotFiniteError: too many such steps in a row.
    """
    model = runtime.training_model(state.model)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    model.train()
    with runtime.workers(state.model) as workers:
        while state.step < config.steps:
            rate = config.learning_rate(state.step)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            runtime.begin_step(state.step)
            drawn = [_drawn(state.batches, runtime) for _ in range(config.accumulation)]
            targets = runtime.total(sum(task.targets(d.batch) for d in drawn if d.counts))
            loss = torch.zeros((), device=runtime.device)
            for number, micro_batch in enumerate(drawn, 1):
                divisor = targets if micro_batch.counts else math.inf
                share = partial(_share, task, model, runtime, divisor)
                with runtime.exchanging(model, number == len(drawn)):
                    summed = backward(workers, parameters, share, micro_batch.batch)
                    loss += summed / runtime.world_size
            loss = runtime.summed(loss)
            norm = nn.utils.clip_grad_norm_(parameters, config.gradient_clip or float("inf"))
            norm = whole(norm)
            finite = bool(torch.isfinite(norm))
            if finite:
                state.optimizer.step()
                state.targets += round(targets)
                state.left_out_in_a_row = 0
            else:
                rows = [micro_batch.rows for micro_batch in drawn]
                leave_out(state, rows, loss.item(), rate, norm.item(), runtime.first)
            state.optimizer.zero_grad(set_to_none=True)
            state.step += 1
            last = state.step == config.steps
            for hook in hooks:
                hook(state, StepResult(loss, norm, rate, last, left_out=not finite))


class _MicroBatch(NamedTuple):
    """The rows that all processes share, and what this one computes of them, if it `counts`."""

    rows: np.ndarray
    batch: Any
    counts: bool


def _drawn(batches: Batches, runtime: Runtime) -> _MicroBatch:
    """This process's rows of the next micro-batch.

    Without any a process computes one row that counts nothing, because an exchange of gradients
    needs all processes.
    """
    rows = batches.next_rows()
    own = rows[runtime.rank :: runtime.world_size]
    return _MicroBatch(rows, batches.batch_of(own if len(own) else rows[:1]), len(own) > 0)


def _share(task: Task, model: nn.Module, runtime: Runtime, targets: float, batch: Any) -> Tensor:
    """A micro-batch's share of the step's mean loss, times what DistributedDataParallel divides
    gradients by: the sum is wanted, and it averages."""
    with runtime.autocast():
        return task.loss(model, batch, runtime) * (runtime.world_size / targets)
