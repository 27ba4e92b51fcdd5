"""A whole plan: counts, every shipped profile, and advice that fits."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gptmill.check import cost
from gptmill.cli import main
from gptmill.data.raw import make_raw
from gptmill.data.shards import write_tokens
from gptmill.data.splits import plan_splits
from gptmill.data.tokenizers import make_tokenizer
from gptmill.data.tokens import TokenSplit
from gptmill.export.onnx import export_language_model
from gptmill.export.quantize import quantized
from gptmill.params import PARAMS_FILE, Parameters, load
from gptmill.plan import machine as machines
from gptmill.plan.activations import Compute
from gptmill.plan.advice import what_fits, with_changes
from gptmill.plan.counts import Counts, count
from gptmill.plan.disk import Disk, needed_disk, onnx_bytes, stage_disk
from gptmill.plan.machine import Machine
from gptmill.plan.memory import Shape
from gptmill.plan.peaks import GROUPS, groups, stage_peaks
from gptmill.plan.sizes import language_model_size
from gptmill.plan.speed import Speed
from gptmill.plan.whole import shortages
from gptmill.plan.workload import Workload, widths, workload
from gptmill.profiles import list_profiles, profile_parameters
from tests.pipeline.test_house import pipeline

GIGA = 10**9
FLOAT32 = Compute(half=False)


@pytest.fixture
def quick_speed(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    """No step is taken and no machine measured: a second for everything."""
    monkeypatch.setattr(machines, "measure_machine", lambda runtime: machine)
    for name in ("language_step", "classifier_step", "token"):
        monkeypatch.setattr(Speed, name, lambda *arguments, **options: 1.0)
    monkeypatch.setattr(Speed, "forward", lambda *arguments, **options: 1e-3)


@pytest.fixture(scope="session")
def book() -> Workload:
    """The book's full sizes; what is not on this machine is assumed."""
    parameters = profile_parameters("book")
    return workload(parameters, count(parameters))


def test_counts_are_those_of_the_stages(
    small_parameters: Parameters, small_counts: Counts, tmp_path: Path
) -> None:
    """Where the sample is the whole, they are exact."""
    make_raw("corpus", small_parameters.download.corpus, tmp_path / "raw")
    plan = plan_splits(tmp_path / "raw", validation_fraction=0.05, test_fraction=0.05, seed=1)
    start = small_parameters.pretrain.foundation
    tokenizer = make_tokenizer("bpe", plan, 1024, start)
    write_tokens(plan, tokenizer, tmp_path / "tokens", shard_tokens=10**7)
    real = [TokenSplit(tmp_path / "tokens", split) for split in ("train", "validation", "test")]
    corpus = small_counts.corpus
    assert sum(corpus.tokens.values()) == sum(len(split) for split in real)
    assert corpus.vocabulary == tokenizer.vocabulary_size
    assert sorted(corpus.lengths) == sorted(
        np.concatenate([np.diff([*split.document_starts, len(split)]) for split in real])
    )
    assert corpus.sample.bytes == (tmp_path / "raw/documents.jsonl").stat().st_size


def test_a_sample_tells_of_the_whole(changed: Callable[..., Parameters]) -> None:
    """Ten times the documents, of which as many are drawn: ten times the tokens, about."""
    one, ten = (count(changed({"download.corpus.count": documents})) for documents in (400, 4000))
    tokens = [sum(counts.corpus.tokens.values()) for counts in (one, ten)]
    assert tokens[1] == pytest.approx(10 * tokens[0], rel=1e-4)
    assert one.assumed == ten.assumed == []


def test_what_is_not_at_hand_is_assumed_and_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("GPTMILL_MIRROR", raising=False)
    counts = count(profile_parameters("book"))
    said = "\n".join(counts.assumed)
    assert "corpus: not downloaded yet, 0.0 MB" in said
    assert (
        "classification: not downloaded yet, 0.5 MB (assumed: the manifest states no size)" in said
    )
    assert "tokenizer: not at hand" in said
    assert counts.corpus.vocabulary == 50257
    # 203,524 bytes at 185 each; 85% to train
    assert counts.entries.count["train"] == round(1100 * 0.85)
    assert list(tmp_path.iterdir()) == []


def test_widths_are_those_of_the_batches() -> None:
    """Sorted in pools of sixteen batches: neighbors share a batch."""
    assert widths(np.array([1, 2, 3, 4, 5, 6]), 2) == (4, 6)
    assert widths(np.full(7, 9), 3) == (9, 9)


