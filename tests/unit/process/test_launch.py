"""Several processes for one stage: what the agent does with those that fail."""

import os
import subprocess
import sys
from pathlib import Path

STAGE = """
import pathlib, sys
from gptmill.errors import UserError
from stages import run

def main():
    with open("begun", "a") as file:
        file.write("x")
    raise UserError("the data are not there")

if __name__ == "__main__":
    run(main)
"""
LAUNCH = """
import sys
from gptmill.params import Launch
from gptmill.process.launch import launch

section = Launch(processes=2, nodes=1, minimum_nodes=1, rendezvous="", restarts=3, strategy="ddp",
                 cpu_offload=False, activation_checkpointing=False)
sys.exit(launch(section, "failing", []))
"""


def test_a_users_error_is_said_once_and_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(STAGE)
    (tmp_path / "params.yaml").write_text(Path("params.yaml").read_text())
    paths = os.pathsep.join([str(tmp_path), str(Path.cwd()), str(Path("src").resolve())])
    result = subprocess.run(
        [sys.executable, "-c", LAUNCH],
        env=os.environ | {"PYTHONPATH": paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    assert result.stderr.count("error: the data are not there") == 1
    assert len((tmp_path / "begun").read_text()) <= 2  # of the first attempt alone
