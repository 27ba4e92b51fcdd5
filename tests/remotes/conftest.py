"""What a team has beside the project: an object store, and the small pipeline to share."""

import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipeline.conftest import Project, clone

DEPLOY = Path("deploy")
KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Store:
    """An S3 server of this test run: moto's, which keeps its objects in memory."""

    def __init__(self, address: str) -> None:
        import boto3  # not in the project's environment, which collects this file too

        self.address = address
        self.client = boto3.client("s3", endpoint_url=address)

    def bucket(self, name: str) -> str:
        """A new bucket's address."""
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def objects(self, bucket: str) -> dict[str, int]:
        """The bytes of each object, by its key."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return {one["Key"]: one["Size"] for page in pages for one in page.get("Contents", [])}


@pytest.fixture(scope="session", autouse=True)
def keys() -> None:
    """Of the store; all that the tests start inherits them."""
    os.environ.update(KEYS)


@pytest.fixture(scope="session")
def s3(keys: None) -> Iterator[Store]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield Store("http://{}:{}".format(*server.get_host_and_port()))
    server.stop()


def dvc(project: Project, *words: str, check: bool = True) -> str:
    """Run DVC of this environment, which has the plugin for S3; what it printed."""
    done = project.run("python", "-m", "dvc", *words, check=check)
    return done.stdout + done.stderr


def commit(project: Project, message: str) -> None:
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", message)


def second_clone(project: Project, root: Path) -> Project:
    """A colleague's clone: what git has, and not one byte of DVC's."""
    project.run("git", "clone", "-q", str(project.root), str(root))
    other = Project(root)
    other.run("git", "config", "user.email", "colleague@example.org")
    other.run("git", "config", "user.name", "colleague")
    return other


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small pipeline, run and committed, with a server for its branches and no remote yet."""
    project = clone(tmp_path_factory.mktemp("made"))
    dvc(project, "repro")
    commit(project, "results")
    return project


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def open_to_others(folder: Path) -> None:
    """Let other users pass through pytest's folders, which are their owner's alone."""
    for parent in (folder, *folder.parents):
        if parent.owner() == Path.home().owner() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o111)


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def instructions(path: Path, name: str) -> list[str]:
    """The arguments of a Dockerfile's instructions of a name, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", path.read_text())
    return [line.split(None, 1)[1] for line in text.splitlines() if line.startswith(f"{name} ")]


def build(dockerfile: Path, made: Path) -> Path:
    """Make the folder that an image has as /opt/gptmill, by the image's own COPY and RUN lines."""
    source = made.with_name("source")
    for copied in instructions(dockerfile, "COPY"):
        if "--from=" not in copied:
            *names, target = shlex.split(copied)
            for name in map(Path, names):
                place = source / target / (name.name if target.endswith("/") else "")
                place.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if name.is_dir() else shutil.copy)(name, place)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{made}/bin:/usr/bin:/bin"  # Debian's Python, which others may run
    for line in instructions(dockerfile, "RUN"):
        if not line.startswith(("python", "pip")):  # Debian's packages and its users
            continue
        script = line.replace("/opt/gptmill", str(made)).replace(
            "python -m venv", "python3 -m venv"
        )
        done = subprocess.run(
            ["sh", "-c", script], cwd=source, env=environment, capture_output=True, text=True
        )
        assert not done.returncode, done.stdout[-2000:] + done.stderr[-2000:]
    return made
