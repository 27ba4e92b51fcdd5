"""Real clients against `gptmill serve`, and the table of what was seen.

A cell is one test of one client. A client whose package is not installed is skipped: `make
test-clients` builds an environment that has them all, and writes the table into docs/clients.md.
The server asks for an API key, which every client therefore sends, and serves the models of
`models/onnx`, or of the folder that GPTMILL_CLIENT_MODELS names. Beside them it serves `long`, a
model of random weights with a context of 1,024 tokens, for clients with long prompts of their own
(`tests/clients/long.py` makes it, in the pipeline's environment).
"""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

MODELS = Path(os.environ.get("GPTMILL_CLIENT_MODELS", "models"))
NODE = Path(__file__).parent
PAGE = Path("docs/clients.md")
BEGIN, END = "<!-- written by tests/clients -->", "<!-- end -->"
FEATURES = (
    "models", "chat", "stream", "completion", "structured", "embeddings", "responses", "error",
    "whole run",
)  # fmt: skip
OURS = {**os.environ, "PYTHONPATH": os.pathsep.join(("src", "."))}
KEY = "a-key-for-the-clients-of-this-test"
QUESTION = "Make a question.\nMia is in the barn."

outcomes: dict[tuple[str, str], str] = {}
versions: dict[str, str] = {}


def cell(client: str, package: str, feature: str, node: bool = False) -> list[pytest.MarkDecorator]:
    """The marks of a test that proves one cell; it is skipped where the package is missing."""
    assert feature in FEATURES
    version = _node_version(package) if node else _version(package)
    versions[client] = f"{package} {version}"
    missing = pytest.mark.skipif(not version, reason=f"{package} is missing: make test-clients")
    return [pytest.mark.cell(client, feature), missing]


def proves(client: str, feature: str, package: str) -> Callable[[Callable], Callable]:
    """A decorator with those marks."""

    def mark(test: Callable) -> Callable:
        for one in cell(client, package, feature):
            test = one(test)
        return test

    return mark


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _node_version(package: str) -> str:
    path = NODE / "node_modules" / package / "package.json"
    return json.loads(path.read_text())["version"] if path.exists() else ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    for mark in item.iter_markers("cell"):
        if report.failed or (report.when == "call" and report.passed):
            outcomes[mark.args] = "**no**" if report.failed else "yes"
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("GPTMILL_WRITE_CLIENTS"):
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        text = f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"
        PAGE.write_text(text, encoding="utf-8", newline="\n")


def table() -> str:
    """Client by feature; a dot where a client has no such call, or none that was tried."""
    lines = [
        f"| client | {' | '.join(FEATURES)} |",
        "|---" * (len(FEATURES) + 1) + "|",
    ]
    for client in sorted({client for client, _ in outcomes}, key=str.lower):
        cells = [outcomes.get((client, feature), "·") for feature in FEATURES]
        lines.append(f"| {client} (`{versions[client]}`) | {' | '.join(cells)} |")
    return "\n".join(lines)


@cache
def own_answer() -> str:
    """What the instruction model says to the question, without server and client."""
    python = os.environ.get("GPTMILL_PIPELINE_PYTHON", sys.executable)
    command = [python, "-m", "gptmill.cli", "generate", "--temperature", "0"]
    command += ["--model", str(MODELS / "onnx/instructions"), "--instruction", QUESTION]
    return subprocess.run(command, env=OURS, check=True, capture_output=True, text=True).stdout[:-1]


@pytest.fixture(scope="session")
def models() -> Path:
    """The pipeline's models; `onnx` holds what is served."""
    if not (MODELS / "onnx" / "instructions").is_dir():
        pytest.skip(f"{MODELS}/onnx has no models: make repro")
    return MODELS


@pytest.fixture(scope="session")
def served(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is served."""
    folder = tmp_path_factory.mktemp("served")
    for model in (models / "onnx").iterdir():
        (folder / model.name).symlink_to(model.resolve())
    command = [
        os.environ.get("GPTMILL_PIPELINE_PYTHON", sys.executable),
        "-m",
        "tests.clients.long",
    ]
    subprocess.run([*command, str(folder / "long")], env=OURS, check=True)
    return folder


@pytest.fixture(scope="session")
def server(served: Path) -> Iterator[str]:
    """The address of `gptmill serve`, in a process of its own."""
    command = [sys.executable, "-m", "gptmill.cli", "serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--models", str(served), "--drain", "1"],
        env={**OURS, "GPTMILL_API_KEY": KEY},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process.stdout.readline().split()[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


@pytest.fixture(autouse=True)
def environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What clients read from the environment, and nothing that leads elsewhere."""
    if request.node.get_closest_marker("cell") is None:
        return
    server = request.getfixturevalue("server")
    for name, value in {
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": f"{server}/v1",
        "OLLAMA_API_KEY": KEY,
        "OLLAMA_HOST": server,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def node(server: str) -> Callable[..., dict]:
    """Runs one cell of clients.mjs; what it saw comes back."""

    def run(client: str, feature: str) -> dict:
        done = subprocess.run(
            ["node", str(NODE / "clients.mjs"), client, feature],
            env={
                "PATH": os.environ["PATH"], "SERVER": server, "KEY": KEY, "QUESTION": QUESTION,
                "AI_SDK_LOG_WARNINGS": "false",
            },
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run
