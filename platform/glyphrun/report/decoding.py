"""The page of a decode sweep: what each setting reads rightly, what it costs, and whether it beats greedy reading."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glyphrun.evaluation.recommend import Recommendation
from glyphrun.report.canvas import Figure, figure, log_axis
from glyphrun.report.pages import render_page
from glyphrun.report.palette import Mark, family_marks
from glyphrun.report.wording import ABSENT, count, finite, milliseconds, percent, percent_range

Row = Mapping[str, Any]
TOGETHER = "members that vote"


@dataclass(frozen=True)
class Cell:
    """A number as it is written and as it sorts; verdict: how it compares with greedy reading."""

    text: str
    key: float | None
    small: str = ""
    verdict: str = ""


COLUMNS = (  # report.js sorts the first by what is best, the highest
    "Exact match",
    "CER",
    "WER",
    "CER against greedy",
    "Time",
    "Images/s",
    "Frames read",
)
SORTED = "CER"


@dataclass(frozen=True)
class SettingRow:
    """A setting, who reads by it, and its cells as ``COLUMNS`` names them."""

    name: str
    who: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class DecodeSection:
    """What a page says of a decode sweep; best: the setting that makes the fewest errors, and its figures in words.

    axis: what the plot shows over time; remark: what else is to be said of how the settings came about.
    """

    best: str
    told: str
    items: str
    split: str
    rows: tuple[SettingRow, ...]
    families: tuple[Mark, ...]
    axis: str
    remark: str = ""
    columns: tuple[str, ...] = COLUMNS
    sorted: str = SORTED
    figure: str = "decoding"


def decode_section(rows: Sequence[Row], *, split: str = "", remark: str = "") -> DecodeSection:
    """Of the rows of a decode sweep. Raises ValueError without rows."""
    if not rows:
        raise ValueError("a decode sweep without rows has no page: give at least one setting")
    best = min(rows, key=lambda row: (_error(row), -row["exact"], row["ms"]))
    return DecodeSection(
        best=best["name"],
        told=_told(best),
        items=count(best["n"]),
        split=split,
        rows=tuple(SettingRow(row["name"], " + ".join(row["point"]["members"]), tuple(_cells(row))) for row in rows),
        families=tuple(family_marks(_families(rows)).values()),
        axis="CER" if best["cer"] is not None else "share of wrong answers",
        remark=remark,
    )


def write_decode_page(rows: Sequence[Row], out: Path, *, title: str, advice: Sequence[Recommendation] = ()) -> None:
    """Write the page of the rows of a decode sweep, which loads nothing from elsewhere; ``out`` is replaced atomically.

    Raises ValueError without rows.
    """
    section = decode_section(rows)
    figures = {section.figure: accuracy_against_time(rows)}
    render_page("decode.html", {"title": title, "decoding": section, "advice": advice, "figures": figures}, out)


def accuracy_against_time(rows: Sequence[Row]) -> Figure:
    """A point a setting, time on a logarithmic axis, with the settings that none beats in both as a step line."""
    marks = family_marks(_families(rows))
    front = _front(rows)
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "Pareto front",
            "x": [row["ms"] for row in front],
            "y": [_error(row) for row in front],
            "line": {"color": "var(--ink-soft)", "width": 1.5, "shape": "hv"},
            "hoverinfo": "skip",
        }
    ]
    for family, mark in marks.items():
        traces.append(_points([row for row in rows if _family(row) == family], mark))
    name = "CER" if rows[0]["cer"] is not None else "wrong answers"
    return figure(
        traces,
        x=log_axis("time an item (ms)", [row["ms"] for row in rows]),
        y={"title": {"text": name}, "tickformat": ".1%"},
    )


def _families(rows: Sequence[Row]) -> list[dict[str, str]]:
    return [{"family": _family(row)} for row in rows]


def _family(row: Row) -> str:
    point = row["point"]
    if point["ensemble_vote"]:
        return TOGETHER
    corrected = ", corrected" if point["decode"]["correction"] else ""
    return f"{point['decode']['search']}{corrected}"


def _error(row: Row) -> float:
    return 1 - row["exact"] if row["cer"] is None else float(row["cer"])


def _front(rows: Sequence[Row]) -> list[Row]:
    """Rows that no other beats in both accuracy and time, the quickest first."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["ms"], _error(row))):
        if not front or _error(row) < _error(front[-1]):
            front.append(row)
    return front


def _points(rows: Sequence[Row], mark: Mark) -> Figure:
    intervals = [_interval(row) for row in rows]
    errors = [_error(row) for row in rows]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": html.escape(mark.family),
        "x": [row["ms"] for row in rows],
        "y": errors,
        "marker": {
            "color": mark.colour,
            "size": 11,
            "symbol": mark.symbol,
            "line": {"width": 1.5, "color": mark.colour},
        },
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [high - error for error, (_, high) in zip(errors, intervals, strict=True)],
            "arrayminus": [error - low for error, (low, _) in zip(errors, intervals, strict=True)],
            "color": "var(--whisker)",
            "thickness": 1,
            "width": 3,
        },
        "text": [f"<b>{html.escape(row['name'])}</b><br>{_told(row)}" for row in rows],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _interval(row: Row) -> tuple[float, float]:
    if row["cer"] is not None:
        low, high = row["cer_ci"]
        return low, high
    low, high = row["exact_ci"]
    return 1 - high, 1 - low


def _told(row: Row) -> str:
    cer = "" if row["cer"] is None else f"CER {percent(row['cer'], 2)}, "
    return f"{cer}exact match {percent(row['exact'])}, {milliseconds(row['ms'])} an item"


def _cells(row: Row) -> list[Cell]:
    return [
        Cell(percent(row["exact"]), finite(row["exact"]), percent_range(row["exact_ci"])),
        Cell(percent(row["cer"], 2), finite(row["cer"]), percent_range(row["cer_ci"])),
        Cell(percent(row["wer"], 2), finite(row["wer"])),
        against_greedy(row["against_greedy"]["cer"]),
        Cell(milliseconds(row["ms"]), finite(row["ms"]), _timed(row)),
        Cell(count(row["images_per_s"]), finite(row["images_per_s"])),
        Cell(percent(row["frames_read"]), finite(row["frames_read"])),
    ]


def _timed(row: Row) -> str:
    """On how many items the time was measured, where that is not all of them."""
    timed = row.get("timed_items", row["n"])
    return f"on {count(timed)} items" if timed < row["n"] else ""


def against_greedy(cer: Mapping[str, Any] | None) -> Cell:
    """The change of CER in points, with its interval and verdict."""
    if cer is None:
        return Cell(ABSENT, None)
    low, high = cer["ci"]
    if cer["difference"] == low == high == 0:
        return Cell("0", 0.0, "the same answers")
    verdict = "finished" if high < 0 else "failed" if low > 0 else ""
    return Cell(f"{100 * cer['difference']:+.2f}", cer["difference"], f"{100 * low:+.2f} to {100 * high:+.2f}", verdict)
