"""Search spaces: what is drawn from them, and what is not searched where it has no influence."""

from collections import Counter
from typing import Any

import pytest

from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.plan import Trial, plan_trials, trial_count


def declare(space: dict[str, Any], **changes: Any) -> Experiment:
    candidate = {"family": "digits", "recognizer": "query-digits-nano", "space": space}
    return Experiment.model_validate({"name": "searched", "candidates": [candidate], **changes})


def plan(space: dict[str, Any], **changes: Any) -> list[Trial]:
    return plan_trials(declare(space, **changes))


def test_each_kind_of_dimension_stays_within_its_ends_and_reaches_into_every_stratum():
    trials = plan(
        {
            "train.weight_decay": {"uniform": [0.0, 0.1]},
            "train.warmup": {"integer": [10, 19]},
            "train.learning_rate": {"log_uniform": [1e-4, 1e-2]},
        },
        trials=10,
    )
    assert sorted(trial.train.warmup for trial in trials) == list(range(10, 20))
    assert [round(value, 2) for value in sorted(trial.train.weight_decay // 0.01 for trial in trials)] == list(
        range(10)
    )
    below = [trial for trial in trials if trial.train.learning_rate < 1e-3]
    assert len(below) == 5


def test_settings_of_lora_are_searched_only_where_lora_is_on():
    space = {"start.lora.alpha": {"log_uniform": [4, 64]}, "start.lora.rank": {"choice": [0, 8]}}
    trials = plan(space, trials=8)
    assert Counter("start.lora.alpha" in trial.sampled for trial in trials) == {True: 4, False: 4}
    assert all((trial.start.lora.rank == 8) == ("start.lora.alpha" in trial.sampled) for trial in trials)
    assert all(trial.start.lora.alpha == 16 for trial in trials if trial.start.lora.rank == 0)
    # One hypercube for those with LoRA, so that they alone cover the range.
    alphas = sorted(trial.start.lora.alpha for trial in trials if trial.start.lora.rank)
    assert all(4 * 2**place <= alpha <= 4 * 2 ** (place + 1) for place, alpha in enumerate(alphas))


def test_the_width_of_beams_is_searched_only_where_beams_are():
    space = {"decode.width": {"integer": [2, 5]}, "decode.search": {"choice": ["greedy", "beam"]}}
    trials = plan_trials(
        Experiment.model_validate(
            {
                "name": "beams",
                "trials": 8,
                "candidates": [{"family": "parseq", "recognizer": "parseq-nano", "space": space}],
            }
        )
    )
    assert sorted(trial.decode.width for trial in trials) == [1, 1, 1, 1, 2, 3, 4, 5]
    assert {trial.decode.search for trial in trials if trial.decode.width > 1} == {"beam"}


def test_a_condition_may_name_several_values_and_settings_that_are_not_searched():
    space = {
        "train.clip": {"choice": [5.0], "when": {"train.schedule": ["one-cycle"], "encoder.width": [32, 96]}},
        "train.weight_decay": {"choice": [0.5], "when": {"encoder.width": 96}},
        "train.warmup": {"choice": [7], "when": {"encoder.width": 64}},
    }
    for schedule, clip in (("cosine", 1.0), ("one-cycle", 5.0)):
        (trial,) = plan(space, trials=1, train={"schedule": schedule})
        assert (trial.train.clip, trial.train.weight_decay, trial.train.warmup) == (clip, 0.5, 50)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"train.clip": {"choice": [1], "when": {"encoder.widht": 3}}}, "no setting 'widht': did you mean width"),
        (
            {
                "train.clip": {"choice": [1], "when": {"train.warmup": 3}},
                "train.warmup": {"choice": [1], "when": {"train.clip": 3}},
            },
            "train.clip and train.warmup wait for each other",
        ),
        ({"train.warmup": {"grid": [1, 2, 3]}}, "make a grid of 3 combinations, and 2 trials are for it"),
        (
            {"train.warmup": {"choice": [1]}, "train.clip": {"grid": [1], "when": {"train.warmup": 1}}},
            "a grid that waits for train.warmup, which is drawn",
        ),
    ],
)
def test_a_space_that_cannot_be_searched_says_why(space, said):
    with pytest.raises(ValueError, match=said):
        plan(space, trials=2)


def test_a_grid_is_crossed_and_what_is_drawn_is_drawn_beside_it():
    space = {
        "encoder.width": {"grid": [32, 64]},
        "train.warmup": {"grid": [1, 2]},
        "train.learning_rate": {"log_uniform": [1e-4, 1e-2]},
    }
    trials = plan(space, trials=8)
    assert set(Counter((trial.sampled["encoder.width"], trial.train.warmup) for trial in trials).values()) == {2}
    assert len({trial.train.learning_rate for trial in trials}) == 8


def test_the_grid_searcher_tries_every_combination_once_and_leaves_out_what_does_not_apply():
    space = {
        "start.lora.rank": {"choice": [0, 4, 8]},
        "start.lora.alpha": {"grid": [8, 16]},
        "train.warmup": {"integer": [1, 2]},
    }
    experiment = declare(space, searcher={"kind": "grid"}, repeats=2)
    trials = plan_trials(experiment)
    points = Counter(tuple(sorted(trial.sampled.items())) for trial in trials)
    assert len(points) == (1 + 2 * 2) * 2 and set(points.values()) == {2}
    assert trial_count(experiment) == 20
    with pytest.raises(ExperimentError, match="trials is 7 and the grid has 20"):
        plan(space, searcher={"kind": "grid"}, repeats=2, trials=7)
    with pytest.raises(ExperimentError, match="train.clip has infinitely many values"):
        plan({"train.clip": {"uniform": [1, 2]}}, searcher={"kind": "grid"})
    with pytest.raises(ExperimentError, match="there is nothing to add"):
        plan_trials(experiment, [2])


def test_repeats_of_a_configuration_differ_in_nothing_but_the_seed():
    trials = plan({"train.learning_rate": {"log_uniform": [1e-4, 1e-2]}}, trials=6, repeats=3, seed=40)
    assert [trial.configuration for trial in trials] == [0, 0, 0, 1, 1, 1]
    assert [trial.train.seed for trial in trials] == [40, 41, 42, 43, 44, 45]
    assert len({trial.train.learning_rate for trial in trials}) == 2
    first, second = (trials[place].train.model_copy(update={"seed": 0}) for place in (0, 1))
    assert first == second


def test_added_trials_leave_the_earlier_ones_as_they_are():
    space = {"train.learning_rate": {"log_uniform": [1e-4, 1e-2]}}
    experiment = declare(space, trials=3)
    once, twice = plan_trials(experiment, [4]), plan_trials(experiment, [4, 2])
    assert plan_trials(experiment) == once[:3] and once == twice[:7] and len(twice) == 9
    assert len({trial.train.learning_rate for trial in twice}) == 9
    assert [trial.number for trial in twice] == list(range(9))


def test_a_candidates_resources_differ_from_the_experiments_in_what_they_state():
    experiment = Experiment.model_validate(
        {
            "name": "uneven",
            "trials": 2,
            "resources": {"cpus": 2, "accelerator_type": "T4"},
            "candidates": [
                {"family": "small", "recognizer": "parseq-nano", "resources": {"gpus": 0.25}},
                {"family": "large", "recognizer": "parseq-tiny"},
            ],
        }
    )
    small, large = (trial.resources.needed(gpus=1) for trial in plan_trials(experiment))
    assert small == {"CPU": 2, "GPU": 0.25, "accelerator_type:T4": 0.001}
    assert large == {"CPU": 2, "GPU": 1, "accelerator_type:T4": 0.001}
