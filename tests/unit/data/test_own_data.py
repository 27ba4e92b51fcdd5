"""Files as people have them, from a source in params.yaml to the raw layout of the pipeline."""

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest

from gptmill.data.classification import RAW_FILE, read_labeled
from gptmill.data.corpus import documents
from gptmill.data.instructions import prepare
from gptmill.data.own_files import LeftOut, named_splits, source_files
from gptmill.data.own_instructions import read_entry
from gptmill.data.raw import INSTRUCTIONS_FILE, make_raw
from gptmill.errors import UserError
from gptmill.sources import Embedded, Files, LabeledFiles, TextFiles, Trove

SMALL = Embedded(source="embedded", count=20, seed=1)


def texts(path: Path, text: str = "", separator: str = "<|endoftext|>", **options) -> TextFiles:
    return TextFiles(source="files", path=str(path), text=text, separator=separator,
                     **{"encoding": "", "instead": None} | options)  # fmt: skip


def labeled(path: Path, text: str = "", label: str = "") -> LabeledFiles:
    return LabeledFiles(
        source="files", path=str(path), text=text, label=label, encoding="", instead=None
    )


def entries(path: Path) -> Files:
    return Files(source="files", path=str(path), encoding="", instead=None)


def corpus_of(tmp_path: Path, section: TextFiles) -> list[tuple[str, str | None]]:
    make_raw("corpus", section, tmp_path / "raw")
    return [(document.text, document.split) for document in documents(tmp_path / "raw")]


# --- Which files


def test_a_folder_a_file_a_glob(tmp_path: Path) -> None:
    for name in (
        "a.txt",
        "B.TXT",
        "deep/c.md",
        "deep/d.pdf",
        ".hidden/e.txt",
        "README.md",
        "f.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if name == "f.txt" else "x")
    left_out = LeftOut()
    found = source_files(str(tmp_path), (".txt", ".md"), left_out)
    assert [path.name for path in found] == ["B.TXT", "a.txt", "c.md"]
    assert {reason: [Path(p).name for p in paths] for reason, paths in left_out.files.items()} == {
        "a README": ["README.md"],
        "not one of .txt .md": ["d.pdf"],
        "empty": ["f.txt"],
    }
    assert [p.name for p in source_files(str(tmp_path / "a.txt"), (".txt",), left_out)] == ["a.txt"]
    found = source_files(str(tmp_path / "**/*.md"), (".txt",), left_out)
    assert [path.name for path in found] == ["README.md", "c.md"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.txt", "valid.txt", "test.txt"], ["train", "validation", "test"]),
        (["TinyStories-train.txt", "TinyStories-valid.txt"], ["train", "validation"]),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet",
          "test-00000-of-00001.parquet"], ["train", "train", "test"]),
        (["train/a.csv", "dev/a.csv"], ["train", "validation"]),
        (["wiki.train.txt.gz", "wiki.test.txt.gz"], ["train", "test"]),
        (["train.txt"], [None]),
        (["test.txt", "contest.txt"], [None, None]),
        (["trains.txt", "testament.txt", "train.txt"], [None, None, None]),
    ],
)  # fmt: skip
def test_splits_that_names_say(names: list[str], expected: list[str | None]) -> None:
    paths = [Path("x") / name for name in names]
    assert [named_splits(paths).get(path) for path in paths] == expected


def test_what_is_missing_is_embedded_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make_raw("corpus", texts(tmp_path / "none", instead=SMALL), tmp_path / "raw")
    assert "holds no file: the embedded data are used for corpus" in capsys.readouterr().out
    assert len(list(documents(tmp_path / "raw"))) == 20
    (tmp_path / "poems").mkdir()
    (tmp_path / "poems/qing.all").write_text("text that nobody asked to leave out")
    with pytest.raises(UserError, match=r"poems holds no file that can be read, only .*qing\.all"):
        make_raw("corpus", texts(tmp_path / "poems", instead=SMALL), tmp_path / "raw")
    with pytest.raises(UserError, match=r"download\.corpus\.path: .*none holds no file"):
        make_raw("corpus", texts(tmp_path / "none"), tmp_path / "raw")


