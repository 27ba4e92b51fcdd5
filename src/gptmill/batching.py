"""Rows of unequal length: which of them share a batch, and how they are padded.

Shapes: B rows of a batch, T tokens of its longest row.
"""

from collections.abc import Iterator, Sequence

import numpy as np

Rows = Sequence[Sequence[int] | np.ndarray]


def batches_by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Row numbers, shortest row first and equal lengths in order, `size` to a batch, so that little
    of a batch is padding. `result[rows] = …` restores the order."""
    order = np.argsort(lengths, kind="stable").tolist()
    return [order[start : start + size] for start in range(0, len(order), size)]


def batches_of_tokens(
    lengths: Sequence[int], tokens: int, width: int | None = None
) -> Iterator[list[int]]:
    """Row numbers, longest row first: in a batch at least one, and no more than pad to `tokens`.

    Args:
        width: tokens that every row is padded to; None is the longest of its batch.
    """
    order = np.argsort(lengths, kind="stable")[::-1].tolist()
    while order:
        count = max(1, tokens // (width or lengths[order[0]]))
        yield order[:count]
        order = order[count:]


def right_padded(
    rows: Rows, padding: int = 0, width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Ids [B, T] int64 with `padding` after each row, and a mask that is 1 on real tokens.

    Args:
        width: T, if it is not the longest row's length.
    """
    return _padded(rows, padding, width or max(map(len, rows)), left=False)


def left_padded(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Ids [B, T] int64 with zeros before each row, and a mask that is 1 on real tokens."""
    return _padded(rows, 0, max(map(len, rows)), left=True)


def _padded(rows: Rows, padding: int, width: int, left: bool) -> tuple[np.ndarray, np.ndarray]:
    ids = np.full((len(rows), width), padding, np.int64)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        filled = slice(width - len(row), width) if left else slice(len(row))
        ids[number, filled] = row
        mask[number, filled] = 1
    return ids, mask
