"""The execution of the pipeline that a run belongs to."""

import hashlib
import os
import socket
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import psutil

from gptmill.process.parent import is_dvc
from gptmill.shapes import parse_json_as

# Set for a trial of a study: the study's execution as JSON, and the trial's number.
STUDY, TRIAL = "GPTMILL_STUDY", "GPTMILL_TRIAL"


@dataclass(frozen=True)
class Execution:
    """One run of the pipeline; `started` is in Unix milliseconds."""

    id: str
    name: str
    started: int

    def as_event(self) -> dict[str, Any]:
        return asdict(self)


def current_execution(run: str, profile: str, started: int) -> Execution:
    """The study whose trial this is, else the execution of the nearest `dvc` above this process;
    a stage run by hand is its own."""
    if study := os.environ.get(STUDY):
        return parse_json_as(study, Execution, f"the environment variable {STUDY}")
    experiment = os.environ.get("DVC_EXP_NAME", "")
    dvc = nearest_dvc()
    if dvc is None:
        identity = run
    else:
        started = int(dvc.create_time() * 1000)
        # The name too: one `dvc exp run --run-all` executes several experiments.
        identity = f"{socket.gethostname()} {dvc.pid} {started // 1000} {experiment}"
    moment = datetime.fromtimestamp(started / 1000).strftime("%Y-%m-%d %H:%M")
    name = experiment or f"{profile or 'by hand'} {moment}"
    return Execution(hashlib.sha256(identity.encode()).hexdigest()[:16], name, started)


def nearest_dvc() -> psutil.Process | None:
    """The nearest ancestor process that is `dvc`."""
    try:
        return next((p for p in psutil.Process().parents() if is_dvc(p.cmdline())), None)
    except psutil.Error:
        return None
