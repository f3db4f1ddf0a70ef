"""Before a sweep starts it is known whether it can end, and what to change if not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from glyphrun.images import ImageProcessor
from glyphrun.sweeps.beside import data_need, decoded_bytes, serve_needs
from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.nodes import Node, file_nodes
from glyphrun.sweeps.preflight import Plan, preflight, require

ROOT = Path(__file__).resolve().parents[2]


def experiment(trials: int = 9, candidates: list[dict[str, Any]] | None = None, **changes: Any) -> Experiment:
    """One family, A, unless others are named by their resources."""
    declared = [
        {"family": chr(65 + place), "recognizer": "parseq-nano", "resources": resources}
        for place, resources in enumerate(candidates or [{}])
    ]
    return Experiment.model_validate({"name": "sweep", "trials": trials, "candidates": declared, **changes})


def node(cpus: float, gpus: float = 0, kind: str | None = None, *, free: float | None = None, **more: Any) -> Node:
    total = {"CPU": cpus, "GPU": gpus, **({f"accelerator_type:{kind}": 1.0} if kind else {})}
    return Node(more.pop("name", "node"), total, {**total, "CPU": cpus if free is None else free}, **more)


def refusal(plan: Plan) -> str:
    (said,) = plan.refusals
    assert plan.max_concurrent_trials == 0
    return said


def test_trials_fill_the_nodes_and_no_more():
    plan = preflight(experiment(resources={"cpus": 3}), [node(8), node(4), node(2)])
    assert plan == Plan(gpus=0, max_concurrent_trials=3, notes=("9 trials take turns, 3 at once",))


def test_no_more_run_at_once_than_there_are():
    assert preflight(experiment(2), [node(16)]).max_concurrent_trials == 2


def test_a_trial_takes_a_gpu_where_any_node_has_one_and_else_none():
    cards = preflight(experiment(), [node(8), node(8, 2)])
    assert (cards.gpus, cards.max_concurrent_trials) == (1, 2)
    assert preflight(experiment(), [node(8)]).gpus == 0


def test_parts_of_a_gpu_add_up_to_it():
    assert preflight(experiment(resources={"gpus": 0.25}), [node(8, 1)]).max_concurrent_trials == 4
    thirds = preflight(experiment(resources={"gpus": 0.333}), [node(8, 1)])
    assert thirds.max_concurrent_trials == 3


def test_a_trial_larger_than_every_node_is_refused_with_what_fits():
    said = refusal(preflight(experiment(resources={"cpus": 4}), [node(2), node(3)]))
    assert "a trial of 'A' asks for 4 CPU, and no node has more than 3: lower resources.cpus to at most 3" in said


def test_a_gpu_that_no_node_has_is_refused():
    said = refusal(preflight(experiment(resources={"gpus": 1}), [node(8)]))
    assert "asks for 1 GPU, and no node has any: set resources.gpus to 0" in said


def test_a_kind_of_gpu_that_no_node_has_is_refused_with_the_kinds_there_are():
    wants = experiment(resources={"gpus": 1, "accelerator_type": "T4"})
    said = refusal(preflight(wants, [node(8, 1, "A100"), node(8, 1, "L4")]))
    assert "asks for a GPU of type T4, and no node has one (there are A100, L4)" in said
    assert preflight(wants, [node(8, 1, "A100"), node(8, 1, "T4")]).max_concurrent_trials == 1


def test_what_no_node_has_together_is_refused():
    said = refusal(
        preflight(experiment(resources={"cpus": 8, "gpus": 1}), [node(16, name="cpu"), node(4, 1, name="gpu")])
    )
    assert "asks for 8 CPU and 1 GPU on one node, and no node has them together" in said
    assert "1 × cpu with 16 CPU and 0 GPU, 1 × gpu with 4 CPU and 1 GPU" in said


def test_each_family_is_looked_at_and_each_refusal_named():
    plan = preflight(experiment(candidates=[{"cpus": 1}, {"cpus": 9}, {"cpus": 10}]), [node(8)])
    assert [said.split("'")[1] for said in plan.refusals] == ["B", "C"]


def test_small_trials_count_beside_large_ones():
    """What does not fit at the moment waits for room of its own: nothing is held meanwhile."""
    assert preflight(experiment(candidates=[{"cpus": 4}, {"cpus": 1}]), [node(8)]).max_concurrent_trials == 8


def test_workers_that_find_no_room_together_are_refused():
    said = refusal(preflight(experiment(workers_per_trial=3), [node(1), node(1)]))
    assert said.startswith(
        "workers_per_trial is 3, each with 1 CPU, and the cluster has room for 2: lower workers_per_trial"
    )


def test_trials_of_several_workers_are_counted_whole():
    """Five places for workers are room for two trials of two; counted as the largest family, since nothing reserves them."""
    assert preflight(experiment(workers_per_trial=2), [node(3), node(2)]).max_concurrent_trials == 2
    mixed = experiment(candidates=[{"cpus": 1}, {"cpus": 2}], workers_per_trial=2)
    assert preflight(mixed, [node(8)]).max_concurrent_trials == 2


def test_ray_data_that_would_starve_under_the_trials_is_refused():
    said = refusal(preflight(experiment(resources={"cpus": 4}), [node(4)], [data_need(1)]))
    assert "asks for 4 CPU, and beside it Ray Data asks for 1 CPU: together they do not fit" in said
    assert "Its tasks would wait for the trials" in said


def test_room_is_left_for_ray_data_and_for_serve():
    assert preflight(experiment(), [node(8)], [data_need(3)]).max_concurrent_trials == 5
    mixed = experiment(candidates=[{"cpus": 4}, {"cpus": 1}])
    assert preflight(mixed, [node(8)], [data_need(2)]).max_concurrent_trials == 1


def test_what_needs_no_gpu_is_put_where_there_is_none():
    plan = preflight(experiment(resources={"gpus": 1, "cpus": 4}), [node(4, 1), node(4)], [data_need(4)])
    assert plan.max_concurrent_trials == 1


def test_replicas_of_serve_take_their_gpus_from_the_trials():
    replicas = serve_needs(ROOT / "serve/configs/t4.yaml")
    assert preflight(experiment(), [node(8, 2, "T4")], replicas).max_concurrent_trials == 1
    said = refusal(preflight(experiment(resources={"gpus": 1}), [node(8, 1, "T4")], replicas))
    assert "beside it Serve's glyphrun asks for 1 CPU and 0.5 GPU" in said


def test_what_finds_no_room_even_without_trials_is_named():
    said = refusal(preflight(experiment(), [node(2)], [data_need(3)]))
    assert "Ray Data asks for 3 times 1 CPU, for which there is no room even without trials" in said


def test_what_serve_already_holds_is_gone_and_what_others_hold_comes_back():
    busy = [node(4, free=1)]
    assert preflight(experiment(), busy).max_concurrent_trials == 4
    assert preflight(experiment(), busy, held=True).max_concurrent_trials == 1
    assert "as Serve does" in refusal(preflight(experiment(resources={"cpus": 2}), busy, held=True))


def test_nodes_that_are_yet_to_start_count_and_are_announced():
    nodes = [node(4, name="head"), *[node(8, 1, "T4", name="t4-spot", starts=True)] * 3]
    plan = preflight(experiment(resources={"gpus": 1, "accelerator_type": "T4"}), nodes)
    assert plan.max_concurrent_trials == 3
    assert "up to 3 of t4-spot will be started" in plan.notes


def test_that_no_processor_is_left_for_a_pipeline_is_said():
    assert any("waits until one ends" in note for note in preflight(experiment(), [node(2)]).notes)
    assert not any("pipeline" in note for note in preflight(experiment(1), [node(2)]).notes)


def test_a_sweep_that_cannot_end_does_not_start_and_hears_of_the_cluster_file():
    with pytest.raises(
        ExperimentError, match="no node has any: set resources.gpus to 0.*set GLYPHRUN_CLUSTER to its file"
    ):
        require(experiment(resources={"gpus": 1}), [node(8)])
    assert require(experiment(), [node(8)]).max_concurrent_trials == 8


def test_a_cluster_file_counts_its_head_once_and_its_workers_as_many_as_may_start(tmp_path):
    file = tmp_path / "cluster.yaml"
    kinds = {"head": {"resources": {"CPU": 4}}, "t4": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 2}}
    file.write_text(yaml.safe_dump({"max_workers": 5, "head_node_type": "head", "available_node_types": kinds}))
    assert [(one.name, one.starts) for one in file_nodes(file)] == [("head", False), ("t4", True), ("t4", True)]
    file.write_text("a: b")
    with pytest.raises(ExperimentError, match="no cluster file of Ray"):
        file_nodes(file)


def test_decoded_size_counts_the_frames_of_train_and_val_and_each_way_of_preparing(small_dataset):
    """The set has 60 + 20 of 120 tracklets in them, of about equal lengths."""
    one = decoded_bytes(small_dataset, [ImageProcessor(height=10, width=20)])
    assert (
        decoded_bytes(small_dataset, [ImageProcessor(height=10, width=20), ImageProcessor(height=30, width=20)])
        == 4 * one
    )
    import pyarrow.parquet as pq

    rows = [row for file in small_dataset.glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    frames = sum(len(row["frames"]) for row in rows if row["split"] in ("train", "val"))
    assert one == pytest.approx(600 * frames, rel=0.1)


def test_a_file_that_is_no_serve_config_is_refused(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("import_path: x")
    with pytest.raises(ExperimentError, match="no Serve config: it has no applications"):
        serve_needs(file)
