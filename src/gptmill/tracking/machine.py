"""Memory and processor time of this process and its children."""

import sys
from pathlib import Path

import psutil


class Machine:
    """Samples the process tree; `peak` is the most memory seen, in bytes."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.peak = 0
        psutil.cpu_percent()  # the first call only starts the clock

    def sample(self) -> dict[str, float]:
        """One reading, under the names of MLflow's system metrics."""
        point = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/process_memory_usage_megabytes": self._resident() / 2**20,
            "system/system_memory_usage_megabytes": psutil.virtual_memory().used / 2**20,
        }
        return point | _gpu()

    def peak_memory(self) -> int:
        """The most that this process held, or that it and its children held when sampled, bytes."""
        self._resident()
        return max(self.peak, self._own_peak())

    def _resident(self) -> int:
        resident = self.process.memory_info().rss
        for child in self.process.children(recursive=True):
            try:
                resident += child.memory_info().rss
            except psutil.Error:
                continue
        self.peak = max(self.peak, resident)
        return resident

    def _own_peak(self) -> int:
        """This program's own peak where the system keeps one: Linux, Windows; 0 elsewhere."""
        status = Path("/proc/self/status")
        if status.exists():
            for line in status.read_text(encoding="utf-8").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return getattr(self.process.memory_info(), "peak_wset", 0)


def _gpu() -> dict[str, float]:
    """Memory of the device that PyTorch uses, if it uses one."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return {}
    free, total = torch.cuda.mem_get_info()
    return {"system/gpu_0_memory_usage_megabytes": (total - free) / 2**20}
