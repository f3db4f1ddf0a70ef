"""Trials that two workers share, under a real Ray: the curve of one worker, and what is left when something ends early."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray import tune
from safetensors.torch import load_file

from glyphrun.models.zoo import parse_settings
from glyphrun.recipe import processor_for
from glyphrun.sweeps.distributed import DistributedTrial
from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.plan import Trial, plan_trials
from glyphrun.sweeps.train import run_sweep
from glyphrun.sweeps.training import Measure, load_splits, train_trial
from glyphrun.sweeps.trials import Outcome, TrialRecord, begin, read_outcome, read_record, read_reports, trial_folder
from glyphrun.text import DIGITS

pytestmark = pytest.mark.usefixtures("local_ray")

# No batch norm, which takes the statistics of each share, and nothing random.
TINY = {
    "encoder": {"stem": "patch", "image": [40, 40], "patch": [8, 8], "width": 16, "depth": 1, "heads": 2},
    "decoder_heads": 2,
    "dropout": 0.0,
}
TRAIN = {"steps": 24, "batch_size": 8, "evaluate_every": 4, "checkpoint_every": 6, "warmup": 2, "augment": None}


def declare(workers: int, candidates: list[dict[str, Any]], **changes: Any) -> Experiment:
    """One trial of each candidate, and no rung at which one could be stopped."""
    return Experiment.model_validate(
        {
            "name": "shared",
            "trials": len(candidates),
            "train": TRAIN,
            "scheduler": {"grace_steps": 24},
            "candidates": candidates,
            "workers_per_trial": workers,
            **changes,
        }
    )


@dataclass(frozen=True)
class Reports:
    """Listens to a sweep for its reports alone."""

    on_report: Callable[[str, Mapping[str, Any]], None]

    def started(self, trial: Trial) -> None: ...

    def reported(self, trial: Trial, told: Mapping[str, Any]) -> None:
        self.on_report(trial.id, told)

    def waits(self, trial: Trial) -> None: ...

    def ended(self, trial: Trial, outcome: Outcome) -> None: ...


def sweep(experiment: Experiment, dataset: Path, folder: Path, on_report=lambda *_: None) -> list[TrialRecord]:
    return run_sweep(experiment, dataset, folder, [Reports(on_report)])


def ray_processes() -> list[psutil.Process]:
    """What Tune and Train have started for trials with several workers."""
    names = ("RayTrainWorker", "TrainController", "DistributedTrial", "ResourceTrainable", "Mailbox")
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(name in " ".join(process.cmdline()) for name in names):
                found.append(process)
        except psutil.Error:
            continue  # it has just ended
    return found


def everything_is_given_back(within: float = 30) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not ray_processes() and ray.available_resources().get("CPU") == 2:
            return True
        time.sleep(0.5)
    return False


ACCUMULATED = {
    "family": "accumulated",
    "recognizer": "parseq-tiny",
    "changes": {**TINY, "fusion": "attention"},
    "train": {"accumulate": 2},
}
DIVERGING = {
    "family": "diverging",
    "recognizer": "parseq-tiny",
    "changes": {**TINY, "fusion": "none"},
    "train": {"learning_rate": 1e30, "clip": 1e30, "warmup": 0},
}
SHARED = declare(2, [ACCUMULATED])


@pytest.fixture(scope="module")
def alone(small_dataset, tmp_path_factory) -> TrialRecord:
    """The trial that comes to its end, of one worker, which is this process."""
    run_dir = tmp_path_factory.mktemp("alone")
    (trial,) = plan_trials(declare(1, [ACCUMULATED]))
    begin(run_dir, trial)
    splits = load_splits(small_dataset, processor_for(parse_settings(trial.settings)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    list(train_trial(trial, trial_folder(run_dir, trial), DIGITS, *splits))
    torch.set_num_threads(threads)
    return read_record(run_dir, trial)


def losses(record: TrialRecord) -> list[float]:
    assert [report["step"] for report in record.reports] == [4, 8, 12, 16, 20, 24]
    return [report["train_loss"] for report in record.reports]


def assert_same_training(one: TrialRecord, other: TrialRecord) -> None:
    assert one.outcome.status == other.outcome.status == "finished"
    assert losses(one) == pytest.approx(losses(other), abs=1e-3)
    assert losses(one)[-1] < 0.95 * losses(one)[0]
    weights, expected = (load_file(record.checkpoint / "weights.safetensors") for record in (one, other))
    assert weights.keys() == expected.keys()
    moved = 0.0
    for key in expected:
        if key.endswith(("in_proj_bias", "qkv.bias")):
            weights[key][16:32] = expected[key][16:32]  # of the keys, which have no gradient but rounding
        if key != "fusion.legibility.bias":  # nor has what shifts all frames of a softmax
            torch.testing.assert_close(weights[key], expected[key], atol=1e-3, rtol=1e-3)
        moved = max(moved, float(expected[key].abs().max()))
    assert moved > 0.01


@pytest.fixture(scope="module")
def stopped(local_ray, small_dataset, tmp_path_factory) -> Path:
    """The run of a trial that was stopped after 8 steps."""
    run_dir = tmp_path_factory.mktemp("stopped")
    (trial,) = plan_trials(SHARED)
    begin(run_dir, trial)
    processor = processor_for(parse_settings(trial.settings))
    trainable = tune.with_parameters(
        DistributedTrial,
        run_dir=run_dir,
        dataset=small_dataset,
        measure=Measure(),
        charset=DIGITS,
        splits={processor: ray.put(load_splits(small_dataset, processor))},
        workers=2,
        gpus=0,
    )
    tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([{"memory": 1}])),
        param_space={"trial": trial.model_dump(mode="json")},
        tune_config=tune.TuneConfig(metric="exact", mode="max"),
        run_config=tune.RunConfig(
            storage_path=str(run_dir / "tune"),
            stop={"step": 8},
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    ).fit()
    return run_dir


@pytest.mark.slow
def test_a_trial_that_the_scheduler_stops_gives_everything_back_and_has_no_step_beyond(stopped):
    assert everything_is_given_back()
    (trial,) = plan_trials(SHARED)
    folder = trial_folder(stopped, trial)
    assert [report["step"] for report in read_reports(folder)] == [4, 8]
    assert read_outcome(folder) is None


def kill_a_worker() -> None:
    workers = [process for process in ray_processes() if "RayTrainWorker" in " ".join(process.cmdline())]
    assert len(workers) == 2
    os.kill(workers[0].pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def orphaned(stopped, small_dataset) -> tuple[Path, TrialRecord]:
    """The trial that was stopped has gone on, and has lost a worker whenever it had come to step 16."""
    killed: list[int] = []

    def kill(trial: str, report: Mapping[str, Any]) -> None:
        if report["step"] == 16:
            killed.append(report["step"])
            kill_a_worker()

    (lost,) = sweep(SHARED, small_dataset, stopped, kill)
    assert killed == [16, 16]  # after the first time it came there again by itself
    return stopped, lost


@pytest.mark.slow
def test_a_worker_that_dies_again_without_progress_fails_the_trial_with_its_reason_and_leaves_nothing_behind(orphaned):
    _, lost = orphaned
    assert lost.outcome.status == "failed"
    assert "worker " in str(lost.outcome.reason)
    assert "of 2 failed: The actor is dead because its worker process has died" in str(lost.outcome.reason)
    assert everything_is_given_back()


@pytest.mark.slow
def test_two_workers_have_the_curve_and_the_weights_of_one_with_twice_the_batch(alone, orphaned, small_dataset):
    """Each takes 4 of 8 items over 2 batches a step. To be stopped and killed costs the steps since the checkpoint alone.

    What diverges beside it says so from a worker.
    """
    run_dir, _ = orphaned
    accumulated, diverging = sweep(declare(2, [ACCUMULATED, DIVERGING]), small_dataset, run_dir)
    assert_same_training(accumulated, alone)
    assert diverging.outcome.status == "failed"
    assert "lower the learning rate" in str(diverging.outcome.reason)
    assert everything_is_given_back()


def test_more_workers_than_the_cluster_has_room_for_are_refused_at_once(small_dataset, tmp_path):
    with pytest.raises(
        ExperimentError, match="workers_per_trial is 3, each with 1 CPU, and the cluster has room for 2"
    ):
        sweep(declare(3, [ACCUMULATED]), small_dataset, tmp_path)
    with pytest.raises(
        ExperimentError, match="workers_per_trial is 2, each with 2 CPU, and the cluster has room for 1"
    ):
        sweep(declare(2, [ACCUMULATED], resources={"cpus": 2}), small_dataset, tmp_path)


def test_a_batch_that_workers_cannot_share_is_refused_at_once(small_dataset, tmp_path):
    single = {**ACCUMULATED, "train": {"batch_size": 1}}
    with pytest.raises(ExperimentError, match="has a batch_size of 1, which 2 workers cannot share"):
        sweep(declare(2, [single]), small_dataset, tmp_path)
