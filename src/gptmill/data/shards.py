"""A planned corpus encoded into token shards (`gptmill.data.tokens` says how they lie).

Threads encode batches of the spool side by side, since tiktoken leaves Python's lock; this thread
appends what they return, in the corpus's order. The bytes do not depend on the number of threads.
"""

import math
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from gptmill.data.corpus import SPLITS
from gptmill.data.mixture import SOURCES
from gptmill.data.splits import CUT, DROPPED, Plan, pieces
from gptmill.data.tokens import DOCUMENTS, INDEX
from gptmill.errors import UserError
from gptmill.files import atomic_folder, sha256_tree, write_json
from gptmill.process.pool import impatient_pool, in_turn
from gptmill.seal import seal
from gptmill.sources import Mixed
from gptmill.tokenizer import Tokenizer

AHEAD = 2  # batches under way, for each thread


def write_tokens(
    plan: Plan,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    shard_tokens: int,
    workers: int = 1,
) -> dict[str, float]:
    """Encode a corpus into shards, `<|endoftext|>` after every document.

    Memory holds a few batches of the spool, whatever the corpus. Ids are uint16 if the vocabulary
    fits, else uint32. Of a document cut by position only the last piece is followed by
    `<|endoftext|>`, for only there a document ends.

    Returns:
        Counts: `<split>/documents`, `/tokens`, `/bytes`, `/words`, `/nats` (where all are known)
        and `dropped/<reason>`.

    Raises:
        UserError: nothing is left to train on, or a corpus of the mixture has nothing of it.
    """
    if not any(split == 0 or split == CUT for split in np.unique(plan.splits)):
        raise UserError(_nothing_to_train_on(plan))
    with atomic_folder(folder) as beside:
        (beside / "tokenizer").mkdir()
        tokenizer.save(beside / "tokenizer")
        dtype = np.dtype("<u2" if tokenizer.vocabulary_size <= 1 << 16 else "<u4")
        index = _empty_index(
            tokenizer, sha256_tree(beside / "tokenizer"), dtype, shard_tokens, plan
        )
        with ExitStack() as stack:
            writers = [
                stack.enter_context(_ShardWriter(beside / split, dtype, shard_tokens))
                for split in SPLITS
            ]
            for found in _encoded(plan, tokenizer, dtype, workers):
                for writer, part in zip(writers, found, strict=True):
                    writer.append(part)
        for split, (name, writer) in enumerate(zip(SPLITS, writers)):
            index["splits"][name] = _entry(plan, split, writer, tokenizer)
        if plan.mixture:
            index["mixture"] = _mixture(writers, plan.mixture)
        write_json(beside / INDEX, index)
        seal(beside)
    return _counts(index)


def _nothing_to_train_on(plan: Plan) -> str:
    dropped = ", ".join(
        f"{count:,} {reason.replace('_', ' ')}"
        for reason, count in plan.dropped.counts.items()
        if count
    )
    return (
        f"no text is left to train on (dropped: {dropped or 'nothing'}); add text, or take the "
        "same text out of the validation and test files"
    )


def _empty_index(
    tokenizer: Tokenizer, tokenizer_hash: str, dtype: np.dtype, shard_tokens: int, plan: Plan
) -> dict[str, Any]:
    return {
        "tokenizer": tokenizer_hash,
        "vocabulary_size": tokenizer.vocabulary_size,
        "end_of_text": tokenizer.end_of_text,
        "dtype": dtype.name,
        "shard_tokens": shard_tokens,
        "splits": {},
        "dropped": dict(plan.dropped.counts),
        "duplicates": plan.dropped.duplicates,
    }


@dataclass
class _Part:
    """What one split gets of a batch; `lengths` of its documents in tokens and in UTF-8 bytes."""

    ids: list[np.ndarray] = field(default_factory=list)
    lengths: array = field(default_factory=lambda: array("q"))
    sources: array = field(default_factory=lambda: array("B"))
    words: int = 0
    unknown: int = 0


def _encoded(
    plan: Plan, tokenizer: Tokenizer, dtype: np.dtype, workers: int
) -> Iterator[list[_Part]]:
    """For each batch of the spool, in order, what each split gets of it."""
    encode = partial(_encode, plan, tokenizer, dtype)
    workers = min(workers, plan.spool.batches)
    size = int(plan.spool.records["bytes"][plan.splits != DROPPED].sum())
    progress = tqdm(total=size, desc="tokenize", unit="B", unit_scale=True, disable=None)
    with progress, ExitStack() as stack:
        pool = stack.enter_context(impatient_pool(workers)) if workers > 1 else None
        for found in in_turn(pool, encode, range(plan.spool.batches), AHEAD * workers):
            progress.update(sum(sum(part.lengths[1::2]) for part in found))
            yield found


