"""The choice of a winner: the best exact match on val among those that meet the latency budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RULE = "The highest exact match on val among the trials whose median latency meets the budget; ties go to the faster."


class NoCandidate(RuntimeError):
    """No trial can be chosen; the message says why."""


@dataclass(frozen=True)
class Measured:
    """A trial's accuracy on val (exact match, 0..1) and median latency in milliseconds."""

    trial: str
    exact: float
    latency_ms: float


@dataclass(frozen=True)
class Selection:
    """The winning trial's id, the rule and a sentence that applies it."""

    winner: str
    rule: str
    reason: str


def select(measured: Sequence[Measured], budget_ms: float) -> Selection:
    """Pick the winner. Raises NoCandidate if nothing was measured or nothing meets the budget."""
    if not measured:
        raise NoCandidate("no trial has a result: see the reasons in the trials' outcome.json")
    within = [one for one in measured if one.latency_ms <= budget_ms]
    if not within:
        fastest = min(measured, key=lambda one: one.latency_ms)
        raise NoCandidate(
            f"no trial meets the latency budget of {budget_ms:g} ms: the fastest, {fastest.trial}, takes "
            f"{fastest.latency_ms:.1f} ms; raise the budget or search smaller recognizers"
        )
    best = min(within, key=lambda one: (-one.exact, one.latency_ms, one.trial))
    reason = (
        f"{best.trial} reads {best.exact:.1%} of val exactly at {best.latency_ms:.1f} ms; {len(within)} of "
        f"{len(measured)} measured trials meet the budget of {budget_ms:g} ms."
    )
    return Selection(best.trial, RULE, reason)


def pareto_front(measured: Sequence[Measured]) -> set[str]:
    """The trials that no other beats in one of accuracy and latency without losing in the other."""
    return {
        one.trial
        for one in measured
        if not any(
            other.exact >= one.exact
            and other.latency_ms <= one.latency_ms
            and (other.exact > one.exact or other.latency_ms < one.latency_ms)
            for other in measured
        )
    }
