"""Instructions: checked entries, and splits that hold out what they test."""

import json

import pytest

from gptmill.data.instructions import (
    SPLITS,
    prepare,
    read_instructions,
    write_embedded_instructions,
)
from gptmill.embedded import instructions
from gptmill.errors import UserError
from gptmill.fetch.download import fetch
from gptmill.files import sha256_tree
from tests.support.mirror import MANIFESTS, MIRROR, needs_mirror


def entry(number: int, **more: str) -> dict[str, str]:
    return {"instruction": f"Do {number}.", "input": "", "output": f"Done {number}."} | more


def write(folder, entries):
    path = folder / "instructions.json"
    path.write_text(json.dumps(entries))
    return path


def run(raw, folder, train=0.85, test=0.1, seed=1):
    return prepare(raw, folder, train_fraction=train, test_fraction=test, seed=seed)


def parts_of(folder):
    return {split: json.loads((folder / f"{split}.json").read_text()) for split in SPLITS}


def test_without_combinations_the_file_is_cut_in_order(tmp_path):
    entries = [entry(i) for i in range(100)]
    metrics = run(write(tmp_path, entries), tmp_path / "out")
    parts = parts_of(tmp_path / "out")
    assert parts == {
        "train": entries[:85],
        "test": entries[85:95],
        "validation": entries[95:],
    }
    assert metrics == {
        "train/entries": 85,
        "validation/entries": 5,
        "test/entries": 10,
        "dropped/prompt_in_another_split": 0,
    }


def test_what_training_asks_is_not_held_out(tmp_path):
    entries = [entry(i) for i in range(100)]
    entries[90] = entry(3, output="Another answer.")  # in the test, asked in training
    entries[91] = entry(4, input="but with an input")  # a different question
    entries[97] = entry(0, instruction="do  88.")  # in validation, asked in the test
    metrics = run(write(tmp_path, entries), tmp_path / "out")
    parts = parts_of(tmp_path / "out")
    assert parts["test"] == entries[85:90] + entries[91:95]
    assert parts["validation"] == [*entries[95:97], *entries[98:]]
    assert metrics["dropped/prompt_in_another_split"] == 2


def test_no_combination_is_in_two_splits_and_every_family_in_each(tmp_path):
    entries = [
        entry(i, family=f"f{i % 4}", combination=f"f{i % 4}/c{i % 60}", input=str(i))
        for i in range(600)
    ]
    raw = write(tmp_path, entries)
    run(raw, tmp_path / "out")
    parts = parts_of(tmp_path / "out")
    combinations = {s: {e["combination"] for e in part} for s, part in parts.items()}
    assert {s: len(c) for s, c in combinations.items()} == {
        "train": 48,
        "validation": 4,
        "test": 8,
    }
    assert len(set.union(*combinations.values())) == 60
    for part in parts.values():
        assert {e["family"] for e in part} == {"f0", "f1", "f2", "f3"}
    assert sorted(e["input"] for p in parts.values() for e in p) == sorted(map(str, range(600)))
    run(raw, tmp_path / "again")
    run(raw, tmp_path / "other", seed=2)
    assert sha256_tree(tmp_path / "out") == sha256_tree(tmp_path / "again")
    assert sha256_tree(tmp_path / "out") != sha256_tree(tmp_path / "other")


def test_embedded_instructions_hold_out_combinations(tmp_path):
    raw = tmp_path / "instructions.json"
    write_embedded_instructions(instructions(3, 800), raw)
    metrics = run(raw, tmp_path / "out")
    assert sum(metrics[f"{split}/entries"] for split in SPLITS) == 800
    held = [{e["combination"] for e in part} for part in parts_of(tmp_path / "out").values()]
    assert not (held[0] & held[1] or held[0] & held[2] or held[1] & held[2])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"instruction": "x", "input": ""}, r"entry 2: 'output' is missing"),
        ({"instruction": "x", "input": None, "output": "y"}, r"entry 2: 'input' is missing"),
        ({"instruction": " ", "input": "", "output": "y"}, r"entry 2: 'instruction' is empty"),
        ({"instruction": "x", "input": "", "output": ""}, r"entry 2: 'output' is empty"),
        ("text", r"entry 2: not a mapping"),
    ],
)
def test_a_wrong_entry_is_told_by_number(tmp_path, wrong, told):
    with pytest.raises(UserError, match=told):
        read_instructions(write(tmp_path, [entry(0), wrong]))


def test_what_is_no_list_and_what_leaves_a_split_empty_is_told(tmp_path):
    with pytest.raises(UserError, match="not a list"):
        read_instructions(write(tmp_path, {"instruction": "x"}))
    with pytest.raises(UserError, match="leave none for test"):
        run(write(tmp_path, [entry(0), entry(1)]), tmp_path / "out")
    with pytest.raises(UserError, match="at most 1"):
        run(write(tmp_path, [entry(i) for i in range(50)]), tmp_path / "out", train=0.95)
    assert not (tmp_path / "out").exists()


@needs_mirror
def test_the_books_entries_split_as_in_the_book(tmp_path):
    files = fetch(MANIFESTS / "instructions.json", tmp_path / "raw", cache=tmp_path / "cache",
                  mirror=str(MIRROR), offline=True)  # fmt: skip
    metrics = run(files[0], tmp_path / "out")
    entries = read_instructions(files[0])
    assert len(entries) == 1100
    parts = parts_of(tmp_path / "out")
    assert parts["train"] == entries[:935]
    # The book has 110 and 55; six of them ask what another split asks.
    assert metrics["dropped/prompt_in_another_split"] == 6
    assert (len(parts["test"]), len(parts["validation"])) == (108, 51)
