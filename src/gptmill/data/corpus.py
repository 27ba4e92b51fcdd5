"""Documents to pretrain on: reading, cleaning, finding duplicates, and splitting.

The raw folder is never changed: books are cleaned as they are read. Two passes over it, each in
bounded memory, make a plan (`plan_splits`) and then the tokens (`gptmill.data.tokens`).
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import numpy as np

from gptmill.errors import UserError
from gptmill.files import atomic_file

SPLITS = ("train", "validation", "test")
EMBEDDED_FILE = "documents.jsonl"


@dataclass(frozen=True, slots=True)
class Document:
    """One text. `nats` is -ln of its probability under its own source, where that is known."""

    id: str
    text: str
    nats: float | None


# --- Reading


def documents(folder: Path) -> Iterator[Document]:
    """Stream a raw corpus: `documents.jsonl` if it is there, else each `*.txt` by name.

    Text files have their line ends normalised; those of Project Gutenberg are cleaned
    (`clean_gutenberg`).

    Raises:
        UserError: no documents, a line that is not a document, bytes that are not UTF-8.
    """
    lines = folder / EMBEDDED_FILE
    if lines.exists():
        yield from _embedded_documents(lines)
        return
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise UserError(f"{folder} has neither {EMBEDDED_FILE} nor a *.txt file")
    for path in paths:
        yield Document(path.stem, clean_gutenberg(_decode(path)), None)


def write_documents(stories: Iterable, path: Path) -> None:
    """Write embedded stories (`text`, `nats`) as lines of JSON, numbered from 00000000."""
    with atomic_file(path) as beside, beside.open("w", encoding="utf-8") as file:
        for number, story in enumerate(stories):
            line = {"id": f"{number:08d}", "text": story.text, "nats": story.nats}
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def _embedded_documents(path: Path) -> Iterator[Document]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                value = json.loads(line)
                yield Document(value["id"], value["text"], value["nats"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number} is not a document: {error!r}") from None


def _decode(path: Path) -> str:
    """UTF-8 text with one kind of line end and without a byte order mark."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start}. "
            "Convert it first, for example: iconv -f latin1 -t utf-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


# --- Cleaning Project Gutenberg's books

_START = re.compile(
    r"^(?:\*{3} ?START OF (?:THE|THIS) PROJECT GUTENBERG.*?\*{3}"
    r"|\*END[* ]?\*? ?THE SMALL PRINT!.*\*END\*) *$",
    re.MULTILINE | re.IGNORECASE | re.DOTALL,
)
_END = re.compile(
    r"^ *(?:\*{3} ?END OF (?:THE|THIS) PROJECT GUTENBERG"
    r"|END (?:OF )?(?:THE )?(?:THIS )?PROJECT GUTENBERG"
    r"|\*PROJECT GUTENBERG ETEXT OF ).*",
    re.MULTILINE | re.IGNORECASE,
)
_CREDIT = re.compile(
    r"\W*(?:This (?:e-?text|eBook|file) was )?(?:(?:Produced|Prepared|Scanned|Transcribed|Edited) "
    r"(?:by|from)|E-?text (?:prepared|produced|scanned)|HTML version by"
    r"|Note: (?:Project Gutenberg also|Images of)|Images of the original"
    r"|See \d+-h|\[Portions of this header|\(?https?://|\[?Transcriber['’]?s?['’]? notes?\b)",
    re.IGNORECASE,
)
_NOTES = re.compile(r"^\W*Transcriber['’]?s?['’]? (?:end)?notes?\b.*", re.MULTILINE | re.IGNORECASE)
_BRACKETED = re.compile(
    r"^ *\[(?:Illustration|Picture|Frontispiece|Transcriber['’]?s?['’]? note)[^\]]*\]\.? *$",
    re.MULTILINE | re.IGNORECASE,
)
HEAD_BLOCKS = 8  # credits stand among the first few paragraphs
NOTES_SHARE = 0.1  # a transcriber's notes stand in the last tenth of a book,
NOTES_LENGTH = 3000  # or the last characters of the second half of a short one


def clean_gutenberg(text: str) -> str:
    """The author's text of a Project Gutenberg book; any other text comes back as it is.

    The licence, the credits of who prepared the file, transcribers' notes at either end and
    `[Illustration]` lines go. Hard line breaks inside a paragraph of prose become spaces, so that
    a model learns sentences and not a printer's width; verse, tables and headings, whose breaks
    were not forced by a full line, keep them. Paragraphs stay one blank line apart.
    """
    start = _START.search(text)
    if start is None:
        return text
    body = text[start.end() :]
    end = _END.search(body)  # of a short book the licence behind it is the longer part
    body = _without_end_notes(body[: end.start()] if end else body)
    blocks = re.split(r"\n\s*\n", _BRACKETED.sub("", body))
    blocks = [block.strip("\n").rstrip() for block in blocks if block.strip()]
    blocks = _without_credits(blocks)
    return "\n\n".join(_unwrap(block) for block in blocks) + "\n"


