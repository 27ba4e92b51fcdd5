"""One member of a zip that came from elsewhere: nothing else of it is unpacked."""

import hashlib
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from gptmill.errors import UserError
from gptmill.fetch.manifest import RemoteFile, escapes

CHUNK_BYTES = 1 << 16
LARGEST_MEMBER_BYTES = 4 << 30
LARGEST_COMPRESSION = 200  # text compresses 3 to 10 times; a bomb about 1,000 times
# What `zipfile` and its decompressors raise for bytes that are none of theirs.
DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError,
    NotImplementedError, ValueError, LookupError, OverflowError, OSError,
)  # fmt: skip


def member_sha256(file: RemoteFile, path: Path) -> str:
    """SHA-256 of the wanted member, unpacked in bounded memory."""
    digest = hashlib.sha256()
    for chunk in member_chunks(file, path):
        digest.update(chunk)
    return digest.hexdigest()


def member_chunks(file: RemoteFile, path: Path) -> Iterator[bytes]:
    """The wanted member's bytes; nothing else of the zip is unpacked.

    Raises:
        UserError: no zip, no such member, a name that escapes its folder, a bomb, a password.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            information = _checked_member(archive, file, path)
            with archive.open(information) as member:
                while chunk := member.read(CHUNK_BYTES):
                    yield chunk
    except DAMAGED as error:
        raise UserError(f"{path} is not a zip that can be read: {error}") from None


def _checked_member(archive: zipfile.ZipFile, file: RemoteFile, path: Path) -> zipfile.ZipInfo:
    names = archive.namelist()
    escaping = [name for name in names if escapes(name)]
    if escaping:
        raise UserError(f"{path}: {escaping[0]!r} would be written outside its folder: refused")
    if file.member not in names:
        raise UserError(f"{path} has no member {file.member!r}, only {', '.join(names[:10])}")
    information = archive.getinfo(file.member)
    size, packed = information.file_size, max(1, information.compress_size)
    if size > LARGEST_MEMBER_BYTES or (size > CHUNK_BYTES and size > packed * LARGEST_COMPRESSION):
        raise UserError(
            f"{path}: {file.member!r} would unpack {packed:,} bytes to {size:,}: refused as a bomb"
        )
    return information
