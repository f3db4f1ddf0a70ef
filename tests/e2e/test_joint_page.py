"""The search over recognizers and ways of reading, in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

from glyphrun.report.render import render_report
from report_samples import sample_results, sample_search


def test_ways_of_reading_are_drawn_against_each_cost_sorted_found_and_fit(
    open_file: Callable[[Path], Page], tmp_path: Path
) -> None:
    render_report(sample_search(sample_results()), [], tmp_path / "report.html")
    page = open_file(tmp_path / "report.html")
    section = page.locator("#joint")
    title = section.locator(".xtitle")
    expect(title).to_have_text("latency of an item, p50 (ms)")
    expect(section.locator(".points path")).to_have_count(28 + 1)
    expect(section.locator(".shapelayer path")).to_have_count(1)  # the budget
    section.get_by_role("radio", name="memory").check()
    expect(title).to_have_text("memory (MiB)")
    expect(section.locator(".shapelayer path")).to_have_count(0)
    shown = section.locator("#ways tbody tr:visible")
    expect(shown).to_have_count(12)
    page.get_by_label("Search ways of reading").fill("majority trial-00 + trial-02")
    expect(shown).to_have_count(8)  # four of the pair, and four of all three
    page.get_by_label("Search ways of reading").fill("")
    section.get_by_role("button", name="Show all 28").click()
    section.get_by_role("button", name="Latency").click()
    times = [float(time.split()[0]) for time in section.locator("#ways tbody td:nth-child(5) .state").all_inner_texts()]
    assert len(times) == 28 and times == sorted(times)
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 844})
        page.wait_for_function(
            "width => [...document.querySelectorAll('.plot')].every(p => p.clientWidth < width)", arg=width
        )
        assert page.evaluate("document.documentElement.scrollWidth") == width
