"""Which documents repeat others, whole or in part, in bounded memory."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from gptmill.data.scripts import without_spaces

SHINGLE_WORDS = 8
SKETCH_LIMIT = 1 << 22  # sampled shingles in memory, 12 bytes each
NEAR_DUPLICATE = 0.5  # share of a document's shingles that is in longer ones already
RELATED = 0.02  # from this share on two documents stay in one split
SMALLEST_SKETCH = 16  # fewer sampled shingles say nothing about a share
# Of texts that have few words, or no spaces between them, runs of characters are compared instead:
# fewer where a character is a word's worth.
SHORT_WORDS = 24
RUN, RUN_WITHOUT_SPACES = 20, 8
RELATED_RUNS = 0.25  # set phrases recur: a smaller share of runs says nothing


@dataclass
class Dropped:
    """What was left out: reason → count, and which document each duplicate repeats."""

    counts: Counter[str] = field(default_factory=Counter)
    duplicates: list[dict[str, object]] = field(default_factory=list)


class Sketches:
    """Sampled hashes of every document's shingles, in bounded memory.

    A shingle is kept if its hash is divisible by a modulus that doubles whenever the limit is
    reached (FracMinHash; Broder 1997, Irber et al. 2022), so the same shingles are kept in every
    document, and shares of shared shingles are estimated without bias.
    """

    def __init__(self, limit: int = SKETCH_LIMIT) -> None:
        self.limit = limit
        self.modulus = 1
        self._hashes = [np.empty(0, np.uint64)]
        self._owners = [np.empty(0, np.int32)]
        self._count = 0
        self.runs: set[int] = set()  # documents whose shingles are of characters

    def add(self, number: int, text: str) -> None:
        found, of_characters = shingles(text)
        hashes = np.unique(found)
        if of_characters:
            self.runs.add(number)
        self._append(hashes[hashes % np.uint64(self.modulus) == 0], number)
        while self._count > self.limit:
            self.modulus *= 2
            self._thin()

    def _append(self, hashes: np.ndarray, number: int) -> None:
        self._hashes.append(hashes)
        self._owners.append(np.full(len(hashes), number, np.int32))
        self._count += len(hashes)

    def _thin(self) -> None:
        hashes, owners = self.arrays()
        keep = hashes % np.uint64(self.modulus) == 0
        self._hashes, self._owners = [hashes[keep]], [owners[keep]]
        self._count = int(keep.sum())

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All hashes and, beside each, the number of its document (ascending)."""
        return np.concatenate(self._hashes), np.concatenate(self._owners)


def shingles(text: str) -> tuple[np.ndarray, bool]:
    """A 64-bit hash of every run of 8 words, case and punctuation aside, or of every run of
    characters where words are few or not told apart; and whether it is of characters."""
    words = re.findall(r"\w+", text.lower())
    endless = without_spaces(text)
    if not endless and len(words) >= SHORT_WORDS:
        codes = np.fromiter((crc32(word.encode()) for word in words), np.uint64, len(words))
        return _rolling(codes, SHINGLE_WORDS), False
    letters = "".join(words)
    codes = np.frombuffer(letters.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    # Mixed, since neighboring letters differ little; and never equal to a word's.
    codes = (codes + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93)
    return _rolling(codes, RUN_WITHOUT_SPACES if endless else RUN), True


def _rolling(codes: np.ndarray, length: int) -> np.ndarray:
    """A hash of every run of `length` codes."""
    count = len(codes) - length + 1
    if count < 1:
        return np.empty(0, np.uint64)
    hashes = np.zeros(count, np.uint64)
    for position in range(length):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[position : position + count]
    hashes ^= hashes >> np.uint64(31)  # mix, as splitmix64 does, so that the modulus samples evenly
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    return hashes ^ (hashes >> np.uint64(29))


@dataclass(frozen=True)
class _Overlap:
    """Of one document: what share of it others have, and which has most."""

    document: int
    share: float
    largest: int
    related: list[int]


def overlaps(sketches: Sketches, count: int) -> Iterator[_Overlap]:
    """Compare each document, longest first, with the longer ones that were kept."""
    hashes, owners = sketches.arrays()
    _, inverse = np.unique(hashes, return_inverse=True)
    starts = np.searchsorted(owners, np.arange(count + 1))
    sizes = np.diff(starts)
    first_with = np.full(int(inverse.max(initial=-1)) + 1, -1, np.int32)
    for document in np.argsort(-sizes, kind="stable"):
        found = inverse[starts[document] : starts[document + 1]]
        if len(found) < SMALLEST_SKETCH:
            continue
        seen_in = first_with[found]
        known = seen_in[seen_in >= 0]
        others, shared = np.unique(known, return_counts=True)
        share = len(known) / len(found)
        largest = int(others[shared.argmax()]) if len(others) else -1
        least = RELATED_RUNS if int(document) in sketches.runs else RELATED
        related = others[shared >= least * len(found)]
        yield _Overlap(int(document), share, largest, [int(other) for other in related])
        if share < NEAR_DUPLICATE:
            first_with[found[seen_in < 0]] = document


# --- Dropping


def drop_duplicates(
    ids: list[str],
    digests: np.ndarray,
    drawn: np.ndarray,
    sketches: Sketches,
    given: np.ndarray,
    dropped: Dropped,
) -> np.ndarray:
    """A group number for each document, equal for related ones; -1 for what is dropped.

    Args:
        digests: uint64 by document, equal for texts that are the same; 0 for an empty one.
        drawn: independent draws of a source, which all stay.
        given: the split that its file is named for, as a number, or -1; of equal texts the one
            of the highest stays, so that a test keeps its own.
    """
    groups = np.arange(len(ids))
    groups[digests == 0] = -1
    dropped.counts["empty"] = int((groups == -1).sum())
    first = _first_of_each(digests, given)
    for number in np.flatnonzero((first != np.arange(len(ids))) & (groups >= 0) & ~drawn):
        groups[number] = -1
        _report(dropped, "exact_duplicate", ids, int(number), int(first[number]), 1.0)
    parent = list(range(len(ids)))
    for overlap in overlaps(sketches, len(ids)):
        if groups[overlap.document] < 0:
            continue
        if overlap.share >= NEAR_DUPLICATE:
            groups[overlap.document] = -1
            _report(
                dropped, "near_duplicate", ids, overlap.document, overlap.largest, overlap.share
            )
            continue
        for other in overlap.related:
            parent[_root(parent, other)] = _root(parent, overlap.document)
    kept = np.flatnonzero(groups >= 0)
    groups[kept] = [_root(parent, int(number)) for number in kept]
    return groups


def _first_of_each(digests: np.ndarray, given: np.ndarray) -> np.ndarray:
    """For each document the one that stays of those with its text."""
    order = np.lexsort((np.arange(len(digests)), -given.astype(np.int64)))
    _, at, inverse = np.unique(digests[order], return_index=True, return_inverse=True)
    first = np.empty(len(digests), np.int64)
    first[order] = order[at[inverse]]
    return first


def _root(parent: list[int], number: int) -> int:
    """The name of a document's group; the way there is shortened."""
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number


def _report(
    dropped: Dropped, reason: str, ids: list[str], document: int, other: int, share: float
) -> None:
    dropped.counts[reason] += 1
    dropped.duplicates.append(
        {"document": ids[document], "reason": reason, "of": ids[other], "share": round(share, 3)}
    )
