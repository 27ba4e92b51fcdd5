"""How a classifier takes a text and what its logits say: read without torch.

Shapes: N texts, K labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

LongTexts = Literal["head", "tail", "windows"]
HALF = 0.5


@dataclass(frozen=True)
class Reading:
    """What a classifier needs beside its weights.

    Attributes:
        labels: class names in the order of the logits.
        maximum_length: tokens that the model sees at once; None is all.
        readout: the position that is read, `last_token` or `padded_last`.
        long_texts: of more tokens than that the first are kept, or the last, or the text is cut
            into windows whose logits are averaged.
        temperature: what logits are divided by before softmax (Guo et al. 2017).
        threshold: probability from which the second of two labels is chosen.
    """

    labels: tuple[str, ...]
    maximum_length: int | None = None
    readout: str = "last_token"
    long_texts: LongTexts = "head"
    temperature: float = 1.0
    threshold: float = HALF

    @classmethod
    def from_config(cls, labels: Sequence[str], ours: dict[str, Any]) -> "Reading":
        """From what a folder's config.json has under `gptmill`."""
        known = cls.__dataclass_fields__.keys() - {"labels"}
        return cls(tuple(labels), **{key: ours[key] for key in known if ours.get(key) is not None})

    def pieces(self, ids: list[int]) -> list[list[int]]:
        """What the model sees of one text."""
        return cut(ids, self.maximum_length, self.long_texts)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities [N, K] of logits [N, K], float64."""
        return softmax(logits.astype(np.float64) / self.temperature)

    def choose(self, probabilities: np.ndarray) -> np.ndarray:
        """The label's index for each row of [N, K]."""
        return choose(probabilities, self.threshold)


def cut(ids: list[int], length: int | None, long_texts: LongTexts) -> list[list[int]]:
    """A text of at most `length` tokens as it is; a longer one's head, tail, or windows.

    Windows are as few as cover the text, all of `length` tokens and evenly spaced.
    """
    if length is None or len(ids) <= length:
        return [ids]
    if long_texts == "head":
        return [ids[:length]]
    if long_texts == "tail":
        return [ids[-length:]]
    count = -(-len(ids) // length)
    starts = [round(i * (len(ids) - length) / (count - 1)) for i in range(count)]
    return [ids[start : start + length] for start in starts]


def mean_of_pieces(logits: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """The mean logits [N, K] of N texts' pieces [sum(counts), K], which stand in order."""
    if len(logits) == len(counts):
        return logits
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    sums = np.add.reduceat(logits, starts, axis=0)
    return (sums / np.asarray(counts)[:, None]).astype(logits.dtype)


def choose(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """The likeliest label's index for each row of [N, K]; of two labels the second from
    `threshold` on."""
    if probabilities.shape[1] == 2:
        return (probabilities[:, 1] >= threshold).astype(np.int64)
    return probabilities.argmax(axis=1)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, float64."""
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)
