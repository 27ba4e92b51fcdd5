"""The site is built with warnings as errors, and what it says of the code is so."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from mkdocs.exceptions import PluginError

specification = spec_from_file_location("docs_hooks", "docs/hooks.py")
hooks = module_from_spec(specification)
specification.loader.exec_module(hooks)

REFERENCE = re.compile(r'href="([^"]*code/([^"#]+)\.html#__codelineno-0-(\d+))"[^>]*><code>([^<]+)')


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert not built.returncode, built.stderr[-3000:]
    return folder


class Addresses(HTMLParser):
    """What a page loads by itself: not what its links lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.images: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag in ("script", "img", "iframe", "source"):
            self.loaded.append(values.get("src") or "")
        elif tag == "link":
            self.loaded.append(values.get("href") or "")
        if tag == "img":
            self.images.append(values.get("src") or "")


def pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def test_a_page_for_each_chapter_and_all_others_in_the_navigation(site: Path) -> None:
    chapters = sorted(path.name for path in (site / "course").glob("*.html"))
    assert [name[0] for name in chapters] == list("12345678")
    home = (site / "index.html").read_text()
    written = [path.stem for path in Path("docs").rglob("*.md")]
    assert all(f"{name}.html" in home for name in written)


def test_every_link_to_code_leads_to_the_line_that_defines_the_name(site: Path) -> None:
    checked = 0
    for page in pages(site):
        for address, path, line, shown in REFERENCE.findall(page.read_text()):
            target = (page.parent / address.split("#")[0]).resolve()
            assert f'id="__codelineno-0-{line}"' in target.read_text(), f"{page.name}: {address}"
            if ":" in shown:
                name = shown.split(":")[1].split(".")[-1]
                defined = Path(path).read_text().splitlines()[int(line) - 1]
                assert re.match(rf"\s*(async def|def|class)? ?{name}\b", defined), shown
            checked += 1
    assert checked > 200


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for page in pages(site):
        found = Addresses(page.read_text())
        assert not [address for address in found.loaded if "//" in address], page
        for image in found.images:
            assert image.startswith("data:") or (page.parent / image).exists(), f"{page}: {image}"
    assert "@import" not in (site / "extra.css").read_text()


def test_the_table_of_ideas_has_no_empty_cell() -> None:
    text = Path("docs/syllabus.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [re.split(r" \| ", re.sub(r"`[^`]*`", "x", row).strip("| ")) for row in rows]
    assert all(len(row) == 4 and all(cell.strip() for cell in row) for row in cells)
    assert len(rows) - 8 >= 85  # less the eight heads
    for row in cells:
        if row[0] != "idea":
            assert "[[" in row[1] and "[[tests/" in row[2], row
            assert re.search(r"\{\{see \w+\}\}|\]\(course/", row[3]), row


@pytest.mark.skipif(
    not Path("plots/study/findings.json").exists(), reason="the stage study has not run here"
)
def test_every_finding_is_on_its_chapters_page() -> None:
    """Where the study has run, no picture goes unexplained."""
    findings = hooks.read_json(Path("plots/study/findings.json"))
    for finding in findings:
        (page,) = Path("docs/course").glob(f"{finding['chapter']}-*.md")
        assert f"{{{{finding {finding['name']}}}}}" in page.read_text()


@pytest.mark.parametrize(
    ("path", "symbol"),
    [("stages/pretrain.py", "mine"), ("src/gptmill/model/gpt2.py", "GPT2.backward")],
)
def test_a_name_that_is_not_there_stops_the_build(path: str, symbol: str) -> None:
    with pytest.raises(PluginError, match=f"{path}, which has no"):
        hooks.line_of(Path(path), symbol)


def test_a_file_that_is_not_there_stops_the_build() -> None:
    with pytest.raises(PluginError, match=r"stages/nothing\.py, which does not exist"):
        hooks.source_page(Path("stages/nothing.py"), "stages/nothing.py")


def test_what_the_pipeline_has_not_made_is_said(tmp_path: Path) -> None:
    assert "not there yet" in hooks.metric(tmp_path, "pretrain", "validation/loss")
    assert "not there yet" in hooks.run(tmp_path, "pretrain")
    assert hooks.finding(tmp_path, "decoding") is None
