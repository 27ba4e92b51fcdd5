"""Splitters on texts small enough to count, and windows counted by their formula."""

import numpy as np
import pytest
import torch

from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.study.small import CPU
from gptmill.study.text import NEW_WORD, split_keeping_spaces, tokenizers, windows
from gptmill.tokenizer import UNKNOWN, train_vocabulary

TRAINING = ["The cat sat, the dog ran.", "A dog sat on the mat."]
HELD_OUT = ["The dog sat.", "The cat ran."]


def test_pieces_with_white_space_join_to_the_text() -> None:
    text = "Well -- so (she said), no?\n"
    assert "".join(split_keeping_spaces(text)) == text
    assert split_keeping_spaces("a b") == ["a", " ", "b"]


def test_tokenizers_by_hand() -> None:
    found = tokenizers(TRAINING, HELD_OUT, train_vocabulary(TRAINING, "word", 6))
    rows = {row["tokenizer"]: row for row in found.rows}
    # Six words; with two full stops 8 tokens, with four spaces and a line break 13; 25 characters.
    words = {name: rows[name]["tokens_per_word"] * 6 for name in rows}
    assert words["words"] == pytest.approx(8)
    assert words["words and spaces"] == pytest.approx(13)
    assert words["characters"] == pytest.approx(25)
    # Sorted and unique: , . A The cat dog mat on ran sat the, and two specials; "the" is one more.
    assert rows["words"]["vocabulary"] == 11 + 2
    assert found.metrics["words_lower_cased_vocabulary"] == 10
    assert rows["words"]["new_word"] == UNKNOWN
    assert rows["byte pairs"]["new_word"].replace("·", "") == NEW_WORD
    assert rows["this pipeline's"]["unknown_share"] > 0  # four words and marks are not enough
    assert found.metrics["end_of_text_tokens"] == 1


def test_windows_count_pairs_and_passes() -> None:
    torch.manual_seed(0)
    model = GPT2(GPT2Config(19, 8, 1, 2, 16)).eval()
    ids = np.arange(100) % 19
    rows = windows(model, ids, CPU).rows
    assert [row["stride"] for row in rows] == [8, 4, 2]
    assert [row["pairs"] for row in rows] == [12, 23, 46]  # ⌈(100 − 8) / stride⌉
    assert rows[-1]["passes_per_token"] == pytest.approx(46 * 8 / 100)
    assert rows[0]["loss"] != rows[-1]["loss"]
