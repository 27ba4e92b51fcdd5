"""Labeled texts: read as written, split without leaks, weighed and bounded as computed by hand."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.utils.class_weight import compute_class_weight

from gptmill.data.classification import (
    RAW_FILE,
    SPLITS,
    best_possible_accuracy,
    class_table,
    class_weights,
    label_order,
    prepare,
    read_labeled,
    read_split,
    write_embedded_messages,
    write_labeled,
    write_sms_messages,
)
from gptmill.errors import UserError
from gptmill.fetch.download import fetch
from gptmill.files import sha256_tree
from tests.support.mirror import MANIFESTS, MIRROR, needs_mirror


def write(path, rows, columns=("label", "text")):
    pd.DataFrame(rows, columns=list(columns)).to_csv(path, index=False)
    return path


def messages(count: int = 200, spam_every: int = 5):
    return [("spam" if i % spam_every == 0 else "ham", f"message {i}") for i in range(count)]


def run(raw, folder, balance="natural", stratified=False, train=0.7, validation=0.1, seed=1):
    return prepare(
        raw,
        folder,
        balance=balance,
        stratified=stratified,
        train_fraction=train,
        validation_fraction=validation,
        seed=seed,
    )


def parts_of(folder):
    return {split: pd.read_csv(folder / f"{split}.csv", dtype=str, keep_default_na=False)
            for split in SPLITS}  # fmt: skip


def keys_of(folder):
    return [set(part["text"].str.lower().str.split().str.join(" "))
            for part in parts_of(folder).values()]  # fmt: skip


# --- Raw


def test_quotation_marks_and_missing_value_words_are_text(tmp_path):
    lines = ['ham\t"Speak only, he said', "ham\tNA", 'spam\tcall" now', "ham\tnull", "ham\t a\\b "]
    (tmp_path / "SMSSpamCollection").write_text("\n".join(lines) + "\n")
    write_sms_messages(tmp_path / "SMSSpamCollection", tmp_path / RAW_FILE)
    table = read_labeled(tmp_path / RAW_FILE)
    assert [f"{row.label}\t{row.text}" for row in table.itertuples()] == lines


def test_line_ends_of_every_kind_inside_a_text_survive(tmp_path):
    texts = ["a\rb", "a\r\nb", "a\nb", "a\u2028b", "a\x0cb\x85c", '"a"\rb']
    table = pd.DataFrame({"label": ["x"] * len(texts), "text": texts})
    write_labeled(table, tmp_path / RAW_FILE)
    assert list(read_labeled(tmp_path / RAW_FILE)["text"]) == texts


def test_a_line_without_a_label_is_told(tmp_path):
    (tmp_path / "c").write_text("ham\tx\nno label here\n")
    with pytest.raises(UserError, match="c, line 2"):
        write_sms_messages(tmp_path / "c", tmp_path / RAW_FILE)


def test_embedded_messages_keep_their_ratio_to_the_last_digit(tmp_path):
    made = [
        SimpleNamespace(label="ham", text='a "b", c', log_likelihood_ratio=-1 / 3),
        SimpleNamespace(label="spam", text="x", log_likelihood_ratio=2e-17),
    ]
    write_embedded_messages(made, tmp_path / RAW_FILE)
    table = read_labeled(tmp_path / RAW_FILE)
    assert table["log_likelihood_ratio"].tolist() == [-1 / 3, 2e-17]
    assert table["text"].tolist() == ['a "b", c', "x"]


@pytest.mark.parametrize(
    ("rows", "columns", "told"),
    [
        ([("ham", "x")], ("class", "text"), r"no column \['label'\], only \['class', 'text'\]"),
        ([("ham", "x"), (" ", "y")], ("label", "text"), r"row 2 .*label.*empty"),
        ([("ham", "x"), ("spam", "  ")], ("label", "text"), r"row 2 .*text.*empty"),
        ([("ham", "x", "often")], ("label", "text", "log_likelihood_ratio"), "not a finite number"),
        ([("ham", "x", "dev")], ("label", "text", "split"), "row 1 .*'dev'.*known: train"),
    ],
)
def test_a_wrong_csv_is_told_with_its_row(tmp_path, rows, columns, told):
    path = write(tmp_path / RAW_FILE, rows, columns)
    with pytest.raises(UserError, match=told):
        read_labeled(path)


def test_no_file_and_no_text_file_are_told(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_labeled(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a CSV file"):
        read_labeled(tmp_path / "binary.csv")
    (tmp_path / "empty.csv").write_bytes(b"")
    with pytest.raises(UserError, match="not a CSV file"):
        read_labeled(tmp_path / "empty.csv")


def test_labels_in_the_order_of_their_kind():
    assert label_order(["10", "9", "-1", "2.5"]) == ["-1", "2.5", "9", "10"]
    assert label_order(["b", "10", "B", "9"]) == ["10", "9", "B", "b"]


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
    found = {(row.label, row.text) for row in pd.concat(parts).itertuples()}
    assert found == set(messages())
    columns, rows = class_table(tmp_path / "out")
    assert columns == ["label", "train", "validation", "test", "class_weight"]
    for number, (split, part) in enumerate(parts.items(), start=1):
        assert metrics[f"{split}/rows"] == len(part)
        assert (
            metrics[f"{split}/rarest_class"] == (part["label"] == "spam").sum() == rows[1][number]
        )
        assert metrics[f"{split}/commonest_class"] == (part["label"] == "ham").sum()


def test_undersampling_equalises_the_labels(tmp_path):
    raw = write(tmp_path / "raw.csv", messages())
    metrics = run(raw, tmp_path / "out", balance="undersample")
    table = pd.concat(parts_of(tmp_path / "out"))
    assert table["label"].value_counts().to_dict() == {"ham": 40, "spam": 40}
    assert set(table[table["label"] == "spam"]["text"]) == {
        t for name, t in messages() if name == "spam"
    }
    assert metrics["rows"] == 80


def test_any_labels_keep_their_names_and_shares(tmp_path):
    rows = [(str(3 * label), f"text {label} {i}") for label in range(5) for i in range(20 + label)]
    run(write(tmp_path / "raw.csv", rows), tmp_path / "out", stratified=True)
    assert json.loads((tmp_path / "out/labels.json").read_text()) == ["0", "3", "6", "9", "12"]
    for split, share in zip(SPLITS, (0.7, 0.1, 0.2)):
        counts = np.bincount(read_split(tmp_path / "out", split)["label"], minlength=5)
        assert (abs(counts - share * np.arange(20, 25)) < 2).all(), split


def test_a_stratified_split_has_every_label_a_random_one_may_not(tmp_path):
    rows = messages(300, 100)  # three of spam
    raw = write(tmp_path / "raw.csv", rows)
    for seed in range(4):
        run(raw, tmp_path / "out", stratified=True, seed=seed)
        for split in SPLITS:
            assert (read_split(tmp_path / "out", split)["label"] == 1).sum() == 1
    with pytest.raises(UserError, match=r"has no 'spam'.*so rare a label"):
        run(raw, tmp_path / "other")


def test_texts_that_differ_in_case_and_space_stay_together(tmp_path):
    rows = messages(600)
    rows += [("ham", f"Same  TEXT {i % 20}") for i in range(60)]
    rows += [("ham", f"same text {i}") for i in range(20)]
    raw = write(tmp_path / "raw.csv", rows)
    for seed in range(5):
        metrics = run(raw, tmp_path / "out", seed=seed, stratified=seed > 2)
        keys = keys_of(tmp_path / "out")
        assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
        assert metrics["duplicates/kept_together"] == 60
        assert metrics["duplicates/other_label"] == 0
        assert metrics["rows"] == len(rows)
        assert abs(metrics["train/rows"] - 476) <= 3


def test_a_text_with_two_labels_is_on_one_side_and_counted(tmp_path):
    rows = messages(200) + [("spam", f"Message {i}") for i in range(1, 5)]
    metrics = run(write(tmp_path / "raw.csv", rows), tmp_path / "out", stratified=True)
    keys = keys_of(tmp_path / "out")
    assert sum(map(len, keys)) == len(set().union(*keys)) == 200
    assert metrics["duplicates/other_label"] == 4


def test_duplicates_are_not_gathered_in_one_split(tmp_path):
    rows = messages(300, 3) + [(label, text) for label, text in messages(300, 3)]
    run(write(tmp_path / "raw.csv", rows), tmp_path / "out")
    shares = {split: len(part) / 600 for split, part in parts_of(tmp_path / "out").items()}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.004)


@pytest.mark.parametrize("balance", ["natural", "undersample"])
def test_a_given_test_split_is_kept_and_what_it_shares_leaves_train(tmp_path, balance):
    rows = [(label, text, "train") for label, text in messages(200)]
    rows += [(label, f"held {i}", "test") for i, (label, _) in enumerate(messages(40))]
    rows += [("ham", "HELD  3", "train"), ("ham", "held 4", "train")]
    raw = write(tmp_path / "raw.csv", rows, ("label", "text", "split"))
    metrics = run(raw, tmp_path / "out", balance=balance, stratified=True)
    parts = parts_of(tmp_path / "out")
    assert list(parts["test"]["text"]) == [f"held {i}" for i in range(40)]
    kept = 200 if balance == "natural" else 80
    assert metrics["validation/rows"] == pytest.approx(kept / 8, abs=1)  # 0.1 of 0.1 + 0.7
    keys = keys_of(tmp_path / "out")
    assert not (keys[0] & keys[2] or keys[1] & keys[2])
    if balance == "natural":
        assert metrics["dropped/text_in_another_split"] == 2
        assert len(parts["train"]) + len(parts["validation"]) == 200


def test_three_given_splits_are_taken_as_they_are(tmp_path):
    rows = [(label, text, SPLITS[i % 3]) for i, (label, text) in enumerate(messages(300, 4))]
    run(write(tmp_path / "raw.csv", rows, ("label", "text", "split")), tmp_path / "out")
    for number, part in enumerate(parts_of(tmp_path / "out").values()):
        assert list(part["text"]) == [f"message {i}" for i in range(number, 300, 3)]
        assert "split" not in part.columns


def test_one_label_alone_is_told(tmp_path):
    raw = write(tmp_path / "raw.csv", [("ham", f"text {i}") for i in range(40)])
    with pytest.raises(UserError, match="every text has the label 'ham'; two labels"):
        run(raw, tmp_path / "out")


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
    run(raw, tmp_path / "out")
    labels = read_split(tmp_path / "out", "train")["label"].to_numpy()
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels)
    assert class_weights(labels, 2) == pytest.approx(expected.tolist())
    three = np.array([0, 1, 1, 2, 2, 2, 2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=three)
    assert class_weights(three, 3) == pytest.approx(expected.tolist())


# --- The best possible accuracy


def test_best_possible_accuracy_by_hand(tmp_path):
    columns = ("label", "text", "log_likelihood_ratio")
    rows = [("ham", "a", -2.0), ("ham", "b", 0.5), ("spam", "c", 0.4), ("spam", "d", 3.0),
            ("ham", "e", 1.5)]  # fmt: skip
    write(tmp_path / "test.csv", rows, columns)
    (tmp_path / "labels.json").write_text('["ham", "spam"]')

    def best(prior: float) -> float | None:
        spam = round(1000 * prior)
        labels = ["spam"] * spam + ["ham"] * (1000 - spam)
        write(tmp_path / "train.csv", [(label, str(i)) for i, label in enumerate(labels)])
        return best_possible_accuracy(tmp_path)

    assert best(0.5) == 3 / 5  # b and e look like spam
    assert best(1 / (1 + math.e)) == 3 / 5  # threshold 1: c and e wrong
    assert best(1 / (1 + math.e**2)) == 4 / 5  # threshold 2: c alone
    write(tmp_path / "test.csv", [("ham", "a")])
    assert best(0.5) is None


# --- The real collection


@needs_mirror
def test_the_real_collection_has_5574_messages(tmp_path):
    files = fetch(MANIFESTS / "sms_spam.json", tmp_path / "zip", cache=tmp_path / "cache",
                  mirror=str(MIRROR), offline=True)  # fmt: skip
    write_sms_messages(files[0], tmp_path / RAW_FILE)
    table = read_labeled(tmp_path / RAW_FILE)
    assert table["label"].value_counts().to_dict() == {"ham": 4827, "spam": 747}
    # The 5,572 of many accounts is what pandas finds when it takes the quotation marks for CSV's.
    quoted = pd.read_csv(files[0], sep="\t", header=None, names=["label", "text"])
    assert quoted["label"].value_counts().to_dict() == {"ham": 4825, "spam": 747}
    assert quoted["text"].str.contains("\nham\t").any()
    metrics = run(tmp_path / RAW_FILE, tmp_path / "out", balance="undersample")
    assert [metrics[f"{split}/rows"] for split in SPLITS] == [1045, 149, 300]  # as in the book
