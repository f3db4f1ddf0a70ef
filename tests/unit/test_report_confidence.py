"""The report says how far confidence is to be believed, as the results say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from glyphrun.report.confidence import confidence_section
from rendered_report import rendered
from report_samples import sample_results


def test_confidence_says_what_val_settled_and_what_it_gives_on_other_splits(tmp_path: Path) -> None:
    results = sample_results()
    page, source = rendered(results, tmp_path)
    said = results["confidence"]
    temperature = said["temperature"]["value"]
    assert 1.5 < temperature < 2.2
    kept = said["splits"]["test"]["answered"]
    for sentence in (
        f"On the 600 answers of val, confidences claimed too much; a temperature of {temperature:.2f} draws them towards",
        f"Answers under {100 * said['abstain_below']:.1f} % are marked abstained: on val, 98 % of the others are right",
        f"; on test {100 * kept['precision']:.1f} % are (95 % CI {100 * kept['precision_ci'][0]:.1f} to",
    ):
        assert sentence in page.text, sentence
    assert 'href="#confidence"' in source
    section = confidence_section(results)
    assert section is not None
    assert [row.name for row in section.rows] == ["val", "test", "unseen"]
    ece = said["splits"]["unseen"]["ece"]["after"]
    cells = dict(zip(section.columns, section.rows[2].cells, strict=True))
    assert cells["ECE"].text == f"{100 * ece['value']:.1f}\u00a0%"
    assert cells["ECE"].note == f"{100 * ece['ci'][0]:.1f} to {100 * ece['ci'][1]:.1f}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"abstention": None, "abstain_below": 0.0}, "No answer is marked abstained, for the experiment states no precision"),
        ({"abstention": None, "abstain_below": 0.3}, "Answers under 30.0 % are marked abstained, as the decode settings declare"),
        (
            {"abstention": {"precision": 0.995, "reason": "no threshold attains it"}, "abstain_below": 0.0},
            "asks that 99.5 % of the answers be right, and none is marked abstained: no threshold attains it.",
        ),
        ({"temperature": {"value": 1.0, "reason": "nothing was wrong"}}, "Confidences are left as they come: nothing was wrong."),
        ({"temperature": {"value": 0.5, "reason": None}}, "claimed too little; a temperature of 0.50 draws them away from one half"),
    ],
)  # fmt: skip
def test_confidence_that_was_not_settled_says_why(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    results = sample_results()
    results["confidence"] |= change
    page, _ = rendered(results, tmp_path)
    assert said in page.text


def test_a_temperature_that_makes_another_split_worse_is_not_praised(tmp_path: Path) -> None:
    results = sample_results()
    assert "does not help" not in rendered(results, tmp_path)[0].text
    ece = results["confidence"]["splits"]["unseen"]["ece"]
    ece["after"]["value"] = ece["before"]["value"] + 0.01
    assert (
        "On unseen it does not help: the calibration error is larger than before."
        in rendered(results, tmp_path)[0].text
    )


def test_results_that_say_nothing_of_confidence_have_no_section(tmp_path: Path) -> None:
    results = sample_results()
    del results["confidence"]
    page, source = rendered(results, tmp_path)
    assert 'href="#confidence"' not in source and not any(tag.get("data-figure") == "coverage" for _, tag in page.tags)


def test_points_of_confidence_stand_where_the_results_put_them() -> None:
    said = sample_results()["confidence"]
    section = confidence_section({"confidence": said})
    assert section is not None
    after = next(trace for trace in section.figures["reliability"]["data"] if trace["name"] == "test, calibrated")
    bins = said["splits"]["test"]["reliability"]["after"]
    stated = [min(bin["confidence"], 0.9999) for bin in bins]
    assert after["x"] == pytest.approx([math.log(share / (1 - share)) for share in stated])
    assert after["y"] == [bin["right"] for bin in bins]
    coverage = section.figures["coverage"]
    kept = [trace for trace in coverage["data"] if trace["name"].endswith("at the threshold")]
    assert [(trace["x"][0], trace["y"][0]) for trace in kept] == [
        (split["answered"]["coverage"], 1 - split["answered"]["precision"]) for split in said["splits"].values()
    ]
    assert coverage["layout"]["shapes"][0]["y0"] == pytest.approx(0.02)
    assert coverage["layout"]["yaxis"]["range"][1] > max(
        split["risk_coverage"]["risk"][-1] for split in said["splits"].values()
    )


def test_a_split_of_any_name_is_shown_and_stays_text(tmp_path: Path) -> None:
    results = sample_results()
    attack = "</script><b>held out</b>"
    results["confidence"]["splits"][attack] = results["confidence"]["splits"].pop("unseen")
    page, source = rendered(results, tmp_path)
    assert attack in page.text and attack not in source
