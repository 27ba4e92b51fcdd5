"""A whole training run: resume, fit, log, evaluate, save, and end on the best weights."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from tqdm import tqdm

from gptmill.engine.checkpoint import Checkpoints
from gptmill.engine.hooks import Hook, StepResult, every
from gptmill.engine.loop import FitConfig, Task, fit
from gptmill.engine.nonfinite import NotFiniteError, left_out
from gptmill.engine.optim import learning_rate
from gptmill.engine.runtime import Runtime
from gptmill.engine.state import Batches, TrainState
from gptmill.errors import UserError
from gptmill.params import Optimizer, Training

LOG_EVERY = 10  # steps between logged points: reading a loss waits for the device
Log = Callable[[int, dict[str, float]], None]


def train(
    state: TrainState,
    task: Task,
    runtime: Runtime,
    *,
    steps: int,
    training: Training,
    optimizer: Optimizer,
    checkpoints: Checkpoints,
    evaluate: Callable[[], dict[str, float]],
    log: Log,
    hooks: Sequence[Hook] = (),
) -> float:
    """Train to `steps`, from the last checkpoint if there is one; keep the best weights.

    Args:
        evaluate: metrics of the model as it is, among them `validation/loss` to choose by.
        log: where points go besides `state.curves`.
        hooks: more to do after a step, such as samples.

    Returns:
        Targets per second over the steps of this process, evaluation and saving not counted.

    Raises:
        UserError: there is nothing to train on, or the gradient stays not finite.
    """
    if steps < 1:
        raise UserError("a training of 0 steps: there are no examples, or no epochs")
    if state.step and runtime.first:
        print(f"resuming at step {state.step} of {steps}", file=sys.stderr)
    clock = Clock(state.targets)
    config = FitConfig(
        steps=steps,
        accumulation=training.accumulation,
        gradient_clip=optimizer.gradient_clip,
        learning_rate=partial(learning_rate, steps=steps, config=optimizer),
    )
    # The model as it starts is a point of the curve too: an untrained loss is near ln(vocabulary).
    if state.step == 0:
        _evaluate(state, evaluate, log)
    with progress(state.step, steps, runtime.first) as bar, _kept_if_stopped(state, checkpoints):
        fit(
            state,
            task,
            runtime,
            config,
            [
                clock.stop,
                _progress_hook(bar),
                _logging_hook(log, clock, f"{task.unit}_per_second"),
                every(training.evaluate_every, lambda state: _evaluate(state, evaluate, log)),
                *hooks,
                every(training.save_every, checkpoints.save),
                clock.start,
            ],
        )
    state.restore_best()
    return clock.targets_per_second


@contextmanager
def _kept_if_stopped(state: TrainState, checkpoints: Checkpoints) -> Iterator[None]:
    """Keep the state of a training whose gradient stays not finite, and say where."""
    try:
        yield
    except NotFiniteError as error:
        path = checkpoints.keep_stopped(state)
        raise NotFiniteError(f"{error}. The state is kept for study in {path}") from None


def show_finished(state: TrainState, hooks: Sequence[Hook], log: Log) -> None:
    """Log the curves of a training that is over, and sample once where its samples are gone."""
    print(f"the finished training of {state.step} steps is measured anew", file=sys.stderr)
    for curve in ("training", "evaluation"):
        for row in state.curves.get(curve, []):
            point = {name: value for name, value in row.items() if name not in ("step", "targets")}
            log(row["step"], point)
    if "samples" not in state.curves:
        nothing = torch.zeros(())
        for hook in hooks:
            hook(state, StepResult(nothing, nothing, 0.0, last=True))


def steps_of_epochs(batches: Batches, epochs: int, accumulation: int) -> int:
    """Optimizer steps that see every example `epochs` times; the last one may take fewer new
    micro-batches than the others, and takes the rest from the next epoch."""
    return -(-epochs * batches.batches_per_epoch // accumulation)


class Clock:
    """Time spent in steps alone; the first step, which warms up or compiles, is not counted."""

    def __init__(self, targets: int) -> None:
        self.targets_before: int | None = None
        self.targets = targets
        self.seconds = 0.0
        self.mark = 0.0

    def stop(self, state: TrainState, result: StepResult) -> None:
        if self.targets_before is None:
            self.targets_before = state.targets
        else:
            self.seconds += time.perf_counter() - self.mark
        self.targets = state.targets

    def start(self, state: TrainState, result: StepResult) -> None:
        self.mark = time.perf_counter()

    @property
    def targets_per_second(self) -> float:
        counted = self.targets - (self.targets_before or self.targets)
        return counted / self.seconds if self.seconds else 0.0


def progress(initial: int, total: int, shown: bool = True) -> tqdm:
    """A bar on a terminal; elsewhere a line now and then."""
    terminal = sys.stderr.isatty()
    interval = 0.2 if terminal else 20.0
    return tqdm(
        initial=initial,
        total=total,
        unit="step",
        mininterval=interval,
        dynamic_ncols=terminal,
        miniters=1,
        disable=not shown,
    )


def _progress_hook(bar: tqdm) -> Hook:
    def hook(state: TrainState, result: StepResult) -> None:
        if state.step % LOG_EVERY == 0:
            bar.set_postfix(loss=f"{result.loss.item():.3f}", refresh=False)
        bar.update()

    return hook


def _logging_hook(log: Log, clock: Clock, rate: str) -> Hook:
    def hook(state: TrainState, result: StepResult) -> None:
        if result.left_out:
            log(state.step, left_out(state))
            return
        if state.step % LOG_EVERY and not result.last:
            return
        point = {
            "train/loss": result.loss.item(),
            "learning_rate": result.learning_rate,
            "gradient_norm": result.gradient_norm.item(),
        }
        _record(state, "training", point)
        log(state.step, {**point, rate: clock.targets_per_second})

    return hook


def _evaluate(state: TrainState, evaluate: Callable[[], dict[str, float]], log: Log) -> None:
    with state.gathered():
        point = evaluate()
    _record(state, "evaluation", point)
    state.keep_best(point["validation/loss"])
    log(state.step, point)


def _record(state: TrainState, curve: str, point: dict[str, float]) -> None:
    row = {"step": state.step, "targets": state.targets, **point}
    state.curves.setdefault(curve, []).append(row)
