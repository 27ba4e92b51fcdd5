"""Messages: read as written, split without leaks, weighed and bounded as computed by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.utils.class_weight import compute_class_weight

from gptmill.data.fetch import fetch
from gptmill.data.spam import (
    SPLITS,
    best_possible_accuracy,
    class_weights,
    prepare,
    read_messages,
    spam_share,
    write_embedded_messages,
    write_sms_messages,
)
from gptmill.errors import UserError
from gptmill.files import sha256_tree
from tests.unit.data.test_fetch import MANIFESTS, MIRROR, needs_mirror


def write(path, rows, columns=("label", "text")):
    pd.DataFrame(rows, columns=list(columns)).to_csv(path, index=False)
    return path


def messages(count: int = 200, spam_every: int = 5):
    return [("spam" if i % spam_every == 0 else "ham", f"message {i}") for i in range(count)]


def run(raw, folder, balance="natural", train=0.7, validation=0.1, seed=1):
    return prepare(
        raw,
        folder,
        balance=balance,
        train_fraction=train,
        validation_fraction=validation,
        seed=seed,
    )


def parts_of(folder):
    return {split: pd.read_csv(folder / f"{split}.csv", keep_default_na=False) for split in SPLITS}


# --- Raw


def test_quotation_marks_and_missing_value_words_are_text(tmp_path):
    lines = ['ham\t"Speak only, he said', "ham\tNA", 'spam\tcall" now', "ham\tnull", "ham\t a\\b "]
    (tmp_path / "SMSSpamCollection").write_text("\n".join(lines) + "\n")
    write_sms_messages(tmp_path / "SMSSpamCollection", tmp_path / "messages.csv")
    table = read_messages(tmp_path / "messages.csv")
    assert [f"{row.label}\t{row.text}" for row in table.itertuples()] == lines


def test_a_line_without_a_label_is_told(tmp_path):
    (tmp_path / "c").write_text("ham\tx\nno label here\n")
    with pytest.raises(UserError, match="c, line 2"):
        write_sms_messages(tmp_path / "c", tmp_path / "messages.csv")


def test_embedded_messages_keep_their_ratio_to_the_last_digit(tmp_path):
    made = [
        SimpleNamespace(label="ham", text='a "b", c', log_likelihood_ratio=-1 / 3),
        SimpleNamespace(label="spam", text="x", log_likelihood_ratio=2e-17),
    ]
    write_embedded_messages(made, tmp_path / "messages.csv")
    table = read_messages(tmp_path / "messages.csv")
    assert table["log_likelihood_ratio"].tolist() == [-1 / 3, 2e-17]
    assert table["text"].tolist() == ['a "b", c', "x"]


@pytest.mark.parametrize(
    ("rows", "columns", "told"),
    [
        ([("ham", "x")], ("class", "text"), r"no column \['label'\], only \['class', 'text'\]"),
        ([("ham", "x"), ("Spam", "y")], ("label", "text"), r"row 2 .*'Spam'.*known: ham, spam"),
        ([("ham", "x"), ("spam", "  ")], ("label", "text"), r"row 2 .*text.*empty"),
        ([("ham", "x", "often")], ("label", "text", "log_likelihood_ratio"), "not a finite number"),
    ],
)
def test_a_wrong_csv_is_told_with_its_row(tmp_path, rows, columns, told):
    path = write(tmp_path / "messages.csv", rows, columns)
    with pytest.raises(UserError, match=told):
        read_messages(path)


def test_no_file_and_no_text_file_are_told(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_messages(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a CSV file"):
        read_messages(tmp_path / "binary.csv")
    (tmp_path / "empty.csv").write_bytes(b"")
    with pytest.raises(UserError, match="not a CSV file"):
        read_messages(tmp_path / "empty.csv")


# --- Preparation


def test_natural_keeps_every_message_once(tmp_path):
    raw = write(tmp_path / "raw.csv", messages())
    metrics = run(raw, tmp_path / "out")
    parts = parts_of(tmp_path / "out")
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 140,
        "validation": 20,
        "test": 40,
    }
    found = {(("ham", "spam")[row.label], row.text) for row in pd.concat(parts).itertuples()}
    assert found == set(messages())
    for split, part in parts.items():
        assert metrics[f"{split}/rows"] == len(part)
        assert metrics[f"{split}/spam"] == part["label"].sum()


def test_undersampling_equalises_the_labels(tmp_path):
    raw = write(tmp_path / "raw.csv", messages())
    metrics = run(raw, tmp_path / "out", balance="undersample")
    table = pd.concat(parts_of(tmp_path / "out"))
    assert table["label"].value_counts().to_dict() == {0: 40, 1: 40}
    assert set(table[table["label"] == 1]["text"]) == {
        t for name, t in messages() if name == "spam"
    }
    assert metrics["rows"] == 80


def test_texts_that_differ_in_case_and_space_stay_together(tmp_path):
    rows = messages(600)
    rows += [("ham", f"Same  TEXT {i % 20}") for i in range(60)]
    rows += [("ham", f"same text {i}") for i in range(20)]
    raw = write(tmp_path / "raw.csv", rows)
    for seed in range(5):
        metrics = run(raw, tmp_path / "out", seed=seed)
        keys = [set(part["text"].str.lower().str.split().str.join(" ")) for part in
                parts_of(tmp_path / "out").values()]  # fmt: skip
        assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
        assert metrics["duplicates/kept_together"] == 60
        assert metrics["rows"] == len(rows)
        assert abs(metrics["train/rows"] - 476) <= 3


def test_duplicates_are_not_gathered_in_one_split(tmp_path):
    rows = messages(300, 3) + [(label, text) for label, text in messages(300, 3)]
    run(write(tmp_path / "raw.csv", rows), tmp_path / "out")
    shares = {split: len(part) / 600 for split, part in parts_of(tmp_path / "out").items()}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.004)


def test_the_same_seed_gives_the_same_bytes_another_does_not(tmp_path):
    raw = write(tmp_path / "raw.csv", messages(1000))
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(raw, tmp_path / name, balance="undersample", seed=seed)
    assert sha256_tree(tmp_path / "a") == sha256_tree(tmp_path / "b")
    assert sha256_tree(tmp_path / "a") != sha256_tree(tmp_path / "c")


def test_fractions_and_labels_that_leave_a_split_without_are_told(tmp_path):
    raw = write(tmp_path / "raw.csv", messages(10))
    with pytest.raises(UserError, match="leave no test"):
        run(raw, tmp_path / "out", train=0.9, validation=0.1)
    with pytest.raises(UserError, match="has no"):
        run(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_class_weights_are_those_of_scikit_learn(tmp_path):
    raw = write(tmp_path / "raw.csv", messages())
    metrics = run(raw, tmp_path / "out")
    labels = parts_of(tmp_path / "out")["train"]["label"].to_numpy()
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels)
    assert class_weights(labels) == pytest.approx(expected.tolist())
    assert metrics["class_weight/spam"] == pytest.approx(expected[1])
    assert spam_share(tmp_path / "out" / "train.csv") == labels.mean()


# --- The best possible accuracy


def test_best_possible_accuracy_by_hand(tmp_path):
    columns = ("label", "text", "log_likelihood_ratio")
    rows = [(0, "a", -2.0), (0, "b", 0.5), (1, "c", 0.4), (1, "d", 3.0), (0, "e", 1.5)]
    path = write(tmp_path / "test.csv", rows, columns)
    assert best_possible_accuracy(path, 0.5) == 3 / 5  # b and e look like spam
    assert best_possible_accuracy(path, 1 / (1 + math.e)) == 3 / 5  # threshold 1: c and e wrong
    assert best_possible_accuracy(path, 1 / (1 + math.e**2)) == 4 / 5  # threshold 2: c alone
    assert best_possible_accuracy(write(tmp_path / "real.csv", [(0, "a")]), 0.5) is None
    with pytest.raises(ValueError, match="not between 0 and 1"):
        best_possible_accuracy(path, 0.0)


# --- The real collection


@needs_mirror
def test_the_real_collection_has_5574_messages(tmp_path):
    files = fetch(MANIFESTS / "sms_spam.json", tmp_path / "zip", cache=tmp_path / "cache",
                  mirror=str(MIRROR), offline=True)  # fmt: skip
    write_sms_messages(files[0], tmp_path / "messages.csv")
    table = read_messages(tmp_path / "messages.csv")
    assert table["label"].value_counts().to_dict() == {"ham": 4827, "spam": 747}
    # The 5,572 of many accounts is what pandas finds when it takes the quotation marks for CSV's.
    quoted = pd.read_csv(files[0], sep="\t", header=None, names=["label", "text"])
    assert quoted["label"].value_counts().to_dict() == {"ham": 4825, "spam": 747}
    assert quoted["text"].str.contains("\nham\t").any()
    metrics = run(tmp_path / "messages.csv", tmp_path / "out", balance="undersample")
    assert [metrics[f"{split}/rows"] for split in SPLITS] == [1045, 149, 300]  # as in the book
