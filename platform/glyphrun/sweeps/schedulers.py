"""Tune's schedulers for those that an experiment declares."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf
from pathlib import Path
from typing import Any

from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.plan import Trial
from glyphrun.sweeps.policies import MAXIMIZED, Asha, HyperBand, Median, Pbt
from glyphrun.sweeps.population import Population

RUNGS = "rungs"  # steps in units of the first rung's, which HyperBand counts in


def tune_scheduler(experiment: Experiment, run_dir: Path, trials: Sequence[Trial]) -> TrialScheduler:
    """The scheduler of the trials that are known; it goes by the first objective and counts steps."""
    declared = experiment.scheduler
    steps = max(trial.train.steps for trial in trials)
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
        return Generations(Population(experiment, run_dir, trials), metric)
    return FIFOScheduler()


class Generations(FIFOScheduler):
    """Pauses every trial where its population meets, and lets them all go on when nobody else can come.

    A paused trial gives its slot to others, so a population may be larger than the cluster.
    """

    def __init__(self, population: Population, objective: str) -> None:
        super().__init__()
        self.population, self.objective = population, objective
        self.met: dict[int, dict[str, float]] = {}  # scores by step and trial

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles it for a restore that is never asked of it.
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Pause it unless it only tells again what has been decided."""
        ours, step = trial.config["trial"]["id"], result["step"]
        if not self.population.meets(ours, step):
            return str(self.CONTINUE)
        self.met.setdefault(step, {})[ours] = result[self.objective]
        return str(self.PAUSE)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Those of a generation that was decided, then new ones and those whose process was lost."""
        trials = tune_controller.get_trials()
        # One that fails for good is not waited for; one that is behind, since it was lost before, meets alone first.
        if self.met and all(trial.status == "PAUSED" for trial in trials if not trial.is_finished()):
            step = min(self.met)
            self.population.decide(step, self.met.pop(step))
        waits = {trial for scores in self.met.values() for trial in scores}
        paused = [trial for trial in trials if trial.status == "PAUSED" and trial.config["trial"]["id"] not in waits]
        return next(iter(paused + [trial for trial in trials if trial.status == "PENDING"]), None)


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
    return {"asha": "ASHA", "hyperband": "HyperBand", "median": "the median rule"}.get(
        experiment.scheduler.kind, "the sweep"
    )