def _without_end_notes(body: str) -> str:
    length = len(body)
    earliest = max(length / 2, min(length * (1 - NOTES_SHARE), length - NOTES_LENGTH))
    notes = next((m for m in _NOTES.finditer(body) if m.start() >= earliest), None)
    return body[: notes.start()] if notes else body


def _without_credits(blocks: list[str]) -> list[str]:
    """Drop credits and notes among the first blocks, and the indented lines they begin."""
    kept: list[str] = []
    inside_note = False
    for block in blocks[:HEAD_BLOCKS]:
        inside_note = bool(_CREDIT.match(block)) or (inside_note and block.startswith("   "))
        if not inside_note:
            kept.append(block)
    return kept + blocks[HEAD_BLOCKS:]


SHORTEST_FULL_LINE = 50
WRAP_TOLERANCE = 12  # some printers break a little before the line is full


def _unwrap(block: str) -> str:
    """Join the lines of a paragraph if each break was forced by the line's width.

    A break is forced when the next line's first word would not have fitted.
    """
    lines = [line.rstrip() for line in block.split("\n")]
    width = max(len(line) for line in lines) - WRAP_TOLERANCE
    indented = sum(line.startswith("  ") for line in lines[1:])
    if len(lines) < 2 or width < SHORTEST_FULL_LINE - WRAP_TOLERANCE or indented:
        return "\n".join(lines)
    for line, following in pairwise(lines):
        if len(line) + 1 + len(following.split(maxsplit=1)[0]) < width:
            return "\n".join(lines)
    return " ".join(line.strip() for line in lines)


# --- Duplicates

SHINGLE_WORDS = 8
SKETCH_LIMIT = 1 << 22  # sampled shingles in memory, 12 bytes each
NEAR_DUPLICATE = 0.5  # share of a document's shingles that is in longer ones already
RELATED = 0.02  # from this share on two documents stay in one split
SMALLEST_SKETCH = 16  # fewer sampled shingles say nothing about a share
DROPPED = 255  # in a plan: no split


@dataclass
class Dropped:
    """What was left out: reason → count, and which document each duplicate repeats."""

    counts: Counter[str] = field(default_factory=Counter)
    duplicates: list[dict[str, object]] = field(default_factory=list)


class _Sketches:
    """Sampled hashes of every document's word 8-grams, in bounded memory.

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

    def add(self, number: int, text: str) -> None:
        hashes = np.unique(_shingles(text))
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


def _shingles(text: str) -> np.ndarray:
    """A 64-bit hash of every run of 8 words, case and punctuation aside."""
    words = re.findall(r"\w+", text.lower())
    codes = np.fromiter((crc32(word.encode()) for word in words), np.uint64, len(words))
    count = len(codes) - SHINGLE_WORDS + 1
    if count < 1:
        return np.empty(0, np.uint64)
    hashes = np.zeros(count, np.uint64)
    for position in range(SHINGLE_WORDS):
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


def _overlaps(hashes: np.ndarray, owners: np.ndarray, count: int) -> Iterator[_Overlap]:
    """Compare each document, longest first, with the longer ones that were kept."""
    _, inverse = np.unique(hashes, return_inverse=True)
    starts = np.searchsorted(owners, np.arange(count + 1))
    sizes = np.diff(starts)
    first_with = np.full(int(inverse.max(initial=-1)) + 1, -1, np.int32)
    for document in np.argsort(-sizes, kind="stable"):
        shingles = inverse[starts[document] : starts[document + 1]]
        if len(shingles) < SMALLEST_SKETCH:
            continue
        seen_in = first_with[shingles]
        known = seen_in[seen_in >= 0]
        others, shared = np.unique(known, return_counts=True)
        share = len(known) / len(shingles)
        largest = int(others[shared.argmax()]) if len(others) else -1
        related = others[shared >= RELATED * len(shingles)]
        yield _Overlap(int(document), share, largest, [int(other) for other in related])
        if share < NEAR_DUPLICATE:
            first_with[shingles[seen_in < 0]] = document


# --- Splitting


@dataclass(frozen=True)
class Plan:
    """Which split each document of a folder goes to, by its position in reading order.

    `splits` [documents] holds indices into `SPLITS`, or 255 for what was dropped. With
    `cut`, there are fewer documents than splits, and every document is cut by position into
    `fractions` of its characters instead.
    """

    splits: np.ndarray
    fractions: tuple[float, float, float]
    cut: bool
    dropped: Dropped


def plan_splits(
    folder: Path, *, validation_fraction: float, test_fraction: float, seed: int
) -> Plan:
    """Read a corpus once, leave duplicates out and assign each other document to a split.

    Dropped, each with a count: empty texts, exact duplicates (the first is kept), and
    near-duplicates, at least half of whose word 8-grams stand in longer documents. Documents
    that share 2% or more go to the same split. Documents with known `nats` are independent
    draws of a source and all of them stay. The order is a hash of seed and id, so a document's
    place does not depend on the others; no split with a fraction is empty if there are three
    documents.

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
    groups = _drop_duplicates(survey, dropped)
    kept = groups >= 0
    if not kept.any():
        raise UserError(f"{folder} holds no text")
    splits = np.full(len(kept), DROPPED, np.uint8)
    cut = int(kept.sum()) < len(SPLITS)
    splits[kept] = 0 if cut else _assign(survey.keys[kept], groups[kept], fractions)
    return Plan(splits, fractions, cut, dropped)


