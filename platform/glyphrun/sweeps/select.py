"""The choice of a winner: the best on val among those that meet the latency budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

RULE = "The {best} on val among the trials whose median latency meets the budget; ties go to the faster."
REPEATED = " Configurations are compared by the mean of their trials, and the winner is the best trial of the best one."
BEST = {"exact": "highest exact match", "cer": "lowest character error rate"}


class NoCandidate(RuntimeError):
    """No trial can be chosen; the message says why."""


@dataclass(frozen=True)
class Measured:
    """A trial's exact match on val (0..1), median latency in milliseconds and character error rate.

    configuration: trials that share it differ in their seed alone; None stands alone.
    """

    trial: str
    exact: float
    latency_ms: float
    cer: float = 0.0
    configuration: int | None = None

    def value(self, objective: Literal["exact", "cer"]) -> float:
        """Larger is better."""
        return self.exact if objective == "exact" else -self.cer


@dataclass(frozen=True)
class Selection:
    """The winning trial's id, the rule and a sentence that applies it."""

    winner: str
    rule: str
    reason: str


def select(measured: Sequence[Measured], budget_ms: float, objective: Literal["exact", "cer"] = "exact") -> Selection:
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
    alike = {one.trial: _alike(one, within) for one in within}
    mean = {trial: fmean(other.value(objective) for other in others) for trial, others in alike.items()}
    best = min(within, key=lambda one: (-mean[one.trial], -one.value(objective), one.latency_ms, one.trial))
    repeated = max(map(len, alike.values())) > 1
    said = f"reads {best.exact:.1%} of val exactly" if objective == "exact" else f"has a CER of {best.cer:.2%} on val"
    of = f" ({abs(mean[best.trial]):.1%} as the mean of {len(alike[best.trial])} seeds)" if repeated else ""
    reason = (
        f"{best.trial} {said}{of} at {best.latency_ms:.1f} ms; {len(within)} of {len(measured)} measured trials meet the "
        f"budget of {budget_ms:g} ms."
    )
    return Selection(best.trial, RULE.format(best=BEST[objective]) + (REPEATED if repeated else ""), reason)


def _alike(one: Measured, others: Sequence[Measured]) -> list[Measured]:
    if one.configuration is None:
        return [one]
    return [other for other in others if other.configuration == one.configuration]
