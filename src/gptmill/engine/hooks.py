"""What happens beside the steps: evaluation, samples, logs and checkpoints enter as hooks."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from gptmill.engine.state import TrainState


@dataclass(frozen=True)
class StepResult:
    """What a step hands to the hooks; tensors stay on the device until somebody reads them."""

    loss: Tensor  # mean over the step's real targets, nats
    gradient_norm: Tensor  # before clipping
    learning_rate: float
    last: bool  # whether this was the final step
    left_out: bool = False  # the gradient was not finite, and the weights are as they were


Hook = Callable[[TrainState, StepResult], None]


def every(steps: int, action: Callable[[TrainState], None]) -> Hook:
    """Call `action` each time another `steps` steps are done, and after the last one."""

    def hook(state: TrainState, result: StepResult) -> None:
        if state.step % steps == 0 or result.last:
            action(state)

    return hook
