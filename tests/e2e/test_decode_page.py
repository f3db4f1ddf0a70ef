"""The page of a decode sweep in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from decode_rows import sample_rows
from glyphrun.evaluation.recommend import recommend
from glyphrun.report.decoding import write_decode_page


@pytest.fixture
def page(open_file: Callable[[Path], Page], tmp_path: Path) -> Page:
    rows = sample_rows()
    out = tmp_path / "decode.html"
    write_decode_page(rows, out, title="lines, val", advice=recommend(rows, 15.0))
    return open_file(out)


def names(page: Page) -> list[str]:
    return page.locator("#settings tbody tr:visible .id").all_inner_texts()


def test_plot_and_table_show_every_setting_and_the_table_sorts_and_filters(page: Page) -> None:
    assert page.locator("[data-figure=decoding] .points path").count() == 5
    assert names(page)[0] == "2 members, mbr, beam, width 5"
    page.get_by_role("columnheader", name="Time").get_by_role("button").click()
    assert names(page)[0] == "one, greedy"
    page.get_by_label("Search settings").fill("members mbr")
    assert names(page) == ["2 members, mbr, beam, width 5"]
    expect(page.locator("output[for=search-settings]")).to_have_text("1 of 5 settings")


def test_the_page_fits_and_follows_the_colour_scheme(page: Page, shots: Path) -> None:
    tick = page.locator("[data-figure=decoding] .xtick text").first
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 844})
        for scheme, colour in (("light", "rgb(86, 96, 107)"), ("dark", "rgb(163, 174, 185)")):
            page.emulate_media(color_scheme=scheme)
            expect(tick).to_have_css("fill", colour)
            page.wait_for_function(
                "width => [...document.querySelectorAll('.plot')].every(p => p.clientWidth < width)", arg=width
            )
            page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            assert page.evaluate("document.documentElement.scrollWidth") == width
            page.screenshot(path=shots / f"{scheme}-{width}.png", full_page=True)
