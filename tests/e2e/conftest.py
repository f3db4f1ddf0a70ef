"""A real browser for all tests of pages, and what a page says when something is wrong with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

DRAWN = "() => [...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; install it with `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def shots(request: pytest.FixtureRequest) -> Path:
    """Where pictures of pages stay after the tests, for people to look at: a folder for each file of tests."""
    folder = Path(__file__).resolve().parents[2] / "build/screenshots" / request.path.stem
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def complaints() -> list[str]:
    """What the console and the scripts of the tab said was wrong."""
    return []


@pytest.fixture
def tab(browser: Browser, complaints: list[str]) -> Iterator[Page]:
    """An empty page with nothing of other tests in it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.set_default_timeout(20_000)
    tab.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    yield tab
    context.close()


@pytest.fixture
def open_file(tab: Page, complaints: list[str]) -> Iterator[Callable[[Path], Page]]:
    """Opens a file; after the test, the console must have stayed silent and nothing but the file been loaded."""
    opened: list[str] = []
    requests: list[str] = []
    tab.on("request", lambda request: None if request.url.startswith("data:") else requests.append(request.url))

    def open_file(file: Path) -> Page:
        opened.append(file.as_uri())
        tab.goto(file.as_uri())
        tab.wait_for_function(DRAWN)
        return tab

    yield open_file
    tab.close()
    assert complaints == []
    assert requests == opened
