"""What OpenAI's requests add to logits before a token is chosen. V is the vocabulary."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Adjustment:
    """Changes of one response's logits.

    Args:
        bias: added to the logits of tokens, by id.
        presence, frequency: taken from a token that the response has, once, and for each time
            that it has it (OpenAI's API reference, *frequency and presence penalties*).
        ends: tokens that end the response; they may not come before `min_tokens` others have.
    """

    bias: Mapping[int, float]
    presence: float = 0.0
    frequency: float = 0.0
    ends: tuple[int, ...] = ()
    min_tokens: float = 0

    def apply(self, logits: np.ndarray, ids: Sequence[int]) -> np.ndarray:
        """Logits [1, V] float32 after the response's `ids`, adjusted; the given ones stay."""
        adjusted = logits.copy()
        for id, value in self.bias.items():
            adjusted[0, id] += value
        if self.presence or self.frequency:
            for id, count in Counter(ids).items():
                adjusted[0, id] -= self.presence + count * self.frequency
        if len(ids) < self.min_tokens:
            adjusted[0, list(self.ends)] = -np.inf
        return adjusted
