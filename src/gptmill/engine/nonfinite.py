"""Steps whose gradient is not finite: left out and counted, and a reason to stop if they go on.

One bad batch or one overflow costs a step. Weights that are no longer numbers never recover.
"""

import sys

import numpy as np

from gptmill.engine.state import TrainState
from gptmill.errors import UserError

LIMIT = 10  # steps in a row: more than an outlier among the data makes
SHOWN = 32  # rows that the message names


class NotFiniteError(UserError):
    """The gradient was not finite for `LIMIT` steps in a row."""


def left_out(state: TrainState) -> dict[str, int]:
    """The metric of a run that left steps out."""
    return {"train/steps_left_out": state.left_out} if state.left_out else {}


def leave_out(
    state: TrainState, rows: list[np.ndarray], loss: float, rate: float, norm: float, say: bool
) -> None:
    """Count a step that does not move the weights.

    Args:
        rows: which rows its micro-batches had (`Batches.next_rows`).
        loss: in nats; `rate`: the learning rate; `norm`: the gradient's.
        say: whether this process speaks.

    Raises:
        NotFiniteError: it is the last of `LIMIT` in a row.
    """
    state.left_out += 1
    state.left_out_in_a_row += 1
    figures = f"loss {loss:.4g}, gradient norm {norm:.4g}, learning rate {rate:.3g}"
    if state.left_out_in_a_row < LIMIT:
        if say:
            print(f"step {state.step} is left out, its gradient is not finite: {figures}",
                  file=sys.stderr)  # fmt: skip
        return
    numbers = [int(row) for part in rows for row in part]
    named = ", ".join(map(str, numbers[:SHOWN])) + (", …" if len(numbers) > SHOWN else "")
    position = ", ".join(f"{name} {value}" for name, value in state.batches.state_dict().items())
    raise NotFiniteError(
        f"the gradient is not finite at step {state.step}, nor was it in the {LIMIT - 1} steps "
        f"before ({figures}; {position}, rows {named}). The weights are those before these steps, "
        "and the last checkpoint is kept; lower optimizer.learning_rate, lengthen warmup_steps, or "
        "set runtime.precision to float32"
    )
