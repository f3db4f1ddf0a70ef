"""A colour, a marker and a dash for each family, the same in the plots and in the legend.

Colours are CSS custom properties that the page resolves for the reader's colour scheme; marker and dash carry the same
information to those who do not see the colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SHAPES = (
    ("circle", "solid", "M0 -5 A5 5 0 1 1 0 5 A5 5 0 1 1 0 -5 Z", ""),
    ("square", "dash", "M-4.5 -4.5 H4.5 V4.5 H-4.5 Z", "7 4"),
    ("diamond", "dot", "M0 -6 L6 0 L0 6 L-6 0 Z", "2 3"),
    ("triangle-up", "dashdot", "M0 -5.5 L5.5 4.5 H-5.5 Z", "7 3 2 3"),
    ("pentagon", "longdash", "M0 -5.5 L5.5 -1.5 L3.5 5 H-3.5 L-5.5 -1.5 Z", "11 4"),
    ("hexagon", "longdashdot", "M-3 -5 H3 L6 0 L3 5 H-3 L-6 0 Z", "11 3 2 3"),
)
_SPLITS = {"test": 0, "unseen": 1, "val": 2}  # the shapes of the splits that have a colour of their own


@dataclass(frozen=True)
class Mark:
    """How one family, or one split, is drawn: Plotly's marker and dash, and the same two as SVG path and stroke-dasharray."""

    family: str
    colour: str
    symbol: str
    dash: str
    svg_path: str
    svg_dash: str


def family_marks(trials: Sequence[Mapping[str, Any]]) -> dict[str, Mark]:
    """A mark for each family, in order of first appearance; from the seventh on colours come again with another shape."""
    families = dict.fromkeys(family_of(trial) for trial in trials)
    marks = {}
    for index, family in enumerate(families):
        symbol, dash, path, svg_dash = _SHAPES[(index + index // len(_SHAPES)) % len(_SHAPES)]
        colour = f"var(--series-{index % len(_SHAPES) + 1})"
        marks[family] = Mark(family, colour, symbol, dash, path, svg_dash)
    return marks


def family_of(trial: Mapping[str, Any]) -> str:
    """The trial's family; trials without one make a family of their own."""
    return str(trial.get("family") or "other")


def split_marks(names: Iterable[str]) -> dict[str, Mark]:
    """A mark for each split: the colour of its bars, or for a split of any other name one that these leave free."""
    marks = {}
    for index, name in enumerate(names):
        place = _SPLITS.get(name, len(_SPLITS) + index) % len(_SHAPES)
        symbol, dash, path, svg_dash = _SHAPES[place]
        colour = f"var(--split-{name}-line)" if name in _SPLITS else f"var(--series-{place + 1})"
        marks[name] = Mark(name, colour, symbol, dash, path, svg_dash)
    return marks
