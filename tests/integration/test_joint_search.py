"""A sweep whose survivors are read in many ways, one of which wins: trained, read, chosen, served and gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from glyphrun.bundle import parse_manifest
from glyphrun.data.batches import load_split
from glyphrun.ensemble_bundle import load_reader
from glyphrun.evaluation.evaluate import evaluate
from glyphrun.progress import show_stages
from glyphrun.report.run import report_run
from glyphrun.run_folder import bundle_of
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.joint import search_ways
from glyphrun.sweeps.plan import plan_trials
from glyphrun.sweeps.run import claim_run, sweep_to_results
from glyphrun.sweeps.train import run_sweep
from glyphrun.sweeps.trained import measure_trials
from glyphrun.sweeps.trials import read_record
from glyphrun.sweeps.winner import winning_way
from one_slot import one_slot

EXPERIMENT = Experiment.model_validate(
    {
        "name": "joint",
        "trials": 2,
        "train": {"steps": 5, "batch_size": 8, "evaluate_every": 5, "checkpoint_every": 5, "warmup": 2},
        "scheduler": {"kind": "none"},
        "objectives": ["exact", "ms", "memory", "cost"],
        "budget": {"latency_ms": 1000, "frames": 4, "price_per_hour": 0.35},
        "pick": {"kind": "cheapest", "tolerance": 0.0, "by": "memory"},
        "keep_checkpoints": 1,
        "decode_search": {"survivors": 2, "ensemble_vote": ["majority", "average"], "space": {"search": ["greedy", "beam"], "width": [3]}},
        "candidates": [
            {
                "family": "parseq",
                "recognizer": "parseq-nano",
                "changes": {"encoder": {"width": 32, "heads": 2}, "decoder_heads": 2, "fusion": "mean"},
            }
        ],
    }
)  # fmt: skip


def sweep(dataset: Path, folder: Path, extend: int = 0) -> dict[str, Any]:
    with claim_run(folder, EXPERIMENT), show_stages(Console(quiet=True)) as stages, one_slot():
        return sweep_to_results(EXPERIMENT, dataset, folder, stages, extend=extend)


def make_talkative(path: Path) -> None:
    """Stretch the weights of a few steps, after which every item would be called unreadable, so that items read differently."""
    weights = {name: weight * (3 if weight.ndim > 1 else 2) for name, weight in load_file(path).items()}
    weights["head.bias"][0] -= 4  # the end
    save_file(weights, path)


@pytest.fixture(scope="module")
def run(local_ray: None, small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("run")
    with one_slot():
        records = run_sweep(EXPERIMENT, small_dataset, folder)
    for record in records:
        make_talkative(record.checkpoint / "weights.safetensors")
    return folder, sweep(small_dataset, folder)


def kept(folder: Path, kind: str) -> dict[str, int]:
    """When each row, or each cost, of the decode search was written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "decode" / kind).glob("*.json")}


def scores_of(bundle: Path, dataset: Path) -> tuple[float, float | None]:
    reader = load_reader(bundle)
    scores = evaluate(reader, [load_split(dataset, "val", processor) for processor in reader.processors])
    return scores.exact.value, scores.cer.value


def test_two_survivors_and_their_ensemble_are_read_in_every_way_and_one_of_these_wins(run):
    _, results = run
    search = results["decode_search"]
    assert len(search["survivors"]) == 2 and len(search["points"]) == 2 * 2 + 2 * 2
    assert {tuple(point["members"]) for point in search["points"] if len(point["members"]) > 1} == {
        tuple(search["survivors"])
    }
    assert len({point["cer"] for point in search["points"]}) > 2
    for point in search["points"]:
        assert point["cost"] == pytest.approx(point["latency_ms"]["p50"] * 0.35 / 3.6)
        assert point["memory_mib"] > 0 and point["within_budget"]
    assert search["measures"] == ["exact", "ms", "memory", "cost"]
    chosen = next(point for point in search["points"] if point["name"] == search["chosen"])
    assert chosen["on_front"] and search["chosen"] in search["front"]
    assert chosen["exact"] == max(point["exact"] for point in search["points"])
    assert results["selection"]["reason"].startswith(search["chosen"])
    assert "least memory" in results["selection"]["rule"] and "Pareto front" in results["selection"]["rule"]
    assert results["winner"] == chosen["members"][0]


