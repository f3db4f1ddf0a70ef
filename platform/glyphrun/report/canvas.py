"""What the report's figures share: Plotly's JSON with colours that follow the reader's colour scheme.

Colours are written ``var(--name)``; the page replaces them by the value that the custom property has in the reader's
colour scheme, and draws again when the scheme changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
