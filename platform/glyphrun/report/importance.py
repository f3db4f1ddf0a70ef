"""The report's section on what the searched settings explain of the scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glyphrun.evaluation.importance import DEALS, LEVEL
from glyphrun.report.wording import ABSENT, count, listed, percent, setting

CAPTION = (
    "How much of the variance of the scores each setting explains by itself, by an additive model: of numbers a line and a "
    "parabola over their ranks, of choices a constant each. What settings do only together is not in it. Hatched: what a "
    f"setting would seem to explain if its values were dealt out by chance among the configurations ({DEALS} deals; in "
    f"{percent(LEVEL, 0)} of sweeps in which nothing matters, one setting or another passes)."
)
WEAK = 20  # configurations under which even a share beyond chance is a hint


@dataclass(frozen=True)
class ImportanceRow:
    """A setting; share and chance are its bar and the end of chance, in per cent of the variance, at most 100."""

    name: str
    told: str
    share: float
    chance: float
    searched: str
    best: str
    counts: bool


@dataclass(frozen=True)
class ImportanceSection:
    """Sentences and rows, the largest share first; no rows where too little is known."""

    sentences: tuple[str, ...]
    rows: tuple[ImportanceRow, ...]
    caption: str = CAPTION


def importance_section(results: Mapping[str, Any]) -> ImportanceSection | None:
    """The section; None for results of before it was measured."""
    said = results.get("importance")
    if not said:
        return None
    if said["reason"]:
        return ImportanceSection((f"Nothing can be said of what mattered: {said['reason']}.",), ())
    rows = tuple(
        ImportanceRow(
            name=share["setting"],
            told=percent(share["share"], 0),
            share=round(100 * min(share["share"], 1.0), 1),
            chance=round(100 * min(share["chance"], 1.0), 1),
            searched=count(share["searched"]),
            best=ABSENT if share["best"] is None else setting(share["best"]),
            counts=share["share"] > share["chance"],
        )
        for share in said["shares"]
    )
    return ImportanceSection((_compared(said), _found(said, rows)), rows)


def _compared(said: Mapping[str, Any]) -> str:
    left = said["scored"] - said["reached"]
    configurations = said["configurations"]
    return (
        f"{count(configurations)} configurations, compared by exact match on val after {count(said['step'])} steps, the "
        f"last that enough trials reached"
        + (f"; {left} that ended earlier {'is' if left == 1 else 'are'} left out." if left else ".")
    )


def _found(said: Mapping[str, Any], rows: tuple[ImportanceRow, ...]) -> str:
    few = said["configurations"] < WEAK
    counting = [row.name for row in rows if row.counts]
    if not counting:
        more = "so few trials cannot tell" if few else "none of them matters much by itself"
        return f"No setting explains more than chance would: {more}."
    verb = "explains" if len(counting) == 1 else "explain"
    hint = " With so few trials this is a hint." if few else ""
    return f"{listed(counting)} {verb} more than chance would.{hint}"
