"""The report in a real browser: what a reader clicks works, and nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from decode_rows import sample_rows
from glyphrun.report.render import render_report
from report_samples import sample_examples, sample_results


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    render_report(sample_results(), sample_examples(), out, decode={"rows": sample_rows(), "split": "val"})
    return out


@pytest.fixture
def page(open_file: Callable[[Path], Page], report: Path) -> Page:
    return open_file(report)


def trial_order(page: Page) -> list[str]:
    return page.locator("#trials tbody tr:visible .id").all_inner_texts()


def test_every_plot_is_drawn(page: Page) -> None:
    expect(page).to_have_title("demo-digits-2026-05-14 · recognizer report")
    expect(page.locator(".plot svg.main-svg").first).to_be_visible()
    assert page.locator(".plot").count() == 8
    assert page.eval_on_selector_all(".plot", "plots => plots.every(plot => plot.querySelector('svg.main-svg'))")
    assert page.locator("[data-figure=curve-exact] .lines path.js-line").count() == 10
    assert page.locator("[data-figure=scatter] .shapelayer path").count() == 1


def test_confidence_shows_two_held_out_splits_before_and_after_and_three_curves_with_their_threshold(
    page: Page,
) -> None:
    reliability = page.locator("[data-figure=reliability]")
    assert reliability.locator(".scatterlayer .trace").count() == 5  # the line, and two splits before and after
    assert reliability.locator(".errorbar").count() == 20
    assert reliability.locator(".points path").count() == 40
    coverage = page.locator("[data-figure=coverage]")
    assert coverage.locator("path.js-line").count() == 3 and coverage.locator(".points path").count() == 3
    expect(coverage.locator(".annotation-text")).to_contain_text("98 % right")
    page.get_by_role("link", name="Confidence").click()
    expect(page.get_by_role("heading", name="Confidence")).to_be_in_viewport()
    table = page.get_by_role("region", name="Calibration of the winner on each split")
    assert table.locator("tbody th").all_inner_texts() == ["val", "test", "unseen"]


def test_the_leaderboard_sorts_both_ways_with_trials_without_a_value_last_and_finds_every_word(page: Page) -> None:
    assert trial_order(page)[0] == "trial-00"
    header = page.get_by_role("columnheader", name="Latency p50")
    header.get_by_role("button").click()
    ascending = trial_order(page)
    assert ascending[0] == "trial-02" and ascending[-2:] == ["trial-04", "trial-07"]
    expect(header).to_have_attribute("aria-sort", "ascending")
    header.get_by_role("button").press("Enter")
    assert trial_order(page)[0] == "trial-04" and trial_order(page)[-1] == "trial-07"
    expect(header).to_have_attribute("aria-sort", "descending")
    page.get_by_label("Search trials").fill("votes failed")
    assert trial_order(page) == ["trial-07"]
    expect(page.locator("output[for=search]")).to_have_text("1 of 10 trials")
    page.get_by_label("Search trials").fill("")
    assert len(trial_order(page)) == 10


def test_accuracy_is_shown_against_each_cost_in_turn_and_other_tables_sort_by_themselves(page: Page) -> None:
    title = page.locator("[data-figure=scatter] .xtitle")
    expect(title).to_have_text("latency of an item, p50 (ms)")
    expect(page.locator("[data-figure=scatter] .shapelayer path")).to_have_count(1)  # the budget
    for name, said in (
        ("memory", "memory (MiB)"),
        ("parameters", "parameters"),
        ("items/s", "items a second, in batches"),
    ):
        page.get_by_role("radio", name=name).check()
        expect(title).to_have_text(said)
        expect(page.locator("[data-figure=scatter] .points path")).to_have_count(
            10
        )  # nine trials, and the winner's ring
        expect(page.locator("[data-figure=scatter] .shapelayer path")).to_have_count(0)
    prices = page.locator("#prices tbody tr .id")
    page.locator("#prices").get_by_role("button", name="Items/s").click()
    rates = [float(rate) for rate in page.locator("#prices tbody td:nth-child(7)").all_inner_texts()]
    assert rates == sorted(rates, reverse=True) and prices.count() == 9
    assert trial_order(page)[0] == "trial-00"
    page.get_by_label("Search settings").fill("sample")
    assert page.locator("#settings tbody tr:visible .id").all_inner_texts() == ["one, <sample>"]
    assert len(trial_order(page)) == 10


def test_a_line_of_the_search_space_says_whose_it_is_and_no_text_lies_on_another(page: Page) -> None:
    lines, told = page.locator(".parallel g"), page.locator("output.told")
    assert lines.count() == 10
    usual = told.inner_text()
    page.locator(".parallel").scroll_into_view_if_needed()
    page.locator(".parallel g.won .reach").dispatch_event("pointerover", {"bubbles": True})
    expect(told).to_have_text("trial-00: exact match 95.3 %; Temporal PARSeq, learning_rate 0.002, encoder.width 64")
    page.locator(".parallel").dispatch_event("pointerleave", {"pointerType": "mouse"})
    expect(told).to_have_text(usual)
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 844})
        boxes = page.eval_on_selector_all(
            ".parallel .name, .parallel .tick b",
            "all => all.map(one => one.getBoundingClientRect()).map(box => [box.left, box.top, box.right, box.bottom])",
        )
        apart = [
            one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            for place, one in enumerate(boxes)
            for other in boxes[:place]
        ]
        assert len(boxes) > 10 and all(apart)
        assert min(box[0] for box in boxes) >= 0 and max(box[2] for box in boxes) <= width


def test_24_examples_filter_by_verdict_the_wrong_ones_first(page: Page) -> None:
    cards = page.locator(".card:visible")
    expect(cards).to_have_count(24)
    assert ["✕ wrong" in text for text in cards.all_inner_texts()] == [True] * 3 + [False] * 21
    page.get_by_role("radio", name="wrong").check()
    expect(cards).to_have_count(3)
    assert all("✕ wrong" in text for text in cards.all_inner_texts())
    page.get_by_role("radio", name="right").check()
    expect(cards).to_have_count(21)
    assert page.eval_on_selector_all(".card img", "images => images.every(image => image.naturalWidth === 64)")


def test_the_page_never_scrolls_sideways(page: Page) -> None:
    for width in (1280, 820, 390):
        page.set_viewport_size({"width": width, "height": 844})
        page.wait_for_function(
            "width => [...document.querySelectorAll('.plot')].every(p => p.clientWidth < width)", arg=width
        )
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        widest = page.eval_on_selector_all(".plot .main-svg", "all => Math.max(...all.map(svg => svg.clientWidth))")
        assert widest <= width


def test_plots_follow_the_colour_scheme_and_print_on_white(page: Page) -> None:
    tick = page.locator("[data-figure=scatter] .xtick text").first
    page.emulate_media(color_scheme="light")
    expect(tick).to_have_css("fill", "rgb(86, 96, 107)")
    page.emulate_media(color_scheme="dark")
    expect(tick).to_have_css("fill", "rgb(163, 174, 185)")
    page.emulate_media(color_scheme="dark", media="print")
    expect(tick).to_have_css("fill", "rgb(86, 96, 107)")


def test_the_keyboard_reaches_skip_link_sections_table_and_filter(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the results")).to_be_focused()
    for role, name in (("navigation", "Sections"), ("region", "Leaderboard")):
        assert page.get_by_role(role, name=name).count() >= 1
    page.get_by_role("radio", name="all").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".card:visible")).to_have_count(21)
