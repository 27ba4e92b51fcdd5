"""A machine with round figures, so that a plan can be tested without measuring one."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from gptmill.engine.runtime import Runtime
from gptmill.params import Parameters, load
from gptmill.plan.counts import Counts, count
from gptmill.plan.machine import Machine
from gptmill.plan.speed import Rates

GIGA = 10**9
GROUPS = (
    "python",
    "numbers",
    "tables",
    "tracking",
    "torch",
    "training",
    "sklearn",
    "matplotlib",
    "onnx",
    "judge",
    "report",
)


@pytest.fixture(scope="session")
def machine() -> Machine:
    runtime = Runtime(torch.device("cpu"), torch.float32, compile=False)
    return Machine(
        name="a machine of round figures",
        runtime=runtime,
        memory=16 * GIGA,
        host_memory=16 * GIGA,
        disk=100 * GIGA,
        rates=Rates(flops=100e9, traffic=10e9, free_memory=16 * GIGA),
        disk_rate=200e6,
        base=dict.fromkeys(GROUPS, 100_000_000),
        starts=dict.fromkeys(GROUPS, 1.0),
        pipeline_start=2.0,
    )


@pytest.fixture(scope="session")
def small_parameters() -> Parameters:
    """The default profile on a tenth of its data."""
    values = load().model_dump()
    for dataset, documents in (("corpus", 60), ("classification", 600), ("instructions", 120)):
        values["download"][dataset]["count"] = documents
    return Parameters.model_validate(values)


@pytest.fixture(scope="session")
def small_counts(small_parameters: Parameters) -> Counts:
    return count(small_parameters)


@pytest.fixture
def changed(small_parameters: Parameters) -> Callable[..., Parameters]:
    """The small parameters with values set by dotted name."""
    from gptmill.plan.advice import with_changes

    return lambda changes: with_changes(small_parameters, changes)


@pytest.fixture
def with_memory(machine: Machine) -> Callable[[float], Machine]:
    """The same machine with so many gigabytes free."""
    return lambda size: replace(machine, memory=round(size * GIGA))
