"""Damaged copies of valid files, as Hypothesis strategies: what disks, editors and others do."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

DEEP = "a value nested deeper than Python's stack"
# Every type of JSON, and the values that break arithmetic, encodings, paths and loops.
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 1.5, -0.5, 1e308, "", "x", "é", "\ud800",
    "\0", "../x", "/etc/passwd", [], [None], [[]], [1], ["a"], [["a", "b", "c"]], {}, {"": None},
    {"a": {}},
]  # fmt: skip


@st.composite
def damaged_json(draw: st.DrawFn, valid: Any) -> bytes:
    """The document with some of its nodes replaced, dropped or doubled, or its bytes damaged."""
    document = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(1, 3))):
        document = _damage(draw, document)
    data = json.dumps(document).encode().replace(f'"{DEEP}"'.encode(), b"[" * 1500 + b"]" * 1500)
    return draw(damaged_bytes(data)) if draw(st.integers(0, 5)) == 0 else data


@st.composite
def damaged_bytes(draw: st.DrawFn, valid: bytes) -> bytes:
    """The bytes cut short, with some of them replaced, dropped or doubled, or other ones."""
    kind = draw(st.sampled_from(["cut", "flip", "insert", "delete", "double", "empty", "other"]))
    if kind == "empty":
        return b""
    if kind == "other":
        return draw(st.binary(max_size=64))
    at = draw(st.integers(0, max(0, len(valid) - 1)))
    length = draw(st.integers(1, 16))
    if kind == "cut":
        return valid[:at]
    if kind == "delete":
        return valid[:at] + valid[at + length :]
    if kind == "double":
        return valid[: at + length] + valid[at:]
    inserted = draw(st.one_of(st.binary(min_size=1, max_size=length), st.sampled_from(PIECES)))
    kept = at if kind == "insert" else at + len(inserted)
    return valid[:at] + inserted + valid[kept:]


PIECES = [
    b"\xff", b"\0", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\x0c", b"\xe2\x80\xa8", b'"', b"'",
    b"{", b"[" * 1500, b"9" * 5000, b"NaN", b"1e999", b"&a [*a]", b"!!python/object:os.system",
]  # fmt: skip


def _damage(draw: st.DrawFn, document: Any) -> Any:
    """One node of a document, found by a walk from its root, is another value or absent."""
    parent, key, node = None, None, document
    while isinstance(node, dict | list) and node and (parent is None or draw(st.booleans())):
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        parent, key = node, draw(st.sampled_from(keys))
        node = parent[key]
    if parent is None:
        return copy.deepcopy(draw(st.sampled_from(VALUES)))
    kind = draw(st.sampled_from(["replace", "replace", "replace", "delete", "deep"]))
    if kind == "delete":
        del parent[key]
    elif kind == "deep":
        parent[key] = DEEP if draw(st.integers(0, 9)) == 0 else {"a": copy.copy(node)}
    else:
        parent[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    return document
