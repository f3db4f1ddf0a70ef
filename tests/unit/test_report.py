"""The report says what the results say, safely and in one file."""

from __future__ import annotations

import copy
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from glyphrun.decoding.settings import DecodeSettings
from glyphrun.evaluation.calibration import Answers
from glyphrun.report import curves, errors, tables, tradeoff
from glyphrun.report.confidence import confidence_section
from glyphrun.report.render import Example, render_report
from glyphrun.sweeps.confidence import settle_confidence

FAMILIES = (
    ("Temporal PARSeq", "parseq-digits-nano", 0.953, 11.0),
    ("PARSeq with votes", "parseq-votes-nano", 0.905, 20.5),
    ("Temporal ViT", "query-digits-nano", 0.936, 6.2),
)


def sample_results(seed: int = 7) -> dict[str, Any]:
    """A plausible run of 10 trials: four that finished, five that ASHA stopped, one that failed."""
    rng = np.random.default_rng(seed)
    trials: list[dict[str, Any]] = []
    for index in range(10):
        family, recognizer, best, latency = FAMILIES[index % 3]
        width = (64, 96, 128)[(index // 3) % 3]
        p50 = latency * width / 96
        status = "failed" if index == 7 else "finished" if index in (0, 1, 2, 3) else "stopped"
        step = {"finished": 900, "stopped": (100, 300)[index % 2], "failed": 60}[status]
        top = best - 0.012 * (index // 3)
        steps = range(20, step + 1, 20)
        curve = [
            {
                "step": at,
                "seconds": at * 0.11,
                "train_loss": 2.2 * math.exp(-at / (170 + 60 * (index % 3))) + 0.12 + 0.05 * float(rng.random()),
                "exact": max(
                    0.0,
                    top * (1 - math.exp(-max(at - 60, 0) / (110 + 45 * (index % 3)))) + 0.012 * float(rng.normal()),
                ),
                "cer": 0.02,
            }
            for at in steps
        ]
        exact = None if status == "failed" else round(curve[-1]["exact"] if status == "stopped" else top, 4)
        trials.append(
            {
                "id": f"trial-{index:02d}",
                "recognizer": recognizer,
                "family": family,
                "changes": {
                    "learning_rate": 0.002 / (1 + index % 4),
                    "encoder.width": width,
                },
                "status": status,
                "reason": {
                    "stopped": f"rung {step}: below the best third",
                    "failed": "the loss was not finite at step 61 (nan); lower the learning rate",
                }.get(status),
                "step": step,
                "max_steps": 900,
                "seconds": step * 0.11,
                "parameters": 4000 * width,
                "gflops": 0.0123 * width,
                "latency_ms": None if status == "failed" else {"p50": p50, "p95": p50 * 1.3},
                "val": None
                if exact is None
                else {
                    "n": 600,
                    "exact": exact,
                    "exact_ci": [exact - 0.018, exact + 0.016],
                    "cer": 0.6 * (1 - exact),
                    "wer": 1 - exact,
                },
                "curve": curve,
                "within_budget": status != "failed" and p50 <= 20,
                "on_front": False,
            }
        )
    scored = [trial for trial in trials if trial["val"]]
    for trial in scored:
        trial["on_front"] = not any(
            other["val"]["exact"] > trial["val"]["exact"] and other["latency_ms"]["p50"] <= trial["latency_ms"]["p50"]
            for other in scored
        )
    return {
        "schema": 1,
        "run": {
            "name": "demo-digits-2026-05-14",
            "started": "2026-05-14T09:21:30+00:00",
            "finished": "2026-05-14T09:30:02+00:00",
            "seconds": 512,
            "experiment_hash": "9f2c51e07d3b",
            "seed": 7,
            "code_version": "0.1.0+4c9130d",
            "machine": {"cpu": "Intel Xeon (Sapphire Rapids)", "cores": 2, "memory_gib": 8.0, "precision": "bf16"},
            "packages": {"ray": "2.60.0", "torch": "2.11.0", "timm": "1.0.22", "python": "3.11.9"},
            "dataset": {
                "name": "shirt-numbers",
                "hash": "3b7e" * 16,
                "counts": {"train": 9000, "val": 600, "test": 800, "unseen": 500},
            },
        },
        "budget": {"latency_ms": 20.0},
        "trials": trials,
        "winner": "trial-00",
        "selection": {
            "rule": "The best exact match on val among the trials whose p50 latency meets the budget.",
            "reason": "It has the best exact match on val of the 7 trials within 20 ms, 1.7 points ahead of trial-02.",
        },
        "splits": {
            "val": split_scores(600, 0.953, {"0": 0.93, "1": 0.97, "2": 0.948}, []),
            "test": split_scores(
                800,
                0.946,
                {"0": 0.925, "1": 0.965, "2": 0.942},
                [("17", "11", 4), ("38", "33", 4), ("", "7", 3), ("5", "", 3), ("49", "44", 3), ("71", "11", 2), ("64", "6", 2)],
            ),
            "unseen": split_scores(
                500,
                0.902,
                {"2": 0.902},
                [("74", "14", 6), ("38", "33", 3), ("97", "91", 4), ("53", "33", 2), ("96", "69", 2), ("20", "26", 1), ("85", "35", 1)],
            ),
        },
        "confidence": sample_confidence(),
    }  # fmt: skip


def sample_confidence(temperature: float = 1.8, precision: float | None = 0.98, seed: int = 5) -> dict[str, Any]:
    """What a sweep says of a winner's confidence that is right once val's temperature is taken out of it."""
    rng = np.random.default_rng(seed)
    read = {}
    for split, n, odds, drift in (("val", 600, 4.2, 1.0), ("test", 800, 4.1, 1.1), ("unseen", 500, 3.2, 1.3)):
        honest = rng.normal(odds, 1.9, n)
        log_probs, right = -np.logaddexp(0, -honest * temperature * drift), rng.random(n) < 1 / (1 + np.exp(-honest))
        read[split] = Answers(log_probs, right, np.repeat(log_probs / 2, 2), np.repeat(right, 2))
    return settle_confidence(DecodeSettings(), read, precision)[1]


def split_scores(
    n: int, exact: float, by_length: dict[str, float], wrong: list[tuple[str, str, int]]
) -> dict[str, Any]:
    margin = 1.96 * math.sqrt(exact * (1 - exact) / n)
    cer = 0.6 * (1 - exact)
    return {
        "n": n,
        "exact": exact,
        "exact_ci": [exact - margin, exact + margin],
        "cer": cer,
        "cer_ci": [cer * 0.8, cer * 1.25],
        "wer": 1 - exact,
        "wer_ci": [1 - exact - margin, 1 - exact + margin],
        "ms_per_sample": 3.4,
        "samples_per_s": 294.0,
        "by_length": {length: {"n": n // 3, "exact": value} for length, value in by_length.items()},
        "confusions": [{"truth": truth, "reading": reading, "n": count} for truth, reading, count in wrong],
    }


def drawn_frame(text: str, shirt: int, rng: np.random.Generator) -> bytes:
    """A frame of 64 by 64 pixels with the number on a shirt, tilted and blurred; PNG or JPEG."""
    shirts = ("#b02a30", "#1f3f8a", "#e8e8e4", "#17181a", "#1d7a46", "#e6c12c")
    ink = "#16181c" if shirt in (2, 5) else "#f4f4f0"
    image = Image.new("RGB", (64, 64), shirts[shirt])
    draw = ImageDraw.Draw(image)
    draw.text((32, 32), text, fill=ink, font=ImageFont.load_default(size=36), anchor="mm")
    image = image.rotate(float(rng.normal(0, 9)), fillcolor=shirts[shirt])
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 2.6))))
    noisy = np.asarray(image, np.float32) + rng.normal(0, 7, (64, 64, 1))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG" if shirt % 2 else "PNG")
    return buffer.getvalue()


def sample_examples(n: int = 24, seed: int = 3) -> list[Example]:
    """Tracklets of 3 to 8 drawn frames; numbers 4, 11 and 18 are read wrongly, number 9 is not readable."""
    rng = np.random.default_rng(seed)
    examples = []
    for index in range(n):
        truth = "" if index == 9 else str(rng.integers(1, 99))
        reading = {4: truth[::-1] + "1", 11: "", 18: f"1{truth}"}.get(index, truth)
        shirt = int(rng.integers(6))
        frames = tuple(drawn_frame(truth, shirt, rng) for _ in range(rng.integers(3, 9)))
        votes = tuple((reading if rng.random() < 0.8 else "", float(rng.random())) for _ in frames)
        confidence = float(rng.uniform(0.35, 0.7) if reading != truth else rng.uniform(0.8, 0.999))
        examples.append(
            Example(
                f"test-{index:05d}",
                "test",
                truth,
                reading,
                confidence,
                frames,
                votes if index % 3 else (),
            )
        )
    return examples


class _Page(HTMLParser):
    """The page's start tags and the text of its elements, scripts and styles apart."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._raw = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._raw = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.text += data.replace("\u00a0", " ")


def rendered(results: dict[str, Any], tmp_path: Path, examples: list[Example] | None = None) -> tuple[_Page, str]:
    out = tmp_path / "report.html"
    render_report(results, examples or [], out)
    source = out.read_text("utf-8")
    return _Page(source), source


def test_every_trial_is_in_the_leaderboard_with_its_score_and_interval(
    tmp_path: Path,
) -> None:
    results = sample_results()
    page, _ = rendered(results, tmp_path)
    rows = [attributes["data-trial"] for tag, attributes in page.tags if "data-trial" in attributes]
    assert sorted(rows, key=str) == [trial["id"] for trial in results["trials"]]
    assert rows[0] == "trial-00" and rows[-1] == "trial-07"
    assert "95.3 %" in page.text and "93.5 to 96.9" in page.text


def test_a_failed_trial_shows_its_reason(tmp_path: Path) -> None:
    page, _ = rendered(sample_results(), tmp_path)
    assert "the loss was not finite at step 61 (nan); lower the learning rate" in page.text


def test_the_headline_gives_the_winner_its_scores_and_its_latency_against_the_budget(
    tmp_path: Path,
) -> None:
    page, _ = rendered(sample_results(), tmp_path)
    assert "Temporal PARSeq reads 94.6 % of the test set exactly." in page.text
    for said in (
        "95.3 %",
        "94.6 %",
        "90.2 %",
        "7.33 ms",
        "p95 9.53 ms",
        "Within the budget of 20 ms",
        "1.7 points ahead of trial-02",
    ):
        assert said in page.text, said


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    results = sample_results()
    attack = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    results["run"]["name"] = attack
    results["trials"][7]["reason"] = attack
    for trial in results["trials"]:
        trial["family"] = trial["recognizer"] = attack
    results["splits"]["test"]["confusions"][0] = {
        "truth": "<b>",
        "reading": "<i>",
        "n": 2,
    }
    example = sample_examples(1)[0]
    hostile = Example(
        attack,
        attack,
        attack,
        attack,
        0.5,
        example.frames,
        tuple((attack, 1.0) for _ in example.frames),
    )
    page, source = rendered(results, tmp_path, [hostile])
    assert attack in page.text
    assert attack not in source
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert all(attributes["src"] is not None and attributes["src"].startswith("data:image/")
               for tag, attributes in page.tags if tag == "img")  # fmt: skip


def test_the_page_is_one_file_that_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    page, source = rendered(sample_results(), tmp_path, sample_examples())
    loaded = [
        (tag, value)
        for tag, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "srcset", "href", "poster", "action") and not (value or "").startswith(("data:", "#"))
    ]
    assert loaded == []
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in source
    assert len(source.encode()) < 6_000_000
    assert source.count("plotly.js v") == 1


def test_trials_without_a_score_are_listed_but_not_plotted() -> None:
    results = sample_results()
    drawn = tradeoff.accuracy_against_latency(results)["data"]
    points = sum(len(trace["x"]) for trace in drawn if trace["mode"] == "markers" and trace["name"] != "winner")
    assert points == 9
    assert [row.rank for row in tables.leaderboard(results)] == [*range(1, 10), None]


def test_a_run_without_any_score_or_winner_is_still_reported(tmp_path: Path) -> None:
    results = sample_results()
    for trial in results["trials"]:
        trial |= {
            "val": None,
            "latency_ms": None,
            "curve": [],
            "status": "failed",
            "reason": "out of memory",
        }
    results |= {
        "winner": None,
        "splits": {},
        "selection": {"rule": "r", "reason": "No trial was scored."},
    }
    page, _ = rendered(results, tmp_path)
    assert "there is no winner" in page.text and page.text.count("out of memory") == 10


def test_the_front_and_the_budget_are_drawn_where_the_results_put_them() -> None:
    results = sample_results()
    figure = tradeoff.accuracy_against_latency(results)
    front = next(trace for trace in figure["data"] if trace["name"] == "Pareto front")
    wanted = sorted((t["latency_ms"]["p50"], t["val"]["exact"]) for t in results["trials"] if t["on_front"])
    assert list(zip(front["x"], front["y"], strict=True)) == wanted
    assert figure["layout"]["shapes"][0]["x0"] == 20.0


def test_learning_curves_mark_the_stops_of_asha_and_end_with_the_winner() -> None:
    figure = curves.learning_curves(sample_results(), "exact")
    ends = [trace["marker"]["symbol"] for trace in figure["data"] if trace["mode"] == "markers"]
    assert ends.count("x-thin") == 5 and ends.count("triangle-down-open") == 1 and ends[-1] == "star"
    widths = [trace["line"]["width"] for trace in figure["data"] if trace["mode"] == "lines"]
    assert max(widths) == widths[-1] > 2 * widths[0]


def test_a_loss_that_is_not_finite_leaves_no_hole_in_the_page(tmp_path: Path) -> None:
    results = sample_results()
    results["trials"][7]["curve"].append({"step": 61, "seconds": 7, "train_loss": math.nan, "exact": None, "cer": None})
    results["splits"]["unseen"] |= {"cer": math.inf, "cer_ci": [0.1, math.inf]}
    _, source = rendered(results, tmp_path)
    figures = re.search(r'id="figures">(.*?)</script>', source, re.DOTALL)
    assert figures and "NaN" not in figures[1] and "Infinity" not in figures[1]


def test_the_heat_map_counts_substitutions_of_equally_long_readings_only() -> None:
    figure = errors.character_confusions(
        [
            {"truth": "17", "reading": "11", "n": 4},
            {"truth": "71", "reading": "17", "n": 2},
            {"truth": "64", "reading": "6", "n": 9},
            {"truth": "", "reading": "7", "n": 9},
        ]
    )
    assert figure
    cells = figure["data"][0]["z"]
    assert cells[7][1] == 6 and cells[1][7] == 2
    assert sum(cell or 0 for row in cells for cell in row) == 8
    assert errors.character_confusions([{"truth": "64", "reading": "6", "n": 9}]) is None


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


@pytest.mark.parametrize(
    ("truth", "reading", "kind"),
    [
        ("17", "11", "substitution"),
        ("17", "71", "transposition"),
        ("38", "95", "2 substitutions"),
        ("64", "6", "deletion"),
        ("6", "64", "insertion"),
        ("", "7", "read although not readable"),
        ("5", "", "rejected although readable"),
    ],
)
def test_an_error_is_named(truth: str, reading: str, kind: str) -> None:
    assert tables.error_kind(truth, reading) == kind


def test_confusions_of_test_and_unseen_are_added_and_ordered() -> None:
    rows = tables.confusions(sample_results()["splits"])
    assert (rows[0].truth, rows[0].reading, rows[0].n, rows[0].splits) == (
        "38",
        "33",
        7,
        "4 in test, 3 in unseen",
    )
    assert [row.n for row in rows] == sorted((row.n for row in rows), reverse=True)


def test_frames_that_no_browser_shows_are_refused_by_name(tmp_path: Path) -> None:
    bad = Example("test-00042", "test", "1", "1", 0.9, (b"BM not a png",))
    with pytest.raises(ValueError, match="frame 0 of sample 'test-00042' is neither PNG nor JPEG"):
        render_report(sample_results(), [bad], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_results_that_lack_a_key_are_refused_by_its_name(tmp_path: Path) -> None:
    results = sample_results()
    del results["run"]["dataset"]
    with pytest.raises(ValueError, match="the results lack a key .*dataset"):
        render_report(results, [], tmp_path / "report.html")


def test_results_of_another_schema_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="schema 2 cannot be reported"):
        render_report(sample_results() | {"schema": 2}, [], tmp_path / "report.html")


def test_a_report_is_replaced_whole_and_the_results_are_left_as_they_were(
    tmp_path: Path,
) -> None:
    results = sample_results()
    before = copy.deepcopy(results)
    (tmp_path / "report.html").write_text("an older report")
    _, source = rendered(results, tmp_path)
    assert source.endswith("</html>") and results == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
