"""lm-eval on a folder of ours: a local task runs, and its likelihoods are our own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from gptmill.cli import main
from gptmill.engine.runtime import open_runtime
from gptmill.evaluate.fewshot import Example, few_shot_prompt, score_labels
from gptmill.files import read_json
from gptmill.generate.torch_decoder import TorchDecoder
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.tasks.language_model import token_nats
from gptmill.tokenizer import load_tokenizer, train_byte_pairs
from gptmill.weights.folder import load_language_model, save_model

pytest.importorskip("lm_eval", reason="the extra `evaluate` is not installed")

EXAMPLES = [
    Example("The bread was warm and the morning quiet.", "up"),
    Example("My boat has a hole, and it is raining.", "no"),
    Example("We sang all the way home.", "up"),
    Example("Nobody came to the party.", "no"),
    Example("The lamp went out again.", "no"),
]
LABELS = ["no", "up"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_database: Path) -> Path:
    """A folder with a model of random weights, two tasks over a local file, and an MLflow store."""
    for name in ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPTMILL_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(fresh_database.read_bytes())
    tokenizer = train_byte_pairs([e.text for e in EXAMPLES], 290)
    torch.manual_seed(0)
    config = GPT2Config(tokenizer.vocabulary_size, 64, layers=2, heads=2, width=16)
    save_model(tmp_path / "model", GPT2(config, 0.3, 0.3), tokenizer, provenance={})
    lines = [json.dumps({"text": e.text, "label": e.label}) for e in EXAMPLES]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "texts.jsonl"}}}
    label = {
        "task": "own_labels", "output_type": "multiple_choice", "test_split": "test",
        "doc_to_text": "Text: {{text}}\nLabel:", "doc_to_choice": LABELS, "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    stream = {
        "task": "own_texts", "output_type": "loglikelihood_rolling", "test_split": "test",
        "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }  # fmt: skip
    (tmp_path / "tasks").mkdir()
    for task in (label, stream):
        (tmp_path / f"tasks/{task['task']}.yaml").write_text(yaml.safe_dump(task | common))
    return tmp_path


def test_a_local_task_agrees_with_our_likelihoods(project: Path, capsys) -> None:
    tasks = ["--tasks", "own_labels", "own_texts", "--include-path", "tasks"]
    output = ["--batch-size", "2", "--output", "out/result.json"]
    main(["evaluate", "lm-eval", "--model", "model", *tasks, *output])
    written = read_json(project / "out/result.json")
    model, tokenizer = load_language_model(Path("model")), load_tokenizer(Path("model"))
    prompts = [tokenizer.encode(few_shot_prompt([], e.text)) for e in EXAMPLES]
    ours = score_labels(TorchDecoder(model), tokenizer, prompts, LABELS)
    rows = sorted(written["answers"]["own_labels"], key=lambda row: row["question"])
    theirs = np.array([[float(answer[0]) for answer in row["answers"]] for row in rows])
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    assert len(set(theirs.argmax(axis=1))) == 2, "the model must not always say the same"
    right = [LABELS[i] == e.label for i, e in zip(ours.argmax(axis=1), EXAMPLES)]
    assert written["metrics"]["own_labels/acc"] == pytest.approx(np.mean(right))

    runtime = open_runtime(seed=0, threads=1, precision="float32")
    nats = [
        token_nats(
            model, np.array([tokenizer.end_of_text, *tokenizer.encode(e.text)]), 64, 64, runtime
        ).sum()
        for e in EXAMPLES
    ]
    size = sum(len(e.text.encode()) for e in EXAMPLES)
    bits = sum(nats) / np.log(2) / size
    assert written["metrics"]["own_texts/bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert _logged()["own_texts/bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert f"{bits:.4f}" in capsys.readouterr().out


def _logged() -> dict[str, float]:
    """What MLflow's own client finds of the only child run."""
    from mlflow import MlflowClient

    client = MlflowClient("sqlite:///mlflow.db")
    experiment = client.get_experiment_by_name("gptmill").experiment_id
    (run,) = [
        run for run in client.search_runs([experiment]) if "mlflow.parentRunId" in run.data.tags
    ]
    assert run.data.params["tasks"] and "input.model" in run.data.tags
    return run.data.metrics


def test_what_cannot_run_is_said(project: Path) -> None:
    command = ["evaluate", "lm-eval", "--include-path", "tasks", "--tasks"]
    with pytest.raises(SystemExit, match="nowhere does not exist"):
        main([*command, "own_labels", "--model", "nowhere"])
    (project / "texts.jsonl").unlink()
    with pytest.raises(SystemExit, match="lm-eval cannot run own_labels"):
        main([*command, "own_labels", "--model", "model"])
