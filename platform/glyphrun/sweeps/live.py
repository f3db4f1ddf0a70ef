"""The table of a sweep that runs: the best so far, what runs, and how long it may still take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from time import monotonic
from typing import Any

from rich.table import Table

from glyphrun.progress import Stage
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.plan import Trial
from glyphrun.sweeps.policies import MAXIMIZED
from glyphrun.sweeps.trials import Outcome

SHOWN = 8


class LiveTable:
    """Listens to a sweep and shows it in a stage's place.

    total: trials in all; steps: that they would train if none were stopped; before: that earlier attempts have trained.
    """

    def __init__(
        self, experiment: Experiment, stage: Stage, total: int, steps: int, clock: Callable[[], float] = monotonic
    ) -> None:
        self.objective, self.stage, self.total, self.steps = experiment.objectives[0], stage, total, steps
        self.sign = 1 if self.objective in MAXIMIZED else -1
        self.clock, self.began = clock, clock()
        self.running: dict[str, Trial] = {}
        self.told: dict[str, Mapping[str, Any]] = {}
        self.trials: dict[str, Trial] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.trained = 0  # steps in this attempt, without those that come again

    def started(self, trial: Trial) -> None:
        """A process works on it."""
        self.running[trial.id] = self.trials[trial.id] = trial
        self._show()

    def reported(self, trial: Trial, told: Mapping[str, Any]) -> None:
        """A report."""
        before = self.told.get(trial.id)
        if before is None or told["step"] > before["step"]:
            if trial.id in self.running and before is not None:
                self.trained += told["step"] - before["step"]
            self.told[trial.id] = told
        self.trials[trial.id] = trial
        self._show()

    def waits(self, trial: Trial) -> None:
        """It gave its slot to another."""
        self.running.pop(trial.id, None)
        self._show()

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        """Nothing more comes of it."""
        self.running.pop(trial.id, None)
        self.trials[trial.id], self.outcomes[trial.id] = trial, outcome
        self._show()

    def best(self) -> str | None:
        """The trial that leads on the first objective."""
        return max(self.told, key=lambda one: self.sign * self.told[one][self.objective], default=None)

    def left(self) -> float | None:
        """Seconds until all trials would have trained in full, at the pace of this attempt; None while that is unknown."""
        done = sum(told["step"] for told in self.told.values())
        spared = sum(self.trials[one].train.steps - self._step(one) for one in self.outcomes)
        if not self.trained:
            return None
        return max(self.steps - done - spared, 0) * (self.clock() - self.began) / self.trained

    def _step(self, trial: str) -> int:
        return int(self.told[trial]["step"]) if trial in self.told else 0

    def _show(self) -> None:
        leader, left = self.best(), self.left()
        note = f"{len(self.outcomes)} of {self.total} trials ended"
        if leader is not None:
            note += f" · best {self.objective} on val {self.told[leader][self.objective]:.3f}, {leader}"
        if left is not None and self.running:
            note += f" · at most {timedelta(seconds=round(left))} to go"
        self.stage.advance_to(len(self.outcomes), note)
        self.stage.show(self._table(leader))

    def _table(self, leader: str | None) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 2), header_style="dim")
        for column in ("trial", "family", "step", self.objective, "loss", ""):
            table.add_column(column, justify="right" if column in ("step", self.objective, "loss") else "left")
        running = list(self.running)[:SHOWN]
        for one in [*([leader] if leader is not None and leader not in running else []), *running]:
            trial, told = self.trials[one], self.told.get(one)
            table.add_row(
                one,
                trial.family,
                f"{self._step(one)}/{trial.train.steps}",
                f"{told[self.objective]:.3f}" if told else "",
                f"{told['train_loss']:.3f}" if told else "",
                " · ".join([*(["best so far"] if one == leader else []), *(["runs"] if one in self.running else [])]),
            )
        return table
