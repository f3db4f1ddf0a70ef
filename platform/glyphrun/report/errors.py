"""Where the winner errs: exact match by length, and which character is read as which."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from glyphrun.report.canvas import Figure, Results, figure, with_layout
from glyphrun.report.wording import finite, length_text

_SPLITS = ("val", "test", "unseen")


def exact_by_length(results: Results) -> Figure:
    """Bars of exact match by the length of the truth, a group a length, a bar a split."""
    splits = [name for name in _SPLITS if results["splits"].get(name)]
    lengths = sorted(
        {length for name in splits for length in results["splits"][name].get("by_length", {})},
        key=int,
    )
    traces = []
    for name in splits:
        scores = results["splits"][name].get("by_length", {})
        present = [length for length in lengths if finite(scores.get(length, {}).get("exact")) is not None]
        values = [float(scores[length]["exact"]) for length in present]
        traces.append(
            {
                "type": "bar",
                "name": name,
                "x": [length_text(length) for length in present],
                "y": values,
                "text": [f"{100 * value:.0f}" for value in values],
                "textposition": "inside",
                "insidetextanchor": "end",
                "textangle": 0,
                "textfont": {"color": f"var(--on-split-{name})", "size": 12},
                "marker": {"color": f"var(--split-{name})"},
                "customdata": [scores[length].get("n") for length in present],
                "hovertemplate": f"{name}, %{{x}}: %{{y:.1%}} of %{{customdata}}<extra></extra>",
            }
        )
    drawn = figure(
        traces,
        x={
            "title": {"text": "length of the truth"},
            "categoryarray": [length_text(length) for length in lengths],
        },
        y={"title": {"text": "exact match"}, "tickformat": ".0%", "range": [0, 1]},
    )
    return with_layout(drawn, barmode="group", bargap=0.22, bargroupgap=0.06)


def character_confusions(confusions: Sequence[Mapping[str, Any]]) -> Figure | None:
    """A heat map of substituted characters, from the wrong readings that are as long as their truth; None without any.

    Each confusion has ``truth``, ``reading`` and ``n``.
    """
    counts: dict[tuple[str, str], int] = {}
    for confusion in confusions:
        truth, reading = confusion["truth"], confusion["reading"]
        if len(truth) == len(reading):
            for wanted, found in zip(truth, reading, strict=True):
                if wanted != found:
                    counts[wanted, found] = counts.get((wanted, found), 0) + int(confusion["n"])
    if not counts:
        return None
    seen = {character for pair in counts for character in pair}
    charset = sorted(seen | set("0123456789")) if all(map(str.isdecimal, seen)) else sorted(seen)
    names = [html.escape(character) for character in charset]
    cells = [[counts.get((wanted, found)) for found in charset] for wanted in charset]
    drawn = figure(
        [
            {
                "type": "heatmap",
                "x": names,
                "y": names,
                "z": cells,
                "text": [["" if cell is None else str(cell) for cell in row] for row in cells],
                "texttemplate": "%{text}" if len(charset) <= 20 else "",
                "colorscale": [[0, "var(--heat-low)"], [1, "var(--heat-high)"]],
                "zmin": 0,
                "showscale": False,
                "xgap": 2,
                "ygap": 2,
                "hoverongaps": False,
                "hovertemplate": "%{y} read as %{x}: %{z}<extra></extra>",
            }
        ],
        x={
            "title": {"text": "character read"},
            "type": "category",
            "showgrid": False,
            "constrain": "domain",
        },
        y={
            "title": {"text": "character in the truth"},
            "type": "category",
            "autorange": "reversed",
            "showgrid": False,
            "scaleanchor": "x",
            "constrain": "domain",
        },
    )
    return with_layout(drawn, plot_bgcolor="var(--plot-field)")
