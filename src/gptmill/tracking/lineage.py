"""What a run came from: the execution it belongs to, code, parameters, inputs, machine."""

import hashlib
import json
import os
import platform
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from gptmill.errors import UserError
from gptmill.files import sha256_tree
from gptmill.params import PARAMS_FILE, read_yaml

# What decides a result: a changed README, or metrics that the pipeline itself rewrites, do not.
DECISIVE = [":/src", ":/stages", ":/dvc.yaml"]
ANSWERS = ("data/responses", "data/judgements")
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
        return Execution(**json.loads(study))
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


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names, as `dvc exp run -S` takes them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def all_parameters() -> dict[str, Any]:
    """params.yaml as it stands, flat; empty where a stage runs without it."""
    try:
        return flatten(read_yaml(PARAMS_FILE))
    except UserError:
        return {}


def input_hashes(inputs: dict[str, Path]) -> dict[str, dict[str, str]]:
    """Each input's path and SHA-256."""
    return {
        name: {"path": path.as_posix(), "sha256": sha256_tree(path) if path.exists() else "absent"}
        for name, path in inputs.items()
    }


def locked_data(lock: Path) -> dict[str, str]:
    """DVC's hash of everything under data/ that is no model's answer, from a dvc.lock."""
    return {
        path: digest
        for path, digest in locked_outputs(lock).items()
        if path.startswith("data/") and not path.startswith(ANSWERS)
    }


def locked_outputs(lock: Path) -> dict[str, str]:
    """DVC's hash of every output in a dvc.lock; empty where there is none."""
    if not lock.exists():
        return {}
    stages = read_yaml(lock).get("stages", {}).values()
    outputs = [output for stage in stages for output in stage.get("outs", [])]
    return {output["path"]: output.get("md5", "") for output in outputs}


def code_hash() -> str:
    """The SHA-256 of all of the package's sources, committed or not."""
    return sha256_tree(Path(__file__).parents[1])


def code_in_use() -> str:
    """One SHA-256 over the sources of the house that this process has imported.

    Of tracking nothing counts: it changes no output, and is imported as a thread gets to it.
    """
    package = Path(__file__).parents[1]
    files = {Path(m.__file__) for m in list(sys.modules.values()) if getattr(m, "__file__", None)}
    ours = {
        f"{package.name}/{file.relative_to(package).as_posix()}": file
        for file in files
        if package in file.parents and Path(__file__).parent not in file.parents
    }
    ours |= {f"stages/{file.name}": file for file in files if file.parent.name == "stages"}
    lines = [f"{name}\0{sha256_tree(ours[name])}\n" for name in sorted(ours)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


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


def is_dirty() -> bool:
    """Whether code or parameters differ from the commit.

    Parameters by content: in an experiment's checkout DVC rewrites params.yaml within the second
    of the checkout, and git, which goes by time and size, may not notice that 1 became 2.
    """
    parameters = PARAMS_FILE.read_text(encoding="utf-8").strip() if PARAMS_FILE.exists() else ""
    committed = git("show", f"HEAD:./{PARAMS_FILE}")
    return parameters != committed or bool(git("status", "--porcelain", "--", *DECISIVE))


def device_tags() -> dict[str, str]:
    """Device and threads as PyTorch has them, if the process uses PyTorch."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_num_threads"):
        return {"device": "cpu", "threads": "1"}
    device = "cpu"
    if torch.cuda.is_initialized():
        device = torch.cuda.get_device_name()
    return {"device": device, "threads": str(torch.get_num_threads())}


def git(*arguments: str) -> str:
    """The output of a git command, empty where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
