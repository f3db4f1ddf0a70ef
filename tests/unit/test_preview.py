"""A dry run tells what a sweep would do and cost, and begins nothing."""

import json

import pytest
from typer.testing import CliRunner

from glyphrun.cli import app
from glyphrun.cli.options import console
from glyphrun.sweeps.estimate import time_trials
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.plan import plan_trials

DECLARED = {
    "name": "previewed",
    "trials": 4,
    "train": {"steps": 40, "batch_size": 4, "evaluate_every": 10, "frames_per_item": 1},
    "scheduler": {"grace_steps": 10},
    "resources": {"cpus": 1, "accelerator_type": "T4"},
    "candidates": [
        {
            "family": "digits",
            "recognizer": "query-digits-nano",
            "changes": {"encoder": {"heads": 2}, "decoder_heads": 2},
            "space": {"encoder.width": {"choice": [16, 64]}},
        }
    ],
}


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """The console has the width of the terminal in which its module was first imported, whoever imported it."""
    monkeypatch.setattr(console, "width", 160)


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["sweep", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_each_kind_of_trial_is_timed_and_counted_once(small_dataset):
    trials = plan_trials(Experiment.model_validate(DECLARED))
    estimates = time_trials(trials, small_dataset)
    assert len(estimates) == 2
    narrow, wide = sorted(estimates.values(), key=lambda one: one.step_gflops)
    assert narrow.step_seconds > 0 and narrow.evaluation_seconds > 0
    assert wide.step_gflops > 2 * narrow.step_gflops
    train = trials[0].train
    assert narrow.hours(train) * 3600 == pytest.approx(40 * narrow.step_seconds + 4 * narrow.evaluation_seconds)
    assert narrow.hours_at(train, 2.0) * 3600 == pytest.approx(40 * narrow.step_gflops / 2000)


def test_a_dry_run_prints_trials_resources_and_cost_and_leaves_nothing_behind(small_dataset, tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(json.dumps({**DECLARED, "dataset": str(small_dataset)}))
    said = run(str(path), "--dry-run", "--run-dir", str(tmp_path / "run"), "--set", "train.steps=60", "--tflops", "8")
    assert "previewed: 4 trials" in said and "004-query-digits-nano" in said and "encoder.width 16" in said
    assert "A trial reserves 1 cores" in said and "T4" in said
    assert "core hours at the speed of this machine" in said and "asha stops some early" in said
    assert "GPU hours where 8·10¹² operations a second" in said
    assert not (tmp_path / "run").exists() and "survivors" not in said
    without = run(
        str(path), "--dry-run", "--json", "--set", "dataset=null", "--set", "searcher={kind: tpe, startup: 3}"
    )
    told = json.loads(without)
    assert [trial["steps"] for trial in told["trials"]] == [40] * 3 and told["proposed_later"] == 1
    assert told["trials"][0]["hours"] is None and told["ways_of_reading"] == [0, 0]


def test_a_dry_run_says_in_how_many_ways_survivors_would_be_read(tmp_path):
    search = {
        "survivors": 2,
        "space": {"search": ["greedy", "beam"], "width": [3, 5]},
        "ensemble_vote": ["mbr", "average"],
    }
    path = tmp_path / "experiment.yaml"
    path.write_text(json.dumps({**DECLARED, "decode_search": search}))
    assert "Then 2 survivors are read on val in 4 ways" in run(str(path), "--dry-run")
    both = [*DECLARED["candidates"], {"family": "beams", "recognizer": "parseq-nano"}]
    path.write_text(json.dumps({**DECLARED, "candidates": both, "decode_search": search}))
    assert "in 4 to 12 ways, depending on who survives" in run(str(path), "--dry-run")
    assert json.loads(run(str(path), "--dry-run", "--json"))["ways_of_reading"] == [4, 12]
