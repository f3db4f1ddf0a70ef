"""What is told of a sweep while it runs: TensorBoard's events, MLflow's runs and the table at a terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from glyphrun.progress import show_stages
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.live import LiveTable
from glyphrun.sweeps.plan import Trial, plan_trials
from glyphrun.sweeps.tracking import MLflow, TensorBoard
from glyphrun.sweeps.trials import Outcome, begin, trial_folder
from glyphrun.sweeps.watch import Listener

EXPERIMENT = Experiment.model_validate(
    {
        "name": "told",
        "trials": 2,
        "train": {"steps": 30},
        "scheduler": {"kind": "none"},
        "candidates": [
            {
                "family": "digits",
                "recognizer": "query-digits-nano",
                "space": {"train.learning_rate": {"choice": [0.01, 0.02]}, "start.lora.targets": {"choice": [["vision"]], "when": {"start.lora.rank": 0}}},
            }
        ],
    }
)  # fmt: skip


def told(step: int, exact: float) -> dict[str, Any]:
    return {"step": step, "seconds": step / 10, "train_loss": 1 / step, "exact": exact, "cer": 1 - exact}


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    trial = plan_trials(EXPERIMENT)[0]
    begin(tmp_path, trial)
    return trial


def broken_off_and_resumed(trial: Trial, make: Any) -> None:
    """Two reports, a driver that is killed, and a sweep that tells the first two again before the third."""
    first: Listener = make()
    first.started(trial)
    first.reported(trial, told(10, 0.2))
    first.reported(trial, told(20, 0.5))
    again: Listener = make()
    again.started(trial)
    for step, exact in ((10, 0.2), (20, 0.5), (30, 0.9)):
        again.reported(trial, told(step, exact))
    again.ended(trial, Outcome("stopped", "ASHA stopped it at step 30 of 99"))


def test_tensorboard_has_each_curve_once_and_the_hyperparameters_with_what_they_led_to(trial, tmp_path):
    broken_off_and_resumed(trial, lambda: TensorBoard(tmp_path))
    events = EventAccumulator(str(trial_folder(tmp_path, trial) / "tensorboard")).Reload()
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("exact")] == [
        (10, 0.2),
        (20, 0.5),
        (30, 0.9),
    ]
    assert len(events.Scalars("train_loss")) == 3
    assert "_hparams_/session_start_info" in events.summary_metadata
    said = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"train.learning_rate" in said and b"query-digits-nano" in said


def test_mlflow_has_one_run_for_a_trial_that_was_resumed(trial, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    broken_off_and_resumed(trial, lambda: MLflow(uri, "told", tmp_path))
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("told")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "exact")] == [
        (10, 0.2), (20, 0.5), (30, 0.9)
    ]  # fmt: skip
    assert run.data.params["train.learning_rate"] == str(trial.sampled["train.learning_rate"])
    assert run.info.status == "KILLED" and "ASHA stopped it" in run.data.tags["glyphrun.reason"]


def test_the_table_shows_the_best_so_far_what_runs_and_how_long_it_may_take():
    console = Console(record=True, width=120, force_terminal=True, file=io.StringIO())
    first, second = plan_trials(EXPERIMENT)
    now = [0.0]
    with show_stages(console) as stages, stages.stage("sweep", 2) as stage:
        table = LiveTable(EXPERIMENT, stage, total=2, steps=60, clock=lambda: now[0])
        table.started(first)
        table.reported(first, told(10, 0.7))
        assert table.left() is None  # it may have come from an earlier attempt
        now[0] = 40.0
        table.reported(first, told(20, 0.8))
        table.started(second)
        assert table.left() == pytest.approx((60 - 20) * 40 / 10)
        table.reported(second, told(10, 0.9))
        assert table.best() == second.id
        table.ended(second, Outcome("failed", "the loss is nan"))
        console.print(stages.progress.below)
        shown = console.export_text()
        table.waits(first)
        console.print(stages.progress.below)
        waiting = console.export_text()
    rows = [line for line in shown.splitlines() if "query-digits" in line and "/30" in line]
    assert any(second.id in row and "10/30" in row and "best so far" in row for row in rows)
    assert any(first.id in row and "20/30" in row and "runs" in row for row in rows)
    assert second.id in waiting and first.id not in waiting
    assert stages.progress.below is None
