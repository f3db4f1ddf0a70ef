"""Parallel coordinates over the search space (Inselberg 1985): an axis a setting, a line a trial.

Axes lie one below the other, for a name and its values have room there on a phone as on a desk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from textwrap import wrap
from typing import Any

from glyphrun.report.canvas import Results, winners
from glyphrun.report.palette import family_of
from glyphrun.report.wording import finite, percent, setting

LEVELS = 5
EDGE = 6.0  # of the width in per cent, at either end of an axis of numbers
FEW = 6  # numbers of which there are at most so many are choices
NAMED = 10  # choices that are named on their axis
NAME, BELOW, LINE = 27, 12, 15  # pixels over an axis, under its ticks, and of a line of text
PHONE = 3.3  # pixels in a hundredth of the width of a phone
LETTER = 6.6
MOST_LINES = 5


@dataclass(frozen=True)
class Tick:
    """A value on an axis, at per cent of its length."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """An axis at y pixels; room: the width of a tick's text in per cent, and how many lines it may have."""

    name: str
    y: float
    ticks: tuple[Tick, ...]
    room: float
    lines: int


@dataclass(frozen=True)
class Line:
    """A trial: SVG paths of its line and its dots; level: 1 to 5, the fifth of the scores that it is among, 0 without one."""

    trial: str
    told: str
    level: int
    won: bool
    path: str
    dots: str


@dataclass(frozen=True)
class Parallel:
    """Axes and lines, the best trial's last; height in pixels."""

    axes: tuple[Axis, ...]
    lines: tuple[Line, ...]
    height: float


def parallel_coordinates(results: Results) -> Parallel | None:
    """Of the families, of all settings that were sampled and of exact match on val; None if nothing was searched."""
    trials = results["trials"]
    columns = {name: values for name, values in _columns(trials).items() if len(set(map(_text, values.values()))) > 1}
    if not columns:
        return None
    axes, places, y = [], [], 0.0
    for name, values in columns.items():
        scale = _scale(values)
        lines = 1
        if not scale.numbers:
            letters = max(int(PHONE * scale.room / LETTER), 1)
            lines = min(max(len(wrap(tick.text, letters)) for tick in scale.ticks), MOST_LINES)
        axes.append(Axis(name, y + NAME, scale.ticks, scale.room, lines))
        places.append(scale.at)
        y += NAME + BELOW + LINE * lines
    scores = {str(trial["id"]): exact for trial in trials if (exact := _exact(trial)) is not None}
    if scores:
        scale = _numbers(scores, lambda share: f"{100 * share:g}\u00a0%")
        axes.append(Axis("exact match on val", y + NAME, scale.ticks, scale.room, 1))
        places.append(scale.at)
        y += NAME + BELOW + LINE
    levels = _levels(scores)
    drawn = [_line(trial, axes, places, levels, winners(results)[0]) for trial in trials]
    return Parallel(tuple(axes), tuple(sorted(drawn, key=lambda line: (line.won, line.level))), y)


@dataclass(frozen=True)
class _Scale:
    at: Mapping[str, float]  # per cent of the axis, for each trial that has a value
    ticks: tuple[Tick, ...]
    room: float
    numbers: bool


def _columns(trials: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each axis, what each trial has, by its id."""
    columns: dict[str, dict[str, Any]] = {"family": {str(trial["id"]): family_of(trial) for trial in trials}}
    for trial in trials:
        for name, value in (trial.get("changes") or {}).items():
            columns.setdefault(name, {})[str(trial["id"])] = value
    return columns


def _scale(values: Mapping[str, Any]) -> _Scale:
    known = [finite(value) for value in values.values() if not isinstance(value, bool)]
    numbers = len(known) == len(values) and None not in known
    if numbers and len(set(known)) > FEW:
        return _numbers(values, lambda value: f"{value:g}")
    found = {_text(value): value for value in values.values()}
    ordered = sorted(found, key=lambda text: found[text]) if numbers else sorted(found)
    band = 100 / len(ordered)
    # Trials of one choice lie side by side, so that their lines can be told apart.
    spread = {trial: (number + 0.5) / len(values) - 0.5 for number, trial in enumerate(values)}
    at = {trial: band * (ordered.index(_text(value)) + 0.5 + 0.4 * spread[trial]) for trial, value in values.items()}
    named = ordered if len(ordered) <= NAMED else [ordered[0], ordered[-1]]
    ticks = [Tick(band * (ordered.index(text) + 0.5), setting(found[text])) for text in named]
    return _Scale(at, tuple(ticks), min(band, 40.0), numbers=False)


def _numbers(values: Mapping[str, Any], told: Any) -> _Scale:
    low, high = min(values.values()), max(values.values())
    # What was drawn by its logarithm lies near the low end.
    middle = median(values.values())
    by_decades = low > 0 and high / low >= 10 and (middle - low) / (high - low) < 0.25
    if high == low:
        low, high = low - 0.5, high + 0.5

    def place(value: float) -> float:
        ends = [math.log(end) for end in (low, high)] if by_decades else [low, high]
        share = ((math.log(value) if by_decades else value) - ends[0]) / (ends[1] - ends[0])
        return EDGE + (100 - 2 * EDGE) * share

    marks = _decades(low, high) if by_decades else _round_numbers(low, high)
    return _Scale(
        {trial: place(value) for trial, value in values.items()},
        tuple(Tick(round(place(mark), 2), told(mark)) for mark in marks),
        2 * EDGE,
        numbers=True,
    )


def _round_numbers(low: float, high: float) -> list[float]:
    """Three to six steps of 1, 2 or 5 times a power of ten."""
    size = 10 ** math.floor(math.log10((high - low) / 2))
    step = next(size * factor for factor in (1, 2, 5, 10) if (high - low) / (size * factor) <= 5)
    return [round(step * number, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 3) if high / low < 1e3 else (1,)
    marks = [step * 10.0**power for power in powers for step in steps]
    inside = [mark for mark in marks if low * 0.999 <= mark <= high * 1.001]
    return inside[:: math.ceil(len(inside) / 6)] if inside else [low, high]


def _levels(scores: Mapping[str, float]) -> dict[str, int]:
    ordered = sorted(scores, key=lambda trial: scores[trial])
    return {trial: 1 + LEVELS * place // len(ordered) for place, trial in enumerate(ordered)}


def _line(
    trial: Mapping[str, Any],
    axes: Sequence[Axis],
    places: Sequence[Mapping[str, float]],
    levels: Mapping[str, int],
    won: Collection[str],
) -> Line:
    name, exact = str(trial["id"]), _exact(trial)
    points = [(round(at[name], 2), round(axis.y, 1)) for axis, at in zip(axes, places, strict=True) if name in at]
    said = [family_of(trial), *(f"{key} {setting(value)}" for key, value in (trial.get("changes") or {}).items())]
    score = f"exact match {percent(exact)}" if exact is not None else f"{trial.get('status', 'ended')} without a score"
    return Line(
        trial=name,
        told=f"{name}: {score}; {', '.join(said)}",
        level=levels.get(name, 0),
        won=name in won,
        path="M" + " L".join(f"{x:g} {y:g}" for x, y in points) if points else "",
        dots=" ".join(f"M{x:g} {y:g}h0" for x, y in points),
    )


def _exact(trial: Mapping[str, Any]) -> float | None:
    return finite((trial.get("val") or {}).get("exact"))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
