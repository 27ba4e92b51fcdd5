"""What stages log, read back through MLflow's own API as a user would: all of it."""

import json
import math
from pathlib import Path

import mlflow
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gptmill.tracking import Stage, tracking_address
from gptmill.tracking.datasets import describe
from gptmill.tracking.history import executions, read_execution
from gptmill.tracking.names import LONGEST, from_mlflow, to_mlflow
from tests.unit.tracking.conftest import client, wait_for

TABLE = ("label,text\nham,see you\nspam,free prize\n", ["label", "text"])


@pytest.fixture
def inputs(root: Path) -> dict[str, Path]:
    """A table, entries, token shards, and a folder of whatever."""
    files = {
        "data/classification/train.csv": TABLE[0],
        "data/classification/test.csv": "label,text\nham,later\n",
        "data/entries.json": json.dumps([{"instruction": "Say it", "output": "it"}] * 3),
        "data/tokens/index.json": json.dumps(
            {"splits": {"train": {"documents": 2, "tokens": 90, "bytes": 200}}}
        ),
        "models/pretrained/model.safetensors": "weights",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    names = {"messages": "data/classification", "entries": "data/entries.json",
             "tokens": "data/tokens", "model": "models/pretrained"}  # fmt: skip
    return {name: Path(path) for name, path in names.items()}


@pytest.fixture
def run(root: Path, inputs: dict[str, Path]) -> mlflow.entities.Run:
    """A stage that logs one of everything."""
    (root / "plots").mkdir()
    (root / "plots/training.csv").write_text("step,loss\n0,1\n")
    with Stage("respond", {"rubric": "x" * 7000, "Q&A": {"share": 0.5}}, inputs) as stage:
        for step in range(3):
            stage.log(step, {"train/loss": 3.0 - step, "family/Q&A": step / 2})
        stage.log(3, {"train/loss": math.nan, "gradient_norm": math.inf})
        stage.text("samples", 2, "once upon")
        stage.table("Q&A: verdicts", ["truly", "said"], [["ham", 7], ["spam", None]])
        stage.artifact(root / "plots")
        stage.metrics({"family/Q&A": 0.75, "../odd//name": 2, "x" * 300: 1, "judge: who": "me"})
        stage.timing({"tokens_per_second": 7.0})
        wait_for(lambda: "system/" in stage._journal.path.read_text())
    mlflow.set_tracking_uri(tracking_address())
    mlflow.set_experiment("gptmill")
    (found,) = mlflow.search_runs(
        filter_string="tags.stage = 'respond' AND attributes.status = 'FINISHED'",
        output_format="list",
    )
    return mlflow.get_run(found.info.run_id)


def test_every_data_set_and_source(run: mlflow.entities.Run, inputs: dict[str, Path]) -> None:
    found = {i.tags[0].value: i for i in run.inputs.dataset_inputs}
    assert set(found) == set(inputs)
    for name, path in inputs.items():
        source = mlflow.data.get_source(found[name])
        assert Path(source.load()) == path.resolve()
        assert found[name].dataset.name == path.as_posix()
    profiles = {name: json.loads(i.dataset.profile) for name, i in found.items()}
    assert profiles == {
        "messages": {"test": {"num_rows": 1}, "train": {"num_rows": 2}},
        "entries": {"num_rows": 3},
        "tokens": {"train": {"num_rows": 2, "num_elements": 90}},
        "model": {"num_files": 1, "num_bytes": 7},
    }
    schema = mlflow.types.Schema.from_json(
        json.dumps(json.loads(found["messages"].dataset.schema)["mlflow_colspec"])
    )
    assert schema.input_names() == TABLE[1]


def test_curves_parameters_tags_and_the_machine(run: mlflow.entities.Run) -> None:
    history = {
        from_mlflow(name): [(p.step, p.value) for p in client().get_metric_history(
            run.info.run_id, name)] for name in run.data.metrics
    }  # fmt: skip
    assert history["train/loss"][:3] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert history["train/loss"][3][0] == 3 and math.isnan(history["train/loss"][3][1])
    assert history["gradient_norm"][0][1] > 1e300, "MLflow keeps infinity as the largest number"
    assert history["family/Q&A"] == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 0.75)]
    assert history["../odd//name"] == [(3, 2.0)]
    assert {name for name in history if name.startswith("system/")} >= {
        "system/cpu_utilization_percentage", "system/process_memory_usage_megabytes",
    }  # fmt: skip
    assert run.data.metrics["family/Q_x26_A"] == 0.75
    parameters = {from_mlflow(name): value for name, value in run.data.params.items()}
    assert parameters == {"rubric": "x" * 6000, "Q&A.share": "0.5"}
    assert run.data.tags["parameters_cut"] == "rubric"
    assert run.data.tags["judge_x3a_ who"] == "me"
    assert f"longer than MLflow's {LONGEST} characters" in run.data.tags["gptmill.not_recorded"]


