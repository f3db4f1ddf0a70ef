"""``glyphrun ensemble``: several models become one bundle, scored and timed beside them at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands import refusal
from glyphrun.bundle import BundleError, read_manifest
from glyphrun.cli import app
from glyphrun.cli.ensembles import members_of
from glyphrun.data.batches import load_split
from glyphrun.ensemble_bundle import load_reader
from glyphrun.ensembled import make_ensemble
from glyphrun.evaluation.evaluate import evaluate, read_split
from glyphrun.members import EnsembleSettings
from tiny_bundles import save_tiny_bundle

TINY = {"encoder": {"width": 16, "heads": 2}, "decoder_heads": 2}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "one": save_tiny_bundle(folder / "one", "parseq-nano", {**TINY, "fusion": "mean"}, seed=1),
        "two": save_tiny_bundle(folder / "two", "parseq-nano", {**TINY, "fusion": "mean"}, seed=2),
        "digits": save_tiny_bundle(folder / "digits", "query-digits-nano", seed=3),
    }


def said(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, (arguments, done.output, done.exception)
    return done.stdout


def test_an_ensemble_is_scored_beside_its_members_then_promoted_and_evaluated_like_any_model(
    bundles, small_dataset, tmp_path
):
    out, registry = tmp_path / "both", ["--registry", str(tmp_path / "registry")]
    models = [str(bundles["one"]), f"second={bundles['digits']}"]
    options = ["--vote", "majority", "--weight", "second=2.5", "--deadline-ms", "one=60000", "--quorum", "2"]
    made = json.loads(said("ensemble", *models, *options, "--out", str(out), "--dataset", str(small_dataset), "--json"))
    manifest = read_manifest(out)
    assert manifest.ensemble == EnsembleSettings(
        vote="majority", weights={"second": 2.5}, deadline_ms={"one": 60_000}, quorum=2
    )
    assert manifest.recognizer["members"] == {"one": "parseq", "second": "query-digits"}
    assert manifest.metrics["val"].items() <= made["ensemble"].items()
    for name, figures in (("one", made["members"]["one"]), ("digits", made["members"]["second"])):
        reader = load_reader(bundles[name])
        alone = evaluate(reader, load_split(small_dataset, "val", reader.processor)).to_json()
        assert all(figures[key] == alone[key] for key in ("n", "exact", "exact_ci", "cer", "wer"))
        assert figures["ms"] > 0 and figures["images_per_s"] > 0
    assert "points against" in made["remarks"][0] and len(made["remarks"]) == 1
    said("promote", str(out), "--name", "committee", *registry)
    scored = json.loads(said("evaluate", "committee", str(small_dataset), "--json", *registry))
    assert {key: scored[key] for key in ("exact", "cer")} == {key: made["ensemble"][key] for key in ("exact", "cer")}


def test_an_average_searches_as_its_first_member_does(tmp_path, small_dataset):
    first = save_tiny_bundle(tmp_path / "first", "parseq-nano", TINY, seed=1, search="beam", width=4, n_best=2)
    again = save_tiny_bundle(tmp_path / "again", "parseq-nano", TINY, seed=1)
    out = tmp_path / "twice"
    made = make_ensemble({"first": first, "again": again}, out, EnsembleSettings(vote="average"))
    assert made.ensemble is None and made.remarks == ("without a data set nothing was scored or timed",)
    assert read_manifest(out).decode == read_manifest(first).decode
    readers = [load_reader(folder, precision="float32") for folder in (out, first)]
    arrays = load_split(small_dataset, "val", readers[0].processor)
    averaged, alone = (read_split(reader, arrays) for reader in readers)
    assert [one.text for one in averaged] == [one.text for one in alone]
    assert {member.status for member in averaged[0].members} == {"averaged"}


def test_members_that_were_left_out_are_told(bundles, small_dataset, tmp_path):
    pair = {name: bundles[name] for name in ("one", "two")}
    settings = EnsembleSettings(deadline_ms={"two": 1e-6})
    made = make_ensemble(pair, tmp_path / "hurried", settings, small_dataset)
    assert made.remarks[1] == "two was left out of 20 of 20 answers: late"


def test_a_runs_winner_and_snapshots_and_a_registered_model_are_members(bundles, tmp_path):
    run = tmp_path / "lr=0.1"
    snapshots = run / "trials/t3/snapshots"
    for folder in (run / "bundle", snapshots / "step-000050", snapshots / "step-000100"):
        save_tiny_bundle(folder, "parseq-nano", TINY)
    (run / "results.json").write_text('{"winner": "t3"}')
    registry = str(tmp_path / "registry")
    said("promote", str(bundles["one"]), "--name", "shirts", "--registry", registry)
    found = members_of([str(run), "shirts@1", f"other={bundles['one']}"], registry)
    assert list(found) == ["lr=0.1", "step-000050", "step-000100", "shirts-1", "other"]
    assert found["step-000100"] == snapshots / "step-000100" and found["other"] == bundles["one"]
    with pytest.raises(ValueError, match=r"both be the member one: name one yourself, such as other=.*one"):
        members_of([str(bundles["one"])] * 2, registry)
    with pytest.raises(ValueError, match=r"has lr=0.1, step-000050, step-000100, which cannot all be x"):
        members_of([f"x={run}"], registry)


def test_what_cannot_be_an_ensemble_is_one_sentence_that_names_the_member(bundles, tmp_path):
    out, one, registry = str(tmp_path / "out"), str(bundles["one"]), ["--registry", str(tmp_path / "registry")]
    ensemble = ["ensemble", "--out", out, *registry]
    assert "'nobody' is neither a bundle's folder nor a model" in refusal(*ensemble, one, "nobody")
    assert f"{tmp_path} is neither a bundle" in refusal(*ensemble, one, str(tmp_path))
    assert "this one would have one: name more" in refusal(*ensemble, one)
    both = [one, str(bundles["digits"])]
    assert "one emits at most 2 tokens between 11 and 0, all frames together and digits ranks its answers" in refusal(
        *ensemble, *both, "--vote", "average"
    )
    assert "weights names the member 'tow'; there are one, digits" in refusal(*ensemble, *both, "--weight", "tow=2")
    assert "weights.digits" in refusal(*ensemble, *both, "--weight", "digits=much")
    assert "'mbr' or 'average'" in refusal(*ensemble, *both, "--vote", "rovers")
    assert "'a b' cannot be a member's name" in refusal(*ensemble, one, f"a b={bundles['two']}")
    assert not Path(out).exists()
    with pytest.raises(BundleError, match="one exists already"):
        make_ensemble(bundles, bundles["one"], EnsembleSettings())
