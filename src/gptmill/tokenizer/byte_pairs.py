"""Byte-level byte-pair encoding as GPT-2 has it, by `tiktoken`."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken

from gptmill.errors import UserError
from gptmill.files import atomic_file, write_json
from gptmill.tokenizer.base import END_OF_TEXT, Tokenizer, added_token, save_config

# GPT-2's pre-tokenization (Radford et al. 2019, encoder.py): merges never cross these pieces.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# SHA-256 of GPT-2's own 50,000 merges, one a line.
GPT2_MERGES = "04e3597d7996f292ca9b8b7285ca4d58a6ae171ac47d73fc7140ceb0c7a6bbc0"
DEFAULT_THREADS = 2
# tiktoken's pattern notes each white space of a run, to step back by one before a word, and panics
# at a million notes. Long texts are searched for such runs; Rust's white space is Unicode's.
LONG_TEXT = 500_000
WHITE_SPACE = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
LONG_SPACE = re.compile(f"{WHITE_SPACE}{{{LONG_TEXT},}}")


class BytePairTokenizer(Tokenizer):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019), by tiktoken.

    `ranks` maps each token's bytes to its id, which is also its merge priority: the 256 bytes
    first, then one token per merge in the order learned. `<|endoftext|>` has the largest id.
    """

    def __init__(self, ranks: dict[bytes, int], merges: list[tuple[str, str]]) -> None:
        self.ranks = ranks
        self.merges = merges
        self.end_of_text = max(ranks.values()) + 1
        self.vocabulary_size = self.end_of_text + 1
        self._encoding = tiktoken.Encoding(
            name="gptmill",
            pat_str=GPT2_PATTERN,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: self.end_of_text},
        )

    @property
    def identity(self) -> dict[bytes, int]:
        return self.ranks

    def encode(self, text: str) -> list[int]:
        ids = []
        for encoding, part in self._parts(text):
            ids += encoding.encode_ordinary(part)
        return ids

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        # No list of integers is made, so Python's lock is free while tiktoken works.
        return [
            np.concatenate(
                [e.encode_to_numpy(part, disallowed_special=()) for e, part in self._parts(text)]
            )
            for text in texts
        ]

    def _parts(self, text: str) -> list[tuple[tiktoken.Encoding, str]]:
        """The text in parts that no merge crosses, and what encodes each."""
        # A long run holds one of these characters.
        if not any(text[at].isspace() for at in range(LONG_TEXT - 1, len(text), LONG_TEXT)):
            return [(self._encoding, text)]
        parts, start = [], 0
        for run in LONG_SPACE.finditer(text):
            # A run is one piece, less its last character where a word follows.
            end = run.end() - (run.end() < len(text))
            parts.append((self._encoding, text[start : run.start()]))
            parts.append((self._whole, text[run.start() : end]))
            start = end
        return [*parts, (self._encoding, text[start:])]

    @cached_property
    def _whole(self) -> tiktoken.Encoding:
        """The same merges over a whole text as one piece."""
        return tiktoken.Encoding(
            name="gptmill-whole",
            pat_str=r"(?s).+",
            mergeable_ranks=self.ranks,
            special_tokens={END_OF_TEXT: self.end_of_text},
        )

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if any(len(text) >= LONG_TEXT for text in texts):
            return [self.encode(text) for text in texts]
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=DEFAULT_THREADS)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return self._encoding.decode_bytes(ids)

    def save(self, folder: Path) -> None:
        vocabulary = self.vocabulary()
        write_json(folder / "vocab.json", vocabulary)
        with atomic_file(folder / "merges.txt") as beside:
            lines = ["#version: 0.2", *(" ".join(pair) for pair in self.merges)]
            beside.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        write_json(folder / "tokenizer.json", self._fast_json(vocabulary))
        save_config(folder, "GPT2Tokenizer", unknown=END_OF_TEXT)

    def vocabulary(self) -> dict[str, int]:
        """Ids by GPT-2's printable spelling, in their order."""
        return {printable(token): id for token, id in self.ranks.items()} | {
            END_OF_TEXT: self.end_of_text
        }

    def _fast_json(self, vocabulary: dict[str, int]) -> dict[str, Any]:
        """`tokenizer.json`, as the Rust library writes it."""
        byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
        byte_level["use_regex"] = True
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [added_token(END_OF_TEXT, self.end_of_text, normalized=True)],
            "normalizer": None,
            "pre_tokenizer": byte_level | {"add_prefix_space": False},
            "post_processor": byte_level | {"trim_offsets": False},
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": vocabulary,
                "merges": [list(pair) for pair in self.merges],
            },
        }


