"""A whole plan: counts, peaks, seconds and disk put together, and whether it fits."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from gptmill.engine.runtime import Runtime
from gptmill.params import Parameters
from gptmill.plan.activations import Compute
from gptmill.plan.advice import Changes, what_fits
from gptmill.plan.counts import count
from gptmill.plan.disk import Disk, needed_disk, stage_disk
from gptmill.plan.durations import pipeline_seconds, stage_seconds
from gptmill.plan.machine import Machine
from gptmill.plan.memory import Memory
from gptmill.plan.peaks import stage_peaks
from gptmill.plan.sizes import classifier_size, language_model_size
from gptmill.plan.speed import Speed
from gptmill.plan.workload import Workload, workload


@dataclass(frozen=True)
class StagePlan:
    """One stage: bytes by kind, optimizer steps (0 if it trains nothing), seconds."""

    name: str
    memory: Memory
    steps: int
    seconds: float
    disk: Disk


@dataclass(frozen=True)
class Shortage:
    """A stage that needs more memory than there is, and what would fit; None: nothing found."""

    stage: str
    needed: int
    changes: Changes | None


@dataclass(frozen=True)
class Plan:
    """A whole run on one machine.

    Attributes:
        models: parameters of each model, and how many of them learn.
        seconds: all stages and what DVC adds.
        disk: bytes at the moment that takes most, DVC's cache included.
        shortages: stages that do not fit into memory.
        assumed: what was taken for granted, in words.
    """

    profile: str
    machine: Machine
    compute: Compute
    models: dict[str, tuple[int, int]]
    stages: list[StagePlan]
    seconds: float
    disk: int
    shortages: list[Shortage]
    assumed: list[str]

    @property
    def peak(self) -> StagePlan:
        """The stage that needs most memory."""
        return max(self.stages, key=lambda stage: stage.memory.total)

    @property
    def fits(self) -> bool:
        """Whether memory and disk are enough."""
        return not self.shortages and self.disk <= self.machine.disk


def make_plan(parameters: Parameters, machine: Machine) -> Plan:
    """Count, measure a few steps, and add up.

    Args:
        machine: from `measure_machine`, with the runtime that the parameters ask for.

    Raises:
        UserError: a manifest or a foundation's configuration cannot be read.
    """
    work = workload(parameters, count(parameters))
    compute = compute_of(machine.runtime)
    disk = stage_disk(work)
    speed = Speed(machine.runtime, machine.rates)
    seconds = stage_seconds(work, machine, speed, disk)
    peaks = stage_peaks(work, machine.base, compute, seconds)
    steps = {
        "pretrain": work.pretrain.steps,
        "finetune_classifier": work.classifier.steps,
        "finetune_instructions": work.instructions.steps,
    }
    return Plan(
        profile=parameters.profile,
        machine=machine,
        compute=compute,
        models=_models(work),
        stages=[
            StagePlan(name, memory, steps.get(name, 0), seconds[name], disk[name])
            for name, memory in peaks.items()
        ],
        seconds=pipeline_seconds(seconds, machine),
        disk=needed_disk(disk),
        shortages=shortages(work, machine, compute, peaks),
        assumed=[*work.assumed, *_unmeasured(parameters, work)],
    )


def compute_of(runtime: Runtime) -> Compute:
    """The runtime's precision, device and workers, as the formulas take them."""
    half, workers = runtime.dtype == torch.bfloat16, runtime.small_model_workers.count
    return Compute(half, runtime.device.type, workers)


def shortages(
    work: Workload, machine: Machine, compute: Compute, peaks: Mapping[str, Memory]
) -> list[Shortage]:
    """Stages whose peak is above what is free, with the advice for each."""
    base = machine.base
    if compute.device != "cpu":  # what Python takes is not on the accelerator
        base = dict.fromkeys(base, 0)
        peaks = {name: replace(memory, base=0) for name, memory in peaks.items()}
    limit = machine.memory
    return [
        Shortage(name, memory.total, what_fits(name, work, base, compute, limit))
        for name, memory in peaks.items()
        if memory.total > limit
    ]


def _models(work: Workload) -> dict[str, tuple[int, int]]:
    """Parameters and trained parameters."""
    parameters, task = work.parameters, work.parameters.finetune_classifier
    sizes = {
        "pretrained": language_model_size(work.pretrained, parameters.pretrain.optimizer),
        "classifier": classifier_size(
            work.foundations["classifier"].config, task.trainable, task.lora, task.optimizer
        ),
        "instructions": language_model_size(
            work.foundations["instructions"].config, parameters.finetune_instructions.optimizer
        ),
    }
    return {name: (size.parameters, size.trained) for name, size in sizes.items()}


def _unmeasured(parameters: Parameters, work: Workload) -> list[str]:
    """What of the time no calibration can tell."""
    said = []
    if any(part.fetched for part in stage_disk(work).values()):
        said.append("downloads: 5 MB/s")
    if parameters.judge.backend != "reference":
        answers = work.counts.entries.count["test"]
        said.append(
            f"judge: {answers} answers at {parameters.judge.host}, whose time is not counted"
        )
    if parameters.runtime.compile:
        said.append("compile: steps are timed, and activations counted, as they are without it")
    return said
