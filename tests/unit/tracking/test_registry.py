"""Models in the registry: versions by content, the alias by the test metric, answers over HTTP."""

import hashlib
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import mlflow
import pandas
import pytest

from gptmill.errors import UserError
from gptmill.reading import Reading
from gptmill.runtime.mlflow_pyfunc import _load_pyfunc, content_hashes
from gptmill.tracking import Stage, replay, tracking_address
from gptmill.tracking.registry import decide, decisions_file
from tests.unit.tracking.conftest import client, readdress

NAME = "gptmill-classifier"
TAGS = {"metric": "accuracy", "value": "0.9", "tested_on": "a"}


@pytest.fixture
def root(root: Path) -> Path:
    """A project with data that models are tested on."""
    (root / "test.csv").write_text("text,label\n")
    return root


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    import torch

    from gptmill.export.onnx import export_classifier
    from gptmill.model.classifier import GPT2Classifier
    from gptmill.model.config import GPT2Config
    from gptmill.tokenizer import train_byte_pairs
    from gptmill.weights.folder import save_model

    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = train_byte_pairs(["the cat sat on the mat " * 9], 270)
    torch.manual_seed(0)
    config = GPT2Config(tokenizer.vocabulary_size, 16, layers=1, heads=2, width=16)
    model = GPT2Classifier(config, 2).eval()
    save_model(
        folder / "model", model, tokenizer, provenance={"code": 1}, reading=Reading(("ham", "spam"))
    )
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
    experiment = client().get_experiment_by_name("gptmill").experiment_id
    logged = {model.source_run_id: model for model in client().search_logged_models([experiment])}
    leads = logged[versions()[1].run_id].tags["mlflow.modelVersions"]
    assert json.loads(leads) == [{"name": NAME, "version": int(versions()[1].version)}]


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
    readdress(journal, address)
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
        "path": "models/onnx/classifier",
        "files": content_hashes(source),
    }
    (folder / "reference.json").write_text(json.dumps(reference))
    return folder


def into_cache(model: Path, cache: Path) -> None:
    """What DVC does with the files of a model."""
    for path in model.iterdir():
        digest = hashlib.md5(path.read_bytes()).hexdigest()
        cached = cache / "files/md5" / digest[:2] / digest[2:]
        cached.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, cached)


