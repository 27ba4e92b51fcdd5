"""Token shards on disk: read by memory mapping, sampled in windows.

Layout of a token folder: `index.json` (tokenizer hash, type, counts), `gptmill.sha256`,
`tokenizer/`, and for each split `00000.bin`, `00001.bin`, … (raw little-endian ids, every shard but
the last of one size) and `documents.npy`, int64 [documents, 2]: where each document starts, in
tokens, and its size in UTF-8 bytes. `gptmill.data.shards` writes it.
"""

from pathlib import Path
from tokenize import TokenError
from typing import Annotated, Literal
from zipfile import BadZipFile

import numpy as np
from pydantic import BaseModel, Field

from gptmill.errors import UserError
from gptmill.seal import check_seal
from gptmill.shapes import read_json_as
from gptmill.tokenizer import Tokenizer

INDEX, DOCUMENTS = "index.json", "documents.npy"
# What NumPy raises for a damaged file.
UNREADABLE = (OSError, ValueError, EOFError, SyntaxError, TokenError, MemoryError, BadZipFile)


class ShardEntry(BaseModel):
    """A file of ids."""

    name: Annotated[str, Field(pattern=r"^\d+\.bin$")]
    tokens: Annotated[int, Field(gt=0)]


class SplitEntry(BaseModel):
    """Totals of a split; `nats` is None where some document's are unknown."""

    documents: Annotated[int, Field(ge=0)]
    tokens: Annotated[int, Field(ge=0)]
    bytes: Annotated[int, Field(ge=0)]
    words: Annotated[int, Field(ge=0)]
    nats: float | None
    unknown: Annotated[int, Field(ge=0)] = 0
    shards: list[ShardEntry]


class MixtureEntry(BaseModel):
    """A corpus of several; see `gptmill.data.mixture`."""

    name: str
    weight: Annotated[float, Field(gt=0)]


class Index(BaseModel):
    """What `index.json` of a token folder says."""

    tokenizer: str
    vocabulary_size: Annotated[int, Field(gt=0)]
    end_of_text: Annotated[int, Field(ge=0)]
    dtype: Literal["uint16", "uint32"]
    shard_tokens: Annotated[int, Field(gt=0)]
    splits: dict[str, SplitEntry]
    mixture: list[MixtureEntry] = []


# --- Reading


def _documents(path: Path, entry: SplitEntry) -> np.ndarray:
    """Where each document of a split starts and how many bytes it has, int64 [documents, 2]."""
    remedy = "run the stage `tokenize` again"
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except UNREADABLE as error:
        raise UserError(f"{path} is damaged: {error}; {remedy}") from None
    shape = getattr(table, "shape", ())  # an archive of arrays has none
    if shape != (entry.documents, 2) or table.dtype != np.int64:
        raise UserError(
            f"{path} is damaged: it has shape {list(shape)}, and the index says "
            f"{entry.documents:,} documents: {remedy}"
        )
    starts = np.append(table[:, 0], entry.tokens)
    if starts[0] != 0 or (np.diff(starts) < 0).any() or table[:, 1].sum() != entry.bytes:
        raise UserError(f"{path} is damaged: its sums are not the index's; {remedy}")
    return table


def _adds_up(entry: SplitEntry, shard_tokens: int) -> bool:
    """Whether all shards but the last are full, and all together have the split's tokens."""
    sizes = [shard.tokens for shard in entry.shards]
    full = all(size == shard_tokens for size in sizes[:-1])
    return full and all(size <= shard_tokens for size in sizes) and sum(sizes) == entry.tokens


