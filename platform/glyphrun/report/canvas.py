"""What the report's figures share: Plotly's JSON with colours that follow the reader's colour scheme.

Colours are written ``var(--name)``; the page replaces them by the value that the custom property has in the reader's
colour scheme, and draws again when the scheme changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

Figure = dict[str, Any]
Results = Mapping[str, Any]


def figure(
    traces: Sequence[Figure],
    *,
    x: Figure,
    y: Figure,
    annotations: Sequence[Figure] = (),
    shapes: Sequence[Figure] = (),
) -> Figure:
    """A figure without a background of its own; x and y override the axes' common look."""
    axis = {
        "gridcolor": "var(--line)",
        "linecolor": "var(--line-strong)",
        "zeroline": False,
        "automargin": True,
        "fixedrange": False,
        "tickfont": {"color": "var(--ink-soft)"},
    }
    layout = {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "var(--sans)", "size": 13, "color": "var(--ink)"},
        "margin": {"l": 56, "r": 12, "t": 12, "b": 48},
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": "var(--surface)",
            "bordercolor": "var(--line-strong)",
            "font": {"color": "var(--ink)"},
            "align": "left",
        },
        "xaxis": {**axis, **x},
        "yaxis": {**axis, **y},
        "annotations": list(annotations),
        "shapes": list(shapes),
    }
    return {"data": list(traces), "layout": layout}


def log_axis(title: str, values: Sequence[float]) -> Figure:
    """A logarithmic axis with round numbers around values, no more than tell where they are.

    1, 10, …, or 1, 2, 5, …, or closer together.
    """
    low, high = 0.9 * min(values), 1.1 * max(values)
    if max(values) == min(values):  # the axis is wide then
        low, high = low / 10, high * 10
    fine = [tenth / 10 for tenth in range(10, 100)]
    ticks: list[float] = []
    for steps in ([1.0], [1.0, 2.0, 5.0], [1.0, 1.5, *map(float, range(2, 10))], fine):
        candidates = [float(f"{step}e{power}") for power in range(-3, 6) for step in steps]
        ticks = [tick for tick in candidates if low <= tick <= high]
        if len(ticks) >= 3:
            break
    ticks = ticks[:: ceil(len(ticks) / 8) or 1]
    return {
        "title": {"text": title},
        "type": "log",
        "tickvals": ticks,
        "ticktext": [f"{tick:g}" for tick in ticks],  # Plotly writes 2 and 5 without their power of ten
    }


def exceeded(measured: Mapping[str, Any]) -> list[str]:
    """The measures of which a trial, or a way of reading, takes more than the budget has."""
    return list(measured.get("over_budget", ["ms"] if measured.get("within_budget") is False else []))


def winners(results: Results) -> tuple[tuple[str, ...], str]:
    """The trials that the winner reads with, and what each of them is called."""
    search = results.get("decode_search")
    if not search:
        return (str(results.get("winner")),), "winner"
    members = next(tuple(point["members"]) for point in search["points"] if point["name"] == search["chosen"])
    return members, "winner" if len(members) == 1 else "in the winner"


def with_layout(drawn: Figure, **layout: Any) -> Figure:
    """The figure with more of a layout."""
    return {**drawn, "layout": {**drawn["layout"], **layout}}


def note(x: float, y: float, text: str, *, color: str, bold: bool = False, **place: Any) -> Figure:
    """Text at a point, without an arrow."""
    return {
        "x": x,
        "y": y,
        "text": f"<b>{text}</b>" if bold else text,
        "showarrow": False,
        "font": {"color": color, "size": 12},
        **place,
    }
