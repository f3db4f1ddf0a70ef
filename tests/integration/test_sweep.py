"""A sweep under a real Ray: what it keeps, what it refuses, and what a killed one goes on with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from glyphrun.bundle import load_engine, read_manifest
from glyphrun.cli import app
from glyphrun.cli.ensembles import members_of
from glyphrun.data.batches import load_split
from glyphrun.data.sample import iterate_samples
from glyphrun.data.shards import write_samples
from glyphrun.evaluation.evaluate import evaluate
from glyphrun.mirror import run_at
from glyphrun.progress import show_stages
from glyphrun.registry import Registry
from glyphrun.report.run import report_run
from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.plan import Trial, plan_trials
from glyphrun.sweeps.population import read_generations
from glyphrun.sweeps.rerun import rerun_trial
from glyphrun.sweeps.run import claim_run, sweep_to_results
from glyphrun.sweeps.train import run_sweep
from glyphrun.sweeps.trials import Outcome, read_outcome, read_reports, trial_folder
from glyphrun.text import DIGITS
from one_slot import one_slot

TINY = {"encoder": {"width": 16, "heads": 2}, "decoder_heads": 2}


def declare(**changes) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "tiny",
            "trials": 3,
            "train": {"steps": 30, "batch_size": 8, "evaluate_every": 10, "checkpoint_every": 5, "warmup": 2},
            "scheduler": {"grace_steps": 10, "reduction": 3},
            "budget": {"latency_ms": 1000, "frames": 4},
            "abstain_for_precision": 0.05,
            "candidates": [
                {"family": "digits", "recognizer": "query-digits-nano", "changes": TINY},
                {
                    "family": "diverges",
                    "recognizer": "parseq-nano",
                    "changes": TINY,
                    "train": {"learning_rate": 1e30, "clip": 1e30},
                },
                {"family": "votes", "recognizer": "parseq-nano", "changes": {**TINY, "fusion": "none"}},
            ],
            **changes,
        }
    )


@pytest.fixture(scope="module")
def run(local_ray, small_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with claim_run(folder, declare()), show_stages(Console(quiet=True)) as stages, one_slot():
        results = sweep_to_results(declare(), small_dataset, folder, stages)
    return folder, results


def test_the_winner_is_among_the_trials_and_within_the_budget(run):
    _, results = run
    chosen = next(trial for trial in results["trials"] if trial["id"] == results["winner"])
    assert chosen["within_budget"]
    assert chosen["val"]["exact"] == max(trial["val"]["exact"] for trial in results["trials"] if trial["val"])


def test_a_trial_that_diverged_has_its_reason_and_does_not_end_the_sweep(run):
    _, results = run
    diverged = next(trial for trial in results["trials"] if trial["family"] == "diverges")
    assert diverged["status"] == "failed"
    assert "lower the learning rate" in diverged["reason"]
    assert [trial["status"] for trial in results["trials"] if trial is not diverged].count("failed") == 0


def test_curves_stand_at_the_declared_steps(run):
    _, results = run
    for trial in results["trials"]:
        if trial["status"] == "finished":
            assert [point["step"] for point in trial["curve"]] == [10, 20, 30]


def test_held_out_splits_are_scored_for_the_winner_and_the_bundle_gives_the_same(run, small_dataset):
    folder, results = run
    assert list(results["splits"]) == ["val", "test", "unseen"]
    engine = load_engine(folder / "bundle")
    again = evaluate(engine, load_split(small_dataset, "test", engine.processor)).to_json()
    assert {key: again[key] for key in ("n", "exact", "cer")} == {
        key: results["splits"]["test"][key] for key in ("n", "exact", "cer")
    }
    assert results["run"]["dataset"]["counts"] == {"train": 60, "val": 20, "test": 20, "unseen": 20}


def test_what_val_says_of_confidence_travels_in_the_bundle(run):
    folder, results = run
    said, decode = results["confidence"], read_manifest(folder / "bundle").decode
    assert list(said["splits"]) == ["val", "test", "unseen"]
    for split, confidence in said["splits"].items():
        assert confidence["right"] == pytest.approx(results["splits"][split]["exact"])
        assert confidence["risk_coverage"]["risk"][-1] == pytest.approx(1 - results["splits"][split]["exact"])
    assert decode.calibration.temperature == said["temperature"]["value"]
    assert decode.calibration.character_temperature == said["character_temperature"]["value"]
    assert decode.abstain_below == said["abstain_below"]
    attained = said["splits"]["val"]["answered"]["precision"]
    assert attained >= 0.05 if said["abstention"]["reason"] is None else decode.abstain_below == 0


def test_a_trial_that_is_trained_again_without_ray_has_the_same_weights(run, tmp_path):
    folder, results = run
    copied = tmp_path / "run"
    shutil.copytree(folder, copied)
    again = rerun_trial(copied, results["winner"])
    assert again.equal and again.difference == 0 and "weights are equal" in again.said()
    change = {"train": {"learning_rate": 0.003}, "sampled": {}, "retried": None, "parents": []}
    (copied / "trials" / results["winner"] / "change.json").write_text(json.dumps(change))
    other = rerun_trial(copied, results["winner"])
    assert not other.equal and other.difference > 0
    with pytest.raises(ExperimentError, match=f"did you mean {results['winner']}"):
        rerun_trial(copied, results["winner"][:-1])


def test_results_say_what_repeating_them_takes(run):
    _, results = run
    said = results["run"]
    assert len(said["dataset"]["hash"]) == len(said["code_hash"]) == len(said["experiment_hash"]) == 64
    assert {"python", "torch", "ray", "optuna"} <= set(said["packages"])
    assert [trial["seed"] for trial in results["trials"]] == [0, 1, 2] and said["seed"] == 0


def test_the_report_shows_every_trial(run):
    folder, results = run
    page = report_run(folder).read_text("utf-8")
    assert all(trial["id"] in page for trial in results["trials"])
    for trial in results["trials"]:
        if trial["val"]:
            assert trial["memory_mib"] > 2 * trial["parameters"] / 2**20 and trial["items_per_s"] > 0
    assert results["importance"]["reason"].endswith("are too few: at least 8 are needed")
    shown = [(one["split"], one["truth"] == one["reading"]) for one in results["examples"]]
    assert len(shown) == 24 and {split for split, _ in shown} == {"test", "unseen"}
    wrong = sum(round((1 - results["splits"][split]["exact"]) * 20) for split in ("test", "unseen"))
    assert [right for _, right in shown].count(False) == min(wrong, max(12, wrong - 16))


def test_a_finished_run_is_not_done_again_and_takes_no_other_experiment(run, small_dataset):
    folder, results = run
    before = (folder / "results.json").stat().st_mtime_ns
    with show_stages(Console(quiet=True)) as stages:
        assert sweep_to_results(declare(), small_dataset, folder, stages) == results
    assert (folder / "results.json").stat().st_mtime_ns == before
    with pytest.raises(ExperimentError, match="another experiment"), claim_run(folder, declare(seed=9)):
        pass
    with (
        claim_run(folder, declare()),
        pytest.raises(BlockingIOError, match="another process works in"),
        claim_run(folder, declare()),
    ):
        pass


def test_a_run_is_not_continued_on_other_data(run, small_dataset, tmp_path):
    folder, _ = run
    samples = iterate_samples(small_dataset)
    next(samples)
    card = {"name": "other", "licence": "none", "description": "The same but for one tracklet.", "charset": DIGITS}
    write_samples(samples, tmp_path / "other", **card)
    with show_stages(Console(quiet=True)) as stages, pytest.raises(ExperimentError, match="other data"):
        sweep_to_results(declare(), tmp_path / "other", folder, stages)


def test_a_run_broken_off_after_its_bundle_is_concluded_again(run, small_dataset, tmp_path):
    folder, results = run
    broken = tmp_path / "run"
    shutil.copytree(folder, broken)
    (broken / "results.json").unlink()
    with show_stages(Console(quiet=True)) as stages, one_slot():
        again = sweep_to_results(declare(), small_dataset, broken, stages)
    assert [trial["val"] for trial in again["trials"]] == [trial["val"] for trial in results["trials"]]
    assert (broken / "bundle/SHA256SUMS").exists()


def test_what_is_refused_before_a_trial_has_begun_claims_no_folder(local_ray, small_dataset, tmp_path):
    with pytest.raises(ExperimentError, match="asks for 64 CPU, and no"):
        sweep(declare(resources={"cpus": 64}), small_dataset, tmp_path)
    with claim_run(tmp_path, declare()):
        declared = json.loads((tmp_path / "experiment.json").read_text())
    assert declared["hash"] == declare().hash()


def sweep(experiment: Experiment, dataset: Path, folder: Path, **options) -> dict:
    with claim_run(folder, experiment), show_stages(Console(quiet=True)) as stages:
        return sweep_to_results(experiment, dataset, folder, stages, **options)


SHORT = {"steps": 10, "batch_size": 8, "evaluate_every": 5, "checkpoint_every": 5, "warmup": 2}
SEARCHED = {
    "family": "digits",
    "recognizer": "query-digits-nano",
    "changes": TINY,
    "space": {"train.learning_rate": {"log_uniform": [0.0005, 0.01]}},
}


@pytest.mark.slow
def test_trials_are_added_to_a_finished_sweep_whose_searcher_is_told_of_what_is_known(
    local_ray, small_dataset, tmp_path
):
    """A learning searcher, three trials and then two more; what was trained before is left alone."""
    experiment = declare(
        trials=3, candidates=[SEARCHED], train=SHORT, scheduler={"kind": "none"}, searcher={"kind": "tpe", "startup": 2},
        keep_checkpoints=1,
    )  # fmt: skip
    with pytest.raises(ExperimentError, match="the sweep has not finished"):
        sweep(experiment, small_dataset, tmp_path, extend=2)
    with one_slot():
        before = sweep(experiment, small_dataset, tmp_path)
    states = {trial["id"]: trial["curve"] for trial in before["trials"]}
    assert len(states) == 3 and before["run"]["extended"] == []
    weights = {path.parents[1].name for path in (tmp_path / "trials").glob("*/checkpoint/weights.safetensors")}
    kept = {trial["id"] for trial in before["trials"] if trial["on_front"]} | {before["winner"]}
    assert kept <= weights < set(states) | kept
    with one_slot():
        after = sweep(experiment, small_dataset, tmp_path, extend=2)
    assert len(after["trials"]) == 5 and after["run"]["extended"] == [2]
    assert [trial["id"] for trial in after["trials"]][:3] == list(states)
    for trial in after["trials"]:
        assert trial["status"] == "finished" and trial["latency_ms"]["p50"] > 0
        assert states.get(trial["id"], trial["curve"]) == trial["curve"]
    assert len({trial["changes"]["train.learning_rate"] for trial in after["trials"]}) == 5
    assert sweep(experiment, small_dataset, tmp_path) == after
    events = [path.parents[1].name for path in (tmp_path / "trials").glob("*/tensorboard/events*")]
    assert sorted(events) == [trial["id"] for trial in after["trials"]]


class KillTwice:
    """Listens to a sweep and ends the process of a trial at its second report, and the next one's at the fifth."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.known: list[list[dict]] = []

    def started(self, trial: Trial) -> None: ...

    def reported(self, trial: Trial, told: Mapping[str, Any]) -> None:
        if told["step"] == (10, 25, None)[len(self.known)]:
            self.known.append(read_reports(trial_folder(self.run_dir, trial)))
            os.kill(told["pid"], signal.SIGKILL)

    def waits(self, trial: Trial) -> None: ...

    def ended(self, trial: Trial, outcome: Outcome) -> None: ...


