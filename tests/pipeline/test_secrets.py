"""Secrets are planted wherever one is taken, and looked for in everything that is written."""

import base64
import hashlib
import json
import shutil
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.pipeline.conftest import Project, clone

TEXT = b"Once upon a time there was a mill. " * 40
MARK = "hus4hush"  # every secret begins with it
KEYS = {
    "HF_TOKEN": f"hf_{MARK}HuggingFace",
    "OPENAI_API_KEY": f"sk-{MARK}OpenAI",
    "OLLAMA_API_KEY": f"{MARK}Ollama",
    "MLFLOW_TRACKING_PASSWORD": f"{MARK}Tracking",
}


class Guarded(BaseHTTPRequestHandler):
    """Gives the text to whoever knows the password."""

    def do_GET(self) -> None:
        login = base64.b64encode(f"me:{MARK}Mirror".encode()).decode()
        known = self.headers.get("Authorization") == f"Basic {login}"
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(TEXT)) if known else "0")
        self.end_headers()
        if known:
            self.wfile.write(TEXT)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}/files"
    server.shutdown()
    server.server_close()


@pytest.fixture
def planted(tmp_path: Path) -> Project:
    """A clone whose corpus comes from a manifest."""
    entry = {
        "url": "http://127.0.0.1:9/once.txt",  # the source itself never answers
        "bytes": len(TEXT),
        "sha256": hashlib.sha256(TEXT).hexdigest(),
    }
    project = clone(tmp_path)
    (tmp_path / "profiles/manifests/once.json").write_text(json.dumps([entry]))
    once = {"source": "manifest", "path": "profiles/manifests/once.json"}
    project.set_parameters({"download.corpus": once})
    project.environment |= KEYS
    return project


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_no_planted_secret_comes_out(planted: Project, mirror: str) -> None:
    said = []

    def run(*command: str, fails: bool = False, **environment: str) -> str:
        before = dict(planted.environment)
        planted.environment |= environment
        done = planted.run(*command, check=False)
        planted.environment = before
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        said.append(done.stdout + done.stderr)
        return said[-1]

    silent = f"http://me:{MARK}Server@127.0.0.1:{free_port()}"
    repro = ("dvc", "repro", "download@corpus")
    wrong = {"GPTMILL_MIRROR": f"http://me:{MARK}Wrong@{mirror}"}
    right = {"GPTMILL_MIRROR": f"http://me:{MARK}Mirror@{mirror}"}
    refused = run(*repro, fails=True, **wrong)
    assert f"http://{mirror}" in refused and "401" in refused, "the message still says where"
    assert "does not answer" in run(*repro, fails=True, **wrong, MLFLOW_TRACKING_URI=silent)
    run(*repro, **right)
    assert "download@corpus" in (planted.root / "dvc.lock").read_text()
    assert "does not answer" in run(
        "gptmill", "track", "replay", fails=True, MLFLOW_TRACKING_URI=silent
    )

    doctor = run("gptmill", "doctor", fails=True, GPTMILL_MIRROR=f"http://me:{MARK}Wrong@127.0.0.1:9",
                 MLFLOW_TRACKING_URI=silent)  # fmt: skip
    assert "mirror     no http://127.0.0.1:9" in doctor and "is silent" in doctor
    present = (planted.root / "params.yaml").read_text()
    planted.set_parameters({"judge.host": f"http://me:{MARK}Judge@127.0.0.1:11434"})
    assert "judge.host: " in run("python", "-m", "stages.download", "--dataset", "instructions",
                                 "--output", "data/raw/instructions", fails=True)  # fmt: skip
    assert "judge.host: " in run("gptmill", "doctor", fails=True)
    (planted.root / "params.yaml").write_text(present)  # where the user himself wrote it

    for name in ("metrics", "plots"):
        shutil.copytree(name, planted.root / name, dirs_exist_ok=True)
    run(
        "python",
        "-m",
        "stages.report",
        "--page",
        "report/index.html",
        "--summary",
        "report/summary.md",
        **right,
    )
    assert (planted.root / "report/index.html").exists()
    assert (planted.root / "mlflow.db").exists()

    assert not [line for text in said for line in text.splitlines() if MARK in line]
    written = [path for path in planted.root.rglob("*") if path.is_file()]
    assert {"dvc.lock", "mlflow.db", "index.html"} <= {path.name for path in written}
    assert list(planted.root.glob(".state/journal/*.jsonl")), (
        "a journal waits for the silent server"
    )
    assert not [path for path in written if MARK.encode() in path.read_bytes()]
