"""The report's section on confidence: sentences on temperature and threshold, and a row a split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glyphrun.report.canvas import Figure
from glyphrun.report.palette import Mark, split_marks
from glyphrun.report.reliability import error_against_coverage, reliability_diagram
from glyphrun.report.tables import Cell
from glyphrun.report.wording import ABSENT, count, finite, percent, percent_range, stated_percent


@dataclass(frozen=True)
class ConfidenceRow:
    """A split's cells, as ``ConfidenceSection.columns`` names them."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class ConfidenceSection:
    """What the page says of confidence; marks are those of the error curve, held_out those of the reliability diagram."""

    sentences: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[ConfidenceRow, ...]
    marks: tuple[Mark, ...]
    held_out: tuple[Mark, ...]
    moved: bool
    abstains: bool
    figures: dict[str, Figure]


def confidence_section(results: Mapping[str, Any]) -> ConfidenceSection | None:
    """The section, or None for results that say nothing of confidence: older ones, or those without a winner."""
    said = results.get("confidence")
    if not said:
        return None
    splits = said["splits"]
    marks = split_marks(splits)
    held_out = {name: split for name, split in splits.items() if name != "val"} or dict(splits)
    abstains = said["abstain_below"] > 0
    precision = (said.get("abstention") or {}).get("precision")
    columns = ("n", "Exact match", "Mean confidence", "ECE before", "ECE", "ECE of characters", "AURC")
    return ConfidenceSection(
        sentences=(_temperature(said), _threshold(said)),
        columns=(*columns, "Answered", "Right of these") if abstains else columns,
        rows=tuple(_row(name, split, abstains=abstains) for name, split in splits.items()),
        marks=tuple(marks.values()),
        held_out=tuple(marks[name] for name in held_out),
        moved=said["temperature"]["value"] != 1,
        abstains=abstains,
        figures={
            "reliability": reliability_diagram(held_out, marks),
            "coverage": error_against_coverage(splits, marks, precision, abstains=abstains),
        },
    )


def _temperature(said: Mapping[str, Any]) -> str:
    value, reason = said["temperature"]["value"], said["temperature"]["reason"]
    if reason:
        return f"Confidences are left as they come: {reason}."
    claimed, draws = ("much", "towards") if value > 1 else ("little", "away from")
    worse = [
        name
        for name, split in said["splits"].items()
        if name != "val" and split["ece"]["after"]["value"] > split["ece"]["before"]["value"]
    ]
    return (
        f"On the {count(said['splits']['val']['n'])} answers of val, confidences claimed too {claimed}; a temperature of "
        f"{value:.2f} draws them {draws} one half. The order of answers stays, and so do their texts."
        + (f" On {' and '.join(worse)} it does not help: the calibration error is larger than before." if worse else "")
    )


def _threshold(said: Mapping[str, Any]) -> str:
    abstention, below = said.get("abstention"), said["abstain_below"]
    if abstention is None:
        if below > 0:
            return f"Answers under {percent(below)} are marked abstained, as the decode settings declare."
        return "No answer is marked abstained, for the experiment states no precision that answers should reach."
    wanted = stated_percent(abstention["precision"])
    if abstention["reason"]:
        return f"The experiment asks that {wanted} of the answers be right, and none is marked abstained: {abstention['reason']}."
    attained = [
        f"on {name} {percent(split['answered']['precision'])} are (95\u00a0%\u00a0CI {percent_range(split['answered']['precision_ci'])})"
        for name, split in said["splits"].items()
        if name != "val" and finite(split["answered"]["precision"]) is not None
    ]
    return (
        f"Answers under {percent(below)} are marked abstained: on val, {wanted} of the others are right, as the experiment asks"
        + "".join(f"; {one}" for one in attained)
        + "."
    )


def _row(name: str, split: Mapping[str, Any], *, abstains: bool) -> ConfidenceRow:
    before, after, characters = split["ece"]["before"], split["ece"]["after"], split["characters"]
    stated, answered, curve = split["mean_confidence"], split["answered"], split["risk_coverage"]
    cells: tuple[Cell, ...] = (
        Cell(count(split["n"])),
        Cell(percent(split["right"])),
        Cell(percent(stated["after"]), f"before {percent(stated['before'])}"),
        Cell(percent(before["value"]), percent_range(before["ci"])),
        Cell(percent(after["value"]), percent_range(after["ci"])),
        Cell(percent(characters["ece"]["after"]["value"]), f"before {percent(characters['ece']['before']['value'])}")
        if characters
        else Cell(ABSENT),
        Cell(percent(curve["area"], 2), f"at best {percent(curve['best_area'], 2)}"),
    )
    if abstains:
        cells += (
            Cell(percent(answered["coverage"])),
            Cell(percent(answered["precision"]), percent_range(answered["precision_ci"])),
        )
    return ConfidenceRow(name, cells)
