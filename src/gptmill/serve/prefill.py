"""A prefill in pieces. B rows, T tokens of the longest."""

from typing import Generic, TypeVar

import numpy as np

Slot = TypeVar("Slot")


class Prefill(Generic[Slot]):
    """A group's windows on their way through the model, unlike ones alone: `shared` [group] says
    which row of ids [B, T] each slot has."""

    def __init__(self, group: list[Slot], ids: np.ndarray, shared: np.ndarray) -> None:
        self.group, self.shared = group, shared
        self._ids, self._read = ids, 0

    def take(self, tokens: int) -> np.ndarray:
        """The next ids [B, t], about `tokens` in all."""
        first = self._read
        self._read = min(self._ids.shape[1], first + max(1, tokens // len(self._ids)))
        return self._ids[:, first : self._read]

    @property
    def is_read(self) -> bool:
        return self._read == self._ids.shape[1]
