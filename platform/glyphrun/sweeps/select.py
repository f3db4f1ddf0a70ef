"""The choice of a winner: what meets the budget and is on the front, and which of these the experiment's rule takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean
from typing import Literal

from glyphrun.evaluation.pareto import pareto_front
from glyphrun.sweeps.policies import MAXIMIZED, AnyPick, Best, Budget, Cheapest, Objective

Accuracy = Literal["exact", "cer"]

REPEATED = " Configurations are compared by the mean of their trials, and the winner is the best trial of the best one."
BEST: dict[Accuracy, str] = {"exact": "highest exact match", "cer": "lowest character error rate"}
CHEAPEST = {"ms": "lowest median latency", "memory": "least memory", "cost": "lowest cost of a million items"}
LIMITED: dict[Objective, str] = {"ms": "median latency", "memory": "memory", "cost": "cost of a million items"}
LEAST: dict[Objective, str] = {"ms": "fastest", "memory": "smallest", "cost": "cheapest"}
UNITS: dict[Objective, str] = {"ms": "ms", "memory": "MiB", "cost": "a million items"}


class NoCandidate(RuntimeError):
    """Nothing can be chosen; the message says why."""


@dataclass(frozen=True)
class Measured:
    """A trial, or a way of reading: exact match on val (0..1), median latency in milliseconds, character error rate.

    None: it is not known. configuration: trials that share it differ in their seed alone; None stands alone. memory_mib: of
    weights and reading; cost: of a million items.
    """

    name: str
    exact: float
    latency_ms: float
    cer: float | None = 0.0
    configuration: int | None = None
    memory_mib: float | None = None
    cost: float | None = None

    def measure(self, name: Objective) -> float | None:
        """An objective as it was measured; None if it is not known."""
        values = {
            "exact": self.exact,
            "cer": self.cer,
            "ms": self.latency_ms,
            "memory": self.memory_mib,
            "cost": self.cost,
        }
        found = values[name]
        return None if found is None or not isfinite(found) else found

    def value(self, name: Objective) -> float:
        """The same with its sign so that larger is better; what is not known is worst."""
        found = self.measure(name)
        return -float("inf") if found is None else found if name in MAXIMIZED else -found

    def over(self, budget: Budget) -> list[Objective]:
        """Of what it takes more than the budget has, or nobody knows how much."""
        return [name for name, limit in budget.limits.items() if -self.value(name) > limit]


@dataclass(frozen=True)
class Selection:
    """The winner's name, the rule and a sentence that applies it."""

    winner: str
    rule: str
    reason: str


def front_of(measured: Sequence[Measured], names: Sequence[Objective]) -> set[str]:
    """Names of what nothing beats in one of some measures without losing in another; who lacks one of them is not there."""
    known = [one for one in measured if all(one.measure(name) is not None for name in names)]
    return pareto_front({one.name: [one.value(name) for name in names] for one in known})


def select(
    measured: Sequence[Measured],
    budget: Budget,
    objective: Accuracy = "exact",
    rule: AnyPick = Best(),
    *,
    of: str = "measured trials",
) -> Selection:
    """Pick the winner; of: what the measured are, for the sentences.

    Raises NoCandidate if nothing was measured or nothing meets the budget.
    """
    if not measured:
        raise NoCandidate("no trial has a result: see the reasons in the trials' outcome.json")
    within = [one for one in measured if not one.over(budget)]
    if not within:
        raise NoCandidate(_unmet(measured, budget, of))
    alike = {one.name: _alike(one, within) for one in within}
    mean = {name: fmean(other.value(objective) for other in others) for name, others in alike.items()}

    def accuracy_first(one: Measured) -> tuple[float | str, ...]:
        rest: tuple[Objective, ...] = ("ms", "memory", "cost")
        return (-mean[one.name], -one.value(objective), *(-one.value(name) for name in rest), one.name)

    best = chosen = min(within, key=accuracy_first)
    near = within
    if isinstance(rule, Cheapest):
        # Hundredths are no numbers of the machine, and a difference of just one may be a little more.
        near = [one for one in within if mean[one.name] >= mean[best.name] - rule.tolerance - 1e-9]
        chosen = min(near, key=lambda one: (-one.value(rule.by), *accuracy_first(one)))
    repeated = max(map(len, alike.values())) > 1
    same = f" ({abs(mean[chosen.name]):.1%} as the mean of {len(alike[chosen.name])} seeds)" if repeated else ""
    reason = (
        f"{chosen.name} {_accuracy(chosen, objective)}{same} at {_costs(chosen, budget, rule)}; {len(within)} of "
        f"{len(measured)} {of} meet the budget of {_budget(budget)}."
    )
    if isinstance(rule, Cheapest):
        beside = "it is the best itself" if chosen is best else f"the best, {best.name}, {_accuracy(best, objective)}"
        reason += (
            f" It has the {CHEAPEST[rule.by]} of the {len(near)} within {_points(rule.tolerance)} of the best: {beside}"
            f"{'' if chosen is best else f' at {_costs(best, budget, rule)}'}."
        )
    return Selection(chosen.name, _rule(rule, budget, objective, of) + (REPEATED if repeated else ""), reason)


def _alike(one: Measured, others: Sequence[Measured]) -> list[Measured]:
    if one.configuration is None:
        return [one]
    return [other for other in others if other.configuration == one.configuration]


def _rule(rule: AnyPick, budget: Budget, objective: Accuracy, of: str) -> str:
    limited = [LIMITED[name] for name in budget.limits]
    those = f"the {of} whose {_listed(limited)} {'meets' if len(limited) == 1 else 'meet'} the budget"
    if isinstance(rule, Cheapest):
        return (
            f"The {CHEAPEST[rule.by]} of {those} and that come within {_points(rule.tolerance)} of the {BEST[objective]} "
            "on val among them; ties go to the more accurate."
        )
    return f"The {BEST[objective]} on val among {those}; ties go to the faster."


def _accuracy(one: Measured, objective: Accuracy) -> str:
    if objective == "exact":
        return f"reads {one.exact:.1%} of val exactly"
    return "has no CER on val" if one.cer is None else f"has a CER of {one.cer:.2%} on val"


def _costs(one: Measured, budget: Budget, rule: AnyPick) -> str:
    """What it takes of all that is limited or ruled by."""
    by: list[Objective] = [rule.by] if isinstance(rule, Cheapest) else []
    told = {name: one.measure(name) for name in dict.fromkeys([*budget.limits, *by])}
    return _listed([_amount(name, value) for name, value in told.items() if value is not None])


def _amount(name: Objective, value: float) -> str:
    return f"{value:.1f} ms" if name == "ms" else f"{value:.3g} {UNITS[name]}"


def _budget(budget: Budget) -> str:
    return _listed([f"{limit:g} {UNITS[name]}" for name, limit in budget.limits.items()])


def _unmet(measured: Sequence[Measured], budget: Budget, of: str) -> str:
    """Why nothing meets the budget: who is nearest to each limit."""
    nearest = [_least(measured, name) for name in budget.limits]
    return (
        f"none of the {len(measured)} {of} meets the budget of {_budget(budget)}: {_listed(nearest)}; raise the budget or "
        "search smaller recognizers"
    )


def _least(measured: Sequence[Measured], name: Objective) -> str:
    least = max(measured, key=lambda one: one.value(name))
    amount = least.measure(name)
    takes = "takes nobody knows how much" if amount is None else f"takes {_amount(name, amount)}"
    return f"the {LEAST[name]}, {least.name}, {takes}"


def _points(share: float) -> str:
    return f"{100 * share:g} {'point' if share == 0.01 else 'points'}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
