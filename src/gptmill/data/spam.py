"""Labelled messages: raw CSV, balance, and a split in which no text is in two parts.

Raw: `messages.csv` with columns label ('ham' or 'spam'), text and, for the embedded corpus,
log_likelihood_ratio = ln p(text | spam) - ln p(text | ham) in nats.
"""

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from gptmill.data.corpus import SPLITS
from gptmill.errors import UserError
from gptmill.files import atomic_file, atomic_folder

LABELS = ("ham", "spam")

RATIO = "log_likelihood_ratio"


# --- Raw messages


def write_embedded_messages(messages: Iterable, path: Path) -> None:
    """Write embedded messages (`label`, `text`, `log_likelihood_ratio`) as `messages.csv`."""
    rows = [(m.label, m.text, m.log_likelihood_ratio) for m in messages]
    _write(pd.DataFrame(rows, columns=["label", "text", RATIO]), path)


def write_sms_messages(collection: Path, path: Path) -> None:
    """Turn UCI's tab-separated `SMSSpamCollection` into `messages.csv`.

    Quotation marks are text. A reader that takes them for CSV quoting, as pandas does unless
    told not to, swallows two messages into a third and finds 5,572 rows instead of 5,574.

    Raises:
        UserError: a line that is not a label, a tab and a text.
    """
    rows = []
    for number, line in enumerate(collection.read_bytes().decode("utf-8").split("\n"), start=1):
        label, tab, text = line.partition("\t")
        if tab and label in LABELS:
            rows.append((label, text))
        elif line.strip():
            raise UserError(f"{collection}, line {number}: not 'ham' or 'spam', a tab and a text")
    _write(pd.DataFrame(rows, columns=["label", "text"]), path)


def _write(table: pd.DataFrame, path: Path) -> None:
    with atomic_file(path) as beside:
        table.to_csv(beside, index=False, lineterminator="\n")


