"""Trials for Tune one after another: those that were begun or planned, then what a learning searcher proposes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.plan import Trial, resolve_trial
from glyphrun.sweeps.search import Known, propose
from glyphrun.sweeps.trials import TrialRecord, begin, read_record

ATTEMPTS = 20


class Supply(Searcher):
    """Proposes trials from what became of all but the last few before each, whichever of these have ended by then.

    So the same experiment on as many slots is proposed the same trials, whichever process was quicker. Twice as many trials
    as slots may be under way, since those that wait for a scheduler's judgement take none.
    """

    def __init__(self, experiment: Experiment, run_dir: Path, begun: Sequence[Trial], total: int, slots: int) -> None:
        super().__init__(metric=experiment.objectives[0], mode="max")
        self.experiment, self.run_dir, self.total, self.slots = experiment, run_dir, total, slots
        self.waiting, self.trials = list(begun), list(begun)
        self.under_way: dict[str, int] = {}  # numbers by Tune's names

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles it for a restore that is never asked of it.
        return {}

    def suggest(self, trial_id: str) -> Any:
        """Nothing while a trial that the next one rests on is under way."""
        number = self.waiting[0].number if self.waiting else len(self.trials)
        if any(other < self._horizon(number) for other in self.under_way.values()):
            return None
        if not self.waiting and number >= self.total:
            return Searcher.FINISHED
        if not self.waiting:
            self._propose()
        trial = self.waiting.pop(0)
        self.under_way[trial_id] = trial.number
        return {"trial": trial.model_dump(mode="json")}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The trial's folder says what became of it."""
        self.under_way.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Everything that is known lies in the trials' folders."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to read."""

    def _propose(self) -> None:
        """The trials of the next configuration."""
        number, repeats = len(self.trials), self.experiment.repeats
        if number % repeats:  # a driver that was killed had begun some of them
            last = self.trials[-1]
            rest = range(number, number - number % repeats + repeats)
            trials = [resolve_trial(self.experiment, last.candidate, one, last.sampled) for one in rest]
        else:
            trials = self._resolved(number)
        for trial in trials:
            begin(self.run_dir, trial)
            self.trials.append(trial)
            self.waiting.append(trial)

    def _resolved(self, number: int) -> list[Trial]:
        """Values that contradict each other, such as a width that its heads do not divide, are proposed anew."""
        told = [
            known(self.experiment, read_record(self.run_dir, trial))
            if trial.number < self._horizon(number)
            else Known(trial)
            for trial in self.trials
        ]
        for attempt in range(ATTEMPTS):
            place, sampled = propose(self.experiment, number // self.experiment.repeats, told, attempt)
            try:
                return [
                    resolve_trial(self.experiment, place, number + repeat, sampled)
                    for repeat in range(self.experiment.repeats)
                ]
            except ExperimentError as error:
                refused = error
        raise ExperimentError(f"{ATTEMPTS} proposals in a row cannot be built, the last because of {refused}")

    def _horizon(self, number: int) -> int:
        """The first trial that a trial does not rest on."""
        first = number - number % self.experiment.repeats  # of its configuration
        return first - 2 * self.slots + 1


def known(experiment: Experiment, record: TrialRecord) -> Known:
    """What a searcher is told of a trial: the objectives at its last report, unless it failed or still runs."""
    status = record.outcome.status
    if status in ("interrupted", "failed") or not record.reports:
        return Known(record.trial, failed=status != "interrupted")
    values = {**record.reports[-1]["scores"], **record.measured}
    return Known(record.trial, tuple(float(values[name]) for name in experiment.objectives))