def test_steps_count_epochs_and_accumulation(
    changed: Callable[..., Parameters], small_counts: Counts
) -> None:
    parameters = changed(
        {"pretrain.rows": "windows", "pretrain.epochs": 3, "pretrain.training.accumulation": 4}
    )
    run = workload(parameters, small_counts).pretrain
    windows = small_counts.corpus.tokens["train"] // 128
    assert run.steps == -(-(3 * -(-windows // 12)) // 4)
    assert run.largest == Shape(12, 128, 4)
    assert run.evaluations == 1 + -(-run.steps // 100)


def test_every_stage_of_the_pipeline_is_planned(
    small_parameters: Parameters, small_counts: Counts, machine: Machine
) -> None:
    work = workload(small_parameters, small_counts)
    peaks, disk = stage_peaks(work, machine.base, FLOAT32), stage_disk(work)
    stages = pipeline()
    del stages["code"]  # reads sources for a moment
    named = [
        f"{name}@{item}" if "foreach" in stage else name
        for name, stage in stages.items()
        for item in stage.get("foreach", [""])
    ]
    assert list(peaks) == named
    assert set(disk) == set(named)
    assert set(GROUPS) == set(stages)


def test_memory_grows_as_it_should(
    changed: Callable[..., Parameters], small_counts: Counts, machine: Machine
) -> None:
    def total(**changes: object) -> int:
        names = {name.replace("__", "."): value for name, value in changes.items()}
        work = workload(changed(names), small_counts)
        return stage_peaks(work, machine.base, FLOAT32)["pretrain"].device

    usual = total(pretrain__training__batch_size=128)
    assert total(pretrain__training__batch_size=256) > 1.9 * usual
    # Accumulation keeps the gradients of earlier micro-batches, and nothing else.
    grown = total(pretrain__training__batch_size=128, pretrain__training__accumulation=8) - usual
    weights = language_model_size(workload(changed({}), small_counts).pretrained).weights
    assert grown == weights
    assert total(pretrain__training__batch_size=128, pretrain__model__dropout=0.1) > 1.3 * usual


@pytest.mark.parametrize("gigabytes", [12.0, 9.0, 7.0, 5.0])
def test_what_is_advised_fits(
    book: Workload, machine: Machine, with_memory: Callable[[float], Machine], gigabytes: float
) -> None:
    """Each stage that is too large gets changes with which the formulas say it fits; a smaller
    batch keeps the effective one."""
    small = with_memory(gigabytes)
    peaks = stage_peaks(book, machine.base, FLOAT32)
    found = shortages(book, small, FLOAT32, peaks)
    assert {s.stage for s in found} == {n for n, m in peaks.items() if m.total > small.memory}
    for shortage in found:
        assert shortage.changes, shortage
        parameters = with_changes(book.parameters, shortage.changes)
        changed = stage_peaks(workload(parameters, book.counts), machine.base, FLOAT32)
        assert changed[shortage.stage].total <= small.memory
        if (name := f"{shortage.stage}.training.batch_size") in shortage.changes:
            accumulation = shortage.changes[f"{shortage.stage}.training.accumulation"]
            training = getattr(book.parameters, shortage.stage).training
            effective = training.batch_size * training.accumulation
            assert shortage.changes[name] * accumulation == effective


def test_smaller_batches_come_before_anything_else(book: Workload, machine: Machine) -> None:
    stage = "finetune_instructions"
    peak = stage_peaks(book, machine.base, FLOAT32)[stage].total
    changes = what_fits(stage, book, machine.base, FLOAT32, peak - 1)
    assert changes == {f"{stage}.training.batch_size": 4, f"{stage}.training.accumulation": 2}


def test_no_advice_where_nothing_helps(book: Workload, machine: Machine) -> None:
    assert what_fits("pretrain", book, machine.base, FLOAT32, GIGA) is None


@pytest.mark.parametrize("profile", [name for name, _ in list_profiles()])
def test_every_shipped_profile(
    profile: str, quick_speed: None, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Before anything was downloaded, and without touching params.yaml."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    before = PARAMS_FILE.read_text()
    main(["plan", "--profile", profile, "--json", "--memory", "64"])
    plan = json.loads(capsys.readouterr().out)
    assert plan["profile"] == profile
    assert plan["fits"]
    assert len(plan["stages"]) == 16
    for name, stage in plan["stages"].items():
        parts = [value for part, value in stage["memory"].items() if part != "total"]
        assert stage["memory"]["total"] == sum(parts) > 0
        assert stage["seconds"] > 0
        assert (stage["steps"] > 0) == (name.startswith(("pretrain", "finetune")))
    assert plan["seconds"] > sum(stage["seconds"] for stage in plan["stages"].values())
    assert PARAMS_FILE.read_text() == before


def test_the_table_reads_in_100_columns(quick_speed: None, capsys: pytest.CaptureFixture) -> None:
    main(["plan"])
    lines = capsys.readouterr().out.splitlines()
    assert any("It fits; " in line for line in lines)
    assert max(len(line) for line in lines) <= 100


def test_what_does_not_fit_ends_with_1_and_what_would(
    quick_speed: None, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--profile", "book", "--memory", "8", "--disk", "1"])
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert "finetune_instructions does not fit: " in out
    assert "finetune_instructions.training.accumulation: " in out
    assert "GB needed, 1.0 GB free.\n  `dvc config cache.type" in out


def test_a_profile_that_is_not_there() -> None:
    with pytest.raises(SystemExit, match="did you mean 'book'"):
        main(["plan", "--profile", "bok"])


def test_disk_counts_dvcs_copy_once_and_the_largest_checkpoint() -> None:
    disk = {"a": Disk(outputs=10, passing=7), "b": Disk(outputs=1, beside=5, passing=9)}
    assert needed_disk(disk) == 2 * 11 + 5 + 9


@pytest.mark.parametrize("method", ["weights8", "weights4", "dynamic8"])
@pytest.mark.parametrize("tied", [True, False])
def test_onnx_has_as_many_bytes(method: str, tied: bool, tmp_path: Path) -> None:
    """Against the exporter, for a model whose weights are nearly all of its file."""
    from gptmill.model.config import GPT2Config
    from gptmill.model.gpt2 import GPT2
    from gptmill.tokenizer import train_byte_pairs
    from gptmill.weights.folder import save_model

    config = GPT2Config(512, 64, 2, 2, 128, tied_head=tied)
    tokenizer = train_byte_pairs(["a text"], 257)
    save_model(tmp_path / "model", GPT2(config), tokenizer, provenance={})
    export_language_model(tmp_path / "model", tmp_path / "plain", opset=20)
    export_language_model(
        tmp_path / "model", tmp_path / "small", opset=20, layers=quantized(method)
    )
    sizes = [(tmp_path / name / "model.onnx").stat().st_size for name in ("plain", "small")]
    entries = 2 * 70 * config.vocabulary_size
    assert sum(sizes) == pytest.approx(onnx_bytes(config, [method]) - entries, rel=0.03)


def test_layers_are_on_a_line(machine: Machine) -> None:
    """A model too dear to run whole is measured with one block and with two."""
    from gptmill.model.config import gpt2_config

    asked = []

    def measure(config: object) -> float:
        asked.append(config.layers)
        return 0.5 + 0.25 * config.layers

    speed = Speed(machine.runtime, machine.rates)
    assert speed._by_layers(measure, gpt2_config("355M"), 100.0, 1) == 0.5 + 0.25 * 24
    assert asked == [1, 2]


def test_speed_takes_real_steps(
    small_parameters: Parameters, small_counts: Counts, machine: Machine
) -> None:
    """Whole where it is cheap, in parts where it would not be; both are seconds."""
    work = workload(small_parameters, small_counts)
    slow = replace(machine.rates, flops=1e6)
    for rates in (machine.rates, slow):
        speed = Speed(machine.runtime, rates)
        section = small_parameters.pretrain
        shape = Shape(2, 16)
        assert speed.language_step(work.pretrained, shape, section.optimizer) > 0
        assert speed.forward(work.pretrained, 16, 64, classifier=False) > 0
        assert speed.token(work.pretrained, 2, 16) > 0
        fine = small_parameters.finetune_classifier
        assert speed.classifier_step(work.pretrained, shape, fine) > 0


def test_a_models_states_decide_against_memory_that_is_not_there(
    small_parameters: Parameters, small_counts: Counts, machine: Machine
) -> None:
    """Nothing is built then: FLOPs over the rate of a product, and the optimizer's traffic."""
    rates = replace(machine.rates, flops=1e3, free_memory=0)
    work = workload(small_parameters, small_counts)
    step = Speed(machine.runtime, rates).language_step(
        work.pretrained, Shape(1, 16), small_parameters.pretrain.optimizer
    )
    assert step > 1e4


def test_a_quick_stage_leaves_the_tracker_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert "tracking" not in groups("respond", 5.0)
    assert "tracking" in groups("respond", 61.0) and "tracking" in groups("report", 0.5)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert "tracking" in groups("respond", 5.0)


def test_the_check_of_data_ends_with_the_cost(
    quick_speed: None, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptmill.check.measure_machine", lambda runtime: machine)
    part = cost(load())
    assert "finetune_classifier" in part.text
    assert "It fits" in part.text
