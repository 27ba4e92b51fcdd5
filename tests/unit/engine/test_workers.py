"""Workers: the same step whichever threads compute its rows, and the rule for who gets them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from gptmill.engine.batches import ShuffledBatches
from gptmill.engine.loop import FitConfig, fit
from gptmill.engine.optim import build_optimizer
from gptmill.engine.runtime import SMALL_MODEL, Runtime, bfloat16_is_quicker, open_runtime
from gptmill.engine.state import TrainState
from gptmill.engine.workers import Workers, backward
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.params import Optimizer
from gptmill.tasks.instruct import Example, collate_instructions
from gptmill.tasks.language_model import LanguageModelTask, batch_loss

CONFIG = GPT2Config(vocabulary_size=31, context_length=24, layers=2, heads=2, width=16)
OPTIMIZER = Optimizer(
    learning_rate=1e-2,
    final_learning_rate=1e-3,
    warmup_steps=0,
    weight_decay=0.1,
    beta1=0.9,
    beta2=0.95,
    gradient_clip=1.0,
    muon=5.0,
)


@pytest.fixture(autouse=True)
def threads_of_the_other_tests():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def trained(runtime: Runtime, batch_size: int, steps: int = 5) -> TrainState:
    generator = np.random.default_rng(0)
    lengths = generator.integers(4, 24, size=13)
    examples = [Example(generator.integers(0, 31, size=n).tolist(), 2) for n in lengths]
    torch.manual_seed(3)
    model = GPT2(CONFIG)
    batches = ShuffledBatches(
        examples, lambda chosen: collate_instructions(chosen, 30, True), batch_size, seed=3
    )
    optimizer = build_optimizer(model, OPTIMIZER, runtime.workers(model))
    state = TrainState(model, optimizer, batches)
    fit(state, LanguageModelTask(), runtime, FitConfig(steps, 2, 1.0, lambda step: 1e-2), [])
    return state


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_workers_train_as_one_thread_does(batch_size: int) -> None:
    """Ragged batches, fewer rows than workers, accumulation and Muon."""
    one = trained(open_runtime(seed=1, threads=1, precision="float32"), batch_size)
    several = trained(open_runtime(seed=1, threads=3, precision="float32"), batch_size)
    again = trained(open_runtime(seed=1, threads=3, precision="float32"), batch_size)
    assert one.targets == several.targets
    for name, tensor in one.model.state_dict().items():
        torch.testing.assert_close(several.model.state_dict()[name], tensor, atol=1e-4, rtol=1e-3)
        assert torch.equal(again.model.state_dict()[name], several.model.state_dict()[name]), name


def test_gradients_add_to_those_already_there() -> None:
    """Two calls are two micro-batches; a parameter that the loss does not reach stays without."""
    weight, bystander = torch.ones(3, requires_grad=True), torch.ones(1, requires_grad=True)
    batch = (np.arange(12.0).reshape(4, 3),)

    def loss(part: tuple[np.ndarray]) -> torch.Tensor:
        return (torch.from_numpy(part[0]).float() * weight).sum()

    for times in (1, 2):
        total = backward(Workers(3), [weight, bystander], loss, batch)
        assert total.item() == 66
        assert weight.grad.tolist() == [times * column for column in (18, 22, 26)]
    assert bystander.grad is None


def test_evaluation_is_the_same_to_the_bit_on_any_number_of_threads() -> None:
    """A worker computes a whole batch with single-threaded kernels."""
    model = GPT2(CONFIG)
    examples = [Example(list(range(n)), 2) for n in range(4, 24)]
    batches = [collate_instructions(examples[i : i + 3], 30, True) for i in range(0, 20, 3)]
    losses = {
        batch_loss(model, batches, open_runtime(seed=1, threads=threads, precision="float32"))
        for threads in (1, 2, 3)
    }
    assert len(losses) == 1
    assert model.training


def test_small_models_without_dropout_get_workers() -> None:
    runtime = open_runtime(seed=1, threads=2, precision="float32")
    assert runtime.workers(GPT2(CONFIG)).count == 2
    dropping = GPT2(GPT2Config(31, 24, 2, 2, 16, dropout=0.1))
    assert runtime.workers(dropping).count == 1
    assert runtime.workers(dropping.eval()).count == 2
    with torch.device("meta"):
        large = GPT2(GPT2Config(50257, 1024, 6, 12, 768))
    assert sum(p.numel() for p in large.parameters()) > SMALL_MODEL
    assert runtime.workers(large).count == 1


def test_the_calling_thread_gets_its_kernels_threads_back() -> None:
    torch.set_num_threads(2)
    with Workers(2), Workers(2):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_an_error_in_a_worker_reaches_the_caller() -> None:
    def fail(item: int) -> None:
        raise ZeroDivisionError(item)

    with pytest.raises(ZeroDivisionError):
        Workers(2).map(fail, [1, 2])


@pytest.mark.parametrize(
    ("capabilities", "quicker"),
    [({"avx512_bf16": True}, False), ({"avx512_bf16": True, "amx_bf16": True}, True), ({}, False)],
)
def test_bfloat16_needs_amx_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], quicker: bool
) -> None:
    """avx512_bf16 alone computes in bfloat16, four times slower than in float32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setenv("GPTMILL_DEVICE", "cpu")
    assert bfloat16_is_quicker(torch.device("cpu")) is quicker
    expected = torch.bfloat16 if quicker else torch.float32
    assert open_runtime(seed=0, threads=1, precision="auto").dtype == expected


WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.mark.parametrize("entry", ["gptmill", "gptmill.cli", "stages", "gptmill.runtime.session"])
@pytest.mark.parametrize(
    ("set_by_user", "expected"),
    [
        ({}, [None, "10000", "1"]),
        ({"GOMP_SPINCOUNT": "5"}, [None, "5", "1"]),
        ({"OMP_WAIT_POLICY": "active"}, ["active", None, None]),
    ],
)
def test_every_entry_point_bounds_how_long_threads_spin(
    entry: str, set_by_user: dict[str, str], expected: list[str | None]
) -> None:
    """The variables are there before PyTorch is loaded, and a user's own stay."""
    code = f"import {entry}, os, sys, json; assert 'torch' not in sys.modules; "
    code += f"print(json.dumps([os.environ.get(name) for name in {WAITING}]))"
    inherited = {name: value for name, value in os.environ.items() if name not in WAITING}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | set_by_user,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == expected
