"""The training sweep: trials run under Ray Tune, and each can be continued from what it left on disk.

Tune schedules; it does not hold the results. A trial that is started again first reports what it reported before, so
that the scheduler of a resumed sweep knows all that the first one knew, and no pickled state is read.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import ray
import torch
from ray import tune

from glyphrun.data.sample import read_card
from glyphrun.images import ImageProcessor
from glyphrun.models.zoo import parse_settings
from glyphrun.recipe import processor_for
from glyphrun.sweeps.distributed import DistributedTrial, check_batches
from glyphrun.sweeps.errors import last_words
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.low_memory import halve_ended, sign
from glyphrun.sweeps.nodes import cluster_nodes, serve_runs
from glyphrun.sweeps.plan import Trial, plan_trials, trial_count
from glyphrun.sweeps.policies import MEASURED, Optuna, Tpe
from glyphrun.sweeps.preflight import Plan, require
from glyphrun.sweeps.schedulers import stopped_by, tune_scheduler
from glyphrun.sweeps.training import Measure, earlier_metrics, load_splits, train_trial
from glyphrun.sweeps.trials import (
    Outcome,
    TrialRecord,
    begin,
    read_outcome,
    read_record,
    read_trials,
    trial_folder,
)
from glyphrun.sweeps.watch import RETRIES, BudgetStopper, Listener, Spending, Watch

Splits = dict[ImageProcessor, ray.ObjectRef]


def run_sweep(
    experiment: Experiment,
    dataset: Path,
    run_dir: Path,
    listeners: Sequence[Listener] = (),
    *,
    extended: Sequence[int] = (),
    clock: Callable[[], float] | None = None,
) -> list[TrialRecord]:
    """Train the trials of an experiment on a data set and return what became of each.

    Run again with the same run_dir, it continues: ended trials stay as they are, others go on from their checkpoints.
    Needs a Ray that is running. extended: how many trials were added each time; clock: seconds spent over all attempts.
    """
    run_dir, started = run_dir.absolute(), monotonic()
    clock = clock or (lambda: monotonic() - started)
    begun = _begun(experiment, run_dir, extended)
    plan = require(experiment, cluster_nodes(), held=serve_runs(), trials=trial_count(experiment, extended))
    check_batches(experiment, begun)
    given: dict[str, Any] = {
        "run_dir": run_dir,
        "dataset": dataset.absolute(),
        "charset": read_card(dataset).charset,
        "splits": _shared_splits(dataset, begun),
        "measure": Measure(
            tuple(name for name in experiment.objectives if name in MEASURED),
            experiment.budget.frames,
            experiment.budget.price_per_hour,
        ),
    }
    while True:
        spending = Spending(experiment.budget, clock, _known_steps(run_dir, begun))
        watch = Watch(run_dir, stopped_by(experiment), spending, listeners)
        try:
            grid = _tuner(experiment, run_dir, begun, extended, plan, given, watch).fit()
        except RuntimeError as error:
            if not halve_ended(error, run_dir):
                raise
            begun = _begun(experiment, run_dir, extended)
        else:
            break
    lost = {}
    for result in (grid[number] for number in range(len(grid))):
        if result.error is not None and result.config is not None:
            lost[result.config["trial"]["id"]] = last_words(result.error)
    learns = isinstance(experiment.searcher, Tpe | Optuna)
    return [
        replace(record, outcome=_of_this_attempt(record, lost, spending.reason()))
        for record in _records(run_dir, read_trials(run_dir) if learns else begun)
    ]


def _tuner(
    experiment: Experiment,
    run_dir: Path,
    begun: Sequence[Trial],
    extended: Sequence[int],
    plan: Plan,
    given: Mapping[str, Any],
    watch: Watch,
) -> tune.Tuner:
    """Tune with all that goes into an attempt; begun: the trials that are known; given: what each trial is told."""
    gpus, slots, total = plan.gpus, plan.max_concurrent_trials, trial_count(experiment, extended)
    learns = isinstance(experiment.searcher, Tpe | Optuna)
    if experiment.workers_per_trial == 1:
        trainable = tune.with_resources(
            partial(_train_trial, **given),
            lambda config: tune.PlacementGroupFactory([Trial.model_validate(config["trial"]).resources.needed(gpus)]),
        )
    else:
        shared = tune.with_parameters(DistributedTrial, workers=experiment.workers_per_trial, gpus=gpus, **given)
        # Its workers reserve what they need themselves, outside of what Tune reserves, which must be something.
        trainable = tune.with_resources(shared, tune.PlacementGroupFactory([{"memory": 1}]))
    search: dict[str, Any] = {}
    if learns:
        from glyphrun.sweeps.supply import Supply  # here: Optuna takes a while to import

        search = {
            "search_alg": Supply(experiment, run_dir, begun, total, slots),
            "num_samples": total,
        }
    return tune.Tuner(
        trainable,
        param_space={} if learns else {"trial": tune.grid_search([trial.model_dump(mode="json") for trial in begun])},
        tune_config=tune.TuneConfig(
            scheduler=tune_scheduler(experiment, run_dir, _records(run_dir, begun), extended),
            # A process takes seconds to start; DistributedTrial starts its own anew.
            reuse_actors=experiment.workers_per_trial == 1,
            # Train's workers stand outside of what Tune reserves; without a limit trials would wait for each other.
            max_concurrent_trials=slots if experiment.workers_per_trial > 1 and not learns else None,
            **search,
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{sum(1 for _ in (run_dir / 'tune').glob('attempt-*')) + 1}",
            storage_path=str(run_dir / "tune"),
            callbacks=[watch],
            stop=BudgetStopper(watch.spending),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a trial's folder holds its own
            verbose=0,
        ),
    )


def _begun(experiment: Experiment, run_dir: Path, extended: Sequence[int]) -> list[Trial]:
    """The trials that are known before Tune starts, each with its folder."""
    planned = plan_trials(experiment, extended)
    for trial in planned:
        begin(run_dir, trial)
    return planned + [trial for trial in read_trials(run_dir) if trial.number >= len(planned)]


def _known_steps(run_dir: Path, trials: Sequence[Trial]) -> dict[str, int]:
    """How far each trial has come."""
    return {one.trial.id: one.reports[-1]["step"] for one in _records(run_dir, trials) if one.reports}


def _records(run_dir: Path, trials: Sequence[Trial]) -> list[TrialRecord]:
    return [read_record(run_dir, trial) for trial in trials]


def _of_this_attempt(record: TrialRecord, lost: Mapping[str, str], spent: str | None) -> Outcome:
    """How a trial stands after an attempt; what the next one goes on with is in no trial's folder."""
    if record.outcome.status != "interrupted":
        return record.outcome
    if record.trial.id in lost:  # to a full disk or a killed worker
        return Outcome("failed", lost[record.trial.id])
    if spent is not None:
        step = record.reports[-1]["step"] if record.reports else 0
        return Outcome("stopped", f"{spent} at its step {step}" if step else f"{spent} before it reported")
    return record.outcome


