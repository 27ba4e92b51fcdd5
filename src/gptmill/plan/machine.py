"""What this machine has and how fast it is, measured in a few seconds."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch

from gptmill.engine.runtime import Runtime
from gptmill.files import flush_to_disk
from gptmill.plan.speed import Rates, memory_traffic

WRITTEN = 1 << 26  # bytes, to see how fast the disk is
PROBE_TIMEOUT = 300.0  # seconds
PACKAGE_FOLDER = Path(__file__).parents[2]


@dataclass(frozen=True)
class Machine:
    """Memory and disk in bytes, rates in bytes or operations a second.

    Attributes:
        memory: free now, of the accelerator where one computes.
        host_memory: free now, for Python and data.
        base: bytes that each group of libraries adds to a process (`plan.probe`).
        starts: processor seconds each takes.
        pipeline_start: seconds that `dvc` takes to start.
    """

    name: str
    runtime: Runtime
    memory: int
    host_memory: int
    disk: int
    rates: Rates
    disk_rate: float
    base: dict[str, int]
    starts: dict[str, float]
    pipeline_start: float


def measure_machine(runtime: Runtime) -> Machine:
    """Measure now; about ten seconds, most of them imports in a process of their own."""
    groups, dvc = probe()
    host = psutil.virtual_memory().available
    cuda = runtime.device.type == "cuda"
    free = torch.cuda.mem_get_info()[0] if cuda else host
    return Machine(
        name=_name(runtime),
        runtime=runtime,
        memory=free,
        host_memory=host,
        disk=shutil.disk_usage(".").free,
        rates=Rates(runtime.peak_flops(), memory_traffic(runtime.device), free),
        disk_rate=_disk_rate(Path()),
        base={name: found["bytes"] for name, found in groups.items()},
        starts={name: found["seconds"] for name, found in groups.items()},
        pipeline_start=dvc,
    )


def probe() -> tuple[dict[str, dict[str, float]], float]:
    """What imports take, by group, and the processor seconds of starting DVC."""
    with TemporaryDirectory() as folder:
        environment = os.environ | {
            "DVC_ROOT": folder,
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "PYTHONPATH": os.pathsep.join([str(PACKAGE_FOLDER), os.environ.get("PYTHONPATH", "")]),
        }
        module = [sys.executable, "-m", "gptmill.plan.probe"]
        _run([*module, "tracking"], environment)
        found = _run(module, environment)
        before = os.times()
        _run([sys.executable, "-c", "import dvc.cli, dvc.commands.repro, dvc.repo"], environment)
        after = os.times()
    spent = after.children_user + after.children_system
    return json.loads(found), spent - before.children_user - before.children_system


def _run(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, timeout=PROBE_TIMEOUT,
    ).stdout  # fmt: skip


def _disk_rate(folder: Path) -> float:
    """Bytes a second that reach the disk."""
    with TemporaryDirectory(dir=folder, prefix=".plan.") as beside:
        path = Path(beside) / "written"
        block = os.urandom(1 << 22)
        start = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(WRITTEN // len(block)):
                file.write(block)
        flush_to_disk(path)
        return WRITTEN / (time.perf_counter() - start)


def _name(runtime: Runtime) -> str:
    if runtime.device.type == "cuda":
        return torch.cuda.get_device_name(runtime.device)
    return f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores"
