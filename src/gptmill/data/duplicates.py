"""Which documents repeat others, whole or in part, in bounded memory."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

SKETCH_LIMIT = 1 << 22  # sampled shingles in memory, 12 bytes each
SHINGLE_BYTES = 8  # of text behind a shingle, at most on average
PLACE_BITS = 24
NEAR_DUPLICATE = 0.5  # share of a document's shingles that is in longer ones already
RELATED = 0.02  # from this share on two documents stay in one split
SMALLEST_SKETCH = 16  # fewer sampled shingles say nothing about a share
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

    def __init__(self, limit: int = SKETCH_LIMIT, text_bytes: int = 0) -> None:
        """`text_bytes` is the size of all texts: what will not be kept need not be gathered."""
        self.limit = limit
        self.modulus = 1
        while text_bytes / SHINGLE_BYTES / self.modulus > limit:
            self.modulus *= 2
        self._hashes = [np.empty(0, np.uint64)]
        self._owners = [np.empty(0, np.int32)]
        self._count = 0

    def add(self, hashes: np.ndarray, owners: np.ndarray) -> None:
        """Keep what the modulus keeps of shingles (see `fingerprint`) and of their documents,
        whose numbers ascend from call to call."""
        keep = hashes & np.uint64(self.modulus - 1) == 0
        self._hashes.append(hashes[keep])
        self._owners.append(owners[keep].astype(np.int32))
        self._count += len(self._hashes[-1])
        while self._count > self.limit:
            self.modulus *= 2
            self._thin()

    def _thin(self) -> None:
        hashes, owners = self.arrays()
        keep = hashes & np.uint64(self.modulus - 1) == 0
        self._hashes, self._owners = [hashes[keep]], [owners[keep]]
        self._count = int(keep.sum())

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All hashes and, beside each, the number of its document (ascending)."""
        return np.concatenate(self._hashes), np.concatenate(self._owners)


@dataclass(frozen=True)
class _Overlap:
    """Of one document: what share of it others have, and which has most."""

    document: int
    share: float
    largest: int
    related: list[int]


def overlaps(sketches: Sketches, of_characters: np.ndarray) -> Iterator[_Overlap]:
    """Compare each document, longest first, with the longer ones that were kept.

    Args:
        of_characters: [documents] whether a document's shingles are of characters.
    """
    hashes, owners = sketches.arrays()
    count = len(of_characters)
    sizes = np.diff(np.searchsorted(owners, np.arange(count + 1)))
    perhaps_shared = _perhaps_shared(hashes, owners)
    hashes, owners = hashes[perhaps_shared], owners[perhaps_shared]
    values, place = np.unique(hashes, return_inverse=True)
    starts = np.searchsorted(owners, np.arange(count + 1))
    first_with = np.full(len(values), -1, np.int32)
    for document in np.argsort(-sizes, kind="stable"):
        if sizes[document] < SMALLEST_SKETCH:
            break
        found = place[starts[document] : starts[document + 1]]
        seen_in = first_with[found]
        known = seen_in[seen_in >= 0]
        others, shared = np.unique(known, return_counts=True)
        share = len(known) / sizes[document]
        largest = int(others[shared.argmax()]) if len(others) else -1
        least = RELATED_RUNS if of_characters[document] else RELATED
        related = others[shared >= least * sizes[document]]
        yield _Overlap(int(document), share, largest, [int(other) for other in related])
        if share < NEAR_DUPLICATE:
            first_with[found[seen_in < 0]] = document


def _perhaps_shared(hashes: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Whether another document has a hash too, or one that falls on the same of 16 million places:
    the others need not be sorted."""
    places = (hashes >> np.uint64(64 - PLACE_BITS)).astype(np.int64)
    last = np.empty(1 << PLACE_BITS, np.int32)
    last[places] = owners
    by_several = np.zeros(1 << PLACE_BITS, bool)
    by_several[places[last[places] != owners]] = True
    return by_several[places]


# --- Dropping


def drop_duplicates(
    records: np.ndarray, name: Callable[[int], str], sketches: Sketches, dropped: Dropped
) -> np.ndarray:
    """A group number for each document, equal for related ones; -1 for what is dropped.

    Of equal texts the one of the last split stays, so that a test keeps its own. Draws of a known
    source all stay.

    Args:
        records: of `gptmill.data.spool.RECORD`, by document.
        name: the id of a document.
    """
    digests, count = records["digest"], len(records)
    groups = np.arange(count)
    groups[digests == 0] = -1
    dropped.counts["empty"] = int((groups == -1).sum())
    first = _first_of_each(digests, records["given"])
    compared = (groups >= 0) & ~records["drawn"]
    for number in np.flatnonzero((first != np.arange(count)) & compared):
        groups[number] = -1
        _report(dropped, "exact_duplicate", name, int(number), int(first[number]), 1.0)
    parent: dict[int, int] = {}  # of documents that have one
    for overlap in overlaps(sketches, records["of_characters"]):
        if groups[overlap.document] < 0:
            continue
        if overlap.share >= NEAR_DUPLICATE:
            groups[overlap.document] = -1
            _report(
                dropped, "near_duplicate", name, overlap.document, overlap.largest, overlap.share
            )
            continue
        for other in overlap.related:
            root, above = _root(parent, other), _root(parent, overlap.document)
            if root != above:
                parent[root] = above
    for member in list(parent):
        if groups[member] >= 0:
            groups[member] = _root(parent, member)
    return groups


def _first_of_each(digests: np.ndarray, given: np.ndarray) -> np.ndarray:
    """For each document the one that stays of those with its text."""
    order = np.lexsort((np.arange(len(digests)), -given.astype(np.int64)))
    _, at, inverse = np.unique(digests[order], return_index=True, return_inverse=True)
    first = np.empty(len(digests), np.int64)
    first[order] = order[at[inverse]]
    return first


def _root(parent: dict[int, int], number: int) -> int:
    """The name of a document's group; the way there is shortened."""
    while number in parent:
        above = parent[number]
        parent[number] = parent.get(above, above)
        number = above
    return number


def _report(
    dropped: Dropped,
    reason: str,
    name: Callable[[int], str],
    document: int,
    other: int,
    share: float,
) -> None:
    dropped.counts[reason] += 1
    dropped.duplicates.append(
        {
            "document": name(document),
            "reason": reason,
            "of": name(other),
            "share": round(float(share), 3),
        }
    )
