"""What each trial's recognizer costs beside what it reads: the cost table, and accuracy against each cost in turn."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glyphrun.evaluation.pareto import pareto_front
from glyphrun.report.canvas import Figure, Results, exceeded, figure, note, winners
from glyphrun.report.palette import Mark, family_marks, family_of
from glyphrun.report.tables import Cell
from glyphrun.report.wording import ABSENT, finite, magnitude, mebibytes, milliseconds, percent, percent_range, rate

Trial = Mapping[str, Any]


@dataclass(frozen=True)
class Cost:
    """A cost of reading: its key in figures' names, headings of its axis and column, and where and how it is told.

    less_is_better: of a rate, more is. measure: what a budget calls it, if it may limit it.
    """

    key: str
    name: str
    axis: str
    of: Callable[[Trial], float | None]
    told: Callable[[object], str]
    less_is_better: bool = True
    caption: str = ""
    measure: str = ""


def _latency(trial: Trial) -> float | None:
    return finite((trial.get("latency_ms") or {}).get("p50"))


def _multiply_adds(trial: Trial) -> float | None:
    flops = finite(trial.get("gflops"))
    return None if flops is None else flops / 2  # a multiply-add is counted as two operations


def _price(trial: Trial) -> float | None:
    return finite((trial.get("objectives") or {}).get("cost"))


COSTS = (
    Cost("latency", "Latency", "latency of an item, p50 (ms)", _latency, milliseconds, measure="ms"),
    Cost(
        "memory",
        "Memory",
        "memory (MiB)",
        lambda trial: finite(trial.get("memory_mib")),
        mebibytes,
        caption="Memory is that of the weights and of all tensors that live at once while an item is read.",
        measure="memory",
    ),
    Cost("parameters", "Parameters", "parameters", lambda trial: finite(trial.get("parameters")), magnitude),
    Cost(
        "adds",
        "Multiply-adds",
        "multiply-adds of an item (10⁹)",
        _multiply_adds,
        lambda value: f"{value:.3g}\u00a0G",
        caption="Multiply-adds are those of an item, in 10⁹.",
    ),
    Cost(
        "rate",
        "Items/s",
        "items a second, in batches",
        lambda trial: finite(trial.get("items_per_s")),
        rate,
        less_is_better=False,
        caption="Items a second are read in batches.",
    ),
    Cost(
        "price",
        "Cost of a million",
        "cost of a million items",
        _price,
        lambda value: f"{value:.3g}",
        caption="The cost of a million items is that of reading them one after another at the stated price of an hour.",
        measure="cost",
    ),
)
FRONT = ("latency", "memory", "parameters")  # beside accuracy: what the front of all of them is about


@dataclass(frozen=True)
class CostRow:
    """A trial's costs; on_front: no other is at least as good in accuracy and in every cost of ``FRONT``."""

    id: str
    family: str
    won: bool
    on_front: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class CostSection:
    """axes: the figures by name, and what each shows; columns: a heading and whether high or low is best."""

    axes: tuple[tuple[str, str], ...]
    columns: tuple[tuple[str, str], ...]
    rows: tuple[CostRow, ...]
    caption: str


def cost_section(results: Results) -> CostSection:
    """What the page says of costs."""
    known = known_costs(results)
    return CostSection(
        axes=tuple((_figure_of(cost, known), cost.name) for cost in known),
        columns=(("Exact match", "high"), *((cost.name, "low" if cost.less_is_better else "high") for cost in known)),
        rows=tuple(cost_rows(results)),
        caption=" ".join(cost.caption for cost in known if cost.caption),
    )


def figures(results: Results) -> dict[str, Figure]:
    """A figure for each cost that is known; the first is called scatter."""
    known = known_costs(results) or COSTS[:1]
    return {_figure_of(cost, known): accuracy_against(results, cost) for cost in known}


def _figure_of(cost: Cost, known: Sequence[Cost]) -> str:
    return "scatter" if cost is known[0] else f"scatter-{cost.key}"


def known_costs(results: Results) -> list[Cost]:
    """Those that were measured of any trial with a score."""
    scored = [trial for trial in results["trials"] if _exact(trial) is not None]
    return [cost for cost in COSTS if any(cost.of(trial) is not None for trial in scored)]


def cost_rows(results: Results) -> list[CostRow]:
    """A row a trial with a score, the most accurate first, with exact match and the cells of ``known_costs``."""
    costs, front, (won, _) = known_costs(results), front_of_all(results), winners(results)
    scored = sorted((trial for trial in results["trials"] if _exact(trial) is not None), key=lambda one: -_exact(one))
    return [
        CostRow(
            id=str(trial["id"]),
            family=family_of(trial),
            won=str(trial["id"]) in won,
            on_front=trial["id"] in front,
            cells=(
                Cell(percent(_exact(trial)), percent_range(trial["val"].get("exact_ci")), _exact(trial)),
                *(_cell(cost, trial) for cost in costs),
            ),
        )
        for trial in scored
    ]


def front_of_all(results: Results) -> set[str]:
    """Trials that no other is at least as good as in accuracy, latency, memory and parameters, as far as these are known."""
    costs = [cost for cost in known_costs(results) if cost.key in FRONT]
    points = {}
    for trial in results["trials"]:
        exact, values = _exact(trial), [cost.of(trial) for cost in costs]
        if exact is not None and None not in values:
            points[str(trial["id"])] = [exact, *(-value for value in values if value is not None)]
    return pareto_front(points) if costs else set()


