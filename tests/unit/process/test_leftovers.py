"""What a kill leaves beside outputs is found, told from what is in use, and removed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptmill.files import REPLACED, UNFINISHED, atomic_file, atomic_folder
from gptmill.process.leftovers import abandoned, clear_beside, leftovers

KILLED = """
import os, sys
from pathlib import Path
from gptmill import files
with getattr(files, sys.argv[1])(Path(sys.argv[2])) as beside:
    (beside / 'part' if beside.is_dir() else beside).write_text('half')
    os._exit(9)
"""


def killed_while_writing(kind: str, path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, kind, str(path)])
    assert done.returncode == 9


@pytest.mark.parametrize("kind", ["atomic_file", "atomic_folder"])
def test_the_next_writer_removes_what_a_kill_left(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "model", tmp_path / "model.json"
    killed_while_writing(kind, path)
    with atomic_file(other) as writing:
        (left,) = [p for p in tmp_path.iterdir() if p != writing]
        assert left.name.endswith(UNFINISHED)
        assert list(leftovers(tmp_path)) == [left]  # what this process writes is none
        clear_beside(other)
        assert left.exists()  # not that output's
        clear_beside(path)
        assert list(tmp_path.iterdir()) == [writing]


def test_files_of_the_user_are_none(tmp_path: Path) -> None:
    for name in (".model.original", ".model.1.backup", "model.1.abc.unfinished", ".gitignore"):
        (tmp_path / name).touch()
    clear_beside(tmp_path / "model")
    assert len(list(tmp_path.iterdir())) == 4
    assert not list(leftovers(tmp_path))


def test_a_younger_process_of_the_same_number_does_not_hold_it(tmp_path: Path) -> None:
    left = tmp_path / f".model.{os.getpid()}.abcd1234{UNFINISHED}"
    left.touch()
    assert not abandoned(left)
    os.utime(left, (1, 1))
    assert abandoned(left)


def test_an_old_folder_that_was_put_aside_comes_back(tmp_path: Path) -> None:
    """Killed between two renames, where names cannot be swapped."""
    aside = tmp_path / f".model.999999999.abcd1234{REPLACED}"
    aside.mkdir()
    (aside / "weights").write_text("old")
    clear_beside(tmp_path / "model")
    assert (tmp_path / "model/weights").read_text() == "old"
    with atomic_folder(tmp_path / "model") as beside:
        (beside / "weights").write_text("new")
    aside.mkdir()
    clear_beside(tmp_path / "model")
    assert (tmp_path / "model/weights").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
