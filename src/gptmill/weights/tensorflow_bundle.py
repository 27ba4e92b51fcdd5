"""TensorFlow's checkpoint format, read without TensorFlow.

A checkpoint (a "tensor bundle") is an index and data shards. The index is a LevelDB table from
tensor names to `BundleEntryProto`: dtype, shape, and where the raw bytes are in which shard. Block
and tensor checksums (CRC-32C) are verified, since nothing else vouches for a download.

Why our own: the one reader without TensorFlow on the package index, tensorflow-checkpoint-reader
0.2.2 (2023), is 25,000 lines generated from TensorFlow's sources, calls itself unfinished and
needs protobuf under 3.19, which nothing else here can live with. What a reader needs of the format
(tensorflow/core/util/tensor_bundle and tensorflow/core/lib/io/format.h, LevelDB's table_format.md)
is this page, and golden files that TensorFlow wrote hold it to that.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from gptmill.errors import UserError
from gptmill.weights.crc32c import crc32c, unmask

FOOTER_BYTES, TRAILER_BYTES = 48, 5
TABLE_MAGIC = 0xDB4775248B80FB57
DTYPES: dict[int, np.dtype] = {
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    3: np.dtype("<i4"),
    9: np.dtype("<i8"),
    19: np.dtype("<f2"),
}
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # protobuf wire types


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor is: bytes `offset` to `offset + size` of a shard; `crc` is masked."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


class TensorBundle:
    """The tensors of `PREFIX.index` and `PREFIX.data-*-of-*`, by TensorFlow's names.

    Raises:
        UserError: files missing, truncated or damaged, or of a kind that GPT-2 does not use.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.index = Path(f"{prefix}.index")
        records = dict(_Table(self.index).records())
        header = _fields(records.pop(b"", b""), self.index)
        self.shards = _number(header, 1, self.index, default=1)
        if _number(header, 2, self.index) != 0:
            _damaged(self.index, "its numbers are big-endian, which is not supported")
        self.entries = {
            name.decode(): _entry(value, name.decode(), self.index)
            for name, value in records.items()
        }
        self._maps: dict[int, np.memmap] = {}

    def array(self, name: str) -> np.ndarray:
        """One tensor, its checksum verified: a copy-on-write view of the file."""
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            _damaged(self.index, f"{name} has TensorFlow's dtype {entry.dtype}, not a number")
        dtype = DTYPES[entry.dtype]
        if int(np.prod(entry.shape, dtype=np.int64)) * dtype.itemsize != entry.size:
            _damaged(self.index, f"{name} has shape {list(entry.shape)} and {entry.size:,} bytes")
        data = self._shard(entry.shard)
        octets = data[entry.offset : entry.offset + entry.size]
        if len(octets) != entry.size:
            _damaged(
                self._path(entry.shard),
                f"it ends at byte {len(data):,}, and {name} would end at "
                f"{entry.offset + entry.size:,}",
            )
        if crc32c(octets) != unmask(entry.crc):
            _damaged(self._path(entry.shard), f"the checksum of {name} differs")
        return octets.view(dtype).reshape(entry.shape)

    def _path(self, shard: int) -> Path:
        return Path(f"{self.prefix}.data-{shard:05d}-of-{self.shards:05d}")

    def _shard(self, number: int) -> np.memmap:
        if number not in self._maps:
            path = self._path(number)
            if not path.exists():
                raise UserError(f"{path} does not exist: the checkpoint is incomplete")
            if path.stat().st_size == 0:
                _damaged(path, "it is empty")
            self._maps[number] = np.memmap(path, np.uint8, mode="c")
        return self._maps[number]


