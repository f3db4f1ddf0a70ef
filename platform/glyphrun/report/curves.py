"""Learning curves of the trials, with the places where ASHA stopped them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from glyphrun.report.canvas import Figure, Results, figure, winners
from glyphrun.report.palette import Mark, family_marks, family_of
from glyphrun.report.wording import finite

MOST_POINTS = 120


def learning_curves(results: Results, measure: str) -> Figure:
    """A line a trial over optimizer steps; measure is ``exact`` or ``train_loss``. The winner lies on top.

    A cross ends a trial that was stopped early, an open triangle one that failed, a star the winner.
    """
    marks = family_marks(results["trials"])
    won, word = winners(results)
    traces: list[Figure] = []
    for trial in sorted(results["trials"], key=lambda trial: trial.get("id") in won):
        curve = _thinned(
            [
                (int(point["step"]), float(f"{value:.4g}"))
                for point in trial.get("curve") or ()
                if (value := finite(point.get(measure))) is not None
            ]
        )
        if curve:
            traces += _curve(
                trial,
                curve,
                marks[family_of(trial)],
                measure,
                won=word if trial.get("id") in won else "",
                opacity=0.75 if len(results["trials"]) <= 16 else 0.4,
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
    return figure(traces, x={"title": {"text": "optimizer steps"}, "rangemode": "tozero"}, y=y)


def _thinned(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """As many points as a screen can show; the last one stays."""
    every = -(-len(curve) // MOST_POINTS)
    return curve[::-1][::every][::-1] if curve else curve


def _curve(
    trial: Mapping[str, Any],
    curve: Sequence[tuple[int, float]],
    mark: Mark,
    measure: str,
    *,
    won: str,
    opacity: float,
) -> list[Figure]:
    """won: what the winner is called, empty for the others."""
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
        "opacity": 1.0 if won else opacity,
        "hovertemplate": f"<b>{name}</b><br>step %{{x}}: {shown}<extra></extra>",
    }
    end = {"stopped": ("x-thin", 8), "failed": ("triangle-down-open", 10)}.get(str(trial.get("status")))
    if won:
        end = ("star", 15)
    if end is None:
        return [line]
    symbol, size = end
    words = {"stopped": "stopped early", "failed": "failed"}.get(str(trial.get("status")), won)
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
        "hovertemplate": f"<b>{name}</b>: {won or words} at step %{{x}}<extra></extra>",
    }
    return [line, last]
