"""What a sweep does when Ray's memory monitor has ended the process of a trial; the sentences are Ray 2.60's."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.low_memory import SAID, halve_ended, word_of
from glyphrun.sweeps.plan import Trial, plan_trials
from glyphrun.sweeps.policies import Budget
from glyphrun.sweeps.trials import as_changed, begin, read_outcome, read_record, trial_folder, write_json
from glyphrun.sweeps.watch import Spending, Watch

ACTORS = ("ce3e88fc43b1d4b4499e569801000000", "aa3e88fc43b1d4b4499e569801000000")


def monitor_says(live: str, ended: str) -> RuntimeError:
    return RuntimeError(
        f"Caught unexpected exception: 1 worker(s) were killed due to the node {SAID}. Memory on the node (IP: 10.0.0.2) was "
        "15.2GB used / 16.0GB limit (0.95)\nRay killed 1 worker(s) based on the killing policy\n"
        f"Considered workers: [(Actor({live}): job ID=01000000, pid=28312)]\n"
        f"Selected to kill: (Actor({ended}): job ID=01000000, task name=ImplicitFunc.__init__, pid=28313)\n"
    )


def works_on(run_dir: Path, actor: str, trial: Trial) -> None:
    word_of(run_dir, actor).parent.mkdir(parents=True, exist_ok=True)
    write_json(word_of(run_dir, actor), {"trial": trial.id})


@pytest.fixture
def trials(tmp_path: Path) -> list[Trial]:
    candidate = {"family": "digits", "recognizer": "query-digits-nano"}
    experiment = Experiment.model_validate({"name": "large", "trials": 2, "candidates": [candidate]})
    planned = plan_trials(experiment)
    for trial, actor in zip(planned, ACTORS, strict=True):
        begin(tmp_path, trial)
        works_on(tmp_path, actor, trial)
    return planned


def test_the_trial_whose_process_was_ended_goes_on_with_half_the_batch_and_fails_the_next_time(trials, tmp_path):
    before = trials[1].train
    assert halve_ended(monitor_says(*ACTORS), tmp_path)
    one, other = (as_changed(trial, trial_folder(tmp_path, trial)).train for trial in trials)
    assert one == trials[0].train
    assert (other.batch_size, other.accumulate) == (before.batch_size // 2, 2 * before.accumulate)
    assert read_outcome(trial_folder(tmp_path, trials[1])) is None
    assert halve_ended(monitor_says(*ACTORS), tmp_path)
    ended = read_record(tmp_path, trials[1]).outcome
    assert ended.status == "failed" and "also with half the batch" in str(ended.reason)
    assert f"batch_size {before.batch_size} became {before.batch_size // 2}" in str(ended.retried)


def test_a_trial_that_a_process_worked_on_before_keeps_its_batch(trials, tmp_path):
    """The first one was finished, or waits for others, when its process took up the second."""
    works_on(tmp_path, ACTORS[0], trials[1])
    assert halve_ended(monitor_says(ACTORS[1], ACTORS[0]), tmp_path)
    one, other = (as_changed(trial, trial_folder(tmp_path, trial)).train for trial in trials)
    assert one == trials[0].train
    assert other.batch_size == trials[1].train.batch_size // 2


def test_errors_about_anything_else_are_not_taken_for_it(trials, tmp_path):
    assert not halve_ended(RuntimeError("the store is full"), tmp_path)
    assert not halve_ended(monitor_says(ACTORS[0], "bb3e88fc43b1d4b4499e569801000000"), tmp_path)
    assert all(as_changed(trial, trial_folder(tmp_path, trial)) == trial for trial in trials)


def test_a_worker_that_was_ended_halves_the_batch_of_its_trial_by_its_last_failure(trials, tmp_path):
    said = tmp_path / "error.txt"
    watch = Watch(tmp_path, "ASHA", Spending(Budget(), lambda: 0.0, {}), [])
    told = SimpleNamespace(
        config=json.loads(json.dumps({"trial": trials[0].model_dump(mode="json")})), error_file=str(said)
    )
    said.write_text(f"Failure # 1\nits node is {SAID}\nFailure # 2\nthe connection was lost\n")
    watch.on_trial_recover(0, [], told)
    folder = trial_folder(tmp_path, trials[0])
    assert as_changed(trials[0], folder) == trials[0]
    said.write_text(said.read_text() + f"Failure # 3\nworker 1 of 2 failed: ({SAID})\n")
    watch.on_trial_recover(0, [], told)
    assert as_changed(trials[0], folder).train.batch_size == trials[0].train.batch_size // 2