@pytest.mark.slow
def test_a_trial_whose_processes_are_killed_goes_on_from_its_checkpoint(local_ray, small_dataset, tmp_path):
    """Seconds of training are part of a report, so that one of steps that were done again would differ."""
    killer = KillTwice(tmp_path)
    experiment = declare(trials=1, candidates=[SEARCHED], train={**SHORT, "steps": 40}, scheduler={"kind": "none"})
    (record,) = run_sweep(experiment, small_dataset, tmp_path, [killer])
    first, second = killer.known
    assert 2 <= len(first) < 5 <= len(second) <= 8
    assert record.outcome.status == "finished"
    assert [report["step"] for report in record.reports] == list(range(5, 41, 5))
    assert record.reports[: len(first)] == first
    assert record.reports[: len(second)] == second


@pytest.mark.slow
def test_a_sweep_on_one_slot_has_the_leaderboard_and_the_weights_of_one_on_two(local_ray, small_dataset, tmp_path):
    """Trials overtake each other on two slots; on one they come in turn. On both they wait for each other at rungs."""
    experiment = declare(
        trials=5,
        objectives=["cer"],
        candidates=[{**SEARCHED, "space": {"train.learning_rate": {"log_uniform": [0.001, 0.5]}}}],
        train={**SHORT, "steps": 20},
        scheduler={"kind": "hyperband", "grace_steps": 5, "reduction": 2},
    )
    swept = [run_sweep(experiment, small_dataset, tmp_path / "two")]
    with one_slot():
        swept.append(run_sweep(experiment, small_dataset, tmp_path / "one"))
    told = [
        [
            (record.trial.id, record.outcome, [report["scores"]["cer"] for report in record.reports])
            for record in records
        ]
        for records in swept
    ]
    assert told[0] == told[1]
    assert {outcome.status for _, outcome, _ in told[0]} == {"finished", "stopped"}
    for one, other in zip(*swept, strict=True):
        weights, again = (load_file(record.checkpoint / "weights.safetensors") for record in (one, other))
        assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.slow
