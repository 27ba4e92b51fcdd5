"""The whole pipeline, run small: contracts, nothing to do, same bytes, kill and resume."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from gptmill.files import sha256_tree
from gptmill.versions import VERSIONS_FILE
from tests.pipeline.conftest import Project, clone

pytestmark = pytest.mark.slow

CONTRACT = {
    "pretrain": [
        "validation/loss",
        "validation/perplexity",
        "validation/bits_per_byte",
        "validation/floor_loss",
    ],
    "load_gpt2_classifier": ["perplexity", "parameters"],
    "load_gpt2_instructions": ["perplexity", "parameters"],
    "finetune_classifier": [
        "test/accuracy",
        "test/macro_f1",
        "baseline/test/accuracy",
        "test/best_possible_accuracy",
    ],
    "respond": ["test/exact_match", "test/chrf", "stop_rate"],
    "export_onnx": [
        f"{model}/{name}"
        for model in ("language_model", "instructions")
        for name in ("max_abs_difference", "greedy_agreement")
    ]
    + ["classifier/max_abs_difference", "classifier-weights8/published"],
    "judge": ["score/mean", "score/low", "score/high", "coverage", "backend"],
}
FOLDERS = [
    "models/pretrained",
    "models/foundation/classifier",
    "models/foundation/instructions",
    "models/classifier",
    "models/instructions",
    "models/onnx/classifier",
    "models/onnx/language_model",
    "models/onnx/instructions",
]


def test_metrics_hold_the_contract(project: Project) -> None:
    for stage, names in CONTRACT.items():
        metrics = json.loads((project.root / f"metrics/{stage}.json").read_text())
        assert set(names) <= set(metrics), stage
        assert not [name for name in metrics if "second" in name or "mfu" in name], stage


def test_models_and_responses_are_where_scripts_expect_them(project: Project) -> None:
    for folder in FOLDERS:
        assert (project.root / folder / "config.json").exists(), folder
        weights = "model.onnx" if "onnx" in folder else "model.safetensors"
        assert (project.root / folder / weights).exists(), folder
    responses = json.loads((project.root / "data/responses/responses.json").read_text())
    assert {"instruction", "input", "output", "response"} <= set(responses[0])
    held_out = json.loads((project.root / "data/instructions/test.json").read_text())
    assert len(responses) == len(held_out)


def test_the_report_is_one_file_without_outside_addresses(project: Project) -> None:
    text = (project.root / "report/index.html").read_text()
    assert "is not there" not in text  # every stage has run, and MLflow's registry has decided
    assert "<svg" in text
    assert 'src="http' not in text
    assert 'href="http' not in text


def test_mlflow_holds_plots_the_confusion_matrix_and_models_by_reference(project: Project) -> None:
    client = MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("gptmill").experiment_id])
    stages = {run.data.tags["stage"]: run for run in runs if "stage" in run.data.tags}
    for stage, folder in (
        ("pretrain", "models/pretrained"),
        ("load_gpt2_classifier", "models/foundation/classifier"),
        ("finetune_classifier", "models/classifier"),
        ("finetune_instructions", "models/instructions"),
    ):
        tags = stages[stage].data.tags
        assert tags["output.model"] == sha256_tree(project.root / folder), stage
        assert tags["output.model.path"] == folder
    for stage in ("pretrain", "finetune_classifier", "finetune_instructions"):
        found = client.list_artifacts(stages[stage].info.run_id, f"plots/{stage}")
        assert f"plots/{stage}/training.csv" in [file.path for file in found]
    listed = stages["finetune_classifier"].data.tags["mlflow.loggedArtifacts"]
    assert "confusion_matrix.json" in listed
    parents = [run for run in runs if "stage" not in run.data.tags]
    assert max(len(run.data.metrics) for run in parents) > 50, "summaries of all stages"


def test_timings_are_kept_apart(project: Project) -> None:
    timing = json.loads((project.root / "timings/pretrain.json").read_text())
    assert timing["seconds"] > 0
    assert timing["tokens_per_second"] > 0
    assert 0 < timing["mfu"] < 1


def test_throughput_is_in_what_is_counted(project: Project) -> None:
    """Tokens where every token is a target, examples where each has one label."""
    for stage, unit in (
        ("pretrain", "tokens"),
        ("finetune_classifier", "examples"),
        ("finetune_instructions", "target_tokens"),
    ):
        rows = (project.root / f"timings/{stage}.csv").read_text().splitlines()[1:]
        assert {row.split(",")[1] for row in rows} == {f"{unit}_per_second"}, stage
        assert json.loads((project.root / f"timings/{stage}.json").read_text())[
            f"{unit}_per_second"
        ], stage


def test_a_clean_clone_of_known_results_gets_its_report(project: Project) -> None:
    """dvc.lock knows every result, so that only a missing output makes the report's stage run."""
    shutil.rmtree(project.root / "report")
    lock = (project.root / "dvc.lock").read_bytes()
    project.run("dvc", "repro")
    perplexity = json.loads((project.root / "metrics/pretrain.json").read_text())[
        "validation/perplexity"
    ]
    for name in ("report/index.html", "report/summary.md"):
        assert f"{perplexity:.2f}" in (project.root / name).read_text(), name
    assert (project.root / "dvc.lock").read_bytes() == lock


