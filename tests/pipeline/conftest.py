"""A whole pipeline in a temporary clone, small parameters and no special code."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gptmill.params import PARAMS_FILE, YAML

SMALL = {
    "download.corpus.count": 400,
    "download.classification.count": 400,
    "download.instructions.count": 400,
    "tokenize.vocabulary_size": 400,
    "pretrain.model.layers": 2,
    "pretrain.model.heads": 2,
    "pretrain.model.width": 32,
    "pretrain.steps": 24,
    "pretrain.training.evaluate_every": 12,
    "pretrain.training.save_every": 6,
    "pretrain.sample_every": 12,
    "pretrain.evaluation_tokens": 2000,
    "study.tokens": 600,
    "study.steps": 20,
    "finetune_classifier.epochs": 1,
    "finetune_instructions.epochs": 1,
    "respond.sampling.max_new_tokens": 8,
    "export_onnx.greedy_steps": 8,
    "judge.bootstrap_samples": 100,
}


class Project:
    """A clone of this working tree with its own git and DVC, and commands run in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # As `make repro` has it; a DVC_ROOT from outside would point DVC's stages elsewhere.
        outside = {"DVC_ROOT", "DVC_STAGE", "MLFLOW_TRACKING_URI"}
        self.environment = {k: v for k, v in os.environ.items() if k not in outside} | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            # The copy's own code, so that an edit of the working tree changes nothing midway.
            "PYTHONPATH": str(root / "src"),
            "DVC_SITE_CACHE_DIR": str(root / ".site"),
            "DVC_NO_ANALYTICS": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the project; its output comes back, and is shown if it fails."""
        result = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True
        )
        if check and result.returncode:
            pytest.fail(f"{' '.join(command)}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}")
        return result

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in a process group of its own."""
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def set_parameters(self, values: dict[str, object]) -> None:
        """Change dotted names in the project's params.yaml."""
        path = self.root / PARAMS_FILE
        yaml = YAML()
        document = yaml.load(path.read_text())
        for name, value in values.items():
            *sections, key = name.split(".")
            target = document
            for section in sections:
                target = target[section]
            assert key in target, name
            target[key] = value
        with path.open("w") as file:
            yaml.dump(document, file)


def clone(root: Path) -> Project:
    """Copy what git tracks or would track, as it stands in the working tree."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        skipped = ("metrics/", "plots/", "dvc.lock", "tests/", "docs/")
        if Path(name).is_file() and not name.startswith(skipped):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, root / name)
    project = Project(root)
    project.run("git", "init", "-q")
    project.run("git", "config", "user.email", "test@example.org")
    project.run("git", "config", "user.name", "test")
    project.set_parameters(SMALL)
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "start")
    return project


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small pipeline, run once."""
    project = clone(tmp_path_factory.mktemp("project"))
    project.run("dvc", "repro")
    return project