def test_tables_and_artifacts(run: mlflow.entities.Run, tmp_path: Path) -> None:
    samples = mlflow.load_table("samples.json", run_ids=[run.info.run_id])
    assert samples.to_dict("list") == {"step": [2], "text": ["once upon"]}
    (other,) = [
        entry["path"]
        for entry in json.loads(run.data.tags["mlflow.loggedArtifacts"])
        if entry["path"] != "samples.json"
    ]
    verdicts = mlflow.load_table(other, run_ids=[run.info.run_id], extra_columns=["run_id"])
    assert list(verdicts["truly"]) == ["ham", "spam"]
    assert set(verdicts["run_id"]) == {run.info.run_id}
    listed = [f.path for f in mlflow.artifacts.list_artifacts(run_id=run.info.run_id)]
    assert listed == sorted(["samples.json", other, "plots"])
    folder = mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path="plots", dst_path=str(tmp_path / "copy")
    )
    assert (Path(folder) / "training.csv").read_text() == "step,loss\n0,1\n"


def test_our_own_names_come_back(run: mlflow.entities.Run) -> None:
    record = read_execution(executions()[0])
    assert record.metrics["respond/family/Q&A"] == 0.75
    assert record.tags["respond/judge: who"] == "me"
    assert record.texts == {"respond/samples": [(2, "once upon")]}
    assert record.data["respond/messages"] == run.data.tags["input.messages"]


@given(st.text(min_size=1, max_size=40))
@example(".")
def test_a_name_is_mapped_and_back(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_tag_name

    try:
        mapped = to_mlflow(name)
    except ValueError:
        assert len(name) > 25  # each character takes ten at most
        return
    _validate_metric_name(mapped)
    _validate_tag_name(mapped)
    assert from_mlflow(mapped) == name


@pytest.mark.parametrize(
    ("name", "mapped"),
    [
        ("validation/bits_per_byte", "validation/bits_per_byte"),
        ("Q&A", "Q_x26_A"),
        ("a:b", "a_x3a_b"),
        ("max_x26_", "max_x5f_x26_"),
        ("../x", "_x2e__x2e__x2f_x"),
        ("Größe", "Größe"),
    ],
)
def test_names_as_they_look(name: str, mapped: str) -> None:
    assert to_mlflow(name) == mapped
    assert from_mlflow(mapped) == name


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        to_mlflow("")


def test_what_cannot_be_read_is_described_by_its_size(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_bytes(b"\xff\xfe")
    (tmp_path / "index.json").write_text("[]")
    assert describe(tmp_path) == {"columns": [], "profile": {"num_files": 2, "num_bytes": 4}}
    assert describe(tmp_path / "bad.csv")["profile"] == {"num_files": 1, "num_bytes": 2}
    assert describe(tmp_path / "nothing") == {"columns": [], "profile": {}}