def test_a_population_that_is_broken_off_ends_with_the_weights_of_one_left_alone(local_ray, small_dataset, tmp_path):
    """Three trials which meet at step 4, on two slots; then on one, where a sweep is ended by its budget on the way."""
    steep = {"train.learning_rate": {"log_uniform": [0.02, 0.5]}}  # so that some read something soon
    changes = {
        "trials": 3,
        "objectives": ["cer"],
        "candidates": [{**SEARCHED, "space": steep}],
        "train": {**SHORT, "steps": 8, "evaluate_every": 4, "checkpoint_every": 3},
        "scheduler": {"kind": "pbt", "every_steps": 4},
    }
    whole = run_sweep(declare(**changes), small_dataset, tmp_path / "whole")
    with one_slot():
        run_sweep(declare(**changes, budget={"steps": 15}), small_dataset, tmp_path / "broken")
        assert len(read_generations(tmp_path / "broken")) == 1
        resumed = run_sweep(declare(**changes), small_dataset, tmp_path / "broken")
    generations = read_generations(tmp_path / "whole")
    assert [generation.step for generation in generations] == [4]
    assert any(generation.exploits for generation in generations)
    assert read_generations(tmp_path / "broken") == generations
    for one, other in zip(whole, resumed, strict=True):
        assert one.outcome.status == other.outcome.status == "finished"
        assert [report["step"] for report in one.reports] == [4, 8]
        weights, again = (load_file(record.checkpoint / "weights.safetensors") for record in (one, other))
        assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on_on_an_empty_machine_and_is_promoted_from_a_third(
    local_ray, small_dataset, bucket, tmp_path, monkeypatch
):
    place, heard = bucket.format(f"{tmp_path.name}/shirts"), []

    def at(machine: str, steps: int, **options) -> dict:
        monkeypatch.setenv("GLYPHRUN_CACHE", str(tmp_path / machine))
        experiment = declare(
            trials=2, candidates=[SEARCHED], train=SHORT, scheduler={"kind": "none"},
            budget={"latency_ms": 1000, "frames": 4, "steps": steps},
        )  # fmt: skip
        with run_at(place, heard.append, resume=machine != "first") as (folder, mirrors), one_slot():
            results = sweep(experiment, small_dataset, folder, listeners=mirrors, **options)
            report_run(folder)
        return results

    begun = at("first", 10)
    assert begun["run"]["spent"]
    assert any("the budget of 10 steps was spent" in str(trial["reason"]) for trial in begun["trials"])
    shutil.rmtree(tmp_path / "first")
    finished = at("second", 100)
    assert [trial["status"] for trial in finished["trials"]] == ["finished"] * 2
    for before, after in zip(begun["trials"], finished["trials"], strict=True):
        assert after["curve"][: len(before["curve"])] == before["curve"]
    assert len(at("second", 100, extend=1)["trials"]) == 3
    monkeypatch.setenv("GLYPHRUN_CACHE", str(tmp_path / "third"))
    registry = str(tmp_path / "registry")
    promoted = CliRunner().invoke(app, ["promote", place, "--name", "shirts", "--registry", registry])
    assert promoted.exit_code == 0, promoted.output
    assert Registry(registry).promotion("shirts", 1).run == place.partition("?")[0]
    assert not list((tmp_path / "third").rglob("weights.safetensors"))[1:]  # the bundle's alone
    assert len(members_of([place], registry)) == len(members_of([f"mine={place}"], registry)) == 1
    assert not heard


