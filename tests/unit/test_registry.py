"""Models in the registry: versions by content, the alias by the test metric, answers over HTTP."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from gptmill.errors import UserError
from gptmill.onnx.served import _load_pyfunc, content_hashes
from gptmill.tracking import Stage, replay, tracking_address
from gptmill.tracking.registry import decide, decisions_file

NAME = "gptmill-classifier"
TAGS = {"metric": "accuracy", "value": "0.9", "tested_on": "a"}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_database: Path) -> Path:
    """A project with `mlflow.db` and an ONNX classifier."""
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "mlflow.db").write_bytes(fresh_database.read_bytes())
    (tmp_path / "test.csv").write_text("text,label\n")
    return tmp_path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    import torch

    from gptmill.model.classifier import GPT2Classifier
    from gptmill.model.gpt2 import GPT2Config
    from gptmill.onnx.export import export_classifier
    from gptmill.tokenizer import train_byte_pairs
    from gptmill.weights.folder import save_model

    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = train_byte_pairs(["the cat sat on the mat " * 9], 270)
    torch.manual_seed(0)
    config = GPT2Config(tokenizer.vocabulary_size, 16, layers=1, heads=2, width=16)
    model = GPT2Classifier(config, 2).eval()
    save_model(folder / "model", model, tokenizer, provenance={"code": 1}, labels=["ham", "spam"])
    export_classifier(folder / "model", folder / "onnx", opset=20)
    return folder / "onnx"


def publish(root: Path, accuracy: float, content: str = "a", tested_on: str = "test.csv") -> None:
    """What the stage does for a model whose file says `content`."""
    folder = root / "models/onnx/classifier"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_text(content)
    reference = {
        "task": "classify",
        "path": "models/onnx/classifier",
        "files": content_hashes(folder),
    }
    with Stage("export_onnx", {}) as stage:
        stage.model(NAME, reference, ("accuracy", accuracy, True), root / tested_on)


def client():
    from mlflow import MlflowClient

    return MlflowClient(tracking_address())


def versions() -> list:
    return sorted(client().search_model_versions(f"name = '{NAME}'"), key=lambda v: int(v.version))


def champion() -> str:
    return str(client().get_model_version_by_alias(NAME, "champion").version)


def why() -> str:
    return json.loads(decisions_file().read_text())[NAME]["why"]


def test_the_alias_follows_the_better_model_and_says_why(root: Path) -> None:
    publish(root, 0.90)
    assert (champion(), why()) == ("1", "the first version: accuracy 0.9")
    publish(root, 0.89, "b")
    assert (champion(), why()) == ("1", "accuracy 0.89 is not better than the champion's 0.9")
    publish(root, 0.95, "c")
    assert (champion(), why()) == ("3", "accuracy 0.95 is better than the champion's 0.9")
    (root / "other.csv").write_text("text,label\nx,y\n")
    publish(root, 0.99, "d", "other.csv")
    assert champion() == "3"
    assert "other data" in why()
    assert [v.tags["value"] for v in versions()] == ["0.9", "0.89", "0.95", "0.99"]
    assert versions()[1].tags["decision"] == "accuracy 0.89 is not better than the champion's 0.9"


def test_an_unchanged_model_gets_no_second_version(root: Path) -> None:
    publish(root, 0.90)
    publish(root, 0.90)
    (root / "models/onnx/classifier/provenance.json").write_text("{}")  # other code, same model
    publish(root, 0.90)
    assert len(versions()) == 1
    assert why() == "it is the champion already"


def test_a_silent_server_loses_no_model(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{taken.getsockname()[1]}")
    start = time.monotonic()
    publish(root, 0.90)
    assert time.monotonic() - start < 10
    # The server comes back, here as the database it would have had.
    (journal,) = (root / ".state/journal").glob("*.jsonl")
    address = f"sqlite:///{root / 'mlflow.db'}"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    lines[0]["address"] = address
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    replay()
    assert champion() == "1"


@pytest.mark.parametrize(
    ("champion", "higher_is_better", "moves"),
    [
        (None, True, True),
        ({**TAGS, "value": "0.9"}, True, False),  # as good is not better
        ({**TAGS, "value": "0.8"}, True, True),
        ({**TAGS, "value": "0.8"}, False, False),
        ({**TAGS, "value": "0.95"}, False, True),
        ({**TAGS, "value": "0.8", "metric": "macro_f1"}, True, False),
        ({**TAGS, "value": "0.8", "tested_on": "b"}, True, False),
    ],
)
def test_what_takes_the_alias(champion, higher_is_better, moves) -> None:
    assert decide(TAGS, champion, higher_is_better)[0] is moves


def reference_folder(root: Path, source: Path) -> Path:
    folder = root / "reference"
    folder.mkdir()
    reference = {
        "task": "classify",
        "root": str(root),
        "path": "models/onnx/classifier",
        "files": content_hashes(source),
    }
    (folder / "reference.json").write_text(json.dumps(reference))
    return folder


def test_an_old_version_comes_from_dvcs_cache(classifier: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    reference = reference_folder(tmp_path, classifier)
    with pytest.raises(UserError, match=r"neither under .* nor in its DVC cache: .*dvc checkout"):
        _load_pyfunc(str(reference))
    for path in classifier.iterdir():
        digest = hashlib.md5(path.read_bytes()).hexdigest()
        cached = tmp_path / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
        cached.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, cached)
    newer = tmp_path / "models/onnx/classifier"
    newer.mkdir(parents=True)
    (newer / "model.onnx").write_text("a newer model")
    texts = pandas.DataFrame({"text": ["the cat", "a mat"]})
    from_cache = _load_pyfunc(str(reference)).predict(texts)
    shutil.rmtree(newer)
    shutil.copytree(classifier, newer)
    pandas.testing.assert_frame_equal(_load_pyfunc(str(reference)).predict(texts), from_cache)


def test_mlflow_serves_the_champion_as_text_in_label_out(root: Path, classifier: Path) -> None:
    folder = shutil.copytree(classifier, root / "models/onnx/classifier")
    reference = {
        "task": "classify",
        "path": "models/onnx/classifier",
        "files": content_hashes(folder),
    }
    with Stage("export_onnx", {}) as stage:
        stage.model(NAME, reference, ("accuracy", 0.9, True), root / "test.csv")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["-m", f"models:/{NAME}@champion", "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": tracking_address(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    log = (root / "serve.log").open("w")
    server = subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        asked = {"inputs": ["the cat", "a mat"]}
        found = ask_when_ready(f"http://127.0.0.1:{port}/invocations", asked, server)
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)
    from gptmill.onnx.session import Classifier

    expected = Classifier(classifier).classify(asked["inputs"])
    assert [row["label"] for row in found["predictions"]] == [one.label for one in expected]
    for row, one in zip(found["predictions"], expected):
        assert row["probability"] == pytest.approx(one.probabilities[one.label], abs=1e-6)


def ask_when_ready(address: str, body: dict, server: subprocess.Popen) -> dict:
    request = urllib.request.Request(
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    deadline = time.monotonic() + 120
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except (ConnectionError, urllib.error.URLError):
            time.sleep(0.3)
    pytest.fail(f"the server did not answer: {Path('serve.log').read_text()[-2000:]}")