def split_documents(folder: Path, plan: Plan, split: str) -> Iterator[Document]:
    """Stream one split's documents in reading order.

    A document that is cut by position yields the piece that the split has: training text first,
    then validation, then test, with the split's name added to its id and no `nats`.
    """
    index = SPLITS.index(split)
    for document, assigned in zip(documents(folder), plan.splits, strict=True):
        if assigned == DROPPED:
            continue
        if plan.cut:
            piece = _piece(document, plan.fractions, index)
            if piece.text:
                yield piece
        elif assigned == index:
            yield document


def _piece(document: Document, fractions: tuple[float, float, float], index: int) -> Document:
    """The first 90% of a text's characters to train, the last 10% to validate, for example.

    A boundary within a character falls before it, where `int(0.9 * length)` puts it too.
    """
    length = len(document.text)
    bounds = [int(length * (1 - sum(fractions[split:]))) for split in range(len(SPLITS) + 1)]
    begin, end = bounds[index : index + 2]
    return Document(f"{document.id}#{SPLITS[index]}", document.text[begin:end], None)


@dataclass(frozen=True)
class _Survey:
    """What one reading of a corpus leaves in memory, by document."""

    ids: list[str]
    keys: np.ndarray  # uint64, order of assignment
    digests: np.ndarray  # uint64, equal for equal texts; 0 for an empty one
    drawn: np.ndarray  # bool, an independent draw of a known source
    sketches: _Sketches


def _survey(folder: Path, seed: int) -> _Survey:
    ids, keys, digests, drawn = [], [], [], []
    sketches = _Sketches()
    for number, document in enumerate(documents(folder)):
        ids.append(document.id)
        keys.append(_hash64(f"{seed}:{document.id}"))
        digests.append(_hash64(document.text) if document.text.strip() else 0)
        drawn.append(document.nats is not None)
        if not drawn[-1]:
            sketches.add(number, document.text)
    return _Survey(
        ids, np.array(keys, np.uint64), np.array(digests, np.uint64), np.array(drawn), sketches
    )


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _drop_duplicates(survey: _Survey, dropped: Dropped) -> np.ndarray:
    """A group number for each document, equal for related ones; -1 for what is dropped."""
    groups = np.arange(len(survey.ids))
    groups[survey.digests == 0] = -1
    dropped.counts["empty"] = int((groups == -1).sum())
    _, first, inverse = np.unique(survey.digests, return_index=True, return_inverse=True)
    for number in np.flatnonzero((first[inverse] != groups) & (groups >= 0) & ~survey.drawn):
        groups[number] = -1
        _report(dropped, "exact_duplicate", survey.ids, number, int(first[inverse[number]]), 1.0)
    for overlap in _overlaps(*survey.sketches.arrays(), len(survey.ids)):
        if groups[overlap.document] < 0:
            continue
        if overlap.share >= NEAR_DUPLICATE:
            groups[overlap.document] = -1
            _report(
                dropped,
                "near_duplicate",
                survey.ids,
                overlap.document,
                overlap.largest,
                overlap.share,
            )
            continue
        for other in overlap.related:
            groups[groups == groups[other]] = groups[overlap.document]
    return groups


def _report(
    dropped: Dropped, reason: str, ids: list[str], document: int, other: int, share: float
) -> None:
    dropped.counts[reason] += 1
    dropped.duplicates.append(
        {"document": ids[document], "reason": reason, "of": ids[other], "share": round(share, 3)}
    )


def _assign(keys: np.ndarray, groups: np.ndarray, fractions: tuple[float, ...]) -> np.ndarray:
    """An index into `SPLITS` for each document, groups kept whole.

    Groups come in the order of their smallest key; each goes to the first of validation and test
    that has room for it, else to train.
    """
    count = len(keys)
    room = [0, *(_share(count, fraction) for fraction in fractions[1:])]
    splits = np.zeros(count, np.uint8)
    names, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    smallest = np.full(len(names), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, inverse, keys)
    chosen = np.zeros(len(names), np.uint8)
    for group in np.argsort(smallest, kind="stable"):
        chosen[group] = next((i for i in (1, 2) if room[i] >= sizes[group]), 0)
        room[chosen[group]] -= sizes[group] * (chosen[group] > 0)
        if not any(room):
            break
    splits[:] = chosen[inverse]
    return splits


def _share(count: int, fraction: float) -> int:
    """Documents of a held-out split: at least one if the fraction is above zero."""
    return max(1, round(count * fraction)) if fraction > 0 else 0
