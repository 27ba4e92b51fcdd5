"""versions.yaml against the packages of this Python."""

from importlib.metadata import version
from pathlib import Path

import pytest

from gptmill.cli import main
from gptmill.errors import UserError
from gptmill.versions import accept, installed, packages, require_recorded

NUMPY = version("numpy")


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("versions.yaml")
    path.write_text(f"# why\nnumpy: '{NUMPY}'\npillow: '1.10'\n")
    return path


def test_a_build_label_is_no_other_version() -> None:
    assert installed("torch") == version("torch").split("+")[0]
    assert "+" not in installed("torch")


def test_other_packages_than_the_recorded_ones_are_refused(recorded: Path) -> None:
    with pytest.raises(UserError, match=r"make -B setup.*gptmill versions --accept") as refused:
        require_recorded()
    assert f"pillow {version('pillow')}, recorded: 1.10" in str(refused.value)
    assert "numpy" not in str(refused.value)


def test_accepting_writes_the_installed_versions_and_keeps_comments(recorded: Path) -> None:
    assert [package.name for package in accept()] == ["pillow"]
    require_recorded()
    assert recorded.read_text().startswith("# why\nnumpy:")
    assert accept() == []


def test_an_absent_package_is_named(recorded: Path) -> None:
    recorded.write_text("no-such-package: '1.0'\n")
    with pytest.raises(UserError, match="no-such-package is not installed"):
        require_recorded()
    with pytest.raises(UserError, match="not installed: no-such-package; run `make setup`"):
        accept()


def test_a_version_that_yaml_reads_as_a_number_is_refused(recorded: Path) -> None:
    recorded.write_text("numpy: 1.10\n")
    with pytest.raises(UserError, match=r"numpy: 1\.1 is not a quoted version"):
        packages()


def test_the_command_shows_and_accepts(recorded: Path, capsys: pytest.CaptureFixture) -> None:
    main(["versions"])
    assert f"pillow         1.10  installed: {version('pillow')}" in capsys.readouterr().out
    main(["versions", "--accept"])
    assert f"pillow: 1.10 -> {version('pillow')}" in capsys.readouterr().out
    main(["versions"])
    assert "installed:" not in capsys.readouterr().out
