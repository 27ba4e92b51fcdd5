"""The pipeline's image without Docker: its own instructions, and a stage by what they made."""

import subprocess
from pathlib import Path

import pytest

from gptmill.files import sha256_tree
from tests.pipeline.conftest import Project
from tests.remotes.conftest import DEPLOY, build, second_clone

pytestmark = pytest.mark.remotes

IMPORTS = "import dvc_s3, mlflow, torch, gptmill; print(gptmill.__file__)"


def test_a_stage_by_the_image(made: Project, tmp_path: Path) -> None:
    image = build(DEPLOY / "pipeline.Dockerfile", tmp_path / "image")
    project = second_clone(made, tmp_path / "project")
    environment = {"PATH": f"{image}/bin:/usr/bin:/bin", "HOME": str(tmp_path),
                   "PYTHONPATH": f"{project.root}/src", "DVC_NO_ANALYTICS": "true"}  # fmt: skip

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=project.root, env=environment, capture_output=True, text=True
        )
        assert not done.returncode, done.stdout + done.stderr
        return done.stdout

    assert run("python", "-c", IMPORTS).strip().startswith(str(project.root))
    assert "usage: gptmill" in run("gptmill", "--help")
    run("dvc", "repro", "download@instructions")
    name = Path("data/raw/instructions")
    assert sha256_tree(project.root / name) == sha256_tree(made.root / name)
