"""The page of a decode sweep in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Page, expect
from test_report_page import CHROMIUM, browser, samples_of

from glyphrun.evaluation.recommend import recommend
from glyphrun.report.decoding import write_decode_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
__all__ = ["browser"]


@pytest.fixture
def page(browser, tmp_path: Path) -> Iterator[Page]:
    """The open page; leaving it asserts that the console stayed silent and that nothing but the file was loaded."""
    rows = samples_of("test_decoding_report").sample_rows()
    out = tmp_path / "decode.html"
    write_decode_page(rows, out, title="lines, val", advice=recommend(rows, 15.0))
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    requests: list[str] = []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith("data:") else requests.append(request.url))
    page.goto(out.as_uri())
    yield page
    page.close()
    assert complaints == []
    assert requests == [out.as_uri()]


def names(page: Page) -> list[str]:
    return page.locator("#trials tbody tr:visible .id").all_inner_texts()


def test_plot_and_table_show_every_setting_and_the_table_sorts_and_filters(page: Page) -> None:
    assert page.locator("[data-figure=scatter] .points path").count() == 5
    assert names(page)[0] == "2 members, mbr, beam, width 5"
    page.get_by_role("columnheader", name="Time").get_by_role("button").click()
    assert names(page)[0] == "one, greedy"
    page.get_by_label("Search settings").fill("members mbr")
    assert names(page) == ["2 members, mbr, beam, width 5"]
    expect(page.locator("#found")).to_have_text("1 of 5 settings")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_follows_the_colour_scheme(page: Page, width: int, scheme: str, tmp_path: Path) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    tick = page.locator("[data-figure=scatter] .xtick text").first
    expect(tick).to_have_css("fill", "rgb(86, 96, 107)" if scheme == "light" else "rgb(163, 174, 185)")
    page.wait_for_function(
        "width => [...document.querySelectorAll('.plot')].every(p => p.clientWidth < width)", arg=width
    )
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
