import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from gptmill.batching import batches_by_length, batches_of_tokens, left_padded, right_padded

ROWS = [[5], [6, 7, 8], [9, 1]]
LENGTHS = st.lists(st.integers(1, 30), max_size=20)


@given(LENGTHS, st.integers(1, 5))
def test_batches_by_length_hold_every_row_once(lengths, size):
    batches = batches_by_length(lengths, size)
    order = [row for rows in batches for row in rows]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[row] for row in order] == sorted(lengths)
    assert all(len(rows) == size for rows in batches[:-1])


@given(LENGTHS, st.integers(1, 40), st.sampled_from([None, 30]))
def test_batches_of_tokens_stay_within_them(lengths, tokens, width):
    batches = list(batches_of_tokens(lengths, tokens, width))
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    for rows in batches:
        longest = width or max(lengths[row] for row in rows)
        assert len(rows) == 1 or len(rows) * longest <= tokens


def test_padding_is_that_of_torch():
    rows = [torch.tensor(row) for row in ROWS]
    for side, (ids, mask) in {"right": right_padded(ROWS), "left": left_padded(ROWS)}.items():
        assert torch.from_numpy(ids).is_contiguous()
        theirs = pad_sequence(rows, batch_first=True, padding_side=side)
        ones = pad_sequence([torch.ones_like(row) for row in rows], True, padding_side=side)
        np.testing.assert_array_equal(ids, theirs)
        np.testing.assert_array_equal(mask, ones)


def test_padding_to_a_width():
    ids, mask = right_padded([[5], [6, 7]], padding=9, width=4)
    assert ids.tolist() == [[5, 9, 9, 9], [6, 7, 9, 9]]
    assert mask.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]
