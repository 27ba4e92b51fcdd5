"""What of a text is compared with other texts: hashes of its words and of runs of them.

A word's hash is a polynomial of its characters modulo 2^64 (Karp and Rabin 1987). Prefix sums give
those of all words at once, so NumPy does what a loop over words would take ten times as long for.
"""

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gptmill.data.scripts import without_spaces

SHINGLE_WORDS = 8
# Of texts that have few words, or no spaces between them, runs of characters are compared instead:
# fewer where a character is a word's worth.
SHORT_WORDS = 24
RUN, RUN_WITHOUT_SPACES = 20, 8
WINDOW = 1 << 16  # characters at once: what fits a processor's cache
BASE = 0x9E3779B97F4A7C15
WORD, SPACE = 1, 2


class Fingerprint(NamedTuple):
    """
    Attributes:
        words: how many there are between white space.
        digest: equal for texts alike but for white space and case; 0 of a text without words.
        shingles: uint64, sorted, each once.
        of_characters: whether the shingles are runs of characters, not of words.
    """

    words: int
    digest: int
    shingles: np.ndarray
    of_characters: bool


def fingerprint(text: str, modulus: int = 1) -> Fingerprint:
    """Count, digest and shingles of a text; of these only multiples of a power of two are kept.

    A shingle is a 64-bit hash of a run of 8 words, case and punctuation aside, or of a run of
    characters where words are few or not told apart.
    """
    digest, count, folded = hashlib.sha256(), 0, text.casefold()
    words = [np.empty(0, np.uint64)]
    for codes in _windows(folded):
        kinds = _kinds(codes)
        sums = _prefix_sums(codes)
        between_spaces = _hashes(sums, kinds != SPACE)
        digest.update(between_spaces.data)
        count += len(between_spaces)
        words.append(_hashes(sums, kinds == WORD))
    known = np.concatenate(words)
    endless = without_spaces(text)
    of_characters = endless or len(known) < SHORT_WORDS
    if of_characters:
        letters = [codes[_kinds(codes) == WORD] for codes in _windows(folded)]
        known = np.concatenate([np.empty(0, np.uint64), *letters]).astype(np.uint64)
        # Mixed, since neighboring letters differ little; and never equal to a word's.
        known = (known + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93)
    length = SHINGLE_WORDS if not of_characters else RUN_WITHOUT_SPACES if endless else RUN
    hashes = _rolling(known, length)
    hashes = hashes[hashes & np.uint64(modulus - 1) == 0]
    value = int.from_bytes(digest.digest()[:8], "big") or 1
    return Fingerprint(count, value if count else 0, distinct(hashes), of_characters)


def distinct(values: np.ndarray) -> np.ndarray:
    """The values in order, each once: `np.unique` by one sort, which is faster than its table."""
    ordered = np.sort(values)
    return ordered[np.diff(ordered, prepend=ordered[:1] - np.uint64(1)) != 0]


def _windows(text: str) -> Iterator[np.ndarray]:
    """A text's code points in arrays that end with a white space, or with the text."""
    if text.isascii():
        codes = np.frombuffer(text.encode(), np.uint8)
    else:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    start = 0
    while start < len(codes):
        end = start + WINDOW
        while end < len(codes) and not text[end - 1].isspace():
            end += 1
        yield codes[start:end]
        start = end


@lru_cache(maxsize=3)
def _table(size: int) -> np.ndarray:
    r"""`WORD`, `SPACE` or 0 of each code point, as Python's `\w` and `str.split` see it."""
    letters = map(chr, range(size))
    kinds = (WORD if c.isalnum() or c == "_" else SPACE * c.isspace() for c in letters)
    return np.fromiter(kinds, np.uint8, size)


@lru_cache(maxsize=1)
def _byte_table() -> bytes:
    return _table(256).tobytes()


def _kinds(codes: np.ndarray) -> np.ndarray:
    """What each of the codes is; most are bytes, for which Python's own table is the fastest."""
    kinds = np.frombuffer(codes.astype(np.uint8).tobytes().translate(_byte_table()), np.uint8)
    if codes.dtype == np.uint8:
        return kinds
    large = np.flatnonzero(codes > 255)
    kinds = kinds.copy()
    others = codes[large]
    kinds[large] = _table(1 << 16 if others.max(initial=0) < 1 << 16 else 0x110000)[others]
    return kinds


@lru_cache(maxsize=2)
def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
    """`BASE` to the powers from 0, and their inverses modulo 2^64."""
    inverse = pow(BASE, -1, 1 << 64)
    powers, inverses = np.ones((2, length), np.uint64)
    powers[1:], inverses[1:] = BASE, inverse
    return np.cumprod(powers), np.cumprod(inverses)


def _prefix_sums(codes: np.ndarray) -> np.ndarray:
    """Of the polynomial's terms: [N] codes → uint64 [N + 1]."""
    powers, _ = _powers(_room(len(codes)))
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum((codes + np.uint64(1)) * powers[: len(codes)], out=sums[1:])
    return sums


def _room(length: int) -> int:
    """Powers come in few sizes, so that they are made once."""
    return 2 * WINDOW if length < 2 * WINDOW else 1 << length.bit_length()


def _hashes(sums: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The hash of every run of characters that are `inside`, uint64."""
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    before = [0] if inside[0] else []
    behind = [len(inside)] if inside[-1] else []
    edges = np.concatenate((np.array(before, np.int64), edges, np.array(behind, np.int64)))
    starts, ends = edges[::2], edges[1::2]
    _, inverses = _powers(_room(len(inside)))
    return (sums[ends] - sums[starts]) * inverses[starts]


def _rolling(codes: np.ndarray, length: int) -> np.ndarray:
    """A hash of every run of `length` codes."""
    count = len(codes) - length + 1
    if count < 1:
        return np.empty(0, np.uint64)
    hashes = np.zeros(count, np.uint64)
    for position in range(length):
        hashes *= np.uint64(BASE)
        hashes += codes[position : position + count]
    hashes ^= hashes >> np.uint64(31)  # mix, as splitmix64 does, so that the modulus samples evenly
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    return hashes ^ (hashes >> np.uint64(29))
