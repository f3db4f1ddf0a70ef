"""Accuracy against latency: what each trial costs and what it gives."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from glyphrun.report.canvas import Figure, Results, figure, note
from glyphrun.report.palette import Mark, family_marks, family_of
from glyphrun.report.wording import finite, percent, percent_range


def accuracy_against_latency(results: Results) -> Figure:
    """A point a trial that was scored, with the Pareto front as a step line and the budget as a vertical line."""
    marks = family_marks(results["trials"])
    points = [point for trial in results["trials"] if (point := _point(trial))]
    traces: list[Figure] = []
    front = sorted(
        (point for point in points if point["trial"].get("on_front")),
        key=lambda point: point["x"],
    )
    if front:
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "Pareto front",
                "x": [point["x"] for point in front],
                "y": [point["y"] for point in front],
                "line": {"color": "var(--ink-soft)", "width": 1.5, "shape": "hv"},
                "hoverinfo": "skip",
            }
        )
    for family, mark in marks.items():
        members = [point for point in points if family_of(point["trial"]) == family]
        if members:
            traces.append(_points(members, mark))
    annotations = []
    shapes = []
    budget = finite(results.get("budget", {}).get("latency_ms"))
    furthest = 1.18 * max([point["x"] for point in points] + ([budget] if budget is not None else []), default=1.0)
    if budget is not None:
        shapes.append(
            {
                "type": "line",
                "x0": budget,
                "x1": budget,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": "var(--bad)", "width": 1.5, "dash": "dash"},
            }
        )
        annotations.append(
            note(
                budget,
                0,
                f" budget {budget:g} ms ",
                color="var(--bad)",
                yref="paper",
                xanchor="right" if budget > furthest / 2 else "left",
                yanchor="bottom",
            )
        )
    for point in points:
        if point["trial"].get("id") == results.get("winner"):
            traces.append(_ring(point))
            annotations.append(
                note(
                    point["x"],
                    point["y"],
                    "winner",
                    color="var(--ink)",
                    yanchor="bottom",
                    yshift=13,
                    bold=True,
                )
            )
    return figure(
        traces,
        x={
            "title": {"text": "latency per tracklet, p50 (ms)"},
            "range": [0, furthest],
        },
        y={"title": {"text": "exact match on val"}, "tickformat": ".0%"},
        annotations=annotations,
        shapes=shapes,
    )


def _point(trial: Mapping[str, Any]) -> Figure | None:
    latency = finite((trial.get("latency_ms") or {}).get("p50"))
    exact = finite((trial.get("val") or {}).get("exact"))
    return None if latency is None or exact is None else {"trial": trial, "x": latency, "y": exact}


def _points(points: Sequence[Figure], mark: Mark) -> Figure:
    """Filled markers within the budget, open ones beyond it, faint ones for trials that were stopped before the end."""
    intervals = [point["trial"]["val"].get("exact_ci") or (point["y"], point["y"]) for point in points]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": html.escape(mark.family),
        "x": [point["x"] for point in points],
        "y": [point["y"] for point in points],
        "marker": {
            "color": mark.colour,
            "size": 11,
            "opacity": [0.45 if point["trial"].get("status") == "stopped" else 1.0 for point in points],
            "symbol": [
                mark.symbol if point["trial"].get("within_budget") else f"{mark.symbol}-open" for point in points
            ],
            "line": {"width": 1.5, "color": mark.colour},
        },
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [high - point["y"] for point, (_, high) in zip(points, intervals, strict=True)],
            "arrayminus": [point["y"] - low for point, (low, _) in zip(points, intervals, strict=True)],
            "color": "var(--whisker)",
            "thickness": 1,
            "width": 3,
        },
        "text": [
            f"<b>{html.escape(str(point['trial']['id']))}</b> {html.escape(str(point['trial'].get('recognizer', '')))}"
            f"<br>exact match {percent(point['y'])} (95 % CI {percent_range(interval)})<br>latency {point['x']:.3g} ms"
            for point, interval in zip(points, intervals, strict=True)
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _ring(point: Figure) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "winner",
        "x": [point["x"]],
        "y": [point["y"]],
        "marker": {
            "size": 22,
            "symbol": "circle-open",
            "color": "var(--ink)",
            "line": {"width": 2},
        },
        "hoverinfo": "skip",
    }
