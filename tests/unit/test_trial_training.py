"""The training of one trial without Ray: what it goes on with when memory does not suffice, and what it measures."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from glyphrun.memory import OutOfMemory
from glyphrun.models.zoo import parse_settings
from glyphrun.recipe import processor_for
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.plan import Trial, plan_trials
from glyphrun.sweeps.training import Measure, load_splits, train_trial
from glyphrun.sweeps.trials import as_changed, begin, read_change, read_outcome, read_record, trial_folder
from glyphrun.text import DIGITS
from little_memory import allow

TRAIN = {"steps": 4, "batch_size": 8, "evaluate_every": 2, "checkpoint_every": 2, "warmup": 1, "frames_per_item": 1}


def one_trial(changes: dict[str, Any], **train: Any) -> Trial:
    declared = {"family": "one", "recognizer": "query-digits-nano", "changes": changes}
    experiment = {"name": "one", "trials": 1, "scheduler": {"kind": "none"}, "train": {**TRAIN, **train}}
    return plan_trials(Experiment.model_validate({**experiment, "candidates": [declared]}))[0]


SMALL = {"encoder": {"width": 16, "heads": 2}, "decoder_heads": 2}


def train(trial: Trial, run_dir: Path, dataset: Path, measure: Measure = Measure()) -> list[dict[str, Any]]:
    begin(run_dir, trial)
    splits = load_splits(dataset, processor_for(parse_settings(trial.settings)))
    return list(train_trial(trial, trial_folder(run_dir, trial), DIGITS, *splits, measure=measure))


def test_objectives_are_measured_once_and_told_with_every_report(small_dataset, tmp_path):
    trial = one_trial(SMALL)
    told = train(trial, tmp_path, small_dataset, Measure(("ms", "memory", "cost"), frames=2, price_per_hour=0.36))
    assert [report["step"] for report in told] == [2, 4]
    first, second = told
    assert first["ms"] == second["ms"] > 0
    assert first["cost"] == pytest.approx(first["ms"] * 0.1)  # a million items at 1 ms are 1000 s, at 0.36 an hour 0.1
    record = read_record(tmp_path, trial)
    assert record.measured == {name: first[name] for name in ("ms", "memory", "cost")}
    assert record.outcome.status == "finished" and record.outcome.retried is None


def starve(dataset: Path, folder: Path, megabytes: int, batch_sizes: dict[str, int]) -> None:
    """Trials in a process whose memory is limited once libraries and a first training have taken theirs."""
    torch.set_num_threads(1)
    patches = {"encoder": {"width": 32, "heads": 2, "stem": "patch", "patch": [2, 2]}, "decoder_heads": 2}
    train(one_trial(patches, batch_size=2, steps=2), folder / "first", dataset)
    allow(megabytes)
    for run, batch_size in batch_sizes.items():
        try:
            train(one_trial(patches, batch_size=batch_size), folder / run, dataset)
        except OutOfMemory as error:
            (folder / run / "said").write_text(str(error))


def test_a_trial_that_runs_out_of_memory_goes_on_once_with_half_the_batch_and_says_so(small_dataset, tmp_path):
    processes = multiprocessing.get_context("spawn")
    process = processes.Process(target=starve, args=(small_dataset, tmp_path, 80, {"fits": 32, "does-not": 60}))
    process.start()
    process.join()
    assert process.exitcode == 0
    (folder,) = (tmp_path / "fits" / "trials").iterdir()
    change, outcome = read_change(folder), read_outcome(folder)
    assert change is not None and change.train == {"batch_size": 16, "accumulate": 2}
    assert outcome is not None and outcome.status == "finished"
    assert str(outcome.retried).startswith(
        "batch_size 32 became 16, accumulated 2 times: a batch of 32 items does not fit"
    )
    trial = Trial.model_validate_json((folder / "trial.json").read_text())
    assert (trial.train.batch_size, as_changed(trial, folder).train.batch_size) == (32, 16)
    (folder,) = (tmp_path / "does-not" / "trials").iterdir()
    outcome = read_outcome(folder)
    assert outcome is not None and outcome.status == "failed"
    assert outcome.reason == (tmp_path / "does-not" / "said").read_text()
    assert "a batch of 30 items does not fit" in str(outcome.reason) and "60 became 30" in str(outcome.retried)
