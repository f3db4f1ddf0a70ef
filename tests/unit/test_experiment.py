"""Experiment files: what they declare is what is run, and mistakes are named."""

from pathlib import Path

import pytest

from glyphrun.demo import FULL, SMOKE, experiments_folder
from glyphrun.sweeps.experiment import ExperimentError, load_experiment, plan_trials


def write(folder: Path, text: str, name: str = "experiment.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


BASE = """
name: small
trials: 4
candidates:
  - family: digits
    recognizer: query-digits-nano
    space:
      train.learning_rate: {log_uniform: [0.001, 0.1]}
      encoder.width: {choice: [32, 64]}
"""


def test_the_same_file_and_seed_plan_the_same_trials(tmp_path):
    experiment = load_experiment(write(tmp_path, BASE))
    assert plan_trials(experiment) == plan_trials(load_experiment(write(tmp_path, BASE)))
    assert plan_trials(experiment) != plan_trials(experiment.model_copy(update={"seed": 1}))


def test_samples_cover_every_stratum_of_a_range_and_every_choice(tmp_path):
    trials = plan_trials(load_experiment(write(tmp_path, BASE)))
    rates = sorted(trial.train.learning_rate for trial in trials)
    edges = [0.001 * 100 ** (place / 4) for place in range(5)]
    assert all(low <= rate <= high for rate, low, high in zip(rates, edges, edges[1:], strict=False))
    assert sorted(trial.settings["encoder"]["width"] for trial in trials) == [32, 32, 64, 64]
    assert all(trial.sampled["encoder.width"] == trial.settings["encoder"]["width"] for trial in trials)


def test_an_extending_file_changes_only_what_it_names(tmp_path):
    write(tmp_path, BASE, "base.yaml")
    changed = load_experiment(write(tmp_path, "extends: base.yaml\ntrain: {steps: 700}\n", "short.yaml"))
    base = load_experiment(tmp_path / "base.yaml")
    assert changed.train.steps == 700
    assert changed.model_copy(update={"train": base.train}) == base
    assert changed.hash() != base.hash()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BASE + "trails: 3\n", "unknown key 'trails'.*did you mean trials"),
        (BASE + "train: {stepz: 3}\n", "unknown key 'stepz' at train.stepz.*did you mean steps"),
        (BASE.replace("query-digits-nano", "query-digit-nano"), "did you mean query-digits-nano"),
        (BASE.replace("encoder.width", "encoder.widht"), "widht"),
        (BASE.replace("[0.001, 0.1]", "[0.1, 0.001]"), "the smaller first"),
        (BASE + "    changes: {precison: 3}\n", "unknown key 'precison'"),
        (BASE + "    changes: {encoder: {widht: 3}}\n", "unknown key 'widht'.*did you mean width"),
        (BASE + "    start: {weights: parseq-tny}\n", "did you mean parseq-tiny"),
        (BASE + "    start: {weights: /no/such/file.pt}\n", "there is no file /no/such/file.pt"),
        (BASE.replace("[32, 64]", "[30]"), "not a multiple of heads"),
        (BASE + "train: {steps: 5}\nscheduler: {grace_steps: 9}\n", "digits.*5 steps and scheduler.grace_steps is 9"),
        ("- just\n- a list\n", "holds no keys"),
        ("name: [unclosed\n", "cannot be read"),
        ("extends: missing.yaml\n", "missing.yaml cannot be read"),
        ("extends: experiment.yaml\n", "extends itself"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path, text, said):
    with pytest.raises(ExperimentError, match=f"(?s){said}"):
        plan_trials(load_experiment(write(tmp_path, text)))


@pytest.mark.parametrize("size", [FULL, SMOKE])
def test_the_demos_search_three_families_evenly(size):
    trials = plan_trials(load_experiment(experiments_folder() / size.experiment))
    counts = {trial.family: sum(other.family == trial.family for other in trials) for trial in trials}
    assert len(counts) == 3
    assert len(set(counts.values())) == 1
    assert len(trials) >= (8 if size is FULL else 3)
