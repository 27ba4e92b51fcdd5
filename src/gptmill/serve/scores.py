"""Log-probabilities of tokens, in the model's own distribution. V is the vocabulary."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptmill.runtime.session import OnnxDecoder

PIECE = 64  # tokens whose logits are held at the same time


class Candidate(NamedTuple):
    """A token and its log-probability; None for the first of a text, which nothing predicts."""

    id: int
    logprob: float | None


class Scored(NamedTuple):
    """A token that stands there, and the likeliest ones in its place."""

    chosen: Candidate
    top: list[Candidate]


def score(logits: np.ndarray, token: int, top: int) -> Scored:
    """A token's log-probability under logits [V], and the `top` likeliest, in order."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    likeliest = np.argpartition(-scores, min(top, len(scores) - 1))[:top]
    ordered = likeliest[np.argsort(-scores[likeliest], kind="stable")]
    return Scored(
        Candidate(token, float(scores[token])),
        [Candidate(int(id), float(scores[id])) for id in ordered],
    )


def prompt_scores(
    decoder: OnnxDecoder, ids: Sequence[int], top: int, vocabulary_size: int
) -> list[Scored]:
    """The scores of a text's tokens, each after those before it; the text fits the context.

    Args:
        decoder: one of its own; its cache is overwritten.
    """
    scored = [Scored(Candidate(ids[0], None), [])]
    decoder.begin(np.zeros(1, np.int64))
    for start in range(0, len(ids) - 1, PIECE):
        piece = np.array([ids[:-1][start : start + PIECE]])
        logits = decoder.extend(piece, every=True)[0, :, :vocabulary_size]
        scored += [score(row, id, top) for row, id in zip(logits, ids[start + 1 :])]
    return scored
