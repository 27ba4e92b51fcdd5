"""What `gptmill data check` says is what the stages would do."""

import json
from pathlib import Path

import pytest

from gptmill.check import as_page, as_text, check
from gptmill.cli import main
from gptmill.params import Parameters, load
from gptmill.sources import Files, LabelledFiles, TextFiles


@pytest.fixture
def parameters(tmp_path: Path) -> Parameters:
    (tmp_path / "text").mkdir()
    for i in range(20):
        (tmp_path / f"text/{i:02d}.txt").write_text(f"Number {i} went to the market. " * 8)
    rows = "".join(f"text {i} <b>of {i % 3}</b>,{'xyz'[i % 3]}\n" for i in range(60))
    (tmp_path / "labelled.csv").write_text("text,label\n" + rows + ",x\n")
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
            "classification": LabelledFiles(
                **common, path=str(tmp_path / "labelled.csv"), text="", label=""
            ),
            "instructions": Files(**common, path=str(tmp_path / "chat.jsonl")),
        }
    )
    tokenize = load().tokenize.model_copy(update={"vocabulary_size": 300})
    return load().model_copy(update={"download": download, "tokenize": tokenize})


def test_each_data_set_is_counted_and_shown(parameters: Parameters, tmp_path: Path) -> None:
    names = ("corpus", "classification", "instructions")
    corpus, labelled, entries = check(parameters, names, tmp_path / "check")
    assert corpus.facts["train"].startswith("18 documents")
    assert corpus.facts["validation"].startswith("1 documents")
    assert labelled.facts["labels"] == "3"
    assert labelled.facts["row without a text"] == "1"
    assert [row[0] for row in labelled.table[1]] == ["x", "y", "z"]
    assert sum(sum(row[1:4]) for row in labelled.table[1]) == 60
    assert labelled.rows[0].learned == [False] * (len(labelled.rows[0].ids) - 1) + [True]
    assert entries.facts["left out, prompt fills the window"] == "1"
    assert entries.facts["with a history"] == "33"
    shown = entries.rows[1]
    learned = "".join(p for p, known in zip(shown.pieces, shown.learned) if known)
    assert learned.startswith("assistant says<|endoftext|>")
    assert "user says" in "".join(shown.pieces)
    assert "user says" not in learned


def test_the_page_is_whole_and_escapes_what_it_shows(
    parameters: Parameters, tmp_path: Path
) -> None:
    (_, part) = check(parameters, ("corpus", "classification"), tmp_path / "check")
    page = as_page([part])
    assert "<b>of" not in page
    assert "&lt;" in page
    assert "http" not in page
    assert "\x1b" not in as_text(part, colour=False)


def test_an_unknown_data_set_is_told() -> None:
    with pytest.raises(SystemExit, match=r"no data set spam; there are corpus, classification"):
        main(["data", "check", "spam"])
