"""Train, validation and test: as files are named for them, else by shares of the text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from gptmill.data.corpus import SPLITS, Document
from gptmill.data.duplicates import Dropped, drop_duplicates
from gptmill.data.sources import source_of
from gptmill.data.spool import Spool, read_corpus
from gptmill.errors import UserError
from gptmill.sources import Mixed

DROPPED = 255  # in a plan: no split
CUT = 254  # a piece in each split
NEAR = 0.8  # of its share whole documents must give a split, or the longest are cut

Fractions = tuple[float, float, float]


@dataclass(frozen=True)
class Plan:
    """Which split each document of a corpus goes to, by its position in reading order.

    What was read is kept on the disk as long as the plan is; `with` ends that on time.

    Attributes:
        spool: what was read.
        splits: [documents] indices into `SPLITS`; 255 for what was dropped, 254 for what is cut.
        cuts: of a document that is cut by position, the share of its characters in each split.
        shares: the share of all text that each split gets.
        dropped: what was left out, and why.
        mixture: corpora, if there are several.
        sources: [documents] whose each is, a position in the mixture.
    """

    spool: Spool
    splits: np.ndarray
    cuts: dict[int, Fractions]
    shares: Fractions
    dropped: Dropped = field(default_factory=Dropped)
    mixture: Sequence[Mixed] = ()
    sources: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))

    def __enter__(self) -> "Plan":
        return self

    def __exit__(self, *_: object) -> None:
        self.spool.close()


def plan_splits(
    folder: Path,
    *,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    workers: int = 1,
    beside: Path | None = None,
    mixture: Sequence[Mixed] = (),
) -> Plan:
    """Read a corpus once, leave duplicates out and assign each other document to a split.

    Dropped, each with a count: empty texts, exact duplicates but for white space and case (the
    first is kept, of named splits the test's), and near-duplicates, at least half of whose
    shingles stand in longer documents. Documents that share some go to the same split.

    Documents whose files are named for a split stay in it. The others are drawn, in an order that
    is a hash of seed and id, until a split's share of the text is met as nearly as whole documents
    allow; where they allow less than 80% of it, the end of the longest is cut off. Of fewer
    documents than splits each is cut. Documents with known `nats` are independent draws of a
    source: all of them stay, and they are counted, not measured.

    Args:
        workers: processes that read and clean; the plan does not depend on it.
        beside: what is read is kept in a temporary sibling of this path; None is the corpus.
        mixture: corpora of which each is divided by itself, so that each has its share held out.

    Raises:
        UserError: fractions that leave nothing to train on, no text at all, or a document of no
            corpus of the mixture.
    """
    if validation_fraction + test_fraction >= 1:
        raise UserError(
            "tokenize.validation_fraction and tokenize.test_fraction leave nothing to train on: "
            f"{validation_fraction} + {test_fraction}"
        )
    fractions = (1 - validation_fraction - test_fraction, validation_fraction, test_fraction)
    spool, sketches = read_corpus(folder, seed, workers, beside or folder)
    try:
        dropped = Dropped()
        groups = drop_duplicates(spool.records, spool.id, sketches, dropped)
        if not (groups >= 0).any():
            raise UserError(f"{folder} holds no text")
        return _planned(spool, groups, fractions, dropped, mixture)
    except BaseException:
        spool.close()
        raise


def _planned(
    spool: Spool,
    groups: np.ndarray,
    fractions: Fractions,
    dropped: Dropped,
    mixture: Sequence[Mixed],
) -> Plan:
    """A split for every document that has a group."""
    records, kept = spool.records, groups >= 0
    splits = np.full(len(kept), DROPPED, np.uint8)
    cuts: dict[int, Fractions] = {}
    if (records["given"][kept] >= 0).any():
        splits[kept] = np.maximum(records["given"][kept], 0)
        given = set(splits[kept])
        wanted = tuple(0.0 if i in given and i else f for i, f in enumerate(fractions))
    else:
        splits[kept], wanted = 0, fractions
    sources = np.array([source_of(id, mixture) for id in spool.ids()] if mixture else [], np.uint8)
    if any(wanted[1:]):
        free = np.flatnonzero(splits == 0)
        corpora = [free[sources[free] == k] for k in range(len(mixture))] if mixture else [free]
        taken = _Taken(groups, splits)
        for documents in corpora:
            rest = taken.follow(documents) if mixture else documents
            _draw(rest, records, groups, _of_one(wanted), splits, cuts)
    shares = _shares(records["characters"], splits, cuts)
    return Plan(spool, splits, cuts, shares, dropped, mixture, sources)


class _Taken:
    """Which split a group of related documents went to with an earlier corpus."""

    def __init__(self, groups: np.ndarray, splits: np.ndarray) -> None:
        self._groups, self._splits = groups, splits
        self._known: dict[int, int] = {}
        self._last = np.empty(0, np.int64)

    def follow(self, documents: np.ndarray) -> np.ndarray:
        """Send documents where their group is, in place; those whose group is new are left."""
        for number in self._last.tolist():
            split = int(self._splits[number])
            self._known[int(self._groups[number])] = 0 if split == CUT else split
        self._last = documents
        new = np.array([int(group) not in self._known for group in self._groups[documents]], bool)
        for number in documents[~new].tolist():
            self._splits[number] = self._known[int(self._groups[number])]
        return documents[new]


def _of_one(shares: tuple[float, ...]) -> Fractions:
    """Shares that add up to one."""
    total = sum(shares)
    train, validation, test = (share / total for share in shares) if 0.0 in shares else shares
    return train, validation, test


def split_documents(plan: Plan, split: str) -> Iterator[Document]:
    """Stream one split's documents in reading order.

    A document that is cut by position yields the piece that the split has: training text first,
    then validation, then test, with the split's name added to its id and no `nats`.
    """
    index = SPLITS.index(split)
    for number, document in plan.spool.documents():
        assigned = plan.splits[number]
        if assigned == CUT:
            text, ends = pieces(document.text, plan.cuts[number])[index]
            if text:
                yield replace(
                    document, id=f"{document.id}#{split}", text=text, nats=None, ends=ends
                )
        elif assigned == index:
            yield document


def pieces(text: str, fractions: Fractions) -> list[tuple[str, bool]]:
    """The first 90% of a text's characters to train, the last 10% to validate, for example: what
    each split has, and whether the text ends there.

    A boundary within a character falls before it, where `int(0.9 * length)` puts it too.
    """
    bounds = _bounds(len(text), fractions)
    last = max(i for i, fraction in enumerate(fractions) if fraction)
    return [(text[bounds[i] : bounds[i + 1]], i == last) for i in range(len(SPLITS))]


def _bounds(length: int, fractions: Fractions) -> list[int]:
    return [int(length * (1 - sum(fractions[split:]))) for split in range(len(SPLITS) + 1)]


def _draw(
    free: np.ndarray,
    records: np.ndarray,
    groups: np.ndarray,
    fractions: Fractions,
    splits: np.ndarray,
    cuts: dict[int, Fractions],
) -> None:
    """Assign the documents `free`, groups kept whole, or cut them; in place."""
    if len(free) < len(SPLITS):
        splits[free] = CUT
        cuts |= {int(number): fractions for number in free}
        return
    sizes = records["characters"]
    weights = np.ones(len(free)) if records["drawn"][free].all() else sizes[free]
    splits[free] = _assign(records["key"][free], groups[free], weights, fractions)
    short = [0.0, 0.0, 0.0]
    for held in (1, 2):
        share = fractions[held] * weights.sum()
        found = weights[splits[free] == held].sum()
        short[held] = share - found if found < NEAR * share else 0.0
    for number in free[np.argsort(-sizes[free], kind="stable")]:
        if not any(short):
            break
        if splits[number] == 0:
            # At least half of a document stays where its kind is learned.
            size = sizes[number]
            scale = min(1.0, size / 2 / sum(short))
            _, validation, test = (part * scale / size for part in short)
            splits[number] = CUT
            cuts[int(number)] = (1 - validation - test, validation, test)
            short = [max(0.0, part - part * scale) for part in short]


def _assign(
    keys: np.ndarray, groups: np.ndarray, weights: np.ndarray, fractions: Fractions
) -> np.ndarray:
    """An index into `SPLITS` for each document, groups kept whole.

    Groups come in the order of their smallest key; each goes to the first of validation and test
    whose share it brings nearer, else to train.
    """
    names, inverse = np.unique(groups, return_inverse=True)
    sizes = np.bincount(inverse, weights)
    smallest = np.full(len(names), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, inverse, keys)
    room = [0.0, *(fraction * weights.sum() for fraction in fractions[1:])]
    if (weights == 1).all():  # counted, and at least one
        room = [0, *(max(1, round(r)) if f else 0 for r, f in zip(room[1:], fractions[1:]))]
    chosen = np.zeros(len(names), np.uint8)
    for group in np.argsort(smallest, kind="stable"):
        chosen[group] = next((i for i in (1, 2) if room[i] >= sizes[group] / 2), 0)
        room[chosen[group]] -= sizes[group] * (chosen[group] > 0)
        if not any(left > 0 for left in room):
            break
    return chosen[inverse]


def _shares(sizes: np.ndarray, splits: np.ndarray, cuts: dict[int, Fractions]) -> Fractions:
    found = [float(sizes[splits == i].sum()) for i in range(len(SPLITS))]
    for number, fractions in cuts.items():
        found = [sum_ + sizes[number] * share for sum_, share in zip(found, fractions)]
    train, validation, test = (part / max(1.0, sum(found)) for part in found)
    return train, validation, test
