"""The report in Chromium: light, dark, on a phone, on paper."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page

from gptmill.report import build_report
from tests.browser.conftest import PHONE, OpenPage, assert_fits, picture
from tests.unit.test_report import write_project

LIGHT, DARK = ({"color_scheme": scheme} for scheme in ("light", "dark"))
LOOKS = {
    "light": LIGHT,
    "dark": DARK,
    "phone": LIGHT | PHONE,
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report with something in every section."""
    root = tmp_path_factory.mktemp("report")
    write_project(root)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(name, root / name)
    build_report(root, root / "report/index.html")
    return (root / "report/index.html").as_uri()


@pytest.mark.parametrize("look", LOOKS)
def test_it_is_readable_everywhere(
    report: str, look: str, open_page: OpenPage, accessible: Callable[[Page], None]
) -> None:
    page = open_page(report, **LOOKS[look])
    picture(page, f"report-{look}", whole=True)
    assert_fits(page)
    accessible(page)


def test_it_fits_the_narrowest_phone(report: str, open_page: OpenPage) -> None:
    assert_fits(open_page(report, viewport={"width": 320, "height": 640}))


def test_the_graph_of_a_phone_runs_down(report: str, open_page: OpenPage) -> None:
    for options, shown, hidden in ((LIGHT, ".wide", ".narrow"), (PHONE, ".narrow", ".wide")):
        page = open_page(report, **options)
        assert page.locator(f"svg.graph{shown}").is_visible()
        assert page.locator(f"svg.graph{hidden}").is_hidden()


def test_letters_in_drawings_are_no_smaller_than_nine_pixels(
    report: str, open_page: OpenPage
) -> None:
    for look in ("light", "phone"):
        page = open_page(report, **LOOKS[look])
        smallest = page.evaluate(
            """Math.min(...[...document.querySelectorAll('svg text')]
            .filter(text => text.checkVisibility())
            .map(text => {
                const {a, b} = text.getCTM(); // some are turned
                return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(a, b);
            }))"""
        )
        assert smallest >= 9, look


def test_paper_is_white_and_hides_nothing(report: str, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(report, **DARK)
    details = page.locator("details:not([open]) table").first
    assert details.is_hidden()
    page.emulate_media(media="print")
    assert details.is_visible()
    ground, ink = page.evaluate(
        "['backgroundColor', 'color'].map(name => getComputedStyle(document.body)[name])"
    )
    assert (ground, ink) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
    printed = page.pdf(format="A4", prefer_css_page_size=True)
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") < 16
    (tmp_path / "report.pdf").write_bytes(printed)
