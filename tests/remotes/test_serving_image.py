"""The serving image without Docker: its own instructions in a fresh environment, then its command
as its user, every file system read-only, and its health check."""

import json
import os
import shlex
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.pipeline.conftest import Project
from tests.remotes.conftest import DEPLOY, build, free_port, instructions, open_to_others

pytestmark = [
    pytest.mark.remotes,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become the image's user"),
]

IMAGE = DEPLOY / "serving.Dockerfile"
KEY = "a-key-of-this-test-alone"
USER = "10001"
# What a container's read-only root is; setpriv does as `cap_drop` and `no-new-privileges`.
CONTAINER = (
    "mount --make-rprivate / && mount -o remount,bind,ro / && exec setpriv "
    f"--reuid {USER} --regid {USER} --clear-groups --no-new-privs --inh-caps=-all "
    "--bounding-set=-all env -i "
)
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 9}},
    "required": ["n"],
}


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the image has as /opt/gptmill, by its own RUN lines."""
    root = tmp_path_factory.mktemp("image")
    open_to_others(root)
    return build(IMAGE, root / "gptmill")


@pytest.fixture(scope="session")
def models(made: Project) -> Path:
    """ONNX folders: those that GPTMILL_MODELS names, or the small pipeline's."""
    folder = Path(os.environ.get("GPTMILL_MODELS", made.root / "models/onnx")).resolve()
    open_to_others(folder)
    return folder


def in_container(image: Path, command: list[str], **environment: str) -> list[str]:
    values = {"PATH": f"{image}/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", **environment}
    words = [f"{name}={value}" for name, value in values.items()] + command
    return ["unshare", "--mount", "sh", "-c", CONTAINER + shlex.join(words)]


@pytest.fixture(scope="session")
def served(image: Path, models: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The image's command, and the address at which it answers its health check."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces are not permitted here")
    port = free_port()
    command = yaml.safe_load(instructions(IMAGE, "CMD")[-1])
    command = [word if word != "/models" else str(models) for word in command]
    process = subprocess.Popen(
        in_container(image, [*command, "--port", str(port)], GPTMILL_API_KEY=KEY), cwd=models
    )
    (check,) = instructions(IMAGE, "HEALTHCHECK")
    health = yaml.safe_load(check[check.index("[") :].replace("11435", str(port)))
    deadline = time.monotonic() + 60
    while subprocess.run(in_container(image, health), capture_output=True).returncode:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.5)
    yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    process.terminate()
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert subprocess.run(in_container(image, health), capture_output=True).returncode


def ask(address: str, path: str, key: str = KEY, **body: object) -> dict:
    request = urllib.request.Request(f"{address}{path}", json.dumps(body).encode())
    request.add_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_it_answers_without_pytorch_as_nobody(
    image: Path, served: tuple[str, psutil.Process]
) -> None:
    address, process = served
    assert process.uids().effective == process.uids().real == int(USER)
    assert not list(image.glob("lib/python3*/site-packages/torch*"))
    mapped = {Path(one.path).name for one in process.memory_maps()}
    assert any("onnxruntime" in name for name in mapped)
    options = {"temperature": 0, "num_predict": 8}
    said = ask(address, "/api/generate", model="language_model", prompt="One day", stream=False,
               options=options)  # fmt: skip
    assert said["eval_count"] and said["response"]
    assert set(ask(address, "/classify", text="where are you")["probabilities"]) == {"ham", "spam"}
    said = ask(address, "/api/generate", model="language_model", prompt="One", stream=False,
               format=SCHEMA)  # fmt: skip
    assert json.loads(said["response"])["n"] <= 9
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(address, "/api/generate", key="another-key-entirely", model="language_model")


def test_it_can_write_nothing(image: Path, served: tuple[str, psutil.Process]) -> None:
    for folder in (image, "/tmp", "/"):
        touch = in_container(image, ["touch", f"{folder}/x"])
        done = subprocess.run(touch, capture_output=True, text=True)
        assert "Read-only file system" in done.stderr
