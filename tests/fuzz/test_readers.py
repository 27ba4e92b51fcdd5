"""Damaged files of every kind: read to something, or refused by a `UserError`, and quickly."""

import os
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from gptmill.errors import UserError
from tests.fuzz.readers import READERS, Reader, damaged

EXAMPLES = int(os.environ.get("GPTMILL_FUZZ", "12"))
LONGEST = 60.0  # seconds: whether it ends, not how quickly


@pytest.fixture(scope="session")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a valid file for each reader, read once."""
    folders = {}
    for reader in READERS:
        folders[reader.name] = tmp_path_factory.mktemp("valid")
        reader.make(folders[reader.name])
        reader.read(folders[reader.name])
    return folders


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_damaged_files(reader: Reader, valid: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(valid[reader.name], folder)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=EXAMPLES == 12,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(damaged(reader, folder))
    def run(content: bytes) -> None:
        (folder / reader.file).write_bytes(content)
        started = time.perf_counter()
        try:
            reader.read(folder)
        except UserError as error:
            assert str(error)
        assert time.perf_counter() - started < LONGEST

    run()
