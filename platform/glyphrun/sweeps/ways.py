"""Ways of reading with what a sweep has trained, and the choice of one: who reads, how, how well and at what cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.point_costs import PointCost
from glyphrun.sweeps.points import DecodePoint
from glyphrun.sweeps.policies import Budget, Cheapest, Objective
from glyphrun.sweeps.select import Measured, NoCandidate, Selection, front_of, select
from glyphrun.sweeps.training import cost_of_a_million

SCORES = ("n", "exact", "exact_ci", "cer", "cer_ci", "wer", "against_greedy")


@dataclass(frozen=True)
class Way:
    """A point of a decode sweep with its row of scores on val, and what it costs."""

    point: DecodePoint
    row: dict[str, Any]
    cost: PointCost

    @property
    def name(self) -> str:
        return str(self.row["name"])

    def measured(self, price_per_hour: float | None) -> Measured:
        """What it is chosen by."""
        return Measured(
            self.name,
            self.row["exact"],
            self.cost.latency.p50,
            self.row["cer"],
            memory_mib=self.cost.memory_mib,
            cost=None if price_per_hour is None else cost_of_a_million(self.cost.latency.p50, price_per_hour),
        )


@dataclass(frozen=True)
class Ways:
    """All ways of reading that were tried, the survivors among the trials, and the bundles that they were read with."""

    survivors: list[str]
    readers: dict[str, Path]
    ways: list[Way]
    left_out: int

    def choose(self, experiment: Experiment) -> tuple[Way, Selection]:
        """What the experiment's rule picks from the front. Raises NoCandidate if nothing of it meets the budget."""
        measured = [way.measured(experiment.budget.price_per_hour) for way in self.ways]
        measures = measures_of(experiment)
        front = front_of(measured, measures)
        if not front:
            raise NoCandidate(
                f"no way of reading has all of {', '.join(measures)}: change the objectives or the budget"
            )
        selection = select(
            [one for one in measured if one.name in front],
            experiment.budget,
            experiment.accuracy,
            experiment.pick,
            of=f"ways of reading on the Pareto front of {' and '.join([', '.join(measures[:-1]), measures[-1]])}",
        )
        return next(way for way in self.ways if way.name == selection.winner), selection

    def to_json(self, experiment: Experiment, chosen: Way) -> dict[str, Any]:
        """What results.json says of the search."""
        measures = measures_of(experiment)
        measured = {way.name: way.measured(experiment.budget.price_per_hour) for way in self.ways}
        front = front_of(list(measured.values()), measures)
        return {
            "survivors": self.survivors,
            "left_out": self.left_out,
            "measures": measures,
            "front": [way.name for way in self.ways if way.name in front],
            "chosen": chosen.name,
            "points": [
                {
                    "name": way.name,
                    "members": list(way.point.members),
                    "ensemble_vote": way.point.ensemble_vote,
                    "decode": {name: decode.model_dump(mode="json") for name, decode in way.point.ways.items()},
                    **{key: way.row[key] for key in SCORES},
                    **way.cost.to_json(),
                    "items_per_s": way.row["items_per_s"],
                    "cost": measured[way.name].cost,
                    **verdict(measured[way.name], experiment.budget),
                    "on_front": way.name in front,
                }
                for way in self.ways
            ],
        }


def measures_of(experiment: Experiment) -> list[Objective]:
    """What the front is about: the objectives, and whatever the budget limits or the rule goes by."""
    by: list[Objective] = [experiment.pick.by] if isinstance(experiment.pick, Cheapest) else []
    return list(dict.fromkeys([*experiment.objectives, *experiment.budget.limits, *by]))


def verdict(measured: Measured, budget: Budget) -> dict[str, Any]:
    """Whether something meets the budget, and what of it is exceeded."""
    over = measured.over(budget)
    return {"within_budget": not over, "over_budget": over}
