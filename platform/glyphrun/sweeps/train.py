"""The training sweep: trials run under Ray Tune, and each can be continued from what it left on disk.

Tune schedules; it does not hold the results. A trial that is started again first reports what it reported before, so
that the scheduler of a resumed sweep knows all that the first one knew, and no pickled state is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from glyphrun.data.batches import load_split
from glyphrun.data.sample import read_card
from glyphrun.images import ImageProcessor
from glyphrun.models.zoo import parse_settings
from glyphrun.recipe import processor_for
from glyphrun.sweeps.distributed import DistributedTrial, cluster_gpus, trials_at_once
from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.plan import Trial, plan_trials
from glyphrun.sweeps.schedulers import stopped_by, tune_scheduler
from glyphrun.sweeps.training import earlier_metrics, train_trial
from glyphrun.sweeps.trials import (
    Outcome,
    TrialRecord,
    read_outcome,
    read_record,
    trial_folder,
    write_json,
    write_outcome,
)

OnReport = Callable[[str, dict[str, Any]], None]


def run_sweep(
    experiment: Experiment, dataset: Path, run_dir: Path, on_report: OnReport, on_end: Callable[[str, str], None]
) -> list[TrialRecord]:
    """Train the trials of an experiment on a data set and return what became of each.

    Run again with the same run_dir, it continues: ended trials stay as they are, others go on from their checkpoints.
    Needs a Ray that is running. on_report gets a trial's id and each new result, on_end its id and status.
    """
    run_dir = run_dir.absolute()
    trials = plan_trials(experiment)
    gpus = cluster_gpus()
    cores = ray.cluster_resources().get("CPU", 0)
    most = max(experiment.resources_of(candidate).needed(gpus)["CPU"] for candidate in experiment.candidates)
    if most > cores:
        raise ExperimentError(f"resources.cpus is {most:g} and the cluster has {cores:g}: lower it")
    at_once = trials_at_once(experiment, trials, gpus)
    for trial in trials:
        folder = trial_folder(run_dir, trial)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "trial.json", trial.model_dump(mode="json"))
    # Decoded once and shared by all trials of this machine without a copy.
    splits = {
        processor: tuple(load_split(dataset, split, processor) for split in ("train", "val"))
        for processor in {processor_for(parse_settings(trial.settings)) for trial in trials}
    }
    given: dict[str, Any] = {
        "run_dir": run_dir,
        "charset": read_card(dataset).charset,
        "splits": {processor: ray.put(parts) for processor, parts in splits.items()},
    }
    if experiment.workers_per_trial == 1:
        trainable = tune.with_resources(
            partial(_train_trial, **given),
            lambda config: tune.PlacementGroupFactory([Trial.model_validate(config["trial"]).resources.needed(gpus)]),
        )
    else:
        shared = tune.with_parameters(DistributedTrial, workers=experiment.workers_per_trial, gpus=gpus, **given)
        # Its workers reserve what they need themselves, outside of what Tune reserves, which must be something.
        trainable = tune.with_resources(shared, tune.PlacementGroupFactory([{"memory": 1}]))
    tuner = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search([trial.model_dump(mode="json") for trial in trials])},
        tune_config=tune.TuneConfig(
            scheduler=tune_scheduler(experiment, max(trial.train.steps for trial in trials)),
            max_concurrent_trials=at_once,
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{sum(1 for _ in (run_dir / 'tune').glob('attempt-*')) + 1}",
            storage_path=str(run_dir / "tune"),
            callbacks=[_Watch(run_dir, stopped_by(experiment), on_report, on_end)],
            failure_config=tune.FailureConfig(max_failures=1),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a trial's folder holds its own
            verbose=0,
        ),
    )
    grid = tuner.fit()
    lost = {}
    for result in (grid[number] for number in range(len(grid))):
        if result.error is not None and result.config is not None:
            lost[result.config["trial"]["id"]] = str(result.error).strip().splitlines()[-1]
    records = [read_record(run_dir, trial) for trial in trials]
    # A trial that was lost to a full disk or a killed worker is failed in this attempt; the next one goes on with it.
    return [
        replace(record, outcome=Outcome("failed", lost[record.trial.id]))
        if record.outcome.status == "interrupted" and record.trial.id in lost
        else record
        for record in records
    ]


def _train_trial(
    config: dict[str, Any], *, run_dir: Path, charset: str, splits: dict[ImageProcessor, ray.ObjectRef]
) -> None:
    """One trial in a process of its own."""
    trial = Trial.model_validate(config["trial"])
    folder = trial_folder(run_dir, trial)
    outcome = read_outcome(folder)
    if outcome is not None:
        for earlier in earlier_metrics(folder):
            tune.report(earlier)
        if outcome.status == "failed":
            raise RuntimeError(outcome.reason)
        return
    torch.set_num_threads(max(int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)), 1))
    train, val = ray.get(splits[processor_for(parse_settings(trial.settings))])
    for told in train_trial(trial, folder, charset, train, val):
        tune.report(told)


class _Watch(tune.Callback):
    """Passes results on to the caller and records which trials the scheduler stopped."""

    def __init__(self, run_dir: Path, scheduler: str, on_report: OnReport, on_end: Callable[[str, str], None]) -> None:
        self.run_dir, self.scheduler, self.on_report, self.on_end = run_dir, scheduler, on_report, on_end

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its configuration for a restore that is never asked of it; listeners belong to this process.
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self.on_report(trial.config["trial"]["id"], result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        planned = Trial.model_validate(trial.config["trial"])
        folder = trial_folder(self.run_dir, planned)
        step = (trial.last_result or {}).get("step", 0)
        if step >= planned.train.steps:
            write_outcome(folder, Outcome("finished"))
        else:
            write_outcome(
                folder, Outcome("stopped", f"{self.scheduler} stopped it at step {step} of {planned.train.steps}")
            )
        outcome = read_outcome(folder)
        self.on_end(planned.id, outcome.status if outcome else "stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.on_end(trial.config["trial"]["id"], "failed")
