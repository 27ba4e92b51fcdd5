"""Batches from several corpora by weight."""

from collections.abc import Sequence

import numpy as np

from gptmill.batching import right_padded
from gptmill.data.documents import IGNORED
from gptmill.engine.state import Batches

PLACE = 1 << 40  # rows of one corpus, at most


class MixtureBatches:
    """Each row from a corpus that is drawn by weight; within a corpus every row once an epoch.

    The corpus of a row depends on the seed and the batch's number alone, and each corpus has an
    order, an epoch and a position of its own: a small one with a large weight is repeated while a
    large one is still in its first epoch.

    Args:
        corpora: one row a batch each.
        weights: of the corpora; their share of rows is their share of the sum.
    """

    def __init__(
        self,
        corpora: Sequence[Batches],
        weights: Sequence[float],
        batch_size: int,
        seed: int,
        end_of_text: int,
    ) -> None:
        self.corpora, self.batch_size, self.seed = list(corpora), batch_size, seed
        self.shares = np.array(weights) / sum(weights)
        self.end_of_text = end_of_text
        self.number = 0

    @property
    def batches_per_epoch(self) -> int:
        """Batches in as many rows as the corpora have together."""
        return -(-sum(corpus.batches_per_epoch for corpus in self.corpora) // self.batch_size)

    def next_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and, one token later, targets: int64 [B, T] each."""
        return self.batch_of(self.next_rows())

    def next_rows(self) -> np.ndarray:
        """For each row its corpus, times `PLACE`, and its number there: [B]."""
        chance = np.random.default_rng([self.seed, self.number])
        drawn = chance.choice(len(self.corpora), self.batch_size, p=self.shares)
        self.number += 1
        return np.array([k * PLACE + int(self.corpora[k].next_rows()[0]) for k in drawn.tolist()])

    def batch_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of different lengths are padded as documents are."""
        pairs = [self.corpora[row // PLACE].batch_of(np.array([row % PLACE])) for row in rows]
        inputs, _ = right_padded([pair[0][0] for pair in pairs], self.end_of_text)
        targets, _ = right_padded([pair[1][0] for pair in pairs], IGNORED)
        return inputs, targets

    def state_dict(self) -> dict[str, int]:
        state = {"number": self.number}
        for place, corpus in enumerate(self.corpora):
            state |= {f"{place}.{name}": value for name, value in corpus.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.number = state["number"]
        for place, corpus in enumerate(self.corpora):
            names = corpus.state_dict()
            corpus.load_state_dict({name: state[f"{place}.{name}"] for name in names})
