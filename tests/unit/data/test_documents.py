"""Whole documents as examples: complete, from their own beginning, nothing lost."""

from pathlib import Path

import numpy as np
import pytest

from gptmill.data.documents import DocumentExamples, collate_documents
from gptmill.data.shards import write_tokens
from gptmill.data.splits import plan_splits
from gptmill.data.tokens import TokenSplit
from gptmill.tokenizer import byte_pairs_from_merges

TOKENIZER = byte_pairs_from_merges([])
TEXTS = [chr(97 + i % 26) * (3 + 7 * i % 23) for i in range(40)]


@pytest.fixture
def split(tmp_path: Path) -> TokenSplit:
    raw = tmp_path / "raw"
    raw.mkdir()
    for number, text in enumerate(TEXTS):
        (raw / f"{number:02d}.txt").write_text(text)
    plan = plan_splits(raw, validation_fraction=0.0, test_fraction=0.0, seed=1)
    write_tokens(plan, TOKENIZER, tmp_path / "tokens", shard_tokens=97)
    return TokenSplit(tmp_path / "tokens", "train")


def test_every_document_is_whole_and_ends(split: TokenSplit) -> None:
    examples = DocumentExamples(split, longest=64)
    assert len(examples) == len(TEXTS)
    for index, text in enumerate(TEXTS):
        assert examples[index].tolist() == [*TOKENIZER.encode(text), TOKENIZER.end_of_text]
        assert examples.lengths[index] == len(text) + 1


def test_long_documents_are_cut_and_nothing_is_lost(split: TokenSplit) -> None:
    examples = DocumentExamples(split, longest=8)
    assert examples.lengths.max() == 8
    joined = np.concatenate([examples[index] for index in range(len(examples))])
    assert np.array_equal(joined, split.gather(np.array([0]), len(split))[0])


def test_collation_by_hand() -> None:
    inputs, targets = collate_documents([np.array([5, 6, 9]), np.array([7, 9])], end_of_text=9)
    assert inputs.tolist() == [[9, 5, 6], [9, 7, 9]]
    assert targets.tolist() == [[5, 6, 9], [7, 9, -100]]
