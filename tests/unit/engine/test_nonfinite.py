"""Steps whose gradient is not finite: left out, counted, and in the end a reason to stop."""

from pathlib import Path

import pytest
import torch

from gptmill.engine.checkpoint import Checkpoints
from gptmill.engine.loop import FitConfig, fit
from gptmill.engine.nonfinite import LIMIT
from gptmill.engine.runtime import Runtime, open_runtime
from gptmill.engine.state import TrainState
from gptmill.errors import UserError
from gptmill.tasks.language_model import LanguageModelTask
from tests.unit.engine.test_training import new_state, run


@pytest.fixture
def runtime() -> Runtime:
    return open_runtime(seed=7, threads=1, precision="float32")


class Damaged(LanguageModelTask):
    """A loss that is infinite for some micro-batches."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.bad, self.calls = bad, 0

    def loss(self, *arguments):
        self.calls += 1
        loss = super().loss(*arguments)
        return loss * float("inf") if self.calls - 1 in self.bad else loss


def trained(runtime: Runtime, steps: int, bad: set[int]) -> tuple[TrainState, list[dict]]:
    """A training of one micro-batch a step, and the model after each step."""
    torch.manual_seed(0)
    state, after = new_state(), []

    def note(state: TrainState, result) -> None:
        after.append({n: t.clone() for n, t in state.model.state_dict().items()})

    fit(state, Damaged(bad), runtime, FitConfig(steps, 1, 1.0, lambda _: 1e-3), [note])
    return state, after


def test_a_step_that_is_not_finite_moves_nothing_and_is_counted(
    runtime: Runtime, capsys: pytest.CaptureFixture
) -> None:
    state, after = trained(runtime, 6, bad={2, 4})
    for step in range(1, 6):
        same = all(torch.equal(after[step][name], after[step - 1][name]) for name in after[0])
        assert same == (step in (2, 4))
    assert (state.left_out, state.left_out_in_a_row, state.step) == (2, 0, 6)
    assert torch.isfinite(after[-1]["transformer.wte.weight"]).all()
    said = capsys.readouterr().err
    assert "step 2 is left out, its gradient is not finite: loss inf" in said


def test_weights_that_are_no_longer_numbers_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Runtime
) -> None:
    """With step, rows, rate and norm; the state is kept for study, and not continued from."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    state, checkpoints = new_state(), Checkpoints("broken", "a")
    run(state, runtime, 5, checkpoints)
    with torch.no_grad():
        state.model.transformer.wte.weight[3, 3] = float("nan")
    with pytest.raises(UserError, match="at step 14, nor was it in the 9 steps before") as error:
        run(state, runtime, 50, checkpoints)
    message = str(error.value)
    for told in ("loss nan", "gradient norm nan", "learning rate 0.0", "epoch 4", "rows "):
        assert told in message
    path = Path(message.split("kept for study in ")[1])
    kept = torch.load(path, weights_only=True)
    assert (kept["step"], kept["left_out_in_a_row"]) == (14, LIMIT)
    checkpoints._lock.release()
    resumed = new_state()
    assert Checkpoints("broken", "a").load(resumed)
    assert (resumed.step, resumed.left_out) == (5, 0)  # the last checkpoint, from before it


def test_a_learning_rate_that_explodes_stops_the_run(runtime: Runtime) -> None:
    state = new_state()
    with pytest.raises(UserError, match="lower optimizer"):
        fit(state, LanguageModelTask(), runtime, FitConfig(200, 1, 0.0, lambda _: 1e30), [])
