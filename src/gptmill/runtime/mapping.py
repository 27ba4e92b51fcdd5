"""A model file whose weights are mapped, not parsed: about half the loading time.

Parsed as a protobuf, a model is copied twice before its first operator runs. ONNX can say instead
that a tensor's bytes lie in some file at some offset, and that file may be the model's own: this
module walks its wire format and hands ONNX Runtime the graph with such references.

Wire format (protobuf.dev/programming-guides/encoding): a field is a tag, number << 3 | type, and
a payload, which for type 2 is a length and that many bytes. Field numbers are onnx.proto's.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_OUTPUT = 1, 5, 12
NODE_OUTPUT, NODE_TYPE = 2, 4
VALUE_NAME = 1
TENSOR_RAW_DATA, TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION = 9, 13, 14
ENTRY_KEY, ENTRY_VALUE = 1, 2
EXTERNAL = 1  # of TensorProto.DataLocation
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
SMALLEST_MAPPED = 1024  # bytes; smaller tensors hold shapes, which optimizers look at


class Field(NamedTuple):
    """A field whose tag is at `start`, and whose payload lies from `payload` to `end`."""

    number: int
    start: int
    payload: int
    end: int


def mapped_model(path: Path, output_of: str = "") -> bytes:
    """The model at `path`, its large tensors referred to by offset in the same file.

    Args:
        output_of: a type of operator; the output of the last one is the model's only output.

    Raises:
        ValueError: the file is empty, or no protobuf from end to end.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as model:
        return b"".join(
            _message(MODEL_GRAPH, _graph(model, field, path.name, output_of))
            if field.number == MODEL_GRAPH
            else model[field.start : field.end]
            for field in _fields(model, 0, len(model))
        )


def _graph(model: mmap.mmap, graph: Field, name: str, output_of: str) -> bytes:
    parts, output = [], b""
    for field in _fields(model, graph.payload, graph.end):
        if field.number == GRAPH_NODE and output_of:
            output = _output_of(model, field, output_of.encode()) or output
        if field.number == GRAPH_INITIALIZER:
            parts.append(_message(GRAPH_INITIALIZER, _tensor(model, field, name)))
        elif field.number != GRAPH_OUTPUT or not output_of:
            parts.append(model[field.start : field.end])
    if output_of:
        parts.append(_message(GRAPH_OUTPUT, _message(VALUE_NAME, output)))
    return b"".join(parts)


def _output_of(model: mmap.mmap, node: Field, kind: bytes) -> bytes:
    """The name of a node's output if it is of this kind."""
    values = {
        field.number: model[field.payload : field.end]
        for field in _fields(model, node.payload, node.end)
        if field.number in (NODE_OUTPUT, NODE_TYPE)
    }
    return values[NODE_OUTPUT] if values.get(NODE_TYPE) == kind else b""


def _tensor(model: mmap.mmap, tensor: Field, name: str) -> bytes:
    parts = []
    for field in _fields(model, tensor.payload, tensor.end):
        size = field.end - field.payload
        if field.number == TENSOR_RAW_DATA and size >= SMALLEST_MAPPED:
            place = {"location": name, "offset": str(field.payload), "length": str(size)}
            parts += [_message(TENSOR_EXTERNAL_DATA, _entry(*pair)) for pair in place.items()]
            parts.append(_varint(TENSOR_DATA_LOCATION << 3) + _varint(EXTERNAL))
        else:
            parts.append(model[field.start : field.end])
    return b"".join(parts)


def _entry(key: str, value: str) -> bytes:
    return _message(ENTRY_KEY, key.encode()) + _message(ENTRY_VALUE, value.encode())


def _message(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | BYTES) + _varint(len(payload)) + payload


def _fields(model: mmap.mmap, start: int, end: int) -> Iterator[Field]:
    while start < end:
        tag, payload = _read_varint(model, start, end)
        kind = tag & 7
        if kind == VARINT:
            _, field_end = _read_varint(model, payload, end)
        elif kind == BYTES:
            length, payload = _read_varint(model, payload, end)
            field_end = payload + length
        elif kind in (FIXED32, FIXED64):
            field_end = payload + (4 if kind == FIXED32 else 8)
        else:
            raise ValueError(f"no protobuf field at byte {start}")
        if field_end > end:
            raise ValueError(f"no protobuf field at byte {start}")
        yield Field(tag >> 3, start, payload, field_end)
        start = field_end


def _read_varint(model: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number of seven bits a byte, low bits first, and where it ends."""
    value = shift = 0
    for place in range(at, min(at + 10, end)):
        value |= (model[place] & 0x7F) << shift
        shift += 7
        if model[place] < 0x80:
            return value, place + 1
    raise ValueError(f"no protobuf number at byte {at}")


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
