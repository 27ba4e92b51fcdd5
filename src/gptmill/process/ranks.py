"""Which of several processes this one is, and how a stop reaches the agent that started them.

torchrun's agent starts lost processes again. A user's error would fail again, so the process that
meets one leaves a file that the others look for before they begin.
"""

import os
import sys
from pathlib import Path

STOP_FILE = "GPTMILL_STOP_FILE"  # the environment variable that names the file


def is_worker() -> bool:
    """Whether torchrun's agent started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Whether this process is the one that tracks and writes: the only one, or rank 0."""
    return os.environ.get("RANK", "0") == "0"


def stop_restarts() -> bool:
    """Leave word that starting again would not help; whether this process is the first to do so."""
    if not (path := os.environ.get(STOP_FILE)):
        return True
    try:
        Path(path).touch(exist_ok=False)
    except OSError:  # it exists, or the agent has gone with its folder
        return False
    return True


def leave_if_stopped() -> None:
    """End at once if a process of an earlier attempt left word."""
    if (path := os.environ.get(STOP_FILE)) and Path(path).exists():
        sys.exit(1)
