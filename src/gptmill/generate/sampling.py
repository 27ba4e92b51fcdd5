"""From logits to the next token: greedy, temperature, top-k, top-p, min-p, repetition penalty.

The filters and their order are those of `transformers`' logits processors: repetition penalty,
temperature, top-k, top-p, min-p, each on what the one before left. Numpy alone, so that every
runtime draws the same tokens from the same logits. V is the vocabulary, B the batch.
"""

from collections.abc import Iterable, Sequence, Set

import numpy as np

from gptmill.errors import UserError
from gptmill.sampling_options import SamplingOptions

NOT_FINITE = (
    "the model's logits are not finite numbers: its weights are damaged, or its training diverged; "
    "check them with `gptmill perplexity`, or load another model"
)


class Sampler:
    """Chooses the next token of each sequence in a batch.

    A sequence draws from its own counter-based generator (Philox, Salmon et al. 2011), keyed by
    the seed and the sequence's index: its tokens do not depend on the batch it is in.

    Args:
        prompts: token ids before each response, for the repetition penalty.
        indices: the number of each sequence in its whole job; by default its place in the batch.
    """

    def __init__(
        self,
        options: SamplingOptions,
        prompts: Sequence[Sequence[int]],
        indices: Sequence[int] | None = None,
    ) -> None:
        indices = range(len(prompts)) if indices is None else indices
        self._rows = [
            SequenceSampler(options, prompt, index)
            for prompt, index in zip(prompts, indices, strict=True)
        ]

    def next_tokens(self, logits: np.ndarray) -> np.ndarray:
        """Ids [B] int64 for logits [B, V] float32, which stay as they are.

        Raises:
            UserError: a row's likeliest logit is not a finite number.
        """
        return next_tokens(logits, self._rows)

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows of the batch, in this order."""
        self._rows = [self._rows[row] for row in rows]


class SequenceSampler:
    """How one sequence's tokens are chosen: options, random stream, and the tokens it has seen."""

    def __init__(self, options: SamplingOptions, prompt: Iterable[int], index: int = 0) -> None:
        key = np.array([options.seed, index], np.uint64)
        self.options = options
        self.generator = np.random.Generator(np.random.Philox(key=key))
        self.seen = set(prompt) if options.repetition_penalty != 1 else set()


def next_tokens(logits: np.ndarray, samplers: Sequence[SequenceSampler]) -> np.ndarray:
    """The next token of each sequence, whose options may differ: ids [B] int64 for logits [B, V].

    Raises:
        UserError: a row's likeliest logit is not a finite number.
    """
    scores = _penalized(logits, samplers)
    tokens = scores.argmax(axis=1)
    if not is_finite(scores).all():
        raise UserError(NOT_FINITE)
    drawn = [row for row, sampler in enumerate(samplers) if sampler.options.temperature > 0]
    if drawn:
        chosen = [samplers[row] for row in drawn]
        tokens[drawn] = _draw(
            *_weights(scores[drawn], [sampler.options for sampler in chosen]),
            np.array([sampler.generator.random() for sampler in chosen]),
        )
    for sampler, token in zip(samplers, tokens, strict=True):
        if sampler.options.repetition_penalty != 1:
            sampler.seen.add(int(token))
    return tokens


def is_finite(logits: np.ndarray) -> np.ndarray:
    """Of each row of logits [B, V], whether its likeliest is a finite number."""
    return np.isfinite(logits.max(axis=1))


def distribution(
    logits: np.ndarray, options: SamplingOptions, seen: Set[int] = frozenset()
) -> tuple[np.ndarray, np.ndarray]:
    """What the options leave of one row of logits [V]: ids, ascending, and their probabilities.

    `seen` are the ids that the repetition penalty applies to. At temperature 0 one id is left,
    the first of the likeliest.
    """
    scores = _penalized(logits[None], [SequenceSampler(options, seen)])
    if not is_finite(scores).all():
        raise UserError(NOT_FINITE)
    if options.temperature == 0:
        return scores.argmax(axis=1), np.ones(1)
    ids, weights = _weights(scores, [options])
    kept = weights[0] > 0
    return ids[0, kept], weights[0, kept] / weights.sum()


