"""Other people's files as text: compression, encoding, and what ends a line.

Every reader of text goes through here. Only standard modules are imported at the top: the base
install reads plain UTF-8 without any other.
"""

import codecs
import gzip
import zlib
from pathlib import Path
from typing import Any

from gptmill.errors import UserError

COMPRESSED = (".gz", ".zst")
WESTERN = "cp1252"
SAMPLE = 1 << 18  # bytes that an encoding is guessed from
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def plain_suffix(path: Path) -> str:
    """What kind of file this is, compression aside: '.csv' of `A.CSV.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def plain_stem(path: Path) -> str:
    """The file's name without its kind and compression: 'a.b' of `a.b.csv.gz`."""
    name = path.name
    for suffix in (path.suffix if path.suffix.lower() in COMPRESSED else "", plain_suffix(path)):
        if suffix and name.lower().endswith(suffix.lower()):
            name = name[: -len(suffix)]
    return name


def read_bytes(path: Path) -> bytes:
    """A file's bytes, decompressed where it ends in .gz or .zst.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    try:
        if path.suffix.lower() == ".gz":
            return gzip.decompress(path.read_bytes())
        if path.suffix.lower() == ".zst":
            import pyarrow as pa

            with pa.input_stream(str(path), compression="zstd") as stream:
                return stream.read()
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a file") from None
    except ImportError:
        raise UserError(
            f"{path}: reading .zst needs pyarrow: pip install 'gptmill[pipeline]'"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def read_text(path: Path, encoding: str = "") -> str:
    """A file's text, without a byte order mark. An encoding that had to be found out is printed.

    Raises:
        UserError: no such file, damaged, binary, or not in `encoding`.
    """
    text, found = decode(read_bytes(path), encoding, str(path))
    if not encoding and found not in ("utf-8", "utf-8-sig"):
        print(f"{path}: read as {found}: {' '.join(text[:60].split())!r} …")
    return text


def decode(data: bytes, encoding: str = "", origin: str = "the text") -> tuple[str, str]:
    """Text and the name of its encoding.

    By `encoding` where given; else by byte order mark, UTF-8 where all bytes are, UTF-16 by its
    NULs, or what charset-normalizer finds likeliest.

    Raises:
        UserError: not in that encoding, unknown, or no text at all.
    """
    mark = next((name for bytes_, name in _MARKS.items() if data.startswith(bytes_)), "")
    name = encoding or mark or _utf16_by_nuls(data, origin) or "utf-8"
    try:
        return data.decode(name).removeprefix("\ufeff"), name
    except LookupError:
        raise UserError(f"{origin}: there is no encoding {name!r}") from None
    except UnicodeDecodeError as error:
        if not encoding and not mark and name != "utf-8":
            raise UserError(
                f"{origin} is not text: it has NUL bytes, as binary files have"
            ) from None
        if encoding or mark:
            raise UserError(
                f"{origin} is not {name}: byte {error.object[error.start]:#04x} at offset "
                f"{error.start}"
            ) from None
    found = _guessed(data, origin)
    return data.decode(found), found


def _utf16_by_nuls(data: bytes, origin: str) -> str:
    """UTF-16's byte order where NULs are all on one side of the pairs; '' without a NUL."""
    if b"\0" not in data:
        return ""
    even, odd = data[::2].count(0), data[1::2].count(0)
    few = (even + odd) * 10 < len(data) and _is_utf8(data)  # UTF-8 with a NUL now and then
    if few or min(even, odd) * 20 > max(even, odd) or len(data) % 2:
        raise UserError(f"{origin} is not text: it has NUL bytes, as binary files have")
    return "utf-16-le" if odd > even else "utf-16-be"


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _guessed(data: bytes, origin: str) -> str:
    remedy = "name it in `encoding`, or convert the file: iconv -f latin1 -t utf-8"
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        raise UserError(f"{origin} is not UTF-8: {remedy}") from None
    matches = from_bytes(data[:SAMPLE])
    best = matches.best()
    if best is None:
        raise UserError(f"{origin} is not UTF-8, and no encoding fits it: {remedy}")
    # Where it cannot tell Western from Central European, Western is by far the commoner.
    tied = [m for m in matches if (m.chaos, m.coherence) == (best.chaos, best.coherence)]
    western = any(WESTERN in match.could_be_from_charset for match in tied)
    found = WESTERN if western else best.encoding
    try:
        data.decode(found)
    except UnicodeDecodeError:
        raise UserError(
            f"{origin} is not UTF-8, and looks like {found} at first alone: {remedy}"
        ) from None
    return found


def lines(text: str) -> list[str]:
    """Lines that end in LF or CRLF. A bare CR, U+2028, U+0085 and form feeds are inside them.

    Where there is no LF at all a CR ends a line, as it did on old Macs.
    """
    if "\n" not in text:
        found = text.split("\r")
    else:
        found = [line.removesuffix("\r") for line in text.split("\n")]
    return found[:-1] if found[-1] == "" else found


def without_surrogates(text: str) -> str:
    """Halves of a pair, which no UTF-8 has, as U+FFFD; whole pairs as their character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def whole_characters(value: Any) -> Any:
    """A value of JSON, all its texts `without_surrogates`."""
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list):
        return [whole_characters(part) for part in value]
    if isinstance(value, dict):
        return {key: whole_characters(part) for key, part in value.items()}
    return value
