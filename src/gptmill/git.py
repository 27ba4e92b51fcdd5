"""The git command, and what it says of the checkout."""

import subprocess
from pathlib import Path

# What decides a result: a changed README, or metrics that the pipeline itself rewrites, do not.
DECISIVE = [":/src", ":/stages", ":/dvc.yaml", ":/versions.yaml"]


def git(*arguments: str) -> str:
    """The output of a git command, empty where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def is_dirty(parameters_file: Path = Path("params.yaml")) -> bool:
    """Whether code or parameters differ from the commit.

    Parameters by content: in an experiment's checkout DVC rewrites params.yaml within the second
    of the checkout, and git, which goes by time and size, may not notice that 1 became 2.
    """
    parameters = (
        parameters_file.read_text(encoding="utf-8").strip() if parameters_file.exists() else ""
    )
    committed = git("show", f"HEAD:./{parameters_file}")
    return parameters != committed or bool(git("status", "--porcelain", "--", *DECISIVE))
