"""Tune's schedulers for those that an experiment declares."""

from __future__ import annotations

from math import ceil, inf
from typing import Any

from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.policies import MAXIMIZED, Asha, HyperBand, Median, Pbt

RUNGS = "rungs"  # steps in units of the first rung's, which HyperBand counts in


def tune_scheduler(experiment: Experiment, steps: int) -> TrialScheduler:
    """steps: of the longest trial. The scheduler goes by the first objective and counts steps."""
    declared = experiment.scheduler
    metric, mode = experiment.objectives[0], direction(experiment)
    if isinstance(declared, Asha):
        return AsyncHyperBandScheduler(
            time_attr="step",
            metric=metric,
            mode=mode,
            max_t=steps,
            grace_period=declared.grace_steps,
            reduction_factor=declared.reduction,
        )
    if isinstance(declared, HyperBand):
        # Brackets are filled by trials as they come, and halved when all that have come wait.
        return _HyperBandInRungs(declared.grace_steps, metric, mode, steps, declared.reduction)
    if isinstance(declared, Median):
        return MedianStoppingRule(
            time_attr="step",
            metric=metric,
            mode=mode,
            grace_period=declared.grace_steps,
            min_samples_required=declared.trials,
            min_time_slice=inf,  # type: ignore[arg-type] # a trial that cannot be judged yet goes on, and makes no room for another
        )
    if isinstance(declared, Pbt):
        raise ExperimentError(
            "scheduler.kind pbt can be declared and not be run yet: take asha, hyperband, median or none"
        )
    return FIFOScheduler()


class _HyperBandInRungs(HyperBandScheduler):
    """Counts in units of the first rung's steps; in single steps, most brackets would be of trainings of a few steps."""

    def __init__(self, unit: int, metric: str, mode: str, steps: int, reduction: int) -> None:
        super().__init__(RUNGS, metric, mode, max_t=ceil(steps / unit), reduction_factor=reduction)
        self.unit = unit

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        said: str = super().on_trial_result(tune_controller, trial, {**result, RUNGS: result["step"] / self.unit})
        return said

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, trial, {**result, RUNGS: result.get("step", 0) / self.unit})


def direction(experiment: Experiment) -> str:
    """max or min, of the first objective."""
    return "max" if experiment.objectives[0] in MAXIMIZED else "min"


def stopped_by(experiment: Experiment) -> str:
    """What a leaderboard calls the scheduler."""
    return {"asha": "ASHA", "hyperband": "HyperBand", "median": "the median rule", "pbt": "PBT"}.get(
        experiment.scheduler.kind, "the sweep"
    )
