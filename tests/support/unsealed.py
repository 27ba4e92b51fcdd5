"""Folders as others leave them."""

from pathlib import Path

from gptmill.seal import SEAL


def unsealed(folder: Path) -> Path:
    """The folder without the hashes of its files: so its readers' own checks are reached."""
    for path in folder.rglob(SEAL):
        path.unlink()
    return folder
