"""Recognizers and ways of reading them, chosen together: each with its accuracy and costs, and the front of them."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glyphrun.evaluation.pareto import pareto_front
from glyphrun.report.canvas import Figure, Results, exceeded, figure, log_axis, note
from glyphrun.report.decoding import Cell, against_greedy
from glyphrun.report.palette import Mark, family_marks
from glyphrun.report.wording import finite, listed, mebibytes, milliseconds, percent, percent_range, rate

Point = Mapping[str, Any]
MEASURES = {
    "exact": "exact match",
    "cer": "CER",
    "ms": "latency",
    "memory": "memory",
    "cost": "cost of a million items",
}
LIMITS = {"ms": "latency_ms", "memory": "memory_mib", "cost": "cost_per_million"}
FIGURES = {"ms": "joint", "memory": "joint-memory"}
AXES = {"ms": "latency of an item, p50 (ms)", "memory": "memory (MiB)"}
UNITS = {"ms": "ms", "memory": "MiB"}
ALONE = "one recognizer"


@dataclass(frozen=True)
class WayRow:
    """A way of reading, who reads if they are several, and its cells as the section's columns name them."""

    name: str
    who: str
    won: bool
    on_front: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class JointSection:
    """What a page says of the search; measures: those of the front; columns: a heading and whether high or low is best.

    axes: the figures by name, and what each shows.
    """

    survivors: str
    measures: str
    accuracy: str
    families: tuple[Mark, ...]
    axes: tuple[tuple[str, str], ...]
    columns: tuple[tuple[str, str], ...]
    rows: tuple[WayRow, ...]
    on_front: int
    priced: bool


def joint_section(results: Results) -> JointSection | None:
    """The section, or None for a run whose winner was chosen among its trials."""
    search = results.get("decode_search")
    if not search:
        return None
    points: Sequence[Point] = search["points"]
    by_cer = accuracy_of(results) == "cer"
    priced = any(finite(point.get("cost")) is not None for point in points)
    ranked = sorted(points, key=lambda point: (_error(point, by_cer), point["latency_ms"]["p50"]))
    price = [("Cost of a million", "low")] if priced else []
    costs = [("Latency", "low"), ("Memory", "low"), *price, ("Items/s", "high")]
    return JointSection(
        survivors=listed(search["survivors"]),
        measures=listed([MEASURES[name] for name in search["measures"]]),
        accuracy=MEASURES[accuracy_of(results)],
        families=tuple(family_marks(_families(points)).values()),
        axes=tuple((name, MEASURES[measure]) for measure, name in FIGURES.items()),
        columns=(("Exact match", "high"), ("CER", "low"), ("CER against greedy", "low"), *costs),
        rows=tuple(_row(point, point["name"] == search["chosen"], priced) for point in ranked),
        on_front=len(search["front"]),
        priced=priced,
    )


def chosen_point(results: Results) -> Point | None:
    """The way of reading that won; None for a run whose winner was chosen among its trials."""
    search = results.get("decode_search")
    return next(one for one in search["points"] if one["name"] == search["chosen"]) if search else None


def accuracy_of(results: Results) -> str:
    """The measure that stands first among the objectives."""
    return "cer" if next(iter(results.get("objectives") or ()), "exact") == "cer" else "exact"


def figures(results: Results) -> dict[str, Figure]:
    """Accuracy against latency, and against memory; none for a run whose winner was chosen among its trials."""
    return (
        {name: _against(results, measure) for measure, name in FIGURES.items()} if results.get("decode_search") else {}
    )


def _against(results: Results, measure: str) -> Figure:
    """A point a way of reading, the front of these two as a step line; outlined is what is on the front of all measures."""
    search, by_cer = results["decode_search"], accuracy_of(results) == "cer"
    key = "cer" if by_cer else "exact"
    points: Sequence[Point] = [point for point in search["points"] if finite(point[key]) is not None]
    steps = pareto_front({one["name"]: (-_error(one, by_cer), -_cost(one, measure)) for one in points})
    front = sorted((one for one in points if one["name"] in steps), key=lambda one: _cost(one, measure))
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "Pareto front",
            "x": [_cost(one, measure) for one in front],
            "y": [one[key] for one in front],
            "line": {"color": "var(--ink-soft)", "width": 1.5, "shape": "hv"},
            "hoverinfo": "skip",
        }
    ]
    for family, mark in family_marks(_families(points)).items():
        traces.append(_points([one for one in points if _family(one) == family], mark, measure, key))
    chosen = next(one for one in search["points"] if one["name"] == search["chosen"])
    traces.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "winner",
            "x": [_cost(chosen, measure)],
            "y": [chosen[key]],
            "marker": {"size": 22, "symbol": "circle-open", "color": "var(--ink)", "line": {"width": 2}},
            "hoverinfo": "skip",
        }
    )
    limit = finite((results.get("budget") or {}).get(LIMITS[measure]))
    costs = [_cost(one, measure) for one in points]
    shown = limit if limit is not None and min(costs) / 2 < limit < 2 * max(costs) else None
    drawn = figure(
        traces,
        x=log_axis(AXES[measure], costs + ([shown] if shown else [])),
        y={"title": {"text": f"{MEASURES[key]} on val"}, "tickformat": ".1%" if by_cer else ".0%"},
        annotations=[*([_limit_note(shown, measure)] if shown else []), _winner_note(chosen, measure, key)],
        shapes=[_limit(shown)] if shown else [],
    )
    drawn["layout"]["margin"]["t"] = 34  # the word over a winner at the top
    return drawn