def test_a_second_run_does_nothing(project: Project) -> None:
    result = project.run("dvc", "repro")
    assert "Running stage" not in result.stdout
    assert "up to date" in result.stdout


def test_a_changed_version_reruns_the_stages_that_use_the_package(project: Project) -> None:
    path = project.root / VERSIONS_FILE
    recorded = path.read_text()
    try:
        for package, stages in (("pillow", {"study"}), ("scipy", {"finetune_classifier"})):
            path.write_text(re.sub(rf"^{package}: .*", f"{package}: 0.0.1", recorded, flags=re.M))
            status = json.loads(project.run("dvc", "status", "--json").stdout)
            assert set(status) == stages
        refused = project.run("dvc", "repro", "finetune_classifier", check=False)
        assert refused.returncode
        assert "recorded: 0.0.1" in refused.stderr
        project.run("python", "-m", "gptmill.cli", "versions", "--accept")
        assert path.read_text() == recorded
    finally:
        path.write_text(recorded)


def test_a_forced_run_gives_the_same_bytes(project: Project) -> None:
    before = (project.root / "dvc.lock").read_bytes()
    project.run("dvc", "repro", "--force")
    assert (project.root / "dvc.lock").read_bytes() == before


def test_an_unknown_parameter_stops_the_stage_and_keeps_outputs(project: Project) -> None:
    path = project.root / "params.yaml"
    before, weights = path.read_text(), project.root / "models/pretrained/model.safetensors"
    kept = weights.read_bytes()
    path.write_text(before.replace("  steps: 24", "  step: 24"))
    try:
        result = project.run("python", "-m", "stages.pretrain", "--tokens", "data/tokens",
                             "--output", "models/pretrained", "--metrics", "metrics/pretrain.json",
                             "--plots", "plots/pretrain", check=False)  # fmt: skip
    finally:
        path.write_text(before)
    assert result.returncode == 1
    assert "pretrain.step: unknown key; did you mean 'steps'?" in result.stderr
    assert "Traceback" not in result.stderr
    assert weights.read_bytes() == kept


def test_a_killed_pretraining_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    """Kill -9 the whole group in the middle; the next run resumes, and ends as if nothing was."""
    straight, killed = clone(tmp_path / "straight"), clone(tmp_path / "killed")
    for project in (straight, killed):
        project.set_parameters({"pretrain.steps": 60})
    straight.run("dvc", "repro", "pretrain")
    process = killed.start("dvc", "repro", "pretrain")
    deadline = time.monotonic() + 120
    while not list(killed.root.glob(".state/pretrain/*/step-*.pt")):
        assert time.monotonic() < deadline, "no checkpoint appeared"
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed.root / "models/pretrained").exists()
    # The lock of the killed dvc is stale; DVC finds that out by itself.
    result = killed.run("dvc", "repro", "pretrain")
    assert "resuming at step" in result.stdout + result.stderr
    for name in ("models/pretrained/model.safetensors", "metrics/pretrain.json"):
        assert (killed.root / name).read_bytes() == (straight.root / name).read_bytes(), name
    for name in ("training.csv", "evaluation.csv", "samples.json"):
        path = Path("plots/pretrain") / name
        assert (killed.root / path).read_bytes() == (straight.root / path).read_bytes(), name
    assert not list(killed.root.glob(".state/pretrain/*/step-*"))

    # What only measures: the finished training is taken, and gives what a new one would.
    for project in (straight, killed):
        project.set_parameters({"pretrain.evaluation_stride": 32})
    shutil.rmtree(straight.root / ".state/pretrain")
    before = (killed.root / "metrics/pretrain.json").read_bytes()
    trained, measured = (p.run("dvc", "repro", "pretrain").stderr for p in (straight, killed))
    assert "60 steps is measured anew" in measured
    assert "measured anew" not in trained
    assert (killed.root / "metrics/pretrain.json").read_bytes() != before
    for name in (
        "models/pretrained/model.safetensors",
        "metrics/pretrain.json",
        *(f"plots/pretrain/{name}" for name in ("training.csv", "evaluation.csv", "samples.json")),
    ):
        assert (killed.root / name).read_bytes() == (straight.root / name).read_bytes(), name
