"""Safetensors files, mapped into memory and written as a stream.

Tensors are views of a private map of the file, so that opening copies nothing and weights are
never held twice. Training writes to private pages and leaves the file as it is.
"""

import json
import math
import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gptmill.errors import UserError
from gptmill.files import read_json
from gptmill.seal import check_seal

SINGLE, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
LONGEST_NAME = 200  # of a shard's file
# The first bytes of what people put where safetensors belong.
NOT_SAFETENSORS = {
    b"PK\x03\x04": "a pickle saved by PyTorch, which could run code",
    b"\x80\x02": "a pickle, which could run code",
    b"\x80\x04": "a pickle, which could run code",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself (git lfs pull)",
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes are: `offset` in bytes from the start of `path`."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


class SafetensorsFolder:
    """The tensors of a folder's single file, or of its shards, by name.

    Raises:
        UserError: no safetensors, a pickle instead, a file that is truncated or damaged, shards
            that disagree with their index, bytes that are not those we wrote.
    """

    def __init__(self, folder: Path) -> None:
        check_seal(folder)
        self.origin = str(folder)
        self.stored = _sharded(folder) if (folder / INDEX).exists() else _single(folder)
        self._maps: dict[Path, mmap.mmap] = {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: stored.shape for name, stored in self.stored.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` of a tensor, float32; if stored so, a view of the file."""
        stored = self.stored[name]
        if stored.dtype not in DTYPES:
            raise UserError(
                f"{stored.path}: {name} is stored as {stored.dtype}, and only "
                f"{', '.join(DTYPES)} can be loaded: quantized weights are not supported"
            )
        rows = slice(start, stop).indices(stored.shape[0])
        row_values = math.prod(stored.shape[1:])
        dtype = DTYPES[stored.dtype]
        flat = torch.frombuffer(
            self._map(stored.path),
            dtype=dtype,
            count=(rows[1] - rows[0]) * row_values,
            offset=stored.offset + rows[0] * row_values * dtype.itemsize,
        )
        return flat.view(rows[1] - rows[0], *stored.shape[1:]).float()

    def _map(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            with path.open("rb") as file:
                # A copy on write: private to this process.
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[path]


def write_safetensors(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write named tensors in the order given, one at a time, as the `safetensors` library does.

    `tensors` is walked twice: for the header, which needs shapes alone, and for the bytes. Names
    are to come sorted; the same tensors then give the same bytes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors:
        start, end = end, end + tensor.nbytes
        kind = DTYPE_NAMES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in tensors:
            file.write(_bytes(tensor.detach().cpu().contiguous()))


def _single(folder: Path) -> dict[str, StoredTensor]:
    path = folder / SINGLE
    if path.exists():
        return _header(path)
    if (folder / PICKLE).exists():
        raise UserError(
            f"{folder} has {PICKLE}, a pickle, which could run code, and no {SINGLE}: get the "
            "model's safetensors, or convert it with save_pretrained(…, safe_serialization=True)"
        )
    raise UserError(f"{folder} has no {SINGLE}: it is not a model folder")


def _sharded(folder: Path) -> dict[str, StoredTensor]:
    places = read_json(folder / INDEX, dict).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise UserError(f"{folder / INDEX} has no weight_map of names to files")
    for shard in set(places.values()):
        if not 0 < len(shard) < LONGEST_NAME or Path(shard).name != shard:
            raise UserError(f"{folder / INDEX} names {shard!r}, outside its folder: refused")
        if not (folder / shard).exists():
            raise UserError(f"{folder}: the shard {shard} is missing")
    stored = {}
    for shard in sorted(set(places.values())):
        for name, tensor in _header(folder / shard).items():
            if places.get(name) != shard:
                raise UserError(f"{folder / shard} holds {name}, which the index does not say")
            stored[name] = tensor
    if absent := sorted(places.keys() - stored.keys()):
        raise UserError(f"{folder / places[absent[0]]} lacks {absent[0]}, which the index promises")
    return stored


def _header(path: Path) -> dict[str, StoredTensor]:
    """Names, dtypes, shapes and places, checked by the `safetensors` library against the file."""
    with path.open("rb") as file:
        start = file.read(32)
    for magic, meaning in NOT_SAFETENSORS.items():
        if start.startswith(magic):
            raise UserError(f"{path} is not safetensors but {meaning}")
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        size = path.stat().st_size
        raise UserError(
            f"{path} ({size:,} bytes) is truncated or damaged: {error}; download it again"
        ) from None
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(
            path, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
        )
        for name, entry in header.items()
    }


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data