# --- Corpus


def test_plain_texts_with_a_separator(tmp_path: Path) -> None:
    text = "One day.\r\n<|endoftext|>\r\n\r\nA <|endoftext|> inside.\r\n<|endoftext|>\r\n"
    (tmp_path / "in").mkdir()
    (tmp_path / "in/stories.txt").write_bytes(text.encode())
    found = corpus_of(tmp_path, texts(tmp_path / "in"))
    assert found == [("One day.\n", None), ("A <|endoftext|> inside.\n", None)]
    whole = corpus_of(tmp_path, texts(tmp_path / "in", separator=""))
    assert whole == [(text.replace("\r\n", "\n"), None)]


def test_tables_encodings_and_splits(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "train.jsonl.gz").write_bytes(
        gzip.compress(b'{"text": "one\\u2028two"}\n{"text": "\\ud83d!"}\n{"text": null}\n')
    )
    (folder / "valid.csv").write_text("id,content\n1,three\n", encoding="utf-16")
    pd.DataFrame({"body": ["four"]}).to_parquet(folder / "test.parquet")
    assert corpus_of(tmp_path, texts(folder)) == [
        ("four", "test"),
        ("one\u2028two", "train"),
        ("\ufffd!", "train"),
        ("three", "validation"),
    ]
    told = json.loads((tmp_path / "raw/left_out.json").read_text())["records"]
    assert told["document without text"] == 1
    assert told["document with half a surrogate pair, now U+FFFD"] == 1


def test_a_table_of_an_unknown_kind_by_its_column(tmp_path: Path) -> None:
    (tmp_path / "poems.all").write_text("author\tbody\nA\t鹤湖东去\nB\t何事添凄咽\n")
    found = corpus_of(tmp_path, texts(tmp_path / "poems.all", text="body"))
    assert [text for text, _ in found] == ["鹤湖东去", "何事添凄咽"]


# --- Labeled texts


def raw_of(tmp_path: Path, section: LabeledFiles) -> list[tuple]:
    make_raw("classification", section, tmp_path / "raw")
    table = read_labeled(tmp_path / "raw" / RAW_FILE)
    return list(table.itertuples(index=False, name=None))


def test_any_labels_with_given_splits(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "train.csv").write_text('text,category\n"a, b",Card Arrival\nNA,null\n,x\nc,\n')
    (folder / "test.jsonl").write_text('{"text": "d", "category": 3.0}\n')
    assert raw_of(tmp_path, labeled(folder)) == [
        ("3", "d", "test"),
        ("Card Arrival", "a, b", "train"),
        ("null", "NA", "train"),
    ]
    told = json.loads((tmp_path / "raw/left_out.json").read_text())["records"]
    assert told["row without a text"] == told["row without a label"] == 1


def test_numbered_columns_and_kaggles_empty_ones(tmp_path: Path) -> None:
    (tmp_path / "ag.csv").write_text('"3","Stocks fall"\n"1","Peace"\n')
    assert raw_of(tmp_path, labeled(tmp_path / "ag.csv", "2", "1")) == [
        ("3", "Stocks fall"),
        ("1", "Peace"),
    ]
    (tmp_path / "spam.csv").write_bytes("v1,v2,,,\nham,Ok £5 lar,,,\n".encode("cp1252"))
    section = labeled(tmp_path / "spam.csv").model_copy(update={"encoding": "cp1252"})
    assert raw_of(tmp_path, section) == [("ham", "Ok £5 lar")]


def test_two_columns_without_usual_names(tmp_path: Path) -> None:
    rows = "".join(f"line {i},{'AB'[i % 2]}\n" for i in range(20))
    (tmp_path / "x.csv").write_text("what,which\n" + rows)
    assert raw_of(tmp_path, labeled(tmp_path / "x.csv"))[1] == ("B", "line 1")


# --- Instructions


USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
PLAIN = {"instruction": "q", "input": "", "output": "a"}
TWICE = [
    {"role": "system", "content": "s"},
    USER,
    ASSISTANT,
    {"role": "user", "content": "q2"},
    {"role": "assistant", "content": "a2"},
]
LONGER = {"instruction": "q2", "input": "", "output": "a2", "history": TWICE[:3]}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"instruction": "q", "input": "i", "output": "a"}, PLAIN | {"input": "i"}),
        ({"instruction": "q", "output": "a"}, PLAIN),
        ({"instruction": "q", "input": None, "output": 3}, PLAIN | {"output": "3"}),
        ({"instruction": "", "input": "q", "output": "a"}, PLAIN),
        ({"prompt": "q", "completion": "a"}, PLAIN),
        ({"question": "q", "answer": "a"}, PLAIN),
        ({"instruction": "q", "context": "c", "response": "a"}, PLAIN | {"input": "c"}),
        ({"messages": [USER, ASSISTANT]}, PLAIN),
        ({"messages": TWICE}, LONGER),
        ({"conversations": [HUMAN, GPT]}, PLAIN),
        ({"conversations": [GPT, HUMAN, GPT, HUMAN]}, PLAIN),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ASSISTANT]},
         PLAIN),
        ({"prompt": [USER], "completion": [ASSISTANT]}, PLAIN),
        ({"system": "s", "instruction": "q", "output": "a"},
         PLAIN | {"history": [{"role": "system", "content": "s"}]}),
        ({"messages": [USER, USER, ASSISTANT]}, PLAIN | {"instruction": "q\n\nq"}),
    ],
)  # fmt: skip
def test_layouts_of_entries(value: dict, expected: dict) -> None:
    assert read_entry(value, LeftOut()) == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"instruction": "q", "output": "  "}, "entry without an answer"),
        ({"instruction": None, "output": "a"}, "entry without a question"),
        ({"messages": [USER]}, "conversation without a question and its answer"),
        ({"messages": [USER, {"role": "tool", "content": "x"}]},
         "conversation with a role other than system, user and assistant"),
        ({"messages": [USER, {"role": "assistant", "content": None}]},
         "conversation with an empty turn"),
        ({"a": 1}, "entry of no layout that is known"),
        ("text", "entry of no layout that is known"),
    ],
)  # fmt: skip
def test_what_is_no_entry_is_counted(value: object, reason: str) -> None:
    left_out = LeftOut()
    assert read_entry(value, left_out) is None
    assert left_out.records == {reason: 1}


def test_a_lone_surrogate_of_a_chat_is_replaced_and_counted(tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "\\ud83d"}, '
        '{"role": "assistant", "content": "a"}]}\n'
    )
    make_raw("instructions", entries(tmp_path / "chat.jsonl"), tmp_path / "raw")
    assert json.loads((tmp_path / "raw" / INSTRUCTIONS_FILE).read_text()) == [
        {"instruction": "\ufffd", "input": "", "output": "a"}
    ]


def test_given_splits_of_entries_stay(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for split, count in (("train", 40), ("test", 7)):
        lines = [{"prompt": f"{split} {i}", "completion": "x"} for i in range(count)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "in" / f"{split}.jsonl").write_text(text)
    make_raw("instructions", entries(tmp_path / "in"), tmp_path / "raw")
    counts = prepare(tmp_path / "raw" / INSTRUCTIONS_FILE, tmp_path / "out",
                     train_fraction=0.8, test_fraction=0.1, seed=1)  # fmt: skip
    assert [counts[f"{s}/entries"] for s in ("train", "validation", "test")] == [36, 4, 7]
    test = json.loads((tmp_path / "out/test.json").read_text())
    assert [entry["instruction"] for entry in test] == [f"test {i}" for i in range(7)]


# --- What new users bring


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("mixed.json", '["one", {"text": "two"}]', [("one", None), ("two", None)]),
        ("columns.json", '{"text": ["a", "b"], "id": [1, 2]}', [("a", None), ("b", None)]),
        ("splits.json", '{"train": [{"text": "a"}], "dev": [{"text": "b"}]}',
         [("a", "train"), ("b", "validation")]),
        ("column.csv", "text,Split\na,TRAIN\nb,testing\n", [("a", "train"), ("b", "test")]),
    ],
)  # fmt: skip
def test_tables_of_other_forms(
    name: str, content: str, expected: list[tuple[str, str | None]], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    assert corpus_of(tmp_path, texts(tmp_path / name)) == expected


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("numbers.json", "[1, 2]", r"row 1 is no object and no text: 1"),
        ("twice.csv", "text,text\na,b\n", r"two columns are named 'text'"),
    ],
)
def test_tables_that_are_refused(name: str, content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=told):
        corpus_of(tmp_path, texts(tmp_path / name))


