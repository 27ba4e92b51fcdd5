"""Checks of the machine and its neighbors, each a line a person can act on."""

import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from gptmill.errors import UserError, without_credentials
from gptmill.files import state_root

GIBIBYTE = 2**30
NEEDED_DISK = 4 * GIBIBYTE  # environment, data, models and DVC's cache of the default profile
NEEDED_MEMORY = 4 * GIBIBYTE
PROBE_SECONDS = 1.0
WRITTEN = ("data", "models", "metrics", "plots", "report", "timings", ".state")
TRAINED = ("pretrain", "finetune_classifier", "finetune_instructions")  # stages with checkpoints


@dataclass(frozen=True)
class Check:
    """`state` is ok, note (nothing the default profile needs) or FAIL."""

    name: str
    state: str
    finding: str


def examine() -> list[Check]:
    """Every check, in the order a new user meets the things; no finding holds credentials."""
    checks = [
        _disk(),
        _memory(),
        _device(),
        _parameters(),
        _mlflow(),
        _ollama(),
        _mirror(),
    ]
    return [replace(check, finding=without_credentials(check.finding)) for check in checks]


def clean() -> Iterator[str]:
    """Remove what kills and unfinished runs left, except for what a living process holds; a line
    for each. Finished downloads, the judge's replies and MLflow's journals stay.
    """
    from gptmill.engine.checkpoint import remove_unfinished
    from gptmill.process.leftovers import leftovers, settle, size

    for folder in WRITTEN:
        for left in leftovers(Path(folder)):
            mebibytes = size(left) / 2**20
            what = settle(left)
            yield f"{what} {left} ({mebibytes:.1f} MiB half written)"
    for stage in (*TRAINED, "datatrove"):  # the corpus itself is in data/raw
        yield from remove_unfinished(state_root() / stage)
    for rejected in sorted((state_root() / "downloads").glob("*.rejected")):
        rejected.unlink()
        yield f"removed {rejected}: a download with another checksum than its manifest's"


def _disk() -> Check:
    free = shutil.disk_usage(".").free
    state = "ok" if free >= NEEDED_DISK else "FAIL"
    return Check("disk", state, f"{free / GIBIBYTE:.1f} GiB free here; the default needs 4")


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    state = "ok" if memory.total >= NEEDED_MEMORY else "FAIL"
    finding = f"{memory.available / GIBIBYTE:.1f} of {memory.total / GIBIBYTE:.1f} GiB available"
    return Check("memory", state, finding)


def _device() -> Check:
    import torch

    from gptmill.engine.runtime import open_runtime

    try:
        runtime = open_runtime(seed=0, threads=os.cpu_count() or 1, precision="auto")
    except UserError as error:
        return Check("device", "FAIL", str(error))
    rates = [
        f"{replace(runtime, dtype=dtype).peak_flops() / 1e9:.0f} GFLOP/s in {_name(dtype)}"
        for dtype in (torch.float32, torch.bfloat16)
    ]
    finding = f"{runtime.device}, {os.cpu_count()} cores, {', '.join(rates)}"
    return Check("device", "ok", f"{finding}; precision auto takes {_name(runtime.dtype)}")


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _parameters() -> Check:
    from gptmill.params import load

    try:
        return Check("params", "ok", f"params.yaml holds profile {load().profile}")
    except UserError as error:
        return Check("params", "FAIL", str(error))


def _mlflow() -> Check:
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not address.startswith("http"):
        return Check("mlflow", "ok", address or "local database; `make ui` opens it")
    if _answers(address):
        return Check("mlflow", "ok", f"{address} answers")
    return Check("mlflow", "note", f"{address} is silent: runs wait for `gptmill track replay`")


def _ollama() -> Check:
    from gptmill.params import load

    try:
        judge = load().judge
    except UserError:
        return Check("ollama", "note", "not checked: params.yaml does not load")
    if _answers(judge.host):
        return Check("ollama", "ok", f"{judge.host} answers; model {judge.model}")
    state = "FAIL" if judge.backend == "ollama" else "note"
    finding = f"{judge.host} is silent: run `ollama serve` and `ollama pull {judge.model}`"
    return Check("ollama", state, finding if state == "FAIL" else f"{finding} to judge with it")


def _mirror() -> Check:
    mirror = os.environ.get("GPTMILL_MIRROR", "")
    if not mirror:
        return Check("mirror", "note", "GPTMILL_MIRROR is not set: downloads go to their sources")
    reachable = _answers(mirror) if mirror.startswith("http") else Path(mirror).is_dir()
    return Check("mirror", "ok" if reachable else "FAIL", mirror if reachable else f"no {mirror}")


def _answers(address: str) -> bool:
    """Whether something accepts connections at an http address, within a second."""
    parts = urlsplit(address if "//" in address else f"http://{address}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=PROBE_SECONDS):
            return True
    except OSError:
        return False
