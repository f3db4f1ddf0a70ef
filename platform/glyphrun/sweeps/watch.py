"""What is seen of a sweep while Tune runs it: who listens, how trials end, and when the budget is spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ray import tune

from glyphrun.sweeps.low_memory import SAID, WHY
from glyphrun.sweeps.plan import Trial
from glyphrun.sweeps.policies import Budget
from glyphrun.sweeps.trials import Outcome, as_changed, halve_batch, read_outcome, trial_folder, write_outcome

RETRIES = 1  # of a trial that makes no progress


class Listener(Protocol):
    """Somebody who is told what happens to trials."""

    def started(self, trial: Trial) -> None:
        """A process works on the trial; its earlier reports come again."""

    def reported(self, trial: Trial, told: Mapping[str, Any]) -> None:
        """A report: step, seconds, train_loss, exact, cer, and objectives that are measured."""

    def waits(self, trial: Trial) -> None:
        """No process works on it until others have come as far."""

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        """Nothing more comes of it in this attempt."""


class Spending:
    """What a sweep has spent of its budget.

    clock: seconds of wall time over all attempts; steps: of trials in earlier attempts.
    """

    def __init__(self, budget: Budget, clock: Callable[[], float], steps: Mapping[str, int]) -> None:
        self.budget, self.clock, self.steps = budget, clock, dict(steps)

    def reason(self) -> str | None:
        """Which part of the budget is spent; None while nothing is."""
        hours, steps = self.budget.hours, self.budget.steps
        if hours is not None and self.clock() >= hours * 3600:
            return f"the budget of {hours:g} hours was spent"
        if steps is not None and sum(self.steps.values()) >= steps:
            return f"the budget of {steps:,} steps was spent"
        return None


class BudgetStopper(tune.Stopper):
    """Ends all trials when the budget is spent."""

    def __init__(self, spending: Spending) -> None:
        self.spending = spending

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped by itself."""
        return False

    def stop_all(self) -> bool:
        """True once the budget is spent."""
        return self.spending.reason() is not None


class Watch(tune.Callback):
    """Passes on what happens and records which trials the scheduler stopped; scheduler: what it is called."""

    def __init__(self, run_dir: Path, scheduler: str, spending: Spending, listeners: Sequence[Listener]) -> None:
        self.run_dir, self.scheduler, self.spending, self.listeners = run_dir, scheduler, spending, listeners
        self.paused: set[str] = set()  # Tune's names

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its configuration for a restore that is never asked of it; listeners belong to this process.
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Tune tells nobody else that a trial is paused."""
        paused = [trial for trial in trials if trial.status == "PAUSED"]
        for trial in paused:
            if trial.trial_id not in self.paused:
                for listener in self.listeners:
                    listener.waits(self._trial(trial))
        self.paused = {trial.trial_id for trial in paused}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        ours = self._trial(trial)
        outcome = read_outcome(trial_folder(self.run_dir, ours))
        if outcome is not None and outcome.status == "failed":
            trial.max_failures = trial.num_failures  # it fails as it did before; another process would change nothing
        for listener in self.listeners:
            listener.started(ours)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        ours = self._trial(trial)
        if "step" not in result:  # Tune tells the end of a trial that reported nothing
            return
        if result["step"] > self.spending.steps.get(ours.id, 0):
            self.spending.steps[ours.id] = result["step"]
            trial.max_failures = trial.num_failures + RETRIES  # what came before the last progress counts no more
        for listener in self.listeners:
            listener.reported(ours, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        ours = self._trial(trial)
        folder = trial_folder(self.run_dir, ours)
        step, steps = (trial.last_result or {}).get("step", 0), ours.train.steps
        if step >= steps:
            write_outcome(folder, Outcome("finished"))
        else:
            write_outcome(folder, Outcome("stopped", f"{self.scheduler} stopped it at step {step} of {steps}"))
        outcome = read_outcome(folder)
        assert outcome is not None
        for listener in self.listeners:
            listener.ended(ours, outcome)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """It goes on; with half the batch if the node of one of its workers had run out of memory."""
        ours = self._trial(trial)
        failures = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        if SAID in failures.rpartition("Failure # ")[2]:
            halve_batch(ours, trial_folder(self.run_dir, ours), WHY)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        ours = self._trial(trial)
        outcome = read_outcome(trial_folder(self.run_dir, ours)) or Outcome("failed")
        for listener in self.listeners:
            listener.ended(ours, outcome)

    def _trial(self, trial: Any) -> Trial:
        ours = Trial.model_validate(trial.config["trial"])
        return as_changed(ours, trial_folder(self.run_dir, ours))