def _limit(at: float) -> Figure:
    line = {"color": "var(--bad)", "width": 1.5, "dash": "dash"}
    return {"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper", "line": line}


def _limit_note(at: float, measure: str) -> Figure:
    text = f"budget {at:g} {UNITS[measure]} "
    return note(math.log10(at), 1, text, color="var(--bad)", yref="paper", yanchor="top", xanchor="right")


def _winner_note(chosen: Point, measure: str, key: str) -> Figure:
    at = math.log10(_cost(chosen, measure))
    return note(at, chosen[key], "winner", color="var(--ink)", yanchor="bottom", yshift=13, bold=True)


def _points(points: Sequence[Point], mark: Mark, measure: str, key: str) -> Figure:
    """Open markers are over the budget, outlined ones on the front of all measures."""
    intervals = [point[f"{key}_ci"] for point in points]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": html.escape(mark.family),
        "x": [_cost(point, measure) for point in points],
        "y": [point[key] for point in points],
        "marker": {
            "color": mark.colour,
            "size": 11,
            "symbol": [mark.symbol if point["within_budget"] else f"{mark.symbol}-open" for point in points],
            "line": {"width": 2, "color": ["var(--ink)" if point["on_front"] else mark.colour for point in points]},
        },
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [high - point[key] for point, (_, high) in zip(points, intervals, strict=True)],
            "arrayminus": [point[key] - low for point, (low, _) in zip(points, intervals, strict=True)],
            "color": "var(--whisker)",
            "thickness": 1,
            "width": 3,
        },
        "text": [
            f"<b>{html.escape(point['name'])}</b><br>exact match {percent(point['exact'])}, CER {percent(point['cer'], 2)}"
            f"<br>{milliseconds(point['latency_ms']['p50'])}, {mebibytes(point['memory_mib'])}"
            for point in points
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _row(point: Point, won: bool, priced: bool) -> WayRow:
    over = exceeded(point)
    latency = point["latency_ms"]
    price = finite(point.get("cost"))
    cells = [
        Cell(percent(point["exact"]), finite(point["exact"]), percent_range(point["exact_ci"])),
        Cell(percent(point["cer"], 2), finite(point["cer"]), percent_range(point["cer_ci"])),
        against_greedy(point["against_greedy"]["cer"]),
        _costing(milliseconds(latency["p50"]), latency["p50"], "ms" in over, f"p95 {milliseconds(latency['p95'])}"),
        _costing(mebibytes(point["memory_mib"]), point["memory_mib"], "memory" in over),
        *([_costing("–" if price is None else f"{price:.3g}", price, "cost" in over)] if priced else []),
        Cell(rate(point["items_per_s"]), finite(point["items_per_s"])),
    ]
    several = len(point["members"]) > 1
    # Names of several ensembles tell their members, which have a line of their own here.
    name = point["name"].replace(f", {'+'.join(point['members'])}", "") if several else point["name"]
    who = " + ".join(point["members"]) if several else ""
    return WayRow(name, who, won, point["on_front"], tuple(cells))


def _costing(text: str, key: float | None, over: bool, small: str = "") -> Cell:
    return Cell(text, key, "over budget" if over else small, "failed" if over else "")


def _families(points: Sequence[Point]) -> list[dict[str, str]]:
    return [{"family": family} for family in sorted(map(_family, points), key=lambda one: (one != ALONE, one))]


def _family(point: Point) -> str:
    members = len(point["members"])
    return ALONE if members == 1 else f"ensembles of {members}"


def _cost(point: Point, measure: str) -> float:
    return float(point["latency_ms"]["p50"] if measure == "ms" else point["memory_mib"])


def _error(point: Point, by_cer: bool) -> float:
    cer = finite(point["cer"])
    return 1 - point["exact"] if not by_cer else float("inf") if cer is None else cer
