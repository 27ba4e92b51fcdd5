"""The loop: normalization by real targets, exact resume, schedules, checkpoints and their lock."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gptmill.engine.batches import ShuffledBatches
from gptmill.engine.checkpoint import Checkpoints, run_key
from gptmill.engine.loop import FitConfig, fit
from gptmill.engine.optim import build_optimizer, learning_rate
from gptmill.engine.runtime import Runtime, open_runtime
from gptmill.engine.state import TrainState
from gptmill.engine.training import steps_of_epochs, train
from gptmill.errors import UserError
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.params import Optimizer, Training, load
from gptmill.tasks.instruct import Example, collate_instructions
from gptmill.tasks.language_model import LanguageModelTask

CONFIG = GPT2Config(vocabulary_size=31, context_length=24, layers=2, heads=2, width=16, dropout=0.1)
OPTIMIZER = Optimizer(
    learning_rate=1e-2,
    final_learning_rate=1e-3,
    warmup_steps=3,
    weight_decay=0.1,
    beta1=0.9,
    beta2=0.95,
    gradient_clip=1.0,
    muon=0.0,
)
TRAINING = Training(batch_size=2, accumulation=2, evaluate_every=4, save_every=2)


@pytest.fixture
def runtime() -> Runtime:
    return open_runtime(seed=7, threads=1, precision="float32")


def examples() -> list[Example]:
    generator = np.random.default_rng(0)
    lengths = generator.integers(4, 24, size=13)
    return [Example(generator.integers(0, 31, size=n).tolist(), 2) for n in lengths]


def new_state(batch_size: int = 2, muon: float = 0.0) -> TrainState:
    model = GPT2(CONFIG)
    optimizer = OPTIMIZER.model_copy(update={"muon": muon})
    batches = ShuffledBatches(
        examples(), lambda chosen: collate_instructions(chosen, 30, True), batch_size, seed=3
    )
    return TrainState(model, build_optimizer(model, optimizer), batches)


def run(state: TrainState, runtime: Runtime, steps: int, checkpoints: Checkpoints) -> None:
    train(
        state,
        LanguageModelTask(),
        runtime,
        steps=steps,
        training=TRAINING,
        optimizer=OPTIMIZER,
        checkpoints=checkpoints,
        evaluate=lambda: {"validation/loss": float(state.step)},
        log=lambda step, point: None,
    )


class Killed(BaseException):
    pass


@pytest.mark.parametrize("muon", [0.0, 5.0])
def test_a_killed_run_resumes_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Runtime, muon: float
) -> None:
    """Ten steps straight through equal five, a kill, and the rest, dropout and order included."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    torch.manual_seed(7)
    straight = new_state(muon=muon)
    run(straight, runtime, 10, Checkpoints("straight", "a"))

    torch.manual_seed(7)
    killed, checkpoints = new_state(muon=muon), Checkpoints("killed", "a")
    step = killed.optimizer.step

    def die(*args: object) -> None:
        if killed.step == 5:
            raise Killed
        step(*args)

    killed.optimizer.step = die
    with pytest.raises(Killed):
        run(killed, runtime, 10, checkpoints)
    checkpoints._lock.release()

    torch.manual_seed(99)  # a new process knows nothing of the old generators
    resumed, checkpoints = new_state(muon=muon), Checkpoints("killed", "a")
    assert checkpoints.load(resumed)
    assert resumed.step == 4
    run(resumed, runtime, 10, checkpoints)

    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert resumed.curves == straight.curves
    assert resumed.targets == straight.targets


def test_the_gradient_does_not_depend_on_micro_batches(runtime: Runtime) -> None:
    """Unequal numbers of real targets per micro-batch, and still the whole batch's gradient."""
    chosen = examples()[:4]
    batches = [collate_instructions(chosen[a:b], 30, True) for a, b in ((0, 1), (1, 4))]
    counts = [(batch.targets != -100).sum() for batch in batches]
    assert counts[0] != counts[1]
    gradients = []
    for group in (batches, [collate_instructions(chosen, 30, True)]):
        torch.manual_seed(0)
        model = GPT2(GPT2Config(31, 24, 2, 2, 16))
        model.register_forward_pre_hook(lambda *_: None)
        kept: list[torch.Tensor] = []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        optimizer.register_step_pre_hook(
            lambda *_, model=model, kept=kept: kept.extend(
                p.grad.clone() for p in model.parameters()
            )
        )
        state = TrainState(model, optimizer, Fixed(group))
        fit(state, LanguageModelTask(), runtime, FitConfig(1, len(group), 0.0, lambda _: 0.0), [])
        gradients.append(kept)
    for accumulated, whole in zip(*gradients):
        torch.testing.assert_close(accumulated, whole, atol=1e-6, rtol=1e-5)


