"""What the winner learnt by heart: texts that training had shown against texts that it had not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glyphrun.evaluation.significance import binomial_interval, gap_of_shares
from glyphrun.report.tables import Cell
from glyphrun.report.wording import count, finite, percent, percent_range

Splits = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class GroupRow:
    """Items of one split whose texts training had, or had not: n, exact match and CER."""

    split: str
    group: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Generalization:
    """A sentence on each gap, and the rows of splits that hold both kinds of texts."""

    sentences: tuple[str, ...]
    rows: tuple[GroupRow, ...]


def generalization(splits: Splits) -> Generalization:
    """From the winner's scores. Splits of which training knew all texts, or none, say the same as their own row."""
    sentences, rows = [], []
    if _share(splits.get("test")) and _share(splits.get("unseen")):
        sentences.append(_gap("unseen", splits["unseen"], "test", splits["test"]))
    for name, scores in splits.items():
        groups = scores.get("by_training") or {}
        if name != "val" and len(groups) == 2:
            sentences.append(
                _gap(f"texts of {name} that training never showed", groups["unseen"], "its others", groups["seen"])
            )
            rows += [_row(name, group, groups[group]) for group in ("seen", "unseen")]
    return Generalization(tuple(sentences), tuple(rows))


def _gap(one: str, scores: Mapping[str, Any], other: str, others: Mapping[str, Any]) -> str:
    gap = gap_of_shares(*_share(scores), *_share(others))
    points = f"{abs(100 * gap.value):.1f} points {'lower' if gap.value < 0 else 'higher'}"
    span = f"95\u00a0%\u00a0CI of the difference {100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
    sure = "" if gap.low > 0 or gap.high < 0 else ", which chance may explain"
    return f"On {one} exact match is {points} than on {other} ({span}){sure}."


def _share(scores: Mapping[str, Any] | None) -> tuple[int, ...]:
    """How many are right, of how many; nothing where there are no items."""
    exact, n = finite((scores or {}).get("exact")), int((scores or {}).get("n") or 0)
    return (round(exact * n), n) if exact is not None and n else ()


def _row(split: str, group: str, scores: Mapping[str, Any]) -> GroupRow:
    right, n = _share(scores)
    interval = binomial_interval(right, n)
    return GroupRow(
        split,
        "shown in training" if group == "seen" else "never shown",
        (
            Cell(count(n)),
            Cell(percent(interval.value), percent_range((interval.low, interval.high))),
            Cell(percent(scores.get("cer"))),
        ),
    )