def _penalized(logits: np.ndarray, samplers: Sequence[SequenceSampler]) -> np.ndarray:
    """The logits, those of seen tokens made less likely in a copy."""
    rows = [row for row, sampler in enumerate(samplers) if sampler.seen]
    if not rows:
        return logits
    scores = logits.copy()
    for row in rows:
        seen, penalty = samplers[row].seen, np.float32(samplers[row].options.repetition_penalty)
        ids = np.fromiter(seen, np.int64, len(seen))
        known = logits[row, ids]
        scores[row, ids] = np.where(known < 0, known * penalty, known / penalty)
    return scores


def _weights(
    scores: np.ndarray, options: Sequence[SamplingOptions]
) -> tuple[np.ndarray, np.ndarray]:
    """What filters leave of scores [B, V]: ids [B, N], ascending, and weights [B, N] float64.

    The likeliest token weighs 1, one that is filtered out 0. N depends on the batch; every sum
    therefore runs from left to right, which zeros at a row's end do not change.
    """
    best = scores.max(axis=1, keepdims=True)
    ids = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    top_k = np.array([option.top_k for option in options])
    if ((top_k > 0) & (top_k < scores.shape[1])).any():
        kept = _among_top_k(scores, top_k)
        counts = kept.sum(axis=1)
        ids, scores = _compact(kept, scores, np.float32(-np.inf))
    else:
        counts = np.full(len(scores), scores.shape[1])
    temperatures = np.array([[option.temperature] for option in options], np.float32)
    # Against the likeliest, which is 1 before normalizing: nothing overflows at any temperature.
    with np.errstate(over="ignore", divide="ignore"):
        weights = np.exp((scores - best) / temperatures)
    top_p = np.array([option.top_p for option in options])
    if (top_p < 1).any():
        ids, weights = _within_top_p(ids, weights, counts, top_p[:, None])
    min_p = np.array([[option.min_p] for option in options])
    return ids, np.where(weights >= min_p, weights, 0).astype(np.float64)


def _among_top_k(scores: np.ndarray, top_k: np.ndarray) -> np.ndarray:
    """Where scores [B, V] are at least their row's k-th largest; everywhere in rows of k = 0."""
    thresholds = np.full((len(scores), 1), -np.inf, np.float32)
    for k in set(top_k.tolist()) - {0}:
        if k < scores.shape[1]:
            rows = np.flatnonzero(top_k == k)
            thresholds[rows, 0] = np.partition(scores[rows], -k, axis=1)[:, -k]
    return scores >= thresholds


def _compact(kept: np.ndarray, values: np.ndarray, filler: np.generic) -> tuple[np.ndarray, ...]:
    """Columns [B, N] and values [B, N] where `kept` [B, V] holds, in order, then `filler`s."""
    rows, columns = np.nonzero(kept)
    counts = np.bincount(rows, minlength=len(kept))
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = (len(kept), max(1, int(counts.max())))
    found, compact = np.zeros(shape, np.int64), np.full(shape, filler, values.dtype)
    found[rows, places], compact[rows, places] = columns, values[rows, columns]
    return found, compact


def _within_top_p(
    ids: np.ndarray, weights: np.ndarray, counts: np.ndarray, top_p: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The fewest, likeliest entries whose share of all weight reaches `top_p` [B, 1]; of equals,
    the first. The likeliest always stays.

    Entries that all together weigh no more than the part to drop are out without being sorted.
    """
    total = np.cumsum(weights, axis=1, dtype=np.float64)[:, -1:]
    candidates = weights > (1 - top_p) * total / counts[:, None]
    rows = np.arange(len(weights))
    candidates[rows, weights.argmax(axis=1)] = True
    columns, weights = _compact(candidates, weights, np.float32(0))
    ids = np.take_along_axis(ids, columns, axis=1)
    order = np.argsort(-weights, axis=1, kind="stable")
    ordered = np.take_along_axis(weights, order, axis=1)
    before = np.cumsum(ordered, axis=1, dtype=np.float64) - ordered
    kept = (before < top_p * total) | (top_p == 1)
    kept[:, 0] = True
    np.put_along_axis(weights, order, np.where(kept, ordered, 0), axis=1)
    return ids, weights


def _draw(ids: np.ndarray, weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """A token of each row, by inverting the cumulative distribution at a uniform number [B]."""
    cumulative = np.cumsum(weights, axis=1)
    places = (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(axis=1)
    last = weights.shape[1] - 1 - (weights[:, ::-1] > 0).argmax(axis=1)
    return ids[np.arange(len(ids)), np.minimum(places, last)]