@pytest.mark.parametrize("configured", [False, True])
def test_an_old_version_comes_from_dvcs_cache(
    configured: bool, classifier: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = reference_folder(root, classifier)
    (root / ".dvc").mkdir()
    cache = root / ".dvc/cache"
    if configured:
        (root / ".dvc/config.local").write_text("[core]\n    x = 1\n[cache]\n    dir = ../../c\n")
        cache = root / "../c"
    monkeypatch.chdir("/")
    with pytest.raises(UserError, match=r"neither under .* nor in its DVC cache: .*dvc checkout"):
        _load_pyfunc(str(reference))
    into_cache(classifier, cache)
    newer = root / "models/onnx/classifier"
    newer.mkdir(parents=True)
    (newer / "model.onnx").write_text("a newer model")
    texts = pandas.DataFrame({"text": ["the cat", "a mat"]})
    from_cache = _load_pyfunc(str(reference)).predict(texts)
    shutil.rmtree(newer)
    shutil.copytree(classifier, newer)
    pandas.testing.assert_series_equal(_load_pyfunc(str(reference)).predict(texts), from_cache)


def test_a_damaged_cache_object_is_not_loaded(classifier: Path, root: Path) -> None:
    reference = reference_folder(root, classifier)
    into_cache(classifier, root / ".dvc/cache")
    damaged = max((root / ".dvc/cache").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(UserError, match=r"model.onnx.* of this version"):
        _load_pyfunc(str(reference))


def publish_real(root: Path, classifier: Path, accuracy: float = 0.9) -> None:
    """What the stage does for a model that works."""
    folder = shutil.copytree(classifier, root / "models/onnx/classifier", dirs_exist_ok=True)
    reference = {
        "task": "classify",
        "path": "models/onnx/classifier",
        "files": content_hashes(folder),
    }
    with Stage("export_onnx", {}) as stage:
        stage.model(NAME, reference, ("accuracy", accuracy, True), root / "test.csv")


def in_a_process(root: Path, script: str, **environment: str) -> str:
    """What a user's own script says; MLflow remembers databases, so each has its process."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


LOAD = """
import mlflow, pandas
model = mlflow.pyfunc.load_model("models:/gptmill-classifier@champion")
print(list(model.predict(pandas.DataFrame({"text": ["the cat", "a mat"]}))))
"""
LOG = """
import os
del os.environ["MLFLOW_TRACKING_URI"]  # as most have it
from gptmill.tracking import Stage
with Stage("pretrain", {}) as stage:
    stage.table("copied", ["a"], [[1]])
"""
REPAIR = "from gptmill.tracking import repair; print(chr(10).join(repair()))"


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_project_may_be_moved_and_copied(how: str, root: Path, classifier: Path) -> None:
    first = root / "first project"
    first.mkdir()
    (first / ".dvc").mkdir()
    for name in ("mlflow.db", "test.csv", "params.yaml"):
        shutil.move(root / name, first / name)
    os.chdir(first)
    publish_real(first, classifier)
    with Stage("tokenize", {}, {"messages": Path("test.csv")}):
        pass
    expected = in_a_process(first, LOAD)
    second = root / "second"
    os.chdir(root)
    shutil.move(first, second) if how == "moved" else shutil.copytree(first, second)
    before = contents(first)
    in_a_process(second, LOG)
    assert contents(first) == before, "what works in a copy leaves the original alone"
    (table,) = second.glob("mlartifacts/*/artifacts/copied.json")
    assert json.loads(table.read_text())["data"] == [[1]]
    shutil.rmtree(first, ignore_errors=True)
    assert in_a_process(second, LOAD) == expected
    with sqlite3.connect(second / "mlflow.db") as database:
        dump = "\n".join(database.iterdump())
    assert not re.search("first( |%20)project", dump)
    sources = f'"uri": "{second.as_posix()}/test.csv"'
    assert sources in dump


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_champion_outlives_mlflows_garbage_collection(root: Path, classifier: Path) -> None:
    publish_real(root, classifier)
    expected = in_a_process(root, LOAD)
    run = versions()[0].run_id
    client().delete_run(run)
    gc = "import sys; from mlflow.cli import cli; sys.argv[1:] = {}; cli()"
    collect = ["gc", "--backend-store-uri", tracking_address()]
    in_a_process(root, gc.format(collect))
    with sqlite3.connect(root / "mlflow.db") as database:
        assert not database.execute("SELECT * FROM runs WHERE run_uuid = ?", [run]).fetchall()
    assert in_a_process(root, LOAD) == expected

    shutil.rmtree(root / "mlartifacts")  # whatever else takes them away
    said = in_a_process(root, REPAIR)
    assert said == f"{NAME} version 1 (champion): its files were gone and are written again\n"
    assert in_a_process(root, LOAD) == expected
    assert in_a_process(root, REPAIR) == "\n"

    shutil.rmtree(root / "mlartifacts")
    publish_real(root, classifier)  # the same content: the same version, and whole
    assert in_a_process(root, LOAD) == expected
    assert len(versions()) == 1

    shutil.rmtree(root / "models")
    said = in_a_process(root, REPAIR)
    assert said.startswith(f"{NAME} version 1 (champion) cannot be loaded: models/onnx/classifier/")
    assert "dvc pull" in said


def test_a_version_of_earlier_gptmill_is_repaired_while_its_files_are_there(
    root: Path, classifier: Path
) -> None:
    publish_real(root, classifier)
    expected = in_a_process(root, LOAD)
    client().delete_model_version_tag(NAME, "1", "reference")
    assert in_a_process(root, REPAIR) == "\n"
    shutil.rmtree(root / "mlartifacts")
    assert "kept no copy" in in_a_process(root, REPAIR)
    publish_real(root, classifier)
    assert in_a_process(root, LOAD) == expected


def test_predictions_stay_with_their_rows(root: Path, classifier: Path) -> None:
    publish_real(root, classifier)
    from gptmill.runtime.session import Classifier

    texts = ["the cat", "a mat", "sat on the", "mat mat mat", "on", "the the cat sat"] * 3
    answers = Classifier(classifier).classify(texts)
    right = pandas.DataFrame({"text": texts, "label": [answer.label for answer in answers]})
    right.loc[right.index[:2], "label"] = [
        "spam",
        "ham",
    ]  # so that both occur, and not all is right
    shuffled = right.sample(frac=1, random_state=1)
    mlflow.set_tracking_uri(tracking_address())
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    found = model.predict(shuffled[["text"]])
    assert list(found.index) == list(shuffled.index)
    straight = model.predict(right[["text"]])
    share = (straight == right["label"]).mean()
    assert (found == shuffled["label"]).mean() == share
    both = model.predict(shuffled[["text"]], params={"probability": True})
    assert list(both.index) == list(shuffled.index)
    expected = [answers[row].probabilities[answers[row].label] for row in shuffled.index]
    assert both["probability"].tolist() == pytest.approx(expected, abs=1e-6)

    mlflow.set_experiment("gptmill")
    with mlflow.start_run():
        result = mlflow.models.evaluate(
            model,
            shuffled,
            targets="label",
            model_type="classifier",
            evaluator_config={"log_model_explainability": False},
        )
    assert result.metrics["accuracy_score"] == pytest.approx(share)


def test_mlflow_serves_the_champion_as_text_in_label_out(root: Path, classifier: Path) -> None:
    publish_real(root, classifier)
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
        asked = {"inputs": ["the cat", "a mat"], "params": {"probability": True}}
        found = ask_when_ready(f"http://127.0.0.1:{port}/invocations", asked, server)
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)
    from gptmill.runtime.session import Classifier

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
