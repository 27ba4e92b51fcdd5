"""What deploy/ holds, read; `make test-remotes` asks each format's own validator too."""

import os
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml

from gptmill.cli import build_parser
from tests.remotes.conftest import DEPLOY, documents, instructions

YAMLS = sorted(DEPLOY.rglob("*.yaml"))
DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))


# --- light


def test_all_parses() -> None:
    assert {path.name for path in YAMLS} == {
        "compose.yaml", "serving.yaml", "pretrain.yaml", "skypilot.yaml"
    }  # fmt: skip
    for path in YAMLS:
        assert documents(path), path
    assert len(DOCKERFILES) == 3


@pytest.mark.parametrize("path", DOCKERFILES, ids=str)
def test_what_is_copied_exists_and_is_not_ignored(path: Path) -> None:
    let_in = [line[1:] for line in Path(".dockerignore").read_text().splitlines() if "!" in line]
    for copied in instructions(path, "COPY"):
        if "--from=" in copied:
            continue
        for source in shlex.split(copied)[:-1]:
            assert Path(source).exists(), source
            assert any(fnmatchcase(source, one) or source.startswith(f"{one}/") for one in let_in)


@pytest.mark.parametrize("path", DOCKERFILES, ids=str)
def test_images_run_as_nobody_in_particular(path: Path) -> None:
    assert instructions(path, "USER")[-1] == "10001:10001"


def test_the_files_that_compose_names_exist_and_its_secrets_are_in_the_example() -> None:
    compose = documents(DEPLOY / "compose.yaml")[0]
    built = [service["build"] for service in compose["services"].values() if "build" in service]
    for build in built:
        assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    named = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    example = (DEPLOY / "example.env").read_text()
    assert named == set(re.findall(r"^(\w+)=$", example, re.M))
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_our_commands_are_ones_that_we_have() -> None:
    """`gptmill serve` as images and the Deployment start it, by the parser itself."""
    image = yaml.safe_load(instructions(DEPLOY / "serving.Dockerfile", "CMD")[-1])
    pod = documents(DEPLOY / "kubernetes/serving.yaml")[0]["spec"]["template"]["spec"]
    for command in (image, pod["containers"][0]["args"]):
        assert command[0] == "gptmill"
        assert str(build_parser().parse_args(command[1:]).models) == "/models"
    job = documents(DEPLOY / "kubernetes/pretrain.yaml")[0]["spec"]["trainer"]
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    assert " ".join([*job["command"], *job["args"]]) == stages["pretrain"]["cmd"].strip()


def test_the_image_of_mlflow_has_the_versions_of_the_lock_and_of_the_tests() -> None:
    locked = Path("requirements/test.txt").read_text()
    tested = Path("tests/remotes/requirements.txt").read_text()
    (installed,) = instructions(DEPLOY / "mlflow.Dockerfile", "RUN")
    versions = dict(re.findall(r"(\S+)==(\S+)", installed))
    assert f"\nmlflow=={versions['mlflow']} " in locked
    assert f"\npsycopg2-binary=={versions['psycopg2-binary']}\n" in tested
    assert "torch==" not in Path("requirements/serve.txt").read_text()


# --- by each format's own validator


def tool(name: str) -> Path:
    """A command of this environment."""
    return Path(sys.executable).parent / name


@pytest.mark.remotes
@pytest.mark.parametrize("path", DOCKERFILES, ids=str)
def test_hadolint_finds_nothing(path: Path) -> None:
    found = subprocess.run([tool("hadolint"), path], capture_output=True, text=True)
    assert not found.returncode, found.stdout


@pytest.mark.remotes
def test_compose_is_of_the_compose_specification() -> None:
    check = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    found = subprocess.run([*check, DEPLOY / "compose.yaml"], capture_output=True, text=True)
    assert not found.returncode, found.stdout


@pytest.mark.remotes
def test_the_deployment_is_of_kubernetes() -> None:
    import kubernetes_validate

    found = documents(DEPLOY / "kubernetes/serving.yaml")
    assert [document["kind"] for document in found] == ["Deployment", "Service"]
    for document in found:
        kubernetes_validate.validate(document, "1.37", strict=True)


@pytest.mark.remotes
def test_the_job_is_of_kubeflow() -> None:
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

    (job,) = documents(DEPLOY / "kubernetes/pretrain.yaml")
    read = TrainerV1alpha1TrainJob.from_dict(job)
    assert read.to_dict() == job  # what the model does not know it drops


SKY = """
import sys, jsonschema, yaml
from sky.utils import schemas
task = yaml.safe_load(open(sys.argv[1]))
jsonschema.validate(task, schemas.get_task_schema())
jsonschema.validate(task["resources"], schemas.get_resources_schema())
"""


@pytest.mark.remotes
def test_the_task_is_of_skypilot(tmp_path: Path) -> None:
    python = os.environ.get("GPTMILL_SKY_PYTHON")
    if not python:
        pytest.skip("GPTMILL_SKY_PYTHON names a Python that has skypilot: `make test-remotes`")
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    found = subprocess.run(
        [python, "-c", SKY, DEPLOY / "skypilot.yaml"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert not found.returncode, found.stderr[-2000:]
