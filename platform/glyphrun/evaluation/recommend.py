"""Which of several measured settings to take, for three needs, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WITHIN = 0.01  # of CER: one point


@dataclass(frozen=True)
class Recommendation:
    """For whom, which row by its name (None if none serves), and the sentence that justifies it."""

    need: str
    name: str | None
    sentence: str


def recommend(rows: Sequence[Mapping[str, Any]], budget_ms: float | None = None) -> list[Recommendation]:
    """The most accurate row, the fastest within one point of CER of it, and the most accurate within a latency budget.

    rows: with name, cer (None where texts have no characters; then exact counts), exact, ms an item and against_greedy. Raises ValueError
    without rows.
    """
    if not rows:
        raise ValueError("nothing was measured, so nothing can be recommended")
    best = min(rows, key=_rank)
    near = [row for row in rows if _error(row) <= _error(best) + WITHIN]
    fastest = min(near, key=lambda row: (row["ms"], *_rank(row)))
    found = [
        Recommendation("most accurate", best["name"], f"{_told(best)}, the lowest of {len(rows)}; {_against(best)}"),
        Recommendation(
            "fastest within one point of the most accurate",
            fastest["name"],
            f"{_told(fastest)}; {_beside(fastest, best)}",
        ),
    ]
    if budget_ms is not None:
        within = [row for row in rows if row["ms"] <= budget_ms]
        if within:
            chosen = min(within, key=_rank)
            sentence = f"{_told(chosen)}, the lowest of {len(within)} within {budget_ms:g} ms; {_against(chosen)}"
            found.append(Recommendation(f"best within {budget_ms:g} ms", chosen["name"], sentence))
        else:
            quickest = min(rows, key=lambda row: row["ms"])
            sentence = f"none: {quickest['name']} is the quickest with {quickest['ms']:.2f} ms an item"
            found.append(Recommendation(f"best within {budget_ms:g} ms", None, sentence))
    return found


def _rank(row: Mapping[str, Any]) -> tuple[float, float, float]:
    return _error(row), -row["exact"], row["ms"]


def _error(row: Mapping[str, Any]) -> float:
    """CER, or where texts have no characters the share of wrong answers."""
    return 1 - row["exact"] if row["cer"] is None else float(row["cer"])


def _beside(fastest: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    if fastest is best:
        return "nothing faster is as near"
    return (
        f"{best['ms'] / fastest['ms']:.1f} times as fast as the most accurate for "
        f"{100 * (_error(fastest) - _error(best)):.2f} points more"
    )


def _told(row: Mapping[str, Any]) -> str:
    cer = "" if row["cer"] is None else f"CER {100 * row['cer']:.2f} %, "
    return f"{cer}exact {100 * row['exact']:.1f} %, {row['ms']:.2f} ms an item"


def _against(row: Mapping[str, Any]) -> str:
    measured = row["against_greedy"]
    what, change, sign = ("CER", measured["cer"], 1) if measured["cer"] else ("exact match", measured["exact"], -1)
    low, high = change["ci"]
    if change["difference"] == low == high == 0:
        return "greedy reading itself, or the same answers"
    sure = "surely" if (high < 0 if sign > 0 else low > 0) else "not surely"
    return (
        f"{100 * change['difference']:+.2f} points of {what} against greedy reading (95 % interval {100 * low:+.2f} to "
        f"{100 * high:+.2f}), so {sure} better"
    )
