"""What every kind of tokenizer offers."""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gptmill.files import write_json

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unk|>"


class Decoding(Protocol):
    """One sequence's tokens becoming text. The pieces joined equal `decode` of all tokens."""

    def push(self, token: int) -> str:
        """Take the next token; return the text that no later token can change."""

    def finish(self) -> str:
        """No token follows: return the rest."""


class Tokenizer(ABC):
    """One interface for all kinds. Ids run from 0 to `vocabulary_size` - 1."""

    vocabulary_size: int
    end_of_text: int

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of `text`; the characters of the end-of-text token inside it are ordinary text."""

    @abstractmethod
    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The UTF-8 bytes of `ids`, which may end inside a character."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into an existing folder."""

    @property
    @abstractmethod
    def identity(self) -> Any:
        """Equal for two tokenizers exactly if they encode and decode everything alike."""

    @property
    def beginning_of_text(self) -> int:
        """What an empty prompt begins with."""
        return self.end_of_text

    @property
    def padding(self) -> int:
        """What fills a batch; no model looks at it."""
        return self.end_of_text

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        return [self.encode(text) for text in texts]

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, uint32; several threads may ask at once."""
        return [np.array(ids, np.uint32) for ids in self.encode_batch(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decoding(self) -> Decoding:
        """The text of one sequence whose tokens come one at a time."""
        return _DecodingBytes(self)


class _DecodingBytes:
    """For tokens whose bytes depend on the token before them at most."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._previous: int | None = None

    def push(self, token: int) -> str:
        piece = self._bytes(token)
        self._previous = token
        return self._characters.decode(piece)

    def finish(self) -> str:
        return self._characters.decode(b"", final=True)

    def _bytes(self, token: int) -> bytes:
        """What the token adds to the text. A word's space depends on the token before it."""
        if self._previous is None:
            return self._tokenizer.decode_bytes([token])
        before = len(self._tokenizer.decode_bytes([self._previous]))
        return self._tokenizer.decode_bytes([self._previous, token])[before:]


def save_config(folder: Path, name: str, unknown: str) -> None:
    """`tokenizer_config.json`, by which `transformers.AutoTokenizer` chooses its class."""
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": name,
            "add_prefix_space": False,
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "unk_token": unknown,
            "clean_up_tokenization_spaces": False,
        },
    )


def added_token(content: str, id: int, *, normalized: bool) -> dict[str, Any]:
    """A special token as `tokenizer.json` has it."""
    return {
        "id": id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": normalized,
        "special": True,
    }
