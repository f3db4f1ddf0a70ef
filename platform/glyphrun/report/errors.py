"""Where the winner errs: exact match by length, and which character is read as which."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glyphrun.evaluation.significance import binomial_interval
from glyphrun.report.canvas import Figure, Results, figure, with_layout
from glyphrun.report.wording import finite

_SPLITS = ("val", "test", "unseen")  # those with a colour of their own
_GROUPS = 6


@dataclass(frozen=True)
class SplitColour:
    """A split's name and the colours of its bars and of what is written on them."""

    name: str
    colour: str
    on: str


def split_colours(results: Results) -> list[SplitColour]:
    """Of the splits that have scores by length, in the order in which their bars stand."""
    names = [name for name in results["splits"] if results["splits"][name].get("by_length")]
    names.sort(key=lambda name: (_SPLITS.index(name) if name in _SPLITS else len(_SPLITS), name))
    return [
        SplitColour(name, f"var(--split-{name})", f"var(--on-split-{name})")
        if name in _SPLITS
        else SplitColour(name, "var(--series-4)", "var(--paper)")
        for name in names
    ]


def exact_by_length(results: Results) -> Figure:
    """Bars of exact match by the length of the truth, a group a length, a bar a split, whiskers for 95 % intervals.

    Where texts are of many lengths a group is a range of them, each with about as many items.
    """
    splits = split_colours(results)
    groups = _length_groups([results["splits"][split.name]["by_length"] for split in splits])
    texts = [_group_text(group) for group in groups]
    traces = []
    for split in splits:
        found = [_of_group(results["splits"][split.name]["by_length"], group) for group in groups]
        present = [(text, *share) for text, share in zip(texts, found, strict=True) if share]
        intervals = [binomial_interval(right, n) for _, right, n in present]
        traces.append(
            {
                "type": "bar",
                "name": html.escape(split.name),
                "x": [text for text, _, _ in present],
                "y": [interval.value for interval in intervals],
                "text": [f"{100 * interval.value:.0f}" for interval in intervals],
                "textposition": "inside",
                "insidetextanchor": "start",
                "textangle": 0,
                "textfont": {"color": split.on, "size": 12},
                "marker": {"color": split.colour},
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [interval.high - interval.value for interval in intervals],
                    "arrayminus": [interval.value - interval.low for interval in intervals],
                    "color": "var(--ink-soft)",
                    "thickness": 1,
                    "width": 3,
                },
                "customdata": [n for _, _, n in present],
                "hovertemplate": f"{html.escape(split.name)}, %{{x}}: %{{y:.1%}} of %{{customdata}}<extra></extra>",
            }
        )
    drawn = figure(
        traces,
        x={
            "title": {"text": "length of the truth, in characters"},
            "type": "category",
            "categoryarray": texts,
        },
        y={"title": {"text": "exact match"}, "tickformat": ".0%", "range": [0, 1.04]},
    )
    return with_layout(drawn, barmode="group", bargap=0.22, bargroupgap=0.06)


def _length_groups(by_length: Sequence[Mapping[str, Mapping[str, float]]]) -> list[list[int]]:
    """Lengths that are shown together: each alone while they are few."""
    counts: dict[int, int] = {}
    for scores in by_length:
        for length, one in scores.items():
            counts[int(length)] = counts.get(int(length), 0) + int(one["n"])
    lengths = sorted(counts)
    if len(lengths) <= _GROUPS:
        return [[number] for number in lengths]
    whole, before = sum(counts.values()), 0
    groups: list[list[int]] = [[] for _ in range(_GROUPS)]
    for number in lengths:
        groups[min(_GROUPS * before // whole, _GROUPS - 1)].append(number)
        before += counts[number]
    return [group for group in groups if group]


def _of_group(by_length: Mapping[str, Mapping[str, float]], group: Sequence[int]) -> tuple[int, int] | None:
    """How many are right, of how many; None for a split without such lengths."""
    scores = [by_length[str(length)] for length in group if str(length) in by_length]
    right = sum(round((finite(one.get("exact")) or 0.0) * int(one["n"])) for one in scores)
    n = sum(int(one["n"]) for one in scores)
    return (right, n) if n else None


def _group_text(group: Sequence[int]) -> str:
    if group[0] == group[-1]:
        return "not readable" if group[0] == 0 else str(group[0])
    return f"{group[0]} to {group[-1]}"


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
