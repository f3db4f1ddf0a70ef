"""The page of tuned serving: how long batches of each size take, and which was chosen for the promise."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glyphrun.report.canvas import Figure, figure, note
from glyphrun.report.pages import render_page
from glyphrun.report.palette import family_marks

Points = Mapping[str, Sequence[Mapping[str, Any]]]


def write_curve_page(
    points: Points, out: Path, *, title: str, slo_ms: float, chosen: int, told: Sequence[str], under: str
) -> None:
    """Write a page that loads nothing from elsewhere; ``out`` is replaced atomically.

    points: what was measured of each recognizer, smallest batch first. told: what was chosen, a line each; under: what it
    was measured under.
    """
    families = [{"family": name} for name in points]
    page = {
        "title": title,
        "told": told,
        "under": under,
        "points": points,
        "chosen": chosen,
        "marks": family_marks(families),
        "figures": {
            "latency": latency(points, slo_ms, chosen),
            "throughput": throughput(points, chosen),
        },
    }
    render_page("batch_curve.html", page, out)


def latency(points: Points, slo_ms: float, chosen: int) -> Figure:
    """What an item that has just missed a batch takes, by the size of batches, beside the promise."""
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": slo_ms, "y1": slo_ms}
    return figure(
        _lines(points, "worst_ms", "ms"),
        x=_sizes(points),
        y={"title": {"text": "ms, 99 % of items"}, "rangemode": "tozero"},
        shapes=[{**line, "line": {"color": "var(--ink-soft)", "width": 1.5, "dash": "dash"}}, _at(chosen)],
        annotations=[
            note(1, slo_ms, f"{slo_ms:g} ms", color="var(--ink-soft)", xref="paper", xanchor="right", yanchor="bottom")
        ],
    )


def throughput(points: Points, chosen: int) -> Figure:
    """Items a second of one replica by the size of batches."""
    return figure(
        _lines(points, "items_per_s", "items/s"),
        x=_sizes(points),
        y={"title": {"text": "items/s a replica"}, "rangemode": "tozero"},
        shapes=[_at(chosen)],
    )


def _lines(points: Points, measure: str, unit: str) -> list[Figure]:
    marks = family_marks([{"family": name} for name in points])
    return [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": html.escape(name),
            "x": [point["batch"] for point in curve],
            "y": [point[measure] for point in curve],
            "line": {"color": marks[name].colour, "width": 2, "dash": marks[name].dash},
            "marker": {"color": marks[name].colour, "size": 9, "symbol": marks[name].symbol},
            "hovertemplate": f"<b>{html.escape(name)}</b><br>batches of %{{x}}: %{{y:.1f}} {unit}<extra></extra>",
        }
        for name, curve in points.items()
    ]


def _sizes(points: Points) -> Figure:
    sizes = sorted({point["batch"] for curve in points.values() for point in curve})
    return {
        "title": {"text": "items a batch"},
        "type": "log",
        "tickvals": sizes,
        "ticktext": [str(one) for one in sizes],
    }


def _at(chosen: int) -> Figure:
    """A vertical line at the chosen size."""
    line = {"color": "var(--line-strong)", "width": 1.5, "dash": "dot"}
    return {"type": "line", "yref": "paper", "x0": chosen, "x1": chosen, "y0": 0, "y1": 1, "line": line}
