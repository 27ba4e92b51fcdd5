"""The one training loop, for pretraining and every kind of fine-tuning."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gptmill.engine.hooks import Hook, StepResult
from gptmill.engine.parallel import whole
from gptmill.engine.runtime import Runtime
from gptmill.engine.state import Batches, TrainState
from gptmill.engine.workers import backward
from gptmill.errors import UserError


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

    Raises:
        UserError: the loss is no longer a number.
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
            drawn = [_own_rows(state.batches, runtime) for _ in range(config.accumulation)]
            targets = runtime.total(sum(task.targets(batch) for batch, own in drawn if own))
            loss = torch.zeros((), device=runtime.device)
            for number, (batch, own) in enumerate(drawn, 1):
                share = partial(_share, task, model, runtime, targets if own else math.inf)
                with runtime.exchanging(model, number == len(drawn)):
                    loss += backward(workers, parameters, share, batch) / runtime.world_size
            loss = runtime.summed(loss)
            norm = nn.utils.clip_grad_norm_(parameters, config.gradient_clip or float("inf"))
            norm = whole(norm)
            if not torch.isfinite(norm):
                raise _diverged(state, loss.item(), rate)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            state.step += 1
            state.targets += round(targets)
            for hook in hooks:
                hook(state, StepResult(loss, norm, rate, state.step == config.steps))


def _own_rows(batches: Batches, runtime: Runtime) -> tuple[Any, bool]:
    """This process's rows of the next micro-batch, and whether there are any.

    Without any a process computes one row that counts nothing, because an exchange of gradients
    needs all processes.
    """
    rows = batches.next_rows()
    own = rows[runtime.rank :: runtime.world_size]
    return batches.batch_of(own if len(own) else rows[:1]), len(own) > 0


def _share(task: Task, model: nn.Module, runtime: Runtime, targets: float, batch: Any) -> Tensor:
    """A micro-batch's share of the step's mean loss, times what DistributedDataParallel divides
    gradients by: the sum is wanted, and it averages."""
    with runtime.autocast():
        return task.loss(model, batch, runtime) * (runtime.world_size / targets)


def _diverged(state: TrainState, loss: float, rate: float) -> UserError:
    position = ", ".join(f"{name} {value}" for name, value in state.batches.state_dict().items())
    return UserError(
        f"the gradient is not finite at step {state.step} (loss {loss:.4g}, learning rate "
        f"{rate:.3g}, data at {position}). The weights before this step are untouched and the last "
        "checkpoint is kept; lower optimizer.learning_rate, lengthen warmup_steps, or set "
        "runtime.precision to float32"
    )
