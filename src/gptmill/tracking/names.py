"""MLflow's rule for names, met by one mapping that can be undone.

A metric, parameter or tag may hold letters, digits and `_ - . / space` (a colon too, but not on
Windows), must be its own name when read as a path, and has 250 characters at most
(`mlflow.utils.validation`). What else a name holds is written `_x26_`, its code point in
hexadecimal, as ISO 9075-14 does for XML: `Q&A` is `Q_x26_A`.
"""

import posixpath
import re

LONGEST = 250
_ESCAPED = re.compile(r"_x([0-9a-f]+)_")
# An underscore before an x would be read as the beginning of an escape.
_FOREIGN = re.compile(r"[^/\w.\- ]|_(?=x)")


def to_mlflow(name: str) -> str:
    """The name that MLflow takes for ours.

    Raises:
        ValueError: it is empty, or too long for MLflow.
    """
    mapped = _FOREIGN.sub(_escape, name)
    if posixpath.normpath(mapped) != mapped or mapped == "." or mapped.startswith(("..", "/")):
        mapped = re.sub(r"[/.]", _escape, mapped)
    if not mapped:
        raise ValueError("a name is empty")
    if len(mapped) > LONGEST:
        raise ValueError(f"'{name[:60]}…' is longer than MLflow's {LONGEST} characters")
    return mapped


def from_mlflow(name: str) -> str:
    """Our name again."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), name)


def _escape(found: re.Match[str]) -> str:
    return f"_x{ord(found[0]):x}_"
