"""Where a sweep's curves can be followed beside its report: TensorBoard events in each trial's folder, and MLflow."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard.summary import hparams, scalar
from torch.utils.tensorboard.writer import FileWriter

from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.plan import Trial
from glyphrun.sweeps.trials import Outcome, trial_folder, write_json

EVENTS = "tensorboard"
TOLD = ("train_loss", "exact", "cer", "ms", "memory", "cost")


class TensorBoard:
    """Writes each trial's curve and, when it ends, its hyperparameters with what they led to.

    A trial that is started again tells its earlier reports again, so its events are written from the beginning.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.writers: dict[str, FileWriter] = {}
        self.last: dict[str, Mapping[str, Any]] = {}

    def started(self, trial: Trial) -> None:
        """From the beginning."""
        self._close(trial)
        folder = trial_folder(self.run_dir, trial) / EVENTS
        shutil.rmtree(folder, ignore_errors=True)
        self.writers[trial.id] = FileWriter(str(folder))

    def reported(self, trial: Trial, told: Mapping[str, Any]) -> None:
        """A point of each curve."""
        if trial.id not in self.writers:
            self.started(trial)
        for name, value in _curves(told).items():
            self.writers[trial.id].add_summary(scalar(name, value), told["step"])
        self.writers[trial.id].flush()
        self.last[trial.id] = told

    def waits(self, trial: Trial) -> None:
        """Its curve stands as it is."""

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        """The hyperparameters, which TensorBoard shows beside the last values of the curves."""
        if trial.id in self.writers and trial.id in self.last:
            curves = {name: float(value) for name, value in _curves(self.last[trial.id]).items()}
            for summary in hparams(settings_of(trial, outcome), curves):
                self.writers[trial.id].add_summary(summary)
        self._close(trial)

    def _close(self, trial: Trial) -> None:
        writer = self.writers.pop(trial.id, None)
        if writer is not None:
            writer.close()


class MLflow:
    """A run of MLflow for each trial; uri: such as ``sqlite:///runs.db``. A resumed sweep goes on in the same runs."""

    def __init__(self, uri: str, experiment: str, run_dir: Path) -> None:
        # MLflow would tell its makers of its use.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            from mlflow.tracking import MlflowClient  # here: most sweeps do without it
        except ModuleNotFoundError:
            raise ExperimentError("--mlflow needs MLflow: pip install 'glyphrun[mlflow]'") from None
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.client, self.run_dir = MlflowClient(uri), run_dir
        found = self.client.get_experiment_by_name(experiment)
        self.experiment = found.experiment_id if found else self.client.create_experiment(experiment)

    def started(self, trial: Trial) -> None:
        """Its run, made once."""
        path = trial_folder(self.run_dir, trial) / "mlflow.json"
        if not path.exists():
            tags = {"mlflow.runName": trial.id, "glyphrun.run": str(self.run_dir)}
            run = self.client.create_run(self.experiment, tags=tags)
            for name, value in settings_of(trial).items():
                self.client.log_param(run.info.run_id, name, value)
            write_json(path, {"run": run.info.run_id, "step": 0})

    def reported(self, trial: Trial, told: Mapping[str, Any]) -> None:
        """A point of each curve that was not told before."""
        self.started(trial)
        path = trial_folder(self.run_dir, trial) / "mlflow.json"
        state = json.loads(path.read_text(encoding="utf-8"))
        if told["step"] > state["step"]:
            for name, value in _curves(told).items():
                self.client.log_metric(state["run"], name, value, step=told["step"])
            write_json(path, {**state, "step": told["step"]})

    def waits(self, trial: Trial) -> None:
        """Its run stands as it is."""

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        """How it ended."""
        self.started(trial)
        state = json.loads((trial_folder(self.run_dir, trial) / "mlflow.json").read_text(encoding="utf-8"))
        if outcome.reason:
            self.client.set_tag(state["run"], "glyphrun.reason", outcome.reason)
        status = {"finished": "FINISHED", "failed": "FAILED"}.get(outcome.status, "KILLED")
        self.client.set_terminated(state["run"], status)


def settings_of(trial: Trial, outcome: Outcome | None = None) -> dict[str, Any]:
    """A trial's hyperparameters in kinds that are shown: numbers and words."""
    told: dict[str, Any] = {"family": trial.family, "recognizer": trial.recognizer, "seed": trial.train.seed}
    for path, value in trial.sampled.items():
        told[path] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return told if outcome is None else {**told, "status": outcome.status}


def _curves(told: Mapping[str, Any]) -> dict[str, float]:
    return {name: told[name] for name in TOLD if name in told}
