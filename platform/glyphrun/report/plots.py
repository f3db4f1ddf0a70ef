"""The report's figures, as Plotly's JSON. Pure functions of the results.

Colours are written ``var(--name)``; the page replaces them by the value that the custom property has in the reader's
colour scheme, and draws again when the scheme changes.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from glyphrun.report.palette import Mark, family_marks
from glyphrun.report.wording import finite, length_text, percent, percent_range

Figure = dict[str, Any]
Results = Mapping[str, Any]

_SPLITS = ("val", "test", "unseen")


def latency_percentile(results: Results) -> str:
    """The percentile that the budget limits: the results' ``budget.percentile``, or p95."""
    return str(results.get("budget", {}).get("percentile", "p95"))


def accuracy_against_latency(results: Results) -> Figure:
    """A point a trial that was scored, with the Pareto front as a step line and the budget as a vertical line."""
    percentile = latency_percentile(results)
    marks = family_marks(results["trials"])
    points = [point for trial in results["trials"] if (point := _point(trial, percentile))]
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
        members = [point for point in points if _family(point["trial"]) == family]
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
            _note(
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
                _note(
                    point["x"],
                    point["y"],
                    "winner",
                    color="var(--ink)",
                    yanchor="bottom",
                    yshift=13,
                    bold=True,
                )
            )
    return _figure(
        traces,
        x={
            "title": {"text": f"latency per tracklet, {percentile} (ms)"},
            "range": [0, furthest],
        },
        y={"title": {"text": "exact match on val"}, "tickformat": ".0%"},
        annotations=annotations,
        shapes=shapes,
    )


def learning_curves(results: Results, measure: str) -> Figure:
    """A line a trial over optimizer steps; measure is ``exact`` or ``train_loss``. The winner lies on top.

    A cross ends a trial that ASHA stopped, an open triangle one that failed, a star the winner.
    """
    marks = family_marks(results["trials"])
    winner = results.get("winner")
    traces: list[Figure] = []
    for trial in sorted(results["trials"], key=lambda trial: trial.get("id") == winner):
        curve = [
            (int(point["step"]), value)
            for point in trial.get("curve") or ()
            if (value := finite(point.get(measure))) is not None
        ]
        if curve:
            traces += _curve(
                trial,
                curve,
                marks[_family(trial)],
                measure,
                won=trial.get("id") == winner,
            )
    y = (
        {
            "title": {"text": "exact match on val"},
            "tickformat": ".0%",
            "rangemode": "tozero",
        }
        if measure == "exact"
        else {"title": {"text": "training loss"}, "rangemode": "tozero"}
    )
    return _figure(traces, x={"title": {"text": "optimizer steps"}, "rangemode": "tozero"}, y=y)


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
    figure = _figure(
        traces,
        x={
            "title": {"text": "length of the truth"},
            "categoryarray": [length_text(length) for length in lengths],
        },
        y={"title": {"text": "exact match"}, "tickformat": ".0%", "range": [0, 1]},
    )
    return _with(figure, barmode="group", bargap=0.22, bargroupgap=0.06)


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
    figure = _figure(
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
    return _with(figure, plot_bgcolor="var(--plot-field)")


def _figure(
    traces: Sequence[Figure],
    *,
    x: Figure,
    y: Figure,
    annotations: Sequence[Figure] = (),
    shapes: Sequence[Figure] = (),
) -> Figure:
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


def _with(figure: Figure, **layout: Any) -> Figure:
    return {**figure, "layout": {**figure["layout"], **layout}}


def _family(trial: Mapping[str, Any]) -> str:
    return str(trial.get("family") or "other")


def _point(trial: Mapping[str, Any], percentile: str) -> Figure | None:
    latency = finite((trial.get("latency_ms") or {}).get(percentile))
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


def _curve(
    trial: Mapping[str, Any],
    curve: Sequence[tuple[int, float]],
    mark: Mark,
    measure: str,
    *,
    won: bool,
) -> list[Figure]:
    name = f"{html.escape(str(trial['id']))} {html.escape(str(trial.get('recognizer', '')))}"
    steps, values = [step for step, _ in curve], [value for _, value in curve]
    shown = "%{y:.1%}" if measure == "exact" else "%{y:.3f}"
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": steps,
        "y": values,
        "line": {
            "color": mark.colour,
            "width": 3.5 if won else 1.6,
            "dash": "solid" if won else mark.dash,
        },
        "opacity": 1.0 if won else 0.75,
        "hovertemplate": f"<b>{name}</b><br>step %{{x}}: {shown}<extra></extra>",
    }
    end = {"stopped": ("x-thin", 8), "failed": ("triangle-down-open", 10)}.get(str(trial.get("status")))
    if won:
        end = ("star", 15)
    if end is None:
        return [line]
    symbol, size = end
    words = {"stopped": "stopped by ASHA", "failed": "failed"}.get(str(trial.get("status")), "winner")
    last = {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": steps[-1:],
        "y": values[-1:],
        "marker": {
            "symbol": symbol,
            "size": size,
            "color": mark.colour,
            "line": {"width": 2, "color": mark.colour},
        },
        "hovertemplate": f"<b>{name}</b>: {'winner' if won else words} at step %{{x}}<extra></extra>",
    }
    return [line, last]


def _note(x: float, y: float, text: str, *, color: str, bold: bool = False, **place: Any) -> Figure:
    return {
        "x": x,
        "y": y,
        "text": f"<b>{text}</b>" if bold else text,
        "showarrow": False,
        "font": {"color": color, "size": 12},
        **place,
    }
