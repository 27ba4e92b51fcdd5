"""Characters or words, each looked up in a vocabulary."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gptmill.files import write_json
from gptmill.tokenizer.base import END_OF_TEXT, UNKNOWN, Tokenizer, added_token, save_config

# The book's splitter (Raschka 2024, chapter 2): punctuation, double dashes, white space.
WORD_PATTERN = r'([,.:;?_!"()\']|--|\s)'
SPACE_BEFORE_MARK = r'\s+(?=[,.:;?!"()\'])'
# Both kinds as the Rust library names the parts of a tokenizer.
CHARACTERS = {
    "pre_tokenizer": {
        "type": "Split",
        "pattern": {"Regex": r"[\s\S]"},
        "behavior": "Isolated",
        "invert": False,
    },
    "decoder": {"type": "Fuse"},
}
WORDS = {
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": WORD_PATTERN},
                "behavior": "Isolated",
                "invert": False,
            },
            {
                "type": "Split",
                "pattern": {"Regex": r"\s+"},
                "behavior": "Removed",
                "invert": False,
            },
        ],
    },
    "decoder": {
        "type": "Sequence",
        "decoders": [
            # A space before every word but the first, then none before a mark. No word begins
            # with the prefix, so that WordPiece's decoder does the former and nothing else.
            {"type": "WordPiece", "prefix": "\0", "cleanup": False},
            {"type": "Fuse"},
            {"type": "Replace", "pattern": {"Regex": SPACE_BEFORE_MARK}, "content": ""},
        ],
    },
}


class VocabularyTokenizer(Tokenizer):
    """Characters or words looked up in a sorted vocabulary; what is not there is `<|unk|>`."""

    def __init__(self, kind: str, vocabulary: list[str]) -> None:
        self.kind = kind
        self.vocabulary = vocabulary
        self.ids = {token: id for id, token in enumerate(vocabulary)}
        self.vocabulary_size = len(vocabulary)
        self.end_of_text = self.ids[END_OF_TEXT]
        self.unknown = self.ids[UNKNOWN]

    @property
    def identity(self) -> tuple[str, list[str]]:
        return self.kind, self.vocabulary

    def encode(self, text: str) -> list[int]:
        pieces = text if self.kind == "character" else split_words(text)
        return [self.ids.get(piece, self.unknown) for piece in pieces]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        tokens = [self.vocabulary[id] for id in ids]
        if self.kind == "character":
            return "".join(tokens).encode()
        return re.sub(SPACE_BEFORE_MARK, "", " ".join(tokens)).encode()

    def save(self, folder: Path) -> None:
        write_json(folder / "tokenizer.json", self.fast_json())
        save_config(folder, "PreTrainedTokenizerFast", unknown=UNKNOWN)

    def fast_json(self) -> dict[str, Any]:
        """`tokenizer.json`, as the Rust library writes it."""
        parts = CHARACTERS if self.kind == "character" else WORDS
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [added_token(END_OF_TEXT, self.end_of_text, normalized=False)],
            "normalizer": None,
            "pre_tokenizer": parts["pre_tokenizer"],
            "post_processor": None,
            "decoder": parts["decoder"],
            "model": {"type": "WordLevel", "vocab": self.ids, "unk_token": UNKNOWN},
        }


def vocabulary_from_json(fast: dict[str, Any]) -> VocabularyTokenizer | None:
    """The tokenizer that wrote this `tokenizer.json`; None if it was none of ours."""
    vocabulary = fast["model"].get("vocab")
    if not isinstance(vocabulary, dict) or not {END_OF_TEXT, UNKNOWN} <= vocabulary.keys():
        return None
    kind = "character" if fast.get("pre_tokenizer") == CHARACTERS["pre_tokenizer"] else "word"
    tokenizer = VocabularyTokenizer(kind, list(vocabulary))
    return tokenizer if tokenizer.fast_json() == fast else None


def split_words(text: str) -> list[str]:
    """Words and punctuation marks of `text`, white space dropped."""
    return [piece for piece in re.split(WORD_PATTERN, text) if piece.strip()]


def train_vocabulary(texts: Iterable[str], kind: str, vocabulary_size: int) -> VocabularyTokenizer:
    """Sorted unique characters, or the most frequent words (ties in sorted order)."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text if kind == "character" else split_words(text))
    for special in (END_OF_TEXT, UNKNOWN):
        counts.pop(special, None)
    frequent = sorted(counts, key=lambda token: (-counts[token], token))[: vocabulary_size - 2]
    return VocabularyTokenizer(kind, [*sorted(frequent), UNKNOWN, END_OF_TEXT])
