"""The report is read back as a browser would read it, from a project made up on the spot."""

import base64
import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gptmill.errors import UserError
from gptmill.report import build_report
from gptmill.report.cards import cards
from gptmill.report.charts import Series, figure, histogram, line_chart, log_ticks, ticks
from gptmill.report.classification import section as classification_section
from gptmill.report.graph import dependencies, duration, layers, stages
from gptmill.report.read import Results
from gptmill.report.summary import write_summary

VOID = {"meta", "link", "br", "img", "input", "hr", "rect", "line", "path", "circle"}


class Page(HTMLParser):
    """Text, attributes, and whether every element that opens closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.faults.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def write_csv(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


ABOUT = {"started": "2026-01-02T03:04:05+00:00", "host": "h", "device": "cpu", "threads": "2"}


def write_project(root: Path) -> None:
    """Results of a small pipeline: every file that the report reads."""
    (root / "params.yaml").write_text(
        "profile: calibration\npretrain: {steps: 200, optimizer: {learning_rate: 1e-3}}\n"
        "export_onnx: {tolerance: 1.0e-3}\n"
    )
    (root / "dvc.yaml").write_text(
        "stages:\n"
        "  code: {cmd: x, outs: [code]}\n"
        "  download:\n    foreach: [corpus, classification]\n"
        "    do: {cmd: x, desc: 'Fetch ${item}', deps: [code/d.txt], outs: ['raw/${item}']}\n"
        "  tokenize: {cmd: x, deps: [raw/corpus], outs: [tokens]}\n"
        "  pretrain: {cmd: x, deps: [tokens], outs: [model], metrics: [{m.json: {cache: false}}]}\n"
        "  finetune: {cmd: x, deps: [model, raw/classification, tokens], outs: [classifier]}\n"
    )
    steps = range(10, 210, 10)
    curve = {step: 1.0 + 6 * math.exp(-step / 30) for step in steps}
    for stage in ("pretrain", "finetune_classifier", "finetune_instructions"):
        write_csv(
            root / f"plots/{stage}/training.csv",
            [
                {"step": s, "tokens": s, "train/loss": v, "learning_rate": 1e-3, "gradient_norm": v}
                for s, v in curve.items()
            ],
        )
        write_csv(
            root / f"plots/{stage}/evaluation.csv",
            [
                {"step": s, "validation/loss": v + 0.1, "validation/accuracy": 0.5}
                for s, v in list(curve.items())[::4]
            ],
        )
    write(
        root / "plots/pretrain/samples.json",
        [{"step": 10 * i, "text": f"Once <b>{i}</b>"} for i in range(20)],
    )
    write_csv(
        root / "plots/finetune_classifier/confusion.csv",
        [
            {"split": "test", "label": label, "predicted": predicted, "texts": texts}
            for label, predicted, texts in [
                ("ham", "ham", 7), ("ham", "spam", 2), ("spam", "ham", 1), ("spam", "spam", 4),
            ]
        ],
    )  # fmt: skip
    write_csv(
        root / "plots/finetune_classifier/classes.csv",
        [
            {"split": "test", "label": label, "precision": p, "recall": r, "f1": f, "texts": texts}
            for label, p, r, f, texts in [("ham", 7 / 8, 7 / 9, 14 / 17, 9),
                                          ("spam", 4 / 6, 4 / 5, 8 / 11, 5)]
        ],
    )  # fmt: skip
    write_csv(
        root / "plots/finetune_classifier/precision_recall.csv",
        [
            {"model": model, "recall": r / 10, "precision": 1 - r / 20}
            for model in ("GPT-2", "TF-IDF")
            for r in range(11)
        ],
    )
    scores = [
        {"instruction": f"Say {i}.",
         "input": "", "output": str(i), "response": said, "score": 5.0 * i}
        for i, said in enumerate(["<script>no"] * 20)
    ]  # fmt: skip
    write(root / "data/judgements/scores.json", [*scores, {**scores[0], "score": None}])
    metrics = {
        "pretrain": {
            "validation/loss": 1.1, "validation/perplexity": 3.0, "validation/bits_per_byte": 0.4,
            "validation/floor_loss": 1.05,
        },
        "finetune_classifier": {
            "test/accuracy": 0.90, "test/macro_f1": 0.89, "baseline/test/accuracy": 0.93,
            "test/best_possible_accuracy": 0.95,
        },
        "respond": {"test/exact_match": 0.81, "test/chrf": 90.0, "stop_rate": 1.0},
        "export_onnx": {
            "classifier/max_abs_difference": 2e-5,
            "language_model/max_abs_difference": 1e-5, "language_model/greedy_agreement": 1.0,
            "classifier-weights8/max_abs_difference": 0.2,
            "classifier-weights8/accuracy_loss": 0.001, "classifier-weights8/published": 1,
            "language_model-weights4/max_abs_difference": 0.3,
            "language_model-weights4/greedy_agreement": 0.93,
            "language_model-weights4/perplexity_increase": 0.0111,
            "language_model-weights4/published": 0,
        },
        "judge": {
            "score/mean": 47.5, "score/low": 40.0, "score/high": 55.0, "coverage": 0.95,
            "backend": "reference", "family/sum/score": 20.0,
        },
    }  # fmt: skip
    for stage, values in metrics.items():
        write(root / f"metrics/{stage}.json", values)
    for stage, seconds in (("download_corpus", 1.0), ("pretrain", 100.0)):
        write(
            root / f"timings/{stage}.json",
            {"seconds": seconds, "peak_memory_bytes": 2**20, "tokens_per_second": 5e3, **ABOUT},
        )
    rates = [{"step": s, "name": "tokens_per_second", "value": s - 10} for s in steps]
    write_csv(root / "timings/pretrain.csv", rates)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_project(tmp_path)
    return tmp_path


def page_of(root: Path) -> Page:
    build_report(root, root / "report/index.html")
    return Page((root / "report/index.html").read_text())


def words(page: Page) -> str:
    return " ".join(" ".join(page.text).split())


def test_the_page_is_whole_and_loads_nothing(project: Path) -> None:
    page = page_of(project)
    assert not page.faults and not page.open
    addresses = page.values("src") + page.values("href") + page.values("xlink:href")
    assert all(address.startswith(("#", "data:")) for address in addresses)
    text = (project / "report/index.html").read_text()
    assert not re.search(r"https?://|url\(|@import|<script", text)


def test_every_drawing_has_an_alternative_text(project: Path) -> None:
    page = page_of(project)
    drawings = sum(tag == "svg" and name == "role" for tag, name, _ in page.attributes)
    alternatives = [v for tag, n, v in page.attributes if tag == "svg" and n == "aria-label"]
    assert drawings == len(alternatives) == 2 + 5 + 4 + 4 + 1 + 1
    assert all(len(text) > 20 for text in alternatives)
    assert any("tokens from 10 at 20 to 190 at 200" in a for a in alternatives)
    assert any("training from 5.299 at 10 to 1.008 at 200; validation" in a for a in alternatives)


def test_the_summary_has_the_figures_and_no_wall_times(project: Path) -> None:
    """DVC hashes it: the same results give the same bytes, however long they took."""
    write_summary(project, project / "report/summary.md")
    text = (project / "report/summary.md").read_text()
    assert "| Language model | 3.00 |" in text
    assert "the target is 10%. **On target.** |" in text
    assert "**Short of target.**" in text
    assert all(line.count("|") == 4 for line in text.splitlines()[2:])
    write(project / "timings/pretrain.json", {"seconds": 7.0, "peak_memory_bytes": 1, **ABOUT})
    write_summary(project, project / "report/summary.md")
    assert (project / "report/summary.md").read_text() == text


def test_figures_stand_against_what_they_compare_with(project: Path) -> None:
    text = words(page_of(project))
    assert "4.8% over the entropy of the source" in text
    assert "on target" in text and "short of target" in text  # 90% is 5 points short of 95%
    assert "best possible 95.0%" in text
    assert "no language model judged (backend reference); 95% interval 40.0 to 55.0" in text
    assert re.search(r"20 answers scored ?, 1 not scored by the backend reference", text)
    assert "learns well" in text
    assert "pretrain.optimizer.learning_rate 0.001" in text
    assert "make repro" in text


def test_a_real_judge_is_named_and_its_failed_controls_too(project: Path) -> None:
    values = json.loads((project / "metrics/judge.json").read_text())
    values |= {"backend": "ollama", "judge/model": "llama3", "controls/passed": False}
    write(project / "metrics/judge.json", values)
    text = words(page_of(project))
    assert "by llama3 through ollama" in text
    assert "The judge FAILED its controls" in text


def test_text_of_models_is_text(project: Path) -> None:
    page = page_of(project)
    assert "script" not in {tag for tag, _, _ in page.attributes} | set(page.open)
    assert "Once <b>0</b>" in words(page)
    assert "<script>no" in words(page)


def test_samples_are_thinned_and_keep_their_ends(project: Path) -> None:
    steps = re.findall(r"step (\d+) Once", words(page_of(project)))
    assert len(steps) == 8
    assert (steps[0], steps[-1]) == ("0", "190")


def test_the_worst_come_first_and_unscored_before_them(project: Path) -> None:
    text = words(page_of(project)).split("The 10 worst")[1]
    shown = re.findall(r"(\d+|–) (?:of 100|unscored) Say (\d+)", text)
    assert shown == [("–", "0"), *((str(5 * i), str(i)) for i in range(9))]


def test_what_is_absent_is_said_and_not_invented(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    text = words(page)
    assert not page.faults
    assert text.count("is not there: its stage has not run") == 8
    assert "metrics/pretrain.json is not there" in text
    assert "plots/finetune_classifier/training.csv is not there" in text
    assert "plots/study/findings.json is not there" in text


def test_a_broken_file_is_named(project: Path) -> None:
    (project / "metrics/judge.json").write_text("{")
    with pytest.raises(UserError, match=r"judge\.json is not valid JSON"):
        build_report(project, project / "report/index.html")


def test_the_course_shows_each_finding_under_its_chapter(project: Path) -> None:
    findings = [
        {"name": "decoding", "chapter": 5, "title": "Ways to choose", "caption": "Greedy <b>"},
        {"name": "attention_ladder", "chapter": 3, "title": "Rungs", "caption": "Five of them"},
    ]
    write(project / "plots/study/findings.json", findings)
    for finding in findings:
        (project / f"plots/study/{finding['name']}.png").write_bytes(
            b"PNG " + finding["name"].encode()
        )
    rung = {"rung": "causal head", "parameters": 12288, "max_difference": 1.2e-07}
    write_csv(project / "plots/study/attention_ladder.csv", [rung])
    write(
        project / "timings/study.json",
        {"seconds": 1.0, "peak_memory_bytes": 2**20, "ladder/causal_head_seconds": 0.00042,
         "started": "2026-01-02T03:04:05+00:00"},
    )  # fmt: skip
    page = page_of(project)
    pictures = [v for tag, name, v in page.attributes if (tag, name) == ("img", "src")]
    shown = [base64.b64decode(v.removeprefix("data:image/png;base64,")) for v in pictures]
    assert shown == [b"PNG attention_ladder", b"PNG decoding"]
    assert "Attention Rungs Five of them. rung parameters difference time" in words(page)
    assert "causal head 12,288 1.2e-7 0.42 ms" in words(page)
    assert "Greedy <b>" in words(page)


def test_confusion_counts_truth_by_row(project: Path) -> None:
    found = classification_section(Results(project))
    (matrix,) = found.matrices
    assert matrix.labels == ["ham", "spam"]
    assert matrix.counts == [[7, 2], [1, 4]]
    assert matrix.shares[1] == [0.2, 0.8]
    assert [row["label"] for row in found.classes] == ["spam", "ham"]  # the lowest F1 first


def test_many_labels_are_a_list_of_what_is_confused(project: Path) -> None:
    labels = [f"<{i}>" for i in range(20)]
    folder = project / "plots/finetune_classifier"
    write_csv(
        folder / "classes.csv",
        [
            {"split": "test", "label": label, "precision": 1, "recall": 1, "f1": 1, "texts": 9}
            for label in labels
        ],
    )
    write_csv(
        folder / "confusion.csv",
        [{"split": "test", "label": "<3>", "predicted": "<4>", "texts": 2},
         {"split": "test", "label": "<4>", "predicted": "<4>", "texts": 9},
         {"split": "test", "label": "<5>", "predicted": "<6>", "texts": 7}],
    )  # fmt: skip
    found = classification_section(Results(project))
    assert not found.matrices
    assert found.confused == [("<5>", "<6>", 7), ("<3>", "<4>", 2)]
    build_report(project, project / "report/index.html")
    page = Page((project / "report/index.html").read_text())
    assert "<5> <6> 7" in words(page)
    assert "Each of 20 labels" in words(page)


def test_the_graph_follows_paths_and_leaves_out_what_is_implied(project: Path) -> None:
    needs = dependencies(stages(Results(project).pipeline))
    assert needs == {
        "download@corpus": set(),
        "download@classification": set(),
        "tokenize": {"download@corpus"},
        "pretrain": {"tokenize"},
        "finetune": {"pretrain", "download@classification"},
    }
    rows = layers(needs)
    assert [sorted(row) for row in rows] == [
        ["download@classification", "download@corpus"],
        ["tokenize", "|download@classification"],
        ["pretrain", "|download@classification"],
        ["finetune"],
    ]


def test_the_graph_shows_times_and_their_absence(project: Path) -> None:
    page = page_of(project)
    graph = next(
        v for _, n, v in page.attributes if n == "aria-label" and v.startswith("Pipeline.")
    )
    assert (
        "pretrain after tokenize, 1 min 40 s; finetune after download@classification, pretrain"
        in graph
    )
    assert "no timing" in words(page)


def test_the_report_says_of_each_stage_what_dvc_says_of_it(project: Path) -> None:
    assert "download Fetch corpus, classification" in words(page_of(project))


def test_axes_have_round_numbers() -> None:
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(0.93, 1.01) == pytest.approx([0.94, 0.96, 0.98, 1.0])
    assert log_ticks(0.9, 8) == [1, 1.5, 2, 3, 4, 5, 7]
    assert log_ticks(4.8, 6.9) == [5, 5.5, 6, 6.5]
    assert log_ticks(1, 100) == [1, 2, 5, 10, 20, 50, 100]


def test_figures_are_written_short() -> None:
    shown = [figure(v) for v in (0, 0.00025, 1e-05, 0.91708, 12345, 2_500_000)]
    assert shown == ["0", "2.5e-4", "1e-5", "0.9171", "12.3k", "2.5M"]
    assert [duration(s) for s in (1.24, 59, 171, 7260)] == [
        "1.2 s",
        "59 s",
        "2 min 51 s",
        "2 h 01 min",
    ]


def test_curves_survive_what_is_not_a_number() -> None:
    chart = line_chart("Loss", [Series("a", [(0, 2.0), (1, math.nan), (2, 1.0)])], log=True)
    assert "nan" not in chart.svg
    assert chart.svg.count("L") == 1 + chart.svg.count("Loss")


def test_a_constant_and_a_single_point_draw() -> None:
    for points in ([(0, 1.0), (10, 1.0)], [(0, 0.0)], [(5, -1.0)]):
        assert "nan" not in line_chart("c", [Series("a", points)]).svg


def test_histograms_count_their_upper_limit() -> None:
    chart = histogram("scores", [0.0, 4.9, 5.0, 100.0], 20, (0.0, 100.0))
    assert "<title>0–5: 2</title>" in chart.svg
    assert "<title>95–100: 1</title>" in chart.svg


def test_quantized_models_stand_apart_from_parity(project: Path) -> None:
    parity, quantized = (
        card
        for card in cards(Results(project))
        if card.title in ("ONNX parity", "Quantized models")
    )
    assert (parity.value, parity.state) == ("2.0e-05", "good")
    assert "100% of greedy tokens" in parity.note
    assert quantized.value == "1 of 2"
    assert [(bar.name, bar.value) for bar in quantized.bars] == [
        ("classifier-weights8", "-0.10 points"),
        ("language model-weights4, not published", "+1.11%"),
    ]


def test_the_registrys_decisions_are_shown_with_their_reasons(project: Path) -> None:
    decision = {"version": 3, "champion": 2, "why": "accuracy 0.8 is not better than 0.9"}
    write(project / ".state/registry.json", {"gptmill-classifier": decision})
    (card,) = (card for card in cards(Results(project)) if card.title == "Registry")
    assert card.value == "0 of 1 champions"
    assert "version 3, champion 2 (accuracy 0.8 is not better than 0.9)" in card.note
