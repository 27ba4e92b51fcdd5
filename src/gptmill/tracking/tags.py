"""What a run came from, as tags: commit, parameters, machine, device."""

import hashlib
import json
import os
import platform
import socket
import sys
from pathlib import Path
from typing import Any

from gptmill.errors import UserError
from gptmill.git import git, is_dirty
from gptmill.params import as_loaded, flatten
from gptmill.tracking.execution import TRIAL


def all_parameters() -> dict[str, Any]:
    """params.yaml as the stage read it, flat; empty where a stage runs without it."""
    try:
        return flatten(as_loaded())
    except UserError:
        return {}


def lineage_tags(parameters: dict[str, Any]) -> dict[str, str]:
    """Tags that parent and child carry; `parameters` is all of params.yaml, flat."""
    values = json.dumps(parameters, sort_keys=True, default=str)
    commit = git("rev-parse", "HEAD")
    tags = {
        "git_commit": commit,
        "mlflow.source.git.commit": commit,
        "git_dirty": str(is_dirty()).lower(),
        "git_branch": git("rev-parse", "--abbrev-ref", "HEAD"),
        "params_hash": hashlib.sha256(values.encode()).hexdigest()[:16],
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", ""),
        "trial": os.environ.get(TRIAL, ""),
        "profile": str(parameters.get("profile", "")),
        "host": socket.gethostname(),
        "mlflow.user": os.environ.get("USER", ""),
        "mlflow.source.name": " ".join(Path(part).name for part in sys.argv[:1]),
        "python": platform.python_version(),
    }
    return {name: value for name, value in tags.items() if value}


def device_tags() -> dict[str, str]:
    """Device and threads as PyTorch has them, if the process uses PyTorch."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_num_threads"):
        return {"device": "cpu", "threads": "1"}
    device = "cpu"
    if torch.cuda.is_initialized():
        device = torch.cuda.get_device_name()
    return {"device": device, "threads": str(torch.get_num_threads())}