def train_byte_pairs(texts: Iterable[str], vocabulary_size: int) -> BytePairTokenizer:
    """Learn merges until the vocabulary, `<|endoftext|>` included, has `vocabulary_size` entries.

    Raises:
        UserError: the size is too small for the 256 bytes and the end-of-text token.
    """
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import models, pre_tokenizers, trainers

    if vocabulary_size < 257:
        raise UserError(f"tokenize.vocabulary_size: {vocabulary_size} is under 257 (256 bytes + 1)")
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(fast.to_str())["model"]["merges"]]
    return byte_pairs_from_merges(merges)


def byte_pairs_from_merges(merges: list[tuple[str, str]]) -> BytePairTokenizer:
    """GPT-2's numbering: the printable bytes, the others, then one id per merge in order."""
    return BytePairTokenizer(_ranks(merges), merges)


def byte_pairs_from_files(
    vocabulary: dict[str, int], merges: list[tuple[str, str]]
) -> BytePairTokenizer | None:
    """The tokenizer of a vocabulary and merges in GPT-2's numbering; None if theirs is another,
    or if tiktoken might cut some text otherwise than the merges do."""
    try:
        ranks = _ranks(merges)
    except KeyError:  # a character that stands for no byte
        return None
    named = {printable(token): id for token, id in ranks.items()}
    named[END_OF_TEXT] = len(named)
    if vocabulary != named or not _every_token_is_reached(merges):
        return None
    return BytePairTokenizer(ranks, merges)


def _ranks(merges: list[tuple[str, str]]) -> dict[bytes, int]:
    ranks = {bytes([byte]): id for id, byte in enumerate(_BYTE_TO_CHARACTER)}
    for left, right in merges:
        ranks[raw(left) + raw(right)] = len(ranks)
    return ranks


def _every_token_is_reached(merges: list[tuple[str, str]]) -> bool:
    """Whether merging each token's own characters ends in that token.

    tiktoken joins two neighbors whenever their bytes together are a token, the definition only if
    they are a merge. The first time the two differ, the neighbors spell a token that the merges
    alone, applied to its characters, do not reach. Merges learned from text reach all theirs.
    """
    text = "\n".join(map(" ".join, merges))
    if hashlib.sha256(text.encode()).hexdigest() == GPT2_MERGES:
        return True
    order = {pair: index for index, pair in enumerate(merges)}
    known = {left + right for left, right in merges} | set(_CHARACTER_TO_BYTE)
    for left, right in merges:
        token = left + right
        cuts = (cut for cut in range(1, len(token)) if cut != len(left))
        doubtful = any(token[:cut] in known and token[cut:] in known for cut in cuts)
        if doubtful and _merged(token, order) != [token]:
            return False
    return True


def _merged(token: str, order: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding by its definition: again and again the earliest merge, leftmost first."""
    parts = list(token)
    while True:
        found = [(order[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in order]
        if not found:
            return parts
        at = min(found)[1]
        parts[at : at + 2] = ["".join(parts[at : at + 2])]


def _bytes_to_characters() -> dict[int, str]:
    """GPT-2's reversible map of bytes to printable characters, in the order of its ids."""
    printable_bytes = [*range(33, 127), *range(161, 173), *range(174, 256)]
    mapping = {byte: chr(byte) for byte in printable_bytes}
    for byte in range(256):
        if byte not in mapping:
            mapping[byte] = chr(256 + len(mapping) - len(printable_bytes))
    return mapping


_BYTE_TO_CHARACTER = _bytes_to_characters()
_CHARACTER_TO_BYTE = {character: byte for byte, character in _BYTE_TO_CHARACTER.items()}


def printable(token: bytes) -> str:
    """GPT-2's spelling of a token's bytes."""
    return "".join(_BYTE_TO_CHARACTER[byte] for byte in token)


def raw(token: str) -> bytes:
    """The bytes that a token's spelling stands for; KeyError if a character stands for none."""
    return bytes(_CHARACTER_TO_BYTE[character] for character in token)