class TokenSplit:
    """One split of a token folder, memory-mapped.

    `tokens`, `documents`, `bytes` (UTF-8), `words` and `nats` (or None) are the split's totals;
    `document_starts` and `document_bytes`, int64 [documents], tell them apart.

    Raises:
        UserError: no such folder or split, or files whose bytes are not those that were written.
    """

    def __init__(self, folder: Path, split: str) -> None:
        index = read_json_as(folder / INDEX, Index)
        check_seal(folder, INDEX, f"{split}/*")
        if split not in index.splits:
            raise UserError(f"{folder} has no split {split!r}, only {', '.join(index.splits)}")
        entry = index.splits[split]
        self.folder, self.split = folder / split, split
        self.tokenizer_hash, self.end_of_text = index.tokenizer, index.end_of_text
        self.documents, self.tokens = entry.documents, entry.tokens
        self.bytes, self.words = entry.bytes, entry.words
        self.nats, self.unknown = entry.nats, entry.unknown
        self.mixture = index.mixture
        self._shard_tokens, self._vocabulary_size = index.shard_tokens, index.vocabulary_size
        dtype = np.dtype(index.dtype).newbyteorder("<")
        if not _adds_up(entry, self._shard_tokens):
            raise UserError(f"{folder / INDEX}: the shards of {split} do not add up to its tokens")
        self._shards = [self._map(shard, dtype) for shard in entry.shards]
        table = _documents(self.folder / DOCUMENTS, entry)
        self.document_starts, self.document_bytes = table[:, 0], table[:, 1]

    def _map(self, shard: ShardEntry, dtype: np.dtype) -> np.ndarray:
        path = self.folder / shard.name
        expected = shard.tokens * dtype.itemsize
        found = path.stat().st_size if path.exists() else 0
        if found != expected:
            raise UserError(
                f"{path} has {found:,} bytes and the index says {expected:,}: "
                "run the stage `tokenize` again"
            )
        # A plain array over the map: indexing a memmap object is slower.
        return np.asarray(np.memmap(path, dtype, "r"))

    def __len__(self) -> int:
        return self.tokens

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The windows of `length` tokens from each of `starts` [B]: int64 [B, length].

        Raises:
            IndexError: a window leaves the split.
        """
        starts = np.asarray(starts, np.int64)
        if len(starts) and (starts.min() < 0 or starts.max() + length > self.tokens):
            raise IndexError(
                f"a window of {length} leaves the {self.tokens} tokens of {self.split}"
            )
        return self.at(starts[:, None] + np.arange(length))

    def texts(self, tokenizer: Tokenizer, limit: int) -> list[str]:
        """The documents of the split's first `limit` tokens, decoded; the last may be cut."""
        ids = self.gather(np.array([0]), min(limit, len(self)))[0]
        documents = np.split(ids, np.flatnonzero(ids == self.end_of_text))
        texts = (tokenizer.decode(document[document != self.end_of_text]) for document in documents)
        return [text for text in texts if text]

    def at(self, positions: np.ndarray) -> np.ndarray:
        """int64 ids at positions of any shape, one fancy index per shard.

        Raises:
            UserError: an id outside the vocabulary.
        """
        ids = self._at(positions)
        if ids.size and ids.max() >= self._vocabulary_size:
            raise UserError(
                f"{self.folder} has the token {ids.max()}, and the vocabulary ends at "
                f"{self._vocabulary_size - 1}: run the stage `tokenize` again"
            )
        return ids

    def _at(self, positions: np.ndarray) -> np.ndarray:
        if len(self._shards) == 1:
            return self._shards[0][positions].astype(np.int64)
        result = np.empty(positions.shape, np.int64)
        shards = positions // self._shard_tokens
        for number in np.unique(shards):
            here = shards == number
            result[here] = self._shards[number][positions[here] - number * self._shard_tokens]
        return result


# --- Sampling


class WindowSampler:
    """Batches of windows for training, without repetition within an epoch.

    An epoch takes the split as a circle, cuts it into windows of `context_length` from a random
    position on and shuffles them: every token is an input once (fewer than `context_length` sit
    out, others each epoch), and every window is followed by its last target. The circle's seam
    is like any other: one document's end before another's beginning. A batch may span epochs, so
    all have the same shape. Position is `epoch` and `cursor`; the order is recomputed from them.

    Raises:
        UserError: the split is no longer than one window.
    """

    def __init__(self, split: TokenSplit, batch_size: int, context_length: int, seed: int) -> None:
        if len(split) <= context_length:
            raise UserError(
                f"the split {split.split} has {len(split)} tokens, too few for one window of "
                f"{context_length} and its next token: lower context_length or add documents"
            )
        self.split, self.batch_size, self.context_length = split, batch_size, context_length
        self.seed = seed
        self.epoch = 0
        self.cursor = 0
        self._starts = self._order()

    @property
    def windows_per_epoch(self) -> int:
        return len(self.split) // self.context_length

    @property
    def batches_per_epoch(self) -> int:
        return -(-self.windows_per_epoch // self.batch_size)

    def next_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and, one token later, targets: int64 [B, T] each."""
        return self.batch_of(self.next_rows())

    def next_rows(self) -> np.ndarray:
        """Where the next batch's windows start, [B]."""
        parts, needed = [], self.batch_size
        while needed:
            part = self._starts[self.cursor : self.cursor + needed]
            parts.append(part)
            needed -= len(part)
            self.cursor += len(part)
            if self.cursor == len(self._starts):
                self.epoch, self.cursor = self.epoch + 1, 0
                self._starts = self._order()
        return np.concatenate(parts)

    def batch_of(self, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of the windows from those starts: int64 [len(starts), T] each."""
        windows = self._windows(starts)
        return windows[:, :-1], windows[:, 1:]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.cursor = state["epoch"], state["cursor"]
        self._starts = self._order()

    def _order(self) -> np.ndarray:
        """Where this epoch's windows start, in the order they are served."""
        random = np.random.default_rng([self.seed, self.epoch])
        offset = random.integers(len(self.split))
        starts = offset + random.permutation(self.windows_per_epoch) * self.context_length
        return starts % len(self.split)

    def _windows(self, starts: np.ndarray) -> np.ndarray:
        positions = starts[:, None] + np.arange(self.context_length + 1)
        return self.split.at(positions % len(self.split))


def sliding_windows(ids: np.ndarray, max_length: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """The book's data set: windows every `stride` tokens (Raschka 2024, listing 2.5).

    Args:
        ids: token ids, [N].
        max_length: tokens in a window, T.
        stride: tokens between two windows' starts.

    Returns:
        Inputs and, one token later, targets, [windows, T] each, windows = ⌈(N - T) / stride⌉.

    Raises:
        ValueError: a length or stride below 1, or fewer than T + 1 ids.
    """
    if max_length < 1 or stride < 1:
        raise ValueError(f"max_length {max_length} and stride {stride} must be at least 1")
    if len(ids) <= max_length:
        raise ValueError(f"{len(ids)} ids are too few for a window of {max_length} and its target")
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(ids), max_length + 1)[::stride]
    return windows[:, :-1], windows[:, 1:]
