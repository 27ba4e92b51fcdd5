"""Pages as a person sees them: Debian's Chromium, headless, driven by Playwright.

`make browser` installs what these tests need. Where it is missing they are skipped with a reason;
in CI they fail.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

HERE = Path(__file__).parent
SCREENSHOTS = Path("screenshots")
DESK = {"viewport": {"width": 1280, "height": 860}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True}
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Whatever a page asks for elsewhere has no address, so it fails instead of leaving.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]

PATIENCE = 30_000  # ms: a busy machine is slow, not wrong
expect.set_options(timeout=PATIENCE)

OpenPage = Callable[..., Page]


def missing(what: str) -> None:
    """Skip, or fail where nothing may be skipped."""
    reason = f"{what}: `make browser` installs it"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium with a profile of its own, closed after the file that uses it."""
    chromium = shutil.which("chromium")
    if chromium is None:
        missing("no chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens an address in a new context; at the end, nothing may have gone outside or failed."""
    contexts: list[BrowserContext] = []
    outside: list[str] = []
    faults: list[str] = []

    def request(address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1":
            outside.append(address)

    def open_page(address: str, *, storage: dict[str, str] | None = None, **options) -> Page:
        context = browser.new_context(**{**DESK, **options})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        context.on("request", lambda asked: request(asked.url))
        context.on("weberror", lambda error: faults.append(str(error.error)))
        for name, value in (storage or {}).items():
            # A frame in a sandbox has no storage.
            script = f"try {{ localStorage.setItem({name!r}, {value!r}) }} catch {{}}"
            context.add_init_script(script)
        page = context.new_page()
        page.on("websocket", lambda socket: request(socket.url))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not outside, "the page asked for addresses outside this machine"
    assert not faults, "the page's scripts raised"


@pytest.fixture(scope="session")
def libraries() -> Path:
    """The packages of tests/browser/package.json."""
    folder = HERE / "node_modules"
    if not (folder / ".package-lock.json").exists():
        missing("no tests/browser/node_modules")
    return folder


@pytest.fixture
def accessible(libraries: Path) -> Callable[[Page], None]:
    """Asserts that axe-core finds nothing against WCAG 2.2 A and AA on a page as it stands."""
    axe = (libraries / "axe-core/axe.min.js").read_text(encoding="utf-8")

    def check(page: Page) -> None:
        page.evaluate(axe)
        found = page.evaluate(
            "axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'wcag22aa', 'best-practice']})"
        )
        assert found["passes"], "axe-core looked at nothing"
        violations = [
            f"{violation['id']}: {node['target']} {node['failureSummary']}"
            for violation in found["violations"]
            for node in violation["nodes"]
        ]
        assert not violations, "\n".join(violations)

    return check


def serve_folder(folder: Path) -> tuple[ThreadingHTTPServer, str]:
    """A static server on loopback and its address; `shutdown()` ends it."""
    handler = partial(Quiet, directory=folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


class Quiet(SimpleHTTPRequestHandler):
    """Logs nothing."""

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def picture(page: Page, name: str, *, whole: bool = False) -> Path:
    """A screenshot under screenshots/, to be looked at."""
    SCREENSHOTS.mkdir(exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=path, full_page=whole, animations="disabled")
    return path


def assert_fits(page: Page) -> None:
    """The page is no wider than its window: nothing scrolls sideways."""
    wide, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= window, f"{wide} px of page in a window of {window}"
