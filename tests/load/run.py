"""A server in a process of its own under `traffic`, its memory, and its end by SIGTERM."""

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil

from tests.load.traffic import Outcome, traffic

DRAIN = 3.0  # seconds that running answers have
LAST_WORDS = 4.0  # seconds beyond them until the process is gone
TERMINATED = 128 + signal.SIGTERM
WARM = 0.4  # share of the time after which memory must be flat
HEADER = (
    "| clients | minutes | requests | statuses | strange | lost streams | tokens reused | memory "
    "after warm-up, at the end | SIGTERM to exit |",
    "|---|---|---|---|---|---|---|---|---|",
)


@dataclass
class Load:
    """What one run showed."""

    clients: int
    seconds: float
    outcome: Outcome
    memory: list[float]  # MiB, a sample each half second
    stopped: float  # seconds from SIGTERM to the end of the process
    status: int
    reused: float

    def warm_and_last(self) -> tuple[float, float]:
        """Mean MiB of a fifth of the time after the warm-up, and of the last fifth."""
        fifth = max(1, len(self.memory) // 5)
        first = int(WARM * len(self.memory))
        return (
            float(np.mean(self.memory[first : first + fifth])),
            float(np.mean(self.memory[-fifth:])),
        )

    def faults(self) -> list[str]:
        """What must not be."""
        found = [*self.outcome.lost, *self.outcome.strange]
        warm, last = self.warm_and_last()
        if self.seconds >= 60 and not 0.95 < last / warm < 1.05:
            found.append(f"memory {warm:.0f} to {last:.0f} MiB")
        if self.stopped > DRAIN + LAST_WORDS or self.status not in (0, TERMINATED):
            found.append(f"SIGTERM: {self.stopped:.1f} s, status {self.status}")
        return found

    def row(self) -> str:
        """Of the table under `HEADER`."""
        warm, last = self.warm_and_last()
        statuses = ", ".join(
            f"{status}: {count:,}" for status, count in sorted(self.outcome.statuses.items())
        )
        cells = (
            self.clients, f"{self.seconds / 60:g}", f"{self.outcome.requests:,}", statuses,
            len(self.outcome.strange), len(self.outcome.lost), f"{self.reused:,.0f}",
            f"{warm:.0f}, {last:.0f} MiB ({last / warm - 1:+.1%})", f"{self.stopped:.1f} s",
        )  # fmt: skip
        return f"| {' | '.join(map(str, cells))} |"


def run_load(models: Path, clients: int, seconds: float) -> Load:
    """Start a server, load it, tell it to stop in the middle, and wait for its end."""
    command = [sys.executable, "-m", "gptmill.cli", "serve", "--models", str(models)]
    command += ["--port", "0", "--drain", str(DRAIN)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    try:
        address = server.stdout.readline().split()[0]
        memory, reused, stopped = list[float](), [0.0], [0.0]
        watching = threading.Thread(target=_watch, args=(server.pid, memory, seconds), daemon=True)
        watching.start()

        async def stop() -> None:
            reused[0] = await asyncio.to_thread(_reused, address)
            sent = time.monotonic()
            server.send_signal(signal.SIGTERM)
            await asyncio.to_thread(server.wait, 60)
            stopped[0] = time.monotonic() - sent

        outcome = asyncio.run(traffic(address, clients, seconds, stop))
        return Load(clients, seconds, outcome, memory, stopped[0], server.returncode, reused[0])
    finally:
        server.kill()
        server.wait()


def _watch(process: int, memory: list[float], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        memory.append(psutil.Process(process).memory_info().rss / 2**20)
        time.sleep(0.5)


def _reused(address: str) -> float:
    text = httpx.get(f"{address}/metrics", timeout=30, trust_env=False).text
    return sum(map(float, re.findall(r'gptmill_tokens_total{kind="reused",\S+} (\S+)', text)))
