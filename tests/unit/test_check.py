"""What `gptmill data check` says is what the stages would do."""

import json
from pathlib import Path

import pytest

from gptmill.check import Part, Row, as_json, as_text, check
from gptmill.cli import main
from gptmill.params import YAML, Parameters, load, parse
from gptmill.report import build_report
from gptmill.report.data import write_page
from gptmill.sources import Files, LabeledFiles, TextFiles


@pytest.fixture
def parameters(tmp_path: Path) -> Parameters:
    (tmp_path / "text").mkdir()
    for i in range(20):
        (tmp_path / f"text/{i:02d}.txt").write_text(f"Number {i} went to the market. " * 8)
    rows = "".join(f"text {i} <b>of {i % 3}</b>,{'xyz'[i % 3]}\n" for i in range(60))
    (tmp_path / "labeled.csv").write_text("text,label\n" + rows + ",x\n")
    turns = [{"role": r, "content": f"{r} says"} for r in ("user", "assistant") * 2]
    lines = [
        json.dumps(
            {
                "messages": [
                    *turns,
                    {"role": "user", "content": f"{i}?"},
                    {"role": "assistant", "content": "!"},
                ]
            }
        )
        for i in range(39)
    ]
    lines.append(json.dumps({"prompt": "long " * 900, "completion": "!"}))
    (tmp_path / "chat.jsonl").write_text("\n".join(reversed(lines)))
    common = {"source": "files", "encoding": "", "instead": None}
    download = load().download.model_copy(
        update={
            "corpus": TextFiles(**common, path=str(tmp_path / "text"), text="", separator=""),
            "classification": LabeledFiles(
                **common, path=str(tmp_path / "labeled.csv"), text="", label=""
            ),
            "instructions": Files(**common, path=str(tmp_path / "chat.jsonl")),
        }
    )
    tokenize = load().tokenize.model_copy(update={"vocabulary_size": 300})
    return load().model_copy(update={"download": download, "tokenize": tokenize})


def test_each_data_set_is_counted_and_shown(parameters: Parameters, tmp_path: Path) -> None:
    names = ("corpus", "classification", "instructions")
    corpus, labeled, entries = check(parameters, names, tmp_path / "check")
    assert corpus.facts["train"].startswith("18 documents")
    assert corpus.facts["validation"].startswith("1 documents")
    assert labeled.facts["labels"] == "3"
    assert labeled.notes == [
        "61 rows: text from 'text', label from 'label'",
        "1 × row without a text",
    ]
    assert [row[0] for row in labeled.table[1]] == ["x", "y", "z"]
    assert sum(sum(row[1:4]) for row in labeled.table[1]) == 60
    assert set(labeled.rows[0].targets[:-1]) == {None}
    assert labeled.rows[0].targets[-1] in {"x", "y", "z"}
    assert corpus.rows[0].targets[:3] == corpus.rows[0].ids[1:4]
    assert entries.facts["left out, prompt fills the window"] == "1"
    assert entries.facts["with a history"] == "33"
    shown = entries.rows[1]
    learned = "".join(
        piece for piece, target in zip(shown.pieces[1:], shown.targets) if target is not None
    )
    assert learned.startswith("assistant says<|endoftext|>")
    assert "user says" in "".join(shown.pieces)
    assert "user says" not in learned


def test_the_page_is_whole_and_escapes_what_it_shows(
    parameters: Parameters, tmp_path: Path
) -> None:
    (_, part) = check(parameters, ("corpus", "classification"), tmp_path / "check")
    write_page(as_json([part], parameters), tmp_path / "report/data.html")
    page = (tmp_path / "report/data.html").read_text()
    assert "<b>of" not in page
    assert "&lt;" in page
    assert "http" not in page
    assert "\x1b" not in as_text(part, color=False)


def test_the_report_shows_what_was_checked(parameters: Parameters, tmp_path: Path) -> None:
    values = parameters.model_dump(mode="json")
    with (tmp_path / "params.yaml").open("w") as file:
        YAML().dump(values, file)
    build_report(tmp_path, tmp_path / "report/index.html")
    page = (tmp_path / "report/index.html").read_text()
    assert "Not looked at: `gptmill data check`" in page
    part = Part(
        "Corpus", ["4 × cut"], {"train": "5 texts"}, rows=[Row([7, 8], ["", "秋"], [8, None])]
    )
    write_page(as_json([part], parameters), tmp_path / "report/data.html")
    build_report(tmp_path, tmp_path / "report/index.html")
    page = (tmp_path / "report/index.html").read_text()
    assert "<li>4 × cut</li>" in page
    assert '<span class="learned"><b>秋</b><small>8</small><small class="masked">–' in page
    assert "other parameters" not in page
    values["tokenize"]["vocabulary_size"] += 1
    with (tmp_path / "params.yaml").open("w") as file:
        YAML().dump(values, file)
    build_report(tmp_path, tmp_path / "report/index.html")
    assert "other parameters" in (tmp_path / "report/index.html").read_text()


def test_chinese_characters_of_several_tokens_are_shown_whole(
    parameters: Parameters, tmp_path: Path
) -> None:
    poems = "".join(f"清\t诗 {i}\t秋风吹雨过，明月照山川{chr(0x4E00 + i)}。\n" for i in range(90))
    (tmp_path / "qing.all").write_text("dynasty\ttitle\tbody\n" + poems)
    values = parameters.model_dump(mode="json")
    values["download"]["corpus"] |= {"path": str(tmp_path / "qing.all"), "text": "body"}
    values["pretrain"]["prompt"] = ""
    (part,) = check(parse(values, "test"), ("corpus",), tmp_path / "check")
    assert part.notes[0] == f"{tmp_path / 'qing.all'}: 90 rows, text from 'body'"
    shown = part.rows[0]
    assert "�" not in "".join(shown.pieces)
    assert "秋风吹雨过" in "".join(shown.pieces)


def test_an_unknown_data_set_is_told() -> None:
    with pytest.raises(SystemExit, match=r"no data set spam; there are corpus, classification"):
        main(["data", "check", "spam"])