def _shared_splits(dataset: Path, trials: Sequence[Trial]) -> Splits:
    """Train and val by image processor, decoded once and shared by all trials of this machine without a copy."""
    processors = {processor_for(parse_settings(trial.settings)) for trial in trials}
    return {processor: ray.put(load_splits(dataset, processor)) for processor in processors}


def _train_trial(
    config: dict[str, Any], *, run_dir: Path, dataset: Path, charset: str, splits: Splits, measure: Measure
) -> None:
    """One trial, in a process that may have trained others before."""
    trial = Trial.model_validate(config["trial"])
    folder = trial_folder(run_dir, trial)
    outcome = read_outcome(folder)
    if outcome is not None:
        for earlier in earlier_metrics(folder):
            tune.report(earlier)
        if outcome.status == "failed":
            raise RuntimeError(outcome.reason)
        return
    sign(run_dir, trial)
    # The next trial of this process waits for this one's thread, and would be given up after two seconds of it.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    if torch.cuda.is_initialized():  # what an earlier trial has left would be missing from this one's card
        gc.collect()
        torch.cuda.empty_cache()
    torch.set_num_threads(max(int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)), 1))
    processor = processor_for(parse_settings(trial.settings))
    # A searcher may propose a size of images that no trial had when the sweep began.
    train, val = ray.get(splits[processor]) if processor in splits else load_splits(dataset, processor)
    for told in train_trial(trial, folder, charset, train, val, measure=measure):
        tune.report(told)
