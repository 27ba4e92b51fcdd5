"""Text to token ids and back: GPT-2's byte pairs, a trained BPE, characters, or words.

Every kind is saved beside the model as `tokenizer.json`, which `transformers` and the Rust
`tokenizers` open as it is; byte-pair kinds also as GPT-2's own `vocab.json` and `merges.txt`.
Running a tokenizer needs `tiktoken` alone; the `tokenizers` package only trains and writes.
"""

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tiktoken

from gptmill.errors import UserError
from gptmill.files import atomic_file, read_json, write_json

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unk|>"
# GPT-2's pre-tokenisation (Radford et al. 2019, encoder.py): merges never cross these pieces.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The book's splitter (Raschka 2024, chapter 2): punctuation, double dashes, white space.
WORD_PATTERN = r'([,.:;?_!"()\']|--|\s)'
SPACE_BEFORE_MARK = r'\s+(?=[,.:;?!"()\'])'
DEFAULT_THREADS = 2


class Tokenizer(ABC):
    """One interface for all kinds. Ids run from 0 to `vocabulary_size` - 1."""

    vocabulary_size: int
    end_of_text: int

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of `text`; the characters of `<|endoftext|>` inside it are ordinary text."""

    @abstractmethod
    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The UTF-8 bytes of `ids`, which may end inside a character."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into an existing folder."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


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

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=DEFAULT_THREADS)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return self._encoding.decode_bytes(ids)

    def save(self, folder: Path) -> None:
        vocabulary = {_printable(token): id for token, id in self.ranks.items()}
        vocabulary[END_OF_TEXT] = self.end_of_text
        write_json(folder / "vocab.json", vocabulary)
        with atomic_file(folder / "merges.txt") as beside:
            lines = ["#version: 0.2", *(" ".join(pair) for pair in self.merges)]
            beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
        write_json(folder / "tokenizer.json", self._fast_tokenizer_json(vocabulary))
        _save_config(folder, self, "GPT2Tokenizer", unknown=END_OF_TEXT)

    def _fast_tokenizer_json(self, vocabulary: dict[str, int]) -> Any:
        from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
        from tokenizers import Tokenizer as FastTokenizer

        fast = FastTokenizer(models.BPE(vocab=vocabulary, merges=self.merges))
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        fast.decoder = decoders.ByteLevel()
        fast.post_processor = processors.ByteLevel(trim_offsets=False)
        fast.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=True)])
        return json.loads(fast.to_str())


class VocabularyTokenizer(Tokenizer):
    """Characters or words looked up in a sorted vocabulary; what is not there is `<|unk|>`."""

    def __init__(self, kind: str, vocabulary: list[str]) -> None:
        self.kind = kind
        self.vocabulary = vocabulary
        self.ids = {token: id for id, token in enumerate(vocabulary)}
        self.vocabulary_size = len(vocabulary)
        self.end_of_text = self.ids[END_OF_TEXT]
        self.unknown = self.ids[UNKNOWN]

    def encode(self, text: str) -> list[int]:
        pieces = text if self.kind == "character" else split_words(text)
        return [self.ids.get(piece, self.unknown) for piece in pieces]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        tokens = [self.vocabulary[id] for id in ids]
        if self.kind == "character":
            return "".join(tokens).encode()
        return re.sub(SPACE_BEFORE_MARK, "", " ".join(tokens)).encode()

    def save(self, folder: Path) -> None:
        write_json(folder / "tokenizer.json", self._fast_tokenizer_json())
        _save_config(folder, self, "PreTrainedTokenizerFast", unknown=UNKNOWN)

    def _fast_tokenizer_json(self) -> Any:
        from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as FastTokenizer

        fast = FastTokenizer(models.WordLevel(self.ids, unk_token=UNKNOWN))
        if self.kind == "character":
            fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
            fast.decoder = decoders.Fuse()
        else:
            splitter = pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated")
            spaces = pre_tokenizers.Split(Regex(r"\s+"), "removed")
            fast.pre_tokenizer = pre_tokenizers.Sequence([splitter, spaces])
            # A space before every word but the first, then none before a mark. No word begins with
            # the prefix, so that WordPiece's decoder does the former and nothing else.
            spaced = decoders.WordPiece(prefix="\0", cleanup=False)
            closed = decoders.Replace(Regex(SPACE_BEFORE_MARK), "")
            fast.decoder = decoders.Sequence([spaced, decoders.Fuse(), closed])
        fast.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
        return json.loads(fast.to_str())


def split_words(text: str) -> list[str]:
    """Words and punctuation marks of `text`, white space dropped."""
    return [piece for piece in re.split(WORD_PATTERN, text) if piece.strip()]


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
    ranks = {bytes([byte]): id for id, byte in enumerate(_BYTE_TO_CHARACTER)}
    for left, right in merges:
        ranks[_raw(left) + _raw(right)] = len(ranks)
    return BytePairTokenizer(ranks, merges)


def train_vocabulary(texts: Iterable[str], kind: str, vocabulary_size: int) -> VocabularyTokenizer:
    """Sorted unique characters, or the most frequent words (ties in sorted order)."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text if kind == "character" else split_words(text))
    for special in (END_OF_TEXT, UNKNOWN):
        counts.pop(special, None)
    frequent = sorted(counts, key=lambda token: (-counts[token], token))[: vocabulary_size - 2]
    return VocabularyTokenizer(kind, [*sorted(frequent), UNKNOWN, END_OF_TEXT])


