"""Devices: which is chosen, and that a training run asks Apple's GPU for nothing it lacks.

There is no such GPU here. What PyTorch has for it is read from PyTorch's own table of operations,
`native_functions.yaml`, that comes with every installation.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torchgen
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from gptmill.engine import runtime as module
from gptmill.engine.loop import FitConfig, fit
from gptmill.engine.runtime import Runtime, open_runtime
from gptmill.engine.state import random_state, restore_random_state
from gptmill.errors import UserError
from gptmill.tasks.language_model import LanguageModelTask, token_nats
from tests.unit.engine.test_training import new_state


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("GPTMILL_DEVICE", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return monkeypatch


def has(machine: pytest.MonkeyPatch, cuda: bool, mps: bool) -> None:
    machine.setattr(torch.cuda, "is_available", lambda: cuda)
    machine.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(False, False, "cpu"), (False, True, "mps"), (True, False, "cuda:0"), (True, True, "cuda:0")],
)
def test_the_best_device_that_is_there(
    machine: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    has(machine, cuda, mps)
    assert module._device() == torch.device(expected)


def test_the_environment_decides(machine: pytest.MonkeyPatch) -> None:
    has(machine, cuda=True, mps=True)
    for name, expected in (("cpu", "cpu"), ("mps", "mps"), ("cuda:1", "cuda:1")):
        machine.setenv("GPTMILL_DEVICE", name)
        assert module._device() == torch.device(expected)
    machine.setenv("GPTMILL_DEVICE", "cuda")
    machine.setenv("LOCAL_RANK", "3")
    assert module._device() == torch.device("cuda:3")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cuda", "'cuda', but PyTorch sees no CUDA device here"),
        ("cuda:1", "'cuda:1', but PyTorch sees no CUDA device here"),
        ("mps", "'mps', but PyTorch sees no MPS device here"),
        ("gpu", "'gpu', which is not a device"),
    ],
)
def test_a_device_that_is_not_there(machine: pytest.MonkeyPatch, name: str, told: str) -> None:
    has(machine, cuda=False, mps=False)
    machine.setenv("GPTMILL_DEVICE", name)
    with pytest.raises(UserError, match=told):
        open_runtime(seed=1, threads=1, precision="float32")


def test_several_processes_are_not_for_mps(machine: pytest.MonkeyPatch) -> None:
    has(machine, cuda=False, mps=True)
    machine.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="several processes need CUDA or the CPU"):
        module._device()


def test_arrays_go_to_the_device() -> None:
    """The device `meta` stands for any that is neither the host nor CUDA."""
    runtime = Runtime(torch.device("meta"), torch.float32, compile=False)
    assert runtime.tensor(np.zeros(3)).device.type == "meta"


def test_the_generator_of_apples_gpu_is_state_too(machine: pytest.MonkeyPatch) -> None:
    kept: list[torch.Tensor] = []
    machine.setattr(torch.backends.mps, "is_available", lambda: True)
    machine.setattr(torch.mps, "get_rng_state", lambda: torch.tensor([7], dtype=torch.uint8))
    machine.setattr(torch.mps, "set_rng_state", kept.append)
    restore_random_state(random_state())
    assert [tensor.tolist() for tensor in kept] == [[7]]


class Recorder(TorchDispatchMode):
    """The operations that reach a device, and those that were given or made float64 there."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()
        self.float64: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        namespace, _, name = func._schema.name.partition("::")
        overload = func._schema.overload_name
        if namespace == "aten":
            self.operations.add(f"{name}.{overload}" if overload else name)
        if any(tensor.dtype == torch.float64 for tensor in tensors((args, kwargs, result))):
            self.float64.add(name)
        return result


def tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)


@pytest.fixture(scope="module")
def recorded() -> Recorder:
    """A few steps of AdamW with Muon and one of evaluation, dropout and clipping included."""
    runtime = open_runtime(seed=1, threads=1, precision="float32")
    state = new_state(muon=5.0)
    ids = np.arange(20)
    with Recorder() as recorder:
        fit(state, LanguageModelTask(), runtime, FitConfig(3, 2, 1.0, lambda _: 1e-3), [])
        token_nats(state.model, ids, window=8, stride=4, runtime=runtime)
    assert len(recorder.operations) > 30
    return recorder


def test_apples_gpu_has_every_operation_of_a_training_run(recorded: Recorder) -> None:
    # The attention that PyTorch takes on a CPU; on MPS it takes another by itself.
    host = {name for name in recorded.operations if "flash_attention_for_cpu" in name}
    lacking = {name for name in recorded.operations - host if not on_mps(name)}
    assert not lacking
    assert on_mps("_scaled_dot_product_attention_math_for_mps")


def test_the_table_knows_what_apples_gpu_lacks() -> None:
    assert not on_mps("linalg_eig")
    assert on_mps("mm")
    assert on_mps("_fused_adamw_")


def test_float64_is_made_on_the_host_alone(recorded: Recorder) -> None:
    """Only losses that have left the device are widened; nothing computes in float64 there."""
    to_numpy = {"detach", "resolve_conj", "resolve_neg"}
    assert recorded.float64 - to_numpy <= {"_to_copy", "to"}
    folders = ("engine", "model", "tasks", "generate")
    for path in [p for f in folders for p in (Path(module.__file__).parents[1] / f).glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        if path.name == "runtime.py":  # `total` names the host beside it
            text = text.replace("torch.tensor(value, dtype=torch.float64, device=device)", "")
        assert not re.search(r"(?<!\.cpu\(\))\.double\(\)|torch\.float64", text), path


@cache
def operations() -> dict[str, dict]:
    path = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    entries = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
    return {entry["func"].partition("(")[0]: entry for entry in entries}


def on_mps(name: str) -> bool:
    """Whether an operation has a kernel for MPS, or is made of others that are looked up."""
    entry = operations()[name]
    if "structured_delegate" in entry:
        return on_mps(entry["structured_delegate"])
    if "dispatch" not in entry:  # composite, or a view
        return True
    keys = ", ".join(entry["dispatch"])
    return "MPS" in keys or "Composite" in keys
