"""Generations of population based training: what they decide, and that it is carried out once however often it is tried."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.tune.experiment import Trial as TuneTrial
from torch import nn

from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.plan import Trial, plan_trials
from glyphrun.sweeps.population import Population, read_generations, vary
from glyphrun.sweeps.schedulers import Generations
from glyphrun.sweeps.space import Choice, Integer, LogUniform
from glyphrun.sweeps.trials import as_changed, begin, checkpoint_folder, read_change, read_reports, trial_folder
from glyphrun.training.checkpoint import save_checkpoint


def declare(space: dict | None = None, trials: int = 4) -> Experiment:
    searched = {"train.learning_rate": {"log_uniform": [1e-4, 1e-1]}, "train.warmup": {"integer": [1, 9]}}
    candidate = {"family": "digits", "recognizer": "query-digits-nano", "space": space or searched}
    scheduler = {"kind": "pbt", "every_steps": 10, "quantile": 0.25, "resample": 0.0}
    train = {"steps": 30, "evaluate_every": 5}
    declared = {"name": "bred", "trials": trials, "train": train, "scheduler": scheduler, "candidates": [candidate]}
    return Experiment.model_validate(declared)


def leave_checkpoints(run_dir: Path, trials: list[Trial], step: int) -> None:
    for number, trial in enumerate(trials):
        begin(run_dir, trial)
        torch.manual_seed(number)
        model = nn.Linear(2, 2)
        reports = {"step": step, "reports": [{"step": step, "of": trial.id}]}
        save_checkpoint(
            checkpoint_folder(trial_folder(run_dir, trial)), model, torch.optim.AdamW(model.parameters()), reports
        )


def test_the_worst_goes_on_from_the_checkpoint_of_the_best_with_settings_beside_its_own(tmp_path):
    trials = plan_trials(declare())
    leave_checkpoints(tmp_path, trials, 10)
    population = Population(declare(), tmp_path, trials)
    assert population.meets(trials[0].id, 10) and not population.meets(trials[0].id, 5)
    assert not population.meets(trials[0].id, 30)
    scores = {trial.id: score for trial, score in zip(trials, (0.4, 0.1, 0.9, 0.3), strict=True)}
    (exploit,) = population.decide(10, scores).exploits
    loser, best = trials[1], trials[2]
    assert (exploit.trial, exploit.donor) == (loser.id, best.id)
    folder = trial_folder(tmp_path, loser)
    assert read_reports(folder) == [{"step": 10, "of": best.id}]
    changed = as_changed(loser, folder)
    factor = changed.train.learning_rate / best.train.learning_rate
    assert factor == pytest.approx(0.8, rel=0.01) or factor == pytest.approx(1.2, rel=0.01)
    assert changed.train.warmup == best.train.warmup  # what cannot change on the way comes with the weights
    assert changed.train.seed == loser.train.seed
    assert changed.sampled["train.learning_rate"] == changed.train.learning_rate
    assert not any(population.meets(trial.id, 10) for trial in trials)
    assert [read_change(trial_folder(tmp_path, trial)) for trial in trials if trial != loser] == [None] * 3


def test_what_was_decided_and_not_carried_out_is_carried_out_by_the_next_attempt_and_only_once(tmp_path):
    trials = plan_trials(declare())
    leave_checkpoints(tmp_path, trials, 10)
    scores = {trial.id: float(place) for place, trial in enumerate(trials)}
    (exploit,) = Population(declare(), tmp_path, trials).decide(10, scores).exploits
    told = json.loads((tmp_path / "population.json").read_text())
    assert told[0]["applied"]
    leave_checkpoints(tmp_path, trials, 10)
    (tmp_path / "population.json").write_text(json.dumps([{**told[0], "applied": False}]))
    again = Population(declare(), tmp_path, trials)
    folder = trial_folder(tmp_path, trials[0])
    assert read_reports(folder) == [{"step": 10, "of": exploit.donor}]
    change = read_change(folder)
    assert change is not None and change.parents == [{"step": 10, "trial": exploit.donor}]
    assert read_generations(tmp_path)[0].applied
    assert not again.meets(trials[0].id, 10) and again.meets(trials[0].id, 20)


def test_the_same_scores_and_seed_decide_the_same(tmp_path):
    trials = plan_trials(declare(trials=8))
    decided = []
    for name in ("one", "two"):
        leave_checkpoints(tmp_path / name, trials, 10)
        scores = {trial.id: float(place % 5) for place, trial in enumerate(trials)}
        shuffled = dict(sorted(scores.items(), reverse=name == "two"))
        decided.append(Population(declare(trials=8), tmp_path / name, trials).decide(10, shuffled).exploits)
    assert decided[0] == decided[1] and len(decided[0]) == 2


def test_weights_are_only_taken_from_trials_that_they_fit(tmp_path):
    space = {"train.learning_rate": {"log_uniform": [1e-4, 1e-1]}, "encoder.width": {"choice": [32, 64]}}
    trials = plan_trials(declare(space))
    leave_checkpoints(tmp_path, trials, 10)
    scores = {trial.id: float(place) for place, trial in enumerate(trials)}
    width = {trial.id: trial.settings["encoder"]["width"] for trial in trials}
    exploits = Population(declare(space), tmp_path, trials).decide(10, scores).exploits
    assert len(exploits) == 2 and all(width[one.trial] == width[one.donor] for one in exploits)
    with pytest.raises(ExperimentError, match="no two trials have the same recognizer, start and"):
        Population(declare(space, trials=1), tmp_path, trials[:1])


class Tune:
    """What a scheduler sees of Tune: its trials."""

    def __init__(self, trials: list[Trial]) -> None:
        told = [{"trial": trial.model_dump(mode="json")} for trial in trials]
        self.trials = [TuneTrial("trial", config=config, stub=True) for config in told]

    def get_trials(self) -> list[TuneTrial]:
        return self.trials

    def set(self, status: str, *numbers: int) -> None:
        for number in numbers:
            self.trials[number].set_status(status)


def test_a_generation_waits_for_a_trial_that_was_lost_and_not_for_one_that_failed(tmp_path):
    trials = plan_trials(declare())
    leave_checkpoints(tmp_path, trials, 10)
    controller, scheduler = Tune(trials), Generations(Population(declare(), tmp_path, trials), "exact")
    first, second, third, fourth = controller.trials
    controller.set("RUNNING", 0, 1, 2)
    for place, trial in enumerate((first, second, third)):
        assert scheduler.on_trial_result(controller, trial, {"step": 5, "exact": 0.0}) == "CONTINUE"
        assert scheduler.on_trial_result(controller, trial, {"step": 10, "exact": place / 10}) == "PAUSE"
    controller.set("PAUSED", 0, 1)
    assert (
        scheduler.choose_trial_to_run(controller) is fourth
    )  # it has not begun, and makes no room for those that wait
    controller.set("RUNNING", 3)
    assert scheduler.choose_trial_to_run(controller) is None
    controller.set("PAUSED", 2)
    controller.set("PENDING", 3)  # its process is lost
    assert scheduler.choose_trial_to_run(controller) is fourth
    assert not read_generations(tmp_path)
    controller.set("ERROR", 3)
    assert scheduler.choose_trial_to_run(controller) is first
    (generation,) = read_generations(tmp_path)
    assert (generation.step, set(generation.scores)) == (10, {trial.id for trial in trials[:3]})
    assert [(exploit.trial, exploit.donor) for exploit in generation.exploits] == [(trials[0].id, trials[2].id)]
    assert scheduler.on_trial_result(controller, first, {"step": 10, "exact": 0.2}) == "CONTINUE"


def test_a_varied_value_stays_in_its_space():
    rng = np.random.default_rng(0)
    rates = {vary(LogUniform(log_uniform=(0.9, 1.1)), 1.0, 0.0, rng) for _ in range(20)}
    assert rates == {0.9, 1.1}
    assert {vary(Choice(choice=[1, 2, 3]), 2, 0.0, rng) for _ in range(20)} == {1, 3}
    assert {vary(Choice(choice=[1, 2, 3]), 3, 0.0, rng) for _ in range(20)} == {2, 3}
    assert {vary(Integer(integer=(1, 11)), 10, 0.0, rng) for _ in range(20)} == {8, 11}
    drawn = [vary(LogUniform(log_uniform=(1e-4, 1e-1)), 0.01, 1.0, rng) for _ in range(50)]
    assert min(drawn) < 5e-4 and max(drawn) > 2e-2
