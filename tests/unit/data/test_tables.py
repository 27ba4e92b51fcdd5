"""Tables as people write them."""

import json
from pathlib import Path

import pandas as pd
import pytest

from gptmill.data.tables import LABEL_NAMES, TEXT_NAMES, find_column, read_rows
from gptmill.errors import UserError


def rows(tmp_path: Path, name: str, text: str, **options) -> list[dict]:
    (tmp_path / name).write_bytes(text.encode())
    return read_rows(tmp_path / name, **options)


def test_delimiters_quotes_and_line_ends(tmp_path: Path) -> None:
    text = 'text;label\r\n"a;b ""c""\nd";x\r\n"bare\rCR";y\r\nu\u2028v\x0cw;z\r\n'
    assert rows(tmp_path, "a.csv", text) == [
        {"text": 'a;b "c"\nd', "label": "x"},
        {"text": "bare\rCR", "label": "y"},
        {"text": "u\u2028v\x0cw", "label": "z"},
    ]
    assert rows(tmp_path, "b.tsv", "text\tlabel\na, b\tx\nbare\rCR\ty\n") == [
        {"text": "a, b", "label": "x"},
        {"text": "bare\rCR", "label": "y"},
    ]


def test_two_unbalanced_quotation_marks_swallow_no_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    text = 'label\ttext\nham\t"Speak only\nham\tsee you\nspam\tcall" now\nham\tbye\n'
    found = rows(tmp_path, "sms.tsv", text)
    assert [row["text"] for row in found] == ['"Speak only', "see you", 'call" now', "bye"]
    assert "quotation marks are text" in capsys.readouterr().out


def test_a_swallowed_line_that_cannot_be_told_apart_is_an_error(tmp_path: Path) -> None:
    text = 'label,text\nham,"Speak, only\nham,see you\nspam,call" now, please\nham,bye\n'
    with pytest.raises(UserError, match="record 2: a quotation mark opens a cell that swallows"):
        rows(tmp_path, "sms.csv", text)


def test_texts_of_several_lines_are_no_error(tmp_path: Path) -> None:
    text = 'text,label\n"Dear A,\nI am, well\nbye",x\nshort,y\n'
    assert [r["text"] for r in rows(tmp_path, "a.csv", text)] == [
        "Dear A,\nI am, well\nbye",
        "short",
    ]


def test_a_delimiter_that_is_not_quoted_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a row has 3 cells and the header 2"):
        rows(tmp_path, "a.csv", "text,label\nhello, you,x\n")


def test_without_a_header_columns_are_numbered(tmp_path: Path) -> None:
    assert rows(tmp_path, "a.tsv", "ham\thi\nspam\twin\n", header=False) == [
        {"1": "ham", "2": "hi"},
        {"1": "spam", "2": "win"},
    ]


def test_json_of_every_form(tmp_path: Path) -> None:
    values = [{"text": "a\u2028b"}, {"text": "c"}]
    lines = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    assert rows(tmp_path, "a.jsonl", "\ufeff" + lines + "\n") == values
    assert rows(tmp_path, "b.json", json.dumps(values)) == values
    assert rows(tmp_path, "c.json", json.dumps({"version": 1, "data": values})) == values
    assert rows(tmp_path, "d.json", lines) == values
    with pytest.raises(UserError, match="line 2 is not JSON"):
        rows(tmp_path, "e.jsonl", '{"text": "a"}\n{"text": \n')
    with pytest.raises(UserError, match="no rows"):
        rows(tmp_path, "f.json", "[]")


def test_parquet_with_names_of_labels(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    data = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    data.to_parquet(str(tmp_path / "a.parquet"))
    assert read_rows(tmp_path / "a.parquet") == [
        {"text": "a", "label": "pos"},
        {"text": "b", "label": "neg"},
    ]
    pd.DataFrame({"text": ["a"], "label": [3]}).to_parquet(tmp_path / "b.parquet")
    assert read_rows(tmp_path / "b.parquet") == [{"text": "a", "label": 3}]
    (tmp_path / "c.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(UserError, match="is not Parquet"):
        read_rows(tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("v1", "v2"), ("v2", "v1")),
        (("sentence", "category"), ("sentence", "category")),
        (("Review", "Sentiment"), ("Review", "Sentiment")),
        (("id", "text", "label", "source"), ("text", "label")),
    ],
)
def test_columns_of_usual_names_are_found(columns, expected) -> None:
    row = dict.fromkeys(columns, "x")
    found = [find_column([row], "", names, "p", "f") for names in (TEXT_NAMES, LABEL_NAMES)]
    assert tuple(found) == expected


def test_doubt_about_a_column_is_told() -> None:
    with pytest.raises(UserError, match=r"name the column in p: more than one.*text, review"):
        find_column([{"text": "a", "review": "b"}], "", TEXT_NAMES, "p", "f")
    with pytest.raises(UserError, match=r"none of a usual name; there are \['a', 'b'\]"):
        find_column([{"a": "a", "b": "b"}], "", TEXT_NAMES, "p", "f")
    with pytest.raises(UserError, match=r"no column 'c' \(p\), only \['a'\]"):
        find_column([{"a": 1}], "c", TEXT_NAMES, "p", "f")
