"""Files appear whole or not at all."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from gptmill import files
from gptmill.errors import UserError
from gptmill.files import atomic_file, atomic_folder, remove, sha256_tree, write_json
from gptmill.process.leftovers import clear_beside


def test_a_failed_write_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"kept": True})
    with pytest.raises(RuntimeError), atomic_file(path) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert path.read_text() == '{\n  "kept": true\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_leaves_the_former_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with atomic_folder(folder) as beside:
        (beside / "weights").write_text("first")
    with pytest.raises(RuntimeError), atomic_folder(folder) as beside:
        (beside / "weights").write_text("second")
        raise RuntimeError
    assert (folder / "weights").read_text() == "first"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_new_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for name in ("old", "new"):
        with atomic_folder(folder) as beside:
            (beside / name).touch()
    assert [path.name for path in folder.iterdir()] == ["new"]


SWAP = """
import os, sys
from pathlib import Path
from gptmill import files
if sys.argv[1] == "renames":
    files.exchange = lambda one, other: False
calls = 0
def die(event, arguments):
    global calls
    if event in ("os.rename", "shutil.rmtree", "os.remove", "os.rmdir"):
        calls += 1
        if calls == int(sys.argv[2]):
            os._exit(9)
sys.addaudithook(die)
with files.atomic_folder(Path("model")) as beside:
    (beside / "weights").write_text("new")
"""


@pytest.mark.parametrize("way", ["swap", "renames"])
def test_a_kill_at_any_moment_leaves_the_old_folder_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Killed before each rename and removal; what remains is whole, if need be after recovery."""
    monkeypatch.chdir(tmp_path)
    folder, status, moment = tmp_path / "model", 9, 0
    while status == 9:
        moment += 1
        remove(folder)
        folder.mkdir()
        (folder / "weights").write_text("old")
        status = subprocess.run([sys.executable, "-c", SWAP, way, str(moment)]).returncode
        if way == "swap":
            assert (folder / "weights").read_text() in ("old", "new")
        clear_beside(folder)
        assert (folder / "weights").read_text() in ("old", "new")
        assert list(tmp_path.iterdir()) == [folder]
    assert moment > 1
    assert (folder / "weights").read_text() == "new"


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("old")
    monkeypatch.setattr(files, "exchange", lambda one, other: False)
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(files.UNFINISHED):
            raise OSError(errno.EIO, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(UserError, match="the disk failed at"), atomic_folder(folder) as beside:
        (beside / "weights").write_text("new")
    assert (folder / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_former_file_gives_way_to_a_folder_and_a_link_to_another_place(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kept").touch()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with atomic_folder(tmp_path / name) as beside:
            (beside / "new").touch()
        assert [path.name for path in (tmp_path / name).iterdir()] == ["new"]
    assert (tmp_path / "elsewhere/kept").exists()
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (errno.EROFS, "read-only file system: mount it for writing"),
        (errno.EACCES, "no permission for .*model: make file and folder"),
        (errno.EDQUOT, "the quota is full while writing .*model"),
    ],
)
def test_what_the_disk_refuses_says_what_to_do(tmp_path: Path, code: int, told: str) -> None:
    with pytest.raises(UserError, match=told), atomic_folder(tmp_path / "model"):
        raise OSError(code, "no")


def test_a_full_disk_names_the_file_as_it_would_be(tmp_path: Path) -> None:
    told = r"while writing .*/model/part\.json \("
    with (
        pytest.raises(UserError, match=told),
        atomic_folder(tmp_path / "model") as beside,
        atomic_file(beside / "part.json"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_writer_that_tells_a_full_disk_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors (Rust), PyTorch (C++) and NumPy do."""
    monkeypatch.setattr(files, "_free", lambda path: 4096)
    with pytest.raises(UserError, match="no space left"), atomic_file(tmp_path / "model"):
        raise RuntimeError("[enforce fail at inline_container.cc:672]")


def test_a_full_disk_says_what_to_do(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"no space left on the disk while writing .*model\.bin"),
        atomic_file(tmp_path / "model.bin"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_the_tree_hash_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    first = sha256_tree(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = sha256_tree(tmp_path)
    (tmp_path / "b").write_text("y")
    assert len({first, renamed, sha256_tree(tmp_path)}) == 3


def test_not_a_number_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "metrics.json", {"loss": float("nan")})
