"""Several corpora in one token folder: which documents are whose, and one corpus by itself."""

import numpy as np

from gptmill.data.tokens import UNREADABLE, TokenSplit
from gptmill.errors import UserError

SOURCES = "sources.npy"  # uint8 [documents] of a split: positions in the index's mixture


class SplitPart(TokenSplit):
    """The documents of one corpus of a split, as if they followed each other.

    `words` and `unknown` are 0: they are known of the whole split alone.
    """

    def __init__(self, whole: TokenSplit, name: str, weight: float, chosen: np.ndarray) -> None:
        ends = np.append(whole.document_starts[1:], len(whole))[chosen]
        starts = whole.document_starts[chosen]
        lengths = ends - starts
        self.name, self.weight, self._whole = name, weight, whole
        self.mixture = []  # a part has none
        self.split, self.end_of_text = f"{whole.split} of {name}", whole.end_of_text
        self.document_starts = np.cumsum(lengths) - lengths
        self.document_bytes = whole.document_bytes[chosen]
        self.documents, self.tokens = len(chosen), int(lengths.sum())
        self.bytes, self.words, self.unknown = int(self.document_bytes.sum()), 0, 0
        self._shift = starts - self.document_starts

    def at(self, positions: np.ndarray) -> np.ndarray:
        documents = np.searchsorted(self.document_starts, positions, "right") - 1
        return self._whole.at(positions + self._shift[documents])


def parts(split: TokenSplit) -> list[SplitPart]:
    """A split's corpora, in the mixture's order; none where there is no mixture.

    Raises:
        UserError: the list of whose documents they are is damaged.
    """
    if not split.mixture:
        return []
    path = split.folder / SOURCES
    try:
        sources = np.load(path, allow_pickle=False)
    except UNREADABLE as error:
        raise UserError(f"{path} is damaged: {error}; run the stage `tokenize` again") from None
    known = len(split.mixture)
    if sources.shape != (split.documents,) or sources.max(initial=0) >= known:
        raise UserError(f"{path} is not of this split: run the stage `tokenize` again")
    return [
        SplitPart(split, entry.name, entry.weight, np.flatnonzero(sources == number))
        for number, entry in enumerate(split.mixture)
    ]