def labeled_rows(tmp_path: Path, **columns: str) -> list[list[str]]:
    make_raw("classification", labeled(tmp_path / "in", **columns), tmp_path / "raw")
    return read_labeled(tmp_path / "raw/texts.csv").values.tolist()


def test_labels_and_texts_of_other_types(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    values = [("a", True), (12, "x"), ("b", ["y"]), ("c", ["x", "y"]), ("d", {"n": 1}), ("e", 2.0)]
    lines = [json.dumps({"text": text, "label": label}) for text, label in values]
    (tmp_path / "in/a.jsonl").write_text("\n".join(lines))
    assert labeled_rows(tmp_path) == [["True", "a"], ["x", "12"], ["y", "b"], ["2", "e"]]
    assert "2 × row whose label is several values" in capsys.readouterr().out


def test_a_column_of_splits_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_text("text,label,split\na,x,train\nb,y,dev\nc,x,Test\n")
    assert [row[2] for row in labeled_rows(tmp_path)] == ["train", "validation", "test"]
    (tmp_path / "in/a.csv").write_text("text,label,split\na,x,left\nb,y,train\n")
    assert labeled_rows(tmp_path) == [["x", "a"], ["y", "b"]]
    assert "the column 'split' names no splits, such as 'left'" in capsys.readouterr().out


def test_a_first_message_is_no_header(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    lines = [f"{'ham' if i % 3 else 'spam'}\tmessage {i}" for i in range(12)]
    (tmp_path / "in/SMS.tsv").write_text("\n".join(lines))
    with pytest.raises(
        UserError, match=r"no header: 'spam' is a label.*text: '2' and \.label: '1'"
    ):
        labeled_rows(tmp_path)
    assert labeled_rows(tmp_path, text="2", label="1")[0] == ["spam", "message 0"]


TURNS = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
ENTRY = {"instruction": "u", "input": "", "output": "a"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (TURNS, ENTRY),
        ({"messages": json.dumps(TURNS)}, ENTRY),
        ({"prompt": "u", "chosen": TURNS, "rejected": []}, ENTRY),
        ({"instruction": "u", "output": "a", "system": "s", "history": [["q", "b"]]},
         ENTRY | {"history": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                              {"role": "assistant", "content": "b"}]}),
        ({"instruction": "u", "output": "a", "history": "earlier"}, None),
    ],
)  # fmt: skip
def test_conversations_of_other_forms(value: object, expected: dict | None) -> None:
    assert read_entry(value, LeftOut()) == expected


def test_datatrove_that_is_not_there_is_asked_for(tmp_path, monkeypatch):
    """The pipeline's own environment has none; what it does is in `make test-data`."""
    section = Trove(
        source="datatrove", version="0.0.1", path="s3://b", pattern="", format="warc", text="",
        urls=True, languages=["en"], language_threshold=0.5, quality=["c4_quality"], held_out=[],
        pii=True, minhash=True, executor="ray", workers=2, slurm_partition="", slurm_time="",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"datatrove 0\.0\.1 is asked for, and .* is installed"):
        make_raw("corpus", section, tmp_path / "raw")
    assert list(tmp_path.iterdir()) == []
