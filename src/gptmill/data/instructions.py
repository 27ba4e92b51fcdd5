"""Instruction, input, output entries: raw JSON, and a split that holds out what it tests."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gptmill.data.corpus import SPLITS
from gptmill.errors import UserError
from gptmill.files import atomic_folder, read_json, write_json

Entry = dict[str, Any]


def write_embedded_instructions(entries: Iterable, path: Path) -> None:
    """Write embedded instructions (dataclasses) as `instructions.json`."""
    write_json(path, [asdict(entry) for entry in entries])


def read_instructions(path: Path) -> list[Entry]:
    """Read a list of entries and check each.

    Raises:
        UserError: not a list, an entry without its keys, a value that is no text, an empty
            instruction or output; the entry's number is told.
    """
    values = read_json(path, list)
    if not values:
        raise UserError(f"{path} is not a list of instruction, input, output entries")
    for number, entry in enumerate(values, start=1):
        fault = _fault(entry)
        if fault:
            raise UserError(f"{path}, entry {number}: {fault}")
    return values


def _fault(entry: Any) -> str | None:
    """What is wrong with an entry, or None."""
    if not isinstance(entry, dict):
        return f"not a mapping but {entry!r}"
    for key in ("instruction", "input", "output"):
        if not isinstance(entry.get(key), str):
            return f"{key!r} is missing or no text (keys: {', '.join(map(str, entry))})"
    empty = next((key for key in ("instruction", "output") if not entry[key].strip()), None)
    return f"{empty!r} is empty" if empty else None


def prepare(
    raw: Path, folder: Path, *, train_fraction: float, test_fraction: float, seed: int
) -> dict[str, int]:
    """Split entries into train.json, validation.json and test.json.

    Entries with a `combination` are held out by it: within each family the combinations are
    ordered by a seeded hash, so every family is tested, on combinations that training never
    shows. Without, entries are taken in file order, as the book does: the first to train, the
    next to test, the rest to validate. An entry that asks what a training entry asks
    (instruction and input, case and white space aside) is dropped from the held-out splits, and
    from validation if the test asks it.

    Returns:
        Entries per split and `dropped/prompt_in_another_split`.

    Raises:
        UserError: unreadable entries, or a split that would be empty.
    """
    if not 0 < train_fraction + test_fraction <= 1:
        raise UserError(
            "prepare_instructions.train_fraction and test_fraction must add up to at most 1: "
            f"{train_fraction} + {test_fraction}"
        )
    entries = read_instructions(raw)
    if any("split" in entry for entry in entries):
        parts = _as_given(entries, train_fraction, test_fraction)
    elif all("combination" in entry for entry in entries):
        parts = _by_combination(entries, train_fraction, test_fraction, seed)
    else:
        parts = _by_position(entries, train_fraction, test_fraction)
    dropped = _drop_repeated(parts)
    empty = next((split for split in SPLITS if not parts[split]), None)
    if empty:
        raise UserError(f"{raw}: {len(entries)} entries leave none for {empty}: add entries")
    with atomic_folder(folder) as beside:
        for split in SPLITS:
            write_json(beside / f"{split}.json", parts[split])
    counts = {f"{split}/entries": len(parts[split]) for split in SPLITS}
    return counts | {"dropped/prompt_in_another_split": dropped}


def _as_given(
    entries: Sequence[Entry], train_fraction: float, test_fraction: float
) -> dict[str, list[Entry]]:
    """The splits that the source gives; one that it lacks is taken from the end of train."""
    given: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    for entry in entries:
        split = entry.get("split", "train")
        given[split].append({key: value for key, value in entry.items() if key != "split"})
    shares = {"test": test_fraction, "validation": 1 - train_fraction - test_fraction}
    for split, share in shares.items():
        if not given[split]:
            count = round(len(given["train"]) * share)
            at = len(given["train"]) - count
            given["train"], given[split] = given["train"][:at], given["train"][at:]
    return given


def _by_position(
    entries: Sequence[Entry], train_fraction: float, test_fraction: float
) -> dict[str, list[Entry]]:
    train = int(len(entries) * train_fraction)
    test = train + int(len(entries) * test_fraction)
    return {
        "train": list(entries[:train]),
        "test": list(entries[train:test]),
        "validation": list(entries[test:]),
    }


def _by_combination(
    entries: Sequence[Entry], train_fraction: float, test_fraction: float, seed: int
) -> dict[str, list[Entry]]:
    """Whole combinations to each split, each family by itself, entries in file order."""
    families: dict[str, set[str]] = {}
    for entry in entries:
        families.setdefault(entry.get("family", ""), set()).add(entry["combination"])
    split_of = {}
    for family, combinations in families.items():
        order = sorted(combinations, key=lambda name: _hash(f"{seed}:{family}:{name}"))
        sizes = _held_out(len(order), train_fraction, test_fraction)
        for number, name in enumerate(order):
            held = "test" if number < sizes[0] else "validation"
            split_of[family, name] = held if number < sum(sizes) else "train"
    parts: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    for entry in entries:
        parts[split_of[entry.get("family", ""), entry["combination"]]].append(entry)
    return parts


def _held_out(count: int, train_fraction: float, test_fraction: float) -> tuple[int, int]:
    """Combinations of one family to test and to validate; one each if there are three or more."""
    at_least = int(count >= len(SPLITS))
    validation_fraction = 1 - train_fraction - test_fraction
    test = max(at_least if test_fraction > 0 else 0, round(count * test_fraction))
    # A fraction that is zero but for rounding keeps nothing.
    wanted = validation_fraction > 1e-9
    return test, max(at_least, round(count * validation_fraction)) if wanted else 0


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _drop_repeated(parts: dict[str, list[Entry]]) -> int:
    """Remove from a held-out split, in place, what an earlier split asks; return how many."""
    seen: set[str] = set()
    dropped = 0
    for split in ("train", "test", "validation"):
        kept = [entry for entry in parts[split] if _prompt_key(entry) not in seen]
        dropped += len(parts[split]) - len(kept)
        parts[split] = kept
        seen.update(_prompt_key(entry) for entry in kept)
    return dropped


def _prompt_key(entry: Entry) -> str:
    """What an entry asks, without case and differences in white space."""
    asked = [turn["content"] for turn in entry.get("history", ())]
    asked += [entry["instruction"], entry["input"]]
    return "\0".join(" ".join(text.casefold().split()) for text in asked)