class _Table:
    """A LevelDB table: data blocks of sorted records, and a block that says where they are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.data = path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"{path} does not exist: not a TensorFlow checkpoint") from None
        footer = self.data[-FOOTER_BYTES:]
        if len(footer) < FOOTER_BYTES or struct.unpack("<Q", footer[-8:])[0] != TABLE_MAGIC:
            _damaged(path, "it does not end as a TensorFlow index does")
        at = _skip_handle(footer, 0, path)  # of the block of metadata, always empty
        self.index_handle = _handle(footer, at, path)

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        for _, value in self._block(*self.index_handle):
            yield from self._block(*_handle(value, 0, self.path))

    def _block(self, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of one block; each key repeats the start of the one before it."""
        raw = self.data[offset : offset + size + TRAILER_BYTES]
        if len(raw) != size + TRAILER_BYTES or size < 4:
            _damaged(self.path, f"a block at byte {offset:,} is cut off")
        if crc32c(raw[: size + 1]) != unmask(struct.unpack("<I", raw[-4:])[0]):
            _damaged(self.path, f"the checksum of the block at byte {offset:,} differs")
        if raw[size] != 0:
            _damaged(
                self.path, "its blocks are compressed, which TensorFlow's own writer never does"
            )
        restarts = struct.unpack("<I", raw[size - 4 : size])[0]
        at, end, key = 0, size - 4 * (restarts + 1), b""
        while at < end:
            shared, at = _varint(raw, at, self.path)
            fresh, at = _varint(raw, at, self.path)
            length, at = _varint(raw, at, self.path)
            key = key[:shared] + raw[at : at + fresh]
            yield key, raw[at + fresh : at + fresh + length]
            at += fresh + length


def _entry(data: bytes, name: str, path: Path) -> TensorEntry:
    """A `BundleEntryProto`: dtype 1, shape 2, shard 3, offset 4, size 5, crc32c 6, slices 7."""
    fields = _fields(data, path)
    if 7 in fields:
        _damaged(path, f"{name} is partitioned into slices, which GPT-2's checkpoints are not")
    shape = tuple(
        _number(_fields(_octets(dimension, path), path), 1, path)
        for number, dimension in _messages(_octets(fields.get(2, b""), path), path)
        if number == 2
    )
    return TensorEntry(
        dtype=_number(fields, 1, path),
        shape=shape,
        shard=_number(fields, 3, path),
        offset=_number(fields, 4, path),
        size=_number(fields, 5, path),
        crc=_number(fields, 6, path),
    )


def _fields(data: bytes, path: Path) -> dict[int, int | bytes]:
    """A protobuf message by field number, for fields that do not repeat."""
    return dict(_messages(data, path))


def _number(fields: dict[int, int | bytes], number: int, path: Path, default: int = 0) -> int:
    value = fields.get(number, default)
    if isinstance(value, bytes):
        _damaged(path, f"field {number} of a protobuf message is not a number")
    return value


def _octets(value: int | bytes, path: Path) -> bytes:
    if isinstance(value, int):
        _damaged(path, "a protobuf field is a number, not a message")
    return value


def _messages(data: bytes, path: Path) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    value: int | bytes
    while at < len(data):
        tag, at = _varint(data, at, path)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = _varint(data, at, path)
        elif wire == LENGTH:
            length, at = _varint(data, at, path)
            value, at = data[at : at + length], at + length
        elif wire in (FIXED32, FIXED64):
            width = 4 if wire == FIXED32 else 8
            value, at = int.from_bytes(data[at : at + width], "little"), at + width
        else:
            _damaged(path, f"a protobuf field of wire type {wire}")
        yield number, value


def _varint(data: bytes, at: int, path: Path) -> tuple[int, int]:
    """An integer of 7 bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            break
        octet, at = data[at], at + 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value, at
    _damaged(path, "a number is cut off")


def _handle(data: bytes, at: int, path: Path) -> tuple[int, int]:
    """Offset and size of a block."""
    offset, at = _varint(data, at, path)
    return offset, _varint(data, at, path)[0]


def _skip_handle(data: bytes, at: int, path: Path) -> int:
    return _varint(data, _varint(data, at, path)[1], path)[1]


def _damaged(path: Path, reason: str) -> NoReturn:
    raise UserError(f"{path} cannot be read: {reason}; if it was downloaded, download it again")
