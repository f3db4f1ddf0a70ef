"""What confidence is worth, drawn: stated confidence against what is right, and error against coverage."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from math import exp, log
from typing import Any

from glyphrun.report.canvas import Figure, figure, note
from glyphrun.report.palette import Mark
from glyphrun.report.wording import finite, percent, percent_range, stated_percent

TICKS = (0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)


def reliability_diagram(splits: Mapping[str, Mapping[str, Any]], marks: Mapping[str, Mark]) -> Figure:
    """Share of right answers over mean confidence, a point a bin of equal mass, beside the line of perfect calibration.

    Filled points with 95 % intervals are calibrated confidences, open ones those before calibration. The axis of confidence
    is that of log-odds: good recognizers say little else than 95 to 100 %, and a temperature stretches it evenly.
    """
    traces: list[Figure] = []
    moved = any(said["reliability"]["before"] != said["reliability"]["after"] for said in splits.values())
    for name, said in splits.items():
        if moved:
            traces.append(_bins(name, said["reliability"]["before"], marks[name], calibrated=False))
        traces.append(_bins(name, said["reliability"]["after"], marks[name], calibrated=True))
    least = min((min(trace["x"]) for trace in traces), default=0.0) - 0.4
    most = max((max(trace["x"]) for trace in traces), default=1.0) + 0.4
    ends = [least + (most - least) * step / 60 for step in range(61)]
    perfect = {
        "type": "scatter",
        "mode": "lines",
        "name": "perfectly calibrated",
        "x": ends,
        "y": [1 / (1 + exp(-odds)) for odds in ends],
        "line": {"color": "var(--ink-soft)", "width": 1.5, "dash": "dash"},
        "hoverinfo": "skip",
    }
    ticks = [share for share in TICKS if least <= _odds(share) <= most]
    lowest = min((min(trace["y"]) for trace in traces), default=0.0)
    return figure(
        [perfect, *traces],
        x={
            "title": {"text": "confidence"},
            "range": [least, most],
            "tickvals": [_odds(share) for share in ticks],
            "ticktext": [f"{100 * share:g}%" for share in ticks],
        },
        y={
            "title": {"text": "right answers"},
            "tickformat": ".0%",
            "range": [max(-0.02, int(10 * (lowest - 0.08)) / 10), 1.02],
        },
    )


def error_against_coverage(
    splits: Mapping[str, Mapping[str, Any]], marks: Mapping[str, Mark], precision: float | None, *, abstains: bool
) -> Figure:
    """Share of wrong answers among the surest, over the share of items answered; a line a split.

    precision: the stated share of right answers, drawn as a level. abstains: mark where the threshold leaves each split.
    """
    traces: list[Figure] = []
    shapes, annotations = [], []
    top = 0.0
    for name, said in splits.items():
        curve = said["risk_coverage"]
        # One wrong answer among the first few says little and would set the scale.
        top = max([top, *(r for c, r in zip(curve["coverage"], curve["risk"], strict=True) if c >= 0.1)])
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": html.escape(name),
                "x": curve["coverage"],
                "y": curve["risk"],
                "line": {"color": marks[name].colour, "width": 2.5, "dash": marks[name].dash},
                "hovertemplate": f"{html.escape(name)}: of the surest %{{x:.0%}}, %{{y:.1%}} are wrong<extra></extra>",
            }
        )
    for name, said in splits.items():
        share = finite(said["answered"]["precision"])
        if abstains and share is not None:
            traces.append(_kept(name, said["answered"], 1 - share, marks[name]))
            top = max(top, 1 - share)
    if precision is not None:
        top = max(top, 1 - precision)
        shapes.append(
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": 1 - precision,
                "y1": 1 - precision,
                "line": {"color": "var(--bad)", "width": 1.5, "dash": "dash"},
            }
        )
        annotations.append(
            note(0, 1 - precision, f" {stated_percent(precision)} right", color="var(--bad)", xref="paper",
                 xanchor="left", yanchor="bottom")
        )  # fmt: skip
    return figure(
        traces,
        x={"title": {"text": "items answered, the surest first"}, "tickformat": ".0%", "range": [0, 1.02]},
        y={"title": {"text": "wrong among the answers"}, "tickformat": ".1~%", "range": [0, 1.12 * top or 1.0]},
        annotations=annotations,
        shapes=shapes,
    )


def _bins(name: str, bins: Sequence[Mapping[str, Any]], mark: Mark, *, calibrated: bool) -> Figure:
    stage = "calibrated" if calibrated else "before calibration"
    shares = [bin["right"] for bin in bins]
    drawn: Figure = {
        "type": "scatter",
        "mode": "lines+markers" if calibrated else "markers",
        "name": f"{html.escape(name)}, {stage}",
        "x": [_odds(bin["confidence"]) for bin in bins],
        "y": shares,
        "marker": {
            "color": mark.colour,
            "symbol": mark.symbol if calibrated else f"{mark.symbol}-open",
            "size": 9 if calibrated else 8,
            "opacity": 1.0 if calibrated else 0.75,
            "line": {"width": 1.5, "color": mark.colour},
        },
        "line": {"color": mark.colour, "width": 1.2, "dash": mark.dash},
        "text": [
            f"<b>{html.escape(name)}</b>, {stage}<br>{bin['n']} answers of confidence {percent(bin['confidence'])}<br>"
            f"right {percent(bin['right'])} (95 % CI {percent_range(bin['right_ci'])})"
            for bin in bins
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }
    if calibrated:
        drawn["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [bin["right_ci"][1] - share for bin, share in zip(bins, shares, strict=True)],
            "arrayminus": [share - bin["right_ci"][0] for bin, share in zip(bins, shares, strict=True)],
            "color": mark.colour,
            "thickness": 1,
            "width": 3,
        }
    return drawn


def _kept(name: str, answered: Mapping[str, Any], risk: float, mark: Mark) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{html.escape(name)}, at the threshold",
        "x": [answered["coverage"]],
        "y": [risk],
        "marker": {
            "color": mark.colour,
            "symbol": mark.symbol,
            "size": 13,
            "line": {"width": 2, "color": "var(--ink)"},
        },
        "text": [
            f"<b>{html.escape(name)}</b>, at the threshold<br>{percent(answered['coverage'])} answered<br>"
            f"right {percent(answered['precision'])} (95 % CI {percent_range(answered['precision_ci'])})"
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _odds(share: float) -> float:
    """Log-odds, within those of the outermost ticks."""
    inside = min(max(share, TICKS[0]), TICKS[-1])
    return log(inside / (1 - inside))