class Fixed:
    """Batches in the order given."""

    def __init__(self, batches: list) -> None:
        self.batches = iter(batches)

    def next_rows(self) -> np.ndarray:
        self.batch = next(self.batches)
        return np.arange(1)

    def batch_of(self, rows: np.ndarray) -> object:
        return self.batch

    def state_dict(self) -> dict[str, int]:
        return {"cursor": 0}

    def load_state_dict(self, state: dict[str, int]) -> None: ...


def test_the_best_weights_are_kept_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Runtime
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    state = new_state()
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    # The "loss" is the step itself, so the untrained model is the best.
    run(state, runtime, 4, Checkpoints("best", "a"))
    assert state.best_value == 0.0
    for name, tensor in state.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_accumulation_beyond_an_epoch_is_one_step() -> None:
    """Seven batches an epoch: what does not fill a step still makes one, and more epochs more."""
    batches = new_state().batches
    assert batches.batches_per_epoch == 7
    by_hand = {(1, 1): 7, (1, 2): 4, (1, 7): 1, (1, 100): 1, (3, 2): 11, (3, 100): 1}
    for (epochs, accumulation), steps in by_hand.items():
        assert steps_of_epochs(batches, epochs, accumulation) == steps


def test_a_training_of_no_steps_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Runtime
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with pytest.raises(UserError, match="a training of 0 steps"):
        run(new_state(), runtime, 0, Checkpoints("none", "a"))


def test_learning_rate_by_hand() -> None:
    rates = [learning_rate(step, 11, OPTIMIZER) for step in range(11)]
    assert rates[:3] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2])
    middle = 1e-3 + 0.5 * (1 + math.cos(math.pi * 4 / 8)) * 9e-3
    assert rates[6] == pytest.approx(middle)
    assert rates[10] == pytest.approx(1e-3)


def test_only_matrices_decay() -> None:
    model = GPT2(CONFIG)
    decayed, kept = build_optimizer(model, OPTIMIZER).param_groups
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0.0
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in kept["params"]} == {1}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_frozen_parameters_have_no_state() -> None:
    model = GPT2(CONFIG).requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    optimizer = build_optimizer(model, OPTIMIZER)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_the_key_sees_parameters_and_inputs(tmp_path: Path) -> None:
    data = tmp_path / "tokens"
    data.write_text("1 2 3")
    first = run_key([OPTIMIZER], [data])
    assert run_key([OPTIMIZER], [data]) == first
    assert run_key([OPTIMIZER.model_copy(update={"beta1": 0.8})], [data]) != first
    pretrain = load().pretrain
    measured = run_key([pretrain], [data])
    assert run_key([pretrain.model_copy(update={"evaluation_stride": 3})], [data]) == measured
    assert run_key([pretrain.model_copy(update={"steps": 3})], [data]) != measured
    data.write_text("1 2 4")
    assert run_key([OPTIMIZER], [data]) != first


def test_a_second_process_in_the_same_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    code = (
        "from gptmill.engine.checkpoint import Checkpoints\n"
        "lock = Checkpoints('pretrain', 'k')\nprint('held', flush=True)\ninput()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"another process \(pid {child.pid}\) is running"):
        Checkpoints("pretrain", "k")
    child.communicate("\n")
    Checkpoints("pretrain", "k").close(load().pretrain)
    assert not list((tmp_path / ".state/pretrain/k").glob("*.pt"))


def test_batches_see_every_example_once_per_epoch() -> None:
    batches = ShuffledBatches(list(range(23)), list, 4, seed=5, lengths=list(range(23)))
    assert batches.batches_per_epoch == 6
    for _ in range(2):
        epoch = [batches.next_batch() for _ in range(6)]
        assert sorted(i for batch in epoch for i in batch) == list(range(23))


def test_batches_of_like_lengths() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, size=256)
    spread = {}
    for sort in (True, False):
        batches = ShuffledBatches(
            list(range(256)), list, 8, seed=5, lengths=lengths if sort else None
        )
        spread[sort] = np.mean([np.ptp(lengths[batches.next_batch()]) for _ in range(32)])
    assert spread[True] < 0.3 * spread[False]


def test_batches_resume_across_epochs() -> None:
    def make() -> ShuffledBatches:
        return ShuffledBatches(list(range(10)), list, 3, seed=1)

    whole = make()
    expected = [whole.next_batch() for _ in range(12)]
    for cut in range(12):
        first, second = make(), make()
        for _ in range(cut):
            first.next_batch()
        second.load_state_dict(first.state_dict())
        assert [second.next_batch() for _ in range(12 - cut)] == expected[cut:]


def test_an_absent_device_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    monkeypatch.setenv("GPTMILL_DEVICE", "cuda")
    with pytest.raises(UserError, match="sees no CUDA device"):
        open_runtime(seed=0, threads=1, precision="float32")