def accuracy_against(results: Results, cost: Cost) -> Figure:
    """A point a trial with a score and this cost, and the front of these two as a step line.

    The budget of latency is a vertical line.
    """
    marks = family_marks(results["trials"])
    ringed = front_of_all(results)
    points = [
        _Point(trial, value, exact)
        for trial in results["trials"]
        if (value := cost.of(trial)) is not None and (exact := _exact(trial)) is not None
    ]
    traces = [_step_line(points, cost)] if points else []
    for family, mark in marks.items():
        members = [point for point in points if family_of(point.trial) == family]
        if members:
            traces.append(_points(members, mark, cost, ringed))
    budget = finite(results.get("budget", {}).get("latency_ms")) if cost.key == "latency" else None
    axis = _axis([point.x for point in points] + ([budget] if budget is not None else []), cost)
    shapes, annotations = [], []
    if budget is not None:
        line = {"color": "var(--bad)", "width": 1.5, "dash": "dash"}
        shapes.append({"type": "line", "x0": budget, "x1": budget, "y0": 0, "y1": 1, "yref": "paper", "line": line})
        at = math.log10(budget) if axis["type"] == "log" else budget
        annotations.append(
            note(at, 0, f" budget {budget:g} ms ", color="var(--bad)", yref="paper", yanchor="bottom",
                 xanchor="right" if at > sum(axis["range"]) / 2 else "left")
        )  # fmt: skip
    won, word = winners(results)
    for point in points:
        if str(point.trial["id"]) in won:
            at = math.log10(point.x) if axis["type"] == "log" else point.x
            annotations.append(
                note(at, point.y, word, color="var(--ink)", yanchor="bottom", yshift=13, bold=True)
            )  # fmt: skip
            traces.append(_ring(point))
    drawn = figure(
        traces,
        x=axis,
        y={"title": {"text": "exact match on val"}, "tickformat": ".0%", "automargin": True},
        annotations=annotations,
        shapes=shapes,
    )
    drawn["layout"]["margin"]["t"] = 34  # the word over a winner at the top
    return drawn


@dataclass(frozen=True)
class _Point:
    trial: Trial
    x: float
    y: float


def _exact(trial: Trial) -> Any:
    return finite((trial.get("val") or {}).get("exact"))


def _cell(cost: Cost, trial: Trial) -> Cell:
    value = cost.of(trial)
    if value is None:
        return Cell(ABSENT)
    latency = trial.get("latency_ms") or {}
    over = cost.measure in exceeded(trial)
    return Cell(
        cost.told(value),
        f"p95 {milliseconds(latency.get('p95'))}" if cost.key == "latency" else "",
        value,
        "over budget" if over else "",
    )


def _step_line(points: Sequence[_Point], cost: Cost) -> Figure:
    sign = -1 if cost.less_is_better else 1
    front = pareto_front({str(number): (point.y, sign * point.x) for number, point in enumerate(points)})
    chosen = sorted((points[int(number)] for number in front), key=lambda point: point.x)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "x": [point.x for point in chosen],
        "y": [point.y for point in chosen],
        "line": {"color": "var(--ink-soft)", "width": 1.5, "shape": "hv" if cost.less_is_better else "vh"},
        "hoverinfo": "skip",
    }


def _axis(values: Sequence[float], cost: Cost) -> Figure:
    """From 0, or by decades where the largest is more than 20 times the smallest."""
    axis = {"title": {"text": cost.axis}, "type": "linear"}
    most, least = max(values, default=1.0) or 1.0, min(values, default=1.0)
    if least > 0 and most / least > 20:
        decades = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
        steps = (1, 2, 5) if len(decades) <= 3 else (1,)
        ticks = [step * 10.0**power for power in decades for step in steps]
        return {
            **axis,
            "type": "log",
            "range": [math.log10(least) - 0.12, math.log10(most) + 0.12],
            "tickvals": ticks,
            "ticktext": [magnitude(tick).replace(" ", "") for tick in ticks],
        }
    format = {"tickformat": "~s"} if most >= 1000 else {}
    return {**axis, **format, "range": [0, 1.18 * most], "nticks": 7}


def _points(points: Sequence[_Point], mark: Mark, cost: Cost, ringed: set[str]) -> Figure:
    """Filled markers within the budget, open ones beyond it, faint ones for trials that were stopped before the end."""
    intervals = [point.trial["val"].get("exact_ci") or (point.y, point.y) for point in points]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": html.escape(mark.family),
        "x": [point.x for point in points],
        "y": [point.y for point in points],
        "marker": {
            "color": mark.colour,
            "size": 11,
            "opacity": [0.45 if point.trial.get("status") == "stopped" else 1.0 for point in points],
            "symbol": [mark.symbol if point.trial.get("within_budget") else f"{mark.symbol}-open" for point in points],
            "line": {
                "width": 2,
                "color": ["var(--ink)" if point.trial["id"] in ringed else mark.colour for point in points],
            },
        },
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [high - point.y for point, (_, high) in zip(points, intervals, strict=True)],
            "arrayminus": [point.y - low for point, (low, _) in zip(points, intervals, strict=True)],
            "color": "var(--whisker)",
            "thickness": 1,
            "width": 3,
        },
        "text": [
            f"<b>{html.escape(str(point.trial['id']))}</b> {html.escape(str(point.trial.get('recognizer', '')))}"
            f"<br>exact match {percent(point.y)} (95 % CI {percent_range(interval)})"
            f"<br>{cost.name.lower()} {cost.told(point.x)}"
            for point, interval in zip(points, intervals, strict=True)
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _ring(point: _Point) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "winner",
        "x": [point.x],
        "y": [point.y],
        "marker": {"size": 22, "symbol": "circle-open", "color": "var(--ink)", "line": {"width": 2}},
        "hoverinfo": "skip",
    }
