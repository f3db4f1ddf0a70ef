"""Tune's schedulers for those that an experiment declares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.plan import trial_count
from glyphrun.sweeps.policies import MAXIMIZED, Asha, HyperBand, Median, Pbt
from glyphrun.sweeps.population import Population
from glyphrun.sweeps.rungs import Brackets, Halving, Medians, Referee, Verdict
from glyphrun.sweeps.trials import TrialRecord


def tune_scheduler(
    experiment: Experiment, run_dir: Path, records: Sequence[TrialRecord], extended: Sequence[int] = ()
) -> TrialScheduler:
    """The scheduler; it goes by the first objective and counts steps. records: of the trials that are known by now."""
    declared, objective = experiment.scheduler, experiment.objectives[0]
    if isinstance(declared, Pbt):
        return Generations(Population(experiment, run_dir, [record.trial for record in records]), objective)
    if isinstance(declared, Asha):
        return Rungs(Referee(Halving(declared)), objective, records)
    if isinstance(declared, Median):
        return Rungs(Referee(Medians(declared)), objective, records)
    if isinstance(declared, HyperBand):
        steps = max(record.trial.train.steps for record in records)
        batches = [trial_count(experiment), *extended]
        return Rungs(Referee(Brackets(declared, steps, batches)), objective, records)
    return FIFOScheduler()


class Rungs(FIFOScheduler):
    """Stops trials as a referee says, and pauses those whose judgement has to wait for others.

    A paused trial gives its slot to the next one.
    """

    def __init__(self, referee: Referee, objective: str, records: Sequence[TrialRecord]) -> None:
        super().__init__()
        self.referee, self.objective = referee, objective
        self.sign = 1 if objective in MAXIMIZED else -1
        for record in records:
            for report in record.reports:
                self._tell(record.trial.number, {"step": report["step"], **report["scores"]})
            if record.outcome.status != "interrupted":
                referee.ended(record.trial.number)

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles it for a restore that is never asked of it.
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Told of the last step, the trial is as good as ended."""
        number = trial.config["trial"]["number"]
        self._tell(number, result)
        if result["step"] >= trial.config["trial"]["train"]["steps"]:
            self.referee.ended(number)
        said = self.referee.verdict(number, result["step"])
        return {Verdict.GOES_ON: self.CONTINUE, Verdict.STOPS: self.STOP, Verdict.WAITS: self.PAUSE}[said]

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self.referee.ended(trial.config["trial"]["number"])

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self.referee.ended(trial.config["trial"]["number"])

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self.referee.ended(trial.config["trial"]["number"])

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The first that was planned of those that wait for a slot; all others that wait, wait for it."""
        for trial in sorted(tune_controller.get_trials(), key=lambda trial: trial.config["trial"]["number"]):
            if trial.status == "PENDING":
                return trial
            if trial.status == "PAUSED":
                said = self.referee.verdict(trial.config["trial"]["number"], trial.last_result["step"])
                if said is Verdict.GOES_ON:
                    return trial
                if said is Verdict.STOPS:
                    tune_controller.stop_trial(trial)
        return None

    def _tell(self, number: int, result: dict[str, Any]) -> None:
        self.referee.reported(number, result["step"], self.sign * result[self.objective])


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


def stopped_by(experiment: Experiment) -> str:
    """What a leaderboard calls the scheduler."""
    return {"asha": "ASHA", "hyperband": "HyperBand", "median": "the median rule"}.get(
        experiment.scheduler.kind, "the sweep"
    )
