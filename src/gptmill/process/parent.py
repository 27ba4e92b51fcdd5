"""A stage ends with the `dvc` that waits for it, so that no orphan overwrites a later run.

DVC starts a stage through a shell, so the nearest `dvc` and everything between is watched: a thread
looks for each process by id and time of birth. Linux's signal at a parent's death would not do: it
tells of the shell alone, and is bound to the thread that forked.
"""

import os
import signal
import threading
import time
from pathlib import Path

import psutil

from gptmill.process import interrupt

POLL_SECONDS = 0.5
GRACE_SECONDS = 20.0  # to leave in order; a last delivery to MLflow takes seconds
# Set for what a program waits for: by DVC, for a trial of a study, and by torchrun's agent.
MAKE = ("make", "gmake")
WAITED_FOR = ("DVC_STAGE", "GPTMILL_STUDY", "TORCHELASTIC_RUN_ID")


def end_with_parents() -> None:
    """Watch the processes that wait for this one, if a program does.

    A stage that was started by hand has none: it outlives its terminal if `nohup` asks for that.
    """
    processes = waiting_processes()
    if processes:
        threading.Thread(target=_watch, args=(processes,), daemon=True).start()


def waiting_processes() -> list[psutil.Process]:
    """The nearest ancestor that is `dvc`, all between, and a `make` that waits for that; the parent
    alone where only the environment says that a program waits (DVC as a library, a study)."""
    parents = psutil.Process().parents()
    commands = [_command(process) for process in parents]
    place = next((i for i, command in enumerate(commands) if is_dvc(command)), None)
    if place is None:
        return parents[:1] if any(name in os.environ for name in WAITED_FOR) else []
    above = commands[place + 1 : place + 2]
    made = bool(above and above[0] and Path(above[0][0]).name in MAKE)
    return parents[: place + 1 + made]


def is_dvc(command: list[str]) -> bool:
    """Whether a command line is `dvc …`, `python …/dvc …` or `python -m dvc …`."""
    names = [Path(part).name for part in command[:4]]
    if names[:1] == ["dvc"]:
        return True
    if not names or not names[0].startswith("python"):
        return False
    options = [i for i, part in enumerate(command[:4]) if i and part.startswith("-")]
    script = next((i for i in range(1, len(names)) if i not in options), len(names))
    return names[script : script + 1] == ["dvc"]


def lives(process: psutil.Process) -> bool:
    """Whether this very process, not a later one of its id, is still at work."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # what we may not ask about is there
        return True


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _watch(processes: list[psutil.Process]) -> None:
    gone = None
    while gone is None:
        time.sleep(POLL_SECONDS)
        gone = next((process for process in processes if not lives(process)), None)
    interrupt.because(f"process {gone.pid}, which waited for it, is gone")
    os.kill(os.getpid(), signal.SIGTERM)  # on Windows this is the end, without order
    time.sleep(GRACE_SECONDS)
    os._exit(128 + signal.SIGTERM)
