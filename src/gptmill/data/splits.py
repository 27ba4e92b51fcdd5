"""Train, validation and test: as files are named for them, else by shares of the text."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gptmill.data.corpus import SPLITS, Document, documents
from gptmill.data.duplicates import Dropped, Sketches, drop_duplicates
from gptmill.errors import UserError

DROPPED = 255  # in a plan: no split
CUT = 254  # a piece in each split
NEAR = 0.8  # of its share whole documents must give a split, or the longest are cut

Fractions = tuple[float, float, float]


@dataclass(frozen=True)
class Plan:
    """Which split each document of a folder goes to, by its position in reading order.

    Attributes:
        splits: [documents] indices into `SPLITS`; 255 for what was dropped, 254 for what is cut.
        cuts: of a document that is cut by position, the share of its characters in each split.
        shares: the share of all text that each split gets.
        dropped: what was left out, and why.
    """

    splits: np.ndarray
    cuts: dict[int, Fractions]
    shares: Fractions
    dropped: Dropped = field(default_factory=Dropped)


def plan_splits(
    folder: Path, *, validation_fraction: float, test_fraction: float, seed: int
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

    Raises:
        UserError: fractions that leave nothing to train on, or no text at all.
    """
    if validation_fraction + test_fraction >= 1:
        raise UserError(
            "tokenize.validation_fraction and tokenize.test_fraction leave nothing to train on: "
            f"{validation_fraction} + {test_fraction}"
        )
    fractions = (1 - validation_fraction - test_fraction, validation_fraction, test_fraction)
    survey = _survey(folder, seed)
    dropped = Dropped()
    groups = drop_duplicates(
        survey.ids, survey.digests, survey.drawn, survey.sketches, survey.given, dropped
    )
    kept = groups >= 0
    if not kept.any():
        raise UserError(f"{folder} holds no text")
    splits = np.full(len(kept), DROPPED, np.uint8)
    cuts: dict[int, Fractions] = {}
    if (survey.given[kept] >= 0).any():
        splits[kept] = np.maximum(survey.given[kept], 0)
        given = set(splits[kept])
        wanted = tuple(0.0 if i in given and i else f for i, f in enumerate(fractions))
    else:
        splits[kept], wanted = 0, fractions
    if any(wanted[1:]):
        free = np.flatnonzero(splits == 0)
        _draw(free, survey, groups, _of_one(wanted), splits, cuts)
    return Plan(splits, cuts, _shares(survey.sizes, splits, cuts), dropped)


def _of_one(shares: tuple[float, ...]) -> Fractions:
    """Shares that add up to one."""
    total = sum(shares)
    train, validation, test = (share / total for share in shares) if 0.0 in shares else shares
    return train, validation, test


def split_documents(folder: Path, plan: Plan, split: str) -> Iterator[Document]:
    """Stream one split's documents in reading order.

    A document that is cut by position yields the piece that the split has: training text first,
    then validation, then test, with the split's name added to its id and no `nats`.
    """
    index = SPLITS.index(split)
    for number, (document, assigned) in enumerate(zip(documents(folder), plan.splits, strict=True)):
        if assigned == CUT:
            piece = _piece(document, plan.cuts[number], index)
            if piece.text:
                yield piece
        elif assigned == index:
            yield document


def _piece(document: Document, fractions: Fractions, index: int) -> Document:
    """The first 90% of a text's characters to train, the last 10% to validate, for example.

    A boundary within a character falls before it, where `int(0.9 * length)` puts it too.
    """
    begin, end = _bounds(len(document.text), fractions)[index : index + 2]
    last = max(i for i, fraction in enumerate(fractions) if fraction)
    text = document.text[begin:end]
    return Document(f"{document.id}#{SPLITS[index]}", text, None, ends=index == last)


def _bounds(length: int, fractions: Fractions) -> list[int]:
    return [int(length * (1 - sum(fractions[split:]))) for split in range(len(SPLITS) + 1)]


@dataclass(frozen=True)
class _Survey:
    """What one reading of a corpus leaves in memory, by document."""

    ids: list[str]
    keys: np.ndarray  # uint64, order of assignment
    digests: np.ndarray  # uint64, equal for texts alike but for white space and case; 0 if empty
    drawn: np.ndarray  # bool, an independent draw of a known source
    sizes: np.ndarray  # characters
    given: np.ndarray  # the split that its file is named for; -1 for none
    sketches: Sketches


def _survey(folder: Path, seed: int) -> _Survey:
    ids, keys, digests, drawn, sizes, given = [], [], [], [], [], []
    sketches = Sketches()
    for number, document in enumerate(documents(folder)):
        ids.append(document.id)
        keys.append(_hash64(f"{seed}:{document.id}"))
        drawn.append(document.nats is not None)
        # Draws are never compared.
        text = document.text if drawn[-1] else " ".join(document.text.casefold().split())
        digests.append(_hash64(text) if document.text.strip() else 0)
        sizes.append(len(document.text))
        given.append(SPLITS.index(document.split) if document.split else -1)
        if not drawn[-1]:
            sketches.add(number, document.text)
    return _Survey(
        ids,
        np.array(keys, np.uint64),
        np.array(digests, np.uint64),
        np.array(drawn),
        np.array(sizes, np.int64),
        np.array(given, np.int8),
        sketches,
    )


def _hash64(text: str) -> int:
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def _draw(
    free: np.ndarray,
    survey: _Survey,
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
    weights = np.ones(len(free)) if survey.drawn[free].all() else survey.sizes[free]
    splits[free] = _assign(survey.keys[free], groups[free], weights, fractions)
    short = [0.0, 0.0, 0.0]
    for held in (1, 2):
        share = fractions[held] * weights.sum()
        found = weights[splits[free] == held].sum()
        short[held] = share - found if found < NEAR * share else 0.0
    for number in free[np.argsort(-survey.sizes[free], kind="stable")]:
        if not any(short):
            break
        if splits[number] == 0:
            # At least half of a document stays where its kind is learned.
            size = survey.sizes[number]
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
