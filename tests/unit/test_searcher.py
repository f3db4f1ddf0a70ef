"""What a learning searcher proposes follows from all that is known and from nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.plan import Trial, plan_trials, resolve_trial
from glyphrun.sweeps.search import Known, propose

SPACE = {
    "train.learning_rate": {"log_uniform": [1e-4, 1e-1]},
    "train.warmup": {"integer": [0, 90]},
    "encoder.width": {"choice": [32, 64, 96]},
}


def declare(
    searcher: dict[str, Any], objectives: list[str], space: dict[str, Any] = SPACE, **changes: Any
) -> Experiment:
    candidate = {"family": "digits", "recognizer": "query-digits-nano", "space": space}
    declared = {"name": "searched", "candidates": [candidate], "searcher": searcher, "objectives": objectives}
    return Experiment.model_validate({**declared, "trials": 60, **changes})


def search(experiment: Experiment, count: int, values: Callable[[Trial], tuple[float, ...]]) -> list[Known]:
    """Trials one after another, each with values that its settings decide."""
    known = [Known(trial, values(trial)) for trial in plan_trials(experiment)]
    for number in range(len(known), count):
        place, sampled = propose(experiment, number, known)
        trial = resolve_trial(experiment, place, number, sampled)
        known.append(Known(trial, values(trial)))
    return known


def accuracy(trial: Trial) -> float:
    """Best at a learning rate of 0.01 and a width of 96."""
    return 1 - 0.2 * abs(np.log10(trial.train.learning_rate) + 2) - 0.002 * (96 - trial.settings["encoder"]["width"])


def test_tpe_comes_close_to_the_best_settings():
    known = search(declare({"kind": "tpe"}, ["exact"]), 40, lambda trial: (accuracy(trial),))
    first, last = [[one.values[0] for one in part] for part in (known[:8], known[-10:])]
    assert np.mean(last) > np.mean(first) + 0.05
    assert max(last) > 0.97
    assert sum(one.trial.settings["encoder"]["width"] == 96 for one in known[-10:]) >= 7


def test_a_proposal_is_the_same_from_the_same_knowledge_and_another_from_more():
    experiment = declare({"kind": "tpe"}, ["exact"])
    known = search(experiment, 12, lambda trial: (accuracy(trial),))
    assert propose(experiment, 12, known) == propose(experiment, 12, list(reversed(known)))
    assert propose(experiment, 12, known) != propose(experiment, 12, known[:10])
    assert propose(experiment, 12, known) != propose(experiment, 12, known, attempt=1)


def test_what_runs_is_not_proposed_again_and_what_failed_is_avoided():
    experiment = declare({"kind": "tpe"}, ["exact"], {"encoder.width": {"choice": [32, 64, 96]}})
    planned = plan_trials(experiment)
    failed = [Known(trial, failed=trial.settings["encoder"]["width"] != 32, values=None) for trial in planned]
    told = [Known(one.trial, None if one.failed else (0.5,), one.failed) for one in failed]
    assert propose(experiment, len(told), told)[1]["encoder.width"] in (32, 64, 96)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_several_objectives_are_searched_at_once(sampler):
    """Width costs time and gives accuracy, so the front holds narrow and wide ones, all at the best learning rate."""
    experiment = declare({"kind": "optuna", "sampler": sampler, "population": 8}, ["exact", "ms"])
    known = search(experiment, 48, lambda trial: (accuracy(trial), trial.settings["encoder"]["width"] / 10))
    early, late = [
        np.mean([abs(np.log10(one.trial.train.learning_rate) + 2) for one in part]) for part in (known[:8], known[-12:])
    ]
    assert late < early / 1.5
    assert len({one.trial.settings["encoder"]["width"] for one in known[-16:]}) >= 2


@pytest.mark.parametrize(
    ("kind", "objectives"), [({"kind": "tpe"}, ["exact"]), ({"kind": "optuna", "sampler": "nsga2"}, ["exact", "ms"])]
)
def test_candidates_and_conditions_are_part_of_what_is_searched(kind, objectives):
    experiment = Experiment.model_validate(
        {
            "name": "conditional",
            "trials": 40,
            "searcher": {**kind, "startup": 10},
            "objectives": objectives,
            "candidates": [
                {
                    "family": "lora",
                    "recognizer": "parseq-nano",
                    "space": {
                        "start.lora.alpha": {"uniform": [1, 64]},
                        "start.lora.rank": {"choice": [0, 8]},
                        "start.lora.targets": {"choice": [["vision"], ["decoder"]]},
                    },
                },
                {"family": "digits", "recognizer": "query-digits-nano", "space": {"train.clip": {"uniform": [0.1, 9]}}},
            ],
        }
    )

    def values(trial: Trial) -> tuple[float, ...]:
        better = 0.5 if trial.family == "digits" else 0.6 + 0.001 * trial.start.lora.alpha * (trial.start.lora.rank > 0)
        return (better, 1.0)[: len(objectives)]

    known = search(experiment, 34, values)
    for one in known:
        trial = one.trial
        assert ("start.lora.alpha" in trial.sampled) == (trial.family == "lora" and trial.start.lora.rank > 0)
        assert trial.start.lora.targets in (("vision", "decoder"), ("vision",), ("decoder",))
    assert {one.trial.family for one in known[:10]} == {"lora", "digits"}
    if kind["kind"] == "tpe":
        assert sum(one.trial.family == "lora" for one in known[-12:]) >= 8
