"""The SHA-256 of a folder's files, written beside them and checked before they are used.

A flipped bit in weights or tokens is another model without any error. The list is what
`sha256sum --check` reads. Folders of others have none and are taken as they are.
"""

from fnmatch import fnmatch
from pathlib import Path

from gptmill.errors import UserError
from gptmill.files import sha256

SEAL = "gptmill.sha256"


def seal(folder: Path) -> None:
    """List every file of a folder that is complete."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SEAL)
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / SEAL).write_text("".join(lines), encoding="utf-8", newline="\n")


def check_seal(folder: Path, *patterns: str) -> None:
    """Compare the listed files, or those of them that match one of the patterns.

    Raises:
        UserError: a file is missing, or its bytes are not those that were written.
    """
    listed = folder / SEAL
    if not listed.is_file():
        return
    for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        if patterns and not any(fnmatch(name, pattern) for pattern in patterns):
            continue
        path = folder / name
        if not path.is_file() or sha256(path) != digest:
            fault = "has other bytes than were written" if path.is_file() else "is missing"
            raise UserError(
                f"{path} {fault}: restore it (`dvc checkout {folder}`, or run the stage that makes "
                f"it again); if the change is yours, remove {listed}"
            )
