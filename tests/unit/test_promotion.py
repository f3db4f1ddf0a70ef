"""The gate: a candidate is compared with the current version on held-out items and timed as it is served."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from glyphrun.bundle import load_engine
from glyphrun.cli import app
from glyphrun.data.sample import dataset_hash, iterate_samples
from glyphrun.data.shards import write_samples
from glyphrun.promotion import PromotionRefused, promote_run
from glyphrun.registry import Registry
from glyphrun.run_folder import PromotionError, dataset_of, target_of
from glyphrun.target import LatencyBudget, Target, TargetError, read_target
from glyphrun.text import DIGITS
from glyphrun.version_diff import diff_versions
from tiny_bundles import save_tiny_bundle

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EASY = Target(name="easy.yaml", budget=LatencyBudget(latency_ms=1e6))
IMPOSSIBLE = Target(name="hard.yaml", budget=LatencyBudget(latency_ms=1e-3, percentile=50, frames=2), batch=3)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two recognizers that read differently."""
    folder = tmp_path_factory.mktemp("bundles")
    return (
        save_tiny_bundle(folder / "one", "query-digits-nano", seed=1),
        save_tiny_bundle(folder / "other", "query-digits-nano", seed=2, refine_iters=1),
    )


@pytest.fixture(scope="module")
def dataset(bundles: tuple[Path, Path], small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tracklets whose labels are what the first recognizer reads, so that it errs nowhere."""
    engine = load_engine(bundles[0])
    samples = [sample for sample in iterate_samples(small_dataset) if sample.text is not None]
    readings = engine.read([sample.frames for sample in samples])
    folder = tmp_path_factory.mktemp("data") / "labelled"
    write_samples(
        (replace(sample, text=reading.text) for sample, reading in zip(samples, readings, strict=True)),
        folder,
        name="labelled",
        licence="none, it is made for tests",
        description="What a recognizer reads.",
        charset=DIGITS,
    )
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def run_folder(folder: Path, bundle: Path, dataset: Path, latency_ms: float) -> Path:
    """What a sweep leaves, as far as a promotion needs it."""
    shutil.copytree(bundle, folder / "bundle")
    (folder / "dataset.json").write_text(json.dumps({"hash": dataset_hash(dataset), "path": str(dataset)}))
    (folder / "results.json").write_text(json.dumps({"budget": {"latency_ms": latency_ms}}))
    (folder / "experiment.json").write_text(
        json.dumps({"experiment": {"budget": {"frames": 4}, "resources": {"cpus": 2}}})
    )
    return folder


def test_the_first_version_of_a_name_has_the_budget_alone_to_meet(registry, bundles):
    promoted, gate = promote_run(registry, bundles[0], "numbers", at=NOON)
    assert (promoted.version, gate.latency, gate.comparison) == (1, None, None)
    with pytest.raises(PromotionRefused) as refused:
        promote_run(registry, bundles[0], "others", at=NOON, target=IMPOSSIBLE)
    assert "50 % of batches of 3 items end within" in str(refused.value)
    assert "ms over the budget of 0.001 ms in hard.yaml" in str(refused.value)
    assert registry.names() == ["numbers"]


def test_a_worse_candidate_is_refused_and_the_champion_stays(registry, bundles, dataset):
    best, worse = bundles
    promote_run(registry, best, "numbers", at=NOON)
    with pytest.raises(PromotionRefused, match=r"items read wrong: .* against 0\.0000.*\nCER: ") as refused:
        promote_run(registry, worse, "numbers", at=NOON, dataset=dataset, target=EASY)
    assert "McNemar: the champion alone reads" in str(refused.value)
    assert registry.versions("numbers") == [1]


def test_a_better_candidate_takes_its_place_and_both_readings_are_kept(registry, bundles, dataset):
    best, worse = bundles
    promote_run(registry, worse, "numbers", at=NOON)
    promoted, gate = promote_run(registry, best, "numbers", at=NOON, dataset=dataset, target=EASY)
    assert (promoted.version, promoted.current) == (2, 2)
    assert gate.comparison is not None and gate.comparison.errors.candidate == 0 and gate.comparison.errors.high < 0
    assert gate.latency is not None and gate.latency.batches == 40 and gate.latency.items == "labelled"
    kept = registry.promotion("numbers", 2)
    assert kept.gate == gate.model_dump(mode="json")
    assert (kept.forced, kept.compared_with, kept.run) == (False, 1, str(best))
    found = diff_versions(registry, "numbers", 1, 2)
    assert found.items is not None
    assert not found.items.only_one_right and len(found.items.only_other_right) == gate.comparison.only_candidate > 0
    assert [change.key for change in found.weights] == ["weights.safetensors"]
    assert [(change.key, change.one, change.other) for change in found.settings] == [("decode.refine_iters", 1, 0)]
    back = diff_versions(registry, "numbers", 2, 1)
    assert back.items is not None and back.items.only_one_right == tuple(
        item.model_copy(update={"one": item.other, "other": item.one}) for item in found.items.only_other_right
    )


def test_without_a_data_set_a_second_version_cannot_be_compared_but_can_be_forced(registry, bundles):
    promote_run(registry, bundles[0], "numbers", at=NOON)
    with pytest.raises(PromotionError, match="version 1 of numbers is current.*give --dataset"):
        promote_run(registry, bundles[1], "numbers", at=NOON)
    promoted, gate = promote_run(registry, bundles[1], "numbers", at=NOON, force=True, reason="the data is gone")
    assert promoted.current == 2 and "not measured: version 1" in gate.failures[0]
    kept = registry.promotion("numbers", 2)
    assert (kept.forced, kept.reason) == (True, "the data is gone")
    assert diff_versions(registry, "numbers", 1, 2).items is None


def test_a_forced_one_is_kept_with_the_figures_that_refused_it(registry, bundles, dataset):
    promote_run(registry, bundles[0], "numbers", at=NOON)
    promote_run(registry, bundles[1], "numbers", at=NOON, dataset=dataset, force=True)
    kept = registry.promotion("numbers", 2)
    assert kept.forced and kept.gate["comparison"]["errors"]["champion"] == 0 and len(kept.gate["failures"]) == 3
    assert registry.current("numbers") == 2


def test_a_broken_champion_can_be_replaced_by_force(registry, bundles, dataset):
    promote_run(registry, bundles[0], "numbers", at=NOON)
    (registry.resolve("numbers") / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"weights\.safetensors was changed"):
        promote_run(registry, bundles[1], "numbers", at=NOON, dataset=dataset)
    assert promote_run(registry, bundles[1], "numbers", at=NOON, dataset=dataset, force=True)[0].current == 2


def test_one_compared_with_a_champion_that_is_replaced_meanwhile_is_kept_but_not_current(registry, bundles, dataset):
    best, worse = bundles
    promote_run(registry, worse, "numbers", at=NOON)

    def promote_another(done: int, total: int) -> None:
        if done == total:
            registry.promote(best, "numbers", at=NOON)

    promoted, gate = promote_run(registry, best, "numbers", at=NOON, dataset=dataset, progress=promote_another)
    assert (promoted.version, promoted.current, gate.champion) == (3, 2, 1)
    assert registry.current("numbers") == 2 and registry.versions("numbers") == [1, 2, 3]


def test_a_run_knows_its_data_set_and_its_own_budget(registry, bundles, dataset, tmp_path):
    run = run_folder(tmp_path / "run", bundles[0], dataset, latency_ms=1e6)
    assert dataset_of(run) == dataset
    own = target_of(run)
    assert own is not None
    assert (own.budget.latency_ms, own.budget.percentile, own.budget.frames) == (1e6, 50, 4)
    assert (own.batch, own.threads) == (1, 2)
    _, gate = promote_run(registry, run, "numbers", at=NOON)
    assert gate.latency is not None and gate.latency.items == "labelled"
    _, gate = promote_run(registry, run, "numbers", at=NOON)
    assert gate.comparison is not None and gate.comparison.errors.high == 0
    (run / "dataset.json").write_text(json.dumps({"hash": "0" * 64, "path": str(dataset)}))
    assert dataset_of(run) is None, "other data than that of the run"
    shutil.rmtree(run / "bundle")
    with pytest.raises(PromotionError, match="holds no bundle"):
        promote_run(registry, run, "numbers", at=NOON)


def test_a_split_that_there_is_not_is_said(registry, bundles, dataset):
    promote_run(registry, bundles[0], "numbers", at=NOON)
    with pytest.raises(ValueError, match="no split 'held-out'; it has .*choose one with --split"):
        promote_run(registry, bundles[1], "numbers", at=NOON, dataset=dataset, split="held-out")


def test_the_verbs_promote_refuse_compare_and_roll_back(bundles, dataset, tmp_path):
    def glyphrun(*arguments: str):
        return CliRunner().invoke(app, [*arguments, "--registry", str(tmp_path / "registry")])

    best, worse = map(str, bundles)
    assert glyphrun("promote", worse, "--name", "numbers").exit_code == 0
    passed = glyphrun("promote", best, "--name", "numbers", "--dataset", str(dataset))
    assert passed.exit_code == 0 and "numbers version 2: " in passed.output and "McNemar" in passed.output
    refused = glyphrun("promote", worse, "--name", "numbers", "--dataset", str(dataset))
    assert refused.exit_code == 3
    assert "not promoted to numbers" in refused.output and "items read wrong: " in refused.output
    unknown = glyphrun("promote", worse, "--name", "numbers")
    assert unknown.exit_code == 1 and "give --dataset" in unknown.output
    forced = glyphrun(
        "promote", worse, "--name", "numbers", "--dataset", str(dataset), "--force", "--reason", "a drill"
    )
    assert forced.exit_code == 0 and "forced although items read wrong" in forced.output
    listed = glyphrun("models")
    assert listed.exit_code == 0 and "3 of 3" in listed.output and "forced" in listed.output
    (row,) = json.loads(glyphrun("models", "--json").output)
    assert row["version"] == 3 and row["promotion"]["reason"] == "a drill"
    assert "decode.refine_iters" in glyphrun("diff", "numbers", "1", "2").output
    compared = json.loads(glyphrun("diff", "numbers", "1", "3", "--json", "--dataset", str(dataset)).output)
    assert compared["items"]["only_one_right"] == [] and compared["weights"] == []
    assert "numbers version 2: " in glyphrun("rollback", "numbers").output
    assert glyphrun("rollback", "numbers", "--to", "9").exit_code == 1
    (tmp_path / "registry/numbers/history/00000004.json").write_text("{")
    broken = glyphrun("models")
    assert broken.exit_code == 1 and "00000004.json cannot be read" in broken.output


def test_the_readmes_commands_about_promotion_run(bundles, dataset, tmp_path, monkeypatch):
    (block,) = [block for block in README.split("```sh\n") if block.startswith("glyphrun promote")]
    (tmp_path / "runs/first").mkdir(parents=True)
    run_folder(tmp_path / "runs/first", bundles[0], dataset, latency_ms=1e6)
    monkeypatch.chdir(tmp_path)
    promote, *_ = lines = [line.split()[1:] for line in block.split("```")[0].splitlines()]
    assert [verb for verb, *_ in lines] == ["promote", "diff", "rollback"]
    for line in [promote, *lines]:
        done = CliRunner().invoke(app, line)
        assert done.exit_code == 0, done.output
    assert "shirts version 1" in done.output


def test_the_target_is_a_serve_config_whose_application_accepts_it():
    from ray.serve.schema import ServeDeploySchema

    from glyphrun_serve.app import ServeSettings

    path = ROOT / "serve/configs/t4.yaml"
    (application,) = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text())).applications
    settings = ServeSettings.model_validate(application.args)
    target = read_target(path)
    assert target.budget == settings.budget == LatencyBudget(latency_ms=100, percentile=95)
    assert (target.batch, target.threads, target.gpu) == (settings.batching.most, settings.cpus, settings.gpus > 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda args: args.pop("budget"), "is no target: it needs one application"),
        (lambda args: args["budget"].update(latency=5), "latency: Extra inputs"),
        (lambda args: args["budget"].update(latency_ms=0), "latency_ms: Input should be greater than 0"),
        (lambda args: args["batching"].update(most="many"), "batch: Input should be a valid integer"),
    ],
)
def test_a_target_without_a_budget_that_can_be_read_is_refused_by_its_key(tmp_path, change, said):
    declared = yaml.safe_load((ROOT / "serve/configs/t4.yaml").read_text())
    change(declared["applications"][0]["args"])
    path = tmp_path / "target.yaml"
    path.write_text(yaml.safe_dump(declared))
    with pytest.raises(TargetError, match=said):
        read_target(path)