def _encode(plan: Plan, tokenizer: Tokenizer, dtype: np.dtype, batch: int) -> list[_Part]:
    taken = [
        (number, split, text, ends, words)
        for number, text in plan.spool.texts(batch)
        for split, text, ends, words in _pieces(plan, number, text)
    ]
    found = [_Part() for _ in SPLITS]
    unknown = getattr(tokenizer, "unknown", None)
    end = np.array([tokenizer.end_of_text], dtype)
    encoded = tokenizer.encode_arrays([text for _, _, text, _, _ in taken])
    for (number, split, text, ends, words), ids in zip(taken, encoded, strict=True):
        part = found[split]
        part.ids += [ids.astype(dtype), end] if ends else [ids.astype(dtype)]
        part.lengths.extend((len(ids) + ends, len(text.encode())))
        part.words += words
        if plan.mixture:
            part.sources.append(int(plan.sources[number]))
        part.unknown += 0 if unknown is None else int((ids == unknown).sum())
    return found


def _pieces(plan: Plan, number: int, text: str) -> Iterator[tuple[int, str, bool, int]]:
    """Split, text, whether it ends there and words of what is kept of a document."""
    assigned = int(plan.splits[number])
    if assigned == CUT:
        for split, (piece, ends) in enumerate(pieces(text, plan.cuts[number])):
            if piece:
                yield split, piece, ends, len(piece.split())
    elif assigned != DROPPED:
        yield assigned, text, True, int(plan.spool.records["words"][number])


def _entry(plan: Plan, split: int, writer: "_ShardWriter", tokenizer: Tokenizer) -> dict[str, Any]:
    """A split's entry in the index."""
    lengths = np.array(writer.lengths, np.int64).reshape(-1, 2)
    table = lengths.copy()
    table[:, 0] = np.cumsum(lengths[:, 0]) - lengths[:, 0]
    np.save(writer.folder / DOCUMENTS, table)
    nats = plan.spool.records["nats"][plan.splits == split]
    known = len(table) and len(nats) == len(table) and not np.isnan(nats).any()
    return {
        "documents": len(table),
        "tokens": writer.tokens,
        "bytes": int(table[:, 1].sum()),
        "words": writer.words,
        "nats": math.fsum(nats) if known else None,
        "shards": writer.shards,
        # Of a tokenizer that knows all text there are none.
        **({"unknown": writer.unknown} if hasattr(tokenizer, "unknown") else {}),
    }


def _mixture(writers: "list[_ShardWriter]", mixture: Sequence[Mixed]) -> list[dict[str, Any]]:
    """Write whose documents each split's are; the index's entry."""
    for writer in writers:
        np.save(writer.folder / SOURCES, np.array(writer.sources, np.uint8))
    for number, mixed in enumerate(mixture):
        for writer, split in zip(writers[:2], SPLITS):
            if number not in writer.sources:
                raise UserError(
                    f"tokenize.mixture: {mixed.name} has no document in {split}: "
                    f"{mixed.documents!r} fits no id of it; add text or take it out"
                )
    return [{"name": mixed.name, "weight": mixed.weight} for mixed in mixture]


class _ShardWriter:
    """Appends ids to files of `shard_tokens` each; `shards` lists name and tokens."""

    def __init__(self, folder: Path, dtype: np.dtype, shard_tokens: int) -> None:
        folder.mkdir(parents=True)
        self.folder, self.dtype, self.shard_tokens = folder, dtype, shard_tokens
        self.tokens = self.words = self.unknown = 0
        self.lengths, self.sources = array("q"), array("B")
        self.shards: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None

    def append(self, part: _Part) -> None:
        for ids in part.ids:
            self._append(ids)
        self.lengths.extend(part.lengths)
        self.sources.extend(part.sources)
        self.words += part.words
        self.unknown += part.unknown

    def _append(self, ids: np.ndarray) -> None:
        while len(ids):
            file = self._file or self._open()
            room = self.shard_tokens - self.shards[-1]["tokens"]
            file.write(ids[:room].tobytes())
            self.shards[-1]["tokens"] += len(ids[:room])
            self.tokens += len(ids[:room])
            ids = ids[room:]
            if self.shards[-1]["tokens"] == self.shard_tokens:
                self._close()

    def _open(self) -> BinaryIO:
        name = f"{len(self.shards):05d}.bin"
        self._file = (self.folder / name).open("wb")
        self.shards.append({"name": name, "tokens": 0})
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "_ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


def _counts(index: dict[str, Any]) -> dict[str, float]:
    """The index's numbers as flat metrics."""
    counts = {
        f"{split}/{name}": entry[name]
        for split, entry in index["splits"].items()
        for name in ("documents", "tokens", "bytes", "words", "nats")
        if entry[name] is not None
    }
    counts |= {
        f"{split}/unknown/share": entry["unknown"] / max(1, entry["tokens"])
        for split, entry in index["splits"].items()
        if "unknown" in entry
    }
    return counts | {f"dropped/{reason}": count for reason, count in index["dropped"].items()}