def load_tokenizer(folder: Path) -> Tokenizer:
    """Open the tokenizer of a model folder: ours, or any GPT-2 folder of Hugging Face's layout.

    Raises:
        UserError: no tokenizer files, or files of a tokenizer that GPT-2 does not use.
    """
    fast_path = folder / "tokenizer.json"
    if fast_path.exists():
        return _from_fast_tokenizer(read_json(fast_path), fast_path)
    return load_gpt2_files(folder / "vocab.json", folder / "merges.txt")


def load_gpt2_files(vocabulary_path: Path, merges_path: Path) -> BytePairTokenizer:
    """GPT-2's own files: `encoder.json` and `vocab.bpe`, or `vocab.json` and `merges.txt`."""
    vocabulary = read_json(vocabulary_path)
    try:
        lines = merges_path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{merges_path} does not exist") from None
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    return _byte_pairs(vocabulary, pairs, vocabulary_path)


def _from_fast_tokenizer(fast: Any, path: Path) -> Tokenizer:
    model = fast["model"]
    if model["type"] == "BPE":
        pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        return _byte_pairs(model["vocab"], pairs, path)
    if model["type"] == "WordLevel" and END_OF_TEXT in model["vocab"]:
        vocabulary = sorted(model["vocab"], key=model["vocab"].get)
        kind = "character" if fast["pre_tokenizer"]["type"] == "Split" else "word"
        return VocabularyTokenizer(kind, vocabulary)
    raise UserError(f"{path} holds a {model['type']} tokenizer; GPT-2 folders have byte-level BPE")


def _byte_pairs(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], path: Path
) -> BytePairTokenizer:
    tokenizer = byte_pairs_from_merges(merges)
    named = {_printable(token): id for token, id in tokenizer.ranks.items()}
    named[END_OF_TEXT] = tokenizer.end_of_text
    if vocabulary != named:
        raise UserError(
            f"{path}: its ids do not follow its merges as GPT-2's do "
            f"({len(vocabulary)} entries against {len(named)}): not a GPT-2 tokenizer"
        )
    return tokenizer


def _bytes_to_characters() -> dict[int, str]:
    """GPT-2's reversible map of bytes to printable characters, in the order of its ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    mapping = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in mapping:
            mapping[byte] = chr(256 + len(mapping) - len(printable))
    return mapping


_BYTE_TO_CHARACTER = _bytes_to_characters()
_CHARACTER_TO_BYTE = {character: byte for byte, character in _BYTE_TO_CHARACTER.items()}


def _printable(token: bytes) -> str:
    return "".join(_BYTE_TO_CHARACTER[byte] for byte in token)


def _raw(token: str) -> bytes:
    return bytes(_CHARACTER_TO_BYTE[character] for character in token)


def _save_config(folder: Path, tokenizer: Tokenizer, name: str, unknown: str) -> None:
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
