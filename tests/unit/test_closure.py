"""What DVC watches of the code: the files that a stage imports, and no others."""

import subprocess
from pathlib import Path

import pytest

from gptmill import closure


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    sources = {
        "stages/__init__.py": "from gptmill.files import a",
        "stages/_shared.py": "x = 1",
        "stages/code.py": "from gptmill.closure import write_listings",
        "stages/train.py": "from gptmill.model import gpt2\nfrom stages._shared import x",
        "stages/draw.py": "def main():\n    from gptmill.report.page import b\n",
        "src/gptmill/__init__.py": "from gptmill.report import page",
        "src/gptmill/files.py": "a = 1",
        "src/gptmill/model/__init__.py": "import gptmill.model.names",
        "src/gptmill/model/names.py": "",
        "src/gptmill/model/gpt2.py": "from gptmill.tracking import t",
        "src/gptmill/model/unused.py": "c = 1",
        "src/gptmill/tracking.py": "from gptmill import plan",
        "src/gptmill/plan.py": "d = 1",
        "src/gptmill/report/__init__.py": "",
        "src/gptmill/report/page.py": "b = 1",
        "src/gptmill/report/page.html": "<p>",
    }
    for name, text in sources.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    closure.modules.cache_clear()
    yield tmp_path
    closure.modules.cache_clear()


def listed(stage: str) -> list[str]:
    return [path.as_posix() for path in closure.listing(stage)]


def test_the_files_a_stage_imports_directly_and_through_others(project: Path) -> None:
    """A submodule brings its package's `__init__`; tracking changes no output, so what only it
    imports is left out; an empty file holds nothing."""
    assert listed("train") == [
        "src/gptmill/files.py",
        "src/gptmill/model/__init__.py",
        "src/gptmill/model/gpt2.py",
        "stages/__init__.py",
        "stages/_shared.py",
        "stages/train.py",
    ]


def test_an_import_inside_a_function_and_the_pages_beside_a_module_count(project: Path) -> None:
    assert listed("draw") == [
        "src/gptmill/files.py",
        "src/gptmill/report/page.html",
        "src/gptmill/report/page.py",
        "stages/__init__.py",
        "stages/draw.py",
    ]


def test_an_edit_changes_the_listing_of_the_stages_it_concerns(project: Path) -> None:
    closure.write_listings(Path("code"))
    before = {path.name: path.read_text() for path in Path("code").iterdir()}
    assert set(before) == {"train.txt", "draw.txt"}
    for name in ("src/gptmill/model/unused.py", "src/gptmill/model/gpt2.py"):
        Path(name).write_text("e = 1")
    closure.modules.cache_clear()
    closure.write_listings(Path("code"))
    after = {path.name: path.read_text() for path in Path("code").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"train.txt"}
    assert closure.read_listing(Path("code/train.txt")) == closure.listing("train")
    subprocess.run(["sha256sum", "--check", "--quiet", "code/train.txt"], check=True)
