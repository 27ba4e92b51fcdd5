"""Training examples that are whole documents, each from its own beginning.

Windows over a stream begin anywhere, so that a short document's beginning is often lost to the
window before, and neighbors that have nothing to do with each other share a context. Where
documents are shorter than the context, one to a row teaches more from fewer tokens.
"""

import numpy as np

from gptmill.batching import right_padded
from gptmill.data.tokens import TokenSplit

IGNORED = -100  # the target that counts for nothing: padding, or a masked prompt


class DocumentExamples:
    """The documents of a split, `<|endoftext|>` after each; longer ones cut to `longest` tokens."""

    def __init__(self, split: TokenSplit, longest: int) -> None:
        self.split = split
        ends = np.append(split.document_starts[1:], len(split)).tolist()
        pieces = [
            (piece, min(longest, end - piece))
            for start, end in zip(split.document_starts.tolist(), ends)
            for piece in range(start, end, longest)
        ]
        self._starts, self.lengths = np.array(pieces, np.int64).reshape(-1, 2).T

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> np.ndarray:
        """Ids [T] of one document."""
        start = self._starts[index]
        return self.split.at(np.arange(start, start + self.lengths[index]))


def collate_documents(
    documents: list[np.ndarray], end_of_text: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, int64 [B, T]: `<|endoftext|>` comes before each document; targets of
    the padding after it are -100."""
    inputs, _ = right_padded([np.append(end_of_text, ids[:-1]) for ids in documents], end_of_text)
    targets, _ = right_padded(documents, IGNORED)
    return inputs, targets