def read_messages(path: Path) -> pd.DataFrame:
    """Read a raw or prepared CSV: label, text and, where present, log_likelihood_ratio.

    Texts such as 'NA' or 'null' stay texts.

    Raises:
        UserError: no such file, a column is missing, a label is unknown, a text is empty.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (ValueError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8: {error}") from None
    missing = [name for name in ("label", "text") if name not in table.columns]
    if missing:
        raise UserError(f"{path} has no column {missing}, only {list(table.columns)}")
    known = {**{name: name for name in LABELS}, **{str(i): name for i, name in enumerate(LABELS)}}
    _refuse(path, table, ~table["label"].isin(list(known)), "label", f"known: {', '.join(LABELS)}")
    _refuse(path, table, table["text"].str.strip() == "", "text", "empty: remove the row")
    table["label"] = table["label"].map(known)
    if RATIO in table.columns:
        table[RATIO] = pd.to_numeric(table[RATIO], errors="coerce")
        _refuse(path, table, ~np.isfinite(table[RATIO]), RATIO, "not a finite number")
    return table[["label", "text", *([RATIO] if RATIO in table.columns else [])]]


def read_split(path: Path) -> pd.DataFrame:
    """A prepared split: `text` and integer `label`, ham 0 and spam 1. Errors of `read_messages`."""
    table = read_messages(path)
    return table.assign(label=table["label"].map(LABELS.index))


def _refuse(path: Path, table: pd.DataFrame, wrong: pd.Series, column: str, reason: str) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise UserError(
            f"{path}, row {row + 1} (of {int(wrong.sum())} such): "
            f"{column} {table[column].iloc[row]!r}: {reason}"
        )


# --- Preparation


def prepare(
    raw: Path,
    folder: Path,
    *,
    balance: Literal["undersample", "natural"],
    train_fraction: float,
    validation_fraction: float,
    seed: int,
) -> dict[str, float]:
    """Balance and split messages into train, validation and test CSVs (label 0 ham, 1 spam).

    Messages whose texts are the same but for case and white space stay in one split; none is
    removed, so frequencies are the source's. `undersample` draws as many of each label as the
    rarest has; `natural` keeps all, to be trained with `class_weights`.

    Returns:
        Rows in all, per split and per label, the training split's class weights, and
        `duplicates/kept_together`, messages that share their text with an earlier one.

    Raises:
        UserError: unreadable messages, fractions that leave no test, a label absent in a split.
    """
    if not 0 < train_fraction + validation_fraction < 1:
        raise UserError(
            "prepare_spam.train_fraction and prepare_spam.validation_fraction leave no test: "
            f"{train_fraction} + {validation_fraction}"
        )
    random = np.random.default_rng(seed)
    table = read_messages(raw)
    if balance == "undersample":
        table = _undersample(table, random)
    table["label"] = table["label"].map(LABELS.index)
    groups = pd.factorize(_key(table["text"]))[0]
    splits = _assign(groups, _sizes(len(table), train_fraction, validation_fraction), random)
    parts = {split: table[splits == number] for number, split in enumerate(SPLITS)}
    _check(parts, raw)
    with atomic_folder(folder) as beside:
        for split, part in parts.items():
            part.to_csv(beside / f"{split}.csv", index=False, lineterminator="\n")
    return _counts(parts) | {"duplicates/kept_together": len(table) - int(groups.max()) - 1}


def _undersample(table: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    """As many rows of each label as the rarest has, in their original order."""
    rows = [np.flatnonzero(table["label"] == label) for label in LABELS]
    count = min(len(row) for row in rows)
    chosen = np.concatenate([random.choice(row, count, replace=False) for row in rows])
    return table.iloc[np.sort(chosen)].reset_index(drop=True)


def _key(texts: pd.Series) -> pd.Series:
    """Texts without case and differences in white space."""
    return texts.map(lambda text: " ".join(text.casefold().split()))


def _sizes(count: int, train_fraction: float, validation_fraction: float) -> list[int]:
    """Rows per split, rounded down but for the test, as the book does."""
    train, validation = int(count * train_fraction), int(count * validation_fraction)
    return [train, validation, count - train - validation]


def _assign(groups: np.ndarray, sizes: list[int], random: np.random.Generator) -> np.ndarray:
    """A split for each row: shuffled groups go whole to the first split that has room."""
    room = list(sizes)
    rows_of = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    splits = np.empty(len(groups), np.int64)
    for number in random.permutation(len(rows_of)):
        rows = rows_of[number]
        split = next((i for i in range(len(room)) if room[i] >= len(rows)), len(room) - 1)
        splits[rows] = split
        room[split] -= len(rows)
    return splits


def _check(parts: dict[str, pd.DataFrame], raw: Path) -> None:
    """Every label in every split, and no text in two."""
    for split, part in parts.items():
        absent = [name for label, name in enumerate(LABELS) if label not in set(part["label"])]
        if absent:
            raise UserError(
                f"{raw}: the {split} split of {len(part)} messages has no {absent[0]}: "
                "add messages or change the fractions"
            )
    texts = [set(_key(part["text"])) for part in parts.values()]
    assert sum(map(len, texts)) == len(set().union(*texts)), "a text is in two splits"


def _counts(parts: dict[str, pd.DataFrame]) -> dict[str, float]:
    counts: dict[str, float] = {"rows": sum(len(part) for part in parts.values())}
    for split, part in parts.items():
        counts[f"{split}/rows"] = len(part)
        for label, name in enumerate(LABELS):
            counts[f"{split}/{name}"] = int((part["label"] == label).sum())
    weights = class_weights(parts["train"]["label"].to_numpy())
    return counts | {f"class_weight/{name}": weights[i] for i, name in enumerate(LABELS)}


# --- What training and the report ask of a prepared split


def class_weights(labels: np.ndarray) -> list[float]:
    """Loss weight of ham and spam, n / (2 n_label): rare labels count as much as frequent ones.

    Args:
        labels: [n] of 0 and 1.
    """
    counts = np.bincount(labels, minlength=len(LABELS))
    return [float(len(labels) / (len(LABELS) * count)) for count in counts]


def spam_share(path: Path) -> float:
    """The share of spam in a prepared split: the prior of its best decision."""
    return float(_labels(path).mean())


def _labels(path: Path) -> np.ndarray:
    return read_messages(path)["label"].map(LABELS.index).to_numpy()


def best_possible_accuracy(path: Path, prior: float) -> float | None:
    """Accuracy on a split of the Bayes decision: spam if its posterior is above one half.

    The posterior's log odds are the log-likelihood ratio plus ln(prior / (1 - prior)). None where
    the messages come without their ratios, as real ones do.

    Raises:
        UserError: the split cannot be read.
        ValueError: the prior is not between 0 and 1.
    """
    if not 0 < prior < 1:
        raise ValueError(f"prior {prior} is not between 0 and 1")
    table = read_messages(path)
    if RATIO not in table.columns:
        return None
    decisions = table[RATIO].to_numpy() + math.log(prior / (1 - prior)) > 0
    return float((decisions == (table["label"] == "spam").to_numpy()).mean())
