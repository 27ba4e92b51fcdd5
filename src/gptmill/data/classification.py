"""Labeled texts: a raw table, balance, and splits in which no text is on two sides.

Raw: `texts.csv` with columns label, text and, where the source has them, split (train, validation
or test) and, for the embedded messages, log_likelihood_ratio = ln p(text | spam) - ln p(text | ham)
in nats. Prepared: a CSV for each split, and `labels.json`, the labels in the order of the logits.
"""

import csv
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from gptmill.data.corpus import SPLITS
from gptmill.errors import UserError
from gptmill.files import atomic_file, atomic_folder, read_json, write_json

RAW_FILE, LABELS_FILE = "texts.csv", "labels.json"
RATIO = "log_likelihood_ratio"
DUPLICATE = "dropped/text_in_another_split"


# --- Raw


def write_embedded_messages(messages: Iterable, path: Path) -> None:
    """Write embedded messages (`label`, `text`, `log_likelihood_ratio`)."""
    rows = [(m.label, m.text, m.log_likelihood_ratio) for m in messages]
    write_labeled(pd.DataFrame(rows, columns=["label", "text", RATIO]), path)


def write_sms_messages(collection: Path, path: Path) -> None:
    """Turn UCI's tab-separated `SMSSpamCollection` into a raw table.

    Quotation marks are text. A reader that takes them for CSV quoting, as pandas does unless
    told not to, swallows two messages into a third and finds 5,572 rows instead of 5,574.

    Raises:
        UserError: a line that is not a label, a tab and a text.
    """
    rows = []
    for number, line in enumerate(collection.read_bytes().decode("utf-8").split("\n"), start=1):
        label, tab, text = line.partition("\t")
        if tab and label.strip():
            rows.append((label, text))
        elif line.strip():
            raise UserError(f"{collection}, line {number}: not a label, a tab and a text")
    write_labeled(pd.DataFrame(rows, columns=["label", "text"]), path)


def write_labeled(table: pd.DataFrame, path: Path) -> None:
    """Write a raw or prepared table.

    A bare carriage return inside a text would be read back as a line's end: every text is quoted.
    """
    quoted = table["text"].str.contains("\r", regex=False).any()
    with atomic_file(path) as beside:
        table.to_csv(
            beside,
            index=False,
            lineterminator="\n",
            quoting=csv.QUOTE_NONNUMERIC if quoted else csv.QUOTE_MINIMAL,
        )