SWEEP = """
import sys
from pathlib import Path
import ray
from rich.console import Console
sys.path[:0] = {tests!r}
from test_sweep import declare
from glyphrun.progress import show_stages
from glyphrun.sweeps.run import sweep_to_results
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
with show_stages(Console(quiet=True)) as stages:
    sweep_to_results(declare(**{changes!r}), Path({dataset!r}), Path({run!r}), stages, extend={extend})
"""


def start(dataset: Path, run_dir: Path, changes: dict, extend: int = 0) -> subprocess.Popen:
    """A driver of its own, with a Ray of its own."""
    script = SWEEP.format(
        tests=[str(folder) for folder in Path(__file__).parents[:2]],
        changes=changes,
        dataset=str(dataset),
        run=str(run_dir),
        extend=extend,
    )
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen([sys.executable, "-c", script], env=environment)


def kill_after(process: subprocess.Popen, folder: Path, reports: int) -> list[dict]:
    """What a trial has reported when its driver is gone; it is killed after so many reports."""
    deadline = time.monotonic() + 120
    while len(read_reports(folder)) < reports and read_outcome(folder) is None:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(3)  # Ray's reaper ends the workers of a driver that was killed
    known = read_reports(folder)
    assert known
    return known


@pytest.mark.slow
def test_a_sweep_whose_driver_is_killed_loses_no_report_and_goes_on_with_the_same_trials(run, small_dataset, tmp_path):
    """A finished one that was being extended, so that there are finished trials and one that runs."""
    _, before = run
    extended = tmp_path / "run"
    shutil.copytree(run[0], extended)
    added = trial_folder(extended, plan_trials(declare(), [1])[3])
    known = kill_after(start(small_dataset, extended, {}, extend=1), added, 1)
    assert json.loads((extended / "results.json").read_text()) == before
    with one_slot():
        after = sweep(declare(), small_dataset, extended, extend=1)
    assert after["run"]["extended"] == [1] and len(after["trials"]) == 4
    assert read_reports(added)[: len(known)] == known
    for one, other in zip(before["trials"], after["trials"], strict=False):
        assert (one["id"], one["status"], one["curve"]) == (other["id"], other["status"], other["curve"])
