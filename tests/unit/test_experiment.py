"""Experiment files: what they declare is what is run, and mistakes are named."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from glyphrun.demo import FULL, SMOKE, experiments_folder
from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.load import experiment_schema, load_experiment
from glyphrun.sweeps.plan import plan_trials


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


def test_a_scheduler_of_another_kind_shares_nothing_with_the_one_it_replaces(tmp_path):
    write(tmp_path, BASE + "scheduler: {grace_steps: 9, reduction: 4}\n", "base.yaml")
    same = load_experiment(write(tmp_path, "extends: base.yaml\nscheduler: {grace_steps: 7}\n"))
    assert (same.scheduler.kind, same.scheduler.grace_steps, same.scheduler.reduction) == ("asha", 7, 4)
    other = load_experiment(write(tmp_path, "extends: base.yaml\nscheduler: {kind: median}\n"))
    assert (other.scheduler.kind, other.scheduler.grace_steps, other.scheduler.trials) == ("median", 400, 3)


def test_where_the_data_lie_and_how_much_may_be_spent_make_no_other_experiment(tmp_path):
    base = load_experiment(write(tmp_path, BASE))
    found = load_experiment(write(tmp_path, BASE + "dataset: ../data\nbudget: {hours: 2, steps: 9000}\n"))
    assert found.dataset == str(tmp_path / "../data")
    assert found.hash() == base.hash()
    assert load_experiment(write(tmp_path, BASE + "budget: {latency_ms: 9}\n")).hash() != base.hash()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BASE + "trails: 3\n", "unknown key 'trails'.*did you mean trials"),
        (BASE + "train: {stepz: 3}\n", "unknown key 'stepz' at train.stepz.*did you mean steps"),
        (BASE.replace("query-digits-nano", "query-digit-nano"), "did you mean query-digits-nano"),
        (BASE.replace("encoder.width", "encoder.widht"), "widht"),
        (BASE.replace("[0.001, 0.1]", "[0.1, 0.001]"), "space.train.learning_rate: .*the smaller first"),
        (BASE.replace("log_uniform", "log_unifrom"), "learning_rate: a dimension of the space is .* log_uniform"),
        (
            BASE.replace("choice: [32, 64]", "choice: [32], wehn: {}"),
            "'wehn' at .*encoder.width.wehn: did you mean when",
        ),
        (BASE + "    changes: {precison: 3}\n", "unknown key 'precison'"),
        (BASE + "    changes: {encoder: {widht: 3}}\n", "unknown key 'widht'.*did you mean width"),
        (BASE + "    start: {weights: parseq-tny}\n", "did you mean parseq-tiny"),
        (BASE + "    start: {weights: /no/such/file.pt}\n", "there is no file /no/such/file.pt"),
        (BASE.replace("[32, 64]", "[30]"), "not a multiple of heads"),
        (BASE + "train: {steps: 5}\nscheduler: {grace_steps: 9}\n", "digits.*5 steps and scheduler.grace_steps is 9"),
        (BASE + "scheduler: {kind: ahsa}\n", "scheduler: the kind of a scheduler is asha, hyperband"),
        (BASE + "scheduler: {kind: median, graze_steps: 3}\n", "at scheduler.graze_steps: did you mean grace_steps"),
        (BASE + "searcher: {kind: tpe}\nobjectives: [exact, ms]\n", "tpe has one objective"),
        (BASE + "searcher: {kind: optuna}\n", "optuna has several objectives"),
        (BASE + "objectives: [exact, cost]\n", "needs budget.price_per_hour"),
        (BASE + "objectives: [ms]\n", "the first objective is ms"),
        (BASE + "repeats: 3\n", "trials is 4, no multiple of repeats, 3"),
        (BASE + "resources: {gpus: 1.5}\n", "gpus is 1.5: give a part of one, or a whole number"),
        (BASE + "    resources: {acelerator_type: T4}\n", "did you mean accelerator_type"),
        (BASE + "scheduler: {kind: pbt}\nsearcher: {kind: tpe}\n", "pbt changes settings itself"),
        (BASE + "scheduler: {kind: hyperband}\nsearcher: {kind: tpe}\n", "and tpe proposes them one by one"),
        (BASE.replace("train.learning_rate", "train.warmup") + "scheduler: {kind: pbt}\n", "'digits' searches none"),
        (BASE + "decode_search: {space: {widht: [1]}}\n", "decode_search: .*'widht': did you mean width"),
        ("- just\n- a list\n", "holds no keys"),
        ("name: [unclosed\n", "cannot be read"),
        ("extends: missing.yaml\n", "missing.yaml cannot be read"),
        ("extends: experiment.yaml\n", "extends itself"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path, text, said):
    with pytest.raises(ExperimentError, match=f"(?s){said}"):
        plan_trials(load_experiment(write(tmp_path, text)))


def test_files_named_from_where_a_sweep_is_started_are_found_by_trials_that_run_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits.pt", "words.tsv", "parseq-tiny"):
        (tmp_path / name).touch()
    (tmp_path / "trocr").mkdir()
    text = (
        "name: files\ntrials: 3\ncandidates:\n"
        "  - {family: one, recognizer: parseq-nano, start: {weights: digits.pt, weights_charset: '01'}}\n"
        "  - {family: two, recognizer: parseq-tiny, start: {weights: parseq-tiny},\n"
        "     decode: {correction: {lexicon: words.tsv}}}\n"
        "  - {family: three, recognizer: trocr-small, changes: {source: trocr}}\n"
    )
    one, two, three = plan_trials(load_experiment(write(tmp_path, text)))
    assert (one.start.weights, one.start.weights_charset) == (str(tmp_path / "digits.pt"), "01")
    assert two.start.weights == "parseq-tiny" and two.decode.correction.lexicon == str(tmp_path / "words.tsv")
    assert three.settings["source"] == str(tmp_path / "trocr")


def test_an_editor_is_told_of_what_would_be_refused():
    declared = yaml.safe_load(BASE)
    jsonschema.validate(declared, experiment_schema())
    jsonschema.validate({"extends": "base.yaml", "scheduler": {"kind": "none"}}, experiment_schema())
    for wrong in (
        {"trails": 3},
        {"scheduler": {"kind": "none", "grace_steps": 3}},
        {"searcher": {"kind": "tpy"}},
        {"candidates": [{**declared["candidates"][0], "train": {"stepz": 3}}]},
        {"candidates": [{**declared["candidates"][0], "space": {"train.clip": {"choise": [1]}}}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**declared, **wrong}, experiment_schema())


@pytest.mark.parametrize("size", [FULL, SMOKE])
def test_the_demos_search_three_families_evenly(size):
    trials = plan_trials(load_experiment(experiments_folder() / size.experiment))
    counts = {trial.family: sum(other.family == trial.family for other in trials) for trial in trials}
    assert len(counts) == 3
    assert len(set(counts.values())) == 1
    assert len(trials) >= (8 if size is FULL else 3)


def test_values_are_set_from_the_command_line_as_if_they_stood_in_the_file(tmp_path):
    path = write(tmp_path, BASE)
    sets = [
        "train.steps=700",
        "candidates.0.train.clip=2.5",
        "candidates.digits.changes.encoder.depth=2",
        "candidates.digits.space.train.learning_rate.log_uniform=[0.01, 0.02]",
        "candidates.0.space.train.weight_decay={choice: [0.1]}",
        "resources={cpus: 2, accelerator_type: T4}",
    ]
    experiment = load_experiment(path, sets)
    trials = plan_trials(experiment)
    assert {trial.train.steps for trial in trials} == {700}
    assert {trial.train.clip for trial in trials} == {2.5}
    assert {trial.train.weight_decay for trial in trials} == {0.1}
    assert {trial.settings["encoder"]["depth"] for trial in trials} == {2}
    assert all(0.01 <= trial.train.learning_rate <= 0.02 for trial in trials)
    assert trials[0].resources.needed(gpus=1) == {"CPU": 2, "GPU": 1, "accelerator_type:T4": 0.001}


@pytest.mark.parametrize(
    ("one", "said"),
    [
        ("train.stepz=3", "unknown key 'stepz' at train.stepz: did you mean steps"),
        ("train.steps", "has the form a.b=c"),
        ("train.steps=[1", "is no YAML"),
        ("candidates.3.family=x", "'3' is none of the 1 that are there"),
        ("candidates.digit.family=x", "nor one family alone of digits: did you mean digits"),
        ("name.first=x", "is 'small', which has no keys"),
    ],
)
def test_a_mistake_in_what_is_set_is_named(tmp_path, one, said):
    with pytest.raises(ExperimentError, match=said):
        load_experiment(write(tmp_path, BASE), [one])


def test_the_published_schema_is_that_of_the_code_and_every_experiment_names_it():
    published = experiments_folder() / "experiment.schema.json"
    assert json.loads(published.read_text(encoding="utf-8")) == experiment_schema(), "glyphrun schema > " + str(
        published
    )
    for path in experiments_folder().glob("*.yaml"):
        declared = yaml.safe_load(path.read_text())
        if "candidates" in declared or "extends" in declared:
            jsonschema.validate(declared, experiment_schema())
            assert path.read_text().startswith("# yaml-language-server: $schema=experiment.schema.json\n"), path