def read_labeled(path: Path) -> pd.DataFrame:
    """Read a raw or prepared CSV: label, text and, where present, split and log_likelihood_ratio.

    Texts such as 'NA' or 'null' stay texts.

    Raises:
        UserError: no such file, a column is missing, a label or a text is empty.
    """
    try:
        # The C parser takes a bare carriage return within quotation marks as text.
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (ValueError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8: {error}") from None
    missing = [name for name in ("label", "text") if name not in table.columns]
    if missing:
        raise UserError(f"{path} has no column {missing}, only {list(table.columns)}")
    for column in ("label", "text"):
        _refuse(path, table, table[column].str.strip() == "", column, "empty: remove the row")
    if RATIO in table.columns:
        table[RATIO] = pd.to_numeric(table[RATIO], errors="coerce")
        _refuse(path, table, ~np.isfinite(table[RATIO]), RATIO, "not a finite number")
    if "split" in table.columns:
        _refuse(path, table, ~table["split"].isin(SPLITS), "split", f"known: {', '.join(SPLITS)}")
    return table[[c for c in ("label", "text", "split", RATIO) if c in table.columns]]


def _refuse(path: Path, table: pd.DataFrame, wrong: pd.Series, column: str, reason: str) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise UserError(
            f"{path}, row {row + 1} (of {int(wrong.sum())} such): "
            f"{column} {table[column].iloc[row]!r}: {reason}"
        )


def label_order(labels: Iterable[str]) -> list[str]:
    """Distinct labels: numbers by value, else by the alphabet; case counts."""
    names = sorted(set(labels))
    numbers = all(re.fullmatch(r"-?\d+(\.\d+)?", name, re.ASCII) for name in names)
    return sorted(names, key=float) if numbers else names


# --- Preparation


def prepare(
    raw: Path,
    folder: Path,
    *,
    balance: Literal["undersample", "natural"],
    stratified: bool,
    train_fraction: float,
    validation_fraction: float,
    seed: int,
) -> dict[str, float]:
    """Balance and split labeled texts into train, validation and test CSVs.

    Given splits are kept, and texts that stand in a later one (test, validation, train) are left
    out of the earlier. A validation or test split that is not given is drawn from the training
    texts; without any given, all three are, of each label by itself if `stratified`. Texts that
    are the same but for case and white space stay in one split; frequencies are the source's.

    `undersample` draws as many of each label as the rarest has, of given splits from train alone;
    `natural` keeps all, to be trained with `class_weights`.

    Returns:
        Classes, and of all and each split: rows, rows of the rarest and of the commonest label;
        `duplicates/kept_together`, texts that repeat an earlier one of their split;
        `duplicates/other_label`, those of them with another label; what was left out.

    Raises:
        UserError: an unreadable table, one label alone, fractions that leave no test, a label
            absent in a split.
    """
    if not 0 < train_fraction + validation_fraction < 1 or not train_fraction:
        raise UserError(
            "prepare_classification.train_fraction and .validation_fraction leave no test, or "
            f"nothing to train on: {train_fraction} + {validation_fraction}"
        )
    random = np.random.default_rng(seed)
    table = read_labeled(raw)
    labels = label_order(table["label"])
    if len(labels) < 2:
        raise UserError(f"{raw}: every text has the label {labels[0]!r}; two labels are needed")
    given = "split" in table.columns
    fractions = (train_fraction, validation_fraction, 1 - train_fraction - validation_fraction)
    if balance == "undersample":
        table = _undersample(table, labels, random)
    parts, dropped = _split(table, fractions, stratified, random)
    _check(parts, labels, raw, given)
    with atomic_folder(folder) as beside:
        write_json(beside / LABELS_FILE, labels)
        for split, part in parts.items():
            write_labeled(part.drop(columns="split", errors="ignore"), beside / f"{split}.csv")
    return _counts(parts, labels) | {DUPLICATE: dropped}


def _undersample(
    table: pd.DataFrame, labels: list[str], random: np.random.Generator
) -> pd.DataFrame:
    """As many rows of each label as the rarest has, in their original order; rows of a given
    validation or test split all stay."""
    drawn = np.ones(len(table), bool)
    if "split" in table.columns:
        drawn = (table["split"] == "train").to_numpy()
    rows = [np.flatnonzero((table["label"] == label) & drawn) for label in labels]
    count = min(len(row) for row in rows)
    chosen = [random.choice(row, count, replace=False) for row in rows]
    kept = np.concatenate([*chosen, np.flatnonzero(~drawn)])
    return table.iloc[np.sort(kept)].reset_index(drop=True)


def _key(texts: pd.Series) -> pd.Series:
    """Texts without case and differences in white space."""
    return texts.map(lambda text: " ".join(text.casefold().split()))


def _split(
    table: pd.DataFrame,
    fractions: tuple[float, float, float],
    stratified: bool,
    random: np.random.Generator,
) -> tuple[dict[str, pd.DataFrame], int]:
    """The three splits, and how many rows were left out because a later one has their text."""
    splits = np.zeros(len(table), np.int64)
    if "split" in table.columns:
        splits = table["split"].map(SPLITS.index).to_numpy()
    keys = _key(table["text"])
    before = len(table)
    for later in (2, 1):
        held = set(keys[splits == later])
        keep = ~(keys.isin(held).to_numpy() & (splits < later))
        table, keys, splits = table[keep], keys[keep], splits[keep]
    given = set(splits)
    drawn = np.flatnonzero(splits == 0)
    # What is given is not drawn again: its share of the fractions is none.
    shares = [f if i == 0 or i not in given else 0.0 for i, f in enumerate(fractions)]
    if any(shares[1:]):
        splits[drawn] = _draw(table.iloc[drawn], keys.iloc[drawn], shares, stratified, random)
    return {name: table[splits == i] for i, name in enumerate(SPLITS)}, before - len(table)


def _draw(
    table: pd.DataFrame,
    keys: pd.Series,
    shares: list[float],
    stratified: bool,
    random: np.random.Generator,
) -> np.ndarray:
    """A split for each row; equal texts stay together."""
    groups = pd.factorize(keys)[0]
    whole = sum(shares) if 0.0 in shares else 1.0  # of a given split there is no share to draw
    held = [share / whole for share in shares]
    if not stratified:
        return _assign(groups, _sizes(len(table), held), random)
    splits = np.empty(len(table), np.int64)
    # A text with two labels counts for the label it has first.
    first = table["label"].to_numpy()[np.unique(groups, return_index=True)[1]]
    of_group = first[groups]
    for label in label_order(first):
        rows = np.flatnonzero(of_group == label)
        members = pd.factorize(groups[rows])[0]
        sizes = _sizes(len(rows), held)
        for split in (2, 1):  # a small class is in every split that is wanted
            if held[split] and not sizes[split] and sizes[0] > 1:
                sizes[0], sizes[split] = sizes[0] - 1, 1
        splits[rows] = _assign(members, sizes, random)
    return splits


def _sizes(count: int, shares: list[float]) -> list[int]:
    """Rows per split, rounded down but for the last that is wanted, as the book does."""
    sizes = [int(count * share) for share in shares]
    last = max(i for i, share in enumerate(shares) if share)
    sizes[last] += count - sum(sizes)
    return sizes


def _assign(groups: np.ndarray, sizes: list[int], random: np.random.Generator) -> np.ndarray:
    """A split for each row: shuffled groups go whole to the first split that has room."""
    room = list(sizes)
    rows_of = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    splits = np.empty(len(groups), np.int64)
    for number in random.permutation(len(rows_of)):
        rows = rows_of[number]
        split = next((i for i in range(len(room)) if room[i] >= len(rows)), int(np.argmax(room)))
        splits[rows] = split
        room[split] -= len(rows)
    return splits


def _check(parts: dict[str, pd.DataFrame], labels: list[str], raw: Path, given: bool) -> None:
    """Every label to train on, and in drawn splits everywhere; no text in two splits."""
    for split, part in parts.items():
        present = set(part["label"])
        absent = [label for label in labels if label not in present]
        if absent and (split == "train" or not given or not len(part)):
            told = ", ".join(map(repr, absent[:5])) + (", …" if len(absent) > 5 else "")
            raise UserError(
                f"{raw}: the {split} split of {len(part)} texts has no {told}: add texts, leave "
                "out the rows of so rare a label, or change prepare_classification's fractions"
            )
        if absent:
            print(f"the given {split} split has no text of {len(absent)} labels: {absent[:5]}")
    texts = [set(_key(part["text"])) for part in parts.values()]
    assert sum(map(len, texts)) == len(set().union(*texts)), "a text is in two splits"


def _counts(parts: dict[str, pd.DataFrame], labels: list[str]) -> dict[str, float]:
    whole = pd.concat(parts.values())
    counts: dict[str, float] = {"rows": len(whole), "classes": len(labels)}
    for split, part in parts.items():
        rows = part["label"].value_counts().reindex(labels, fill_value=0)
        counts |= {
            f"{split}/rows": len(part),
            f"{split}/rarest_class": int(rows.min()),
            f"{split}/commonest_class": int(rows.max()),
        }
    keys = _key(whole["text"])
    kept_together = keys.duplicated()
    repeated = pd.DataFrame({"key": keys, "label": whole["label"]}).duplicated()
    return counts | {
        "duplicates/kept_together": int(kept_together.sum()),
        "duplicates/other_label": int((kept_together & ~repeated).sum()),
    }


def class_table(folder: Path) -> tuple[list[str], list[list]]:
    """Columns and rows of a table: each label's texts in each prepared split, and its weight."""
    labels = read_labels(folder)
    columns = [read_split(folder, split)["label"].to_numpy() for split in SPLITS]
    weights = class_weights(columns[0], len(labels))
    counts = [np.bincount(column, minlength=len(labels)) for column in columns]
    rows = [
        [label, *(int(count[i]) for count in counts), round(weights[i], 6)]
        for i, label in enumerate(labels)
    ]
    return ["label", *SPLITS, "class_weight"], rows


# --- What training and the report ask of a prepared split


def read_labels(folder: Path) -> list[str]:
    """The labels of a prepared folder, in the order of the logits."""
    return read_json(folder / LABELS_FILE)


def read_split(folder: Path, split: str) -> pd.DataFrame:
    """A prepared split: `text` and integer `label`, its place in `labels.json`.

    Raises:
        UserError: as `read_labeled`, or a label that `labels.json` has not.
    """
    path = folder / f"{split}.csv"
    table, labels = read_labeled(path), read_labels(folder)
    known = f"known: {', '.join(labels[:20])}"
    _refuse(path, table, ~table["label"].isin(labels), "label", known)
    numbers = {label: number for number, label in enumerate(labels)}
    return table.assign(label=table["label"].map(numbers))


def class_weights(labels: np.ndarray, classes: int) -> list[float]:
    """Loss weight of each label, n / (K n_label): rare labels count as much as frequent ones.

    Args:
        labels: [n] of 0 to K - 1, each there at least once.
        classes: K.
    """
    counts = np.bincount(labels, minlength=classes)
    return [float(len(labels) / (classes * count)) for count in counts]


def best_possible_accuracy(folder: Path) -> float | None:
    """Accuracy on the test split of the Bayes decision: the second label where its posterior is
    above one half, its prior being its share of the training split.

    The posterior's log odds are the log-likelihood ratio plus ln(prior / (1 - prior)). None where
    texts come without their ratios, as real ones do.
    """
    test = read_split(folder, "test")
    if RATIO not in test.columns:
        return None
    prior = float(read_split(folder, "train")["label"].mean())
    decisions = test[RATIO].to_numpy() + math.log(prior / (1 - prior)) > 0
    return float((decisions == (test["label"] == 1).to_numpy()).mean())
