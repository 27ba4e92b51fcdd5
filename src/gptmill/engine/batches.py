"""Shuffled batches of examples of unequal length, with a resumable position."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np


class Examples(Protocol):
    """Anything with a length and an index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class ShuffledBatches:
    """Every example once per epoch, in an order drawn from the seed and the epoch alone.

    Args:
        collate: a list of examples to one batch.
        lengths: tokens per example; batches are drawn from pools sorted by length, so that
            little is padding, while batches still come in random order.
    """

    POOL = 16  # batches sorted together: enough to save padding, few enough to keep mixing

    def __init__(
        self,
        examples: Examples,
        collate: Callable[[list[Any]], Any],
        batch_size: int,
        seed: int,
        lengths: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        self.examples = examples
        self.collate = collate
        self.batch_size = batch_size
        self.seed = seed
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.epoch = 0
        self.cursor = 0
        self._order = self._batches_of(0)

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def next_batch(self) -> Any:
        return self.batch_of(self.next_rows())

    def next_rows(self) -> np.ndarray:
        """The numbers of the next batch's examples."""
        if self.cursor == self.batches_per_epoch:
            self.epoch, self.cursor = self.epoch + 1, 0
            self._order = self._batches_of(self.epoch)
        chosen = self._order[self.cursor]
        self.cursor += 1
        return chosen

    def batch_of(self, rows: np.ndarray) -> Any:
        """A batch of the examples of those numbers."""
        return self.collate([self.examples[i] for i in rows])

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.cursor = state["epoch"], state["cursor"]
        self._order = self._batches_of(self.epoch)

    def _batches_of(self, epoch: int) -> list[np.ndarray]:
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.examples))
        if self.lengths is not None:
            pool = self.POOL * self.batch_size
            pools = [order[i : i + pool] for i in range(0, len(order), pool)]
            order = np.concatenate([p[np.argsort(self.lengths[p], kind="stable")] for p in pools])
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        if self.lengths is not None:
            batches = [batches[i] for i in generator.permutation(len(batches))]
        return batches