def test_the_bundle_that_is_promoted_reads_as_the_point_that_won(run, small_dataset):
    folder, results = run
    search, manifest = results["decode_search"], parse_manifest(bundle_of(folder))
    chosen = next(point for point in search["points"] if point["name"] == search["chosen"])
    exact, cer = scores_of(bundle_of(folder), small_dataset)
    assert exact == chosen["exact"] == results["splits"]["val"]["exact"] == manifest.metrics["val"]["exact"]
    assert cer == chosen["cer"] == results["splits"]["val"]["cer"]
    assert list(results["splits"]) == ["val", "test", "unseen"]
    assert manifest.provenance["trial"] == " + ".join(chosen["members"])


def test_any_way_as_a_bundle_gives_the_scores_that_were_recorded_and_nothing_is_read_twice(
    run, small_dataset, tmp_path
):
    folder, _ = run
    before = kept(folder, "rows"), kept(folder, "costs")
    records = [read_record(folder, trial) for trial in plan_trials(EXPERIMENT)]
    trained = measure_trials(EXPERIMENT, small_dataset, records, lambda _: None)
    ways = search_ways(EXPERIMENT, small_dataset, folder, trained, lambda *_: None)
    assert (kept(folder, "rows"), kept(folder, "costs")) == before
    for number, way in enumerate(way for way in ways.ways if way.point.ensemble_vote):
        won = winning_way(way, ways)
        won.save(tmp_path / f"{number}", "any", won.decode, {}, {})
        assert scores_of(tmp_path / f"{number}", small_dataset) == (way.row["exact"], way.row["cer"]), way.name


def test_the_report_shows_the_search(run):
    page = report_run(run[0]).read_text("utf-8")
    assert 'href="#joint"' in page and 'href="#decoding"' not in page
    figures = json.loads(page.split('id="figures">')[1].split("</script>")[0])
    points = [x for trace in figures["joint"]["data"] if trace["name"] != "Pareto front" for x in trace["x"]]
    assert len(points) == 8 + 1  # the winner has a ring


@pytest.mark.slow
def test_what_is_missing_of_a_search_is_read_again_and_of_an_extended_sweep_what_is_new(run, small_dataset):
    """A search whose driver was killed is one without some of its rows."""
    folder, before = run
    rows, costs = kept(folder, "rows"), kept(folder, "costs")
    gone = sorted(rows)[:3]
    for name in gone:
        (folder / "decode" / "rows" / name).unlink()
    after = sweep(small_dataset, folder, extend=1)
    assert len(after["trials"]) == 3 and len(after["decode_search"]["survivors"]) == 2
    curves = {trial["id"]: trial["curve"] for trial in before["trials"]}
    assert all(trial["curve"] == curves.get(trial["id"], trial["curve"]) for trial in after["trials"])
    now, stayed = kept(folder, "rows"), set(after["decode_search"]["survivors"]) & set(curves)
    assert {name: now[name] for name in rows if name not in gone} == {n: rows[n] for n in rows if n not in gone}
    assert {name: kept(folder, "costs")[name] for name in costs} == costs
    scores = {point["name"]: (point["exact"], point["cer"]) for point in before["decode_search"]["points"]}
    again = [point for point in after["decode_search"]["points"] if set(point["members"]) <= stayed]
    assert all(scores[point["name"]] == (point["exact"], point["cer"]) for point in again) and len(again) >= 2
    of_newcomer_alone, of_newcomer_with_another = 2, 4
    added = 0 if len(stayed) == 2 else of_newcomer_alone + of_newcomer_with_another
    assert len(now.keys() - rows.keys()) == added and len(kept(folder, "costs").keys() - costs.keys()) == added
    assert {path.name for path in (folder / "decode" / "readers").iterdir()} == set(after["decode_search"]["survivors"])
